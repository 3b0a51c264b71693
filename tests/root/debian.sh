#!/usr/bin/env bash
# Makes a Debian system in a directory, as root, and runs commands in it.
#
# usage: debian.sh make DIRECTORY SUITE PACKAGE...    quick when there is nothing to do
#        debian.sh run DIRECTORY COMMAND...           with /proc, /dev and the machine's network
#        debian.sh clean DIRECTORY
#
# With DEBIAN_BIND="PATH..." those directories are seen in it at the same place while a command runs.
set -euo pipefail
umask 022

action=${1:-}
directory=${2:-}
shift 2 || { sed -n '2,/^set /{/^#/p}' "$0" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# In a mount namespace of its own: whatever is mounted goes with the last process, however that ends.
run() {
    unshare --mount --propagation private bash -euc '
        root=$1
        shift
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
        for path in $DEBIAN_BIND; do
            mkdir -p "$root$path"
            mount --bind "$path" "$root$path"
        done
        exec chroot "$root" "$@"
    ' run "$directory" "$@"
}
export DEBIAN_BIND=${DEBIAN_BIND:-}

case $action in
make)
    suite=$1
    shift
    stamp=$directory/var/lib/orbhook-made
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$suite $*" ]; then exit 0; fi
    if ! command -v debootstrap >/dev/null; then apt-get install --yes --no-install-recommends debootstrap >/dev/null; fi
    if [ ! -e "$directory/etc/debian_version" ]; then
        debootstrap --variant=minbase "$suite" "$directory" >"$directory.log" 2>&1 || { tail -20 "$directory.log" >&2; exit 1; }
    fi
    # No daemon starts by being installed.
    printf '#!/bin/sh\nexit 101\n' >"$directory/usr/sbin/policy-rc.d"
    chmod 755 "$directory/usr/sbin/policy-rc.d"
    if [ $# -gt 0 ]; then
        # The lists of sid are said to be valid for a week; a mirror may keep them for longer. They are signed all the same.
        run apt-get -o Acquire::Check-Valid-Until=false update --quiet=2
        run apt-get install --yes --quiet=2 --no-install-recommends "$@" >"$directory.log" 2>&1 || { tail -20 "$directory.log" >&2; exit 1; }
    fi
    printf '%s' "$suite $*" >"$stamp"
    ;;
run)
    run "$@"
    ;;
clean)
    rm -rf --one-file-system "$directory" "$directory.log"
    ;;
*)
    sed -n '2,/^set /{/^#/p}' "$0" >&2
    exit 2
    ;;
esac
