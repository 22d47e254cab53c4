#!/bin/sh
# Makes the root file system that all test machines start from: make_base.sh DIRECTORY. Needs root and mmdebstrap.
# It is Debian's, because Debian's tools are here, and made to look like EL where packages can tell the difference:
# `yum`, the place of rpm's database, and presets that enable nothing.
set -eu
base=$1
[ ! -e "$base/.complete" ] || exit 0
rm -rf --one-file-system "$base"
mkdir -p "$(dirname "$base")"
mirror=$(apt-get indextargets --format '$(SITE)' | grep -v security | head -n 1)
boot=systemd,systemd-sysv,dbus,libnss-systemd,polkitd,procps
network=iproute2,nftables,netbase,iputils-ping,curl,firewalld
packages=python3,rpm,dnf,nginx-light,etcd-client,sqlite3
mmdebstrap --quiet --variant=apt --include="$boot,$network,$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='chroot "$1" systemctl mask getty.target console-getty.service systemd-logind.service \
        systemd-networkd.service systemd-resolved.service systemd-timesyncd.service apt-daily.timer \
        apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer >/dev/null 2>&1' \
    --customize-hook='chroot "$1" systemctl disable firewalld nftables nginx dnf-makecache.timer >/dev/null 2>&1' \
    --customize-hook='echo "disable *" >"$1/usr/lib/systemd/system-preset/99-default.preset"' \
    --customize-hook='mkdir -p "$1/etc/rpm" "$1/etc/yum.repos.d" && echo "%_dbpath /var/lib/rpm" >"$1/etc/rpm/macros"' \
    --customize-hook='ln -sf dnf-3 "$1/usr/bin/yum" && : >"$1/etc/machine-id" && rm -f "$1/etc/resolv.conf"' \
    bookworm "$base" "$mirror"
touch "$base/.complete"
