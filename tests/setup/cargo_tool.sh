#!/usr/bin/env bash
# Installs a cargo subcommand at one exact version into the user's cache, once, and prints its path.
#
# usage: cargo_tool.sh NAME VERSION
#
# The version is part of the directory's name, so a second clone finds it there and two versions never meet.
set -euo pipefail

name=$1
version=$2
root=${XDG_CACHE_HOME:-$HOME/.cache}/orbhook/$name-$version

if [ ! -x "$root/bin/$name" ]; then
    echo "Building $name $version into $root (once; some minutes)." >&2
    mkdir -p "$root"
    # Two clones may get here together: cargo locks the root, and the second finds the first one's work.
    cargo install --locked --root "$root" --version "$version" "$name" >&2
fi
echo "$root/bin/$name"
