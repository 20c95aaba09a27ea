#!/usr/bin/env bash
# Fuzzes every target in turn, from the seeds in fuzz/corpus and what earlier
# runs found worth keeping. A finding stops it and names the input.
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]    so long each (default 600), all
#                                            targets unless named
#
# With the stable compiler: the coverage that libFuzzer wants is a pass of LLVM.
# The flags are RocksDB's of any other build, so ccache has its objects.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build
. scripts/env.sh
seconds=${1:-600}
shift || true
targets=("$@")
if (( ! ${#targets[@]} )); then
    for file in fuzz/fuzz_targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

export CARGO_TARGET_DIR=${TESSERA_FUZZ_DIR:-$CARGO_TARGET_DIR/fuzz}
export CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_DEBUG=line-tables-only
export CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true
coverage=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing)
host=$(rustc -vV | sed -n 's/^host: //p')
say "Building the targets"
RUSTFLAGS="${coverage[*]}" cargo build --release --locked --manifest-path fuzz/Cargo.toml \
    --target "$host" "${targets[@]/#/--bin=}"

for target in "${targets[@]}"; do
    found=$CARGO_TARGET_DIR/found/$target
    mkdir -p "$found"
    log=$CARGO_TARGET_DIR/$target.log
    # One run of `ops` is a whole world. More where the process is stopped for
    # a while now and then.
    timeout=${TESSERA_FUZZ_TIMEOUT:-10}
    [[ $target == ops ]] && timeout=$(( 12 * timeout ))
    if ! "$CARGO_TARGET_DIR/$host/release/$target" "$found" "fuzz/corpus/$target" \
        -max_total_time="$seconds" -timeout=$timeout -rss_limit_mb=4096 -print_final_stats=1 \
        -artifact_prefix="$CARGO_TARGET_DIR/$target-" >"$log" 2>&1; then
        tail -40 "$log" >&2
        die "$target has a finding; the log is $log"
    fi
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    coverage=$(grep -oE 'cov: [0-9]+ ft: [0-9]+ corp: [0-9]+' "$log" | tail -1)
    printf '%-18s %12s inputs in %s s   %s\n' "$target" "$executed" "$seconds" "$coverage"
done
