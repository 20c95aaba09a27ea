#!/usr/bin/env bash
# Compares a served pool with qemu-nbd and nbdkit under fio; see
# benches/compare.py --help for what it measures and its options.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh bench
. scripts/env.sh
TESSERA=$(tessera_binary)
# --mount: the volume as a mounted file instead (benches/compare_mount.py).
if [[ ${1-} == --mount ]]; then
    shift
    exec /usr/bin/python3 benches/compare_mount.py --tessera "$TESSERA" "$@"
fi
exec /usr/bin/python3 benches/compare.py --tessera "$TESSERA" "$@"
