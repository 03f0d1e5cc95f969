//! Encrypting a directory tree into a new gocryptfs directory.
//!
//! Both sides are walked by descriptor, one thread walking and one per core sealing. Everything is written to a working
//! directory that gets the target's name when it is complete and on disk: what has the name can be mounted, and what
//! was interrupted goes on where it was.
//!
//! Going on is walking again: a directory keeps its IV, a symlink its text and a file its blocks where opening them gives
//! what the source holds now; everything else is made anew, and what the source has no more is removed. No journal could be
//! wrong, because there is none.
//!
//! Kept: names, contents, symlinks, permission bits and modification times. Not kept: owners, extended attributes, hard
//! links (each name becomes a file of its own). Devices, fifos and sockets are left out and reported.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, futimens, mkdirat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::symlinkat;

use super::conf::DEFAULT_SCRYPT_LOG_N;
use super::content::{open_target, seal_target};
use super::crew::{Crew, Job};
use super::dirfd;
use super::encrypt_error::EncryptError;
use super::exclude::Exclude;
use super::keys::Keys;
use super::layout::NONCE;
use super::names::{DIR_IV_NAME, DirIv, Names};
use super::passphrase::Passphrase;
use super::plaintext::Source;
use super::work_dir::{UNFINISHED_CONF, WorkDir, create};
use crate::error::Fault;

/// Permission bits; the file type is not ours to set.
const PERMISSIONS: u32 = 0o7777;
/// The format's own files never change once written.
const READ_ONLY: Mode = Mode::from_bits_truncate(0o444);

/// How far the encryption is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Plaintext bytes sealed.
    pub done: u64,
    /// Plaintext bytes in all.
    pub total: u64,
}

/// What adds its part to a directory that is complete but for it, such as a signed list of its files.
pub type Finish<'a> = &'a dyn Fn(&Path) -> Result<(), Box<dyn Fault>>;

/// What [`encrypt_tree`] may be told.
pub struct EncryptOptions<'a> {
    /// Called from any thread, after every 512 KiB and every file.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Store what a symlink points to in its place.
    pub dereference: bool,
    /// What is left out.
    pub exclude: Exclude,
    /// Called with the complete directory before it gets its name.
    pub finish: Option<Finish<'a>>,
    /// scrypt's `N = 2^scrypt_log_n`, 10 to 20; an interrupted run goes on with its own.
    pub scrypt_log_n: u8,
}

impl Default for EncryptOptions<'_> {
    fn default() -> Self {
        EncryptOptions {
            progress: None,
            dereference: false,
            exclude: Exclude::default(),
            finish: None,
            scrypt_log_n: DEFAULT_SCRYPT_LOG_N,
        }
    }
}

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// Regular files.
    pub files: u64,
    /// Directories below the root.
    pub directories: u64,
    /// Symlinks.
    pub symlinks: u64,
    /// Plaintext bytes.
    pub bytes: u64,
    /// Those of them that an interrupted run had sealed, now opened and compared.
    pub kept: u64,
    /// Devices, fifos and sockets, which were left out.
    pub skipped: Vec<PathBuf>,
    /// Symlinks that point out of the source: in the mount they lead nowhere.
    pub escaping: Vec<PathBuf>,
}

/// Encrypt the content of directory `src` into `dst`, which must be missing or empty. An interrupted run is continued when
/// `dst.partial` is there and `passphrase` is the one it began with.
///
/// # Errors
/// [`EncryptError`]. What has been written by then stays in `dst.partial`, for the next run; `dst` is left as it was.
pub fn encrypt_tree(
    src: &Path,
    dst: &Path,
    passphrase: &Passphrase,
    options: &EncryptOptions<'_>,
) -> Result<Encrypted, EncryptError> {
    let source = Source::open(src, options.dereference, &options.exclude)?;
    let work = WorkDir::open(src, dst)?;
    let total = look_ahead(&source, &work).inspect_err(|_| work.remove_if_empty())?;
    let keys = work.keys(passphrase, options.scrypt_log_n)?;
    let crew = Crew::new(&keys, options.progress, source.path.clone(), total);
    let mut writer = Writer {
        names: keys.names(),
        keys: &keys,
        source: &source,
        crew: &crew,
        resumed: work.resumed,
        encrypted: Encrypted::default(),
    };
    let root = work.root()?;
    let kept = crew.run(|| writer.directory(&mut source.root()?, &root, Path::new("")))?;
    let encrypted = Encrypted { kept, ..writer.encrypted };
    work.finish(|complete| match options.finish {
        Some(finish) => finish(complete).map_err(|cause| EncryptError::Finish { cause }),
        None => Ok(()),
    })?;
    Ok(encrypted)
}

/// Plaintext bytes of `source`, once it is known that what they become fits.
fn look_ahead(source: &Source<'_>, work: &WorkDir) -> Result<u64, EncryptError> {
    let total = source.survey(work)?;
    let stat = fstatvfs(work).map_err(|error| work.failed(error))?;
    let free = stat.fragment_size().saturating_mul(stat.blocks_available());
    // What an interrupted run has written is not free any more, and needed all the same.
    if total.stored > free && !work.resumed {
        return Err(EncryptError::NoSpace { needed: total.stored, free });
    }
    Ok(total.plain)
}

struct Writer<'a> {
    keys: &'a Keys,
    names: Names,
    source: &'a Source<'a>,
    crew: &'a Crew<'a>,
    /// Whether the target may hold something already.
    resumed: bool,
    encrypted: Encrypted,
}

impl Writer<'_> {
    /// Seal everything in `dir` into the directory `target`. `path` is below the source's root.
    fn directory(&mut self, dir: &mut Dir, target: &OwnedFd, path: &Path) -> Result<(), EncryptError> {
        let iv = self.dir_iv(target).map_err(|error| self.failed(path, error))?;
        let mut stored_names = HashSet::from([OsString::from(DIR_IV_NAME)]);
        for (name, stat) in self.source.list(dir, path)? {
            let path = path.join(&name);
            let kind = dirfd::kind(&stat);
            if !matches!(kind, SFlag::S_IFDIR | SFlag::S_IFREG | SFlag::S_IFLNK) {
                self.encrypted.skipped.push(path);
                continue;
            }
            let stored = self
                .names
                .encrypt(&iv, &name)
                .map_err(|source| EncryptError::Name { path: self.source.path.join(&path), source })?;
            if let Some((text_name, text)) = &stored.text_file {
                self.put(target, text_name, text.as_bytes()).map_err(|error| self.failed(&path, error))?;
                stored_names.insert(text_name.into());
            }
            let object = stored.object.as_str();
            if self.resumed {
                clear_way(target, object, kind).map_err(|error| self.failed(&path, error.into()))?;
            }
            match kind {
                SFlag::S_IFDIR => self.subdirectory(dir, &name, target, object, &stat, &path)?,
                SFlag::S_IFLNK => self.symlink(dir, &name, target, object, &stat, &path)?,
                _ => self.file(dir, &name, target, object, &path)?,
            }
            stored_names.insert(object.into());
        }
        if self.resumed {
            remove_others(target, &stored_names, path).map_err(|error| self.failed(path, error.into()))?;
        }
        Ok(())
    }

    fn subdirectory(
        &mut self,
        parent: &Dir,
        name: &OsStr,
        target: &OwnedFd,
        object: &str,
        stat: &FileStat,
        path: &Path,
    ) -> Result<(), EncryptError> {
        self.encrypted.directories += 1;
        let mut dir = self.source.open_dir(parent, name).map_err(self.source.failed(path))?;
        let failed = |error: nix::Error| EncryptError::Target { path: path.to_owned(), source: error.into() };
        match mkdirat(target, object, Mode::S_IRWXU) {
            Err(nix::Error::EEXIST) if self.resumed => {}
            made => made.map_err(failed)?,
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let child = openat(target, object, flags, Mode::empty()).map_err(failed)?;
        self.directory(&mut dir, &child, path)?;
        // After the last name in it: its files are made by now, and sealing them changes nothing here.
        keep_attributes(&child, stat).map_err(failed)
    }

    fn file(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        target: &OwnedFd,
        object: &str,
        path: &Path,
    ) -> Result<(), EncryptError> {
        let from = self.source.open_at(dir, name, OFlag::O_NONBLOCK).map_err(self.source.failed(path))?;
        let stat = nix::sys::stat::fstat(&from).map_err(self.source.failed(path))?;
        let to = match create(target, object) {
            Err(error) if self.resumed && error.kind() == std::io::ErrorKind::AlreadyExists => {
                let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                openat(target, object, flags, Mode::empty()).map(File::from).map_err(Into::into)
            }
            made => made,
        };
        let to = to.map_err(|error| self.failed(path, error))?;
        self.encrypted.files += 1;
        self.encrypted.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        let job = Job { path: path.to_owned(), source: File::from(from), target: to, stat };
        if self.crew.add(job) { Ok(()) } else { Err(EncryptError::Stopped) }
    }

    fn symlink(
        &mut self,
        dir: &Dir,
        name: &OsStr,
        target: &OwnedFd,
        object: &str,
        stat: &FileStat,
        path: &Path,
    ) -> Result<(), EncryptError> {
        let failed = |error: nix::Error| self.failed(path, error.into());
        let link = readlinkat(dir, name).map_err(self.source.failed(path))?;
        let kept = self.resumed
            && readlinkat(target, object)
                .is_ok_and(|stored| open_target(self.keys, stored.as_bytes()).is_ok_and(|old| old == link));
        if !kept {
            dirfd::remove(target, OsStr::new(object)).map_err(failed)?;
            let mut nonce = [0; NONCE];
            getrandom::fill(&mut nonce)?;
            let sealed = seal_target(self.keys, &nonce, &link)
                .map_err(|source| EncryptError::Link { path: self.source.path.join(path), source })?;
            symlinkat(sealed.as_str(), target, object).map_err(failed)?;
        }
        let (accessed, modified) = times(stat);
        utimensat(target, object, &accessed, &modified, UtimensatFlags::NoFollowSymlink).map_err(failed)?;
        self.encrypted.symlinks += 1;
        if escapes(path, Path::new(&link)) {
            self.encrypted.escaping.push(path.to_owned());
        }
        Ok(())
    }

    /// The directory's IV: the one it has, or a new one.
    fn dir_iv(&self, target: &OwnedFd) -> std::io::Result<DirIv> {
        if self.resumed
            && let Some(bytes) = read_small(target, DIR_IV_NAME)
            && let Some(iv) = bytes.try_into().ok().and_then(DirIv::new)
        {
            return Ok(iv);
        }
        loop {
            let mut bytes = [0; DirIv::LEN];
            getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
            if let Some(iv) = DirIv::new(bytes) {
                self.put(target, DIR_IV_NAME, &bytes)?;
                return Ok(iv);
            }
        }
    }

    /// One of the format's own files, which is left alone where it is what it should be.
    fn put(&self, target: &OwnedFd, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        if self.resumed {
            if read_small(target, name).is_some_and(|found| found == bytes) {
                return Ok(());
            }
            dirfd::remove(target, OsStr::new(name))?;
        }
        let mut file = create(target, name)?;
        file.write_all(bytes)?;
        Ok(fchmod(&file, READ_ONLY)?)
    }

    fn failed(&self, path: &Path, source: std::io::Error) -> EncryptError {
        EncryptError::Target { path: path.to_owned(), source }
    }
}

/// Remove what is in the way of an object of `kind`, and make writable what an interrupted run left of it.
fn clear_way(target: &OwnedFd, object: &str, kind: SFlag) -> nix::Result<()> {
    let object = OsStr::new(object);
    match dirfd::kind_of(target, object)? {
        None => Ok(()),
        // A link is made anew, not written to; its mode means nothing.
        Some(SFlag::S_IFLNK) if kind == SFlag::S_IFLNK => Ok(()),
        Some(found) if found == kind => dirfd::unlock(target, object),
        Some(_) => dirfd::remove(target, object),
    }
}

/// Remove everything of `target` that is not in `names`; in the root, the conf stays.
fn remove_others(target: &OwnedFd, names: &HashSet<OsString>, path: &Path) -> nix::Result<()> {
    for name in dirfd::names(&mut dirfd::open_dir(target, OsStr::new("."))?)? {
        let is_conf = path.as_os_str().is_empty() && name == UNFINISHED_CONF;
        if !is_conf && !names.contains(&name) {
            dirfd::remove(target, &name)?;
        }
    }
    Ok(())
}

/// The format's own file `name`, if it is there and as small as such files are.
fn read_small(dir: &OwnedFd, name: &str) -> Option<Vec<u8>> {
    /// The longest is a long name's text of 342 bytes.
    const LIMIT: u64 = 1024;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut bytes = Vec::new();
    let file = File::from(openat(dir, name, flags, Mode::empty()).ok()?);
    file.take(LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

pub(super) fn keep_attributes(target: impl AsFd, stat: &FileStat) -> nix::Result<()> {
    let (accessed, modified) = times(stat);
    fchmod(target.as_fd(), Mode::from_bits_truncate(stat.st_mode & PERMISSIONS))?;
    futimens(target, &accessed, &modified)
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}

/// Whether the symlink at `path` (below the root) points out of the root, judged by its text alone.
fn escapes(path: &Path, link: &Path) -> bool {
    let mut depth = path.components().count().saturating_sub(1);
    for component in link.components() {
        match component {
            Component::RootDir | Component::Prefix(_) => return true,
            Component::CurDir => {}
            Component::Normal(_) => depth += 1,
            Component::ParentDir => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return true,
            },
        }
    }
    false
}

/// The one directory in `src`, when it holds nothing else: the model then lies one directory too deep.
///
/// # Errors
/// What the system said when listing `src`.
pub fn lone_directory(src: &Path) -> std::io::Result<Option<OsString>> {
    let mut entries = std::fs::read_dir(src)?;
    let (first, second) = (entries.next().transpose()?, entries.next().transpose()?);
    Ok(match (first, second) {
        (Some(only), None) if only.file_type()?.is_dir() => Some(only.file_name()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
