//! `mount::ModelFs` shows exactly the files that were encrypted, under any features: the same random questions asked of it and
//! of the plaintext directory get the same answers. No kernel involved.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use cai::ciphertext::{self, EntryKind};
use cai::gocryptfs::content::seal_target;
use cai::gocryptfs::names::{DirIv, Names};
use cai::gocryptfs::{
    Cipher, Conf, EncryptOptions, Features, Keys, LocalDir, Naming, Passphrase, Tree, encrypt_tree, unlock,
};
use cai::keyring::Secret;
use cai::mount::{Attributes, FsError, Kind, ModelFs, ReadBuffers};
use proptest::prelude::*;

#[path = "common/format.rs"]
mod format;
use format::{Memory, keys_with, seal_with};

/// What a path of the model is.
#[derive(Debug, Clone)]
enum Thing {
    File(Vec<u8>),
    Directory,
    Link(String),
}

/// Paths with at most three components, contents around the block borders.
fn things() -> impl Strategy<Value = BTreeMap<PathBuf, Thing>> {
    let name = prop_oneof!["[a-c]", "[a-z]{1,20}", Just("n".repeat(200)), Just("zeichen-ä-字".to_owned())];
    let path = proptest::collection::vec(name, 1..=3).prop_map(|parts| parts.iter().collect::<PathBuf>());
    let size = prop_oneof![Just(0usize), 1..40usize, 4090..4100usize, 8190..8195usize, 20_000..30_000usize];
    // Zeros to begin with, here and there: what may be holes.
    let content = (size, any::<u8>(), prop_oneof![3 => Just(0), 1 => 4096..13_000_usize]).prop_map(
        |(size, seed, zeros)| {
            (0..size).map(|at| if at < zeros { 0 } else { (at as u8).wrapping_mul(seed | 1) }).collect()
        },
    );
    let thing = prop_oneof![
        4 => content.prop_map(Thing::File),
        1 => Just(Thing::Directory),
        1 => "[a-z/.]{1,60}".prop_map(Thing::Link),
    ];
    proptest::collection::btree_map(path, thing, 1..12)
}

/// Make what can be made (a path below a file cannot), and say what was.
fn make(root: &Path, things: &BTreeMap<PathBuf, Thing>) -> BTreeMap<PathBuf, Thing> {
    let mut made = BTreeMap::new();
    for (path, thing) in things {
        let at = root.join(path);
        let parent = path.parent().unwrap();
        // Not through a link either, which may lead anywhere.
        let through_link = parent.ancestors().any(|above| matches!(made.get(above), Some(Thing::Link(_))));
        if through_link || fs::create_dir_all(root.join(parent)).is_err() {
            continue;
        }
        for directory in parent.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            made.entry(directory.to_path_buf()).or_insert(Thing::Directory);
        }
        let done = match thing {
            Thing::File(content) => fs::write(&at, content).is_ok(),
            Thing::Directory => fs::create_dir(&at).is_ok(),
            Thing::Link(target) => symlink(target, &at).is_ok(),
        };
        if done {
            made.insert(path.clone(), thing.clone());
        }
    }
    made
}

fn encrypted(plain: &Path, cipher: &Path) -> ModelFs {
    let passphrase = Passphrase::from_secret(&Secret::copy_of(b"test").unwrap()).unwrap();
    let options = EncryptOptions { scrypt_log_n: 10, ..EncryptOptions::default() };
    encrypt_tree(plain, cipher, &passphrase, &options).unwrap();
    let conf = Conf::parse(&fs::read(cipher.join("gocryptfs.conf")).unwrap()).unwrap();
    let keys = unlock(&conf, &passphrase).unwrap();
    let directory = LocalDir::open(cipher).unwrap();
    let tree = Tree::build(&directory, &keys).unwrap();
    assert_eq!(tree.skipped(), []);
    ModelFs::new(Arc::new(tree), Arc::new(directory), Arc::new(keys), Attributes::AsStored)
}

/// Inode of `path`, found name by name as the kernel does.
fn walk(fs: &ModelFs, path: &Path) -> Result<u64, FsError> {
    path.components().try_fold(1, |inode, name| Ok(fs.lookup(inode, name.as_os_str())?.inode))
}

/// Every question about everything that was made gets the plaintext's answer.
fn answers_as(
    fs: &ModelFs,
    plain: &Path,
    made: &BTreeMap<PathBuf, Thing>,
    reads: &[(u64, u32)],
) -> Result<(), TestCaseError> {
    let mut buffers = ReadBuffers::default();
    for (path, thing) in made {
        let inode = walk(fs, path).unwrap();
        let info = fs.info(inode).unwrap();
        match thing {
            Thing::Directory => {
                prop_assert_eq!(info.kind, Kind::Directory);
                prop_assert_eq!(fs.read(inode, 0, 1, &mut buffers).unwrap_err(), FsError::NotAFile);
                let shown: Vec<_> = fs.list(inode, 0).unwrap().map(|(_, name, _)| name.to_owned()).collect();
                let mut expected: Vec<_> = std::fs::read_dir(plain.join(path))
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name())
                    .collect();
                expected.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
                let dots = [OsStr::new(".").to_owned(), OsStr::new("..").to_owned()];
                prop_assert_eq!(shown, dots.into_iter().chain(expected).collect::<Vec<_>>());
            }
            Thing::Link(target) => {
                prop_assert_eq!(info.kind, Kind::Symlink);
                prop_assert_eq!(info.size, target.len() as u64);
                prop_assert_eq!(fs.read_link(inode).unwrap(), target.as_bytes());
            }
            Thing::File(content) => {
                prop_assert_eq!(info.kind, Kind::File);
                prop_assert_eq!(info.size, content.len() as u64);
                for (offset, size) in reads {
                    let from = (*offset as usize).min(content.len());
                    let to = (from + *size as usize).min(content.len());
                    prop_assert_eq!(
                        fs.read(inode, *offset, *size, &mut buffers).unwrap(),
                        &content[from..to]
                    );
                }
            }
        }
        prop_assert_eq!(walk(fs, &path.join("no such name")).unwrap_err(), FsError::NotFound);
        prop_assert_eq!(fs.xattr(inode, OsStr::new("user.none")).unwrap_err(), FsError::NoAttribute);
    }
    Ok(())
}

/// Any way in which gocryptfs stores directories, sensible combinations or not.
fn features() -> impl Strategy<Value = Features> {
    let cipher = proptest::sample::select(vec![Cipher::AesGcm, Cipher::AesSiv, Cipher::XChaCha20Poly1305]);
    let naming = proptest::sample::select(vec![Naming::DirIv, Naming::Deterministic, Naming::Plain]);
    let longest = prop_oneof![Just(255_u8), 1_u8..=255];
    (cipher, naming, longest, any::<bool>(), any::<bool>()).prop_map(
        |(cipher, naming, longest_name, raw64, hkdf)| Features { cipher, naming, longest_name, raw64, hkdf },
    )
}

/// A directory sealed object by object, as no writer of cai's can.
struct Sealed {
    keys: Keys,
    names: Names,
    source: Memory,
    /// Ciphertext path and IV of each plaintext directory.
    directories: BTreeMap<PathBuf, (PathBuf, DirIv)>,
    /// Ciphertext path of everything else.
    objects: BTreeMap<PathBuf, String>,
}

impl Sealed {
    fn new(features: Features) -> Self {
        let keys = keys_with(features);
        let names = keys.names();
        let (source, directories, objects) = (Memory::bare(), BTreeMap::new(), BTreeMap::new());
        let mut sealed = Sealed { keys, names, source, directories, objects };
        sealed.open_directory(Path::new(""), Path::new(""));
        sealed
    }

    fn open_directory(&mut self, path: &Path, stored: &Path) {
        let mut iv = DirIv::DETERMINISTIC;
        if self.keys.features().naming == Naming::DirIv {
            iv = DirIv::new([u8::try_from(self.directories.len()).unwrap() + 1; 16]).unwrap();
            let file = stored.join("gocryptfs.diriv");
            self.put(&file, iv.as_bytes().to_vec(), 1, 0);
        }
        self.directories.insert(path.to_owned(), (stored.to_owned(), iv));
    }

    fn put(&mut self, stored: &Path, content: Vec<u8>, nlink: u32, ino: u64) {
        let kind = EntryKind::File { len: content.len() as u64 };
        self.push(stored, kind, content, (0o100_640, nlink, ino));
    }

    fn push(
        &mut self,
        stored: &Path,
        kind: EntryKind,
        content: Vec<u8>,
        (mode, nlink, ino): (u32, u32, u64),
    ) {
        let mtime = std::time::SystemTime::UNIX_EPOCH;
        let attributes = ciphertext::Attributes { mode, uid: 1, gid: 2, nlink, ino, blocks: 24, mtime };
        self.source.push_with(stored.to_str().unwrap(), kind, content, attributes);
    }

    /// Where `path` is stored; its `.name` file is put beside it where it needs one.
    fn place(&mut self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap();
        let (directory, iv) = self.directories[path.parent().unwrap()].clone();
        if self.keys.features().naming == Naming::Plain {
            return directory.join(name);
        }
        let stored = self.names.encrypt(&iv, name).unwrap();
        if let Some((file, text)) = stored.text_file {
            self.put(&directory.join(file), text.into_bytes(), 1, 0);
        }
        directory.join(stored.object)
    }

    fn add(&mut self, path: &Path, thing: &Thing, nlink: u32, ino: u64) {
        let stored = self.place(path);
        self.objects.insert(path.to_owned(), stored.to_str().unwrap().to_owned());
        match thing {
            Thing::Directory => {
                self.push(&stored, EntryKind::Directory, Vec::new(), (0o040_750, 7, ino));
                self.open_directory(path, &stored);
            }
            Thing::Link(target) => {
                let target = match self.keys.features().naming {
                    Naming::Plain => target.clone().into_bytes(),
                    Naming::DirIv | Naming::Deterministic => self.seal(target).into_bytes(),
                };
                self.push(&stored, EntryKind::Symlink { target }, Vec::new(), (0o120_777, nlink, ino));
            }
            Thing::File(content) => {
                let mut sealed = seal_with(&self.keys, content, 9);
                let size = self.keys.layout().sealed_block();
                // Every second block of zeros is a hole, as a sparse file has it, and not zeros that were sealed.
                for (number, plain) in content.chunks_exact(4096).enumerate().step_by(2) {
                    if plain.iter().all(|&byte| byte == 0) {
                        sealed[18 + number * size..][..size].fill(0);
                    }
                }
                self.put(&stored, sealed, nlink, ino);
            }
        }
    }

    /// Sealed outside of any file: a target; decoded, the value of an attribute.
    fn seal(&self, text: &str) -> String {
        seal_target(&self.keys, &vec![5; self.keys.layout().nonce()], OsStr::new(text)).unwrap()
    }

    fn set_xattr(&mut self, path: &Path, name: &str, value: &str) {
        let stored = format!("user.gocryptfs.{}", self.names.encrypt_xattr(OsStr::new(name)).unwrap());
        let base64 = if self.keys.features().raw64 { &URL_SAFE_NO_PAD } else { &URL_SAFE };
        let sealed = base64.decode(self.seal(value)).unwrap();
        let at = self.objects.get(path).cloned().unwrap_or_default();
        self.source.set_xattr(&at, &stored, &sealed);
    }

    fn mount(self) -> ModelFs {
        let source = self.source.sorted();
        let tree = Tree::build(&source, &self.keys).unwrap();
        assert_eq!(tree.skipped(), []);
        ModelFs::new(Arc::new(tree), Arc::new(source), Arc::new(self.keys), Attributes::AsStored)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn model_answers_as_the_plaintext_does(things in things(), reads in proptest::collection::vec((0u64..40_000, 0u32..20_000), 8)) {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let made = make(&plain, &things);
        answers_as(&encrypted(&plain, &directory.path().join("cipher")), &plain, &made, &reads)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn model_with_any_features_answers_as_the_plaintext_does(
        features in features(),
        things in things(),
        reads in proptest::collection::vec((0u64..40_000, 0u32..20_000), 8),
        attributes in proptest::collection::btree_map("user\\.[a-z/]{2,60}", "[a-z]{1,300}", 0..4),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path();
        let mut made = make(plain, &things);
        // A second name for the first file, in the root.
        let file = made.iter().find(|(_, thing)| matches!(thing, Thing::File(_)));
        let linked = file.map(|(path, thing)| (path.clone(), thing.clone()));
        let second = PathBuf::from("second name");
        if let Some((path, thing)) = &linked {
            fs::hard_link(plain.join(path), plain.join(&second)).unwrap();
            made.insert(second.clone(), thing.clone());
        }
        // What has two names here is two objects to the source, and would need its attributes at both.
        let twice = |path: &PathBuf| linked.as_ref().is_some_and(|(first, _)| path == first || *path == second);
        let mut sealed = Sealed::new(features);
        for (number, (path, thing)) in (10..).zip(&made) {
            let (nlink, ino) = if twice(path) { (2, 7) } else { (1, number) };
            sealed.add(path, thing, nlink, ino);
        }
        let carriers = made.keys().filter(|path| !matches!(made[*path], Thing::Link(_)) && !twice(path));
        let carriers: Vec<PathBuf> = carriers.cloned().chain([PathBuf::new()]).collect();
        for (path, (name, value)) in carriers.iter().cycle().zip(&attributes) {
            sealed.set_xattr(path, name, value);
        }
        let fs = sealed.mount();
        answers_as(&fs, plain, &made, &reads)?;

        for (path, (name, value)) in carriers.iter().cycle().zip(&attributes) {
            let inode = walk(&fs, path).unwrap();
            let listed = fs.xattr_names(inode).unwrap();
            prop_assert!(listed.contains(&OsString::from(name)), "{:?} not in {:?}", name, listed);
            prop_assert_eq!(fs.xattr(inode, OsStr::new(name)).unwrap(), value.as_bytes());
            prop_assert_eq!(fs.xattr(inode, OsStr::new("security.capability")).unwrap_err(), FsError::NotSupported);
        }
        if let Some((first, _)) = &linked {
            let (one, other) = (walk(&fs, first).unwrap(), walk(&fs, &second).unwrap());
            prop_assert_eq!(one, other);
            let info = fs.info(one).unwrap();
            prop_assert_eq!((info.nlink, info.blocks, info.uid, info.gid, info.permissions), (2, 24, 1, 2, 0o640));
        }
    }
}

#[test]
fn special_files_are_shown_and_not_opened() {
    let mut sealed = Sealed::new(Features { naming: Naming::Plain, ..Features::default() });
    let kinds = [
        ("block", 0o060_600, 0x1_0302, Kind::BlockDevice),
        ("char", 0o020_666, 0x103, Kind::CharDevice),
        ("fifo", 0o010_644, 0, Kind::NamedPipe),
        ("socket", 0o140_755, 0, Kind::Socket),
    ];
    for (name, mode, rdev, _) in kinds {
        sealed.push(Path::new(name), EntryKind::Special { rdev }, Vec::new(), (mode, 1, 0));
    }
    let fs = sealed.mount();
    for (name, mode, rdev, kind) in kinds {
        let info = fs.lookup(1, OsStr::new(name)).unwrap();
        assert_eq!(
            (info.kind, u32::from(info.permissions), info.rdev, info.size),
            (kind, mode & 0o7777, rdev, 0)
        );
        assert_eq!(fs.open(info.inode).unwrap_err(), FsError::NotAFile);
        assert_eq!(fs.read(info.inode, 0, 1, &mut ReadBuffers::default()).unwrap_err(), FsError::NotAFile);
        assert_eq!(fs.xattr_names(info.inode).unwrap(), Vec::<OsString>::new());
    }
}

#[test]
fn listing_resumed_at_every_offset_misses_and_repeats_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::create_dir(&plain).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(plain.join(name), name).unwrap();
    }
    let fs = encrypted(&plain, &directory.path().join("cipher"));
    let names = |offset| fs.list(1, offset).unwrap().map(|(_, name, _)| name.to_owned()).collect::<Vec<_>>();
    let all = names(0);
    assert_eq!(all, [".", "..", "a", "b", "c"]);
    for (position, (next, ..)) in fs.list(1, 0).unwrap().enumerate() {
        assert_eq!(names(next), all[position + 1..]);
    }
    assert_eq!(names(u64::MAX).len(), 0);
}

#[test]
fn fixed_attributes_hide_the_stored_ones() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::create_dir_all(plain.join("sub")).unwrap();
    fs::write(plain.join("file"), "x").unwrap();
    let cipher = directory.path().join("cipher");
    drop(encrypted(&plain, &cipher));
    let passphrase = Passphrase::from_secret(&Secret::copy_of(b"test").unwrap()).unwrap();
    let conf = Conf::parse(&fs::read(cipher.join("gocryptfs.conf")).unwrap()).unwrap();
    let keys = unlock(&conf, &passphrase).unwrap();
    let local = LocalDir::open(&cipher).unwrap();
    let tree = Tree::build(&local, &keys).unwrap();
    let attributes = Attributes::Fixed { uid: 7, gid: 8, mode: 0o440 };
    let fs = ModelFs::new(Arc::new(tree), Arc::new(local), Arc::new(keys), attributes);
    let file = fs.lookup(1, OsStr::new("file")).unwrap();
    assert_eq!((file.uid, file.gid, file.permissions), (7, 8, 0o440));
    let sub = fs.lookup(1, OsStr::new("sub")).unwrap();
    assert_eq!((sub.uid, sub.gid, sub.permissions, sub.nlink), (7, 8, 0o550, 2));
    assert_eq!(fs.info(1).unwrap().nlink, 3);
    assert_eq!(fs.totals(4096), (1, 3));
}

#[test]
fn inode_that_does_not_exist_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let fs = encrypted(&plain, &directory.path().join("cipher"));
    for inode in [0, 2, u64::from(u32::MAX) + 1, (1 << 33) - 1] {
        assert_eq!(fs.info(inode).unwrap_err(), FsError::NotFound);
    }
    // What the higher bits number are other revisions of one mount.
    for inode in [1 << 33, (1 << 33) + 2, u64::MAX] {
        assert_eq!(fs.info(inode).unwrap_err(), FsError::Stale);
    }
}
