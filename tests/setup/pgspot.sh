#!/usr/bin/env bash
# Shows the generated install script to pgspot (PyPI), which looks for what an attacker could put into the search path.
# Nothing may be found and nothing is ignored.
#
# usage: pgspot.sh INSTALL_SCRIPT
#
# Needs python3 with pip. pgspot is installed once, at one exact version, into ORBHOOK_PGSPOT_DIR (default: target/pgspot).
set -euo pipefail

pgspot_version=0.9.4

script=$1
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
directory=${ORBHOOK_PGSPOT_DIR:-${CARGO_TARGET_DIR:-$root/target}/pgspot}-$pgspot_version

if [ ! -f "$directory/installed" ]; then
    rm -rf "$directory"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --target "$directory" "pgspot==$pgspot_version"
    touch "$directory/installed"
fi
export PYTHONPATH=$directory

# A linter that finds nothing anywhere would pass as well.
if printf 'create function f() returns int language sql security definer as $$ select now() $$;' |
    python3 -m pgspot /dev/stdin >/dev/null; then
    echo "pgspot.sh: pgspot takes a SECURITY DEFINER function without search_path for safe" >&2
    exit 1
fi
python3 -m pgspot "$script"
