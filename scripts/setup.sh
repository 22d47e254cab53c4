#!/bin/sh
# Installs and builds everything that the project needs on this machine, into .venv; run again it does nothing.
# System packages come through apt-get or dnf when this user may install them; otherwise it says what to install.
set -eu
cd "$(dirname "$0")/.."

say() { printf '%s\n' "$*" >&2; }

# tool, Debian package, EL package; what the server, its packages and their tests run
needs='cc gcc gcc
curl curl curl
nginx nginx nginx
haproxy haproxy haproxy
psql postgresql postgresql-server
pgbouncer pgbouncer pgbouncer
dnsmasq dnsmasq-base dnsmasq
my_print_defaults mariadb-client-core mariadb
php php-cli php-cli
etcdctl etcd-client etcd
etcd etcd-server etcd
strace strace strace
ip iproute2 iproute
tc iproute2 iproute-tc
nft nftables nftables
rpmbuild rpm rpm-build
createrepo_c createrepo-c createrepo_c
gpg gnupg gnupg2
rpmlint rpmlint rpmlint
systemd-nspawn systemd-container systemd-container
mmdebstrap mmdebstrap mmdebstrap'

missing() {
    printf '%s\n' "$needs" | while read -r tool debian el; do
        command -v "$tool" >/dev/null 2>&1 || printf '%s %s %s\n' "$tool" "$debian" "$el"
    done
    [ -n "$(cargo_path)" ] || printf 'cargo cargo cargo\n'
    [ -n "$(python_path)" ] || printf 'python3.11 python3-venv python3.11\n'
}

cargo_path() {
    if command -v cargo >/dev/null 2>&1; then command -v cargo
    elif [ -x "$HOME/.cargo/bin/cargo" ]; then printf '%s\n' "$HOME/.cargo/bin/cargo"
    fi
}

python_path() {
    for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

install_missing() {
    lacking=$(missing)
    [ -n "$lacking" ] || return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        packages=$(printf '%s\n' "$lacking" | awk '{print $2}' | sort -u | tr '\n' ' ')
        say "setup: installing $packages(apt-get)"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq >/dev/null
        # A test machine starts no daemon of its own: only this project's tests start what they need.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && trap 'rm -f "$policy"' EXIT
        fi
        # shellcheck disable=SC2086
        apt-get install -y -qq --no-install-recommends $packages >/dev/null
    elif [ "$(id -u)" = 0 ] && command -v dnf >/dev/null 2>&1; then
        packages=$(printf '%s\n' "$lacking" | awk '{print $3}' | sort -u | tr '\n' ' ')
        say "setup: installing $packages(dnf)"
        # shellcheck disable=SC2086
        dnf install -y -q $packages >/dev/null || true
    fi
    lacking=$(missing)
    [ -n "$lacking" ] || return 0
    say "setup: these commands are missing, and this user may not install them:"
    printf '%s\n' "$lacking" | while read -r tool debian el; do
        say "  $tool    (apt-get install $debian, or dnf install $el)"
    done
    # Without these nothing builds; the others are needed by the tests and the demo only.
    if printf '%s\n' "$lacking" | grep -Eq '^(cc|cargo|python3.11) '; then exit 1; fi
}

# What was installed last time is known by the hash of what it was made from.
fingerprint() {
    { cat pyproject.toml wire/Cargo.toml wire/Cargo.lock; find wire/src -name '*.rs' -print0 | sort -z | xargs -0 cat; pwd; } |
        sha256sum | cut -d' ' -f1
}

install_missing
cargo=$(cargo_path)
PATH="$(dirname "$cargo"):$PATH"
export PATH
wanted=$(fingerprint)
if [ "$(cat .venv/.etcd-py-setup 2>/dev/null || true)" = "$wanted" ] && [ -x .venv/bin/etcd-py ]; then exit 0; fi
[ -x .venv/bin/python ] || "$(python_path)" -m venv .venv
say "setup: installing Python packages and building the wire (a few minutes the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
for command in etcd-py etcd-py-agent etcd-pyctl; do
    [ -x ".venv/bin/$command" ] || { say "setup: .venv/bin/$command was not installed"; exit 1; }
done
printf '%s\n' "$wanted" >.venv/.etcd-py-setup
say "setup: done"
