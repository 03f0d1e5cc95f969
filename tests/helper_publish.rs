//! The helper publishes a filled memory file system: sealed for everybody, at the configured point, gone with its session; and
//! it works for root's own mount without a configuration. Needs root and /dev/fuse.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/root_helper.rs"]
mod root_helper;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use cai::error::Fault;
use cai::helper::protocol::Request;
use cai::helper::{Helper, HelperError, channel};
use common::wait_until;
use root_helper::{Line, Machine, Memory, program};

/// A line whose memory has a model in it: `weights`, a link to it, and `a/b/config.json`.
fn filled(machine: &Machine) -> (Line, Memory) {
    let line = machine.line();
    let memory = line.memory();
    fill(&memory);
    (line, memory)
}

fn fill(memory: &Memory) {
    memory.write("weights", b"float16");
    fs::set_permissions(memory.at("weights"), fs::Permissions::from_mode(0o6777)).unwrap();
    symlink("weights", memory.at("link")).unwrap();
    fs::create_dir_all(memory.at("a/b")).unwrap();
    memory.write("a/b/config.json", b"{}");
}

fn describe(path: &Path) -> (u32, u32, u32) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.mode(), stat.uid(), stat.gid())
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

// ---- What is published ----------------------------------------------------------------------------------------------

#[test]
fn published_model_has_the_configured_owner_and_modes_and_shows_its_options() {
    let Some(machine) = Machine::new() else { return };
    let (line, _memory) = filled(&machine);
    assert_eq!(machine.mounts(), 0);
    let point = machine.point();
    let (text, none) = line.done(Request::Publish);
    assert_eq!(text, format!("5 entries in memory, mounted at {}", point.display()));
    assert!(none.is_none());
    for (name, mode) in [
        ("", 0o040_550),
        ("a", 0o040_550),
        ("a/b", 0o040_550),
        ("a/b/config.json", 0o100_440),
        ("weights", 0o100_440),
        ("link", 0o120_777),
    ] {
        assert_eq!(describe(&point.join(name)), (mode, 1234, 2345), "{name}");
    }
    assert_eq!(fs::read(point.join("link")).unwrap(), b"float16");
    let mounted = machine.mount_line();
    assert!(mounted.contains(" ro,nosuid,nodev,noexec"), "{mounted}");
    assert!(mounted.contains(" - tmpfs cai ro,"), "{mounted}");
    assert!(mounted.contains("noswap") || kernel_lacks_noswap(), "{mounted}");
    assert!(
        mounted.contains("huge=within_size") || !Path::new("/sys/kernel/mm/transparent_hugepage").exists()
    );
    assert_eq!(machine.mounts(), 1);
}

/// `noswap` came with Linux 6.4.
fn kernel_lacks_noswap() -> bool {
    let name = nix::sys::utsname::uname().unwrap();
    let mut numbers =
        name.release().to_str().unwrap().split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) < (6, 4)
}

#[test]
fn published_model_is_written_by_nobody_not_even_root_or_through_the_daemons_descriptor() {
    let Some(machine) = Machine::new() else { return };
    let (line, memory) = filled(&machine);
    line.done(Request::Publish);
    for root in [machine.point(), memory.at("")] {
        let at = |name: &str| root.join(name);
        let results = [
            errno(File::options().write(true).open(at("weights"))),
            errno(File::create(at("new"))),
            errno(fs::create_dir(at("a/new"))),
            errno(fs::remove_file(at("weights"))),
            errno(fs::rename(at("weights"), at("other"))),
            errno(symlink("x", at("new"))),
            errno(fs::set_permissions(at("weights"), fs::Permissions::from_mode(0o777))),
            errno(std::os::unix::fs::chown(at("weights"), Some(0), None)),
        ];
        assert_eq!(results, [Some(nix::libc::EROFS); 8], "{}", root.display());
    }
    // Nor by mounting the same thing writable somewhere else.
    let elsewhere = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&machine.point()), elsewhere.path(), None::<&str>, flags, None::<&str>).unwrap();
    let remount = flags | nix::mount::MsFlags::MS_REMOUNT;
    nix::mount::mount(None::<&str>, elsewhere.path(), None::<&str>, remount, None::<&str>).unwrap();
    let written = errno(File::create(elsewhere.path().join("new")));
    nix::mount::umount(elsewhere.path()).unwrap();
    assert_eq!(written, Some(nix::libc::EROFS));
}

#[test]
fn published_model_is_read_by_the_group_and_by_no_other() {
    let Some(machine) = Machine::new() else { return };
    for directory in [machine.root.path(), &machine.root.path().join("tmp")] {
        fs::create_dir_all(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (line, _memory) = filled(&machine);
    line.done(Request::Publish);
    let reads = |gid: &str| {
        let output = Command::new("setpriv")
            .args(["--reuid=4321", &format!("--regid={gid}"), "--clear-groups", "cat"])
            .arg(machine.point().join("link"))
            .output();
        output.unwrap().stdout == b"float16"
    };
    assert!(reads("2345"));
    assert!(!reads("4321"));
}

#[test]
fn empty_memory_is_published() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let memory = line.memory();
    assert!(line.done(Request::Publish).0.starts_with("0 entries"));
    assert_eq!(fs::read_dir(machine.point()).unwrap().count(), 0);
    drop(memory);
}

// ---- What is not ----------------------------------------------------------------------------------------------------

#[test]
fn memory_that_is_still_written_to_is_refused_and_published_once_it_is_closed() {
    let Some(machine) = Machine::new() else { return };
    let (line, memory) = filled(&machine);
    let mut writer = File::options().append(true).open(memory.at("weights")).unwrap();
    let (code, text) = line.refused(Request::Publish);
    assert_eq!(code, "memory.publish");
    assert!(text.contains("still open or mapped for writing"), "{text}");
    assert_eq!(machine.mounts(), 0);
    writer.write_all(b"!").unwrap();
    drop(writer);
    line.done(Request::Publish);
    assert_eq!(fs::read(machine.point().join("weights")).unwrap(), b"float16!");
}

#[test]
fn unnamed_file_that_is_open_is_refused() {
    let Some(machine) = Machine::new() else { return };
    let (line, memory) = filled(&machine);
    let held = File::open(memory.at("weights")).unwrap();
    fs::remove_file(memory.at("weights")).unwrap();
    assert!(line.refused(Request::Publish).1.contains("open without a name"));
    assert_eq!(machine.mounts(), 0);
    drop(held);
    line.done(Request::Publish);
}

#[test]
fn pipe_in_memory_is_refused_by_name() {
    let Some(machine) = Machine::new() else { return };
    let (line, memory) = filled(&machine);
    nix::unistd::mkfifo(&memory.at("a/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (code, text) = line.refused(Request::Publish);
    assert_eq!(code, "memory.publish");
    assert!(text.starts_with("a/pipe has file type 010000; expected a directory"), "{text}");
    assert_eq!(machine.mounts(), 0);
    fs::remove_file(memory.at("a/pipe")).unwrap();
    line.done(Request::Publish);
}

#[test]
fn point_that_cannot_be_mounted_over_is_refused_before_memory_is_touched() {
    let Some(machine) = Machine::new() else { return };
    fs::create_dir_all(machine.point()).unwrap();
    fs::write(machine.point().join("precious"), "data").unwrap();
    let (line, memory) = filled(&machine);
    let before = describe(&memory.at("weights"));
    assert_eq!(line.refused(Request::Publish).0, "mount-point.not-empty");
    assert_eq!(describe(&memory.at("weights")), before);
    memory.write("more", b"x");
    fs::remove_file(machine.point().join("precious")).unwrap();
    line.done(Request::Publish);
    assert!(machine.point().join("more").exists());
}

#[test]
fn publishing_needs_memory_and_happens_once() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    assert_eq!(line.refused(Request::Publish).0, "memory.publish");
    let memory = line.memory();
    fill(&memory);
    line.done(Request::Publish);
    let (code, text) = line.refused(Request::Publish);
    assert_eq!((code.as_str(), text.contains("already")), ("memory.publish", true), "{text}");
    assert_eq!(line.refused(Request::Mount).0, "mount-point.busy");
    assert_eq!(machine.mounts(), 1);
    assert_eq!(line.done(Request::Unmount).0, format!("detached {}", machine.point().display()));
    assert_eq!(machine.mounts(), 0);
    assert_eq!(line.refused(Request::Publish).0, "memory.publish");
    assert_eq!(line.refused(Request::Memory).0, "memory.failed");
    line.done(Request::Mount);
}

// ---- The end, and what a crash leaves -------------------------------------------------------------------------------

#[test]
fn closed_line_detaches_the_published_model_and_readers_keep_what_they_opened() {
    let Some(machine) = Machine::new() else { return };
    let (mut line, memory) = filled(&machine);
    line.done(Request::Publish);
    let held = File::open(machine.point().join("weights")).unwrap();
    line.hang_up();
    assert!(line.child.wait().unwrap().success());
    assert_eq!(machine.mounts(), 0);
    let mut bytes = [0; 7];
    held.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"float16");
    drop(memory);
}

#[test]
fn model_left_by_a_killed_helper_is_detached_by_the_next_one() {
    let Some(machine) = Machine::new() else { return };
    for next in [Request::Publish, Request::Mount] {
        let (mut line, memory) = filled(&machine);
        line.done(Request::Publish);
        line.kill();
        assert_eq!(machine.mounts(), 1);
        // The daemon may live on for a while, with its own descriptor.
        let (line, _memory) = filled(&machine);
        let (text, device) = line.done(next);
        assert!(text.starts_with("detached a dead mount left by a crash; "), "{text}");
        assert_eq!(machine.mounts(), 1);
        drop((memory, device));
    }
}

#[test]
fn model_of_a_living_session_is_not_touched() {
    let Some(machine) = Machine::new() else { return };
    let (first, _memory) = filled(&machine);
    first.done(Request::Publish);
    let (second, _others) = filled(&machine);
    for request in [Request::Publish, Request::Mount] {
        let (code, text) = second.refused(request);
        assert_eq!(code, "mount-point.busy");
        assert!(text.ends_with("already has a tmpfs mount of cai"), "{text}");
    }
    drop(second);
    assert_eq!(fs::read(machine.point().join("weights")).unwrap(), b"float16");
    drop(first);
    assert_eq!(machine.mounts(), 0);
}

#[test]
fn tmpfs_of_somebody_else_is_not_touched_whatever_its_name() {
    let Some(machine) = Machine::new() else { return };
    fs::create_dir_all(machine.point()).unwrap();
    for options in ["rw", "ro", "rw,nosuid,nodev,noexec"] {
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "cai"]).arg(machine.point()).status();
        assert!(status.unwrap().success());
        let (line, _memory) = filled(&machine);
        assert_eq!(line.refused(Request::Publish).0, "mount-point.busy", "{options}");
        drop(line);
        assert_eq!(machine.mounts(), 1, "{options}");
        nix::mount::umount(&machine.point()).unwrap();
    }
}

#[test]
fn left_model_with_shared_locks_of_readers_is_still_detached() {
    let Some(machine) = Machine::new() else { return };
    let (mut line, _memory) = filled(&machine);
    line.done(Request::Publish);
    line.kill();
    let reader = File::open(machine.point()).unwrap();
    reader.try_lock_shared().unwrap();
    let (line, _memory) = filled(&machine);
    line.done(Request::Publish);
    assert_eq!(machine.mounts(), 1);
}

// ---- Root's own mount -----------------------------------------------------------------------------------------------

#[test]
fn owners_helper_publishes_for_root_alone_without_a_configuration() {
    let Some(machine) = Machine::new() else { return };
    fs::remove_dir_all(machine.root.path().join("etc")).unwrap();
    let helper = Helper::start_program_for_owner(program(), &machine.point(), 32 << 20, 512).unwrap();
    let (text, root) = helper.ask(Request::Memory).unwrap();
    assert!(text.contains("of 33554432 bytes"), "{text}");
    let memory = Memory(root.unwrap().into());
    assert_eq!(describe(&memory.at(".")), (0o040_700, 0, 0));
    fill(&memory);
    helper.ask(Request::Publish).unwrap();
    let at = |name: &str| describe(&machine.point().join(name));
    assert_eq!((at(""), at("a/b")), ((0o040_500, 0, 0), (0o040_500, 0, 0)));
    assert_eq!((at("weights"), at("a/b/config.json")), ((0o100_400, 0, 0), (0o100_400, 0, 0)));
    assert!(machine.mount_line().contains(" ro,nosuid,nodev,noexec"));
    drop(helper);
    wait_until("the helper to detach the mount", || machine.mounts() == 0);
}

#[test]
fn owners_helper_mounts_for_root_alone_and_attests_nothing() {
    let Some(machine) = Machine::new() else { return };
    let helper = Helper::start_program_for_owner(program(), &machine.point(), 0, 512).unwrap();
    let (_, device) = helper.ask(Request::Mount).unwrap();
    let mounted = machine.mount_line();
    assert!(mounted.contains("user_id=0,group_id=0") && !mounted.contains("allow_other"), "{mounted}");
    assert_eq!(helper.ask(Request::Readahead).unwrap().0, "read-ahead of the mount is 512 KiB");
    let refused = |request| match helper.ask(request) {
        Err(HelperError::Refused { code, text, .. }) => (code, text),
        other => panic!("{request:?}: {other:?}"),
    };
    for request in [
        Request::EventLogs,
        Request::TsmQuote { report_data: [0; 64] },
        Request::TdxReport { report_data: [0; 64] },
        Request::LibraryQuote { report_data: [0; 64] },
        Request::GpuEvidence { nonce: [0; 32] },
        Request::GpuReady,
        Request::GpuNotReady,
    ] {
        let (code, text) = refused(request);
        assert_eq!((code, text.contains("mount alone")), ("helper.refused", true), "{request:?}: {text}");
    }
    drop(device);
    helper.ask(Request::Unmount).unwrap();
    assert_eq!(machine.mounts(), 0);
}

#[test]
fn owners_helper_refuses_a_relative_point_and_one_that_others_could_exchange() {
    let Some(machine) = Machine::new() else { return };
    let (_ours, theirs) = channel::pair().unwrap();
    let output = Command::new(program())
        .args(["--mount-point", "tmp/model", "--memory-bytes", "0", "--readahead-kib", "0"])
        .stdin(Stdio::from(theirs))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("usage: "));

    let parent = machine.root.path().join("tmp");
    fs::create_dir_all(&parent).unwrap();
    std::os::unix::fs::chown(&parent, Some(65534), None).unwrap();
    let helper = Helper::start_program_for_owner(program(), &machine.point(), 0, 0).unwrap();
    let error = helper.ask(Request::Mount).unwrap_err();
    assert_eq!(error.code(), "mount-point.parent");
    assert_eq!(error.hint(), "choose a mount point whose parents belong to root");
}

#[test]
fn owners_helper_refuses_a_peer_that_is_not_root() {
    let Some(machine) = Machine::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Not even the daemon's user.
    let user = cai::host::User::find("cai").unwrap().unwrap().uid;
    let script = "import socket,sys,os\n\
                  l=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); l.bind(sys.argv[1]); os.chmod(sys.argv[1],0o666); l.listen()\n\
                  if os.fork()==0:\n  os.setuid(int(sys.argv[2])); c=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET); \
                  c.connect(sys.argv[1]); c.recv(1); os._exit(0)\n\
                  a,_=l.accept(); os.dup2(a.fileno(),0); os.execv(sys.argv[3],sys.argv[3:])";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(directory.path().join("socket"))
        .arg(user.to_string())
        .arg(program())
        .arg("--mount-point")
        .arg(machine.point())
        .args(["--memory-bytes", "0", "--readahead-kib", "0"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains(&format!("peer has uid {user}, expected root")), "{said}");
}
