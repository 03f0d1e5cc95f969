//! Directories made by the real gocryptfs with each of its options, mounted by it and by `cai mount` side by side: both must
//! show the same, object by object and attribute by attribute, also where the ciphertext is damaged.
//!
//! Needs the `gocryptfs` binary, `/dev/fuse` and the right to mount; skipped without, unless `CAI_TEST_REQUIRE` names
//! `gocryptfs`. Sizes of directories and access times are left out: they say nothing about the format.

mod common;
#[path = "common/peer.rs"]
mod peer;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cai::gocryptfs::Conf;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use peer::{Mounted, Scratch, available, content, describe_file, populate, populate_more};

/// What both mounts must agree on about one object.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    what: String,
    mode: u32,
    links: u64,
    owner: (u32, u32),
    rdev: u64,
    blocks: u64,
    modified: (i64, i64),
    /// Values, or the error number in place of one.
    xattrs: BTreeMap<OsString, Result<Vec<u8>, Option<i32>>>,
    /// The first path with the same inode number.
    first: PathBuf,
}

type Tree = BTreeMap<PathBuf, Shown>;

/// Everything at and below `root`, as the kernel shows it.
fn everything(root: &Path) -> Tree {
    let (mut shown, mut firsts) = (Tree::new(), BTreeMap::new());
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            // The same order everywhere, so that the first path of a file is the same one.
            names.sort();
            pending.extend(names);
        }
        let name = path.strip_prefix(root).unwrap().to_owned();
        let first = firsts.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
        shown.insert(name, show(&path, &meta, first));
    }
    shown
}

fn show(path: &Path, meta: &Metadata, first: PathBuf) -> Shown {
    let kind = meta.file_type();
    let what = if kind.is_dir() {
        "directory".to_owned()
    } else if kind.is_symlink() {
        format!("symlink of {} bytes to {:?}", meta.len(), fs::read_link(path).unwrap())
    } else if kind.is_file() {
        let file = File::open(path).unwrap();
        describe_file(meta.len(), |offset, piece| file.read_exact_at(piece, offset).unwrap())
    } else {
        let kinds = [kind.is_fifo(), kind.is_socket(), kind.is_char_device(), kind.is_block_device()];
        format!("fifo, socket, character or block device: {kinds:?}")
    };
    Shown {
        what,
        mode: meta.mode(),
        links: meta.nlink(),
        owner: (meta.uid(), meta.gid()),
        rdev: meta.rdev(),
        blocks: meta.blocks(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        xattrs: xattrs(path, kind.is_symlink()),
        first,
    }
}

fn xattrs(path: &Path, link: bool) -> BTreeMap<OsString, Result<Vec<u8>, Option<i32>>> {
    if link {
        return BTreeMap::new();
    }
    let number = |error: std::io::Error| error.raw_os_error();
    let listed = xattr::list(path).unwrap();
    // Not listed by anybody, but the answers must be the same.
    let asked = ["user.absent", "security.capability", "system.posix_acl_access", "user.gocryptfs.AAAA"];
    let names = listed.chain(asked.map(OsString::from));
    names
        .map(|name| (name.clone(), xattr::get(path, &name).map(Option::unwrap_or_default).map_err(number)))
        .collect()
}

fn cai_mount(scratch: &Scratch, cipher: &str, point: &str, log: Stdio) -> Mounted {
    fs::create_dir_all(scratch.path(point)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
    command.args(["mount", "--passfile"]).arg(scratch.path("passfile"));
    command.args([scratch.path(cipher), scratch.path(point)]).stderr(log);
    Mounted::start(&mut command, scratch.path(point))
}

/// Mount `cipher` with both, read-only, and hold everything that they show against each other.
fn assert_same(scratch: &Scratch, cipher: &str, least: usize) -> Tree {
    // Blocks are allocated when written back: not between two looks.
    nix::unistd::syncfs(File::open(scratch.path(cipher)).unwrap()).unwrap();
    let theirs = {
        let mounted = scratch.mount_at(cipher, "plain", &["-ro"]);
        everything(&mounted.point)
    };
    let ours = {
        let mounted = cai_mount(scratch, cipher, "ours", Stdio::inherit());
        everything(&mounted.point)
    };
    assert!(theirs.len() >= least, "only {} objects", theirs.len());
    for (path, shown) in &theirs {
        assert_eq!(ours.get(path), Some(shown), "{path:?}");
    }
    assert_eq!(ours.len(), theirs.len());
    theirs
}

/// What an option can make a difference to, and one of everything that a directory can hold.
fn fill(root: &Path) {
    populate(root);
    populate_more(root);
    let set = |path: &Path, name: &str, value: &[u8]| xattr::set(path, name, value).unwrap();
    for path in
        [root, &root.join("size-1"), &root.join("a"), &root.join("n".repeat(255)), &root.join("link-1")]
    {
        set(path, "user.short", b"value");
        set(path, "user.empty", b"");
        set(path, "user.long", &content(3000));
        set(path, "trusted.other-namespace", b"\xff\0\x01");
        set(path, "user.with/slash and \u{e9}", b"x");
    }
    // What `setfacl -m u:1234:r` sets; version 2, five entries. Not every file system has access lists.
    let entries =
        [(1_u16, 6_u16, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 4, u32::MAX)];
    let bytes = entries.into_iter().flat_map(|(tag, access, id)| {
        tag.to_le_bytes().into_iter().chain(access.to_le_bytes()).chain(id.to_le_bytes())
    });
    let list: Vec<u8> = 2_u32.to_le_bytes().into_iter().chain(bytes).collect();
    let _ = xattr::set(root.join("size-2"), "system.posix_acl_access", &list);

    drop(UnixListener::bind(root.join("socket")).unwrap());
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    mknod(&root.join("null"), SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
    mknod(&root.join("b".repeat(200)), SFlag::S_IFBLK, mode, makedev(259, 300)).unwrap();
    fs::hard_link(root.join("relative"), root.join("relative too")).unwrap();
    fs::hard_link(root.join("fifo"), root.join("a/fifo too")).unwrap();
    std::os::unix::fs::chown(root.join("size-15"), Some(1234), Some(5678)).unwrap();
    fs::set_permissions(root.join("size-16"), fs::Permissions::from_mode(0o4711)).unwrap();
}

/// A directory made with `options` to `-init`, filled by the real gocryptfs, shown by both.
fn option_is_shown_the_same(options: &[&str], features: &str) {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    scratch.init(options);
    let conf = Conf::read_file(&scratch.path("cipher")).unwrap();
    assert_eq!(format!("{:?}", conf.features()), features);
    fill_and_compare(&scratch);
}

fn fill_and_compare(scratch: &Scratch) {
    {
        let mounted = scratch.mount(&[]);
        // In a subdirectory, because a plain name in the root must not be that of the conf.
        let root = mounted.point.join("all");
        fs::create_dir(&root).unwrap();
        fill(&root);
        xattr::set(&mounted.point, "user.root", b"of the root").unwrap();
    }
    assert_same(scratch, "cipher", 80);
}

#[test]
fn default_options_are_shown_the_same() {
    option_is_shown_the_same(
        &[],
        "Features { cipher: AesGcm, naming: DirIv, longest_name: 255, raw64: true, hkdf: true }",
    );
}

#[test]
fn xchacha_is_shown_the_same() {
    option_is_shown_the_same(
        &["-xchacha"],
        "Features { cipher: XChaCha20Poly1305, naming: DirIv, longest_name: 255, raw64: true, hkdf: true }",
    );
}

#[test]
fn aessiv_is_shown_the_same() {
    option_is_shown_the_same(
        &["-aessiv"],
        "Features { cipher: AesSiv, naming: DirIv, longest_name: 255, raw64: true, hkdf: true }",
    );
}

#[test]
fn plaintext_names_are_shown_the_same() {
    option_is_shown_the_same(
        &["-plaintextnames"],
        "Features { cipher: AesGcm, naming: Plain, longest_name: 255, raw64: false, hkdf: true }",
    );
}

#[test]
fn deterministic_names_are_shown_the_same() {
    option_is_shown_the_same(
        &["-deterministic-names"],
        "Features { cipher: AesGcm, naming: Deterministic, longest_name: 255, raw64: true, hkdf: true }",
    );
}

#[test]
fn shorter_long_names_are_shown_the_same() {
    option_is_shown_the_same(
        &["-longnamemax", "100"],
        "Features { cipher: AesGcm, naming: DirIv, longest_name: 100, raw64: true, hkdf: true }",
    );
}

#[test]
fn xchacha_with_deterministic_and_shorter_long_names_is_shown_the_same() {
    option_is_shown_the_same(
        &["-xchacha", "-deterministic-names", "-longnamemax", "62"],
        "Features { cipher: XChaCha20Poly1305, naming: Deterministic, longest_name: 62, raw64: true, hkdf: true }",
    );
}

#[test]
fn aessiv_with_plaintext_names_is_shown_the_same() {
    option_is_shown_the_same(
        &["-aessiv", "-plaintextnames"],
        "Features { cipher: AesSiv, naming: Plain, longest_name: 255, raw64: false, hkdf: true }",
    );
}

/// A conf as gocryptfs 0.7 to 1.2 wrote it, which no version writes any more: no HKDF, base64 with padding, and the master key
/// under a 12-byte nonce. That the real gocryptfs opens it shows that it is one.
fn old_conf(flags: &[&str]) -> String {
    use aes_gcm::aead::{Aead, KeyInit, Payload};
    use base64::Engine;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let (salt, nonce, mut key) = ([5; 32], [6; 12], [0; 32]);
    scrypt::scrypt(b"test", &salt, &scrypt::Params::new(10, 8, 1).unwrap(), &mut key).unwrap();
    let payload = Payload { msg: &[7; 32], aad: &[0; 8] };
    let sealed = aes_gcm::Aes256Gcm::new(&key.into()).encrypt(&nonce.into(), payload).unwrap();
    serde_json::json!({
        "EncryptedKey": base64(&[&nonce[..], &sealed].concat()),
        "ScryptObject": { "Salt": base64(&salt), "N": 1024, "R": 8, "P": 1, "KeyLen": 32 },
        "Version": 2,
        "FeatureFlags": flags,
    })
    .to_string()
}

#[test]
fn directories_of_old_versions_are_shown_the_same() {
    if !available() {
        return;
    }
    for flags in [
        &["GCMIV128", "DirIV", "EMENames"][..],
        &["GCMIV128", "DirIV", "EMENames", "LongNames", "AESSIV"],
        &["GCMIV128", "PlaintextNames"],
        &["GCMIV128"],
    ] {
        let scratch = Scratch::new();
        fs::write(scratch.path("cipher/gocryptfs.conf"), old_conf(flags)).unwrap();
        if flags.contains(&"DirIV") {
            fs::write(scratch.path("cipher/gocryptfs.diriv"), [8; 16]).unwrap();
        }
        fill_and_compare(&scratch);
    }
}

/// The ciphertext that `gocryptfs -reverse` shows of a plaintext directory, and a copy of it.
#[test]
fn reverse_views_and_copies_of_them_are_shown_the_same() {
    if !available() {
        return;
    }
    for options in [&[][..], &["-plaintextnames"], &["-deterministic-names"]] {
        let scratch = Scratch::new();
        let source = scratch.path("source");
        populate(&source);
        // In the root of a view with plain names it would stand in the place of the conf.
        fs::remove_file(source.join("gocryptfs.conf")).unwrap();
        fs::hard_link(source.join("size-8193"), source.join("a/hard link")).unwrap();
        let mut init = scratch.gocryptfs();
        init.args(["-init", "-reverse", "-scryptn", "10"]).args(options).arg(&source);
        assert!(init.status().unwrap().success(), "{options:?}");
        for directory in ["view", "copy"] {
            fs::create_dir(scratch.path(directory)).unwrap();
        }
        let _view = scratch.mount_at("source", "view", &["-reverse"]);
        let shown = assert_same(&scratch, "view", 60);
        let copied = Command::new("cp")
            .arg("-a")
            .args([scratch.path("view/."), scratch.path("copy")])
            .status()
            .unwrap();
        assert!(copied.success());
        let copy = assert_same(&scratch, "copy", 60);

        // And all of it is what was there in the first place.
        let mut plain = everything(&source);
        plain.remove(Path::new(".gocryptfs.reverse.conf")).unwrap();
        assert_eq!(plain.keys().collect::<Vec<_>>(), shown.keys().collect::<Vec<_>>());
        for (path, object) in plain.iter().filter(|(path, _)| !path.as_os_str().is_empty()) {
            for other in [&shown[path], &copy[path]] {
                let facts = |shown: &Shown| (shown.what.clone(), shown.mode, shown.modified);
                assert_eq!(facts(object), facts(other), "{options:?} {path:?}");
            }
        }
    }
}

type Damage<'a> = Box<dyn Fn(&mut Vec<u8>) + 'a>;

/// Ways to damage a file of five blocks, the last one short, with another file of the same kind beside it.
fn damages(block: usize, other: &[u8]) -> Vec<(&'static str, Damage<'_>)> {
    let at = move |number: usize| 18 + number * block;
    vec![
        ("flip-first", Box::new(move |file| file[at(0) + 40] ^= 1)),
        ("flip-middle", Box::new(move |file| file[at(2) + 4000] ^= 0x80)),
        ("flip-last", Box::new(|file| *file.last_mut().unwrap() ^= 1)),
        ("flip-nonce", Box::new(move |file| file[at(1)] ^= 4)),
        ("flip-id", Box::new(|file| file[10] ^= 1)),
        ("flip-version", Box::new(|file| file[0] ^= 1)),
        ("zero-id", Box::new(|file| file[2..18].fill(0))),
        ("zero-block", Box::new(move |file| file[at(1)..at(2)].fill(0))),
        ("zero-tail", Box::new(move |file| file[at(4)..].fill(0))),
        ("cut-in-block", Box::new(move |file| file.truncate(at(2) + 100))),
        ("cut-in-nonce", Box::new(move |file| file.truncate(at(3) + 5))),
        ("cut-at-border", Box::new(move |file| file.truncate(at(3)))),
        ("cut-in-header", Box::new(|file| file.truncate(9))),
        ("longer", Box::new(|file| file.extend_from_slice(&[1; 20]))),
        (
            "swap",
            Box::new(move |file| {
                let (front, back) = file.split_at_mut(at(3));
                front[at(1)..at(2)].swap_with_slice(&mut back[..block]);
            }),
        ),
        ("splice", Box::new(move |file| file[at(2)..at(3)].copy_from_slice(&other[at(2)..at(3)]))),
        ("splice-tail", Box::new(move |file| file[at(4)..].copy_from_slice(&other[at(4)..]))),
    ]
}

/// Read block by block: bytes, or the number of the error.
fn blocks(path: &Path) -> Vec<Result<Vec<u8>, Option<i32>>> {
    let file = File::open(path).unwrap();
    let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let read = |start: usize| {
        let mut piece = vec![0; (len - start).min(4096)];
        let outcome = file.read_exact_at(&mut piece, start as u64);
        outcome.map(|()| piece).map_err(|error| error.raw_os_error())
    };
    (0..len).step_by(4096).map(read).collect()
}

#[test]
fn damage_of_every_kind_under_every_cipher_is_eio_for_the_same_blocks() {
    if !available() {
        return;
    }
    let plain = content(4 * 4096 + 1000);
    for (options, block) in [(&[][..], 4128), (&["-aessiv"], 4128), (&["-xchacha"], 4136)] {
        let scratch = Scratch::new();
        scratch.init(&[options, &["-plaintextnames"]].concat());
        let names: Vec<_> = damages(block, &[]).into_iter().map(|(name, _)| name).collect();
        {
            let mounted = scratch.mount(&[]);
            for name in names.iter().chain(&["other"]) {
                fs::write(mounted.point.join(name), &plain).unwrap();
            }
        }
        let cipher = |name: &str| scratch.path("cipher").join(name);
        let other = fs::read(cipher("other")).unwrap();
        for (name, damage) in damages(block, &other) {
            let mut stored = fs::read(cipher(name)).unwrap();
            damage(&mut stored);
            fs::write(cipher(name), stored).unwrap();
        }
        let log = File::create(scratch.path("log")).unwrap();
        let theirs = scratch.mount(&["-ro"]);
        let ours = cai_mount(&scratch, "cipher", "ours", log.into());
        let mut lines = 0;
        for name in &names {
            let found = blocks(&ours.point.join(name));
            // Twice: what is said about a block is said once.
            assert_eq!(found, blocks(&ours.point.join(name)), "{options:?} {name}");
            assert_eq!(found, blocks(&theirs.point.join(name)), "{options:?} {name}");
            for (number, bytes) in found.iter().enumerate() {
                match bytes {
                    Err(error) => assert_eq!(*error, Some(nix::libc::EIO), "{options:?} {name}"),
                    Ok(bytes) if (*name, number) == ("zero-block", 1) => assert_eq!(bytes, &[0; 4096]),
                    Ok(bytes) => {
                        assert!(plain[number * 4096..].starts_with(bytes), "{options:?} {name} {number}")
                    }
                }
            }
            lines += expect_lines(&scratch, name, &found);
        }
        assert_eq!(lines, 19, "{options:?}");
    }
}

/// The log has one line for each damaged block of `name`, and one for a file whose header is damaged. How many those are.
fn expect_lines(scratch: &Scratch, name: &str, found: &[Result<Vec<u8>, Option<i32>>]) -> usize {
    let log = fs::read_to_string(scratch.path("log")).unwrap();
    let of = |line: &&str| line.contains("ERROR") && line.contains(&format!(" {name}, block "));
    let lines: Vec<_> = log.lines().filter(of).collect();
    let damaged: Vec<usize> = (0..found.len()).filter(|&number| found[number].is_err()).collect();
    let header = matches!(name, "flip-version" | "zero-id");
    let expected = if header { vec![0] } else { damaged };
    // In the order in which the kernel asked, which is not ours.
    assert_eq!(lines.len(), expected.len(), "{name}: {lines:#?}");
    for number in expected {
        let about = format!("block {number} is corrupt: ");
        assert!(lines.iter().any(|line| line.contains(&about)), "{name} has no {about:?}: {lines:#?}");
    }
    lines.len()
}

/// Every set of flags that the real gocryptfs accepts is accepted, and no other. Only `FIDO2` is left out: gocryptfs accepts it
/// and then wants the token.
#[test]
fn flags_are_accepted_as_gocryptfs_accepts_them() {
    if !available() {
        return;
    }
    let scratch = Scratch::new();
    scratch.init(&[]);
    let path = scratch.path("cipher/gocryptfs.conf");
    let mut conf: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut compare = |flags: &[&str], long_name_max: u64| {
        conf["FeatureFlags"] = serde_json::json!(flags);
        conf["LongNameMax"] = serde_json::json!(long_name_max);
        // The master key's nonce is shorter without HKDF; gocryptfs does not look at the key here.
        conf["EncryptedKey"] = serde_json::json!("A".repeat(if flags.contains(&"HKDF") { 86 } else { 80 }));
        if flags.contains(&"HKDF") {
            conf["EncryptedKey"] = serde_json::json!(format!("{}==", "A".repeat(86)));
        }
        fs::write(&path, conf.to_string()).unwrap();
        let mut info = Command::new("gocryptfs");
        info.arg("-info").arg(scratch.path("cipher")).stdout(Stdio::null()).stderr(Stdio::null());
        let theirs = info.status().unwrap().success();
        let ours = Conf::read_file(&scratch.path("cipher"));
        assert_eq!(ours.is_ok(), theirs, "{flags:?}, LongNameMax {long_name_max}: {:?}", ours.err());
    };
    let subsets = |of: &[&'static str]| -> Vec<Vec<&'static str>> {
        let member = |set: usize, bit: usize| set >> bit & 1 == 1;
        let pick = |set| (0..of.len()).filter(|&bit| member(set, bit)).map(|bit| of[bit]).collect();
        (0..1 << of.len()).map(pick).collect()
    };
    let names = ["DirIV", "EMENames", "LongNames", "Raw64"];
    for cipher in subsets(&["HKDF", "GCMIV128", "AESSIV", "XChaCha20Poly1305"]) {
        for names in [&[][..], &["PlaintextNames"], &names, &["PlaintextNames", "Raw64"]] {
            compare(&[&cipher[..], names].concat(), 0);
        }
    }
    for names in subsets(&["PlaintextNames", "DirIV", "EMENames", "LongNames", "Raw64"]) {
        compare(&[&["HKDF", "GCMIV128"], &names[..]].concat(), 0);
    }
    for (flag, value) in
        [(true, 0), (true, 1), (true, 100), (true, 255), (true, 256), (false, 100), (false, 255)]
    {
        let flags = [&["HKDF", "GCMIV128"][..], &names, if flag { &["LongNameMax"] } else { &[] }].concat();
        compare(&flags, value);
    }
    compare(&["HKDF", "GCMIV128", "StrangeFeature"], 0);
}

#[test]
fn directory_that_cannot_be_opened_is_refused_with_the_flags_name_and_status_78() {
    let scratch = Scratch::new();
    let default = ["GCMIV128", "DirIV", "EMENames"];
    for (flags, said) in [
        (&["StrangeFeature"][..], "feature flag \"StrangeFeature\" is unknown"),
        (&["FIDO2"], "opened with a FIDO2 token, which cai cannot ask (feature flag FIDO2)"),
        (&["PlaintextNames"], "feature flags PlaintextNames and EMENames exclude each other"),
        (&["XChaCha20Poly1305"], "feature flags XChaCha20Poly1305 and GCMIV128 exclude each other"),
        (&["LongNameMax"], "field LongNameMax is 0 (0: not set), and its feature flag says otherwise"),
    ] {
        fs::write(scratch.path("cipher/gocryptfs.conf"), old_conf(&[&default, flags].concat())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
        command.args(["mount", "--passfile"]).arg(scratch.path("passfile"));
        let output = command.args([scratch.path("cipher"), scratch.path("plain")]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{errors}");
        assert!(errors.contains(said), "{errors}");
    }
}

/// A name that is neither listed nor found, in the root of each way to name things.
#[test]
fn files_of_the_format_are_hidden_where_they_are_the_formats() {
    if !available() {
        return;
    }
    for (options, hidden) in [
        (&[][..], &["gocryptfs.diriv", "gocryptfs.conf"][..]),
        (&["-deterministic-names"], &["gocryptfs.conf"]),
        (&["-plaintextnames"], &["gocryptfs.conf"]),
    ] {
        let scratch = Scratch::new();
        scratch.init(options);
        {
            let mounted = scratch.mount(&[]);
            fs::write(mounted.point.join("n".repeat(255)), b"long").unwrap();
        }
        let shown = assert_same(&scratch, "cipher", 2);
        assert_eq!(shown.len(), 2, "{options:?}: {shown:?}");
        for name in hidden {
            assert!(scratch.path("cipher").join(name).exists(), "{options:?} {name}");
            assert!(!shown.contains_key(Path::new(OsStr::from_bytes(name.as_bytes()))));
        }
    }
}
