#!/usr/bin/env bash
# The whole story on this machine: a sample model is encrypted, uploaded to a stand-in OSS, its key stored in a stand-in
# Trustee; the agent attests, receives the key, mounts the model; every file is compared with the plaintext; a client asks a
# service behind the agent's port through an attested tunnel.
# Exit status 0 only if all of it held. Everything it made is stopped, unmounted and removed, also after Ctrl-C or failure.
set -euo pipefail

bin='' mib=256
while [ $# -gt 0 ]; do
    case $1 in
    --bin) bin=$(realpath "$2"); shift 2 ;;
    --model-mib) mib=$2; shift 2 ;;
    *) echo "usage: scripts/demo.sh --bin DIR [--model-mib N]" >&2; exit 64 ;;
    esac
done
[ -x "$bin/cai" ] && [ -x "$bin/cai-sandbox" ] || { echo "demo: no cai and cai-sandbox in '$bin'; run: make demo" >&2; exit 64; }

begun=$(date +%s.%N)
step() { printf '%7.2f s  %s\n' "$(echo "$(date +%s.%N) $begun" | awk '{print $1 - $2}')" "$*"; }
detail() { sed 's/^/             /'; }

work=$(mktemp -d "${TMPDIR:-/tmp}/cai-demo.XXXXXX")
chmod 0711 "$work" # the daemon's user must reach its own directories inside
root=$work/root
agent='' sandbox='' bus='' service='' client='' user_made='' done_ok='' cleaning=''

# Whether process $1 still runs; one that has ended but was not waited for does not.
runs() { grep -qs '^State:.[^ZX]' "/proc/$1/status"; }

# End $1 (a process of ours, or empty) with SIGTERM, after five seconds with SIGKILL, and wait for it.
end_process() {
    [ -n "$1" ] || return 0
    kill -TERM "$1" 2>/dev/null
    for _ in $(seq 100); do
        runs "$1" || break
        sleep 0.05
    done
    kill -KILL "$1" 2>/dev/null
    wait "$1" 2>/dev/null
    return 0
}

# Ctrl-C reaches the children first: the shell may be on its way out by `set -e` when its own signal comes. Whichever of the
# two begins the clean-up runs it to its end.
cleanup() {
    [ -z "$cleaning" ] || return 0
    cleaning=1
    set +e
    [ -n "$done_ok" ] || step "cleaning up"
    end_process "$client"
    end_process "$service"
    end_process "$agent"
    end_process "$sandbox"
    end_process "$bus"
    for point in "$work/peer" "$work/check" "$root/tmp/model"; do
        mountpoint -q "$point" 2>/dev/null && umount -l "$point"
    done
    [ -z "$user_made" ] || userdel cai
    if [ -z "$done_ok" ] && [ -s "$work/agent.log" ]; then
        echo "The agent's log:" >&2
        tail -n 30 "$work/agent.log" >&2
    fi
    rm -rf --one-file-system "$work"
    [ -n "$done_ok" ] || echo "demo: FAILED" >&2
    trap - EXIT
    exit "$1"
}
trap 'cleanup $?' EXIT
trap 'cleanup 130' INT
trap 'cleanup 143' TERM

die() { echo "demo: $*" >&2; exit 1; }

free_port() { python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'; }

# Sums of every file below $1, sorted by name.
sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

# Compare the files below $1 with the plaintext; prints how many there are.
compare() {
    diff <(cat "$work/plain.sums") <(sums "$1") >"$work/diff" || { cat "$work/diff" >&2; die "$1 differs from the plaintext"; }
    wc -l <"$work/plain.sums"
}

step "a sample model of $mib MiB: two safetensors shards of random tensors, their index, configuration and tokenizer"
"$bin/cai-sandbox" sample-model --mib "$mib" "$work/plain"
(cd "$work/plain" && ls -l | tail -n +2) | detail
sums "$work/plain" >"$work/plain.sums"
head -c 24 /dev/urandom | base64 >"$work/password" # ends in a newline, as `echo` would write it

step "cai encrypt"
"$bin/cai" encrypt "$work/plain" "$work/cipher" --passfile "$work/password" 2>&1 | detail
"$bin/cai" check-key "$work/cipher" --passfile "$work/password" | detail

if command -v gocryptfs >/dev/null; then
    step "the same with $(gocryptfs -version | cut -d';' -f1): each reads what the other wrote"
    mkdir "$work/peer" "$work/peer-cipher" "$work/check"
    gocryptfs -q -init -scryptn 12 -passfile "$work/password" "$work/peer-cipher"
    gocryptfs -q -passfile "$work/password" "$work/peer-cipher" "$work/peer" 2>/dev/null
    cp -r "$work/plain/." "$work/peer/"
    umount "$work/peer"
    gocryptfs -q -ro -passfile "$work/password" "$work/cipher" "$work/peer" 2>/dev/null
    echo "gocryptfs reads $(compare "$work/peer") files that cai encrypted: identical" | detail
    umount "$work/peer"
    "$bin/cai" mount "$work/peer-cipher" "$work/check" --passfile "$work/password" 2>"$work/mount.log" &
    mounting=$!
    timeout 30 bash -c "until mountpoint -q '$work/check'; do sleep 0.05; done" || { cat "$work/mount.log" >&2; die "cai mount failed"; }
    echo "cai reads $(compare "$work/check") files that gocryptfs encrypted: identical" | detail
    kill -TERM "$mounting" && wait "$mounting"
else
    step "gocryptfs is not installed: the comparison with it is left out"
fi

step "a stand-in Trustee with the key as resource default/aliyun/model-decryption-key, and a stand-in OSS"
head -c 24 /dev/urandom | base64 | tr -d '\n=+/' >"$work/secret-key"
mkfifo "$work/addresses"
"$bin/cai-sandbox" serve --state-dir "$work/oss" --bucket conf-ai --region cn-beijing --access-key-id demo \
    --access-key-secret-file "$work/secret-key" --resource "default/aliyun/model-decryption-key=$work/password" --token-cert-out "$work/signer.pem" \
    >"$work/addresses" 2>"$work/sandbox.log" &
sandbox=$!
read -r addresses <"$work/addresses" || { cat "$work/sandbox.log" >&2; die "the sandbox did not start"; }
address() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" <<<"$addresses"; }
echo "Trustee $(address kbs), OSS $(address oss)" | detail

step "the configuration, in the words of the vendor's document"
mkdir -p "$root/etc/cai" "$root/tmp"
cat >"$root/etc/cai/cai.env" <<EOF
TRUSTEE_URL="$(address kbs)/"
MODEL_KEY_ID="kbs:///default/aliyun/model-decryption-key"
MODEL_OSS_BUCKET_PATH="conf-ai:/demo-model-gocryptfs/"
MODEL_OSS_ENDPOINT="$(address oss)"
MODEL_OSS_REGION=cn-beijing
MODEL_OSS_ACCESS_KEY_ID="demo"
MODEL_OSS_SECRET_ACCESS_KEY="$(cat "$work/secret-key")"
MODEL_ENCRYPTION_METHOD="gocryptfs"
MODEL_MOUNT_POINT=/tmp/model # The mount point for the decrypted model plaintext
EOF
chmod 0600 "$root/etc/cai/cai.env"
port=$(free_port) backend=$(free_port)
# Ports of its own and not MODEL_SERVICE_PORT, which would load rules into this machine's kernel.
cat >"$root/etc/cai/cai.toml" <<EOF
[attest]
tee = "sample" # stand-in evidence: this machine has no TEE
[gateway]
listen = "127.0.0.1:$port"
backend = "127.0.0.1:$backend"
EOF
"$bin/cai" --root "$root" check-config | detail

step "cai upload"
"$bin/cai" --root "$root" upload "$work/cipher" 2>&1 | detail

step "cai run, as user cai, on a private D-Bus"
id cai >/dev/null 2>&1 || { useradd --system --no-create-home --shell /usr/sbin/nologin cai && user_made=1; }
cat >"$work/bus.conf" <<EOF
<busconfig>
  <type>system</type>
  <listen>unix:path=$work/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/>
    <allow send_destination="*" eavesdrop="false"/><allow receive_sender="*"/>
  </policy>
</busconfig>
EOF
mkfifo "$work/bus-ready"
dbus-daemon --config-file="$work/bus.conf" --nofork --nosyslog --print-address=1 >"$work/bus-ready" 2>"$work/bus.log" &
bus=$!
read -r _ <"$work/bus-ready" || die "the private D-Bus did not start"
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$work/bus
started=$(date +%s.%N)
"$bin/cai" --root "$root" run 2>"$work/agent.log" &
agent=$!

get() { busctl --address="$DBUS_SYSTEM_BUS_ADDRESS" get-property com.alibaba.cai1 /com/alibaba/cai1 com.alibaba.cai1.Agent "$1"; }
deadline=$((SECONDS + 120))
until [ "$(get State 2>/dev/null)" = 's "Serving"' ]; do
    kill -0 "$agent" 2>/dev/null || { agent=''; die "the agent ended before it served"; }
    [ $SECONDS -lt $deadline ] || die "the agent is not serving after 120 s: $(get StatusText 2>&1)"
    sleep 0.02
done
step "Serving, $(echo "$(date +%s.%N) $started" | awk '{printf "%.2f", $1 - $2}') s after its start"
ps -o user=,pid=,args= -p "$agent" | cut -c1-90 | detail

step "every file through the mount, against the plaintext"
ls -l "$root/tmp/model" | tail -n +2 | detail
echo "$(compare "$root/tmp/model") files, SHA-256 identical" | detail
if touch "$root/tmp/model/new" 2>"$work/touch.err"; then die "the mount took a new file"; fi
grep -q 'Read-only file system' "$work/touch.err" || die "writing failed, but not with EROFS: $(cat "$work/touch.err")"

step "a service that reads the model, and a client of it through an attested tunnel"
python3 -m http.server "$backend" --bind 127.0.0.1 --directory "$root/tmp/model" >"$work/service.log" 2>&1 &
service=$!
mkfifo "$work/door"
"$bin/cai" connect --listen 127.0.0.1:0 --as-url "$(address kbs)/as" --as-cert "$work/signer.pem" >"$work/door" 2>"$work/connect.log" &
client=$!
read -r door <"$work/door" || { cat "$work/connect.log" >&2; die "cai connect did not start"; }
echo "$door" | detail
until curl -s -o /dev/null "http://127.0.0.1:$backend/"; do kill -0 "$service" || die "the service did not start"; sleep 0.05; done
curl -sS -m 60 --noproxy '' --proxy "http://${door##* }" "http://127.0.0.1:$port/config.json" >"$work/answer" || die "no answer through the tunnel"
cmp "$work/answer" "$work/plain/config.json" || die "the answer through the tunnel differs"
if curl -s -m 5 "http://127.0.0.1:$port/config.json" >"$work/naked"; then die "the port answered in plaintext"; fi
echo "the answer through the tunnel is right; in plaintext the port says nothing" | detail

step "busctl"
for property in State Model MountPoint KeyGeneration ModelRevision Attestation Notices; do
    printf '%s %s\n' "$property" "$(get $property)"
done | cut -c1-150 | detail

step "cai status, once the background fill has everything"
until [ "$(grep -c 'every byte of the model is local' "$work/agent.log")" -gt 0 ]; do
    [ $SECONDS -lt $deadline ] || die "the background fill did not end"
    sleep 0.05
done
"$bin/cai" status | detail

step "stopping"
# What `kill` says of one that has ended by itself is no failure.
end_process "$client" || true
client=''
end_process "$service" || true
service=''
kill -TERM "$agent"
wait "$agent" || die "the agent ended with status $?"
agent=''
! mountpoint -q "$root/tmp/model" || die "the mount is still there"
grep -c "$(cat "$work/password")" "$work/agent.log" >/dev/null && die "the password is in the log"

done_ok=1
step "all of it held; everything is stopped, unmounted and removed"
cat <<'EOF'

Next, on a confidential GPU server: put your values into /etc/cai/cai.env (etc/cai/cai.env here is the commented
template), then:

    cai check-config && cai run
EOF
