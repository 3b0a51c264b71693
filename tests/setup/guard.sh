#!/usr/bin/env bash
# Ends a private cluster once its owner is gone, however the owner went: the pipe on standard input then closes.
#
# usage: guard.sh CLUSTER_DIRECTORY
#
# Lines read from the pipe are process ids of sidecars that must not outlive the owner either. A process is ended only
# if it still is what it was: its id may have been given to another by then.
set -u
directory=$1

sidecars=()
while read -r pid; do sidecars+=("$pid"); done

for pid in "${sidecars[@]}"; do
    case $(readlink "/proc/$pid/exe") in
    */orbhook | */orbhook' (deleted)' | */orbhook-campaign | */orbhook-campaign' (deleted)') kill -KILL "$pid" ;;
    esac
done

is_our_server() { tr '\0' '\n' <"/proc/$1/cmdline" | grep -qxF "$directory/data"; }

server=$(head -n 1 "$directory/data/postmaster.pid")
if [ -n "$server" ] && is_our_server "$server"; then
    # SIGQUIT is an immediate shutdown: nothing in there is worth a checkpoint.
    kill -QUIT "$server"
    for _ in $(seq 100); do
        is_our_server "$server" || break
        sleep 0.05
    done
    is_our_server "$server" && kill -KILL "$server"
fi
rm -rf "$directory"
