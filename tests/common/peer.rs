//! The real gocryptfs as a peer: scratch directories it makes and mounts, and what is put into them.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use cai::gocryptfs::{Conf, Keys, LocalDir, Passphrase, Tree, read_passfile, unlock};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::common;

/// Files larger than this are compared at both ends only: they are holes.
const HASH_LIMIT: u64 = 32 << 20;
/// scrypt cost of directories made here.
pub const LOG_N: u8 = 10;

/// Whether to go on: the tools are there, or the test must fail without them.
pub fn available() -> bool {
    let binary =
        Command::new("gocryptfs").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let present = binary.is_ok_and(|status| status.success()) && Path::new("/dev/fuse").exists();
    common::available("gocryptfs", present, "no gocryptfs binary or no /dev/fuse")
}

/// A scratch directory with `cipher`, `plain`, `source`, and the password `test` in `passfile`.
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cipher", "plain", "source"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("passfile"), "test\n").unwrap();
        Scratch { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn passphrase(&self) -> Passphrase {
        Passphrase::from_secret(&read_passfile(&self.path("passfile")).unwrap()).unwrap()
    }

    pub fn gocryptfs(&self) -> Command {
        let mut command = Command::new("gocryptfs");
        command.arg("-q").arg("-passfile").arg(self.path("passfile")).stdout(Stdio::null());
        command
    }

    pub fn init(&self, options: &[&str]) {
        let mut command = self.gocryptfs();
        command.args(["-init", "-scryptn", "10"]).args(options).arg(self.path("cipher"));
        let status = command.status().unwrap();
        assert!(status.success(), "gocryptfs -init {options:?}: {status}");
    }

    /// Mount `cipher` on `plain` with the real gocryptfs.
    pub fn mount(&self, options: &[&str]) -> Mounted {
        self.mount_at("cipher", "plain", options)
    }

    /// Mount, and wait until gocryptfs says that it is ready: before that it creates a file in the mount itself, and would
    /// wait for ever for whoever does so at the same time.
    pub fn mount_at(&self, cipher: &str, point: &str, options: &[&str]) -> Mounted {
        let mut command = Command::new("gocryptfs");
        command.arg("-fg").arg("-passfile").arg(self.path("passfile")).args(options);
        command.args([self.path(cipher), self.path(point)]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("mounted and ready") {
            line.clear();
            assert_ne!(said.read_line(&mut line).unwrap(), 0, "{command:?} ended instead of mounting");
        }
        Mounted { child, point: self.path(point), _said: Some(said) }
    }

    /// What cai reads of `cipher`.
    pub fn open(&self) -> (LocalDir, Keys, Tree) {
        let source = LocalDir::open(&self.path("cipher")).unwrap();
        let keys = unlock(&Conf::read_from(&source).unwrap(), &self.passphrase()).unwrap();
        let tree = Tree::build(&source, &keys).unwrap();
        (source, keys, tree)
    }
}

/// A mount of either program, unmounted and reaped when dropped.
pub struct Mounted {
    child: Child,
    pub point: PathBuf,
    /// Held open: a program that writes to a closed pipe is killed.
    _said: Option<BufReader<ChildStdout>>,
}

impl Mounted {
    /// Run `command`, a `cai mount` at `point`.
    pub fn start(command: &mut Command, point: PathBuf) -> Self {
        let device = fs::metadata(&point).unwrap().dev();
        let child = command.spawn().unwrap();
        let mut mounted = Mounted { child, point, _said: None };
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::metadata(&mounted.point).unwrap().dev() == device {
            let ended = mounted.child.try_wait().unwrap();
            assert!(ended.is_none(), "{command:?} ended instead of mounting: {ended:?}");
            assert!(Instant::now() < deadline, "{command:?} has not mounted in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A mount that never came is not there to be unmounted: then the process is all there is to end.
        let unmounted = Command::new("umount").arg(&self.point).stderr(Stdio::null()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("umount").arg("-l").arg(&self.point).stderr(Stdio::null()).status();
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// What can be said about one object, seen from either side.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub what: String,
    pub mode: u32,
    pub modified: Option<SystemTime>,
    pub links: u64,
}

pub type Manifest = BTreeMap<PathBuf, Seen>;

pub fn describe_file(len: u64, mut read: impl FnMut(u64, &mut [u8])) -> String {
    let mut hash = Sha256::new();
    let ranges = if len <= HASH_LIMIT { vec![(0, len)] } else { vec![(0, 8192), (len - 8192, len)] };
    for (mut offset, end) in ranges {
        while offset < end {
            // Not a multiple of the block size, so that ragged edges are read.
            let mut piece = vec![0; usize::try_from((end - offset).min(300_001)).unwrap()];
            read(offset, &mut piece);
            hash.update(&piece);
            offset += u64::try_from(piece.len()).unwrap();
        }
    }
    format!("file of {len} bytes, {:x?}", hash.finalize())
}

/// Everything below `root`, as the kernel shows it.
pub fn manifest_of_directory(root: &Path) -> Manifest {
    let mut manifest = Manifest::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_dir() {
                pending.push(path.clone());
                "directory".to_owned()
            } else if meta.is_symlink() {
                format!("symlink to {:?}", fs::read_link(&path).unwrap())
            } else if meta.is_file() {
                let file = File::open(&path).unwrap();
                describe_file(meta.len(), |offset, piece| file.read_exact_at(piece, offset).unwrap())
            } else {
                format!("special, fifo: {}", meta.file_type().is_fifo())
            };
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            let seen = Seen { what, mode: meta.mode() & 0o7777, modified: meta.modified().ok(), links };
            manifest.insert(path.strip_prefix(root).unwrap().to_owned(), seen);
        }
    }
    manifest
}

pub fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 253) as u8 ^ (i / 4096) as u8).collect()
}

/// A directory with every kind of name, size and object that a default gocryptfs holds.
pub fn populate(root: &Path) {
    let sizes = [0, 1, 2, 15, 16, 17, 4095, 4096, 4097, 8191, 8192, 8193, 131_071, 131_072, 131_073];
    for size in sizes.into_iter().chain([(1 << 20) + 5, 8_000_000]) {
        fs::write(root.join(format!("size-{size}")), content(size)).unwrap();
    }
    for len in [1, 14, 15, 16, 17, 31, 32, 175, 176, 177, 239, 240, 254, 255] {
        fs::write(root.join("n".repeat(len)), content(len)).unwrap();
    }
    let names: [&[u8]; 13] = [
        "caf\u{e9}".as_bytes(),
        "cafe\u{301}".as_bytes(),
        "\u{6a21}\u{578b}".as_bytes(),
        b"\xff\xfe\x80",
        b"line\nbreak",
        b" space ",
        b"-dash",
        b".dot",
        b"...",
        b"gocryptfs.conf",
        b"gocryptfs.diriv",
        b"gocryptfs.longname.foo",
        b"gocryptfs.longname.foo.name",
    ];
    for name in names {
        fs::write(root.join(OsStr::from_bytes(name)), name).unwrap();
    }
    directories(root);
    links(root);
    attributes(root);
}

fn directories(root: &Path) {
    let long = root.join("d".repeat(255));
    fs::create_dir(&long).unwrap();
    fs::write(long.join("i".repeat(255)), content(5000)).unwrap();
    fs::create_dir_all(root.join("a/b/c/d/e")).unwrap();
    fs::write(root.join("a/b/c/deep"), content(100)).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    // Names in two directories are the same, their ciphertext is not.
    fs::write(root.join("a/size-1"), content(1)).unwrap();
}

fn links(root: &Path) {
    symlink("size-4096", root.join("relative")).unwrap();
    symlink("a/../size-1", root.join("winding")).unwrap();
    symlink("\u{6a21}\u{578b}", root.join("unicode")).unwrap();
    symlink("t".repeat(2000), root.join("long target")).unwrap();
    symlink("x", root.join("l".repeat(200))).unwrap();
    symlink("../a/b/c/deep", root.join("a/into")).unwrap();
}

fn attributes(root: &Path) {
    for (name, mode) in [("mode-600", 0o600), ("mode-444", 0o444), ("mode-755", 0o755), ("mode-1777", 0o1777)]
    {
        fs::write(root.join(name), name).unwrap();
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o710)).unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    let times = FileTimes::new().set_modified(old).set_accessed(old);
    File::options().write(true).open(root.join("size-17")).unwrap().set_times(times).unwrap();
    File::open(root.join("a/b")).unwrap().set_times(times).unwrap();
}

/// What a file system in use has beside that: holes, hard links, a fifo.
pub fn populate_more(root: &Path) {
    let sparse = |name: &str, len: u64, writes: &[(u64, usize)]| {
        let file = File::create(root.join(name)).unwrap();
        file.set_len(len).unwrap();
        for &(offset, len) in writes {
            file.write_all_at(&content(len), offset).unwrap();
        }
    };
    sparse("hole", 10 << 20, &[]);
    sparse("hole-ragged", (1 << 20) + 777, &[]);
    sparse("hole-middle", 5 << 20, &[(0, 10), ((5 << 20) - 10, 10)]);
    sparse("hole-data", 3 << 20, &[((1 << 20) + 3, 70_000)]);
    sparse("hole-huge", 1 << 40, &[(0, 5)]);
    fs::write(root.join("link-1"), content(9000)).unwrap();
    fs::hard_link(root.join("link-1"), root.join("link-2")).unwrap();
    fs::hard_link(root.join("link-1"), root.join("a").join("3".repeat(230))).unwrap();
    let fifo = root.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
}
