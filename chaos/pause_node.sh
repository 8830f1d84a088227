#!/usr/bin/env bash
# Has a node of the Compose cluster stand still (`docker pause`), and go on when the others have closed the ring.
#
#     chaos/pause_node.sh [--keep] [--limit SECONDS] [NODE]
#
# NODE: a container's name or id, or its number in Compose; any one of them by default. --keep leaves it paused.
# --limit: longest wait for the views to agree (60). COMPOSE_PROJECT_NAME: the cluster, if it is not that of deploy/.
set -euo pipefail
# shellcheck source=chaos/watch.sh
. "$(dirname "$0")/watch.sh"

inject() { docker pause "$victim"; }
undo() { docker unpause "$victim"; }

break_a_node "docker pause" "$@"
