#!/usr/bin/env bash
# Every fuzz target for a few seconds each: a line per target, the failing input kept.
# Usage: scripts/fuzz-smoke.sh [SECONDS [TARGET...]]
#
# The corpus is made afresh (fuzz/seeds.py); other people's recordings are used from $CAI_VECTORS where it exists.
# For a long run of one target: scripts/fuzz-smoke.sh 600 tdx_quote
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-5}
[ $# -eq 0 ] || shift

# Built by cargo itself with the flags that `cargo fuzz` gives: a tool less to build first. Sanitizers are unstable flags;
# RUSTC_BOOTSTRAP lets the stable compiler take them: what is fuzzed is what the compiler of the product makes.
export RUSTC_BOOTSTRAP=1
coverage=(level=4 inline-8bit-counters pc-table trace-compares stack-depth)
RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cdebug-assertions -Cpasses=sancov-module -Cllvm-args=-simplifycfg-branch-fold-threshold=0"
for what in "${coverage[@]}"; do RUSTFLAGS+=" -Cllvm-args=-sanitizer-coverage-$what"; done
export RUSTFLAGS
# A run of seconds is over before optimised code has paid for its compilation.
[ "$seconds" -ge 60 ] || export CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=none
triple=$(rustc -vV | sed -n 's/^host: //p')
begin=$SECONDS
# The target is named so that build scripts and macros are built without all that.
cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target "$triple" --bins
printf 'fuzz: built in %d s\n' $((SECONDS - begin))
unset RUSTFLAGS

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml | grep -v '^cai-fuzz$')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 fuzz/seeds.py "$work" "${CAI_VECTORS:-../shared/vectors}"

# One target: its line, or the end of its log.
run() {
    target=$1 corpus=$work/$1 log=$work/$1.log
    mkdir -p "fuzz/artifacts/$target"
    # No single allocation over 64 MiB, no more than 1 GiB in all, no input that takes ten seconds.
    if "fuzz/target/$triple/release/$target" "$corpus" -max_total_time="$seconds" \
        -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="fuzz/artifacts/$target/" >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n1)
        printf 'fuzz: %-16s ok, %s runs, %s edges\n' "$target" "$runs" "$coverage"
    else
        printf 'fuzz: %-16s FAILED\n%s\n' "$target" "$(tail -n 40 "$log")"
        return 1
    fi
}

for target in "${targets[@]}"; do
    [ -d "$work/$target" ] || { echo "fuzz: $target has no seeds in fuzz/seeds.py" >&2; exit 1; }
done
export -f run
export work triple seconds
# Each is one thread. All of them, also behind one that fails.
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I '{}' bash -euc 'run {}'
