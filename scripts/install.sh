#!/usr/bin/env bash
# Installs tessera below DESTDIR/PREFIX, or removes it again (--remove). Pages
# and completions are made by the binary itself, so that they fit it.
#
# TESSERA names a binary that is built already.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
prefix=${PREFIX:-/usr/local}
[[ $prefix == /* ]] || die "PREFIX=$prefix is not an absolute path"
root=${DESTDIR:-}$prefix
bash_dir=$root/share/bash-completion/completions
zsh_dir=$root/share/zsh/site-functions
fish_dir=$root/share/fish/vendor_completions.d
man_dir=$root/share/man/man1
unit_dir=$root/lib/systemd/system
doc_dir=$root/share/doc/tessera

if [[ ${1:-} == --remove ]]; then
    rm -f "$root/bin/tessera" "$bash_dir/tessera" "$zsh_dir/_tessera" \
        "$fish_dir/tessera.fish" "$unit_dir"/tessera@.{service,socket} \
        "$unit_dir/tessera-attach@.service" \
        "$man_dir"/tessera.1 "$man_dir"/tessera-*.1
    rm -rf "$doc_dir"
    exit
fi
built=$CARGO_TARGET_DIR/release/tessera
if [[ -z $TESSERA && -x $built ]] && ! command -v cargo >/dev/null; then
    # `sudo make install` behind a user's `make build`: root needs no compiler.
    TESSERA=$built
fi
binary=$(tessera_binary)
# Made in full before anything is installed.
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
mkdir "$made/man"
"$binary" man "$made/man"
for shell in bash zsh fish; do
    "$binary" completions "$shell" >"$made/$shell"
done
install -d "$root/bin" "$bash_dir" "$zsh_dir" "$fish_dir" "$man_dir" "$unit_dir" "$doc_dir"
install -m 755 "$binary" "$root/bin/tessera"
install -m 644 "$made/bash" "$bash_dir/tessera"
install -m 644 "$made/zsh" "$zsh_dir/_tessera"
install -m 644 "$made/fish" "$fish_dir/tessera.fish"
install -m 644 "$made"/man/*.1 "$man_dir"
for unit in tessera@.service tessera@.socket tessera-attach@.service; do
    sed "s|/usr/local/bin/|$prefix/bin/|" "docs/install/$unit" >"$made/unit"
    install -m 644 "$made/unit" "$unit_dir/$unit"
done
install -m 644 docs/install/tessera.toml "$doc_dir/"
say "Installed $root/bin/tessera with its manual pages, completions and units"
