#!/usr/bin/env bash
# Kills a node of the Compose cluster, as `kill -9` does, and starts it again when the others have closed the ring.
#
#     chaos/kill_node.sh [--keep] [--limit SECONDS] [NODE]
#
# NODE: a container's name or id, or its number in Compose; any one of them by default. --keep leaves it dead.
# --limit: longest wait for the views to agree (60). COMPOSE_PROJECT_NAME: the cluster, if it is not that of deploy/.
set -euo pipefail
# shellcheck source=chaos/watch.sh
. "$(dirname "$0")/watch.sh"

inject() { docker kill "$victim"; }
undo() { docker start "$victim"; }

break_a_node "docker kill" "$@"
