//! The real gocryptfs reads what cai writes, and cai reads what the real gocryptfs writes.
//!
//! Needs the `gocryptfs` binary, `/dev/fuse` and the right to mount; skipped without, unless `CAI_TEST_REQUIRE` names
//! `gocryptfs`.

mod common;
#[path = "common/peer.rs"]
mod peer;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use cai::ciphertext::Ciphertext;
use cai::gocryptfs::{
    Conf, EncryptOptions, FileReader, FormatError, Keys, Kind, LocalDir, NodeId, Passphrase, Tree,
    encrypt_tree, unlock,
};
use cai::keyring::Secret;
use peer::{
    LOG_N, Manifest, Scratch, Seen, available, content, describe_file, manifest_of_directory, populate,
    populate_more,
};

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

#[test]
fn directory_written_by_gocryptfs_is_read_the_same() {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    scratch.init(&[]);
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
    scratch.init(&[]);
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
    scratch.init(&[]);
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
