#!/usr/bin/env bash
# Build the RPM. Usage:
#   packaging/rpm.sh source OUT          source RPM with vendored crates, and from it, without a network, the RPM
#   packaging/rpm.sh prebuilt BINARIES OUT RELEASE...   RPMs of binaries that are there (cai, cai-helper, cai-pages), for tests
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "rpm: $*" >&2; exit 1; }

# What git knows, as it lies here: `name-version.tar.gz`, the same bytes each time.
pack_source() {
    git ls-files -z | tar --null -T - --transform "s,^,cai-$version/," --sort=name --owner=0 --group=0 --mtime=@0 -czf "$1"
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)
case ${1:-} in
prebuilt)
    [ $# -ge 4 ] || fail "usage: packaging/rpm.sh prebuilt BINARIES OUT RELEASE..."
    binaries=$(realpath "$2") out=$(realpath "$3")
    shift 3
    top=$(mktemp -d)
    trap 'rm -rf "$top"' EXIT
    mkdir "$top/SOURCES" "$top/binaries"
    pack_source "$top/SOURCES/cai-$version.tar.gz"
    cp "$binaries/cai-pages" "$top/binaries/"
    strip -o "$top/binaries/cai" "$binaries/cai"
    strip -o "$top/binaries/cai-helper" "$binaries/cai-helper"
    for release in "$@"; do
        # Uncompressed: it is installed from where it lies, once.
        rpmbuild --quiet -bb --define "_topdir $top" --define "prebuilt $top/binaries" --define "release_number $release" \
            --define '_binary_payload w.ufdio' packaging/cai.spec
        rm -rf "$top/BUILDROOT" "$top/BUILD"
    done
    mv "$top"/RPMS/x86_64/*.rpm "$out/"
    ;;
source)
    [ $# = 2 ] || fail "usage: packaging/rpm.sh source OUT"
    mkdir -p "$2"
    out=$(realpath "$2")
    root=$(packaging/rootfs.sh bullseye)
    top=$root/build/rpmbuild
    rm -rf "$root/build"
    mkdir -p "$top/SOURCES" "$root/build/toolchain"
    trap 'rm -rf "$root/build"' EXIT
    pack_source "$top/SOURCES/cai-$version.tar.gz"
    mkdir -p "$root/build/vendored/.cargo"
    cargo vendor --quiet --locked "$root/build/vendored/vendor" >/dev/null
    # Not what cargo prints: it knows the place here, and whatever stands for the registry on this machine.
    printf '[source.crates-io]\nreplace-with = "vendored-sources"\n[source.vendored-sources]\ndirectory = "vendor"\n' \
        >"$root/build/vendored/.cargo/config.toml"
    tar -C "$root/build/vendored" --sort=name --owner=0 --group=0 --mtime=@0 -czf "$top/SOURCES/cai-$version-vendor.tar.gz" .cargo vendor
    rm -rf "$root/build/vendored"
    cp packaging/cai.spec "$top/"
    # The machine's own toolchain, in a file system, a process and a network name space of the build's own: no network.
    sysroot=$(rustc --print sysroot) unshare --mount --propagation private --net --pid --fork --kill-child bash -euc '
        mount --rbind "$1/build" "$1/build"
        mount --bind -o ro "$sysroot" "$1/build/toolchain"
        mount -t proc proc "$1/proc"
        mount --bind /dev/null "$1/dev/null"
        mount --bind /dev/urandom "$1/dev/urandom"
        exec chroot "$1" /usr/bin/env -i HOME=/build PATH=/build/toolchain/bin:/usr/sbin:/usr/bin:/sbin:/bin TMPDIR=/build CARGO_HOME=/build/cargo \
            sh -euc "
                rpmbuild --quiet --nodeps -bs --define \"_topdir /build/rpmbuild\" /build/rpmbuild/cai.spec
                nice rpmbuild --nodeps --rebuild --define \"_topdir /build/rpmbuild\" /build/rpmbuild/SRPMS/*.src.rpm
            "
    ' build "$root"
    mv "$top"/SRPMS/*.rpm "$top"/RPMS/x86_64/*.rpm "$out/"
    ls -l "$out"
    ;;
*) fail "usage: packaging/rpm.sh source OUT | prebuilt BINARIES OUT RELEASE..." ;;
esac
