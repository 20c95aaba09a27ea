# Sourced by the guest's init and, on the host, by what makes the manifest of
# expected checksums: both must write the same bytes, so it is plain sh and
# uses busybox's tools only.
# shellcheck shell=sh

# generate SEED SET DIR: writes the files of one set below DIR/SET. SEED is a
# file of 4 MiB of fixed random bytes.
#
# Every file starts at an odd place of the seed, so that no two of them have a
# 4 KiB block in common unless that is wanted.
generate() {
    seed=$1 set=$2 dir=$3/$2
    case $set in a) base=1 ;; b) base=20021 ;; *) base=40063 ;; esac
    mkdir -p "$dir/small"
    # Incompressible files of about 1 MiB, ending within a block.
    file=1
    while [ "$file" -le 16 ]; do
        {
            echo "$set $file"
            tail -c "+$((base + file * 65539))" "$seed" | head -c "$((1000000 + file))"
        } >"$dir/large$file"
        file=$((file + 1))
    done
    # The same bytes once more: these are found in the pool again.
    cp "$dir/large1" "$dir/copy1"
    # Compressible text.
    yes "set $set, a line of text" | head -n 100000 >"$dir/text"
    # A hole between two blocks of data.
    head -c 4096 "$seed" >"$dir/sparse"
    head -c 5000 "$seed" | dd of="$dir/sparse" bs=4096 seek=1000 conv=notrunc 2>/dev/null
    # Many small ones, for the file system's own blocks.
    file=1
    while [ "$file" -le 200 ]; do
        echo "small file $file of set $set" >"$dir/small/$file"
        file=$((file + 1))
    done
}
