#!/usr/bin/env bash
# Installs the system packages that building, testing, the demo or the bench
# need and that are missing: with apt when root, else by naming them.
#
#   scripts/setup.sh [build|test|demo|bench|vm]...      (default: all of them)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

missing=()
# need COMMAND PACKAGE...: the packages provide the command.
need() {
    local command=$1
    shift
    PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || missing+=("$@")
}

need_build() {
    command -v cargo >/dev/null ||
        die "Rust is missing: install version 1.90 or newer from https://rustup.rs"
    need cc gcc libc6-dev
    need c++ g++
    need make make
    # bindgen, which reads RocksDB's headers, loads libclang and uses clang's
    # own header files.
    need clang clang
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
        compgen -G '/usr/lib*/libclang*.so*' >/dev/null ||
        [[ -n ${LIBCLANG_PATH:-} ]] || missing+=(libclang-dev)
    # Not needed, but it makes every build after the first one short.
    if (( EUID == 0 )); then need ccache ccache; fi
}

need_clients() {
    need strace strace
    need fio fio
    need nbdkit nbdkit
    need nbdcopy libnbd-bin
    need nbdinfo libnbd-bin
    need qemu-img qemu-utils
    need mke2fs e2fsprogs
    need /usr/bin/python3 python3
}

need_test() {
    need_clients
    need fusermount3 fuse3
    need losetup mount
    need mkfs.xfs xfsprogs
    need mkfs.btrfs btrfs-progs
    need fstrim util-linux
    need qemu-io qemu-utils
    need systemd-socket-activate systemd
    need groff groff-base
    /usr/bin/python3 -c 'import nbd' 2>/dev/null || missing+=(python3-libnbd)
}

need_bench() {
    need_clients
    need qemu-storage-daemon qemu-utils
    /usr/bin/python3 -c 'import nbd' 2>/dev/null || missing+=(python3-libnbd)
    # Only to compare with, and only root may mount.
    if (( EUID == 0 )); then
        need mkfs.btrfs btrfs-progs
        need duperemove duperemove
    fi
}

# The emulator and its kernel are not installed: see scripts/vm/tools.sh.
need_vm() {
    need mke2fs e2fsprogs
    need /usr/bin/python3 python3
}

(( $# )) || set -- build test demo bench vm
for purpose; do
    case $purpose in
    build) need_build ;;
    test) need_build; need_test ;;
    demo) need_build; need_clients ;;
    bench) need_build; need_bench ;;
    vm) need_vm ;;
    *) die "unknown purpose $purpose: use build, test, demo, bench or vm" ;;
    esac
done

(( ${#missing[@]} )) || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if (( EUID != 0 )); then
    die "these packages are missing: ${missing[*]}
Install them, on Debian and its kin with: sudo apt-get install ${missing[*]}"
fi
command -v apt-get >/dev/null || die "these packages are missing and there is no apt-get: ${missing[*]}"
say "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
