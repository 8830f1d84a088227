#!/usr/bin/env bash
# Cuts a node of the Compose cluster off its network, and connects it when the others have closed the ring.
#
#     chaos/disconnect_node.sh [--keep] [--limit SECONDS] [NODE]
#
# NODE: a container's name or id, or its number in Compose; any one of them by default. --keep leaves it cut off.
# --limit: longest wait for the views to agree (60). COMPOSE_PROJECT_NAME: the cluster, if it is not that of deploy/.
set -euo pipefail
# shellcheck source=chaos/watch.sh
. "$(dirname "$0")/watch.sh"

inject() { docker network disconnect "${project}_default" "$victim"; }
# By the service's name the others find it, as Compose had it.
undo() { docker network connect --alias node "${project}_default" "$victim"; }

break_a_node "docker network disconnect" "$@"
