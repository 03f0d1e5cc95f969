//! A local directory as [`Ciphertext`].
//!
//! Walked once when opened; files are opened on demand, component by component without following symlinks, and a few are
//! kept open. A file that is not the one listed any more is [`ReadError::Changed`].
//!
//! Locks: one mutex around the open files, never held across a system call.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use xattr::FileExt as _;

use super::dirfd;
use crate::ahead::{self, ReadAhead};
use crate::ciphertext::{Attributes, Ciphertext, Entry, EntryId, EntryKind, ReadError};
use crate::error::{ErrorClass, Fault};

/// Longest name of an extended attribute (`XATTR_NAME_MAX` of Linux); the kernel has no answer about a longer one.
const LONGEST_XATTR: usize = 255;
/// Files kept open. A model has some tens of weight files, and a loader reads a few of them at a time.
const OPEN_FILES: usize = 64;

/// The directory cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum LocalDirError {
    /// The directory itself cannot be opened.
    #[error("opening the ciphertext directory {path}")]
    Open {
        /// Path as given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: nix::Error,
    },
    /// Something below it cannot be listed.
    #[error("listing {path}")]
    List {
        /// Path below the directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: nix::Error,
    },
    /// Nested deeper than 200 directories.
    #[error("{path} is nested too deep")]
    TooDeep {
        /// Path below the directory.
        path: PathBuf,
    },
    /// More than 2^32 entries.
    #[error("too many entries")]
    TooMany,
}

impl Fault for LocalDirError {
    fn class(&self) -> ErrorClass {
        match self {
            LocalDirError::Open { .. }
            | LocalDirError::List { .. }
            | LocalDirError::TooDeep { .. }
            | LocalDirError::TooMany => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            LocalDirError::Open { .. } => "local.open",
            LocalDirError::List { .. } => "local.list",
            LocalDirError::TooDeep { .. } => "local.too-deep",
            LocalDirError::TooMany => "local.too-many",
        }
    }

    fn hint(&self) -> String {
        match self {
            LocalDirError::Open { .. } => "give the path of the encrypted directory, readable for this user",
            LocalDirError::List { .. } => {
                "every file of the encrypted directory must be readable for this user"
            }
            LocalDirError::TooDeep { .. } | LocalDirError::TooMany => "this is no model directory",
        }
        .to_owned()
    }
}

/// A ciphertext directory on a local file system.
pub struct LocalDir {
    root: OwnedFd,
    attributes: Attributes,
    entries: Vec<Entry>,
    /// Most recently used last.
    open: Mutex<Vec<(EntryId, Arc<File>)>>,
    ahead: ReadAhead,
}

impl LocalDir {
    /// List everything below `path`. `path` itself may be a symlink; nothing below it is followed.
    ///
    /// # Errors
    /// [`LocalDirError`].
    pub fn open(path: &Path) -> Result<LocalDir, LocalDirError> {
        let failed = |source| LocalDirError::Open { path: path.to_owned(), source };
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty()).map_err(failed)?;
        let stat = fstat(&root).map_err(failed)?;
        let dir = dirfd::open_dir(&root, OsStr::new(".")).map_err(failed)?;
        let mut walk = Walk { device: stat.st_dev, entries: Vec::new() };
        walk.list(dir, Path::new(""), 0)?;
        u32::try_from(walk.entries.len()).map_err(|_| LocalDirError::TooMany)?;
        let attributes = walk.attributes(&stat);
        Ok(LocalDir {
            root,
            attributes,
            entries: walk.entries,
            open: Mutex::default(),
            ahead: ReadAhead::default(),
        })
    }

    fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(usize::try_from(id.0).ok()?)
    }

    /// The open file of `id`, from the few kept or opened and checked against the listing.
    fn file(&self, id: EntryId, entry: &Entry, len: u64) -> Result<Arc<File>, ReadError> {
        if let Some(file) = self.kept(id) {
            return Ok(file);
        }
        let path = || entry.path.display().to_string();
        let file = self.open_entry(&entry.path).map_err(|error| refused(&entry.path, error))?;
        let stat = fstat(&file).map_err(|error| ReadError::Io { path: path(), source: error.into() })?;
        let same = dirfd::kind(&stat) == SFlag::S_IFREG
            && u64::try_from(stat.st_size) == Ok(len)
            && dirfd::mtime(&stat) == entry.attributes.mtime
            && (entry.attributes.ino == 0 || entry.attributes.ino == stat.st_ino);
        if !same {
            return Err(ReadError::Changed { path: path() });
        }
        let file = Arc::new(File::from(file));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have opened it at the same time: one is enough.
        if let Some(kept) = use_again(&mut open, id) {
            return Ok(kept);
        }
        if open.len() >= OPEN_FILES {
            open.remove(0);
        }
        open.push((id, Arc::clone(&file)));
        Ok(file)
    }

    fn kept(&self, id: EntryId) -> Option<Arc<File>> {
        use_again(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner), id)
    }

    /// What `of` is, open, so that its attributes can be asked for. Symlinks and special files have none that could hold
    /// anything: the kernel keeps `user.*` to files and directories.
    fn with_xattrs(&self, of: Option<EntryId>) -> Result<Option<File>, ReadError> {
        let holds = |id| {
            let kind = self.entry(id).map(|entry| &entry.kind);
            matches!(kind, Some(EntryKind::Directory | EntryKind::File { .. }))
        };
        let path = self.path(of);
        let file = match of {
            None => self.root.try_clone().map_err(|source| xattrs_failed(path, source))?,
            Some(id) if holds(id) => self.open_entry(path).map_err(|error| refused(path, error))?,
            Some(_) => return Ok(None),
        };
        Ok(Some(File::from(file)))
    }

    /// Path of an entry for messages and opening; that of the root is empty.
    fn path(&self, of: Option<EntryId>) -> &Path {
        of.and_then(|id| self.entry(id)).map_or(Path::new(""), |entry| &entry.path)
    }

    /// Open a file or directory below the root without following a symlink in any component. Never blocks, should a fifo be there.
    fn open_entry(&self, path: &Path) -> nix::Result<OwnedFd> {
        let through = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let name = path.file_name().ok_or(nix::Error::ENOENT)?;
        let mut held: Option<OwnedFd> = None;
        for component in path.parent().into_iter().flat_map(Path::iter) {
            held = Some(openat(held.as_ref().unwrap_or(&self.root), component, through, Mode::empty())?);
        }
        openat(held.as_ref().unwrap_or(&self.root), name, file, Mode::empty())
    }
}

/// The open file of `id`, which is the last to go now.
fn use_again(open: &mut Vec<(EntryId, Arc<File>)>, id: EntryId) -> Option<Arc<File>> {
    let index = open.iter().rposition(|(kept, _)| *kept == id)?;
    let last = open.len().saturating_sub(1);
    if index < last {
        let used = open.remove(index);
        open.push(used);
    }
    open.last().map(|(_, file)| Arc::clone(file))
}

/// Why an entry cannot be opened any more.
fn refused(path: &Path, error: nix::Error) -> ReadError {
    let path = path.display().to_string();
    match error {
        nix::Error::ENOENT => ReadError::Gone { path },
        nix::Error::ELOOP | nix::Error::ENOTDIR => ReadError::Changed { path },
        other => ReadError::Io { path, source: other.into() },
    }
}

fn xattrs_failed(path: &Path, source: std::io::Error) -> ReadError {
    ReadError::Io { path: path.display().to_string(), source }
}

/// Whether the file system of the directory has no extended attributes at all.
fn has_none(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EOPNOTSUPP)
}

impl Ciphertext for LocalDir {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn root(&self) -> Option<Attributes> {
        Some(self.attributes)
    }

    fn xattr_names(&self, of: Option<EntryId>) -> Result<Vec<OsString>, ReadError> {
        let Some(file) = self.with_xattrs(of)? else { return Ok(Vec::new()) };
        match file.list_xattr() {
            Ok(names) => Ok(names.collect()),
            Err(error) if has_none(&error) => Ok(Vec::new()),
            Err(error) => Err(xattrs_failed(self.path(of), error)),
        }
    }

    fn xattr(&self, of: Option<EntryId>, name: &OsStr) -> Result<Option<Vec<u8>>, ReadError> {
        if name.len() > LONGEST_XATTR {
            return Ok(None);
        }
        let Some(file) = self.with_xattrs(of)? else { return Ok(None) };
        match file.get_xattr(name) {
            Err(error) if has_none(&error) => Ok(None),
            value => value.map_err(|error| xattrs_failed(self.path(of), error)),
        }
    }

    fn will_need(&self, id: EntryId) {
        // A file that cannot be opened says so when it is read.
        if let Some(entry) = self.entry(id)
            && let EntryKind::File { len } = entry.kind
            && len >= ahead::SHORTEST
            && let Ok(file) = self.file(id, entry, len)
        {
            self.ahead.want(u64::from(id.0), file, len);
        }
    }

    fn read_at(&self, id: EntryId, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let asked = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        let outside = |path: String| ReadError::OutOfRange { path, offset, len: asked };
        let entry = self.entry(id).ok_or_else(|| outside(format!("entry {}", id.0)))?;
        let path = || entry.path.display().to_string();
        let EntryKind::File { len } = entry.kind else { return Err(outside(path())) };
        if offset.checked_add(asked).is_none_or(|end| end > len) {
            return Err(outside(path()));
        }
        let file = self.file(id, entry, len)?;
        file.read_exact_at(buf, offset).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => ReadError::Changed { path: path() },
            _ => ReadError::Io { path: path(), source },
        })
    }
}

/// The listing as it grows.
struct Walk {
    /// Device of the root: inode numbers of others could collide with its own.
    device: u64,
    entries: Vec<Entry>,
}

impl Walk {
    /// Depth first with sorted names, which is the order of paths.
    fn list(&mut self, mut dir: Dir, path: &Path, depth: usize) -> Result<(), LocalDirError> {
        let failed = |path: &Path, source| LocalDirError::List { path: path.to_owned(), source };
        if depth > dirfd::DEEPEST {
            return Err(LocalDirError::TooDeep { path: path.to_owned() });
        }
        for name in dirfd::names(&mut dir).map_err(|source| failed(path, source))? {
            let path = path.join(&name);
            let stat = fstatat(&dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|source| failed(&path, source))?;
            let kind = match dirfd::kind(&stat) {
                SFlag::S_IFDIR => EntryKind::Directory,
                SFlag::S_IFREG => EntryKind::File { len: u64::try_from(stat.st_size).unwrap_or(0) },
                SFlag::S_IFLNK => {
                    let target =
                        readlinkat(&dir, name.as_os_str()).map_err(|source| failed(&path, source))?;
                    EntryKind::Symlink { target: target.into_vec() }
                }
                _ => EntryKind::Special { rdev: stat.st_rdev },
            };
            let below = kind == EntryKind::Directory;
            self.entries.push(Entry { path: path.clone(), kind, attributes: self.attributes(&stat) });
            if below {
                let child = dirfd::open_dir(&dir, &name).map_err(|source| failed(&path, source))?;
                self.list(child, &path, depth + 1)?;
            }
        }
        Ok(())
    }

    fn attributes(&self, stat: &FileStat) -> Attributes {
        Attributes {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            ino: if stat.st_dev == self.device { stat.st_ino } else { 0 },
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            mtime: dirfd::mtime(stat),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn id_of(dir: &LocalDir, path: &str) -> EntryId {
        let index = dir.entries().iter().position(|entry| entry.path == Path::new(path)).unwrap();
        EntryId(u32::try_from(index).unwrap())
    }

    fn read(dir: &LocalDir, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        let mut buffer = vec![0; len];
        dir.read_at(id_of(dir, path), offset, &mut buffer).map(|()| buffer)
    }

    #[test]
    fn entries_are_sorted_by_path_with_directories_before_their_content() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["a", "a/z", "b"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        for file in ["a-b", "a/z/x", "a/b", "b/a", CONF] {
            fs::write(root.path().join(file), file).unwrap();
        }
        symlink("a", root.path().join("link")).unwrap();
        let dir = LocalDir::open(root.path()).unwrap();
        let paths: Vec<_> = dir.entries().iter().map(|entry| entry.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["a", "a/b", "a/z", "a/z/x", "a-b", "b", "b/a", CONF, "link"]);
        let mut sorted = dir.entries().to_vec();
        sorted.sort_by(|a, b| a.path.cmp(&b.path));
        assert_eq!(sorted, dir.entries());
        assert_eq!(dir.entries()[8].kind, EntryKind::Symlink { target: b"a".to_vec() });
        assert_eq!(dir.entries()[3].kind, EntryKind::File { len: 5 });
    }

    const CONF: &str = "gocryptfs.conf";

    #[test]
    fn read_at_gives_the_range_or_says_it_is_outside() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/file"), b"0123456789").unwrap();
        let dir = LocalDir::open(root.path()).unwrap();
        assert_eq!(read(&dir, "d/file", 3, 4).unwrap(), b"3456");
        assert_eq!(read(&dir, "d/file", 10, 0).unwrap(), b"");
        for (offset, len) in [(7, 4), (11, 0), (u64::MAX, 1)] {
            let outside = read(&dir, "d/file", offset, len);
            assert!(matches!(outside, Err(ReadError::OutOfRange { .. })), "{offset}+{len}: {outside:?}");
        }
        assert!(matches!(read(&dir, "d", 0, 1), Err(ReadError::OutOfRange { .. })));
        let unknown = dir.read_at(EntryId(99), 0, &mut [0]);
        assert!(matches!(unknown, Err(ReadError::OutOfRange { .. })));
    }

    #[test]
    fn extended_attributes_are_those_of_files_and_directories() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/file"), b"x").unwrap();
        symlink("file", root.path().join("d/link")).unwrap();
        let set = |path: &str, name: &str| xattr::set(root.path().join(path), name, path.as_bytes());
        if set("", "user.root").is_err() {
            println!("skip: no extended attributes on this file system");
            return;
        }
        set("d", "user.d").unwrap();
        set("d/file", "user.f").unwrap();
        let dir = LocalDir::open(root.path()).unwrap();
        assert_eq!(dir.root().map(|root| root.mode & 0o170_000), Some(0o040_000));
        assert_eq!(dir.xattr_names(None).unwrap(), ["user.root"]);
        for (path, name) in [("d", "user.d"), ("d/file", "user.f")] {
            let of = Some(id_of(&dir, path));
            assert_eq!(dir.xattr_names(of).unwrap(), [name]);
            assert_eq!(dir.xattr(of, OsStr::new(name)).unwrap().unwrap(), path.as_bytes());
            assert_eq!(dir.xattr(of, OsStr::new("user.root")).unwrap(), None);
            assert_eq!(dir.xattr(of, OsStr::new(&"n".repeat(300))).unwrap(), None);
        }
        // A link's own, not those of the file it leads to.
        let link = Some(id_of(&dir, "d/link"));
        assert_eq!(dir.xattr_names(link).unwrap().len(), 0);
        assert_eq!(dir.xattr(link, OsStr::new("user.f")).unwrap(), None);
        fs::remove_file(root.path().join("d/file")).unwrap();
        assert!(matches!(dir.xattr_names(Some(id_of(&dir, "d/file"))), Err(ReadError::Gone { .. })));
    }

    #[test]
    fn file_that_is_not_the_listed_one_is_changed_or_gone() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        for name in ["grown", "gone", "replaced", "linked", "fifo"] {
            fs::write(path(name), b"listed").unwrap();
        }
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("dir/inside"), b"listed").unwrap();
        let dir = LocalDir::open(root.path()).unwrap();
        fs::write(path("grown"), b"listed and more").unwrap();
        fs::remove_file(path("gone")).unwrap();
        fs::write(path("new"), b"listed").unwrap();
        fs::rename(path("new"), path("replaced")).unwrap();
        fs::remove_file(path("linked")).unwrap();
        symlink("grown", path("linked")).unwrap();
        fs::remove_file(path("fifo")).unwrap();
        nix::unistd::mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        fs::rename(path("dir"), path("elsewhere")).unwrap();
        symlink("elsewhere", path("dir")).unwrap();
        for name in ["grown", "replaced", "linked", "fifo", "dir/inside"] {
            let result = read(&dir, name, 0, 6);
            assert!(
                matches!(&result, Err(ReadError::Changed { path }) if path == name),
                "{name}: {result:?}"
            );
        }
        let result = read(&dir, "gone", 0, 6);
        assert!(matches!(&result, Err(ReadError::Gone { path }) if path == "gone"), "{result:?}");
    }

    #[test]
    fn file_shortened_after_it_was_opened_is_changed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, b"0123456789").unwrap();
        let dir = LocalDir::open(root.path()).unwrap();
        assert_eq!(read(&dir, "file", 0, 10).unwrap(), b"0123456789");
        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        assert!(matches!(read(&dir, "file", 0, 10), Err(ReadError::Changed { .. })));
    }

    #[test]
    fn files_kept_open_are_few_and_the_recently_used() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..OPEN_FILES + 10 {
            fs::write(root.path().join(format!("{number:03}")), number.to_string()).unwrap();
        }
        let dir = LocalDir::open(root.path()).unwrap();
        for number in 0..OPEN_FILES + 10 {
            read(&dir, &format!("{number:03}"), 0, 1).unwrap();
            read(&dir, "000", 0, 1).unwrap();
        }
        let kept: Vec<_> = dir.open.lock().unwrap().iter().map(|(id, _)| *id).collect();
        assert_eq!(kept.len(), OPEN_FILES);
        assert_eq!(kept.last(), Some(&id_of(&dir, "000")));
    }

    #[test]
    fn open_of_what_is_no_directory_says_which_path() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("missing");
        let error = LocalDir::open(&path).err().unwrap();
        assert!(matches!(&error, LocalDirError::Open { path: p, source: nix::Error::ENOENT } if *p == path));
        assert_eq!((error.class(), error.code()), (ErrorClass::Config, "local.open"));
    }

    #[test]
    fn directory_nested_without_end_is_too_deep() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(vec!["d"; dirfd::DEEPEST + 1].join("/"));
        fs::create_dir_all(&path).unwrap();
        assert!(matches!(LocalDir::open(root.path()), Err(LocalDirError::TooDeep { .. })));
    }
}
