#!/usr/bin/env bash
# Whether a package would be accepted: rpmlint, and rpm itself against what Alibaba Cloud Linux 3 provides, without --nodeps.
# Usage: packaging/check-rpm.sh cai-VERSION.x86_64.rpm
set -euo pipefail
package=$(realpath "${1:?usage: packaging/check-rpm.sh PACKAGE}")
cd "$(dirname "$0")"

rpmlint -c rpmlint.toml "$package" cai.spec
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
rpmbuild --quiet -bb --define "_topdir $top" alinux3-stub.spec
rpm --root "$top/root" --initdb
install() { rpm --root "$top/root" --force-debian --noscripts --nosignature -i "$1"; }
install "$top"/RPMS/x86_64/alinux3-stub-*.rpm
install "$package"
[ -x "$top/root/usr/bin/cai" ] || { echo "check-rpm: nothing was installed" >&2; exit 1; }
echo "$(basename "$package"): rpmlint clean; every dependency is there on Alibaba Cloud Linux 3"
