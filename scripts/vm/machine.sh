# Sourced by vm-test.sh and vm-attach-test.sh, with their arguments: the tools, a
# work directory, and functions that start and end a server of $pool and a
# machine, and follow what the machine says on its serial console.
#
#   --skip-if-missing      without the tools and the means to get them, say so
#                          and succeed, unless CI=true
#   TESSERA_VM_CACHE=DIR   where the tools are unpacked (~/.cache/tessera/vm)
#   TESSERA_VM_TIMEOUT=240 the most seconds that one boot may take
#   KEEP=1                 leave the work directory, with the consoles' logs
#
# The script that sources this sets, before the first serve and boot:
#   serve_options          how the server listens
#   machine_options        the machine's devices
# shellcheck shell=bash

. scripts/vm/tools.sh
test=$(basename "$0" .sh)
serve_options=()
machine_options=()

missing() {
    if [[ ${1:-} == --skip-if-missing && ${CI:-} != true ]]; then
        say "skipped: $test has not the tools it needs"
        exit 0
    fi
    die "the tools are missing"
}
case ${1:-} in
'' | --skip-if-missing) ;;
*) die "unknown argument $1" ;;
esac
(scripts/setup.sh vm) || missing "$@"
vm_tools || missing "$@"
[[ -x $TESSERA && -n ${TESSERA_PREBUILT:-} ]] || TESSERA=$(scripts/build.sh)

work=$(mktemp -d "${TMPDIR:-/tmp}/tessera-vm.XXXXXX")
pool=$work/pool
limit=${TESSERA_VM_TIMEOUT:-240}
server=
machine=

cleanup() {
    local status=$?
    trap - EXIT
    # Only what this script started, by process id.
    for pid in $machine $server; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    if [[ -n ${KEEP:-} ]]; then say "Left in $work"; else rm -rf "$work"; fi
    if (( status == 0 )); then say "$test: PASS in ${SECONDS} s"; else say "$test: FAIL (status $status)"; fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step() { say "[$SECONDS s] $*"; }
# status KEY: one value of the pool's status.
status() { "$TESSERA" pool status "$pool" --json | /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# Starts the server and waits until it says that clients can connect.
serve() {
    local log=$work/serve.log deadline=$((SECONDS + 60))
    # Here, not in the new process: an earlier server's line must not count.
    : >"$log"
    "$TESSERA" serve "$pool" "${serve_options[@]}" >"$log" 2>>"$work/serve.err" &
    server=$!
    until grep -q '^listening on ' "$log"; do
        kill -0 "$server" 2>/dev/null || { cat "$work/serve.err" >&2; die "the server did not start"; }
        (( SECONDS < deadline )) || { cat "$work/serve.err" >&2; die "the server does not listen"; }
        sleep 0.05
    done
}
# Ends a process without a chance to do anything about it.
end() { { kill -9 "$1" && wait "$1"; } 2>/dev/null || true; }
kill_server() {
    end "$server"
    server=
}
stop_server() {
    kill -TERM "$server"
    wait "$server" || { tail -n 20 "$work/serve.err" >&2; die "the server did not stop cleanly"; }
    server=
}

# boot PHASE [WORD]...: starts the machine; the words go to its command line.
boot() {
    phase=$1
    console=$work/console.$1
    boot_deadline=$((SECONDS + limit))
    : >"$console"
    "${vm_qemu[@]}" -accel tcg -cpu max -smp 1 -m 384M -nodefaults -no-user-config -display none \
        -no-reboot -serial "file:$console" \
        -kernel "$vm_kernel" -initrd "$work/initramfs.gz" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off vmtest.phase=$*" \
        "${machine_options[@]}" \
        </dev/null >"$work/qemu.$phase" 2>&1 &
    machine=$!
}
show_and_die() {
    tail -n 40 "$console" | tr -d '\r' >&2
    tail -n 5 "$work/qemu.$phase" "$work/serve.err" >&2 || true
    die "$*"
}
# told LINE: whether the guest has said this.
told() { grep -qx "vm-test: $1"$'\r\\?' "$console"; }
# await LINE: until the guest says this.
await() {
    until told "$1"; do
        if told 'FAIL .*'; then show_and_die "phase $phase failed"; fi
        # What it said last is in the file once it has ended.
        if ! kill -0 "$machine" 2>/dev/null && ! told "$1"; then
            show_and_die "the machine ended in phase $phase before it said $1"
        fi
        (( SECONDS < boot_deadline )) || show_and_die "phase $phase took longer than $limit s"
        # Short, so that the server is killed before its own timer makes
        # durable what a flush should have.
        sleep 0.02
    done
}
# The guest reboots, which ends the machine.
await_end() {
    await "PASS $1"
    while kill -0 "$machine" 2>/dev/null; do
        (( SECONDS < boot_deadline )) || show_and_die "the machine did not end"
        sleep 0.1
    done
    wait "$machine" || show_and_die "the machine ended with an error"
    machine=
}
