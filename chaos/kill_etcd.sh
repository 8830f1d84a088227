#!/usr/bin/env bash
# Kills the Compose cluster's etcd, and starts it again, with its data, ten seconds later: gossip leads meanwhile.
#
#     chaos/kill_etcd.sh [--keep] [--limit SECONDS]
#
# --keep leaves it dead. --limit: longest wait for the views to agree (60). COMPOSE_PROJECT_NAME: the cluster, if it is
# not that of deploy/.
set -euo pipefail
# shellcheck source=chaos/watch.sh
. "$(dirname "$0")/watch.sh"

inject() { docker kill "$etcd_container"; }
undo() { docker start "$etcd_container"; }

break_etcd "docker kill of etcd" is_known "$@"
