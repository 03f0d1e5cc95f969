#!/usr/bin/env bash
# A Debian root file system of another release, for building and testing: its path on standard output. Kept below .tools.
# Usage: packaging/rootfs.sh bullseye|trixie|bullseye-vm    (the last has a kernel: tests/system/vm.rs boots it)
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:?usage: packaging/rootfs.sh NAME}
suite=${name%-vm}
root=$PWD/.tools/rootfs/$name
if [ ! -e "$root/.complete" ]; then
    command -v mmdebstrap >/dev/null || { echo "rootfs: mmdebstrap is not installed: apt-get install mmdebstrap" >&2; exit 1; }
    polkit=polkitd
    [ "$suite" != bullseye ] || polkit=policykit-1
    packages=systemd,systemd-sysv,dbus,$polkit,iproute2,nftables,fuse3,rpm,procps,python3,curl
    case $name in
    # What builds the package; only Debian 11 is as old as the target.
    bullseye) packages=$packages,gcc,libc6-dev,make,libssl-dev,pkg-config ;;
    # Linux 5.10, as the target has it.
    bullseye-vm) packages=$packages,linux-image-cloud-amd64,initramfs-tools,udev,kmod ;;
    esac
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
