#!/bin/sh
# Builds the RPMs and a signed repository of them: `make rpm`. Set in the environment, all with a default:
#   OUTPUT      where all is built, build/rpm
#   REPOSITORY  where the repository is to be, OUTPUT/repository
#   SOURCE      the tree that is packed, this one
#   RELEASE     of the packages, 1
#   BASEURL     what the .repo file says, file://REPOSITORY
#   SIGN_AS     a secret key of the user's GnuPG; unless given, a key is made that is good for tests only
# Two steps: what needs the network brings together wheels, each with a known hash, and rpmbuild arranges them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
SOURCE=${SOURCE:-$(cd "$here/../.." && pwd)}
OUTPUT=${OUTPUT:-$SOURCE/build/rpm}
RELEASE=${RELEASE:-1}
repository=${REPOSITORY:-$OUTPUT/repository}
BASEURL=${BASEURL:-file://$repository}
PYTHONS="3.11 3.12 3.13 3.14"
GLIBC=2.17
machine=$(uname -m)

say() { printf 'rpm: %s\n' "$*" >&2; }

require() {
    command -v "$1" >/dev/null 2>&1 && return
    say "$1 is missing: apt-get install $2, or dnf install $3"
    exit 1
}

first_python() {
    for version in $PYTHONS; do
        if "python$version" -c '' 2>/dev/null; then command -v "python$version" && return; fi
    done
    say "expected one of Python $PYTHONS, found none" && exit 1
}

# The programs that build, by hash, in an environment of their own.
make_tools() {
    wanted=$(sha256sum <"$here/build-requirements.txt")
    tools=$OUTPUT/tools
    [ "$(cat "$tools/.made-from" 2>/dev/null || true)" != "$wanted" ] || return 0
    say "getting build tools"
    rm -rf "$tools"
    "$(first_python)" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
        -r "$here/build-requirements.txt"
    printf '%s\n' "$wanted" >"$tools/.made-from"
}

# Everything that is vendored, for every Python.
get_wheels() {
    wanted=$(sha256sum <"$here/requirements.txt")
    [ "$(cat "$OUTPUT/vendored/.made-from" 2>/dev/null || true)" != "$wanted" ] || return 0
    say "getting wheels"
    rm -rf "$OUTPUT/vendored"
    for version in $PYTHONS; do
        # sdnotify has no wheel: it is built here from its source, which has a hash as well.
        "$tools/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
            --only-binary=:all: --no-binary sdnotify --no-build-isolation --dest "$OUTPUT/vendored" \
            --implementation cp --python-version "$version" --platform "manylinux2014_$machine" \
            --platform "manylinux_2_17_$machine" --platform "manylinux_2_28_$machine" -r "$here/requirements.txt"
    done
    "$tools/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index --no-build-isolation \
        --wheel-dir "$OUTPUT/vendored" "$OUTPUT"/vendored/*.tar.gz
    rm -f "$OUTPUT"/vendored/*.tar.gz
    printf '%s\n' "$wanted" >"$OUTPUT/vendored/.made-from"
}

# The files of the repository, as they are now; without git, those of an unpacked source.
copy_source() {
    rm -rf "$OUTPUT/source"
    mkdir -p "$OUTPUT/source"
    if git -C "$SOURCE" rev-parse --git-dir >/dev/null 2>&1; then
        (cd "$SOURCE" && git ls-files -z --cached --others --exclude-standard |
            tar --null --ignore-failed-read -cf - -T - 2>/dev/null) | tar -C "$OUTPUT/source" -xf -
    else
        (cd "$SOURCE" && tar --exclude=./build --exclude=./.venv --exclude=./wire/target -cf - .) |
            tar -C "$OUTPUT/source" -xf -
    fi
}

# The project's own wheel. Its Rust module is linked by zig against the symbols of an old glibc.
build_wheel() {
    say "building etcd-py's wheel for glibc $GLIBC"
    printf '#!/bin/sh\nexec %s/bin/cargo-zigbuild zig cc -- -target %s-linux-gnu.%s "$@"\n' \
        "$tools" "$machine" "$GLIBC" >"$OUTPUT/linker"
    chmod 755 "$OUTPUT/linker"
    linker=CARGO_TARGET_$(printf '%s' "$machine" | tr '[:lower:]' '[:upper:]')_UNKNOWN_LINUX_GNU_LINKER
    rm -rf "$OUTPUT/own"
    env PATH="$tools/bin:$PATH" "$linker=$OUTPUT/linker" CARGO_TARGET_DIR="$OUTPUT/target" \
        CARGO_BUILD_TARGET="$machine-unknown-linux-gnu" \
        "$tools/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --wheel-dir "$OUTPUT/own" "$OUTPUT/source"
}

build_packages() {
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$OUTPUT/source/pyproject.toml" | head -n 1)
    top=$OUTPUT/top
    rm -rf "$top"
    mkdir -p "$top/SOURCES" "$top/wheels"
    (cd "$OUTPUT/source" && tar --exclude=./build --exclude='*.egg-info' --exclude=./wire/target \
        --transform "s,^\.,etcd-py-$version," -czf "$top/SOURCES/etcd-py-$version.tar.gz" .)
    cp "$OUTPUT"/vendored/*.whl "$OUTPUT"/own/*.whl "$top/wheels"
    tar -C "$top" -cf "$top/SOURCES/wheels.tar" wheels
    # rpmbuild wants what the preamble includes before it unpacks anything.
    "$tools/bin/python" "$here/layout.py" "$top/site" "$top/lists" "$top/wheels"
    for package in libs server agent; do cp "$top/lists/bundled-$package" "$top/SOURCES/bundled-$package.inc"; done
    rm -rf "$top/site" "$top/lists"
    say "building packages $version-$RELEASE"
    rpmbuild -bb --nodeps --quiet --define "_topdir $top" --define "ver $version" --define "rel $RELEASE" \
        --define "pythons $PYTHONS" --define "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm" \
        --define "_binary_payload w12.zstdio" "$here/etcd-py.spec" >"$OUTPUT/rpmbuild.log" 2>&1 ||
        { tail -n 40 "$OUTPUT/rpmbuild.log" >&2; exit 1; }
    grep '^check_glibc' "$OUTPUT/rpmbuild.log" >&2 || true
}

# A repository that dnf and yum trust by its key.
make_repository() {
    mkdir -p "$repository"
    rm -f "$repository"/*.rpm
    mv "$top"/RPMS/*.rpm "$repository"
    if [ -z "${SIGN_AS:-}" ]; then
        SIGN_AS=tests@etcd-py.invalid
        GNUPGHOME=$OUTPUT/test-key
        export GNUPGHOME
        if [ ! -d "$GNUPGHOME" ]; then
            mkdir -m 700 "$GNUPGHOME"
            gpg --batch --quiet --passphrase '' --quick-generate-key "etcd-py tests <$SIGN_AS>" rsa3072 sign 30d \
                2>/dev/null
        fi
    fi
    gpg --armor --export "$SIGN_AS" >"$repository/RPM-GPG-KEY-etcd-py"
    rpmsign --define "__gpg $(command -v gpg)" --define "_gpg_name $SIGN_AS" \
        --addsign "$repository"/*.rpm >/dev/null 2>&1
    gpgconf --kill gpg-agent
    createrepo_c --quiet "$repository"
    sed "s,@BASEURL@,$BASEURL,g" "$here/etcd-py.repo" >"$repository/etcd-py.repo"
}

require rpmbuild rpm rpm-build
require rpmsign rpm rpm-sign
require createrepo_c createrepo-c createrepo_c
require gpg gnupg gnupg2
require objdump binutils binutils
command -v cargo >/dev/null 2>&1 || PATH=$HOME/.cargo/bin:$PATH
require cargo cargo cargo
export LC_ALL=C.UTF-8
mkdir -p "$OUTPUT"
make_tools
get_wheels
copy_source
build_wheel
build_packages
make_repository
ls -l "$repository"/*.rpm >&2
