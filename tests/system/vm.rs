//! A virtual machine with a kernel of its own: Debian's, from `packaging/rootfs.sh bullseye-vm`, emulated by qemu (no KVM is asked
//! for: where the tests run, there may be none). What no container has: another kernel, its modules, cgroup2 with all
//! controllers, swap, a reboot of everything.
//!
//! Two disks, made for each run by mke2fs: the root, and what a container gets bound to /mnt. The way in is a virtio-serial port
//! with a small shell at its end (guest.py); there is no network. All of it ends with the test, also when that is killed.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use crate::common::{available, patience, wait_until};
use crate::machine::{ENVIRONMENT, Inside, has_started, script_limit, text};

const SHELL: &str = include_str!("guest.py");

/// Starts the shell once its port is there.
const SHELL_UNIT: &str = "\
[Unit]
Description=Root shell of the tests
BindsTo=dev-virtio\\x2dports-cai.shell.device
After=dev-virtio\\x2dports-cai.shell.device
StartLimitIntervalSec=0
[Service]
ExecStartPre=/bin/sh -c 'mountpoint -q /mnt || mount -o ro /dev/vdb /mnt'
ExecStart=/usr/bin/python3 /mnt/guest.py ";

/// As `-M microvm` has no clock that this kernel can calibrate, q35. `panic=-1`: a panic is a reboot, which is noticed.
const QEMU: &str = "-M q35 -accel tcg,thread=multi,tb-size=256 -cpu max,la57=off -smp 2 -m 2048 -nodefaults -nic none \
    -display none -device virtio-rng-pci -device virtio-serial-pci -device virtserialport,chardev=shell,name=cai.shell";
const KERNEL_ARGUMENTS: &str = "root=/dev/vda rw console=ttyS0 panic=-1 quiet mitigations=off net.ifnames=0 systemd.wants=cai-test-shell.service";

/// Whether such machines can be made here; prints why not.
pub fn can_boot() -> bool {
    let missing: Vec<&str> = ["qemu-system-x86_64", "mke2fs", "ldd", "strip"]
        .into_iter()
        .filter(|name| Command::new(name).arg("--version").output().is_err())
        .collect();
    let root = nix::unistd::Uid::effective().is_root();
    let why = format!("a virtual machine needs root, to copy root's files; programs missing: {missing:?}");
    available("vm", root && missing.is_empty(), &why)
}

pub struct Vm {
    qemu: Child,
    /// Its shell.
    port: UnixStream,
    /// Its boot, as the kernel names it.
    boot: String,
    work: tempfile::TempDir,
}

impl Vm {
    /// Boot the root file system at `root`, which has a kernel, with `binaries`, their libraries and `packages` below /mnt.
    pub fn boot(root: &Path, binaries: &Path, packages: &Path) -> Self {
        let work = tempfile::tempdir().unwrap();
        let path = |name: &str| work.path().join(name);
        prepare_root(root);
        make_disk(root, &path("root.img"), "2G");
        prepare_mnt(&path("mnt"), binaries, packages);
        make_disk(&path("mnt"), &path("mnt.img"), "512M");
        fs::remove_dir_all(path("mnt")).unwrap();
        let drive = |name: &str| format!("file={},format=raw,if=virtio,cache=unsafe", path(name).display());
        let socket = path("shell");
        let mut qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(QEMU.split_whitespace())
            .arg("-chardev")
            .arg(format!("socket,id=shell,server=on,wait=off,path={}", socket.display()))
            .args(["-drive", &drive("root.img"), "-drive", &drive("mnt.img")])
            .args(["-serial".into(), format!("file:{}", path("console").display())])
            .arg("-kernel")
            .arg(of_boot(root, "vmlinuz-"))
            .arg("-initrd")
            .arg(of_boot(root, "initrd.img-"))
            .args(["-append", KERNEL_ARGUMENTS])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(path("qemu.log")).unwrap())
            .spawn()
            .unwrap();
        let mut port = None;
        wait_until("qemu to listen", || {
            if let Some(status) = qemu.try_wait().unwrap() {
                panic!("qemu ended with {status}: {}", fs::read_to_string(path("qemu.log")).unwrap());
            }
            port = UnixStream::connect(&socket).ok();
            port.is_some()
        });
        let port = port.unwrap();
        // Beyond the limit of a script.
        let silence = Duration::from_secs(u64::from(script_limit() + 30 * patience()));
        port.set_read_timeout(Some(silence)).unwrap();
        let mut vm = Vm { qemu, port, boot: String::new(), work };
        vm.wait_for_boot();
        // qemu has them open; nobody else needs them, and nothing of them stays when the test is killed.
        fs::remove_file(vm.work.path().join("root.img")).unwrap();
        fs::remove_file(vm.work.path().join("mnt.img")).unwrap();
        wait_until("the machine to have started", || has_started(&vm));
        vm
    }

    /// Wait for the shell of another boot.
    fn wait_for_boot(&mut self) {
        let mut port = BufReader::new(&self.port);
        loop {
            let line = self.line(&mut port);
            // What comes before is the answer to who asked for it.
            if let Some(boot) = line.strip_prefix("up ").filter(|boot| *boot != self.boot) {
                self.boot = boot.to_owned();
                return;
            }
        }
    }

    fn line(&self, port: &mut BufReader<&UnixStream>) -> String {
        let mut line = String::new();
        let heard = port.read_line(&mut line);
        if !line.ends_with('\n') {
            panic!("the machine is silent ({heard:?}); its console:\n{}", self.console());
        }
        line
    }

    fn console(&self) -> String {
        let read = |name: &str| text(&fs::read(self.work.path().join(name)).unwrap_or_default());
        read("console") + &read("qemu.log")
    }
}

impl Inside for Vm {
    fn output(&self, script: &str) -> Output {
        (&self.port).write_all(format!("{}\n{script}", script.len()).as_bytes()).unwrap();
        let mut port = BufReader::new(&self.port);
        let line = self.line(&mut port);
        let numbers: Vec<i32> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [status, out, err] = numbers[..] else {
            panic!("expected an answer to {script}, got {line}; the console:\n{}", self.console())
        };
        let mut hear = |length: i32| {
            let mut bytes = vec![0; length as usize];
            port.read_exact(&mut bytes).unwrap();
            bytes
        };
        let (stdout, stderr) = (hear(out), hear(err));
        // As wait(2) has it; Python tells a signal as a negative number.
        let status = ExitStatus::from_raw(if status < 0 { -status } else { status << 8 });
        Output { status, stdout, stderr }
    }

    fn reboot(&mut self) {
        let script = "systemctl reboot";
        (&self.port).write_all(format!("{}\n{script}", script.len()).as_bytes()).unwrap();
        self.wait_for_boot();
        wait_until("the machine to be up again", || {
            self.output("systemctl is-active --quiet basic.target").status.success()
        });
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// What the machine has beside Debian's packages. Units that Debian enables are not started: the tests bring their own.
fn prepare_root(root: &Path) {
    let units = root.join("etc/systemd/system");
    for entry in fs::read_dir(&units).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "wants") {
            fs::remove_dir_all(path).unwrap();
        }
    }
    let arguments: String = ENVIRONMENT.iter().map(|setting| format!(" {setting}")).collect();
    let unit = format!("{SHELL_UNIT}{}{arguments}\nRestart=always\nRestartSec=100ms\n", script_limit());
    fs::write(units.join("cai-test-shell.service"), unit).unwrap();
}

/// What a container gets bound to /mnt.
fn prepare_mnt(mnt: &Path, binaries: &Path, packages: &Path) {
    for name in ["binaries", "libraries", "packages"] {
        fs::create_dir_all(mnt.join(name)).unwrap();
    }
    fs::write(mnt.join("guest.py"), SHELL).unwrap();
    // Without what is for debuggers: an emulated machine reads its disk slowly.
    run(Command::new("strip")
        .arg("-o")
        .arg(mnt.join("binaries/cai-sandbox"))
        .arg(binaries.join("cai-sandbox")));
    let listed = run(Command::new("ldd").arg(binaries.join("cai-sandbox")));
    // `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x...)`, and the loader without an arrow.
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        let library = Path::new(library);
        fs::copy(library, mnt.join("libraries").join(library.file_name().unwrap())).unwrap();
    }
    run(Command::new("cp").arg("-r").arg(packages.join(".")).arg(mnt.join("packages")));
}

/// An ext4 file system with what is in `directory`, of at most `size`.
fn make_disk(directory: &Path, image: &Path, size: &str) {
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).args([directory, image]).arg(size));
}

/// The one file in /boot whose name begins so.
fn of_boot(root: &Path, prefix: &str) -> PathBuf {
    let names = fs::read_dir(root.join("boot")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> =
        names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix)).collect();
    assert_eq!(found.len(), 1, "{prefix}* in {}: {found:?}", root.display());
    found.remove(0)
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
