#!/usr/bin/env bash
# A virtual machine with a stock Debian kernel attaches two exports as block
# devices of its own kernel ('tessera attach'), makes a file system on one and
# writes; the server is stopped and started, and killed and started, meanwhile.
# No request may fail, and everything must be there. Then it does the same with a
# server of its own, and sees requests fail when they have waited long enough.
# Options and settings: scripts/vm/machine.sh.
#
#   scripts/vm-attach-test.sh [--skip-if-missing]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
. scripts/vm/machine.sh

"$TESSERA" pool create "$pool" --level raid5 --files 4 --file-size 512M >/dev/null
"$TESSERA" volume create "$pool" vm1 --size 512M >/dev/null
"$TESSERA" volume create "$pool" vm2 --size 64M >/dev/null
# Busybox has no durable writes.
cp "$(PATH=/usr/bin:/bin command -v dd)" "$work/dd.full"
cp "$TESSERA" "$work/tessera"
vm_initramfs "$work" "$work/tessera" "$work/dd.full"
# The first server finds a port, the others take the same.
serve_options=(--listen 127.0.0.1:0)
serve
port=$(sed -n 's|^listening on nbd://127\.0\.0\.1:\([0-9]*\).*|\1|p' "$work/serve.log")
[[ -n $port ]] || die "the server does not tell its port"
serve_options=(--listen "127.0.0.1:$port")
# The guest's 10.0.2.2 is this side's 127.0.0.1.
machine_options=(-nic user,model=virtio-net-pci,restrict=off)

step "Boot: attaches two exports, makes a file system, writes"
boot attach "vmtest.port=$port"
await WRITING
step "A clean stop of the server, and a start after a while"
stop_server
# Long enough that the guest's requests wait, and are looked at by its timer.
sleep 6
serve
await 'RESTARTED.*'
await DURABLE
step "kill -9 of the server, and a start after a while"
kill_server
sleep 2
serve
await 'KILLED.*'
await_end attach
tr -d '\r' <"$console" | grep -E '^vm-test: (RESTARTED|KILLED)|^  ' >&2

step "A clean stop, and a check of every byte"
stop_server
"$TESSERA" pool check "$pool" --data >&2
