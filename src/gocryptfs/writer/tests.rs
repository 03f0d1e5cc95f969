//! The writer against the reader, and what it refuses; `tests/gocryptfs_peer.rs` has it against the real gocryptfs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Mutex;

use super::*;
use crate::gocryptfs::{FileReader, Kind, LocalDir, Tree, unlock};
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

    fn encrypt_with(&self, options: &EncryptOptions<'_>) -> Result<Encrypted, EncryptError> {
        encrypt_tree(&self.src(), &self.dst(), &passphrase(), options)
    }

    fn encrypt(&self) -> Result<Encrypted, EncryptError> {
        self.encrypt_with(&OPTIONS)
    }

    /// Whether something a mount would accept has been written.
    fn looks_finished(&self) -> bool {
        self.dst().join(CONF_NAME).exists()
    }
}

const OPTIONS: EncryptOptions<'static> =
    EncryptOptions { progress: None, dereference: false, scrypt_log_n: 10 };

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
    let encrypted = dirs.encrypt_with(&EncryptOptions { progress: Some(&progress), ..OPTIONS }).unwrap();
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
            encrypt_tree(&dirs.root.path().join(src), &dirs.root.path().join(dst), &passphrase(), &OPTIONS);
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
        let result = encrypt_tree(&src, &dirs.dst(), &passphrase(), &OPTIONS);
        assert!(matches!(&result, Err(EncryptError::Source { path, .. }) if *path == src), "{result:?}");
    }
    assert!(!dirs.dst().exists());
}

#[test]
fn failure_on_the_way_leaves_no_conf() {
    let dirs = Dirs::new();
    fs::write(dirs.src().join("a"), b"fine").unwrap();
    symlink("t".repeat(3040), dirs.src().join("b")).unwrap();
    let error = dirs.encrypt().unwrap_err();
    assert!(matches!(&error, EncryptError::Link { path, .. } if *path == dirs.src().join("b")), "{error}");
    assert!(dirs.dst().exists() && !dirs.looks_finished());
    use crate::error::Fault;
    assert!(error.hint().contains("remove the unfinished target"), "{}", error.hint());
}

#[test]
fn file_written_to_meanwhile_is_a_failure_and_leaves_no_conf() {
    let dirs = Dirs::new();
    let path = dirs.src().join("file");
    fs::write(&path, vec![1; 700_000]).unwrap();
    let once = std::sync::Once::new();
    let grow = |_| once.call_once(|| fs::write(&path, vec![2; 700_001]).unwrap());
    let error = dirs.encrypt_with(&EncryptOptions { progress: Some(&grow), ..OPTIONS }).unwrap_err();
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
    let followed = dirs.encrypt_with(&EncryptOptions { dereference: true, ..OPTIONS }).unwrap();
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
    let follow = EncryptOptions { dereference: true, ..OPTIONS };
    let circle = dirs.encrypt_with(&follow);
    assert!(matches!(&circle, Err(EncryptError::Circle { path }) if path.ends_with("a/up")), "{circle:?}");
    fs::remove_file(dirs.src().join("a/up")).unwrap();
    symlink(dirs.dst(), dirs.src().join("into")).unwrap();
    let into = dirs.encrypt_with(&follow);
    assert!(matches!(&into, Err(EncryptError::Circle { path }) if path.ends_with("into")), "{into:?}");
    fs::remove_file(dirs.src().join("into")).unwrap();
    symlink("nowhere", dirs.src().join("dangling")).unwrap();
    let dangling = dirs.encrypt_with(&follow);
    assert!(matches!(&dangling, Err(EncryptError::Source { path, .. }) if path.ends_with("dangling")));
    assert!(!dirs.looks_finished());
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
