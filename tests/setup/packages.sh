#!/usr/bin/env bash
# Makes sure that the Debian packages are there which building and testing need.
#
# usage: packages.sh [PG_MAJOR]
#
# With a major version also that server and its headers, for the private PostgreSQL of demo and tests.
#
# As root it installs what is missing. Anybody else is told the one line to run. The system's clusters are left alone:
# installing a server package on Debian normally creates and starts a cluster, and here it does neither.
set -euo pipefail

pg=${1:-}
wanted=(
    libclang-dev clang         # bindgen reads PostgreSQL's headers
    pkg-config build-essential # and something has to link
)
# The pooler is for the tests: behind one, notifications never arrive.
if [ -n "$pg" ]; then wanted+=("postgresql-$pg" "postgresql-server-dev-$pg" pgbouncer); fi

if ! command -v dpkg-query >/dev/null; then
    echo "Not a Debian system: make sure that clang, libclang, pkg-config, a C compiler${pg:+ and PostgreSQL $pg with its headers} are there." >&2
    exit 0
fi

missing=()
for package in "${wanted[@]}"; do
    if [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
        missing+=("$package")
    fi
done
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

if [ "$(id -u)" -ne 0 ]; then
    printf 'Debian packages are missing. Install them, then run make again:\n\n    sudo apt-get install --no-install-recommends %s\n\n' \
        "${missing[*]}" >&2
    exit 1
fi

echo "Installing Debian packages: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive

# The packages' install scripts create a first cluster and start every cluster they find. They call these three commands
# by name, so for this one installation others stand before them in PATH, and nothing on the system has to be changed.
no_service=$(mktemp -d)
trap 'rm -rf "$no_service"' EXIT
for command in pg_createcluster invoke-rc.d deb-systemd-invoke; do
    printf '#!/bin/sh\necho "Left undone for orbhook: %s $*"\n' "$command" >"$no_service/$command"
    chmod 755 "$no_service/$command"
done

install_missing() {
    apt-get install --yes --no-install-recommends \
        -o "DPkg::Path=$no_service:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "${missing[@]}"
}

# Package lists that are missing or out of date are the usual reason for a first failure.
if ! install_missing; then
    echo "Fetching the package lists, then trying once more."
    apt-get update
    install_missing
fi
