#!/usr/bin/env bash
# What a packaged binary may need: glibc symbols no newer than Alibaba Cloud Linux 3 has, and no vendor's library to start.
# Usage: packaging/check-binaries.sh [released] CAI CAI-HELPER
# With `released`, also that it was built without the sandbox (`cai --version` tells), and that its OpenSSL is 1.1.
set -euo pipefail

# Alibaba Cloud Linux 3.
newest=2.32

fail() { echo "check-binaries: $*" >&2; exit 1; }

released=''
if [ "${1:-}" = released ]; then released=1; shift; fi
[ $# = 2 ] || fail "usage: packaging/check-binaries.sh [released] CAI CAI-HELPER"

for binary in "$@"; do
    needs=$(objdump -p "$binary" | sed -n 's/^ *NEEDED *//p')
    while read -r library; do
        case $library in
        libc.so.6 | libm.so.6 | libgcc_s.so.1 | libpthread.so.0 | libdl.so.2 | librt.so.1 | ld-linux-x86-64.so.2) ;;
        libssl.so.1.1 | libcrypto.so.1.1) ;;
        libssl.so.3 | libcrypto.so.3) [ -z "$released" ] || fail "$binary needs $library; the target has OpenSSL 1.1" ;;
        *) fail "$binary needs $library to start" ;;
        esac
    done <<<"$needs"
    found=$(objdump -T "$binary" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -n1)
    echo "${binary##*/}: newest $found, needs $(tr '\n' ' ' <<<"$needs")"
    [ -z "$released" ] || [ "$(printf '%s\n' "${found#GLIBC_}" "$newest" | sort -V | tail -n1)" = "$newest" ] ||
        fail "$binary needs $found; the target has $newest"
done
if [ -n "$released" ]; then
    version=$("$1" --version)
    case $version in
    *"(features: none)") echo "$version" ;;
    *) fail "$1 is not for a package: $version" ;;
    esac
fi
