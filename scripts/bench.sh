#!/usr/bin/env bash
# Compares a served pool with qemu-nbd and nbdkit under fio; see
# benches/compare.py --help for what it measures and its options.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh bench
. scripts/env.sh
TESSERA=$(tessera_binary)
exec /usr/bin/python3 benches/compare.py --tessera "$TESSERA" "$@"
