#!/usr/bin/env bash
# Builds the tessera binary and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build
. scripts/env.sh
cargo build --release --locked -p tessera >&2
printf '%s\n' "$CARGO_TARGET_DIR/release/tessera"
