//! The helper makes a private memory file system for load and ram mode, and lets the kernel read its files, and no others, in
//! place of the mount's. Needs root and /dev/fuse.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/root_helper.rs"]
mod root_helper;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use cai::helper::protocol::Request;
use common::wait_until;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, OpenFlags, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyOpen, SessionACL,
};
use root_helper::{Line, Machine, Memory, SIZE};

/// A field of `/proc/meminfo` in bytes.
fn meminfo(name: &str) -> u64 {
    let table = fs::read_to_string("/proc/meminfo").unwrap();
    let line = table.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn size_of_file_system(memory: &Memory) -> u64 {
    let stat = nix::sys::statvfs::fstatvfs(&memory.0).unwrap();
    stat.blocks() * stat.fragment_size()
}

// ---- The memory file system -----------------------------------------------------------------------------------------

#[test]
fn memory_is_a_tmpfs_of_the_daemon_alone_mounted_nowhere() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let (text, root) = line.done(Request::Memory);
    assert!(text.starts_with("a private memory file system of 67108864 bytes, of "), "{text}");
    assert!(text.contains("noswap"), "{text}");
    let memory = Memory(root.unwrap().into());
    let daemon = cai::host::User::find("cai").unwrap().unwrap();
    let stat = memory.0.metadata().unwrap();
    assert_eq!(stat.mode(), 0o040_700);
    assert_eq!((stat.uid(), stat.gid()), (daemon.uid.as_raw(), daemon.gid.as_raw()));
    assert_eq!(
        nix::sys::statfs::fstatfs(&memory.0).unwrap().filesystem_type(),
        nix::sys::statfs::TMPFS_MAGIC
    );
    assert_eq!(size_of_file_system(&memory), SIZE);
    assert_eq!(nix::sys::statvfs::fstatvfs(&memory.0).unwrap().files(), 1 << 20);
    let flags = nix::sys::statvfs::fstatvfs(&memory.0).unwrap().flags();
    let wanted = nix::sys::statvfs::FsFlags::ST_NOSUID
        | nix::sys::statvfs::FsFlags::ST_NODEV
        | nix::sys::statvfs::FsFlags::ST_NOEXEC;
    assert!(flags.contains(wanted), "{flags:?}");
    // Nothing above it can be reached, and no table shows it.
    assert_eq!(fs::metadata(memory.at("..")).unwrap().ino(), stat.ino());
    let device = format!(" {}:{} ", nix::sys::stat::major(stat.dev()), nix::sys::stat::minor(stat.dev()));
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&device));
}

#[test]
fn memory_can_be_filled_by_the_daemon_and_entered_by_nobody_else() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let memory = line.memory();
    let create = |user: &str, name: &str| {
        let status = Command::new("setpriv")
            .args([
                &format!("--reuid={user}"),
                "--clear-groups",
                "sh",
                "-c",
                "echo x > /proc/self/fd/0/$0",
                name,
            ])
            .stdin(Stdio::from(OwnedFd::from(memory.0.try_clone().unwrap())))
            .stderr(Stdio::null())
            .status();
        status.unwrap().success()
    };
    assert!(create("cai", "by-daemon"));
    assert!(!create("nobody", "by-nobody"));
    assert_eq!(fs::read(memory.at("by-daemon")).unwrap(), b"x\n");
    assert_eq!(fs::read_dir(memory.at("")).unwrap().count(), 1);
    // As load mode writes: a file that never has a name.
    let unnamed =
        File::options().read(true).write(true).custom_flags(nix::libc::O_TMPFILE).open(memory.at("."));
    unnamed.unwrap().write_all(b"x").unwrap();
}

#[test]
fn memory_beyond_its_size_is_refused_and_given_back_when_files_go() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let memory = line.memory();
    let fill = || {
        let mut file = File::create(memory.at("weights")).unwrap();
        let (piece, mut written) = (vec![7; 1 << 20], 0);
        loop {
            match file.write(&piece) {
                Ok(len) => written += len as u64,
                Err(error) => return (written, error.kind()),
            }
        }
    };
    assert_eq!(fill(), (SIZE, ErrorKind::StorageFull));
    fs::remove_file(memory.at("weights")).unwrap();
    assert_eq!(fill(), (SIZE, ErrorKind::StorageFull));
}

#[test]
fn memory_is_of_huge_pages() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let (text, root) = line.done(Request::Memory);
    let shmem = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    if !text.contains("of huge pages") || shmem.is_empty() || shmem.contains("[deny]") {
        println!("skip: this kernel has no transparent huge pages for tmpfs: {text}");
        return;
    }
    let memory = Memory(root.unwrap().into());
    let before = meminfo("ShmemHugePages");
    let mut file = File::create(memory.at("weights")).unwrap();
    for _ in 0..16 {
        file.write_all(&vec![7; 2 << 20]).unwrap();
    }
    // The machine's figure: others may give some back meanwhile, and memory may be in pieces.
    let gained = meminfo("ShmemHugePages").saturating_sub(before);
    assert!(gained >= 16 << 20, "32 MiB were written, {gained} bytes of them to huge pages");
}

#[test]
fn memory_is_given_once_per_line() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let memory = line.memory();
    let (code, text) = line.refused(Request::Memory);
    assert_eq!((code.as_str(), text.contains("already")), ("memory.failed", true), "{text}");
    memory.write("still-usable", b"x");
    assert_eq!(size_of_file_system(&machine.line().memory()), SIZE, "another line has its own");
}

#[test]
fn memory_without_a_configured_size_is_derived_from_the_machines() {
    let Some(machine) = Machine::with_mount("mode = \"ram\"\n") else { return };
    let total = meminfo("MemTotal");
    let wanted = (total - total / 16) / 4096 * 4096;
    assert_eq!(size_of_file_system(&machine.line().memory()), wanted);

    let Some(machine) = Machine::with_mount("mode = \"load\"\n") else { return };
    let near = |size: u64, wanted: u64| size > wanted / 4 * 3 && size < wanted / 4 * 5;
    let size = size_of_file_system(&machine.line().memory());
    assert!(near(size, meminfo("MemAvailable") / 2), "{size}");

    let Some(machine) = Machine::with_mount("mode = \"load\"\nmemory_bytes = \"100TiB\"\n") else { return };
    let size = size_of_file_system(&machine.line().memory());
    assert!(near(size, meminfo("MemAvailable")), "{size} bytes were promised");
}

#[test]
fn memory_needs_a_valid_configuration() {
    let Some(machine) = Machine::new() else { return };
    fs::remove_file(machine.root.path().join("etc/cai/cai.env")).unwrap();
    let line = machine.line();
    assert_eq!(line.refused(Request::Memory).0, "config.invalid");
    assert_eq!(line.refused(Request::Publish).0, "memory.publish");
}

/// Root's own helper where tmpfs refuses `noswap`, as kernels before 6.4 do, and `/proc/swaps` has this content: in a user
/// namespace. `None` (with the reason printed) where there are none.
fn without_noswap(machine: &Machine, swaps: &str) -> Option<Line> {
    let namespaces = ["--user", "--map-root-user", "--mount", "--propagation", "private"];
    let can = Command::new("unshare").args(namespaces).arg("true").stderr(Stdio::null()).status();
    if !can.is_ok_and(|status| status.success()) {
        println!("skip: no user namespaces here");
        return None;
    }
    let table = machine.root.path().join("swaps");
    fs::write(&table, format!("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n{swaps}")).unwrap();
    let script = "mount --bind \"$0\" /proc/swaps && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(namespaces).args(["sh", "-c", script]).arg(table).arg(root_helper::program());
    command.arg("--mount-point").arg(machine.point());
    Some(Line::start_command(command.args(["--memory-bytes", "1048576", "--readahead-kib", "0"])))
}

#[test]
fn memory_that_could_be_swapped_is_refused_naming_the_swap() {
    let Some(machine) = Machine::new() else { return };
    let Some(line) = without_noswap(&machine, "/dev/vda2 partition 1048572 0 -2\n") else { return };
    let (code, text) = line.refused(Request::Memory);
    assert_eq!(code, "memory.swap");
    assert_eq!(text, "the decrypted model could be written to swap: /dev/vda2");
}

#[test]
fn memory_without_noswap_is_given_and_published_where_no_swap_is_active() {
    let Some(machine) = Machine::new() else { return };
    let Some(line) = without_noswap(&machine, "") else { return };
    let (text, root) = line.done(Request::Memory);
    assert!(text.contains("of 1048576 bytes") && text.contains("without noswap"), "{text}");
    Memory(root.unwrap().into()).write("weights", b"x");
    assert!(line.done(Request::Publish).0.starts_with("1 entries"));
    let shown = format!("/proc/{}/root{}/weights", line.child.id(), machine.point().display());
    assert_eq!(fs::read(&shown).unwrap(), b"x");
    assert_eq!(fs::write(&shown, b"y").unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
}

// ---- Registering ----------------------------------------------------------------------------------------------------

/// One file, `weights`, that the kernel reads through a registered file; the file system itself cannot be read.
struct PassthroughFs {
    size: u64,
    id: Arc<AtomicU32>,
}

impl PassthroughFs {
    fn attr(&self, inode: u64) -> FileAttr {
        let (kind, size) =
            if inode == 1 { (FileType::Directory, 0) } else { (FileType::RegularFile, self.size) };
        FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o555,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

const TTL: Duration = Duration::from_secs(60);

impl Filesystem for PassthroughFs {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> std::io::Result<()> {
        config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).map_err(|_| ErrorKind::Unsupported)?;
        config.set_max_stack_depth(1).map(drop).map_err(|_| ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _: &fuser::Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "weights" {
            reply.entry(&TTL, &self.attr(2), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &fuser::Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(inode.0));
    }

    fn open(&self, _: &fuser::Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // SAFETY: the number is one that the helper registered and has not taken back.
        let backing = unsafe { reply.wrap_backing(self.id.load(Ordering::SeqCst)) };
        reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &backing);
        // The helper's to close.
        backing.into_raw();
    }

    fn flush(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: fuser::LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// Serve a [`PassthroughFs`] on `device`; `None` where the kernel knows no passthrough.
fn serve(device: OwnedFd, size: u64) -> Option<(fuser::BackgroundSession, Arc<AtomicU32>)> {
    let id = Arc::new(AtomicU32::new(0));
    let fs = PassthroughFs { size, id: Arc::clone(&id) };
    match fuser::Session::from_fd(fs, device, SessionACL::All, fuser::Config::default()) {
        Ok(session) => Some((session.spawn().unwrap(), id)),
        Err(error) => {
            let release = nix::sys::utsname::uname().unwrap();
            assert!(kernel_before_6_9(release.release()), "{error}");
            println!("skip: this kernel has no FUSE passthrough");
            None
        }
    }
}

fn kernel_before_6_9(release: &OsStr) -> bool {
    let release = release.to_str().unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) < (6, 9)
}

/// Bytes that differ at every offset a page could be confused with.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 4096) as u8).collect()
}

/// A daemon's state with a file in memory and a mount that is served.
struct Loaded {
    line: Line,
    memory: Memory,
    _session: fuser::BackgroundSession,
    id: Arc<AtomicU32>,
    content: Vec<u8>,
}

impl Loaded {
    fn new(machine: &Machine) -> Option<Self> {
        let line = machine.line();
        let memory = line.memory();
        let content = pattern((5 << 20) + 1234);
        memory.write("weights", &content);
        let (_, device) = line.done(Request::Mount);
        let (_session, id) = serve(device.unwrap(), content.len() as u64)?;
        Some(Loaded { line, memory, _session, id, content })
    }

    fn file(&self) -> File {
        File::open(self.memory.at("weights")).unwrap()
    }
}

#[test]
fn registered_file_is_read_by_the_kernel_in_place_of_the_mounts() {
    let Some(machine) = Machine::new() else { return };
    let Some(loaded) = Loaded::new(&machine) else { return };
    loaded.id.store(loaded.line.register(&loaded.file()), Ordering::SeqCst);
    let shown = machine.point().join("weights");
    let mut file = File::open(&shown).unwrap();
    let mut read = Vec::new();
    file.read_to_end(&mut read).unwrap();
    assert!(read == loaded.content);
    // By mapping, as safetensors does it.
    let script = "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); \
                  sys.stdout.buffer.write(m[:])";
    let output = Command::new("python3").args(["-c", script]).arg(&shown).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == loaded.content);

    // Taken back, open handles go on; new ones would need another number. Nor is the name in memory needed.
    let id = loaded.id.load(Ordering::SeqCst);
    assert_eq!(
        loaded.line.done(Request::Unregister { id }).0,
        format!("file {id} is not registered any more")
    );
    fs::remove_file(loaded.memory.at("weights")).unwrap();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    let mut block = [0; 4096];
    file.read_exact(&mut block).unwrap();
    assert_eq!(block, loaded.content[1 << 20..][..4096]);
    assert!(File::open(&shown).is_err(), "a number that was taken back still opens");
    let (code, text) = loaded.line.refused(Request::Unregister { id });
    assert_eq!(code, "memory.register");
    assert_eq!(text, format!("file {id} is not registered on this connection"));
}

#[test]
fn number_of_another_line_is_not_taken_back() {
    let Some(machine) = Machine::new() else { return };
    let Some(loaded) = Loaded::new(&machine) else { return };
    let id = loaded.line.register(&loaded.file());
    loaded.id.store(id, Ordering::SeqCst);
    let Some(elsewhere) = Machine::new() else { return };
    let Some(other) = Loaded::new(&elsewhere) else { return };
    for foreign in [id, id + 1, 0, u32::MAX] {
        assert_eq!(other.line.refused(Request::Unregister { id: foreign }).0, "memory.register");
    }
    assert!(fs::read(machine.point().join("weights")).unwrap() == loaded.content);
}

#[test]
fn file_that_is_not_the_memorys_or_could_be_written_is_not_registered() {
    let Some(machine) = Machine::new() else { return };
    let Some(loaded) = Loaded::new(&machine) else { return };
    let refused = |file: &File, why: &str| {
        let (code, text) = loaded.line.refused_with(Request::Register, Some(file.as_fd()));
        assert_eq!(code, "memory.register");
        assert!(text.contains(why), "{text}");
    };
    let foreign = "not in the private memory file system";
    refused(&File::open("/etc/shadow").or_else(|_| File::open("/etc/passwd")).unwrap(), foreign);
    refused(&File::open("/dev/null").unwrap(), foreign);
    let Some(elsewhere) = Machine::new() else { return };
    let other = elsewhere.line();
    let others = other.memory();
    others.write("weights", b"x");
    refused(&File::open(others.at("weights")).unwrap(), foreign);
    refused(&loaded.memory.0, "expected a regular file");
    let options = |write| File::options().read(true).write(write).open(loaded.memory.at("weights")).unwrap();
    refused(&options(true), "not open for reading alone");
    let path_alone =
        File::options().read(true).custom_flags(nix::libc::O_PATH).open(loaded.memory.at("weights")).unwrap();
    refused(&path_alone, "not open for reading alone");
    // None of that broke the line.
    loaded.id.store(loaded.line.register(&options(false)), Ordering::SeqCst);
    assert!(fs::read(machine.point().join("weights")).unwrap() == loaded.content);
}

#[test]
fn registering_needs_memory_a_mount_and_a_descriptor() {
    let Some(machine) = Machine::new() else { return };
    let line = machine.line();
    let file = File::open("/etc/passwd").unwrap();
    let refused = |file: Option<&File>, why: &str| {
        let (code, text) = line.refused_with(Request::Register, file.map(AsFd::as_fd));
        assert_eq!(code, "memory.register");
        assert!(text.contains(why), "{text}");
    };
    refused(Some(&file), "no private memory file system");
    let memory = line.memory();
    memory.write("weights", b"x");
    refused(Some(&File::open(memory.at("weights")).unwrap()), "no FUSE mount");
    assert_eq!(line.refused(Request::Unregister { id: 1 }).0, "memory.register");
    refused(None, "no descriptor");
    let (code, text) = line.refused_with(Request::Readahead, Some(file.as_fd()));
    assert_eq!((code.as_str(), text.contains("takes none")), ("helper.refused", true), "{text}");
    // Before the daemon serves the mount nothing has been agreed with the kernel.
    let (_, device) = line.done(Request::Mount);
    refused(Some(&File::open(memory.at("weights")).unwrap()), "the kernel does not take");
    drop(device);
}

#[test]
fn unmounting_gives_everything_back_and_readers_keep_what_they_opened() {
    let Some(machine) = Machine::new() else { return };
    let Some(loaded) = Loaded::new(&machine) else { return };
    let id = loaded.line.register(&loaded.file());
    loaded.id.store(id, Ordering::SeqCst);
    let held = File::open(machine.point().join("weights")).unwrap();
    // Through another mount of the same, the daemon's file system can still be asked.
    let elsewhere = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&machine.point()), elsewhere.path(), None::<&str>, flags, None::<&str>).unwrap();
    let opens = || File::open(elsewhere.path().join("weights")).is_ok();
    let (before, _) = (opens(), loaded.line.done(Request::Unmount));
    let after = opens();
    nix::mount::umount2(elsewhere.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!((before, after), (true, false), "the number is still registered");
    assert_eq!(machine.mounts(), 0);
    assert!(loaded.line.refused(Request::Unregister { id }).1.contains("no FUSE mount"));
    let mut block = [0; 100];
    held.read_exact_at(&mut block, 4096).unwrap();
    assert_eq!(block, loaded.content[4096..4196]);
    loaded.memory.write("private-memory-stays", b"x");
}

// ---- A daemon that dies ---------------------------------------------------------------------------------------------

/// Somebody who waits for the mount to answer; whether they were let go.
fn waiting_reader(point: &Path) -> std::thread::JoinHandle<bool> {
    let point = point.to_owned();
    let reader = std::thread::spawn(move || {
        fs::metadata(point).unwrap_err().raw_os_error() == Some(nix::libc::ENOTCONN)
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!reader.is_finished(), "nobody serves the mount, and it answers");
    reader
}

#[test]
fn readers_are_let_go_when_the_daemon_dies() {
    let Some(machine) = Machine::new() else { return };
    let mut line = machine.line();
    let (_, device) = line.done(Request::Mount);
    let reader = waiting_reader(&machine.point());
    drop(device);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!reader.is_finished(), "the helper holds no device: this test proves nothing");
    line.hang_up();
    wait_until("the reader to be let go", || reader.is_finished());
    assert!(reader.join().unwrap());
    assert!(line.child.wait().unwrap().success());
    assert_eq!(machine.mounts(), 0);
}

#[test]
fn readers_are_let_go_although_the_helper_waits_for_a_vendors_library() {
    let Some(machine) = Machine::new() else { return };
    // Opening a pipe that nobody writes to takes as long as a driver that hangs.
    let library = machine.root.path().join("usr/lib64/libtdx_attest.so.1");
    fs::create_dir_all(library.parent().unwrap()).unwrap();
    nix::unistd::mkfifo(&library, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut line = machine.line();
    let (_, device) = line.done(Request::Mount);
    let reader = waiting_reader(&machine.point());
    line.send(Request::LibraryQuote { report_data: [0; 64] }, None);
    let helper = line.child.id();
    let children = format!("/proc/{helper}/task/{helper}/children");
    wait_until("the vendor child", || !fs::read_to_string(&children).unwrap().is_empty());
    drop(device);
    line.hang_up();
    wait_until("the reader to be let go", || reader.is_finished());
    assert!(reader.join().unwrap());
    assert!(line.child.try_wait().unwrap().is_none(), "the helper did not wait: this test proves nothing");
    let nonblocking = || File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&library);
    wait_until("the child to open the library", || nonblocking().is_ok());
    wait_until("the helper to end", || line.child.try_wait().unwrap().is_some());
    assert_eq!(machine.mounts(), 0);
}

#[test]
fn memory_stays_usable_through_the_daemons_descriptor_without_the_helper() {
    let Some(machine) = Machine::new() else { return };
    let mut line = machine.line();
    let memory = line.memory();
    line.hang_up();
    line.child.wait().unwrap();
    memory.write("file", b"x");
    assert_eq!(fs::read(memory.at("file")).unwrap(), b"x");
}
