//! A model behind an adapter as `cai-decryptor@.service`: what systemd keeps it from, who sees its mount, what stays.

use crate::common::available;
use crate::machine::Machine;
use crate::world::{MODEL_IS_RIGHT, configure};

/// Everything of an adapter is gone.
fn is_over(c: &Machine) {
    c.wait("! pgrep -u cai-decryptor");
    c.wait("test -z \"$(systemctl list-units --plain --no-legend 'cai-decryptor@*')\"");
    c.fails("grep fuse.cai /proc/self/mountinfo");
}

/// Replaces the usual agent, and puts it back.
pub fn adapter_is_confined_and_leaves_nothing(c: &Machine) {
    let gocryptfs = !c.sh("command -v gocryptfs || :").is_empty();
    if !available("gocryptfs", gocryptfs, "no gocryptfs in the machine") {
        return;
    }
    configure(c, "/srv/models/llm", "");
    c.sh("sed -i 's/^MODEL_ENCRYPTION_METHOD=.*/MODEL_ENCRYPTION_METHOD=sam/' /etc/cai/cai.env; systemctl stop reader cai");
    let said = c.fails("systemctl start cai");
    assert!(said.contains("failed"), "{said}");
    c.sh("journalctl -u cai -o cat | grep -q 'sam.runtime-missing'");
    c.sh("test \"$(systemctl show -p ExecMainStatus --value cai)\" = 78; systemctl reset-failed cai");
    c.sh("install -D -m 0755 \"$(rpm -ql cai | grep /examples/decryptor-gocryptfs)\" /usr/libexec/cai/decryptor.d/sam");
    c.sh("systemctl start cai");
    assert!(c.property("cai", "StatusText").ends_with("decrypted at /srv/models/llm by the adapter sam"));
    c.sh(MODEL_IS_RIGHT);
    // A unit that started earlier, with a file system of its own, sees it too.
    c.sh(
        "nsenter -t \"$(systemctl show -p MainPID --value early)\" -m sha256sum /srv/models/llm/config.json",
    );
    c.fails("runuser -u nobody -- ls /srv/models/llm");

    let pid = c.sh("pgrep -u cai-decryptor -x gocryptfs");
    let pid = pid.trim();
    let status = c.sh(&format!("cat /proc/{pid}/status"));
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    c.sh(&format!(
        "grep -q 'cai-decryptor@' /proc/{pid}/cgroup; ! grep -v 'lo:' /proc/{pid}/net/dev | grep :"
    ));
    // In its place: no way out, nothing of cai's, and only its own directory.
    let inside =
        format!("nsenter -t {pid} -m -n setpriv --reuid cai-decryptor --regid cai-decryptor --clear-groups");
    for denied in
        ["ls /etc/cai", "ls /var/cache/cai", "test -e /dev/fuse", "touch /run/x", "ping -c1 10.77.0.1"]
    {
        c.fails(&format!("{inside} {denied}"));
    }
    c.sh(&format!("{inside} test -e /run/cai/decryptor/ciphertext/gocryptfs.conf"));
    for user in ["nobody", "cai"] {
        c.fails(&format!("runuser -u {user} -- ls /run/cai/decryptor/ciphertext"));
        c.fails(&format!("runuser -u {user} -- python3 -c \"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('/run/cai/decryptor.sock')\""));
    }
    c.fails("systemctl show 'cai-decryptor@*' | grep a-password");

    c.sh("systemctl stop cai");
    assert_eq!(c.property("cai", "Result"), "success");
    is_over(c);

    // It dies, and so does what is left; the next one comes by itself.
    c.sh("systemctl start cai; kill -KILL \"$(pgrep -u cai-decryptor -x gocryptfs)\"");
    c.wait("test \"$(systemctl show -p NRestarts --value cai)\" -ge 1");
    c.wait("systemctl is-active --quiet cai");
    c.sh(MODEL_IS_RIGHT);
    c.sh("kill -KILL \"$(systemctl show -p MainPID --value cai)\"");
    c.wait("test \"$(systemctl show -p NRestarts --value cai)\" -ge 2");
    c.wait("systemctl is-active --quiet cai");
    c.sh(MODEL_IS_RIGHT);
    c.sh("systemctl stop cai; rm -r /usr/libexec/cai/decryptor.d");
    is_over(c);
    configure(c, "/tmp/model", "");
    c.sh("systemctl start cai reader");
    c.sh(MODEL_IS_RIGHT);
}
