//! The system bus and polkit, the real ones: who may read, ask, act, and own the name.

use crate::machine::Machine;

pub const OBJECT: &str = "com.alibaba.cai1 /com/alibaba/cai1 com.alibaba.cai1.Agent";
pub const NOBODY: &str = "runuser -u nobody --";

/// Local rules in both of the languages that polkit has had: Debian 11's knows only the older.
const RULE: &str = "\
polkit.addRule(function(action, subject) {
    if (action.id == \"com.alibaba.cai1.prefetch\" && subject.user == \"nobody\") { return polkit.Result.YES; }
});";
const OLD_RULE: &str = "\
[prefetch]
Identity=unix-user:nobody
Action=com.alibaba.cai1.prefetch
ResultAny=yes
ResultInactive=yes
ResultActive=yes";

pub fn answers_everybody(c: &Machine) {
    assert!(c.sh(&format!("{NOBODY} busctl tree com.alibaba.cai1")).contains("/com/alibaba/cai1"));
    let shown = c.sh(&format!("{NOBODY} busctl introspect --no-legend {OBJECT}"));
    let members: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    for member in [
        &[".Prefetch", "method", "s", "tt", "-"][..],
        &[".State", "property", "s", "\"Serving\"", "emits-change"],
        &[".KeyGeneration", "property", "u", "1", "emits-change"],
        &[".Rotate", "method", "-", "u", "-"],
        &[".Reattest", "method", "-", "-", "-"],
        &[".Reload", "method", "-", "asas", "-"],
        &[".Rotation", "property", "a{sv}", "0", "emits-change"],
        &[".StateChanged", "signal", "ss", "-", "-"],
        &[".Rotated", "signal", "uss", "-", "-"],
    ] {
        assert!(members.iter().any(|found| found == member), "{member:?} in {shown}");
    }
    assert_eq!(c.sh(&format!("{NOBODY} busctl get-property {OBJECT} State")), "s \"Serving\"\n");
    assert!(c.sh(&format!("{NOBODY} cai status")).contains("Serving"));
    c.fails(&format!("busctl set-property {OBJECT} State s Failed"));

    // Signals, as anybody who listens gets them.
    c.sh("systemd-run --quiet --unit=listener sh -c 'exec busctl monitor --json=short com.alibaba.cai1 >/srv/world/signals'");
    // It listens once it has heard us.
    c.wait(&format!("busctl get-property {OBJECT} State >/dev/null; test -s /srv/world/signals"));
    c.sh("systemctl restart cai");
    c.wait("grep -q '\"member\":\"StateChanged\".*\"Mounting\",\"Serving\"' /srv/world/signals");
    c.wait("grep -q '\"member\":\"PropertiesChanged\".*\"Serving\"' /srv/world/signals");
    c.sh("systemctl stop listener");
    c.fails("grep -e a-password -e an-access-key-secret /srv/world/signals");
}

/// Nobody else can take the name while the daemon is not there, not even root.
pub fn belongs_to_the_daemon(c: &Machine) {
    let take = "busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus RequestName su com.alibaba.cai1 4";
    for who in [NOBODY, "env"] {
        let refused = c.fails(&format!("{who} {take}"));
        assert!(refused.contains("Access denied"), "{refused}");
    }
}

pub fn polkit_decides(c: &Machine) {
    let prefetch = format!("busctl call {OBJECT} Prefetch s config.json");
    let refused = c.fails(&format!("{NOBODY} {prefetch}"));
    assert!(refused.contains("polkit does not allow com.alibaba.cai1.prefetch to this process"), "{refused}");
    assert_eq!(c.sh(&prefetch).split(' ').take(2).collect::<Vec<_>>(), ["tt", "1"], "root may");
    c.write("/etc/polkit-1/rules.d/50-cai-test.rules", RULE);
    c.write("/etc/polkit-1/localauthority/50-local.d/cai-test.pkla", OLD_RULE);
    c.sh("chmod 0644 /etc/polkit-1/rules.d/50-cai-test.rules");
    // polkit reads it when it sees it.
    c.wait(&format!("{NOBODY} {prefetch}"));
    // That one, and no other.
    c.fails(&format!("runuser -u daemon -- {prefetch}"));
    c.sh("journalctl -u cai F_EVENT=bus.refused -o cat | grep -q 'polkit does not allow'");
}
