#!/bin/sh
# make_offered.sh ROOT FOLDER: makes FOLDER/offered.rpm, an empty package that offers, in rpm's terms, what dpkg has installed
# in ROOT. The libraries' symbols are read from the libraries, so that one that is missing still stops an installation.
set -eu
root=$1
folder=$2
libraries() {
    find "$root/usr/lib/x86_64-linux-gnu" "$root/lib64/" -maxdepth 1 \( -name 'libc.so.6' -o -name 'libm.so.6' \
        -o -name 'libpthread.so.0' -o -name 'libdl.so.2' -o -name 'ld-linux-x86-64.so.2' -o -name 'libgcc_s.so.1' \
        -o -name 'libstdc++.so.6' -o -name 'librt.so.1' -o -name 'libz.so.1' \) -exec readlink -f {} +
}
{
    cat <<SPEC
Name: offered
Version: 12
Release: 1
Summary: What Debian's packages of this machine offer
License: Apache-2.0
BuildArch: noarch
Provides: /bin/sh
Provides: python(abi) = 3.11
Provides: systemd = 252
Provides: shadow-utils = 4.13
Provides: util-linux = 2.38
Provides: rtld(GNU_HASH)
SPEC
    libraries | /usr/lib/rpm/find-provides | sort -u | sed 's/^/Provides: /'
    printf '%%description\nWhat Debian offers.\n%%files\n'
} >"$folder/offered.spec"
rpmbuild -bb --quiet --define "_topdir $folder/top" --define "_rpmfilename offered.rpm" "$folder/offered.spec" \
    >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
mv "$folder/top/RPMS/offered.rpm" "$folder/offered.rpm"
