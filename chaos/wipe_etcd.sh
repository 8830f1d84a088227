#!/usr/bin/env bash
# Kills the Compose cluster's etcd, and starts it again at once without its data: no ring may shrink.
#
#     chaos/wipe_etcd.sh [--keep] [--limit SECONDS]
#
# --keep leaves it dead and empty. --limit: longest wait for the views to agree (60). COMPOSE_PROJECT_NAME: the cluster,
# if it is not that of deploy/.
set -euo pipefail
# shellcheck source=chaos/watch.sh
. "$(dirname "$0")/watch.sh"

inject() {
    lost_epoch="${epoch[${nodes[0]}]}"  # Who still shows it has not seen that the data are lost.
    docker kill "$etcd_container"
    # Etcd's own image has no shell; the nodes' image has what it takes.
    docker run --rm --user 0 --network none --volumes-from "$etcd_container" --entrypoint rm \
        "$(docker inspect --format '{{.Image}}' "${nodes[0]}")" -rf /var/lib/etcd/data
}
undo() { docker start "$etcd_container"; }

break_etcd "docker kill of etcd, and its data removed" "" "$@"
