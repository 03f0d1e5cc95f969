//! The RPM: made, installed, upgraded under a running mount, removed.

use std::path::Path;
use std::process::Command;

use crate::machine::Machine;
use crate::world::MODEL_IS_RIGHT;

/// Where the container sees the packages; the second is an upgrade of the first.
const FIRST: &str = "/mnt/packages/first.rpm";
const SECOND: &str = "/mnt/packages/second.rpm";

/// Two packages of one content in `directory`: of this build, or the one that `CAI_TEST_RPM` names, twice.
pub fn build(directory: &Path) {
    if let Some(package) = std::env::var_os("CAI_TEST_RPM") {
        for name in ["first.rpm", "second.rpm"] {
            std::fs::copy(&package, directory.join(name)).unwrap();
        }
        return;
    }
    let binaries = Path::new(env!("CARGO_BIN_EXE_cai")).parent().unwrap();
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/rpm.sh"))
        .arg("prebuilt")
        .args([binaries, directory])
        .args(["1", "2"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (release, name) in [("1", "first.rpm"), ("2", "second.rpm")] {
        let package = format!("cai-{}-{release}.x86_64.rpm", env!("CARGO_PKG_VERSION"));
        std::fs::rename(directory.join(package), directory.join(name)).unwrap();
    }
}

pub fn install(c: &Machine) {
    // The machine's own account, where the root file system is its own; and as RHEL and its likes have it, where Debian's
    // preset enables everything.
    c.sh(
        "for user in cai cai-decryptor; do ! id $user >/dev/null 2>&1 || userdel $user; done; ! getent group cai-model >/dev/null || groupdel cai-model",
    );
    c.write("/etc/systemd/system-preset/99-default-disable.preset", "disable *");
    // The distribution's own packages are not in rpm's database here; packaging/check-rpm.sh checks what ours asks for.
    c.sh(&format!("rpm -i --nodeps {FIRST}"));
    c.sh("id cai && getent group cai-model");
    for unit in ["cai.service", "cai-gate.service", "cai-helper.socket"] {
        assert_eq!(c.fails(&format!("systemctl is-enabled {unit}")), "disabled\n");
        assert_eq!(c.property(unit, "ActiveState"), "inactive");
    }
    assert_eq!(c.sh("rpm -V --nodeps cai"), "");
    let modes = c.sh("cd /etc/cai; stat -c '%a %U %G %n' . cai.env cai.toml cai.toml.d");
    assert_eq!(
        modes,
        "750 root cai .\n640 root cai cai.env\n640 root cai cai.toml\n750 root cai cai.toml.d\n"
    );
    // Nobody else can read it, and the daemon's user cannot write it.
    c.fails("runuser -u nobody -- cat /etc/cai/cai.env");
    c.fails("runuser -u cai -- sh -c 'echo >>/etc/cai/cai.env'");
    assert!(c.sh("cai --version").starts_with(&format!("cai {} ", env!("CARGO_PKG_VERSION"))));
    c.sh("zcat /usr/share/man/man1/cai.1.gz | grep -q 'cai\\\\-run(1)'; zcat /usr/share/man/man1/cai-run.1.gz >/dev/null");
    for page in [
        "man7/cai-decryptor.7",
        "man5/cai.env.5",
        "man5/cai.toml.5",
        "man5/com.alibaba.cai1.5",
        "man8/cai.service.8",
    ] {
        c.sh(&format!("zcat /usr/share/man/{page}.gz | grep -q '^.TH '"));
    }
    // What the shell would offer behind `cai che`.
    let offered = c
        .sh("bash -c '. /usr/share/bash-completion/completions/cai; COMP_WORDS=(cai che); COMP_CWORD=1; \
         _cai cai che cai; printf \"%s \" \"${COMPREPLY[@]}\"'");
    assert_eq!(offered, "check-config check-key ");
}

/// What was running goes on as it is; the next start runs what was installed.
pub fn upgrade(c: &Machine) {
    let pid = c.property("cai", "MainPID");
    c.sh(&format!("echo '# my own remark' >>/etc/cai/cai.toml; rpm -U --nodeps --replacepkgs {SECOND}"));
    assert_eq!(c.property("cai", "MainPID"), pid, "the upgrade restarted the daemon");
    assert_eq!(c.property("reader", "ActiveState"), "active");
    c.sh(MODEL_IS_RIGHT);
    assert!(c.sh("rpm -V --nodeps cai || :").contains("c /etc/cai/cai.toml"), "the edit is seen");
    c.sh("grep -q 'my own remark' /etc/cai/cai.toml; test ! -e /etc/cai/cai.toml.rpmnew; cai status");
    c.sh("systemctl restart cai");
    c.sh(MODEL_IS_RIGHT);
    c.sh(&format!(
        "rpm -U --nodeps --oldpackage --replacepkgs {FIRST}; grep -q 'my own remark' /etc/cai/cai.toml"
    ));
    c.sh("systemctl restart cai");
    c.sh(MODEL_IS_RIGHT);
}

pub fn remove(c: &Machine) {
    let files = c.sh("rpm -ql cai");
    c.sh("rpm -e --nodeps cai");
    for file in files.lines().filter(|file| !file.starts_with("/etc/cai")) {
        c.fails(&format!("test -e '{file}'"));
    }
    // What was edited and what was added.
    assert_eq!(
        c.sh("find /etc/cai -type f | sort"),
        "/etc/cai/cai.env.rpmsave\n/etc/cai/cai.toml.d/here.toml\n/etc/cai/cai.toml.rpmsave\n"
    );
    assert_eq!(c.property("reader", "ActiveState"), "inactive");
    c.fails("grep fuse.cai /proc/self/mountinfo");
    c.fails("pgrep -u cai");
    c.fails("pgrep -x cai-helper");
    c.fails("nft list table inet cai_gate");
    c.fails("test -e /var/cache/cai");
    assert_eq!(c.sh("find /etc/systemd -type l -name 'cai*'"), "");
    assert_eq!(c.sh("ls -A /run/cai 2>/dev/null || :"), "");
}
