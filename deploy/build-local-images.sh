#!/usr/bin/env bash
# Builds all images that deploy/docker-compose.yml needs, where no image registry can be reached, from Debian (or
# Ubuntu) packages and the Python package index, and names them in deploy/.env, which Compose reads.
#
#     deploy/build-local-images.sh             # what is there stays; the node's image follows the code
#     deploy/build-local-images.sh --fresh     # everything anew
#
# Needs root, a running Docker engine and debootstrap. The base image gets this machine's certificates and its
# pip settings, so that pip inside trusts and asks whom pip outside trusts and asks: keep these images to yourself.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON_IMAGE=zephyrcache-python:local
ETCD_IMAGE=zephyrcache-etcd:local
ZEPHYRCACHE_IMAGE=zephyrcache:latest

say() { echo "build-local-images: $*" >&2; }
fail() { say "$*"; exit 1; }
exists() { docker image inspect "$1" >/dev/null 2>&1; }

case "${1:-}" in
    "") fresh="" ;;
    --fresh) fresh=yes ;;
    *) fail "unknown argument: $1" ;;
esac
docker info >/dev/null 2>&1 || fail "no Docker engine answers: start it, or add yourself to the group docker"

# The settings of pip that say whom to ask; certificates are handled apart, and paths of this machine mean nothing inside.
pip_settings() {
    local name value
    echo "[global]"
    echo "cert = /etc/ssl/certs/ca-certificates.crt"
    for name in index-url extra-index-url trusted-host proxy default-timeout; do
        value="$(python3 -m pip config get ":env:.$name" 2>/dev/null || python3 -m pip config get "global.$name" 2>/dev/null)" || continue
        printf '%s = %s\n' "$name" "$value"
    done
}

build_python() {
    local suite mirror certificates
    command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
    [ "$(id -u)" = 0 ] || fail "debootstrap needs root"
    suite="$(. /etc/os-release && echo "${VERSION_CODENAME:?}")"
    # The mirror that this machine's apt uses.
    mirror="$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 2>/dev/null | head -n 1)"
    root="$(mktemp -d)"
    trap 'rm -rf "$root"' EXIT  # Not a local: it must outlive this function.
    say "$PYTHON_IMAGE from the packages of $suite"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
        "$suite" "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 || { tail -n 20 "$root.log" >&2; fail "debootstrap failed; its log: $root.log"; }
    rm -rf "$root.log" "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/*
    certificates="${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}"
    [ -r "$certificates" ] && cp --dereference "$certificates" "$root/etc/ssl/certs/ca-certificates.crt"
    pip_settings >"$root/etc/pip.conf"
    tar --create --directory "$root" --one-file-system --exclude './proc/*' --exclude './sys/*' --exclude './dev/*' . |
        docker import --change 'CMD ["python3"]' - "$PYTHON_IMAGE" >/dev/null
}

# On the host's network: what resolves and routes outside does so inside.
build() {
    local image="$1" file="$2" name
    local -a arguments=(--network host --build-arg "PYTHON_IMAGE=$PYTHON_IMAGE")
    shift 2
    for name in HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
    done
    say "$image from $file"
    docker build --quiet ${fresh:+--no-cache} "${arguments[@]}" --tag "$image" --file "$file" . >/dev/null
}

if [ -n "$fresh" ] || ! exists "$PYTHON_IMAGE"; then build_python; fi
if [ -n "$fresh" ] || ! exists "$ETCD_IMAGE"; then build "$ETCD_IMAGE" deploy/Dockerfile.etcd; fi
build "$ZEPHYRCACHE_IMAGE" deploy/Dockerfile
# Each change of the code leaves the image before it without a name. Layers that the new one is built from stay.
docker image prune --force --filter "label=org.opencontainers.image.title=ZephyrCache" --filter until=24h >/dev/null

cat >deploy/.env <<END
# Written by deploy/build-local-images.sh. Remove this file to use the public images.
PYTHON_IMAGE=$PYTHON_IMAGE
ETCD_IMAGE=$ETCD_IMAGE
ZEPHYRCACHE_IMAGE=$ZEPHYRCACHE_IMAGE
END
say "done; deploy/.env names them"
