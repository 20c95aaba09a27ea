#!/usr/bin/env bash
# Compares a served pool with qemu-nbd and nbdkit, and a mounted one with NBD
# and qemu-storage-daemon, under fio; and measures rebuild and scrub, and what
# they leave to clients (benches/upkeep.py); and what deduplication costs and
# gives back (benches/space.py).
#
#   scripts/bench.sh [--nbd | --mount | --upkeep | --space] [OPTION]...     (default: all)
#
# benches/compare.py --help and benches/compare_mount.py --help say what is
# measured and which options there are; without --nbd or --mount they have to
# be those that both know, such as --quick, --rounds, --seconds, --strict.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh bench
. scripts/env.sh
TESSERA=$(tessera_binary)

which=both
case ${1-} in
--nbd | --mount | --upkeep | --space)
    which=${1#--}
    shift
    ;;
esac
# What only one of them knows, as before there were two.
case " $*" in
*" --servers"* | *" --json"*) [[ $which != both ]] || which=nbd ;;
esac

failed=0
if [[ $which == upkeep || $which == space ]]; then
    exec /usr/bin/python3 "benches/$which.py" --tessera "$TESSERA" "$@"
fi
if [[ $which != mount ]]; then
    /usr/bin/python3 benches/compare.py --tessera "$TESSERA" "$@" || failed=$?
fi
if [[ $which == both && ! -w /dev/fuse ]]; then
    say "Nothing can be mounted here: the mount is not measured"
elif [[ $which != nbd ]]; then
    /usr/bin/python3 benches/compare_mount.py --tessera "$TESSERA" "$@" || failed=$?
fi
# They have options of their own: --upkeep --help, --space --help.
if [[ $which == both ]]; then
    /usr/bin/python3 benches/upkeep.py --tessera "$TESSERA" || failed=$?
    /usr/bin/python3 benches/space.py --tessera "$TESSERA" || failed=$?
fi
exit "$failed"
