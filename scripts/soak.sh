#!/usr/bin/env bash
# Runs the simulations for long: seeded random runs with power cuts on every
# level, then every sequence of up to three requests cut at every device
# operation. A failure prints the command that replays it.
#
#   scripts/soak.sh [SEEDS]      seeds of each level (default 500)
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build
. scripts/env.sh
seeds=${1:-500}
started=$SECONDS
TESSERA_SEEDS=$seeds cargo test --release --locked -p tessera-engine --test model -- --nocapture
elapsed=$(( SECONDS - started ))
say "$seeds seeds of each level in $elapsed s"
TESSERA_LENGTH=3 cargo test --release --locked -p tessera-engine --test crash_points -- --nocapture
