//! The real gocryptfs reads what cai writes, and cai reads what the real gocryptfs writes.
//!
//! Needs the `gocryptfs` binary, `/dev/fuse` and the right to mount; skipped without, unless `CAI_TEST_REQUIRE` names
//! `gocryptfs`.

mod common;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use cai::ciphertext::Ciphertext;
use cai::gocryptfs::{
    Conf, EncryptOptions, FileReader, FormatError, Keys, Kind, LocalDir, NodeId, Passphrase, Tree,
    encrypt_tree, read_passfile, unlock,
};
use cai::keyring::Secret;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Files larger than this are compared at both ends only: they are holes.
const HASH_LIMIT: u64 = 32 << 20;
/// scrypt cost of directories made here.
const LOG_N: u8 = 10;

/// Whether to go on: the tools are there, or the test must fail without them.
fn available() -> bool {
    let binary =
        Command::new("gocryptfs").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let present = binary.is_ok_and(|status| status.success()) && Path::new("/dev/fuse").exists();
    common::available("gocryptfs", present, "no gocryptfs binary or no /dev/fuse")
}

/// A scratch directory with `cipher`, `plain`, `source`, and the password `test` in `passfile`.
struct Scratch {
    dir: TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cipher", "plain", "source"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("passfile"), "test\n").unwrap();
        Scratch { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn passphrase(&self) -> Passphrase {
        Passphrase::from_secret(&read_passfile(&self.path("passfile")).unwrap()).unwrap()
    }

    fn gocryptfs(&self) -> Command {
        let mut command = Command::new("gocryptfs");
        command.arg("-q").arg("-passfile").arg(self.path("passfile")).stdout(Stdio::null());
        command
    }

    fn init(&self) {
        let status =
            self.gocryptfs().args(["-init", "-scryptn", "10"]).arg(self.path("cipher")).status().unwrap();
        assert!(status.success(), "gocryptfs -init: {status}");
    }

    /// Mount `cipher` on `plain` with the real gocryptfs.
    fn mount(&self, options: &[&str]) -> Mounted {
        let point = self.path("plain");
        let device = fs::metadata(&point).unwrap().dev();
        let child =
            self.gocryptfs().arg("-fg").args(options).arg(self.path("cipher")).arg(&point).spawn().unwrap();
        let mut mounted = Mounted { child, point };
        let deadline = Instant::now() + Duration::from_secs(60);
        while fs::metadata(&mounted.point).unwrap().dev() == device {
            let ended = mounted.child.try_wait().unwrap();
            assert!(ended.is_none(), "gocryptfs ended instead of mounting: {ended:?}");
            assert!(Instant::now() < deadline, "gocryptfs has not mounted in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        mounted
    }

    /// What cai reads of `cipher`.
    fn open(&self) -> (LocalDir, Keys, Tree) {
        let source = LocalDir::open(&self.path("cipher")).unwrap();
        let keys = unlock(&Conf::read_from(&source).unwrap(), &self.passphrase()).unwrap();
        let tree = Tree::build(&source, &keys).unwrap();
        (source, keys, tree)
    }
}

/// A mounted gocryptfs, unmounted and reaped when dropped.
struct Mounted {
    child: Child,
    point: PathBuf,
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
struct Seen {
    what: String,
    mode: u32,
    modified: Option<SystemTime>,
    links: u64,
}

type Manifest = BTreeMap<PathBuf, Seen>;

fn describe_file(len: u64, mut read: impl FnMut(u64, &mut [u8])) -> String {
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
fn manifest_of_directory(root: &Path) -> Manifest {
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

/// Everything in `tree`, as cai reads it.
fn manifest_of_tree(source: &LocalDir, keys: &Keys, tree: &Tree) -> Manifest {
    let mut scratch = Vec::new();
    let mut describe = |id: NodeId, kind: &Kind, mode: u32| match kind {
        Kind::Directory { .. } => "directory".to_owned(),
        Kind::Symlink { target } => format!("symlink to {:?}", Path::new(target)),
        Kind::Special { .. } => format!("special, fifo: {}", mode & 0o170_000 == 0o010_000),
        Kind::File { plain_len, .. } => {
            let reader = FileReader::new(tree, id).unwrap();
            describe_file(*plain_len, |offset, piece| {
                let count = reader.read(source, keys, offset, piece, &mut scratch).unwrap();
                assert_eq!(count, piece.len(), "{:?} at {offset}", tree.path(id));
            })
        }
    };
    let below_root = tree.nodes().iter().filter(|node| node.id != tree.root());
    below_root
        .map(|node| {
            let what = describe(node.id, &node.kind, node.attributes.mode);
            let links = if matches!(node.kind, Kind::Directory { .. }) { 0 } else { u64::from(node.nlink) };
            let mode = node.attributes.mode & 0o7777;
            (tree.path(node.id), Seen { what, mode, modified: Some(node.attributes.mtime), links })
        })
        .collect()
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 253) as u8 ^ (i / 4096) as u8).collect()
}

/// A directory with every kind of name, size and object that a default gocryptfs holds.
fn populate(root: &Path) {
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
fn populate_more(root: &Path) {
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

#[test]
fn directory_written_by_gocryptfs_is_read_the_same() {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    scratch.init();
    let expected = {
        let mounted = scratch.mount(&[]);
        populate(&mounted.point);
        populate_more(&mounted.point);
        manifest_of_directory(&mounted.point)
    };
    let (source, keys, tree) = scratch.open();
    assert_eq!(tree.skipped(), []);
    let found = manifest_of_tree(&source, &keys, &tree);
    assert!(expected.len() > 60, "only {} objects", expected.len());
    for (path, seen) in &expected {
        assert_eq!(found.get(path), Some(seen), "{path:?}");
    }
    assert_eq!(found.len(), expected.len());

    let ino = |path: &str| {
        let at = |parent, name: &OsStr| tree.lookup(parent, name).unwrap();
        Path::new(path).iter().fold(at(tree.root(), OsStr::new("link-1")), |node, name| {
            at(if node.name == "link-1" { tree.root() } else { node.id }, name)
        })
    };
    assert_eq!(ino("link-2").attributes.ino, ino("link-1").attributes.ino);
    assert_eq!(ino(&format!("a/{}", "3".repeat(230))).attributes.ino, ino("link-1").attributes.ino);
    assert_eq!(ino("link-2").nlink, 3);
}

#[test]
fn directory_written_by_cai_mounts_in_gocryptfs_and_passes_its_fsck() {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    populate(&scratch.path("source"));
    let options = EncryptOptions { scrypt_log_n: LOG_N, ..EncryptOptions::default() };
    let encrypted =
        encrypt_tree(&scratch.path("source"), &scratch.path("cipher"), &scratch.passphrase(), &options)
            .unwrap();
    let expected = manifest_of_directory(&scratch.path("source"));
    let objects = encrypted.files + encrypted.directories + encrypted.symlinks;
    assert_eq!(objects, u64::try_from(expected.len()).unwrap());
    assert_eq!((encrypted.skipped, encrypted.escaping), (vec![], vec![]));

    let found = {
        let mounted = scratch.mount(&["-ro"]);
        manifest_of_directory(&mounted.point)
    };
    for (path, seen) in &expected {
        assert_eq!(found.get(path), Some(seen), "{path:?}");
    }
    assert_eq!(found.len(), expected.len());

    let fsck = scratch.gocryptfs().arg("-fsck").arg(scratch.path("cipher")).output().unwrap();
    assert_eq!(fsck.status.code(), Some(0), "{}", String::from_utf8_lossy(&fsck.stderr));

    let (source, keys, tree) = scratch.open();
    assert_eq!(tree.skipped(), []);
    assert_eq!(manifest_of_tree(&source, &keys, &tree), expected);
}

#[test]
fn directory_written_by_cai_can_be_written_on_by_gocryptfs() {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    fs::write(scratch.path("source").join("grows"), content(5000)).unwrap();
    fs::create_dir(scratch.path("source").join("dir")).unwrap();
    let options = EncryptOptions { scrypt_log_n: LOG_N, ..EncryptOptions::default() };
    encrypt_tree(&scratch.path("source"), &scratch.path("cipher"), &scratch.passphrase(), &options).unwrap();
    let expected = {
        let mounted = scratch.mount(&[]);
        let file = File::options().write(true).open(mounted.point.join("grows")).unwrap();
        file.write_all_at(b"changed", 4093).unwrap();
        file.write_all_at(&content(10_000), 50_000).unwrap();
        fs::write(mounted.point.join("dir").join("n".repeat(220)), b"new").unwrap();
        manifest_of_directory(&mounted.point)
    };
    let (source, keys, tree) = scratch.open();
    assert_eq!(manifest_of_tree(&source, &keys, &tree), expected);
}

#[test]
fn wrong_password_is_told_as_such_both_ways() {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    scratch.init();
    let conf = Conf::read_file(&scratch.path("cipher")).unwrap();
    let passphrase = |text: &[u8]| Passphrase::from_secret(&Secret::copy_of(text).unwrap()).unwrap();
    for wrong in [&b"wrong"[..], b"test ", b"test\r\n"] {
        assert!(matches!(unlock(&conf, &passphrase(wrong)), Err(FormatError::WrongPassword)), "{wrong:?}");
    }
    assert!(unlock(&conf, &passphrase(b"test")).is_ok());

    let written = Scratch::new();
    fs::write(written.path("source").join("file"), b"x").unwrap();
    let options = EncryptOptions { scrypt_log_n: LOG_N, ..EncryptOptions::default() };
    encrypt_tree(&written.path("source"), &written.path("cipher"), &written.passphrase(), &options).unwrap();
    for (password, code) in [("wrong\n", 12), ("test\r\n", 12), ("test", 0), ("test\n", 0)] {
        fs::write(written.path("passfile"), password).unwrap();
        let fsck =
            written.gocryptfs().arg("-fsck").arg(written.path("cipher")).stderr(Stdio::null()).status();
        assert_eq!(fsck.unwrap().code(), Some(code), "{password:?}");
    }
}

#[test]
fn damage_gocryptfs_reports_is_damage_cai_reports() {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    scratch.init();
    {
        let mounted = scratch.mount(&[]);
        fs::write(mounted.point.join("file"), content(20_000)).unwrap();
        fs::write(mounted.point.join("fine"), content(20_000)).unwrap();
    }
    let (source, _, tree) = scratch.open();
    let entry = tree.lookup(tree.root(), OsStr::new("file")).unwrap().entry.unwrap();
    let stored = scratch.path("cipher").join(&source.entries()[entry.0 as usize].path);
    let before = fs::metadata(&stored).unwrap().modified().unwrap();
    let file = File::options().read(true).write(true).open(&stored).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 18 + 2 * 4128 + 100).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], 18 + 2 * 4128 + 100).unwrap();
    file.set_times(FileTimes::new().set_modified(before)).unwrap();

    let read_blocks = |read: &mut dyn FnMut(u64, &mut [u8]) -> bool| -> Vec<bool> {
        (0..5)
            .map(|block| read(block * 4096, &mut vec![0; if block < 4 { 4096 } else { 20_000 - 16_384 }]))
            .collect()
    };
    let peer = {
        let mounted = scratch.mount(&["-ro"]);
        let file = File::open(mounted.point.join("file")).unwrap();
        read_blocks(&mut |offset, piece| file.read_exact_at(piece, offset).is_ok())
    };
    let (source, keys, tree) = scratch.open();
    let reader = FileReader::new(&tree, tree.lookup(tree.root(), OsStr::new("file")).unwrap().id).unwrap();
    let ours =
        read_blocks(&mut |offset, piece| reader.read(&source, &keys, offset, piece, &mut Vec::new()).is_ok());
    assert_eq!(ours, [true, true, false, true, true]);
    assert_eq!(ours, peer);
}

/// Names are compared as bytes: this test's own helper must not be what hides a difference.
#[test]
fn manifest_keeps_invalid_utf8_apart() {
    let dir = tempfile::tempdir().unwrap();
    for name in [b"\xff".to_vec(), b"\xfe".to_vec()] {
        fs::write(dir.path().join(OsString::from_vec(name)), b"").unwrap();
    }
    assert_eq!(manifest_of_directory(dir.path()).len(), 2);
}
