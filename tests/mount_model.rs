//! `mount::ModelFs` shows exactly the files that were encrypted: the same random questions asked of it and of the plaintext
//! directory get the same answers. No kernel involved.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cai::gocryptfs::{Conf, EncryptOptions, LocalDir, Passphrase, Tree, encrypt_tree, unlock};
use cai::keyring::Secret;
use cai::mount::{Attributes, FsError, Kind, ModelFs, ReadBuffers};
use proptest::prelude::*;

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
    let content = (size, any::<u8>())
        .prop_map(|(size, seed)| (0..size).map(|at| (at as u8).wrapping_mul(seed | 1)).collect());
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
        if fs::create_dir_all(root.join(parent)).is_err() {
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn model_answers_as_the_plaintext_does(things in things(), reads in proptest::collection::vec((0u64..40_000, 0u32..20_000), 8)) {
        let directory = tempfile::tempdir().unwrap();
        let plain = directory.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let made = make(&plain, &things);
        let fs = encrypted(&plain, &directory.path().join("cipher"));
        let mut buffers = ReadBuffers::default();

        for (path, thing) in &made {
            let inode = walk(&fs, path).unwrap();
            let info = fs.info(inode).unwrap();
            match thing {
                Thing::Directory => {
                    prop_assert_eq!(info.kind, Kind::Directory);
                    prop_assert_eq!(fs.read(inode, 0, 1, &mut buffers).unwrap_err(), FsError::NotAFile);
                    let shown: Vec<_> = fs.list(inode, 0).unwrap().map(|(_, name, _)| name.to_owned()).collect();
                    let mut expected: Vec<_> =
                        std::fs::read_dir(plain.join(path)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
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
                    for (offset, size) in &reads {
                        let from = (*offset as usize).min(content.len());
                        let to = (from + *size as usize).min(content.len());
                        prop_assert_eq!(fs.read(inode, *offset, *size, &mut buffers).unwrap(), &content[from..to]);
                    }
                }
            }
            prop_assert_eq!(walk(&fs, &path.join("no such name")).unwrap_err(), FsError::NotFound);
        }
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
    for inode in [0, 2, u64::from(u32::MAX) + 1, u64::MAX] {
        assert_eq!(fs.info(inode).unwrap_err(), FsError::NotFound);
    }
}
