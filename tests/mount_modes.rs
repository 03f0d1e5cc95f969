//! Every mode of `cai mount` shows the same model, byte for byte and attribute for attribute; what a mode cannot do it refuses
//! with a status and in words. What load mode does with its memory is in `tests/mount_load.rs`.

mod common;
#[path = "common/mounts.rs"]
mod mounts;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::{available, mounts_below};
use mounts::{HEADER, MIB, Model, Mount, SEALED, SHORTEST, pages, pattern, sha256};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, TMPFS_MAGIC, statfs};

const MODES: [&str; 4] = ["on-demand", "load", "ram", "auto"];

/// What `lstat` and `readlink` say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    kind: u32,
    permissions: u32,
    owner: (u32, u32),
    size: u64,
    links: u64,
    modified: (i64, i64),
    target: Option<PathBuf>,
    /// The first path, in order, that is the same file.
    first: PathBuf,
}

/// Everything at and below `root`.
fn shown(root: &Path) -> BTreeMap<PathBuf, Shown> {
    let mut all = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path.strip_prefix(root).unwrap().to_owned(), (meta, path));
    }
    let mut first = BTreeMap::new();
    for (path, (meta, _)) in &all {
        first.entry(meta.ino()).or_insert_with(|| path.clone());
    }
    let show = |(meta, path): &(fs::Metadata, PathBuf)| Shown {
        kind: meta.mode() & 0o170_000,
        permissions: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        // A directory's size and links are its file system's business.
        size: if meta.is_dir() { 0 } else { meta.size() },
        links: if meta.is_dir() { 0 } else { meta.nlink() },
        modified: (meta.mtime(), meta.mtime_nsec()),
        target: fs::read_link(path).ok(),
        first: first[&meta.ino()].clone(),
    };
    all.iter().map(|(path, found)| (path.clone(), show(found))).collect()
}

/// Sizes at which something begins or ends: a block, a huge page, load mode.
const SIZES: [usize; 15] = [
    0,
    1,
    4095,
    4096,
    4097,
    8192,
    2 * MIB - 1,
    2 * MIB,
    2 * MIB + 1,
    SHORTEST - 4096,
    SHORTEST - 1,
    SHORTEST,
    SHORTEST + 1,
    SHORTEST + 4096,
    18 * MIB + 777,
];

/// A tree of every kind of thing, with attributes of its own.
fn fill(plain: &Path) {
    fs::create_dir_all(plain.join("a/b/c")).unwrap();
    fs::create_dir(plain.join("empty")).unwrap();
    for (number, size) in SIZES.into_iter().enumerate() {
        let directory = ["", "a", "a/b", "a/b/c"][number % 4];
        fs::write(plain.join(directory).join(format!("size-{size}")), pattern(size as u64, size)).unwrap();
    }
    symlink("a/size-1", plain.join("link")).unwrap();
    symlink("nowhere", plain.join("a/dangling")).unwrap();
    // A page of memory holds it; a shorter one needs none.
    symlink("long/".repeat(100), plain.join("a/long")).unwrap();
    for name in ["twin-1", "a/twin-2"] {
        fs::write(plain.join(name), pattern(99, 5000)).unwrap();
    }
    let set = |name: &str, mode: u32, seconds: u64| {
        fs::set_permissions(plain.join(name), fs::Permissions::from_mode(mode)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
        File::open(plain.join(name)).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    };
    for name in ["twin-1", "a/twin-2"] {
        set(name, 0o440, 1_500_000_000);
    }
    set("size-0", 0o644, 1_000_000_000);
    set(&format!("a/b/size-{}", 2 * MIB - 1), 0o755, 1);
    set("a/b/c", 0o710, 1_200_000_000);
    set("a", 0o755, 1_300_000_000);
}

/// What an encryption does not carry over, done to the plaintext and the ciphertext: owners, and two names for one file, whose
/// content is not bound to its name.
fn own_and_link(model: &Model) {
    let stored = model.stored();
    let sides = |name: &str| [model.path("plain").join(name), stored[Path::new(name)].clone()];
    for (name, owner) in [("size-0", 1000), ("a", 1001), ("a/b/c", 1002), ("link", 1003), ("twin-1", 1004)] {
        for path in sides(name) {
            lchown(path, Some(owner), Some(owner + 1)).unwrap();
        }
    }
    for (one, other) in sides("twin-1").into_iter().zip(sides("a/twin-2")) {
        // What is linked changes the directory's time, which is to stay.
        let directory = File::open(other.parent().unwrap()).unwrap();
        let time = directory.metadata().unwrap().modified().unwrap();
        fs::remove_file(&other).unwrap();
        fs::hard_link(one, other).unwrap();
        directory.set_times(FileTimes::new().set_modified(time)).unwrap();
    }
}

/// SHA-256 of every regular file below `root` that is not empty, by mmap.
fn mapped(root: &Path) -> BTreeMap<PathBuf, String> {
    let script = "import hashlib, mmap, os, sys\n\
                  for top, _, names in os.walk(sys.argv[1]):\n  for name in names:\n    path = os.path.join(top, name)\n    \
                  if os.path.islink(path) or os.path.getsize(path) == 0: continue\n    \
                  with open(path, 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n      \
                  print(hashlib.sha256(m).hexdigest(), os.path.relpath(path, sys.argv[1]))";
    let output = Command::new("python3").args(["-c", script]).arg(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(sum, path)| (path.into(), sum.to_owned()))
        .collect()
}

/// SHA-256 of every regular file below `root` that is not empty, by read.
fn read(root: &Path, all: &BTreeMap<PathBuf, Shown>) -> BTreeMap<PathBuf, String> {
    let files = all.iter().filter(|(_, shown)| shown.kind == 0o100_000 && shown.size > 0);
    files.map(|(path, _)| (path.clone(), sha256(&fs::read(root.join(path)).unwrap()))).collect()
}

#[test]
fn every_mode_shows_the_plaintext_byte_for_byte_and_attribute_for_attribute() {
    let Some(model) = Model::filled(fill) else { return };
    own_and_link(&model);
    let mut expected = shown(&model.path("plain"));
    // The root is the encrypted directory itself, which has become what it is on its own.
    expected.get_mut(Path::new("")).unwrap().modified = shown(&model.path("cipher"))[Path::new("")].modified;
    assert_eq!(expected[Path::new("twin-1")].links, 2);
    assert_eq!(expected[Path::new("twin-1")].first, Path::new("a/twin-2"));
    let bytes = read(&model.path("plain"), &expected);
    assert_eq!(bytes.len(), SIZES.len() - 1 + 2);
    for mode in MODES {
        let mount = model.mount(mode, &[]);
        let found = shown(&model.path("mnt"));
        assert_eq!(found.len(), expected.len(), "{mode}");
        for (path, mut expected) in expected.clone() {
            if mode == "ram" {
                // What is published belongs to root and is for root to read.
                expected.owner = (0, 0);
                expected.permissions = match expected.kind {
                    0o040_000 => 0o500,
                    0o120_000 => 0o777,
                    _ => 0o400,
                };
            }
            assert_eq!(found[&path], expected, "{mode}: {path:?}");
        }
        assert!(read(&model.path("mnt"), &expected) == bytes, "{mode}: read");
        assert!(mapped(&model.path("mnt")) == bytes, "{mode}: mapped");
        // Again, from whatever keeps it.
        assert!(read(&model.path("mnt"), &expected) == bytes, "{mode}: read again");
        let (status, log) = mount.stop();
        assert_eq!((status, log.len()), (Some(0), 1), "{mode}: {log:#?}");
        assert_eq!(mounts_below(model.root()), 0, "{mode}");
    }
}

#[test]
fn every_mode_says_what_it_is_and_statfs_tells_memory_from_fuse() {
    let Some(model) = Model::of(&[("config.json", b"{}")]) else { return };
    let kinds = [
        ("on-demand", "decrypted on demand", FUSE_SUPER_MAGIC),
        ("load", "large ones loaded whole when they are opened", FUSE_SUPER_MAGIC),
        ("ram", "all of them in memory", TMPFS_MAGIC),
    ];
    for (mode, how, kind) in kinds {
        let mount = model.mount(mode, &[]);
        assert_eq!(statfs(&model.path("mnt")).unwrap().filesystem_type(), kind, "{mode}");
        let at = model.path("mnt");
        assert_eq!(
            mount.log(),
            [format!("1 files at {}, {how}; unmount with Ctrl-C or SIGTERM", at.display())]
        );
    }
}

#[test]
fn model_in_memory_is_read_only_for_root_too() {
    let Some(model) = Model::of(&[("file", b"content")]) else { return };
    let mount = model.mount("ram", &[]);
    let erofs = Some(nix::libc::EROFS);
    let errors = [
        File::options().write(true).open(mount.at("file")).map(drop),
        File::create(mount.at("new")).map(drop),
        fs::create_dir(mount.at("directory")),
        fs::remove_file(mount.at("file")),
        fs::rename(mount.at("file"), mount.at("other")),
        symlink("x", mount.at("link")),
        fs::hard_link(mount.at("file"), mount.at("other")),
        fs::set_permissions(mount.at("file"), fs::Permissions::from_mode(0o777)),
        chown(mount.at("file"), Some(1), None),
        File::open(mount.at("file")).unwrap().set_modified(SystemTime::UNIX_EPOCH),
    ];
    for (number, result) in errors.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().raw_os_error(), erofs, "operation {number}");
    }
    model.assert_reads("file", b"content");
}

#[test]
fn model_in_memory_needs_its_ciphertext_no_more() {
    let content = pattern(1, 3 * MIB + 5);
    let Some(model) = Model::of(&[("weights", &content)]) else { return };
    let mount = model.mount("ram", &[]);
    fs::remove_dir_all(model.path("cipher")).unwrap();
    model.assert_reads("weights", &content);
    // It has what it needs and no more.
    let stat = statfs(&model.path("mnt")).unwrap();
    assert_eq!((stat.blocks() * 4096, stat.blocks_free()), (pages(content.len()), 0));
    assert_eq!(mount.stop().0, Some(0));
}

#[test]
fn one_damaged_block_keeps_a_model_out_of_memory_and_names_the_file() {
    let content = pattern(2, 20 * MIB);
    let Some(model) = Model::of(&[("good", &content[..5000]), ("weights", &content)]) else { return };
    model.change("weights", |stored| stored[HEADER + 3000 * SEALED + 200] ^= 0x10);
    let output = model.command("ram", &[]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{said}");
    assert!(said.contains("decrypting weights: damaged [ram.unreadable]"), "{said}");
    let blocks: Vec<&str> = said.lines().filter(|line| line.contains(" ERROR ")).collect();
    assert_eq!(blocks.len(), 1, "{said}");
    assert!(blocks[0].contains("weights, block 3000: block 3000 is corrupt"), "{said}");
    assert_eq!(mounts_below(model.root()), 0);
    assert_eq!(fs::read_dir(model.path("mnt")).unwrap().count(), 0);
}

#[test]
fn model_larger_than_the_memory_it_may_take_is_refused_with_both_numbers() {
    let Some(model) = Model::of(&[("one", &pattern(1, 2 * MIB + 1)), ("two", &pattern(2, 100))]) else {
        return;
    };
    let needed = 2 * MIB as u64 + 2 * 4096;
    let output = model.command("ram", &["--memory", &(needed - 4096).to_string()]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    let why = format!(
        "takes {needed} bytes of memory and mount.memory_bytes allows {} [ram.too-large]",
        needed - 4096
    );
    assert!(said.contains(&why), "{said}");
    assert_eq!(mounts_below(model.root()), 0);
    // A page more, and it fits.
    let mount = model.mount("ram", &["--memory", &needed.to_string()]);
    assert_eq!(mount.stop().0, Some(0));
}

#[test]
fn file_with_many_names_takes_memory_once() {
    let content = pattern(1, MIB);
    let Some(model) = Model::of(&[("twin-1", &content), ("twin-2", &content)]) else { return };
    let stored = model.stored();
    let [one, other] = ["twin-1", "twin-2"].map(|name| &stored[Path::new(name)]);
    fs::remove_file(other).unwrap();
    fs::hard_link(one, other).unwrap();
    let mount = model.mount("ram", &["--memory", &MIB.to_string()]);
    for name in ["twin-1", "twin-2"] {
        model.assert_reads(name, &content);
        assert_eq!(fs::metadata(mount.at(name)).unwrap().nlink(), 2);
    }
}

#[test]
fn ordinary_user_reads_on_demand_and_is_refused_the_modes_that_need_root() {
    let Some(model) = Model::of(&[("file", b"content")]) else { return };
    let user = nix::unistd::User::from_name("cai").unwrap();
    if !available("user", user.is_some(), "no user cai") {
        return;
    }
    let user = user.unwrap();
    // Where this user may read.
    let program = model.path("cai");
    fs::copy(env!("CARGO_BIN_EXE_cai"), &program).unwrap();
    chown(model.path("mnt"), Some(user.uid.as_raw()), None).unwrap();
    for path in cipher_files(&model.path("cipher")) {
        chown(path, Some(user.uid.as_raw()), None).unwrap();
    }
    let command = |mode: &str| {
        let mut command = Command::new(&program);
        command.args(["mount", "--mode", mode, "--passfile"]).arg(model.path("password"));
        command.args([model.path("cipher"), model.path("mnt")]).uid(user.uid.as_raw()).gid(user.gid.as_raw());
        command
    };
    for mode in ["load", "ram"] {
        let output = command(mode).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{mode}: {said}");
        let why = format!("modes load and ram need root, and this is user {} [mount.not-root]", user.uid);
        assert!(said.contains(&why), "{mode}: {said}");
        assert_eq!(mounts_below(model.root()), 0, "{mode}");
    }
    let helped = Command::new("fusermount3").arg("--version").output().is_ok();
    let device = fs::metadata("/dev/fuse").unwrap().mode() & 0o006 == 0o006;
    if !available("fusermount3", helped && device, "no fusermount3, or /dev/fuse is for root alone") {
        return;
    }
    for mode in ["on-demand", "auto"] {
        let mount = Mount::start(command(mode), model.path("mnt"));
        let seen = Command::new("cat").arg(mount.at("file")).uid(user.uid.as_raw()).output().unwrap();
        assert_eq!(seen.stdout, b"content", "{mode}: {}", String::from_utf8_lossy(&seen.stderr));
        assert_eq!(mount.stop().0, Some(0), "{mode}");
        assert_eq!(mounts_below(model.root()), 0, "{mode}");
    }
}

/// Everything at and below `directory`.
fn cipher_files(directory: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let below = below.flat_map(|path| if path.is_dir() { cipher_files(&path) } else { vec![path] });
    std::iter::once(directory.to_owned()).chain(below).collect()
}
