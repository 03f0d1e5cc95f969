//! The units: sound, sandboxed, in order with their consumers, at boot.

use crate::machine::Machine;
use crate::world::{MODEL_IS_RIGHT, configure};

/// What a unit of somebody else's looks like that reads the model: it starts only when all of it is right, and reads it again
/// when it is stopped.
const READER: &str = "\
[Unit]
Requires=cai.service
After=cai.service
StartLimitIntervalSec=0
[Service]
User=nobody
SupplementaryGroups=cai-model
NoNewPrivileges=yes
ProtectSystem=strict
ExecStartPre=sh -c 'cd /tmp/model && sha256sum --quiet -c /srv/world/sums'
ExecStart=sleep infinity
ExecStop=+sh -c 'sha256sum /tmp/model/config.json >/srv/world/at-stop'
[Install]
WantedBy=cai.service";

/// Started before there is a mount, with a file system of its own.
const EARLY: &str = "\
[Service]
PrivateTmp=yes
ProtectSystem=strict
PrivateDevices=yes
ExecStart=sleep infinity";

pub fn units_are_sound(c: &Machine) {
    let units = "/usr/lib/systemd/system/cai.service /usr/lib/systemd/system/cai-gate.service \
                 /usr/lib/systemd/system/cai-helper.socket /usr/lib/systemd/system/cai-helper@.service \
                 /usr/lib/systemd/system/cai-rotate.service /usr/lib/systemd/system/cai-rotate.timer \
                 /usr/lib/systemd/system/cai-decryptor.socket /usr/lib/systemd/system/cai-decryptor@.service";
    let said = c.sh(&format!("systemd-analyze verify --man=no {units} 2>&1"));
    // What is newer than this systemd is left out by it. Other units' faults are not ours.
    let ours = said.lines().filter(|line| line.contains("cai") && !line.contains("Unknown"));
    assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new());
    // Of systemd 248 and 254.
    let newer = ["PrivateIPC", "RestartSteps", "RestartMaxDelaySec"];
    for line in said.lines().filter(|line| line.contains("cai") && line.contains("Unknown")) {
        assert!(newer.iter().any(|name| line.contains(name)), "{line}");
    }
    let version = c.sh("systemctl --version | sed -n '1s/^systemd \\([0-9]*\\).*/\\1/p'");
    // Before, it can look at loaded units only.
    if version.trim().parse::<u32>().unwrap() >= 250 {
        c.sh("systemd-analyze security --offline=true --threshold=15 /usr/lib/systemd/system/cai.service");
        c.sh(
            "systemd-analyze security --offline=true --threshold=20 /usr/lib/systemd/system/cai-gate.service",
        );
    }
}

pub fn start(c: &Machine) {
    c.write("/run/systemd/system/early.service", EARLY);
    c.sh("systemctl daemon-reload; systemctl start early");
    c.fails("cai status");
    c.sh("systemctl start cai");
    assert_eq!(c.property("cai", "ActiveState"), "active");
    let text = c.property("cai", "StatusText");
    assert!(text.starts_with("Serving: 5 files at /srv/models/llm"), "{text}");
    assert_eq!(c.property("cai-gate", "ActiveState"), "active");
    c.sh(MODEL_IS_RIGHT);
    // Directories that the helper made are for others to pass.
    assert_eq!(c.sh("stat -c '%a %U' /srv/models"), "755 root\n");
    c.sh(
        "nsenter -t \"$(systemctl show -p MainPID --value early)\" -m sha256sum /srv/models/llm/config.json",
    );
    c.fails("runuser -u nobody -- ls /srv/models/llm");
    let changes = c.sh("journalctl -u cai F_EVENT=state.changed -o cat");
    let states = ["Attesting", "ReleasingKey", "Fetching", "Mounting", "Serving"];
    let told: Vec<&str> =
        changes.lines().filter_map(|line| Some(line.split_once(" -> ")?.1.split_once(':')?.0)).collect();
    assert_eq!(told, states);
    // Root's acts, told by who did them.
    c.sh("journalctl -u 'cai-helper@*' -o cat | grep -qx 'cai-helper: mount: mounted at /srv/models/llm'");
    let keys = c.sh("journalctl -u cai F_EVENT=key.released -o json");
    assert!(!keys.is_empty());
    c.fails("journalctl -o cat | grep -e a-password -e an-access-key-secret");
}

pub fn daemon_has_no_privilege(c: &Machine) {
    let status = c.sh("cat /proc/\"$(systemctl show -p MainPID --value cai)\"/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
    let uid = c.sh("id -u cai");
    assert!(field("Uid").split_whitespace().all(|id| id == uid.trim()), "{status}");
    let limits = c.sh("grep 'core file' /proc/\"$(systemctl show -p MainPID --value cai)\"/limits");
    assert_eq!(limits.split_whitespace().nth(4), Some("0"), "{limits}");
    // Its memory is not its own user's to look at, and what it locked is locked.
    c.fails("runuser -u cai -- cat /proc/\"$(systemctl show -p MainPID --value cai)\"/maps");
    assert_ne!(field("VmLck"), "0 kB");
    // The helper is there, as root, and has no more than it needs.
    let helper = c.sh("cat /proc/\"$(pgrep -x cai-helper)\"/status");
    let bounding = helper.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, NET_ADMIN 12, SYS_ADMIN 21.
    assert_eq!(u64::from_str_radix(bounding, 16).unwrap(), 1 | 1 << 1 | 1 << 3 | 1 << 12 | 1 << 21);
}

pub fn helper_is_for_the_daemon_alone(c: &Machine) {
    let ask = "python3 -c \"import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); \
               s.settimeout(5); s.connect('/run/cai/helper.sock'); s.send(b'{\\\"verb\\\":\\\"event-logs\\\"}'); print(s.recv(9999).decode())\"";
    let refused = c.fails(&format!("runuser -u nobody -- {ask}"));
    assert!(refused.contains("PermissionError"), "{refused}");
    let answer = c.sh(&format!("runuser -u cai -- {ask}"));
    assert!(answer.contains("done"), "{answer}");
    // Behind who hangs up nothing stays.
    c.wait("test \"$(systemctl list-units --plain --no-legend 'cai-helper@*' | wc -l)\" = 1");
}

pub fn consumer_reads(c: &Machine) {
    // The mission's own mount point: below /tmp, where anybody may make names.
    configure(c, "/tmp/model", "");
    c.write("/etc/systemd/system/reader.service", READER);
    c.sh("systemctl daemon-reload; systemctl restart cai; systemctl enable reader; systemctl start reader");
    c.sh(MODEL_IS_RIGHT);
    c.fails("mountpoint -q /srv/models/llm");
    c.fails("runuser -u nobody -- cat /tmp/model/config.json");
}

/// Who requires it stops first, while the model can still be read; then nothing is left.
pub fn stop(c: &Machine) {
    c.sh("systemctl start reader; rm -f /srv/world/at-stop; systemctl stop cai");
    assert_eq!(c.property("reader", "ActiveState"), "inactive");
    let at_stop = c.sh("cat /srv/world/at-stop");
    let expected = c.sh("grep config.json /srv/world/sums");
    assert_eq!(at_stop.split(' ').next(), expected.split(' ').next());
    assert_eq!(c.property("cai", "Result"), "success");
    c.fails("grep fuse.cai /proc/self/mountinfo");
    c.wait("! pgrep -x cai-helper");
    c.fails("pgrep -u cai");
    // Asking about it does not start it.
    let status = c.fails("cai status");
    assert!(status.contains("[bus.not-running]"), "{status}");
    assert_eq!(c.property("cai", "ActiveState"), "inactive");
    assert_eq!(c.sh("systemctl list-units --failed --plain --no-legend"), "");
}

pub fn prepare_for_boot(c: &Machine) {
    c.sh("systemctl enable cai reader");
    for unit in ["cai-gate.service", "cai-helper.socket"] {
        assert_eq!(c.sh(&format!("systemctl is-enabled {unit}")), "enabled\n");
    }
}

/// The machine is up before the Trustee is: the gate is shut, nobody reads; later all of it comes by itself.
pub fn boots_before_the_trustee(c: &Machine) {
    c.wait("systemctl show -p StatusText cai | grep -q 'is not available, attempt'");
    assert_eq!(c.property("cai", "ActiveState"), "activating");
    assert_eq!(c.property("cai-gate", "ActiveState"), "active");
    c.sh("nft list table inet cai_gate >/dev/null");
    assert_eq!(c.property("reader", "ActiveState"), "inactive");
    c.fails("mountpoint -q /tmp/model");
    c.sh("systemctl start world");
    c.wait("systemctl is-active --quiet reader");
    c.sh(MODEL_IS_RIGHT);
    assert_eq!(c.property("cai", "NRestarts"), "0", "it waited by itself");
}
