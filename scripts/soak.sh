#!/usr/bin/env bash
# Runs the simulations for long: seeded random runs with power cuts, then with
# every fault within and beyond the redundancy, on every level; then every
# sequence of up to three requests cut at every device operation. A failure
# prints the command that replays it.
#
#   scripts/soak.sh [SEEDS] [FIRST]    seeds of each level and mode (default
#                                      500), and the first of them (default 0)
#   scripts/soak.sh --minutes N [FIRST]
#                                      random runs only, for as long as told
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build
. scripts/env.sh
# The simulated devices take and give back much memory: not to the kernel, which
# would take a third of the time.
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=268435456:glibc.malloc.trim_threshold=4294967296
run() {
    cargo test --release --locked -p tessera-engine --test "$1" -- --nocapture "${@:2}"
}
# Quiet about everything but figures, until something fails.
figures() {
    local output
    if output=$("$@" 2>&1); then
        grep -E 'seeds a second|cases|runs' <<<"$output"
    else
        printf '%s\n' "$output"
        return 1
    fi
}

if [[ ${1:-} == --minutes ]]; then
    minutes=${2:?how many minutes} first=${3:-1000}
    export TESSERA_SEEDS=25
    begun=$SECONDS
    seeds=0
    while (( SECONDS - begun < minutes * 60 )); do
        export TESSERA_FIRST=$first
        figures run faults within
        figures run faults beyond
        first=$(( first + TESSERA_SEEDS ))
        # Six levels, two modes.
        seeds=$(( seeds + TESSERA_SEEDS * 12 ))
    done
    elapsed=$(( SECONDS - begun ))
    say "$seeds runs in $elapsed s, $(( seeds / (elapsed ? elapsed : 1) )) seeds a second; go on with FIRST=$first"
    exit
fi

export TESSERA_SEEDS=${1:-500} TESSERA_FIRST=${2:-0}
started=$SECONDS
figures run model random
figures run faults within
figures run faults beyond
elapsed=$(( SECONDS - started ))
runs=$(( TESSERA_SEEDS * 18 ))
say "$runs runs in $elapsed s, $(( runs / (elapsed ? elapsed : 1) )) seeds a second"
TESSERA_LENGTH=3 figures run crash_points
# The same with large writes of 1 MiB, those sequences that have one: hours. To
# do them in parts see engine/tests/crash_points.rs.
TESSERA_LARGE=1 TESSERA_LENGTH=${TESSERA_LENGTH_LARGE:-3} figures run crash_points
