#!/bin/sh
# Installs the server into the root file system of an image, from the repository that was copied to /srv/etcd-py.
set -eu
cat >/etc/yum.repos.d/etcd-py.repo <<'REPO'
[etcd-py]
name=etcd-py
baseurl=file:///srv/etcd-py
gpgcheck=1
gpgkey=file:///srv/etcd-py/RPM-GPG-KEY-etcd-py
REPO
dnf -y --setopt=install_weak_deps=False install etcd-py
dnf clean all
rm -rf /etc/yum.repos.d/etcd-py.repo /srv/etcd-py
mkdir -p /data
chmod 700 /data
