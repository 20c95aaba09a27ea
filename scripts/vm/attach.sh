# Sourced by the guest's init: what it does with exports as kernel block devices.
# shellcheck shell=sh

# attach URI NUMBER [OPTION VALUE]: attaches it in the background, as $process, and
# sets $device.
attach() {
    # Here, not in the new process: what an earlier one said must not count.
    : >"/tmp/device.$2"
    tessera attach "$1" ${3:+"$3" "$4"} >"/tmp/device.$2" 2>"/tmp/attach.$2" &
    process=$!
    waited=0
    until [ -s "/tmp/device.$2" ]; do
        kill -0 $process 2>/dev/null || fail "attach: $(cat "/tmp/attach.$2")"
        [ "$waited" -lt 300 ] || fail "attach takes too long"
        waited=$((waited + 1))
        sleep 0.1
    done
    device=$(cat "/tmp/device.$2")
    [ -b "$device" ] || fail "attach said $device"
}

# How often a device has been connected again.
reconnections() { grep -c 'is connected again' "/tmp/attach.$1"; }

# The kernel's own words for a request that failed.
no_errors() {
    if dmesg | grep -i 'i/o error'; then fail "requests have failed"; fi
}

# Reads all of a device, past the cache, again and again, and leaves a file when
# a read fails.
read_on() {
    while [ ! -e /tmp/enough ]; do
        dd if="$1" of=/dev/null bs=256k iflag=direct 2>/tmp/reader || {
            cat /tmp/reader >/tmp/reader.failed
            return
        }
    done
}

# Block N of the second device.
block() { tail -c "+$(($1 * 4099 % 4000000 + 1))" /seed | head -c 4096; }

attach_phase() {
    try ifconfig lo up
    try ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
    if tessera detach /dev/nbd0 2>/tmp/said; then fail "detached what was not attached"; fi
    grep -q 'not attached' /tmp/said || fail "$(cat /tmp/said)"

    attach "nbd://10.0.2.2:$port/vm1" 1
    disk=$device
    keeper=$process
    attach "nbd://10.0.2.2:$port/vm2" 2 --after-crash continue
    raw=$device
    raw_keeper=$process
    tell "attached $disk and $raw, cache: $(cat "/sys/class/block/${disk##*/}/queue/write_cache")"
    [ "$(cat "/sys/class/block/${disk##*/}/queue/write_cache")" = "write back" ] ||
        fail "the disk does not ask for flushes"
    if tessera attach "nbd://10.0.2.2:$port/vm2" --device "$disk" 2>/tmp/said; then
        fail "attached two exports to one device"
    fi
    grep -q 'attached already' /tmp/said || fail "$(cat /tmp/said)"

    try mkfs.ext4 -q -F "$disk"
    mount_disk
    generate /seed a /mnt
    try sync
    read_on "$raw" &
    reader=$!

    # A clean stop and start while files are written.
    tell "WRITING"
    mkdir /mnt/noise
    number=1
    until [ "$(reconnections 1)" -ge 1 ]; do
        noise "$number" >"/mnt/noise/$number" || fail "noise"
        number=$((number + 1))
        sleep 0.05
    done
    generate /seed b /mnt
    try sync
    last=$number
    number=1
    echo 3 >/proc/sys/vm/drop_caches
    while [ "$number" -lt "$last" ]; do
        noise "$number" | cmp - "/mnt/noise/$number" || fail "noise $number differs"
        number=$((number + 1))
    done
    verify a b
    no_errors
    tell "RESTARTED, $last files written meanwhile"

    # A device in use is not taken away.
    if tessera detach "$disk" 2>/tmp/said; then fail "detached a mounted device"; fi
    grep -q 'in use' /tmp/said || fail "$(cat /tmp/said)"
    # Nor does it go with who keeps it connected; that can be made up for.
    kill -9 $keeper
    wait $keeper
    try sync
    tessera attach "nbd://10.0.2.2:$port/vm1" --device "$disk" >/tmp/device.1 2>>/tmp/attach.1 &
    keeper=$!
    until grep -q 'was attached before' /tmp/attach.1; do
        kill -0 $keeper 2>/dev/null || fail "taking over: $(cat /tmp/attach.1)"
        sleep 0.1
    done
    check_unmounted

    # The server is killed. The first device ends with it, since what was answered
    # and not flushed may be lost. On the second every write is durable before it
    # is answered: none that was answered may be missing, none that was not may
    # fail.
    number=0
    until [ "$(reconnections 2)" -ge 2 ]; do
        block "$number" >/tmp/block
        dd.full if=/tmp/block of="$raw" bs=4096 seek="$number" oflag=direct,dsync conv=notrunc \
            2>/tmp/writer || fail "block $number: $(cat /tmp/writer)"
        number=$((number + 1))
        [ "$number" -ne 20 ] || tell "DURABLE"
        [ "$number" -lt 8000 ] || fail "the server was never killed"
    done
    if wait $keeper; then fail "the first device outlived the crash: $(cat /tmp/attach.1)"; fi
    grep -q 'did not end clean' /tmp/attach.1 || fail "$(cat /tmp/attach.1)"
    [ ! -e "/sys/class/block/${disk##*/}/pid" ] || fail "$disk is still attached"
    last=$number
    number=0
    while [ "$number" -lt "$last" ]; do
        block "$number" >/tmp/block
        dd if="$raw" bs=4096 skip="$number" count=1 iflag=direct 2>/dev/null | cmp - /tmp/block ||
            fail "block $number of $last differs"
        number=$((number + 1))
    done
    : >/tmp/enough
    wait $reader
    [ ! -e /tmp/reader.failed ] || fail "a read failed: $(cat /tmp/reader.failed)"
    no_errors
    tell "KILLED, $last blocks written"

    mv /tmp/attach.1 /tmp/attach.0
    attach "nbd://10.0.2.2:$port/vm1" 1
    disk=$device
    keeper=$process
    mount_disk
    verify a b
    try umount /mnt
    # One is told to go, the other taken away.
    kill -TERM $keeper
    wait $keeper || fail "attach ended with $?: $(cat /tmp/attach.1)"
    try tessera detach "$raw"
    wait $raw_keeper || fail "attach ended with $?: $(cat /tmp/attach.2)"
    for number in 1 2; do
        grep -q 'is detached' /tmp/attach.$number || fail "$(cat /tmp/attach.$number)"
    done
    [ ! -e "/sys/class/block/${disk##*/}/pid" ] || fail "$disk is still attached"
    sed 's/^/  /' /tmp/attach.0 /tmp/attach.1 /tmp/attach.2
    dmesg | grep nbd
}

# A server of this machine's own, behind a Unix socket.
serve_here() {
    : >/tmp/served
    tessera serve /tmp/pool --memory 64M >/tmp/served 2>/tmp/serve.log &
    here=$!
    waited=0
    until grep -q listening /tmp/served; do
        kill -0 $here 2>/dev/null || fail "serve: $(cat /tmp/serve.log)"
        [ "$waited" -lt 300 ] || fail "serve takes too long"
        waited=$((waited + 1))
        sleep 0.1
    done
}
stop_here() {
    kill -TERM $here
    wait $here || fail "serve ended with $?: $(cat /tmp/serve.log)"
}

# Until the device is connected again for the Nth time.
await_connection() {
    waited=0
    until [ "$(reconnections "$1")" -ge "$2" ]; do
        [ "$waited" -lt 300 ] || fail "not connected again: $(cat "/tmp/attach.$1")"
        waited=$((waited + 1))
        sleep 0.1
    done
}

# What README.md shows, and what happens when the wait is over.
attach_here_phase() {
    try tessera pool create /tmp/pool --level single --files 1 --file-size 96M >/tmp/said
    try tessera volume create /tmp/pool vm3 --size 32M >/tmp/said
    serve_here
    attach 'nbd+unix:///vm3?socket=/tmp/pool/nbd.sock' 3 --wait 2
    disk=$device
    try mkfs.ext4 -q -F "$disk"
    mount_disk
    head -c 2000000 /seed >/mnt/file
    try sync
    stop_here
    serve_here
    await_connection 3 1
    echo 3 >/proc/sys/vm/drop_caches
    head -c 2000000 /seed | cmp - /mnt/file || fail "the file differs"
    try umount /mnt
    no_errors

    # Away for longer than requests wait: they fail, and do again what they
    # should when the server is back, which has another size by then.
    stop_here
    if dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct 2>/tmp/said; then
        fail "a read got an answer from nobody"
    fi
    grep -q 'Input/output error' /tmp/said || fail "$(cat /tmp/said)"
    try tessera volume resize /tmp/pool vm3 --size 48M >/tmp/said
    serve_here
    await_connection 3 2
    try dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct 2>/tmp/said
    sectors=$(cat "/sys/class/block/${disk##*/}/size")
    [ "$sectors" -eq 98304 ] || fail "$disk has $sectors sectors"
    try tessera detach "$disk"
    wait $process || fail "attach ended with $?: $(cat /tmp/attach.3)"

    # Who keeps it connected dies, and so does the server: it is not taken over as
    # if nothing had happened, and can be got rid of.
    attach 'nbd+unix:///vm3?socket=/tmp/pool/nbd.sock' 4
    disk=$device
    kill -9 $process
    wait $process
    kill -9 $here
    wait $here
    serve_here
    if tessera attach 'nbd+unix:///vm3?socket=/tmp/pool/nbd.sock' --device "$disk" 2>/tmp/said; then
        fail "took over a device whose server had crashed"
    fi
    grep -q 'did not end clean' /tmp/said || fail "$(cat /tmp/said)"
    try tessera detach "$disk" --force
    [ ! -e "/sys/class/block/${disk##*/}/pid" ] || fail "$disk is still attached"
    attach 'nbd+unix:///vm3?socket=/tmp/pool/nbd.sock' 5
    try dd if="$device" of=/dev/null bs=4k count=1 iflag=direct 2>/tmp/said
    try tessera detach "$device"
    wait $process || fail "attach ended with $?: $(cat /tmp/attach.5)"
    stop_here
    try tessera pool check /tmp/pool --data
    sed 's/^/  /' /tmp/attach.3
}
