#!/usr/bin/env bash
# A virtual machine with a stock Debian kernel has an export for its disk: it
# makes a file system, writes and syncs; machine and server are killed; it
# boots again, checks, writes more while the server is stopped and started
# under it, and reboots; the server is killed again and a member file removed;
# it boots once more and checks everything, degraded.
# (The emulator needs no hardware support, and the disk no kernel driver for
# NBD on this side.)
#
#   scripts/vm-test.sh [--skip-if-missing]
#
# Options and settings: scripts/vm/machine.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
. scripts/vm/machine.sh

"$TESSERA" pool create "$pool" --level raid5 --files 4 --file-size 512M >/dev/null
"$TESSERA" volume create "$pool" vm1 --size 512M >/dev/null
vm_initramfs "$work"
serve_options=(--socket "$work/nbd.sock")
machine_options=(
    -nic none
    -blockdev "driver=nbd,node-name=disk,export=vm1,server.type=unix,server.path=$work/nbd.sock,reconnect-delay=60,discard=unmap,detect-zeroes=unmap"
    -device virtio-blk-pci,drive=disk
)
serve

step "First boot: makes a file system, writes, syncs"
boot fill
await 'NOISE 20'
step "kill -9 of the server and of the machine, while it writes"
kill_server
end "$machine"
machine=
noise=$(grep -c '^vm-test: NOISE [0-9][0-9]*.$' "$console")

step "Second boot: checks what was synced ($noise files of noise too), writes, reboots"
serve
boot check "vmtest.noise=$noise"
await WRITING
step "A clean stop and start of the server under the running machine"
stop_server
serve
await_end check
mapped=$(status logical_bytes)
say "mapped: $((mapped >> 20)) MiB"
# Two sets of 18 MiB and the file system's own blocks; the 96 MiB of junk that
# each boot wrote and removed must be gone.
(( mapped < 80 << 20 )) || die "fstrim gave nothing back"
kill_server

step "Third boot: without disk2.img, checks, writes, checks"
rm "$pool/disk2.img"
serve
[[ $(status state) == degraded ]] || die "the pool is $(status state), not degraded"
boot degraded
await_end degraded
tr -d '\r' <"$console" | grep '^vm-test: set' >&2

step "A clean stop, and a check of every byte"
stop_server
"$TESSERA" pool check "$pool" --data >&2
