#!/usr/bin/env bash
# A Debian root file system of another release, for building and testing: its path on standard output. Kept below .tools.
# Usage: packaging/rootfs.sh bullseye|trixie
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?usage: packaging/rootfs.sh SUITE}
root=$PWD/.tools/rootfs/$suite
if [ ! -e "$root/.complete" ]; then
    command -v mmdebstrap >/dev/null || { echo "rootfs: mmdebstrap is not installed: apt-get install mmdebstrap" >&2; exit 1; }
    polkit=polkitd
    [ "$suite" != bullseye ] || polkit=policykit-1
    packages=systemd,systemd-sysv,dbus,$polkit,iproute2,nftables,fuse3,rpm,procps,python3,curl
    # What builds the package; only Debian 11 is as old as the target.
    [ "$suite" != bullseye ] || packages=$packages,gcc,libc6-dev,make,libssl-dev,pkg-config
    # Where this machine gets its own packages.
    here=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $here" | head -n1)
    [ -n "$mirror" ] || { echo "rootfs: apt knows no package list of $here: apt-get update" >&2; exit 1; }
    rm -rf "$root"
    mkdir -p "$root"
    TMPDIR=$PWD/.tools/rootfs nice mmdebstrap --quiet --variant=apt --mode=root --components=main --include="$packages" \
        "$suite" "$root" "deb $mirror $suite main" >&2
    touch "$root/.complete"
fi
echo "$root"
