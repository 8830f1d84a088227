#!/usr/bin/env bash
# Makes the images of deploy/docker-compose.yml follow the code: from the public images, or, where their registries
# cannot be reached, from local stand-ins (deploy/build-local-images.sh, which leaves deploy/.env behind).
set -euo pipefail
cd "$(dirname "$0")/.."

PULL_MAX_S=180  # A registry that is there delivers 60 MB in less.

say() { echo "images: $*" >&2; }
if ! docker info >/dev/null 2>&1; then
    say "no Docker engine answers. Debian: apt-get install docker.io docker-compose, and your user in the group docker."
    exit 1
fi
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose -f deploy/docker-compose.yml)
elif command -v docker-compose >/dev/null; then
    compose=(docker-compose -f deploy/docker-compose.yml)
else
    say "Compose is missing. Debian: apt-get install docker-compose."
    exit 1
fi
has() { docker image inspect "$1" >/dev/null 2>&1 || timeout "$PULL_MAX_S" docker pull --quiet "$1" >/dev/null; }

python="$(sed -n 's/^ARG PYTHON_IMAGE=//p' deploy/Dockerfile)"
etcd="$(sed -n 's/.*ETCD_IMAGE:-\(.*\)}$/\1/p' deploy/docker-compose.yml)"
if [ -f deploy/.env ]; then
    exec deploy/build-local-images.sh
elif has "$etcd" && has "$python"; then
    "${compose[@]}" build node
else
    say "the public images cannot be had; building stand-ins"
    exec deploy/build-local-images.sh
fi
