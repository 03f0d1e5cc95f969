//! `cai-helper` does what the configuration says and nothing a request says; it refuses a mount point somebody else could
//! have prepared; it leaves no dead mount. Needs root and /dev/fuse.
#![cfg(feature = "sandbox")]

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cai::error::Fault;
use cai::helper::protocol::Request;
use cai::helper::{Helper, HelperError, channel};
use common::{available, minimal_config, mounts_below, wait_until};

/// A root directory with a configuration, and a line to a helper that reads it.
struct Fixture {
    root: tempfile::TempDir,
    helper: Helper,
}

impl Fixture {
    /// `None` (with the reason printed) where the machine lacks what the test needs.
    fn new() -> Option<Self> {
        let root = nix::unistd::Uid::effective().is_root();
        if !available("root", root, "needs root")
            || !available("fuse", Path::new("/dev/fuse").exists(), "no /dev/fuse")
        {
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        minimal_config(root.path());
        let helper = Helper::start_program(program(), root.path()).unwrap();
        Some(Fixture { root, helper })
    }

    fn point(&self) -> PathBuf {
        self.root.path().join("tmp/model")
    }

    fn refusal(&self, verb: Request) -> (&'static str, String) {
        match self.helper.ask(verb) {
            Err(HelperError::Refused { code, text, .. }) => (code, text),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    fn mounts(&self) -> usize {
        mounts_below(self.root.path())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A failed test may leave a mount that would keep the directory from being removed.
        while self.mounts() > 0
            && nix::mount::umount2(&self.point(), nix::mount::MntFlags::MNT_DETACH).is_ok()
        {}
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cai-helper"))
}

#[test]
fn mount_at_a_missing_point_creates_it_and_hands_the_device_over() {
    let Some(fixture) = Fixture::new() else { return };
    let (text, device) = fixture.helper.ask(Request::Mount).unwrap();
    assert_eq!(text, format!("mounted at {}", fixture.point().display()));
    let device = fs::File::from(device.unwrap());
    // Character device 10:229 is /dev/fuse (Documentation/admin-guide/devices.txt).
    assert_eq!(device.metadata().unwrap().rdev(), nix::sys::stat::makedev(10, 229));
    assert_eq!(fixture.mounts(), 1);
    let (text, none) = fixture.helper.ask(Request::Unmount).unwrap();
    assert_eq!(text, format!("detached {}", fixture.point().display()));
    assert!(none.is_none());
    assert_eq!(fixture.mounts(), 0);
    assert_eq!(fs::metadata(fixture.point()).unwrap().uid(), 0);
}

#[test]
fn readahead_is_set_to_the_configured_value_on_our_mount_only() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(fixture.refusal(Request::Readahead).0, "readahead.failed");
    let (_, device) = fixture.helper.ask(Request::Mount).unwrap();
    let (text, _) = fixture.helper.ask(Request::Readahead).unwrap();
    assert_eq!(text, "read-ahead of the mount is 4096 KiB");
    drop(device);
}

#[test]
fn mount_point_that_is_a_symlink_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all(fixture.root.path().join("tmp")).unwrap();
    fs::create_dir(fixture.root.path().join("elsewhere")).unwrap();
    symlink(fixture.root.path().join("elsewhere"), fixture.point()).unwrap();
    let (code, text) = fixture.refusal(Request::Mount);
    assert_eq!(
        (code, text),
        ("mount-point.symlink", format!("{} is a symbolic link", fixture.point().display()))
    );
    assert_eq!(fixture.mounts(), 0);
}

#[test]
fn mount_point_with_a_symlink_above_it_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir(fixture.root.path().join("elsewhere")).unwrap();
    symlink(fixture.root.path().join("elsewhere"), fixture.root.path().join("tmp")).unwrap();
    assert_eq!(fixture.refusal(Request::Mount).0, "mount-point.symlink");
    assert_eq!(
        fs::read_dir(fixture.root.path().join("elsewhere")).unwrap().count(),
        0,
        "created through the link"
    );
}

#[test]
fn mount_point_that_is_not_empty_is_refused_naming_what_is_there() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all(fixture.point()).unwrap();
    fs::write(fixture.point().join("precious"), "data").unwrap();
    let (code, text) = fixture.refusal(Request::Mount);
    assert_eq!(code, "mount-point.not-empty");
    assert_eq!(text, format!("{} is not empty: it holds precious", fixture.point().display()));
    assert_eq!(fs::read_to_string(fixture.point().join("precious")).unwrap(), "data");
}

#[test]
fn mount_point_of_another_user_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all(fixture.point()).unwrap();
    std::os::unix::fs::chown(fixture.point(), Some(65534), None).unwrap();
    let (code, text) = fixture.refusal(Request::Mount);
    assert_eq!(code, "mount-point.owner");
    assert!(text.ends_with("belongs to uid 65534, expected root or cai"), "{text}");
}

#[test]
fn mount_point_that_is_a_file_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all(fixture.root.path().join("tmp")).unwrap();
    fs::write(fixture.point(), "").unwrap();
    assert_eq!(fixture.refusal(Request::Mount).0, "mount-point.not-a-directory");
}

#[test]
fn point_with_a_living_mount_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all(fixture.point()).unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(fixture.point()).status().unwrap();
    assert!(status.success());
    let (code, text) = fixture.refusal(Request::Mount);
    assert_eq!(code, "mount-point.busy");
    assert!(text.ends_with("already has a tmpfs mount of tmpfs"), "{text}");
    assert_eq!(fixture.mounts(), 1, "somebody else's mount was touched");
}

#[test]
fn dead_mount_left_by_a_crash_is_repaired_by_the_next_mount() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all(fixture.point()).unwrap();
    // A daemon and a helper that both died: a mount whose device nobody holds.
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0", std::os::fd::AsRawFd::as_raw_fd(&device));
    let flags = nix::mount::MsFlags::MS_RDONLY;
    nix::mount::mount(Some("cai"), &fixture.point(), Some("fuse.cai"), flags, Some(options.as_str()))
        .unwrap();
    drop(device);
    assert_eq!(fs::metadata(fixture.point()).unwrap_err().raw_os_error(), Some(nix::libc::ENOTCONN));

    let (text, _device) = fixture.helper.ask(Request::Mount).unwrap();
    assert!(text.starts_with("detached a dead mount left by a crash; mounted at "), "{text}");
    assert_eq!(fixture.mounts(), 1);
}

#[test]
fn closed_line_detaches_the_mount() {
    let Some(mut fixture) = Fixture::new() else { return };
    let (_, device) = fixture.helper.ask(Request::Mount).unwrap();
    assert_eq!(fixture.mounts(), 1);
    let other = tempfile::tempdir().unwrap();
    minimal_config(other.path());
    // Replacing the helper drops the line, as the daemon's death does.
    fixture.helper = Helper::start_program(program(), other.path()).unwrap();
    drop(device);
    wait_until("the helper to detach the mount", || fixture.mounts() == 0);
}

#[test]
fn garbage_on_the_line_ends_the_helper_without_an_act() {
    let Some(fixture) = Fixture::new() else { return };
    for message in
        [&b"not json"[..], br#"{"verb":"mount","point":"/etc"}"#, br#"{"verb":"chown"}"#, &[0xff; 4096]]
    {
        let (ours, theirs) = channel::pair().unwrap();
        let mut child = Command::new(program())
            .arg("--root")
            .arg(fixture.root.path())
            .stdin(Stdio::from(theirs))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        channel::send(ours.as_fd(), message, None).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(78));
    }
    assert_eq!(fixture.mounts(), 0);
}

#[test]
fn helper_of_an_unprivileged_user_refuses_to_start() {
    if !available("root", nix::unistd::Uid::effective().is_root(), "needs root to become somebody else") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("cai-helper");
    fs::copy(program(), &copy).unwrap();
    let (_ours, theirs) = channel::pair().unwrap();
    let output = std::os::unix::process::CommandExt::uid(&mut Command::new(copy), 65534)
        .stdin(Stdio::from(theirs))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "cai-helper: must run as root\n");
}

#[test]
fn refusal_is_a_configuration_fault_with_the_helpers_hint() {
    let Some(fixture) = Fixture::new() else { return };
    fs::create_dir_all(fixture.point()).unwrap();
    fs::write(fixture.point().join("x"), "").unwrap();
    let error = fixture.helper.ask(Request::Mount).unwrap_err();
    assert_eq!(error.class().exit_code(), 78);
    assert_eq!(error.code(), "mount-point.not-empty");
    assert_eq!(error.hint(), "empty it, or choose another MODEL_MOUNT_POINT");
}

#[test]
fn parent_that_another_user_may_write_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    let parent = fixture.root.path().join("tmp");
    fs::create_dir_all(&parent).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(fixture.refusal(Request::Mount).0, "mount-point.parent");
    std::os::unix::fs::chown(&parent, Some(65534), None).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(fixture.refusal(Request::Mount).0, "mount-point.parent");
    // As /tmp is: anybody may add names, nobody may exchange root's.
    std::os::unix::fs::chown(&parent, Some(0), None).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(fixture.helper.ask(Request::Mount).is_ok());
}

/// A helper as root starts it, with the configuration below `root`; its exit status and what it said.
fn run_helper(root: &Path, stdin: Stdio) -> (Option<i32>, String) {
    let output = Command::new(program()).arg("--root").arg(root).stdin(stdin).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn configuration_that_is_not_roots_alone_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    let root = fixture.root.path();
    for (path, uid, mode) in [
        ("etc/cai/cai.env", 65534, 0o600),
        ("etc/cai/cai.env", 0, 0o666),
        ("etc/cai/cai.toml", 0, 0o660),
        ("etc/cai", 65534, 0o755),
    ] {
        let path = root.join(path);
        let before = fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::chown(&path, Some(uid), None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let (_ours, theirs) = channel::pair().unwrap();
        let (status, said) = run_helper(root, Stdio::from(theirs));
        assert_eq!(status, Some(78), "{}", path.display());
        assert!(said.contains("must belong to root and be writable by root alone"), "{said}");
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        fs::set_permissions(&path, before).unwrap();
    }
}

#[test]
fn configuration_without_a_model_refuses_the_mount_and_keeps_the_line() {
    let Some(fixture) = Fixture::new() else { return };
    fs::remove_file(fixture.root.path().join("etc/cai/cai.env")).unwrap();
    let helper = Helper::start_program(program(), fixture.root.path()).unwrap();
    for verb in [Request::Mount, Request::Readahead] {
        let error = helper.ask(verb).unwrap_err();
        assert_eq!((error.code(), error.class().exit_code()), ("config.invalid", 78));
        assert!(error.to_string().contains("etc/cai/cai.env: does not exist"), "{error}");
    }
    assert_eq!(helper.ask(Request::Unmount).unwrap().0, "nothing was mounted");
    assert_eq!(fixture.mounts(), 0);
}

#[test]
fn peer_that_is_neither_root_nor_cai_is_refused() {
    let Some(fixture) = Fixture::new() else { return };
    fs::set_permissions(fixture.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = fixture.root.path().join("socket");
    let script = "import socket,sys,os\n\
                  l=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); l.bind(sys.argv[1]); os.chmod(sys.argv[1],0o666); l.listen()\n\
                  if os.fork()==0:\n  os.setuid(65534); c=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); c.connect(sys.argv[1]); \
                  c.recv(1); os._exit(0)\n\
                  a,_=l.accept(); os.dup2(a.fileno(),0); os.execv(sys.argv[2],[sys.argv[2],'--root',sys.argv[3]])";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .arg(program())
        .arg(fixture.root.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("peer has uid 65534"), "{said}");
}

#[test]
fn missing_fuse_device_is_explained() {
    let Some(fixture) = Fixture::new() else { return };
    // A mount namespace of its own whose /dev has nothing in it.
    let script = "mount -t tmpfs tmpfs /dev && exec \"$0\" --root \"$1\"";
    let (ours, theirs) = channel::pair().unwrap();
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(program())
        .arg(fixture.root.path())
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    channel::send(ours.as_fd(), &Request::Mount.to_packet().unwrap(), None).unwrap();
    let (answer, _) = channel::receive(ours.as_fd()).unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains(r#""code":"fuse.device""#) && answer.contains("modprobe fuse"), "{answer}");
    drop(ours);
    assert!(child.wait().unwrap().success());
}

#[test]
fn something_mounted_over_the_model_is_reported_and_not_touched() {
    let Some(fixture) = Fixture::new() else { return };
    let (_, device) = fixture.helper.ask(Request::Mount).unwrap();
    let mount = |point: &Path| {
        // Not mount(8), which asks the model's file system: nobody serves it here.
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("theirs"), point, Some("tmpfs"), flags, None::<&str>).unwrap();
    };
    mount(&fixture.point());
    let (code, text) = fixture.refusal(Request::Unmount);
    assert_eq!(code, "mount-point.busy");
    assert!(text.starts_with("something else is mounted over the model"), "{text}");
    assert_eq!(fixture.mounts(), 2);
    nix::mount::umount(&fixture.point()).unwrap();
    // Over the directory above, and there at the same place.
    let parent = fixture.root.path().join("tmp");
    mount(&parent);
    fs::create_dir(fixture.point()).unwrap();
    mount(&fixture.point());
    assert_eq!(fixture.refusal(Request::Unmount).0, "mount-point.busy");
    assert_eq!(fixture.mounts(), 3);
    for point in [fixture.point(), parent] {
        nix::mount::umount(&point).unwrap();
    }
    let (text, _) = fixture.helper.ask(Request::Unmount).unwrap();
    assert_eq!(text, format!("detached {}", fixture.point().display()));
    drop(device);
}
