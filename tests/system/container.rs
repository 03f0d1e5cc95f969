//! A container whose PID 1 is a real systemd, on a throw-away overlay over a root file system; gone with the value.
//!
//! systemd-nspawn needs a cgroup2 hierarchy alone at /sys/fs/cgroup, which not every machine has: it gets one in a mount
//! namespace of its own, where the overlay and its tmpfs are too. So nothing of it is among the machine's mounts, and all of
//! it ends with the process, also when the tests are killed. Of /proc/sys only net is writable inside: the container's
//! systemd-sysctl would set the machine's values.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::common::{available, wait_until};
use crate::machine::{ENVIRONMENT, Inside, has_started, script_limit, text};

/// Sets up the namespace, then boots for as long as the container asks to be rebooted (systemd-nspawn ends with 133 then). Units
/// that the machine has enabled are not started: the tests bring their own; nor is what would load the kernel's modules.
const BOOT: &str = r#"
echo $$ >"$CGROUP/cgroup.procs"
mount -t proc proc /proc
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o size=2g,mode=0755 tmpfs "$WORK"
mkdir "$WORK/upper" "$WORK/work" "$WORK/root"
mount -t overlay overlay -o "lowerdir=$LOWER,upperdir=$WORK/upper,workdir=$WORK/work" "$WORK/root"
rm -rf "$WORK/root"/etc/systemd/system/*.wants "$WORK/root/etc/cai"
ln -sf /dev/null "$WORK/root/etc/systemd/system/systemd-modules-load.service"
mkdir -p "$WORK/root/mnt/binaries" "$WORK/root/mnt/libraries" "$WORK/root/mnt/packages"
ended=133
while [ $ended = 133 ]; do
    ended=0
    systemd-nspawn --quiet --register=no --keep-unit --directory="$WORK/root" --machine="$NAME" --console=pipe \
        --capability=all --private-network --bind=/dev/fuse --bind-ro="$BINARIES:/mnt/binaries" \
        --bind-ro=/usr/lib/x86_64-linux-gnu:/mnt/libraries --bind-ro="$PACKAGES:/mnt/packages" \
        --boot systemd.unit=multi-user.target || ended=$?
done
exit $ended
"#;

/// Whether such containers can be made here; prints why not.
pub fn can_boot() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    let program = |name: &str| Command::new(name).arg("--version").output().is_ok();
    let missing: Vec<&str> =
        ["systemd-nspawn", "rpmbuild", "nsenter"].into_iter().filter(|name| !program(name)).collect();
    let why =
        format!("a container with systemd needs root, /dev/fuse, cgroup2; programs missing: {missing:?}");
    let present = root && missing.is_empty() && Path::new("/dev/fuse").exists() && cgroups().is_some();
    available("nspawn", present, &why)
}

/// Where the machine has its cgroup2 hierarchy.
fn cgroups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let entry = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    Some(entry.split(' ').nth(1)?.into())
}

pub struct Container {
    script: Child,
    /// Its PID 1, as this machine numbers it; 0 before it has booted.
    leader: u32,
    cgroup: PathBuf,
    work: tempfile::TempDir,
}

impl Container {
    /// Boot over the root file system at `lower`, with `binaries`, this machine's libraries and `packages` below /mnt.
    pub fn boot(lower: &Path, binaries: &Path, packages: &Path) -> Self {
        let work = tempfile::tempdir().unwrap();
        let name = format!("cai-{}", std::process::id());
        let cgroup = cgroups().unwrap().join(&name);
        fs::create_dir(&cgroup).unwrap();
        fs::create_dir(work.path().join("tmpfs")).unwrap();
        let log = File::create(work.path().join("log")).unwrap();
        // A process namespace of its own: all that is in it ends with the first, and that with the test, should that be killed.
        let script = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child"])
            .args(["--mount", "--propagation", "private"])
            .args(["bash", "-euc", BOOT])
            .env("WORK", work.path().join("tmpfs"))
            .envs([("CGROUP", &*cgroup), ("LOWER", lower), ("BINARIES", binaries), ("PACKAGES", packages)])
            .env("NAME", &name)
            // As on a machine: without a system call filter around all of it.
            .envs([("SYSTEMD_SECCOMP", "0"), ("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut container = Container { script, leader: 0, cgroup, work };
        wait_until("the container to boot", || {
            if let Some(status) = container.script.try_wait().unwrap() {
                panic!("the container ended with {status}:\n{}", container.console());
            }
            container.leader = container.find_leader().unwrap_or(0);
            has_started(&container)
        });
        container
    }

    fn find_leader(&self) -> Option<u32> {
        let child = |of: u32, name: &str| -> Option<u32> {
            let output = Command::new("pgrep").args(["-P", &of.to_string(), "-x", name]).output().unwrap();
            text(&output.stdout).lines().next()?.parse().ok()
        };
        child(child(child(self.script.id(), "bash")?, "systemd-nspawn")?, "systemd")
    }

    fn console(&self) -> String {
        fs::read_to_string(self.work.path().join("log")).unwrap_or_default()
    }
}

impl Inside for Container {
    fn output(&self, script: &str) -> Output {
        Command::new("nsenter")
            .args([
                "-t",
                &self.leader.to_string(),
                "-m",
                "-u",
                "-i",
                "-n",
                "-p",
                "-C",
                "-r",
                "-w",
                "env",
                "-i",
            ])
            .args(ENVIRONMENT)
            .args(["timeout", &script_limit().to_string(), "sh", "-euc", script])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn reboot(&mut self) {
        let before = self.leader;
        // The caller is ended with everything else.
        let _ = self.output("systemctl reboot");
        wait_until("the container to be up again", || {
            self.leader = self.find_leader().unwrap_or(0);
            self.leader != before && self.output("systemctl is-active --quiet basic.target").status.success()
        });
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
        wait_until("the container's cgroup to be empty", || remove_cgroup(&self.cgroup));
    }
}

/// Remove a tree of cgroups, which is possible once their processes have ended.
fn remove_cgroup(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return !directory.exists() };
    for entry in entries.flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(directory).is_ok()
}
