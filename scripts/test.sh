#!/usr/bin/env bash
# Runs all tests. Arguments go to the test runner, such as a name to filter by.
#
# Tests that drive outside tools skip with a message where a tool is missing;
# with CI=true a missing tool is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh test
. scripts/env.sh
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --release --locked --workspace --no-fail-fast "$@"
    # Examples in the documentation, which nextest does not run.
    (( $# )) || cargo test --release --locked --workspace --doc
else
    cargo test --release --locked --workspace --no-fail-fast -- "$@"
fi
# A filter asks for certain tests only. The binary has just been built.
(( $# )) || TESSERA_PREBUILT=1 scripts/vm-test.sh --skip-if-missing
(( $# )) || TESSERA_PREBUILT=1 scripts/vm-attach-test.sh --skip-if-missing
