#!/usr/bin/env bash
# Runs a command in a network namespace of its own, as root: namespace.sh COMMAND...
# There is no way out of it. Every address there is, public or not, leads back into it, so whatever is dialled is seen by
# whoever listens there; names are asked of a server on 127.0.0.1, which is the command's own.
set -euo pipefail

name=orbhook-$$
configuration=/etc/netns/$name

clean() {
    ip netns delete "$name" 2>/dev/null || true
    rm -rf "$configuration"
}
trap clean EXIT

ip netns add "$name"
mkdir -p "$configuration"
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:2\n' >"$configuration/resolv.conf"
printf '127.0.0.1 localhost\n' >"$configuration/hosts"
ip -n "$name" link set lo up
ip -n "$name" route add local default dev lo
ip -n "$name" -6 route add local default dev lo

ORBHOOK_NETWORK_NAMESPACE=$name ip netns exec "$name" "$@"
