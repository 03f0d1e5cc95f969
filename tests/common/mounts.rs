//! Models encrypted here and mounted by `cai mount` in any mode, and what can be seen of a mount from outside: its memory, its
//! daemon, its helper. All of it ends with the test, also when the test panics.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use cai::ciphertext::Ciphertext;
use cai::gocryptfs::{
    Conf, EncryptOptions, Keys, LocalDir, Node, Passphrase, Tree, encrypt_tree, read_passfile, unlock,
};
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::statfs::TMPFS_MAGIC;
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use crate::common::{available, mounts_below, wait_until};

pub const MIB: usize = 1 << 20;
/// Shortest file that load mode loads.
pub const SHORTEST: usize = 16 * MIB;
/// The header of a ciphertext file, and one whole block of it: nonce, 4096 bytes, tag.
pub const HEADER: usize = 18;
pub const SEALED: usize = 4128;

/// Bytes that nowhere repeat, and differ from seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for piece in bytes.chunks_mut(8) {
        // splitmix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word ^= word >> 27;
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
    bytes
}

/// Bytes that a file of `len` takes in memory: whole pages.
pub fn pages(len: usize) -> u64 {
    (len as u64).next_multiple_of(4096)
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A plaintext directory, its encryption, and a mount point.
pub struct Model {
    directory: tempfile::TempDir,
}

impl Model {
    /// `fill` fills the plaintext. `None`, with the reason printed, where nothing can be mounted.
    pub fn filled(fill: impl FnOnce(&Path)) -> Option<Model> {
        let ready = Path::new("/dev/fuse").exists() && nix::unistd::Uid::effective().is_root();
        if !available("fuse", ready, "needs /dev/fuse and root") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        // For other users' processes, too.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let model = Model { directory };
        fs::create_dir(model.path("plain")).unwrap();
        fs::create_dir(model.path("mnt")).unwrap();
        fs::write(model.path("password"), "secret\n").unwrap();
        fs::set_permissions(model.path("password"), fs::Permissions::from_mode(0o644)).unwrap();
        fill(&model.path("plain"));
        let options = EncryptOptions { scrypt_log_n: 10, ..EncryptOptions::default() };
        encrypt_tree(&model.path("plain"), &model.path("cipher"), &model.passphrase(), &options).unwrap();
        Some(model)
    }

    /// Files of these paths and contents.
    pub fn of(files: &[(&str, &[u8])]) -> Option<Model> {
        Model::filled(|plain| {
            for (path, content) in files {
                let path = plain.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    fn passphrase(&self) -> Passphrase {
        Passphrase::from_secret(&read_passfile(&self.path("password")).unwrap()).unwrap()
    }

    /// What cai reads of the ciphertext.
    pub fn open(&self) -> (LocalDir, Keys, Tree) {
        let source = LocalDir::open(&self.path("cipher")).unwrap();
        let keys = unlock(&Conf::read_from(&source).unwrap(), &self.passphrase()).unwrap();
        let tree = Tree::build(&source, &keys).unwrap();
        (source, keys, tree)
    }

    /// Where everything below the root is stored, by its path.
    pub fn stored(&self) -> BTreeMap<PathBuf, PathBuf> {
        let (source, _, tree) = self.open();
        let stored =
            |node: &Node| Some(self.path("cipher").join(&source.entries()[node.entry?.0 as usize].path));
        tree.nodes().iter().filter_map(|node| Some((tree.path(node.id), stored(node)?))).collect()
    }

    /// Change what is stored of the file `name`.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = &self.stored()[Path::new(name)];
        let mut stored = fs::read(path).unwrap();
        change(&mut stored);
        fs::write(path, stored).unwrap();
    }

    /// `cai mount` with everything but its own arguments; for a run that is to end by itself.
    pub fn command(&self, mode: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
        command.args(["mount", "--mode", mode, "--passfile"]).arg(self.path("password"));
        command.args(arguments).args([self.path("cipher"), self.path("mnt")]);
        command
    }

    pub fn mount(&self, mode: &str, arguments: &[&str]) -> Mount {
        Mount::start(self.command(mode, arguments), self.path("mnt"))
    }

    /// `mount` in load mode with `memory` bytes; `None`, with the reason printed, where the kernel cannot.
    pub fn load(&self, memory: u64, idle: u64) -> Option<Mount> {
        let (memory, idle) = (memory.to_string(), idle.to_string());
        let mount = self.mount("auto", &["--memory", &memory, "--idle", &idle]);
        let loads = mount.log().iter().any(|line| line.contains("large ones loaded whole"));
        available("passthrough", loads, "no FUSE passthrough (Linux 6.9)").then_some(mount)
    }

    /// Whether `name` below the mount has `content`.
    pub fn assert_reads(&self, name: &str, content: &[u8]) {
        assert!(fs::read(self.path("mnt").join(name)).unwrap() == content, "{name} differs");
    }
}

/// A running `cai mount`.
pub struct Mount {
    child: Child,
    point: PathBuf,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Mount {
    /// Run `command` until it says that it serves.
    pub fn start(mut command: Command, point: PathBuf) -> Mount {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let (stderr, sink) = (BufReader::new(child.stderr.take().unwrap()), lines.clone());
        let keep =
            move || stderr.lines().map_while(Result::ok).for_each(|line| sink.lock().unwrap().push(line));
        let reader = Some(std::thread::spawn(keep));
        let mut mount = Mount { child, point, lines, reader };
        wait_until("the mount", || {
            let ended = mount.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended with {ended:?}: {:#?}", mount.log());
            mount.log().iter().any(|line| line.contains(" files at "))
        });
        mount
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// What it has said of this level and about this.
    pub fn said(&self, level: &str, about: &str) -> Vec<String> {
        self.log().into_iter().filter(|line| line.contains(level) && line.contains(about)).collect()
    }

    /// SIGTERM, its exit status, and everything that it and its helper said.
    pub fn stop(mut self) -> (Option<i32>, Vec<String>) {
        let status = self.signal(Signal::SIGTERM);
        (status.code(), self.log())
    }

    /// Signal it and wait for its end, and for that of its helper.
    pub fn signal(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let status = self.child.wait().unwrap();
        // The helper has the same standard error: its end is that of the lines.
        if let Some(reader) = self.reader.take() {
            wait_until("the helper to end", || reader.is_finished());
            reader.join().unwrap();
        }
        status
    }

    /// Bytes that its system calls have read so far, proc(5).
    pub fn bytes_read(&self) -> u64 {
        field(&self.proc("io"), "rchar:")
    }

    /// Threads it has once all `fuse` of them that answer the kernel are there: they may start after the mount is announced.
    pub fn threads_with(&self, fuse: usize) -> u64 {
        let answers = |task: &fs::DirEntry| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("fuser-"))
        };
        let tasks = || fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().map_while(Result::ok);
        wait_until("the FUSE threads", || tasks().filter(answers).count() == fuse);
        self.threads()
    }

    /// Threads it has.
    pub fn threads(&self) -> u64 {
        field(&self.proc("status"), "Threads:")
    }

    /// Descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Most memory it has had resident since [`Mount::forget_peak`], bytes.
    pub fn peak(&self) -> u64 {
        field(&self.proc("status"), "VmHWM:") * 1024
    }

    /// Begin anew with the peak, at what is resident now; gives that.
    pub fn forget_peak(&self) -> u64 {
        // proc_pid_clear_refs(5).
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
        self.peak()
    }

    fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid())).unwrap()
    }

    /// The private memory of load mode.
    pub fn memory(&self) -> MemoryWatch {
        MemoryWatch::of(self.pid())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the mount's log: {:#?}", self.log());
        }
        while mounts_below(&self.point) > 0 && umount2(&self.point, MntFlags::MNT_DETACH).is_ok() {}
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Number after `name` in a table of proc(5).
fn field(table: &str, name: &str) -> u64 {
    let rest = table.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

/// A memory file system, held so that it can be asked after its daemon is gone. Only what lies in it is counted, so it holds
/// nothing itself.
pub struct MemoryWatch(OwnedFd);

impl MemoryWatch {
    /// That of the daemon `pid`.
    pub fn of(pid: u32) -> MemoryWatch {
        let found = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().find_map(|entry| {
            let path = entry.unwrap().path();
            // Of a mount that is nowhere the kernel shows no more than its root.
            (fs::read_link(&path).ok()? == Path::new("/")).then_some(())?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let root = nix::fcntl::open(&path, flags, Mode::empty()).ok()?;
            let kind = nix::sys::statfs::fstatfs(&root).ok()?.filesystem_type();
            (kind == TMPFS_MAGIC).then_some(MemoryWatch(root))
        });
        found.expect("no memory file system among the daemon's descriptors")
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        let stat = nix::sys::statfs::fstatfs(&self.0).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.block_size() as u64
    }
}

/// A process that maps files, closes their descriptors, and says on demand what it sees in the mappings. Not python3's own
/// mmap, which keeps a descriptor.
pub struct Mapper {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    count: usize,
}

const MAPPER: &str = "
import ctypes, hashlib, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
maps = []
for line in sys.stdin:
    order, _, path = line.rstrip('\\n').partition(' ')
    if order.startswith('map'):
        fd = os.open(path, os.O_RDONLY)
        size = os.fstat(fd).st_size
        kind = {'map-shared': 1, 'map-private': 2}[order]
        address = libc.mmap(None, size, 1, kind, fd, 0)
        assert address != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
        os.close(fd)
        maps.append((ctypes.c_char * size).from_address(address))
        print('mapped', flush=True)
    elif order == 'unmap':
        for mapped in maps:
            if mapped is not None: assert libc.munmap(ctypes.addressof(mapped), len(mapped)) == 0
        maps = [None for _ in maps]
        print('unmapped', flush=True)
    else:
        print(hashlib.sha256(maps[int(order)]).hexdigest(), flush=True)
";

impl Mapper {
    pub fn start() -> Mapper {
        let mut command = Command::new("python3");
        command.args(["-c", MAPPER]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Mapper { child, orders, answers, count: 0 }
    }

    /// Map the file at `path`; its number.
    pub fn map(&mut self, path: &Path) -> usize {
        // By turns as safetensors and as torch do.
        let kind = ["map-shared", "map-private"][self.count % 2];
        assert_eq!(self.ask(&format!("{kind} {}", path.display())), "mapped");
        self.count += 1;
        self.count - 1
    }

    /// What is in a mapping now.
    pub fn sha256(&mut self, number: usize) -> String {
        self.ask(&number.to_string())
    }

    /// Give every mapping back.
    pub fn unmap_all(&mut self) {
        assert_eq!(self.ask("unmap"), "unmapped");
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut line = String::new();
        assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the mapping process died of {order:?}");
        line.trim_end().to_owned()
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
