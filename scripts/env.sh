# Sourced by the other scripts: where things are built, and with what.
# shellcheck shell=bash

# RocksDB takes a quarter of an hour to compile, so a build directory outside
# the checkout is used where there is one, and ccache where it is installed.
if [[ -z ${CARGO_TARGET_DIR:-} ]]; then
    if [[ -d $HOME/.cache/tessera/target ]]; then
        CARGO_TARGET_DIR=$HOME/.cache/tessera/target
    else
        CARGO_TARGET_DIR=$PWD/target
    fi
fi
export CARGO_TARGET_DIR
if command -v ccache >/dev/null; then
    export CC=${CC:-ccache cc} CXX=${CXX:-ccache c++}
fi

# The binary the scripts drive is built first, unless TESSERA names one.
TESSERA=${TESSERA:-}
tessera_binary() {
    if [[ -n $TESSERA ]]; then
        command -v "$TESSERA" || die "TESSERA=$TESSERA is no program"
    else
        scripts/build.sh
    fi
}

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }
