#!/usr/bin/env bash
# Every check and test, in the order in which a mistake shows soonest. Called by `make test`.
set -euo pipefail
cd "$(dirname "$0")/.."
features=(--features sandbox)

# The users of the daemon and of an adapter must exist while the tests run; those that were made here go afterwards.
made=()
trap 'for user in "${made[@]}"; do userdel "$user"; done' EXIT
for user in cai cai-decryptor; do
    id "$user" >/dev/null 2>&1 && continue
    useradd --system --no-create-home --shell /usr/sbin/nologin "$user"
    made+=("$user")
done

# With the seconds so far.
step() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

step "format"
cargo fmt --check
cargo fmt --check --manifest-path fuzz/Cargo.toml
step "lints"
# The methods that clippy.toml forbids are forbidden in the library, which says so itself; tests may use them.
cargo clippy --all-targets "${features[@]}" -- -D warnings -A clippy::disallowed_methods
step "lints, as packaged (without the sandbox)"
cargo clippy --lib --bins -- -D warnings -A clippy::disallowed_methods
step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --lib "${features[@]}"
step "dependencies"
scripts/deny.sh
step "tests"
# All of them, also behind one that fails: the next run is an hour away.
cargo test --no-fail-fast "${features[@]}"
step "fuzz targets, briefly"
scripts/fuzz-smoke.sh 5
step "the demo, small"
scripts/demo.sh --bin target/debug --model-mib 24
step "the demo, interrupted"
scripts/demo-interrupt.sh --bin target/debug
