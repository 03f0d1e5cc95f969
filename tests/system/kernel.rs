//! What only a kernel of one's own shows: the oldest that the package is for, its modules, its memory limits, swap, core dumps.

use crate::crash::{restarts, wait_for_restart};
use crate::machine::Machine;
use crate::world::MODEL_IS_RIGHT;

/// Where cgroup2 has the daemon.
const CGROUP: &str = "/sys/fs/cgroup/system.slice/cai.service";

/// How much of the model is weights, in bytes.
const WEIGHTS: u64 = 12 << 20;

/// No FUSE passthrough: `auto` says so, and what it does instead.
pub fn on_demand(c: &Machine) {
    let release = c.sh("uname -r");
    assert!(release.starts_with("5.10."), "{release}");
    let text = c.property("cai", "StatusText");
    assert!(
        text.contains("decrypted on demand: this kernel has no FUSE passthrough (Linux 6.9 has)"),
        "{text}"
    );
    assert_eq!(c.sh("cat \"/sys/class/bdi/$(mountpoint -d /tmp/model)/read_ahead_kb\""), "4096\n");
    c.sh(MODEL_IS_RIGHT);
}

/// Whoever needs a module gets it, though no unit may load one.
pub fn modules(c: &Machine) {
    let loaded = c.sh("cut -d ' ' -f 1 /proc/modules");
    for module in ["fuse", "nf_tables", "nft_redir", "veth"] {
        assert!(loaded.lines().any(|line| line == module), "{module} in {loaded}");
    }
}

/// Not even where cores are piped to a program, which no limit forbids.
pub fn no_core(c: &Machine) {
    c.write("/srv/world/keep-core", "#!/bin/sh\ncat >\"/srv/world/core-of-$1\"");
    c.sh("chmod +x /srv/world/keep-core; echo '|/srv/world/keep-core %P' >/proc/sys/kernel/core_pattern");
    // That is how it would look.
    c.sh("runuser -u cai -- sh -c 'ulimit -c 0; kill -TRAP $$' || :");
    c.wait("find /srv/world -name 'core-of-*' -size +0 | grep -q .");
    c.sh("rm /srv/world/core-of-*");
    let before = restarts(c);
    // Not SIGSEGV, whose first Rust catches, nor the watchdog's SIGABRT.
    c.sh("kill -TRAP \"$(systemctl show -p MainPID --value cai)\"");
    wait_for_restart(c, before);
    assert_eq!(c.sh("journalctl -u cai -o cat -g 'code=killed, status=5/TRAP' | wc -l"), "1\n");
    c.fails("ls /srv/world/core-of-*");
}

/// This kernel's tmpfs knows no `noswap`: no plaintext in memory as long as something is swapped to.
pub fn swap(c: &Machine) {
    c.wait("systemctl is-active --quiet reader");
    assert_eq!(c.sh(&format!("cat {CGROUP}/memory.swap.max")), "0\n");
    c.write("/etc/cai/cai.toml.d/ram.toml", "[mount]\nmode = \"ram\"");
    c.sh("fallocate -l 64M /srv/swap; chmod 600 /srv/swap; mkswap /srv/swap; swapon /srv/swap");
    c.fails("systemctl restart cai");
    assert_eq!(
        (c.property("cai", "ActiveState"), c.property("cai", "ExecMainStatus")),
        ("failed".into(), "78".into())
    );
    let said =
        c.sh("journalctl -u cai -o cat | grep -A 1 'could be written to swap: /srv/swap \\[memory.swap\\]'");
    assert!(said.contains("swapoff -a"), "{said}");
    c.fails("grep fuse.cai /proc/self/mountinfo");
    c.sh("swapoff /srv/swap; rm /srv/swap; systemctl start cai reader");
    c.sh(MODEL_IS_RIGHT);
    c.sh("journalctl -u cai -o cat | grep 'all of them in memory'");
    assert_eq!(c.sh("stat -f -c %T /tmp/model"), "tmpfs\n");
}

/// Decrypted files count as the daemon's memory. Over the limit it is killed, and nothing stays mounted; within it, it is back.
pub fn memory_limits(c: &Machine) {
    let shown = c.sh(&format!("sed -n 's/^shmem //p' {CGROUP}/memory.stat"));
    let decrypted: u64 = shown.trim().parse().unwrap();
    assert!(decrypted >= WEIGHTS, "{decrypted} bytes");
    let before = restarts(c);
    c.sh("systemctl set-property --runtime cai MemoryMax=8M");
    c.wait("journalctl -u cai -o cat | grep -q \"Failed with result 'oom-kill'\"");
    c.wait("! grep ' /tmp/model ' /proc/self/mountinfo");
    c.sh("systemctl set-property --runtime cai MemoryMax=infinity");
    c.wait("systemctl is-active --quiet reader");
    assert!(restarts(c) > before);
    c.sh(MODEL_IS_RIGHT);
    c.sh("rm /etc/cai/cai.toml.d/ram.toml; systemctl restart cai");
    c.wait("systemctl is-active --quiet reader");
    c.sh(MODEL_IS_RIGHT);
}
