#!/usr/bin/env bash
# The main job from start to end, on real input: two file system images go
# into a RAID 5 pool of four files, deduplicated; the server is killed with -9
# under load, a member file is removed, and both images come back bit for bit.
#
#   TESSERA_DEMO_DIR=DIR   where to work (default ./demo-work; removed at the end)
#   TESSERA_DEMO_MB=400    how much real data to take
#   KEEP=1                 leave the work directory
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh demo
. scripts/env.sh
TESSERA=$(tessera_binary)
PATH=$PATH:/usr/sbin:/sbin

work=${TESSERA_DEMO_DIR:-$PWD/demo-work}
megabytes=${TESSERA_DEMO_MB:-400}
[[ ! -e $work ]] || die "$work exists: remove it or set TESSERA_DEMO_DIR"
mkdir -p "$work"
pool=$work/pool
server=
load=

cleanup() {
    local status=$?
    trap - EXIT
    # Only what this script started, by process id.
    for pid in $load $server; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    if [[ -n ${KEEP:-} ]]; then say "Left in $work"; else rm -rf "$work"; fi
    (( status == 0 )) || say "The demo failed (status $status)"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

step() { say ""; say "== $*"; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f", to - from }'; }
# status KEY: one value of the pool's status.
status() { "$TESSERA" pool status "$pool" --json | /usr/bin/python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
human() { numfmt --to=iec "$1"; }
uri() { printf 'nbd+unix:///%s?socket=%s' "$1" "$pool/nbd.sock"; }
rows=()
row() { rows+=("$1|$2"); }

# Starts the server and waits until it says that clients can connect.
serve() {
    local log=$work/serve.log started
    started=$(now)
    # Here, not in the new process: an earlier server's line must not count.
    : >"$log"
    "$TESSERA" serve "$pool" >"$log" 2>>"$work/serve.err" &
    server=$!
    until grep -q '^listening on ' "$log"; do
        kill -0 "$server" 2>/dev/null || { cat "$work/serve.err" >&2; die "the server did not start"; }
        sleep 0.05
    done
    serve_seconds=$(since "$started")
}

# Copies files of this system below $1: about a third of what is wanted each
# from documentation and data, from libraries, and from programs.
gather() {
    local target=$1 part
    mkdir -p "$target"
    for part in /usr/share /usr/lib /usr/bin; do
        find "$part" -xdev -type f -readable -size +0 -not -name '*
*' -printf '%p\t%s\n' | LC_ALL=C sort |
            awk -F'\t' -v most=$((megabytes * 1048576 / 3)) \
                '$2 < most / 4 && sum + $2 <= most { sum += $2; print $1 }' >"$work/files"
        # Names start with /, which tar leaves out.
        { tar -cf - -C / --verbatim-files-from --files-from="$work/files" 2>/dev/null || true; } |
            tar -xf - -C "$target" --no-same-owner
    done
    rm "$work/files"
}

make_image() { # make_image TREE IMAGE
    local size inodes
    size=$(( $(du -sm "$1" | cut -f1) * 5 / 4 + 128 ))
    inodes=$(( $(find "$1" | wc -l) * 5 / 4 + 1000 ))
    truncate -s "${size}M" "$2"
    mke2fs -q -F -t ext4 -N "$inodes" -d "$1" "$2"
}

step "Two ext4 images out of this system's own files"
gather "$work/tree"
make_image "$work/tree" "$work/image1.raw"
# The second one: every twentieth file has other contents, some are gone, some new.
changed=0
while IFS= read -r file; do
    size=$(stat -c %s "$file")
    head -c "$size" /dev/urandom >"$file.new" && mv -f "$file.new" "$file"
    (( changed += 1 ))
done < <(find "$work/tree" -type f -size +0 | sort | awk 'NR % 20 == 0')
make_image "$work/tree" "$work/image2.raw"
rm -rf "$work/tree"
size1=$(stat -c %s "$work/image1.raw")
size2=$(stat -c %s "$work/image2.raw")
say "image1: $(human "$size1"); image2: $(human "$size2"), $changed files changed"
row "Input" "two ext4 images, $(human "$size1") and $(human "$size2"), $changed files differ"

step "A RAID 5 pool of four files"
"$TESSERA" pool create "$pool" --level raid5 --files 4 --file-size 2G >/dev/null
"$TESSERA" volume create "$pool" image1 --size "$size1" >/dev/null
"$TESSERA" volume create "$pool" image2 --size "$size2" >/dev/null
"$TESSERA" volume create "$pool" scratch --size 1G >/dev/null
serve
"$TESSERA" volume list "$pool"

step "Both images go in: qemu-img, then nbdcopy"
started=$(now)
qemu-img convert -n -f raw -O raw "$work/image1.raw" "$(uri image1)"
seconds1=$(since "$started")
started=$(now)
nbdcopy --flush "$work/image2.raw" "$(uri image2)"
seconds2=$(since "$started")
row "Copied in" "qemu-img ${seconds1} s, nbdcopy ${seconds2} s"
"$TESSERA" pool status "$pool"
# Images of file systems have long runs of zeroes, which are never stored and
# count in no ratio.
row "Mapped" "$(human "$(status logical_bytes)")"
row "Unique" "$(human "$(status unique_bytes)")  dedup ratio $(printf %.2f "$(status dedup_ratio)")"
row "Stored" "$(human "$(status stored_bytes)")  compression ratio $(printf %.2f "$(status compression_ratio)")"

step "kill -9 under load"
fio --name=load --ioengine=nbd --uri="$(uri scratch)" --rw=randwrite --bs=4k --iodepth=32 \
    --size=1G --time_based --runtime=60 --refill_buffers --fsync=64 >"$work/fio.log" 2>&1 &
load=$!
sleep 4
kill -0 "$load" 2>/dev/null || { cat "$work/fio.log" >&2; die "the load ended early"; }
kill -9 "$server"
wait "$server" 2>/dev/null || true
server=
# fio lost its disk; it ends by itself or with our help.
kill "$load" 2>/dev/null || true
wait "$load" 2>/dev/null || true
load=
say "killed; its sockets and its lock are left as they were"

step "A member is lost"
rm "$pool/disk2.img"
say "removed disk2.img"

step "The pool comes back"
serve
row "Recovery" "listening again ${serve_seconds} s after kill -9, without disk2.img"
"$TESSERA" pool status "$pool"
[[ $(status state) == degraded ]] || die "the pool is $(status state), not degraded"
row "State" "$(status state)"

step "Both images against their originals"
qemu-img compare -f raw -F raw "$work/image1.raw" "$(uri image1)"
nbdcopy "$(uri image2)" "$work/image2.back"
cmp "$work/image2.raw" "$work/image2.back"
rm "$work/image2.back"
row "image1" "identical (qemu-img compare)"
row "image2" "identical (nbdcopy back, cmp)"

step "A clean stop, and a check of every byte"
kill -TERM "$server"
wait "$server" || die "the server did not stop cleanly"
server=
"$TESSERA" pool check "$pool" --data
row "Check" "every page, pointer and chunk verified: no problems"
row "Took" "${SECONDS} s"

printf '\n'
for line in "${rows[@]}"; do printf '  %-10s %s\n' "${line%%|*}" "${line#*|}"; done
printf '\n'
