//! Claim: a daemon that was taken over gets no more out of the helper than its verbs: whatever it asks in whatever order, the state is
//! what it should be, nobody else's mount is touched, nothing hangs beyond its end, and the journal says what was done. Needs root and
//! /dev/fuse.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/root_helper.rs"]
mod root_helper;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use cai::helper::channel;
use cai::helper::protocol::{Reply, Request};
use cai::host::mounts::lasting_id_behind;
use common::wait_until;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proptest::prelude::*;
use root_helper::{Line, Machine, program};

// ---- Any order ------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mounted {
    Nothing,
    Fuse,
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Private {
    None,
    Made,
    Published,
    Gone,
}

/// What a session is supposed to be like.
#[derive(Debug, Clone, Copy)]
struct Model {
    mounted: Mounted,
    memory: Private,
}

impl Model {
    /// What is answered: `None` for done, or the code of a refusal.
    fn ask(&mut self, request: Request) -> Option<&'static str> {
        let free = self.mounted == Mounted::Nothing;
        match request {
            Request::Mount if free => self.mounted = Mounted::Fuse,
            Request::Mount => return Some("mount-point.busy"),
            Request::Readahead if self.mounted == Mounted::Fuse => {}
            Request::Readahead => return Some("readahead.failed"),
            Request::Unmount => {
                if self.memory == Private::Published {
                    self.memory = Private::Gone;
                }
                self.mounted = Mounted::Nothing;
            }
            Request::Memory if self.memory == Private::None => self.memory = Private::Made,
            Request::Memory => return Some("memory.failed"),
            Request::Publish if self.memory != Private::Made => return Some("memory.publish"),
            Request::Publish if !free => return Some("mount-point.busy"),
            Request::Publish => {
                self.memory = Private::Published;
                self.mounted = Mounted::Memory;
            }
            Request::Register | Request::Unregister { .. } => return Some("memory.register"),
            Request::TsmQuote { .. } => return Some("tdx.no-tsm"),
            Request::TdxReport { .. } => return Some("tdx.no-device"),
            Request::Gate => return Some("gate.none"),
            _ => {}
        }
        None
    }
}

/// Those whose answer depends on no library of the machine.
fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        3 => Just(Request::Mount),
        3 => Just(Request::Unmount),
        3 => Just(Request::Publish),
        2 => Just(Request::Memory),
        1 => Just(Request::Readahead),
        1 => Just(Request::Register),
        1 => any::<u32>().prop_map(|id| Request::Unregister { id }),
        1 => Just(Request::EventLogs),
        1 => Just(Request::TsmQuote { report_data: [0; 64] }),
        1 => Just(Request::TdxReport { report_data: [0; 64] }),
        1 => Just(Request::Gate),
        1 => Just(Request::GpuNotReady),
    ]
}

#[test]
fn any_sequence_of_verbs_leaves_the_state_it_should_and_nothing_behind() {
    let Some(machine) = Machine::new() else { return };
    let config = ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let sequences = proptest::collection::vec(requests(), 0..12);
    let outcome = runner.run(&sequences, |sequence| {
        let mut model = Model { mounted: Mounted::Nothing, memory: Private::None };
        let mut line = Line::start_command(
            Command::new(program()).arg("--root").arg(machine.root.path()).stderr(Stdio::null()),
        );
        for request in sequence {
            let expected = model.ask(request);
            let (reply, descriptor) = line.ask_with(request, None);
            match reply {
                Reply::Refused { code, .. } => {
                    prop_assert_eq!(Some(code.as_str()), expected, "{:?}", request)
                }
                _ => prop_assert_eq!(None, expected, "{:?}", request),
            }
            let gives = matches!(request, Request::Mount | Request::Memory | Request::EventLogs);
            prop_assert_eq!(descriptor.is_some(), gives && expected.is_none(), "{:?}", request);
            prop_assert_eq!(
                machine.mounts(),
                usize::from(model.mounted != Mounted::Nothing),
                "{:?}",
                request
            );
        }
        line.hang_up();
        prop_assert!(line.child.wait().unwrap().success());
        prop_assert_eq!(machine.mounts(), 0);
        Ok(())
    });
    outcome.unwrap();
}

// ---- Nobody else's mount ----------------------------------------------------------------------------------------------

/// A bind of the directory onto itself that shares nothing, so that mounts in it can be moved; gone when dropped.
struct Alone<'a>(&'a Path);

impl<'a> Alone<'a> {
    fn new(directory: &'a Path) -> Self {
        let none = None::<&str>;
        mount(Some(directory), directory, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, directory, none, MsFlags::MS_PRIVATE, none).unwrap();
        Alone(directory)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        umount2(self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn point_of_the_daemon_is_refused_where_it_could_exchange_it() {
    let Some(machine) = Machine::new() else { return };
    let parent = machine.root.path().join("tmp");
    fs::create_dir_all(machine.point()).unwrap();
    let daemon = cai::host::User::find("cai").unwrap().unwrap().uid.as_raw();
    std::os::unix::fs::chown(machine.point(), Some(daemon), None).unwrap();
    for (mode, request) in [(0o1777, Request::Mount), (0o1775, Request::Publish)] {
        fs::set_permissions(&parent, fs::Permissions::from_mode(mode)).unwrap();
        let line = machine.line();
        let _memory = line.memory();
        let (code, text) = line.refused(request);
        assert_eq!(code, "mount-point.owner", "{mode:o}");
        assert!(text.ends_with("belongs to cai, which could exchange it in the directory above"), "{text}");
        assert_eq!(machine.mounts(), 0);
    }
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o755)).unwrap();
    machine.line().done(Request::Mount);
}

#[test]
fn mount_that_has_come_to_lie_elsewhere_is_detached_there_and_what_took_its_place_stays() {
    let Some(machine) = Machine::new() else { return };
    let root = machine.root.path();
    let _alone = Alone::new(root);
    fs::create_dir(root.join("elsewhere")).unwrap();
    let none = None::<&str>;
    for request in [Request::Mount, Request::Publish] {
        let line = machine.line();
        let _memory = line.memory();
        let _device = line.done(request);
        let mounts = machine.mounts();
        mount(Some(&machine.point()), &root.join("elsewhere"), none, MsFlags::MS_MOVE, none).unwrap();
        mount(Some("theirs"), &machine.point(), Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let (text, _) = line.done(Request::Unmount);
        assert_eq!(text, format!("detached {}", root.join("elsewhere").display()));
        assert!(machine.mount_line().contains(" - tmpfs theirs "), "somebody else's mount was taken away");
        umount2(&machine.point(), MntFlags::empty()).unwrap();
        assert_eq!(machine.mounts(), mounts - 1);
    }
}

#[test]
fn mount_of_another_helper_that_has_got_the_numbers_of_ours_stays() {
    let (Some(ours), Some(theirs)) = (Machine::new(), Machine::new()) else { return };
    if lasting_id_behind(File::open("/").unwrap()).is_none() {
        println!("skip: before Linux 6.8 nothing tells one from the other");
        return;
    }
    for _ in 0..20 {
        let (line, other) = (ours.line(), theirs.line());
        let (_, device) = line.done(Request::Mount);
        umount2(&ours.point(), MntFlags::MNT_DETACH).unwrap();
        // Now the kernel gives them to the next one.
        drop(device);
        let (_, _device) = other.done(Request::Mount);
        assert_eq!(line.done(Request::Unmount).0, "the mount was detached already");
        assert_eq!(theirs.mounts(), 1, "somebody else's mount was taken away");
    }
}

#[test]
fn mount_of_a_kernel_without_the_new_calls_is_the_same_and_is_detached() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let (_, device) = line.done(Request::Mount);
    let shape = |line: String| {
        // Without ids and device.
        line.split(' ')
            .enumerate()
            .filter(|(at, _)| ![0, 1, 2].contains(at))
            .map(|(_, field)| field.to_owned())
            .collect::<Vec<_>>()
    };
    let by_descriptor = shape(machine.mount_line());
    assert_eq!(by_descriptor[2].split(',').take(4).collect::<Vec<_>>(), ["ro", "nosuid", "nodev", "noexec"]);
    drop((line, device));

    // fsopen is call 430 on every machine; here it answers ENOSYS (38), as before Linux 5.2. The numbers are those of seccomp(2).
    let script = "import ctypes, os, struct, sys\n\
                  code = [(0x20, 0, 0, 0), (0x15, 0, 1, 430), (6, 0, 0, 0x50000 | 38), (6, 0, 0, 0x7fff0000)]\n\
                  code = b''.join(struct.pack('HBBI', *line) for line in code)\n\
                  code = ctypes.create_string_buffer(code, len(code))\n\
                  program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(code)))\n\
                  prctl = ctypes.CDLL(None, use_errno=True).prctl\n\
                  assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()\n\
                  os.execv(sys.argv[1], sys.argv[1:])";
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(program()).arg("--root").arg(machine.root.path());
    let line = Line::start_command(&mut command);
    assert_eq!(
        line.refused(Request::Memory).0,
        "memory.kernel",
        "the kernel has the call: this proves nothing"
    );
    let (_, device) = line.done(Request::Mount);
    assert_eq!(shape(machine.mount_line()), by_descriptor);
    let (text, _) = line.done(Request::Unmount);
    assert_eq!(text, format!("detached {}", machine.point().display()));
    assert_eq!(machine.mounts(), 0);
    drop(device);
}

// ---- Nothing beyond its end -------------------------------------------------------------------------------------------

#[test]
fn device_that_was_sent_back_keeps_no_mount_and_no_helper_alive() {
    let Some(machine) = Machine::new() else { return };
    let mut line = machine.line();
    let (_, device) = line.done(Request::Mount);
    // At once: the mount is not asked for anything, which nobody serves.
    assert_eq!(line.refused(Request::Mount).0, "mount-point.busy");
    let device = device.unwrap();
    // A helper that waits: another line has the mount, and nobody serves it.
    let mut other = machine.line();
    other.send(Request::Mount, None);
    let helper = format!("/proc/{}/syscall", other.child.id());
    let in_fstatfs =
        || fs::read_to_string(&helper).unwrap().starts_with(&format!("{} ", nix::libc::SYS_fstatfs));
    wait_until("the other helper to wait", in_fstatfs);
    // Twice the device, in packets that it will not come to read, an empty one first.
    nix::unistd::write(other.ours(), b"").unwrap();
    other.send(Request::Register, Some(device.as_fd()));
    other.send(Request::EventLogs, Some(device.as_fd()));
    drop(device);
    line.hang_up();
    other.hang_up();
    for line in [&mut line, &mut other] {
        wait_until("the helper to end", || line.child.try_wait().unwrap().is_some());
    }
    assert_eq!(machine.mounts(), 0);
}

#[test]
fn file_of_a_mount_that_nobody_serves_is_refused_without_asking_for_it() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let _memory = line.memory();
    let (_, device) = line.done(Request::Mount);
    let root = File::options().read(true).custom_flags(nix::libc::O_PATH).open(machine.point()).unwrap();
    let (code, text) = line.refused_with(Request::Register, Some(root.as_fd()));
    assert_eq!(
        (code.as_str(), text.contains("not in the private memory")),
        ("memory.register", true),
        "{text}"
    );
    drop(device);
}

// ---- What it runs with, and what it says ------------------------------------------------------------------------------

/// Capability sets and the like of a process, as `/proc/PID/status` has them.
fn status(pid: u32) -> BTreeMap<String, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field =
        |line: &str| line.split_once(":\t").map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    status.lines().filter_map(field).collect()
}

#[test]
fn helper_that_root_started_has_its_units_bounds_and_a_vendors_library_none_of_them() {
    let Some(machine) = Machine::new() else { return };
    // Opening a pipe that nobody writes to takes as long as a driver that hangs.
    let library = machine.root.path().join("usr/lib64/libtdx_attest.so.1");
    fs::create_dir_all(library.parent().unwrap()).unwrap();
    nix::unistd::mkfifo(&library, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut line = machine.line();
    line.done(Request::EventLogs);
    let helper = status(line.child.id());
    // CHOWN 0, DAC_OVERRIDE 1, FOWNER 3, NET_ADMIN 12, SYS_ADMIN 21.
    let five = format!("{:016x}", 1 | 1 << 1 | 1 << 3 | 1 << 12 | 1 << 21);
    let none = "0000000000000000";
    assert_eq!([&helper["CapPrm"], &helper["CapEff"], &helper["CapInh"]], [five.as_str(), &five, none]);
    assert_eq!(helper["NoNewPrivs"], "1");

    line.send(Request::LibraryQuote { report_data: [0; 64] }, None);
    let pid = line.child.id();
    let children = format!("/proc/{pid}/task/{pid}/children");
    let child = || fs::read_to_string(&children).unwrap().trim().parse::<u32>().ok();
    wait_until("the child to drop its capabilities", || {
        child().is_some_and(|child| status(child)["CapPrm"] == none)
    });
    let found = status(child().unwrap());
    assert_eq!([&found["CapEff"], &found["CapInh"], &found["CapAmb"]], [none; 3]);
    line.hang_up();
    let open = || File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&library).is_ok();
    wait_until("the child to open the library", open);
    line.child.wait().unwrap();
}

#[test]
fn journal_has_one_line_for_each_act_and_nothing_that_a_packet_could_forge() {
    let Some(machine) = Machine::new() else { return };
    let root = machine.root.path();
    let mut line =
        Line::start_command(Command::new(program()).arg("--root").arg(root).stderr(Stdio::piped()));
    for request in [Request::Mount, Request::Publish, Request::Unmount] {
        line.ask_with(request, None);
    }
    let forged = br#"{"verb":"x\n<0>cai-helper: gpu-ready: the GPUs are ready\u001b[2J"}"#;
    channel::send(line.ours(), forged, None).unwrap();
    let mut said = String::new();
    line.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(line.child.wait().unwrap().code(), Some(78));
    let lines: Vec<&str> = said.lines().collect();
    let point = machine.point();
    let point = point.display();
    assert_eq!(lines[0], format!("cai-helper: mount: mounted at {point}"));
    assert_eq!(
        lines[1],
        "cai-helper: publish: refused [memory.publish]: this connection has no private memory file system"
    );
    assert_eq!(lines[2], format!("cai-helper: unmount: detached {point}"));
    assert!(
        lines[3].starts_with("cai-helper: a request that is none: unknown variant `x <0>cai-helper: gpu"),
        "{said}"
    );
    assert!(lines.len() == 4 && !said.contains('\x1b'), "{said}");
}

#[test]
fn refusal_about_the_longest_path_fits_a_packet() {
    let Some(machine) = Machine::new() else { return };
    let mut point = machine.root.path().to_owned();
    while point.as_os_str().len() < 3700 {
        point.push("\u{1}".repeat(200));
    }
    fs::create_dir_all(point.parent().unwrap()).unwrap();
    fs::write(&point, "").unwrap();
    let arguments = ["--mount-point", point.to_str().unwrap(), "--memory-bytes", "0", "--readahead-kib", "0"];
    let line = Line::start(&arguments);
    let (code, text) = line.refused(Request::Mount);
    assert_eq!((code.as_str(), text.ends_with('…')), ("mount-point.not-a-directory", true), "{text}");
    assert_eq!(fs::metadata(&point).unwrap().size(), 0);
}
