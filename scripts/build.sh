#!/usr/bin/env bash
# Builds the tessera binary and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
scripts/setup.sh build
cargo build --release --locked -p tessera >&2
printf '%s\n' "$CARGO_TARGET_DIR/release/tessera"
