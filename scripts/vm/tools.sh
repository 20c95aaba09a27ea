# Sourced by machine.sh: a machine emulator, a stock Debian kernel and a static
# busybox, unpacked into a cache directory and never installed. (Installing
# qemu-system-x86 could replace newer QEMU tools that are there already, and a
# kernel's package would touch the boot loader.)
# shellcheck shell=bash

vm_cache=${TESSERA_VM_CACHE:-$HOME/.cache/tessera/vm}
vm_root=$vm_cache/root
# Raised when what is unpacked changes.
vm_recipe=1

# Sets vm_qemu (a command with its options), vm_kernel, vm_modules and
# vm_busybox; fails when something is not there.
vm_find() {
    [[ -e $vm_cache/recipe && $(<"$vm_cache/recipe") == "$vm_recipe" ]] || return 1
    vm_busybox=$vm_root/bin/busybox
    vm_kernel=$(compgen -G "$vm_root/boot/vmlinuz-*") || return 1
    vm_modules=$(compgen -G "$vm_root/lib/modules/*") || return 1
    if [[ -x $vm_root/usr/bin/qemu-system-x86_64 ]]; then
        local libraries
        libraries=$(find "$vm_root/lib" "$vm_root/usr/lib" -name 'lib*.so*' -printf '%h\n' |
            sort -u | paste -sd:)
        vm_qemu=(env "LD_LIBRARY_PATH=$libraries" "$vm_root/usr/bin/qemu-system-x86_64"
            -L "$vm_root/usr/share/seabios" -L "$vm_root/usr/share/qemu")
    else
        vm_qemu=(qemu-system-x86_64)
    fi
    # It stops working when libraries it took from the system are removed.
    "${vm_qemu[@]}" --version >/dev/null 2>&1 && "$vm_busybox" true
}

# The newest 6.12 kernel for virtual machines, or what this release has.
vm_kernel_package() {
    local meta real
    for meta in linux-image-6.12-cloud-amd64 linux-image-cloud-amd64; do
        real=$(apt-cache depends "$meta" 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }')
        if [[ -n $real ]]; then printf '%s\n' "$real"; return; fi
    done
    return 1
}

# Downloads into the directory $1, as packages.
vm_download() {
    local quiet=(-qq -o APT::Sandbox::User=root -o DPkg::Lock::Timeout=120) kernel
    kernel=$(vm_kernel_package) || return 1
    mkdir -p "$1/partial"
    (cd "$1" && apt-get "${quiet[@]}" download "$kernel" busybox-static) >&2 || return 1
    command -v qemu-system-x86_64 >/dev/null && return
    # Exactly those packages that are not installed; nothing is.
    apt-get "${quiet[@]}" install -y --download-only --no-install-recommends \
        -o "Dir::Cache::archives=$1" qemu-system-x86 >&2
}

# Makes what vm_find wants. Needs root, for apt's lock only.
vm_unpack() {
    local new=$vm_cache/new package
    rm -rf "$new"
    mkdir -p "$new/packages" "$new/root" || return 1
    say "Unpacking a machine emulator and a kernel into $vm_cache"
    vm_download "$new/packages" || {
        # The lists of packages may be missing or old.
        apt-get update -qq >&2 && vm_download "$new/packages"
    } || { say "cannot download the packages"; return 1; }
    for package in "$new"/packages/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -xf - -C "$new/root" --exclude='./usr/share/doc' --exclude='./usr/share/man' || return 1
    done
    rm -rf "$vm_root" "$vm_cache/recipe"
    mv "$new/root" "$vm_root" || return 1
    rm -rf "$new"
    # Last: it says that the rest is whole.
    printf '%s\n' "$vm_recipe" >"$vm_cache/recipe"
}

# Finds the tools, or makes them; says why when it cannot.
vm_tools() {
    [[ $(uname -m) == x86_64 ]] || { say "the test machine runs on x86_64 only"; return 1; }
    mkdir -p "$vm_cache"
    # One at a time; the descriptor is closed at the end of the subshell.
    (
        flock 9
        vm_find && exit
        if (( EUID != 0 )) || ! command -v apt-get >/dev/null; then
            say "not unpacked in $vm_cache: qemu-system-x86, linux-image-cloud-amd64, busybox-static
(as root, with apt, scripts/vm-test.sh unpacks them itself; they are not installed)"
            exit 1
        fi
        vm_unpack
    ) 9>"$vm_cache/lock" || return 1
    vm_find || { say "the emulator in $vm_cache does not start"; return 1; }
}

# vm_initramfs DIR [PROGRAM]...: packs DIR/initramfs.gz with what the guest
# needs, these programs, and the checksums its files must have, made here from
# the same generator.
vm_initramfs() {
    local tree=$1/initramfs expected=$1/expected packed=$1/initramfs.gz module file program
    shift
    mkdir -p "$tree"/{bin,sbin,tmp,modules} "$expected"
    cp "$vm_busybox" "$tree/bin/busybox"
    cp scripts/vm/init "$tree/init"
    chmod +x "$tree/init"
    cp scripts/vm/generate.sh scripts/vm/attach.sh "$tree/"
    /usr/bin/python3 -c '
import random, sys
sys.stdout.buffer.write(random.Random(20).randbytes(4 << 20))' >"$tree/seed"
    local set
    for set in a b c; do
        # Busybox's own tools, as in the guest.
        "$vm_busybox" sh -c '. "$1/generate.sh"; generate "$1/seed" "$2" "$3"' \
            sh "$tree" "$set" "$expected"
        (cd "$expected" && find "$set" -type f | LC_ALL=C sort | xargs sha256sum) >"$tree/manifest.$set"
    done
    rm -rf "$expected"
    # Those of the drivers that this kernel has not built in, in loading order.
    for module in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci \
        virtio_blk failover net_failover virtio_net nbd crc16 mbcache jbd2 ext4; do
        file=$(find "$vm_modules/kernel" -name "$module.ko*" -print -quit)
        case $file in
        '') continue ;;
        *.xz) "$vm_busybox" xzcat "$file" >"$tree/modules/$module.ko" ;;
        *) cp "$file" "$tree/modules/$module.ko" ;;
        esac
        printf '%s\n' "$module.ko"
    done >"$tree/modules/order"
    # The system's own e2fsprogs with their libraries: busybox has no ext4. Not in
    # bin, where busybox's own programs are.
    for program in mke2fs e2fsck "$@"; do
        program=$(PATH=$PATH:/usr/sbin:/sbin command -v "$program") || die "there is no $program"
        strip -o "$tree/sbin/${program##*/}" "$program" 2>/dev/null || cp "$program" "$tree/sbin/"
        while IFS= read -r file; do
            mkdir -p "$tree${file%/*}"
            cp -L "$file" "$tree$file"
        done < <(ldd "$program" | grep -o '/[^ ]*')
    done
    ln -s mke2fs "$tree/sbin/mkfs.ext4"
    mkdir -p "$tree/etc"
    cp /etc/mke2fs.conf "$tree/etc/"
    (cd "$tree" && find . | LC_ALL=C sort | "$vm_busybox" cpio -o -H newc 2>/dev/null) |
        gzip -1 >"$packed"
    rm -rf "$tree"
}
