#!/usr/bin/env bash
# Ctrl-C in the middle of the demo leaves nothing behind: no process, no mount, no directory, no user.
# Usage: scripts/demo-interrupt.sh --bin DIR
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "demo-interrupt: $*" >&2; exit 1; }

before=$(getent passwd cai || true)
scratch=$(mktemp -d "${TMPDIR:-/tmp}/cai-interrupt.XXXXXX")
chmod 0711 "$scratch" # the daemon's user must reach what the demo makes inside
trap 'rm -rf "$scratch"' EXIT
mkfifo "$scratch/out"
# setsid: a process group of its own, with SIGINT at its default, as a terminal's foreground job has it.
TMPDIR=$scratch setsid python3 -c '
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])' scripts/demo.sh "$@" --model-mib 8 >"$scratch/out" 2>&1 &
demo=$!
seen=''
while IFS= read -r line; do
    printf '%s\n' "$line" >>"$scratch/log"
    case $line in *"every file through the mount"*) seen=1; kill -INT -- "-$demo" 2>/dev/null || kill -INT "$demo" ;; esac
done <"$scratch/out"
status=0
wait "$demo" || status=$?
[ -n "$seen" ] || { cat "$scratch/log" >&2; fail "the demo never came to serving"; }
[ "$status" = 130 ] || fail "exit status $status after Ctrl-C, expected 130"
! grep -q " $scratch/" /proc/self/mountinfo || fail "a mount was left: $(grep " $scratch/" /proc/self/mountinfo)"
! pgrep -f "$scratch/cai-demo" >/dev/null || fail "a process was left: $(pgrep -af "$scratch/cai-demo")"
[ "$(find "$scratch" -mindepth 1 -name 'cai-demo*' | wc -l)" = 0 ] || fail "files were left: $(ls "$scratch")"
[ "$(getent passwd cai || true)" = "$before" ] || fail "the user cai was left"
echo "demo-interrupt: 1 passed, 0 failed"
