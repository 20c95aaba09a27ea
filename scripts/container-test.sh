#!/usr/bin/env bash
# Builds the image of docs/install/Containerfile with a container engine and uses
# it: makes a pool in a volume, serves it on a published port, and stops, kills
# and starts the container between writing and comparing.
#
#   scripts/container-test.sh
#
#   ENGINE=podman          the engine, with options if need be
#   IMAGE=NAME             use this image instead of building one
#   BUILD_OPTIONS=...      more words for 'build'
#   RUN_OPTIONS=...        more words for 'run'
#
# Not part of `make test`: it needs an engine and its base images, and compiles
# RocksDB from nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

read -ra engine <<<"${ENGINE:-podman}"
read -ra build_options <<<"${BUILD_OPTIONS:-}"
read -ra run_options <<<"${RUN_OPTIONS:-}"
image=${IMAGE:-tessera-test}
name=tessera-test-$$
for needed in "${engine[0]}" nbdcopy nbdinfo cmp; do
    command -v "$needed" >/dev/null || die "$needed is missing"
done

work=$(mktemp -d "${TMPDIR:-/tmp}/tessera-container.XXXXXX")
cleanup() {
    local status=$?
    trap - EXIT
    "${engine[@]}" rm --force "$name" >/dev/null 2>&1 || true
    "${engine[@]}" volume rm --force "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
    if (( status == 0 )); then say "container-test: PASS"; else say "container-test: FAIL (status $status)"; fi
    exit "$status"
}
trap cleanup EXIT

step() { say "[$SECONDS s] $*"; }
once() { "${engine[@]}" run --rm "${run_options[@]}" -v "$name:/srv/tessera" "$image" "$@"; }
# Waits until the container serves, on whatever port it got.
await() {
    local deadline=$((SECONDS + 60)) address
    address=$("${engine[@]}" port "$name" 10809/tcp | head -n 1)
    export_uri=nbd://$address/vm1
    until nbdinfo --size "$export_uri" >/dev/null 2>&1; do
        (( SECONDS < deadline )) || { "${engine[@]}" logs "$name" >&2; die "the container does not serve"; }
        sleep 0.1
    done
}
# compare NAME: the disk holds what was written.
compare() {
    rm -f "$work/read"
    nbdcopy "$export_uri" "$work/read"
    cmp "$work/read" "$work/written" || die "$1: other data is read back"
}

if [[ -z ${IMAGE:-} ]]; then
    step "Build"
    "${engine[@]}" build "${build_options[@]}" -f docs/install/Containerfile -t "$image" .
fi
head -c 64M /dev/urandom >"$work/written"

step "A pool in a volume of the engine's"
"${engine[@]}" volume create "$name" >/dev/null
once pool create /srv/tessera/tank --level raid5 --files 4 --file-size 256M >/dev/null
once volume create /srv/tessera/tank vm1 --size 64M >/dev/null

step "Serve, write, flush"
"${engine[@]}" run -d --name "$name" "${run_options[@]}" -v "$name:/srv/tessera" \
    -p 127.0.0.1::10809 "$image" >/dev/null
await
user=$("${engine[@]}" exec "$name" id -u)
(( user != 0 )) || die "the server runs as root"
nbdcopy --flush "$work/written" "$export_uri"
compare "at once"
"${engine[@]}" exec "$name" tessera pool status /srv/tessera/tank >"$work/status"
grep '^I/O:' "$work/status" >&2
"${engine[@]}" kill --signal HUP "$name" >/dev/null
compare "after SIGHUP"

step "Stop and start"
"${engine[@]}" stop --time 120 "$name" >/dev/null
code=$("${engine[@]}" inspect --format '{{.State.ExitCode}}' "$name")
(( code == 0 )) || die "the server ended with $code"
"${engine[@]}" start "$name" >/dev/null
await
compare "after a stop"

step "Kill and start"
"${engine[@]}" kill --signal KILL "$name" >/dev/null
"${engine[@]}" wait "$name" >/dev/null
"${engine[@]}" start "$name" >/dev/null
await
compare "after a kill"

step "A check of every byte"
"${engine[@]}" stop --time 120 "$name" >/dev/null
once pool check /srv/tessera/tank --data >&2
