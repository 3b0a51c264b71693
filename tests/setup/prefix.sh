#!/usr/bin/env bash
# Makes the private PostgreSQL that the demo and the tests use; quick when there is nothing to do.
#
# usage: prefix.sh where          print the private directory of this clone
#        prefix.sh make PG_MAJOR  bring the PostgreSQL in it up to date
#        prefix.sh clean          take the directory away
#
# PostgreSQL finds its files by the place of its executable. So a copy of bin/ beside links to everything else is a
# PostgreSQL of its own: an extension installed there is seen by nobody else, and no root is needed for it.
#
# The directory lies in /var/tmp and not in the clone: server processes of root's run as another user, who may not be able
# to enter the clone, and the path of a socket must stay under 108 bytes. It is derived from the clone's path, so
# that two clones have one each.
set -euo pipefail
umask 022

clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
directory=${ORBHOOK_PREFIX:-/var/tmp/orbhook-$(id -u)-$(printf '%s' "$clone" | sha256sum | cut -c 1-8)}

# Anybody may create names in /var/tmp. What somebody else has put there is not used.
check_owner() {
    if [ -L "$directory" ] || [ ! -d "$directory" ] || [ "$(stat -c %u "$directory")" != "$(id -u)" ]; then
        echo "$directory is in the way: it is not a directory of yours. Remove it, or set ORBHOOK_PREFIX to another place." >&2
        exit 1
    fi
    if [ -n "$(find "$directory" -maxdepth 0 -perm /022)" ]; then
        echo "$directory can be written by others: remove it, and make creates it anew." >&2
        exit 1
    fi
}

# Every regular file and directory directly in $1 becomes a link in $2. Orbhook's own files are left out: a link
# to one that is installed system-wide would be written through when it is installed here.
link_each() {
    mkdir -p "$2"
    find "$1" -mindepth 1 -maxdepth 1 -not -name 'orbhook*' -exec ln -sfn -t "$2" {} +
}

# With /clusters/<pid>-<n>/.s.PGSQL.<port> behind it, a path has to stay under 108 bytes.
directory_bytes_max=65

make_prefix() {
    local pg=$1
    local lib=/usr/lib/postgresql/$pg share=/usr/share/postgresql/$pg
    if [ ! -x "$lib/bin/pg_config" ]; then
        echo "PostgreSQL $pg is not installed: $lib/bin/pg_config is missing." >&2
        exit 1
    fi

    if [ ${#directory} -gt $directory_bytes_max ]; then
        echo "$directory is too long for sockets in it: at most $directory_bytes_max bytes, please." >&2
        exit 1
    fi
    mkdir -m 755 "$directory" 2>/dev/null || true
    check_owner
    exec 9>"$directory/lock"
    flock 9

    # What the copy was made from. It is made again when the system's packages have changed.
    local stamp=$directory/made-from-$pg
    local made_from
    made_from=$(
        echo "$clone"
        find "$lib/bin" "$lib/lib" "$share" "$share/extension" -maxdepth 1 -not -name 'orbhook*' -printf '%p %s %T@\n' | sort
    )
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$made_from" ] && [ -x "$directory$lib/bin/postgres" ]; then return; fi

    echo "Making a private PostgreSQL $pg in $directory"
    rm -rf "$stamp" "${directory:?}$lib" "${directory:?}$share"
    mkdir -p "$directory$lib" "$directory$share"
    cp -R "$lib/bin" "$directory$lib/bin"
    link_each "$lib/lib" "$directory$lib/lib"
    link_each "$share" "$directory$share"
    rm "$directory$share/extension"
    link_each "$share/extension" "$directory$share/extension"
    ln -sfn /usr/include "$directory/usr/include"
    printf '%s\n' "$made_from" >"$stamp"
}

# pgrx reads $PGRX_HOME/config.toml to learn of the servers there are; this keeps the user's own ~/.pgrx out of it.
# Its time stamp decides on generating the bindings again, so it is written only when it says something new.
make_pgrx_home() {
    local pg=$1
    local home=$directory/pgrx-$pg
    local config="[configs]
pg$pg = \"$directory/usr/lib/postgresql/$pg/bin/pg_config\""
    mkdir -p "$home"
    if [ ! -e "$home/config.toml" ] || [ "$(cat "$home/config.toml")" != "$config" ]; then
        printf '%s\n' "$config" >"$home/config.toml"
    fi
}

case ${1:-} in
where)
    echo "$directory"
    ;;
make)
    make_prefix "$2"
    make_pgrx_home "$2"
    ;;
clean)
    if [ -e "$directory" ]; then
        check_owner
        rm -rf "$directory"
    fi
    ;;
*)
    sed -n '2,/^set /{/^#/p}' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
