#!/usr/bin/env bash
# Runs commands in a Debian that has another major of PostgreSQL than this machine: with this clone and its toolchain at
# the same places, and without a network.
#
# usage: elsewhere.sh PG_MAJOR COMMAND...    as root
#
# The Debian is made in the private directory of this clone, and made once. Programs built on this machine run there, as
# its C library is not the older one; what is built there runs there alone, and has a target directory of its own.
set -euo pipefail

pg=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
clone=$(cd "$here/../.." && pwd -P)
prefix=$("$here/prefix.sh" where)

case $pg in
15) suite=bookworm ;;
17) suite=trixie ;;
18) suite=sid ;;
*)
    echo "Debian has no PostgreSQL $pg: say 15, 17 or 18." >&2
    exit 1
    ;;
esac
if [ "$(id -u)" -ne 0 ]; then
    echo "PostgreSQL $pg is not installed here, and only root can make a Debian that has it." >&2
    exit 1
fi

mkdir -p -m 755 "$prefix"
debian=$prefix/debian-pg$pg
"$clone/tests/root/debian.sh" make "$debian" "$suite" "postgresql-$pg" "postgresql-server-dev-$pg" pgbouncer openssl procps \
    libclang-dev clang pkg-config build-essential ca-certificates curl

cargo=${CARGO_HOME:-$HOME/.cargo}
rustup=${RUSTUP_HOME:-$HOME/.rustup}
tools=${XDG_CACHE_HOME:-$HOME/.cache}/orbhook
mkdir -p "$tools"
DEBIAN_BIND="$clone $cargo $rustup $tools" "$clone/tests/root/debian.sh" run "$debian" \
    env -u PGRX_HOME -u PGRX_PG_CONFIG_PATH -u MAKEFLAGS -u MAKELEVEL -u MFLAGS \
    HOME="$HOME" LC_ALL=C.UTF-8 PATH="$cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin" PG="$pg" ORBHOOK_PREFIX="$prefix" \
    CARGO_HOME="$cargo" RUSTUP_HOME="$rustup" CARGO_NET_OFFLINE=true CARGO_TARGET_DIR="$clone/target/pg$pg" \
    bash -euc 'cd "$0" && exec "$@"' "$PWD" "$@"
