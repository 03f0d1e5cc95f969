//! The writer against the reader, and what it refuses; `tests/gocryptfs_peer.rs` has it against the real gocryptfs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Mutex;

use super::*;
use crate::gocryptfs::{CONF_NAME, Conf, FileReader, FormatError, Kind, LocalDir, Tree, unlock};
use crate::keyring::Secret;

struct Dirs {
    root: tempfile::TempDir,
}

impl Dirs {
    /// With an empty source directory; the target is missing.
    fn new() -> Self {
        let dirs = Dirs { root: tempfile::tempdir().unwrap() };
        fs::create_dir(dirs.src()).unwrap();
        dirs
    }

    fn src(&self) -> PathBuf {
        self.root.path().join("src")
    }

    fn dst(&self) -> PathBuf {
        self.root.path().join("dst")
    }

    fn partial(&self) -> PathBuf {
        self.root.path().join("dst.partial")
    }

    fn encrypt_with(&self, options: &EncryptOptions<'_>) -> Result<Encrypted, EncryptError> {
        encrypt_tree(&self.src(), &self.dst(), &passphrase(), options)
    }

    fn encrypt(&self) -> Result<Encrypted, EncryptError> {
        self.encrypt_with(&options())
    }

    /// Whether something a mount would accept has been written.
    fn looks_finished(&self) -> bool {
        self.dst().exists() || self.partial().join(CONF_NAME).exists()
    }

    /// Make a complete target what it was before its last two steps.
    fn unfinish(&self) {
        fs::rename(self.dst(), self.partial()).unwrap();
        fs::rename(self.partial().join(CONF_NAME), self.partial().join(UNFINISHED_CONF)).unwrap();
    }

    /// Where the file called `name` in the source is stored below `base`.
    fn stored(&self, base: &Path, name: &str) -> PathBuf {
        let source = LocalDir::open(base).unwrap();
        let conf =
            [CONF_NAME, UNFINISHED_CONF].iter().find_map(|conf| fs::read(base.join(conf)).ok()).unwrap();
        let keys = unlock(&Conf::parse(&conf).unwrap(), &passphrase()).unwrap();
        let tree = Tree::build(&source, &keys).unwrap();
        let at = Path::new(name).iter().fold(tree.root(), |at, name| tree.lookup(at, name).unwrap().id);
        let entry = tree.node(at).unwrap().entry.unwrap();
        base.join(&crate::ciphertext::Ciphertext::entries(&source)[entry.0 as usize].path)
    }
}

fn options() -> EncryptOptions<'static> {
    EncryptOptions { scrypt_log_n: 10, ..EncryptOptions::default() }
}

fn passphrase() -> Passphrase {
    Passphrase::from_secret(&Secret::copy_of(b"test").unwrap()).unwrap()
}

fn content_of(dst: &Path, name: &str) -> Option<Vec<u8>> {
    let source = LocalDir::open(dst).unwrap();
    let keys = unlock(&Conf::read_from(&source).unwrap(), &passphrase()).unwrap();
    let tree = Tree::build(&source, &keys).unwrap();
    assert_eq!(tree.skipped(), []);
    let node =
        Path::new(name).iter().try_fold(tree.root(), |at, name| tree.lookup(at, name).map(|n| n.id))?;
    let Kind::File { plain_len, .. } = tree.node(node)?.kind else { return None };
    let mut out = vec![0; usize::try_from(plain_len).unwrap()];
    let read = FileReader::new(&tree, node)?.read(&source, &keys, 0, &mut out, &mut Vec::new());
    assert_eq!(read.unwrap(), out.len());
    Some(out)
}

#[test]
fn large_file_sealed_by_several_threads_reads_back_whole() {
    let dirs = Dirs::new();
    let plain: Vec<u8> = (0..=250).cycle().take(11_000_001).collect();
    fs::write(dirs.src().join("big"), &plain).unwrap();
    fs::write(dirs.src().join("small"), b"x").unwrap();
    let seen = Mutex::new(Vec::new());
    let progress = |progress| seen.lock().unwrap().push(progress);
    let encrypted = dirs.encrypt_with(&EncryptOptions { progress: Some(&progress), ..options() }).unwrap();
    assert_eq!((encrypted.files, encrypted.bytes), (2, 11_000_002));
    assert!(content_of(&dirs.dst(), "big").is_some_and(|read| read == plain));
    let seen = seen.into_inner().unwrap();
    let finished = Progress { done: 11_000_002, total: 11_000_002 };
    assert!(seen.contains(&finished) && seen.len() > 20, "{} calls", seen.len());
    assert!(seen.iter().all(|progress| progress.done <= progress.total));
}

#[test]
fn nothing_is_encrypted_twice_to_the_same_bytes() {
    let dirs = Dirs::new();
    fs::write(dirs.src().join("one"), [7; 9000]).unwrap();
    fs::write(dirs.src().join("two"), [7; 9000]).unwrap();
    dirs.encrypt().unwrap();
    let mut blocks = std::collections::HashSet::new();
    let mut files = 0;
    for entry in fs::read_dir(dirs.dst()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        if bytes.len() == 18 + 9000 + 3 * 32 {
            files += 1;
            // File id, then nonce and content of each block: all fresh.
            assert!(blocks.insert(bytes[2..18].to_vec()));
            assert!(bytes[18..].chunks(4128).all(|block| blocks.insert(block[..16].to_vec())));
        }
    }
    assert_eq!((files, blocks.len()), (2, 8));
}

#[test]
fn formats_own_files_are_read_only_and_the_conf_is_for_the_owner_alone() {
    let dirs = Dirs::new();
    fs::write(dirs.src().join("n".repeat(200)), b"").unwrap();
    dirs.encrypt().unwrap();
    let mut modes: Vec<(String, u32)> = fs::read_dir(dirs.dst())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().mode() & 0o7777))
        .collect();
    modes.retain(|(name, _)| !name.starts_with("gocryptfs.longname.") || name.ends_with(".name"));
    modes.sort();
    let found: Vec<u32> = modes.iter().map(|(_, mode)| *mode).collect();
    assert_eq!(found, [0o400, 0o444, 0o444], "{modes:?}");
}

#[test]
fn target_that_is_not_empty_is_left_as_it_is() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.dst()).unwrap();
    fs::write(dirs.dst().join("precious"), b"data").unwrap();
    assert!(matches!(dirs.encrypt(), Err(EncryptError::NotEmpty { path }) if path == dirs.dst()));
    assert_eq!(fs::read_dir(dirs.dst()).unwrap().count(), 1);
    fs::remove_file(dirs.dst().join("precious")).unwrap();
    assert!(dirs.encrypt().is_ok(), "an empty directory is taken");
}

#[test]
fn source_and_target_in_each_other_are_refused_and_nothing_is_made() {
    let dirs = Dirs::new();
    fs::create_dir_all(dirs.src().join("inner")).unwrap();
    symlink(dirs.src(), dirs.root.path().join("alias")).unwrap();
    for (src, dst) in [
        ("src", "src"),
        ("src", "src/new"),
        ("src", "src/inner"),
        ("src/inner", "src"),
        ("alias", "src/new"),
        ("src", "alias/new"),
        ("src", "src/../src/new"),
    ] {
        let result =
            encrypt_tree(&dirs.root.path().join(src), &dirs.root.path().join(dst), &passphrase(), &options());
        assert!(matches!(result, Err(EncryptError::Nested { .. })), "{src} into {dst}");
    }
    assert_eq!(fs::read_dir(dirs.src()).unwrap().count(), 1);
}

#[test]
fn source_that_is_missing_or_a_file_makes_no_target() {
    let dirs = Dirs::new();
    fs::write(dirs.root.path().join("file"), b"").unwrap();
    for src in ["missing", "file"] {
        let src = dirs.root.path().join(src);
        let result = encrypt_tree(&src, &dirs.dst(), &passphrase(), &options());
        assert!(matches!(&result, Err(EncryptError::Source { path, .. }) if *path == src), "{result:?}");
    }
    assert!(!dirs.dst().exists() && !dirs.partial().exists());
}

#[test]
fn failure_on_the_way_leaves_no_conf() {
    let dirs = Dirs::new();
    fs::write(dirs.src().join("a"), b"fine").unwrap();
    symlink("t".repeat(3040), dirs.src().join("b")).unwrap();
    let error = dirs.encrypt().unwrap_err();
    assert!(matches!(&error, EncryptError::Link { path, .. } if *path == dirs.src().join("b")), "{error}");
    assert!(dirs.partial().exists() && !dirs.looks_finished());
    assert!(error.hint().contains("goes on where it was"), "{}", error.hint());
}

#[test]
fn file_written_to_meanwhile_is_a_failure_and_leaves_no_conf() {
    let dirs = Dirs::new();
    let path = dirs.src().join("file");
    fs::write(&path, vec![1; 700_000]).unwrap();
    let once = std::sync::Once::new();
    let grow = |_| once.call_once(|| fs::write(&path, vec![2; 700_001]).unwrap());
    let error = dirs.encrypt_with(&EncryptOptions { progress: Some(&grow), ..options() }).unwrap_err();
    assert!(matches!(&error, EncryptError::Changed { path: changed } if *changed == path), "{error}");
    assert!(!dirs.looks_finished());
}

#[test]
fn dereference_stores_what_symlinks_point_to() {
    let dirs = Dirs::new();
    let outside = dirs.root.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("blob"), b"weights").unwrap();
    symlink(outside.join("blob"), dirs.src().join("model")).unwrap();
    symlink("../outside", dirs.src().join("dir")).unwrap();
    let kept = dirs.encrypt().unwrap();
    assert_eq!((kept.symlinks, kept.files), (2, 0));
    assert_eq!(kept.escaping, [Path::new("dir"), Path::new("model")]);
    fs::remove_dir_all(dirs.dst()).unwrap();
    let followed = dirs.encrypt_with(&EncryptOptions { dereference: true, ..options() }).unwrap();
    assert_eq!((followed.symlinks, followed.files, followed.directories), (0, 2, 1));
    assert_eq!(followed.escaping, [] as [PathBuf; 0]);
    assert_eq!(content_of(&dirs.dst(), "model").unwrap(), b"weights");
    assert_eq!(content_of(&dirs.dst(), "dir/blob").unwrap(), b"weights");
}

#[test]
fn dereference_of_a_circle_or_of_nothing_is_refused() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.src().join("a")).unwrap();
    symlink("..", dirs.src().join("a/up")).unwrap();
    let follow = EncryptOptions { dereference: true, ..options() };
    let circle = dirs.encrypt_with(&follow);
    assert!(matches!(&circle, Err(EncryptError::Circle { path }) if path.ends_with("a/up")), "{circle:?}");
    fs::remove_file(dirs.src().join("a/up")).unwrap();
    symlink(dirs.partial(), dirs.src().join("into")).unwrap();
    let into = dirs.encrypt_with(&follow);
    assert!(matches!(&into, Err(EncryptError::Circle { path }) if path.ends_with("into")), "{into:?}");
    fs::remove_file(dirs.src().join("into")).unwrap();
    symlink("nowhere", dirs.src().join("dangling")).unwrap();
    let dangling = dirs.encrypt_with(&follow);
    assert!(matches!(&dangling, Err(EncryptError::Source { path, .. }) if path.ends_with("dangling")));
    assert_eq!(fs::read_dir(dirs.root.path()).unwrap().count(), 1, "only the source is there");
}

#[test]
fn special_files_are_left_out_and_reported() {
    let dirs = Dirs::new();
    nix::unistd::mkfifo(&dirs.src().join("pipe"), Mode::S_IRWXU).unwrap();
    fs::write(dirs.src().join("file"), b"x").unwrap();
    let encrypted = dirs.encrypt().unwrap();
    assert_eq!((encrypted.files, encrypted.skipped), (1, vec![PathBuf::from("pipe")]));
}

#[test]
fn directory_that_cannot_be_written_keeps_its_mode_all_the_same() {
    let dirs = Dirs::new();
    let closed = dirs.src().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::write(closed.join("file"), b"x").unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o550)).unwrap();
    dirs.encrypt().unwrap();
    let stored = fs::read_dir(dirs.dst()).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let modes: Vec<u32> = stored.filter(|meta| meta.is_dir()).map(|meta| meta.mode() & 0o7777).collect();
    assert_eq!(modes, [0o550]);
    assert_eq!(content_of(&dirs.dst(), "closed/file").unwrap(), b"x");
}

#[test]
fn escapes_is_judged_from_where_the_symlink_is() {
    for (path, link, out) in [
        ("a", "b", false),
        ("a", "../b", true),
        ("d/a", "../b", false),
        ("d/a", "../../b", true),
        ("d/a", "x/../../b", false),
        ("a", "/etc", true),
        ("a", "./x/..", false),
    ] {
        assert_eq!(escapes(Path::new(path), Path::new(link)), out, "{path} -> {link}");
    }
}

#[test]
fn lone_directory_is_found_only_when_it_is_alone() {
    let dirs = Dirs::new();
    assert_eq!(lone_directory(&dirs.src()).unwrap(), None);
    fs::create_dir(dirs.src().join("Qwen2.5-3B-Instruct")).unwrap();
    assert_eq!(lone_directory(&dirs.src()).unwrap(), Some("Qwen2.5-3B-Instruct".into()));
    fs::write(dirs.src().join("file"), b"").unwrap();
    assert_eq!(lone_directory(&dirs.src()).unwrap(), None);
    fs::remove_dir(dirs.src().join("Qwen2.5-3B-Instruct")).unwrap();
    assert_eq!(lone_directory(&dirs.src()).unwrap(), None);
}

#[test]
fn interrupted_run_keeps_what_opens_to_the_source_and_seals_the_rest() {
    let dirs = Dirs::new();
    let plain: Vec<u8> = (0..=250).cycle().take(1_500_000).collect();
    let zeros = vec![0; 40_960];
    fs::create_dir(dirs.src().join("sub")).unwrap();
    for name in ["kept", "flipped", "cut", "longer", "headless", "sub/in"] {
        fs::write(dirs.src().join(name), &plain).unwrap();
    }
    fs::write(dirs.src().join("zeros"), &zeros).unwrap();
    fs::write(dirs.src().join("empty"), b"").unwrap();
    symlink("kept", dirs.src().join("link")).unwrap();
    symlink("cut", dirs.src().join("changed-link")).unwrap();
    dirs.encrypt().unwrap();
    dirs.unfinish();

    let at = |name: &str| dirs.stored(&dirs.partial(), name);
    let edit = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(at(name)).unwrap();
        change(&mut bytes);
        fs::write(at(name), bytes).unwrap();
    };
    let before = fs::read(at("kept")).unwrap();
    edit("flipped", &|bytes| bytes[18 + 200 * 4128 + 100] ^= 1);
    edit("cut", &|bytes| bytes.truncate(18 + 100 * 4128 + 7));
    edit("longer", &|bytes| bytes.extend([7; 5000]));
    edit("headless", &|bytes| bytes[0] = 9);
    // What a sparse file or a lost write leaves: it reads as zeros, which is what the source holds.
    edit("zeros", &|bytes| bytes[18 + 4128..18 + 3 * 4128].fill(0));
    edit("empty", &|bytes| bytes.extend([1; 60]));
    let iv = at("sub").join(DIR_IV_NAME);
    fs::remove_file(&iv).unwrap();
    fs::write(&iv, [1; 7]).unwrap();
    fs::write(dirs.partial().join("stranger"), b"x").unwrap();
    fs::remove_file(dirs.src().join("changed-link")).unwrap();
    symlink("kept", dirs.src().join("changed-link")).unwrap();
    fs::write(dirs.src().join("new"), b"new").unwrap();

    let encrypted = dirs.encrypt().unwrap();
    let block = 4096;
    let whole = 1_500_000;
    // kept and longer whole; flipped but for one block; cut at its 100 whole blocks; zeros but for its two holes.
    assert_eq!(encrypted.kept, 2 * whole + (whole - block) + 100 * block + (40_960 - 2 * block));
    assert_eq!(fs::read(dirs.stored(&dirs.dst(), "kept")).unwrap(), before, "not one byte was sealed again");
    for name in ["kept", "flipped", "cut", "longer", "headless", "sub/in"] {
        assert!(content_of(&dirs.dst(), name).is_some_and(|read| read == plain), "{name}");
    }
    assert_eq!(content_of(&dirs.dst(), "zeros").unwrap(), zeros);
    assert_eq!(content_of(&dirs.dst(), "empty").unwrap(), b"");
    assert_eq!(content_of(&dirs.dst(), "new").unwrap(), b"new");
    let sealed = fs::read(dirs.stored(&dirs.dst(), "zeros")).unwrap();
    assert!(sealed[18..].chunks(4128).all(|block| block[..16] != [0; 16]), "no hole is left");
    assert!(!dirs.partial().exists() && !dirs.dst().join("stranger").exists());
    assert!(!dirs.dst().join(UNFINISHED_CONF).exists());
}

#[test]
fn file_that_the_source_has_no_more_is_removed_from_an_interrupted_run() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.src().join("old")).unwrap();
    fs::write(dirs.src().join("old/file"), b"x").unwrap();
    fs::write(dirs.src().join("o".repeat(200)), b"x").unwrap();
    fs::write(dirs.src().join("stays"), b"x").unwrap();
    dirs.encrypt().unwrap();
    dirs.unfinish();
    fs::remove_dir_all(dirs.src().join("old")).unwrap();
    fs::remove_file(dirs.src().join("o".repeat(200))).unwrap();
    assert_eq!(dirs.encrypt().unwrap().kept, 1);
    // The file, the directory's IV and the conf.
    assert_eq!(fs::read_dir(dirs.dst()).unwrap().count(), 3);
}

#[test]
fn interrupted_run_of_another_password_is_neither_used_nor_destroyed() {
    let dirs = Dirs::new();
    fs::write(dirs.src().join("file"), b"x").unwrap();
    dirs.encrypt().unwrap();
    dirs.unfinish();
    let other = Passphrase::from_secret(&Secret::copy_of(b"other").unwrap()).unwrap();
    let result = encrypt_tree(&dirs.src(), &dirs.dst(), &other, &options());
    assert!(
        matches!(&result, Err(EncryptError::Resume { path, source: FormatError::WrongPassword }) if *path == dirs.partial()),
        "{result:?}"
    );
    assert_eq!(dirs.encrypt().unwrap().kept, 1);
}

#[test]
fn working_directory_of_somebody_else_is_left_alone() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.partial()).unwrap();
    fs::write(dirs.partial().join("precious"), b"data").unwrap();
    assert!(matches!(dirs.encrypt(), Err(EncryptError::NotEmpty { path }) if path == dirs.partial()));
    fs::remove_file(dirs.partial().join("precious")).unwrap();
    fs::write(dirs.partial().join("gocryptfs.conf.draft"), b"{").unwrap();
    assert!(dirs.encrypt().is_ok(), "a run that was interrupted in its first step");
}

#[test]
fn second_run_at_the_same_time_is_told_so() {
    let dirs = Dirs::new();
    fs::write(dirs.src().join("file"), b"x").unwrap();
    let second = Mutex::new(None);
    let meanwhile = |_: Progress| {
        second.lock().unwrap().get_or_insert_with(|| dirs.encrypt());
    };
    dirs.encrypt_with(&EncryptOptions { progress: Some(&meanwhile), ..options() }).unwrap();
    let second = second.into_inner().unwrap();
    assert!(
        matches!(&second, Some(Err(EncryptError::Busy { path })) if *path == dirs.partial()),
        "{second:?}"
    );
}

#[test]
fn excluded_names_are_left_out_with_everything_in_them() {
    let dirs = Dirs::new();
    fs::create_dir_all(dirs.src().join(".git/objects")).unwrap();
    fs::write(dirs.src().join(".git/objects/x"), vec![0; 100]).unwrap();
    fs::write(dirs.src().join("model.pth"), vec![0; 100]).unwrap();
    fs::write(dirs.src().join("model.safetensors"), b"weights").unwrap();
    let exclude = Exclude::new(&[".git".to_owned(), "*.pth".to_owned()]).unwrap();
    let encrypted = dirs.encrypt_with(&EncryptOptions { exclude, ..options() }).unwrap();
    assert_eq!((encrypted.files, encrypted.directories, encrypted.bytes), (1, 0, 7));
    assert_eq!(content_of(&dirs.dst(), "model.safetensors").unwrap(), b"weights");
}

#[test]
fn finish_sees_the_complete_directory_and_its_failure_leaves_it_for_the_next_run() {
    let dirs = Dirs::new();
    fs::write(dirs.src().join("file"), b"x").unwrap();
    let refuse = |complete: &Path| -> Result<(), Box<dyn Fault>> {
        assert!(complete.join(CONF_NAME).exists());
        Err(FormatError::NoConf.into())
    };
    let error = dirs.encrypt_with(&EncryptOptions { finish: Some(&refuse), ..options() }).unwrap_err();
    assert_eq!((error.code(), dirs.dst().exists()), ("format.no-conf", false));
    let add = |complete: &Path| -> Result<(), Box<dyn Fault>> {
        fs::write(complete.join("added"), b"x").unwrap();
        Ok(())
    };
    assert_eq!(dirs.encrypt_with(&EncryptOptions { finish: Some(&add), ..options() }).unwrap().kept, 1);
    assert!(dirs.dst().join("added").exists());
}
