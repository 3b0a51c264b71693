#!/usr/bin/env bash
# Builds the extension and installs it into the PostgreSQL that PG_CONFIG belongs to.
#
# usage: extension.sh PG_CONFIG CARGO_PGRX
#
# Cargo decides what has to be built. Files go where the server's user can read them, whatever the caller's umask.
set -euo pipefail
umask 022

pg_config=$1
cargo_pgrx=$2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

major=$("$pg_config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
libraries=$("$pg_config" --pkglibdir)
extensions=$("$pg_config" --sharedir)/extension

# A build that takes its headers from elsewhere than the server would fit by luck alone.
export PGRX_PG_CONFIG_PATH=$pg_config
# extension/build.rs says the same to the linker without a second build of pgrx.
export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1

become_root=()
if [ ! -w "$libraries" ] || [ ! -w "$extensions" ]; then
    become_root=(sudo)
    set -- --sudo
else
    set --
fi
"$cargo_pgrx" pgrx install --release --package orbhook --pg-config "$pg_config" \
    --no-default-features --features "pg$major" "$@"

# cargo-pgrx copies orbhook--X--Y.sql, the way from one version to the next. CREATE EXTENSION … VERSION 'X' also
# needs the frozen orbhook--X.sql of each release.
frozen=$(find sql -name 'orbhook--*.sql' -not -name 'orbhook--*--*.sql')
for script in $frozen; do
    "${become_root[@]}" install -m 644 "$script" "$extensions/"
done

"${become_root[@]}" chmod 755 "$libraries/orbhook.so"
"${become_root[@]}" find "$extensions" -maxdepth 1 -type f -name 'orbhook*' -exec chmod 644 {} +
