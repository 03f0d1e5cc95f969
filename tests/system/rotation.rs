//! Rotation and what goes with it, under a real systemd: another revision below a unit that reads, another password, the timer,
//! a reload, and who may.

use crate::bus::{NOBODY, OBJECT};
use crate::machine::Machine;
use crate::world::MODEL_IS_RIGHT;

/// Encrypts and uploads a model of which one file differs; what is to be read then is in `sums`.
const NEXT_REVISION: &str = "\
set -e
cd /srv/world
cai --version >/dev/null
cp -r plain plain-2
echo '{\"model_type\":\"another\"}' >plain-2/config.json
cai encrypt --passfile password plain-2 cipher-2
cai upload --delete cipher-2
(cd plain-2 && find . -type f | sort | xargs sha256sum) >sums";

/// Reads the model for as long as it runs, and fails at the first error.
const READING: &str = "systemd-run --quiet --unit=reading -p RemainAfterExit=yes sh -c \
    'cd /tmp/model; while test ! -e /srv/world/enough; do cat config.json model-*.safetensors >/dev/null || exit 1; done'";

pub fn under_load(c: &Machine) {
    let mount = c.sh("grep ' /tmp/model ' /proc/self/mountinfo");
    let readers = c.property("reader", "MainPID");
    c.sh(READING);
    c.sh(NEXT_REVISION);
    let said = c.sh("cai rotate --wait");
    assert!(said.lines().last().is_some_and(|line| line.starts_with("replaced ")), "{said}");
    c.sh(MODEL_IS_RIGHT);
    c.sh("touch /srv/world/enough");
    c.wait("test \"$(systemctl show -p SubState --value reading)\" = exited");
    assert_eq!(c.property("reading", "Result"), "success");
    c.sh("systemctl stop reading; rm /srv/world/enough");
    assert_eq!(c.sh("grep ' /tmp/model ' /proc/self/mountinfo"), mount);
    assert_eq!(c.property("reader", "MainPID"), readers, "who requires cai goes on");
    c.wait("test \"$(ls -d /var/cache/cai/revision-* | wc -l)\" = 1");
}

pub fn by_the_timer(c: &Machine) {
    assert_eq!(c.fails("systemctl is-enabled cai-rotate.timer"), "disabled\n");
    c.write(
        "/etc/systemd/system/cai-rotate.timer.d/soon.conf",
        "[Timer]\nOnCalendar=\nOnActiveSec=0\nRandomizedDelaySec=0",
    );
    c.sh("systemctl daemon-reload; systemctl start cai-rotate.timer");
    c.wait("journalctl -u cai-rotate -o cat | grep -q '^unchanged '");
    c.wait("test \"$(systemctl show -p ActiveState --value cai-rotate)\" = inactive");
    assert_eq!(c.property("cai-rotate", "Result"), "success");
    c.sh("systemctl stop cai-rotate.timer; rm -r /etc/systemd/system/cai-rotate.timer.d; systemctl daemon-reload");
}

pub fn reload(c: &Machine) {
    c.write("/etc/cai/cai.toml.d/lease.toml", "[trustee]\nreattest_interval_secs = 3600");
    c.sh("systemctl reload cai");
    c.sh("journalctl -u cai F_EVENT=config.reloaded -o cat | grep -q 'configuration '");
    c.write("/etc/cai/cai.toml.d/lease.toml", "[trustee]\nreattest_interval = 3600");
    c.fails("systemctl reload cai");
    assert_eq!(c.property("cai", "ActiveState"), "active");
    c.sh("rm /etc/cai/cai.toml.d/lease.toml; systemctl reload cai");
}

pub fn of_the_authorised_alone(c: &Machine) {
    for (method, action) in [("Rotate", "rotate"), ("Reattest", "reattest"), ("Reload", "reload")] {
        let refused = c.fails(&format!("{NOBODY} busctl call {OBJECT} {method}"));
        assert!(refused.contains(&format!("polkit does not allow com.alibaba.cai1.{action}")), "{refused}");
        // With the name that programs look at.
        let refused = c.fails(&format!("{NOBODY} cai {action}"));
        assert!(refused.contains("[bus.refused]"), "{refused}");
    }
    c.sh(&format!("busctl call {OBJECT} Reattest"));
    assert!(c.sh("cai reattest").contains("would still be released"));
}
