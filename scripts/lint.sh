#!/usr/bin/env bash
# The gates besides the tests: formatting, clippy and documentation, warnings
# denied, all in the one profile everything uses.
set -euo pipefail
cd "$(dirname "$0")/.."
# Set-up first: it may install ccache, and a compiler that changes between
# two builds has RocksDB compiled again.
scripts/setup.sh build
. scripts/env.sh
cargo fmt --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --workspace
# What fuzzes is no member of the workspace and has a lock file of its own.
cargo metadata --locked --format-version 1 --manifest-path fuzz/Cargo.toml >/dev/null
