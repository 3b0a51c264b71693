#!/usr/bin/env bash
# Builds the Debian packages out of what has been built: the extension in the private PostgreSQL, the sidecar in target/.
#
# usage: deb.sh PG_MAJOR PREFIX SIDECAR VERSION DIRECTORY     puts two .deb files into DIRECTORY
set -euo pipefail
umask 022

pg=$1
prefix=$2
sidecar=$3
version=$4
directory=$5
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
architecture=$(dpkg --print-architecture)

# What a program is linked with, as Debian's packages.
depends() {
    mkdir -p "$work/shlibs/debian"
    printf 'Source: orbhook\n\nPackage: orbhook\nArchitecture: any\n' >"$work/shlibs/debian/control"
    (cd "$work/shlibs" && dpkg-shlibdeps -O --ignore-missing-info "$1" 2>/dev/null) | sed -n 's/^shlibs:Depends=//p'
}

# control TREE TEMPLATE PROGRAM
control() {
    mkdir -p "$1/DEBIAN"
    sed -e "s/@PG@/$pg/g" -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@DEPENDS@/$(depends "$3")/" "$2" >"$1/DEBIAN/control"
    (cd "$1" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
}

# document TREE PACKAGE
document() {
    install -D -m 644 LICENSE "$1/usr/share/doc/$2/copyright"
    install -m 644 README.md "$1/usr/share/doc/$2/README.md"
}

tree=$work/extension
lib=usr/lib/postgresql/$pg/lib share=usr/share/postgresql/$pg/extension
install -D -m 644 "$prefix/$lib/orbhook.so" "$tree/$lib/orbhook.so"
strip --strip-debug "$tree/$lib/orbhook.so"
mkdir -p "$tree/$share"
install -m 644 "$prefix/$share"/orbhook.control "$prefix/$share"/orbhook--*.sql "$tree/$share/"
document "$tree" "postgresql-$pg-orbhook"
control "$tree" extension/debian/control "$tree/$lib/orbhook.so"

tree=$work/sidecar
install -D -m 755 "$sidecar" "$tree/usr/bin/orbhook"
strip --strip-debug "$tree/usr/bin/orbhook"
install -D -m 755 sidecar/debian/orbhook-setup "$tree/usr/sbin/orbhook-setup"
install -D -m 644 sidecar/debian/orbhook.service "$tree/lib/systemd/system/orbhook.service"
install -D -m 640 sidecar/debian/orbhook.conf "$tree/etc/orbhook/orbhook.conf"
document "$tree" orbhook
install -D -m 644 -t "$tree/usr/share/doc/orbhook" sidecar/grafana-dashboard.json sidecar/alerts.yml
control "$tree" sidecar/debian/control "$tree/usr/bin/orbhook"
echo /etc/orbhook/orbhook.conf >"$tree/DEBIAN/conffiles"
for script in postinst prerm postrm; do install -m 755 "sidecar/debian/$script" "$tree/DEBIAN/$script"; done

mkdir -p "$directory"
for tree in extension sidecar; do
    dpkg-deb --build --root-owner-group "$work/$tree" "$directory"
done
