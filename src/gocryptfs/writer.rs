//! Encrypting a directory tree into a new gocryptfs directory.
//!
//! Both sides are walked by descriptor. `gocryptfs.conf` is written last, after everything else is on disk: a directory
//! with a conf is complete, and one without cannot be mounted by anybody.
//!
//! Kept: names, contents, symlinks, permission bits and modification times. Not kept: owners, extended attributes, hard
//! links (each name becomes a file of its own). Devices, fifos and sockets are left out and reported.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::dir::Dir;
use nix::fcntl::{OFlag, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, futimens, mkdirat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::unistd::{symlinkat, syncfs};

use super::conf::{CONF_NAME, Conf, DEFAULT_SCRYPT_LOG_N};
use super::content::seal_target;
use super::dirfd;
use super::encrypt_error::EncryptError;
use super::keys::Keys;
use super::layout::NONCE;
use super::names::{DIR_IV_NAME, DirIv, Names};
use super::passphrase::Passphrase;
use super::plaintext::Source;
use super::seal::seal_file;

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

/// What [`encrypt_tree`] may be told.
pub struct EncryptOptions<'a> {
    /// Called from any thread, after every 512 KiB and every file.
    pub progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Store what a symlink points to in its place.
    pub dereference: bool,
    /// scrypt's `N = 2^scrypt_log_n`, 10 to 20.
    pub scrypt_log_n: u8,
}

impl Default for EncryptOptions<'_> {
    fn default() -> Self {
        EncryptOptions { progress: None, dereference: false, scrypt_log_n: DEFAULT_SCRYPT_LOG_N }
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
    /// Devices, fifos and sockets, which were left out.
    pub skipped: Vec<PathBuf>,
    /// Symlinks that point out of the source: in the mount they lead nowhere.
    pub escaping: Vec<PathBuf>,
}

/// Encrypt the content of directory `src` into `dst`, which must be missing or empty.
///
/// # Errors
/// [`EncryptError`]. What has been written to `dst` by then stays, without a `gocryptfs.conf`.
pub fn encrypt_tree(
    src: &Path,
    dst: &Path,
    passphrase: &Passphrase,
    options: &EncryptOptions<'_>,
) -> Result<Encrypted, EncryptError> {
    let source = Source::open(src, options.dereference)?;
    let target = open_target_dir(src, dst)?;
    let failed = |source: nix::Error| EncryptError::Target { path: dst.to_owned(), source: source.into() };

    let total = source.survey(&target)?;
    let stat = fstatvfs(&target).map_err(failed)?;
    let free = stat.fragment_size().saturating_mul(stat.blocks_available());
    if total.stored > free {
        return Err(EncryptError::NoSpace { needed: total.stored, free });
    }

    let (conf, keys) = Conf::create(passphrase, options.scrypt_log_n)?;
    let writer = Writer {
        names: keys.names(),
        keys: &keys,
        source: &source,
        progress: options.progress,
        total: total.plain,
        done: AtomicU64::new(0),
    };
    let mut encrypted = Encrypted::default();
    writer.directory(&mut source.root()?, &target, Path::new(""), &mut encrypted)?;

    syncfs(&target).map_err(failed)?;
    put_conf(&target, &conf.to_json()?)
        .map_err(|source| EncryptError::Target { path: dst.join(CONF_NAME), source })?;
    Ok(encrypted)
}

/// Open `dst`, made if missing: empty, and neither inside `src` nor around it.
fn open_target_dir(src: &Path, dst: &Path) -> Result<OwnedFd, EncryptError> {
    let failed = |source: std::io::Error| EncryptError::Target { path: dst.to_owned(), source };
    let real_src =
        src.canonicalize().map_err(|source| EncryptError::Source { path: src.to_owned(), source })?;
    let real_dst = match dst.canonicalize() {
        Ok(real) => real,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent =
                dst.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = dst.file_name().ok_or_else(|| failed(error))?;
            parent.canonicalize().map_err(failed)?.join(name)
        }
        Err(error) => return Err(failed(error)),
    };
    if real_dst.starts_with(&real_src) || real_src.starts_with(&real_dst) {
        return Err(EncryptError::Nested { src: src.to_owned(), dst: dst.to_owned() });
    }
    match std::fs::create_dir(&real_dst) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let target = nix::fcntl::open(&real_dst, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let listed = dirfd::open_dir(&target, OsStr::new(".")).and_then(|mut dir| dirfd::names(&mut dir));
    if listed.map_err(|error| failed(error.into()))?.is_empty() {
        Ok(target)
    } else {
        Err(EncryptError::NotEmpty { path: dst.to_owned() })
    }
}

/// Put the conf in place, whole or not at all.
fn put_conf(dir: &OwnedFd, json: &[u8]) -> std::io::Result<()> {
    let temporary = format!("{CONF_NAME}.tmp");
    write_new(dir, &temporary, json, Mode::from_bits_truncate(0o400))?.sync_all()?;
    renameat(dir, temporary.as_str(), dir, CONF_NAME)?;
    nix::unistd::fsync(dir)?;
    Ok(())
}

/// A new file `name` with `bytes` and exactly `mode`.
fn write_new(dir: impl AsFd, name: &str, bytes: &[u8], mode: Mode) -> std::io::Result<File> {
    let mut file = create(dir, name)?;
    file.write_all(bytes)?;
    fchmod(&file, mode)?;
    Ok(file)
}

fn create(dir: impl AsFd, name: &str) -> nix::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(dir, name, flags, Mode::from_bits_truncate(0o600))?))
}

struct Writer<'a> {
    keys: &'a Keys,
    names: Names,
    source: &'a Source,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    total: u64,
    done: AtomicU64,
}

impl Writer<'_> {
    /// Seal everything in `dir` into the empty directory `target`. `path` is below the source's root.
    fn directory(
        &self,
        dir: &mut Dir,
        target: &OwnedFd,
        path: &Path,
        encrypted: &mut Encrypted,
    ) -> Result<(), EncryptError> {
        let iv = new_dir_iv()?;
        write_new(target, DIR_IV_NAME, iv.as_bytes(), READ_ONLY).map_err(|error| self.failed(path, error))?;
        for (name, stat) in self.source.list(dir, path)? {
            let path = path.join(&name);
            let kind = dirfd::kind(&stat);
            if !matches!(kind, SFlag::S_IFDIR | SFlag::S_IFREG | SFlag::S_IFLNK) {
                encrypted.skipped.push(path);
                continue;
            }
            let stored = self
                .names
                .encrypt(&iv, &name)
                .map_err(|source| EncryptError::Name { path: self.source.path.join(&path), source })?;
            if let Some((text_name, text)) = &stored.text_file {
                write_new(target, text_name, text.as_bytes(), READ_ONLY)
                    .map_err(|error| self.failed(&path, error))?;
            }
            let object = stored.object.as_str();
            match kind {
                SFlag::S_IFDIR => {
                    encrypted.directories += 1;
                    let mut child = self.source.open_dir(dir, &name).map_err(self.source.failed(&path))?;
                    self.subdirectory(&mut child, target, object, &stat, &path, encrypted)?;
                }
                SFlag::S_IFLNK => {
                    encrypted.symlinks += 1;
                    let link = readlinkat(&*dir, name.as_os_str()).map_err(self.source.failed(&path))?;
                    if escapes(&path, Path::new(&link)) {
                        encrypted.escaping.push(path.clone());
                    }
                    self.symlink(&link, target, object, &stat, &path)?;
                }
                _ => {
                    encrypted.files += 1;
                    encrypted.bytes += self.file(dir, &name, target, object, &path)?;
                }
            }
        }
        Ok(())
    }

    fn subdirectory(
        &self,
        dir: &mut Dir,
        parent: &OwnedFd,
        object: &str,
        stat: &FileStat,
        path: &Path,
        encrypted: &mut Encrypted,
    ) -> Result<(), EncryptError> {
        let failed = |error: nix::Error| self.failed(path, error.into());
        mkdirat(parent, object, Mode::S_IRWXU).map_err(failed)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let target = openat(parent, object, flags, Mode::empty()).map_err(failed)?;
        self.directory(dir, &target, path, encrypted)?;
        keep_attributes(&target, stat).map_err(failed)
    }

    fn file(
        &self,
        dir: &Dir,
        name: &OsStr,
        target: &OwnedFd,
        object: &str,
        path: &Path,
    ) -> Result<u64, EncryptError> {
        let failed = |error: nix::Error| self.failed(path, error.into());
        let from = self.source.open_at(dir, name, OFlag::O_NONBLOCK).map_err(self.source.failed(path))?;
        let from = File::from(from);
        let stat = fstat(&from).map_err(self.source.failed(path))?;
        let to = create(target, object).map_err(failed)?;
        let advanced = |bytes| self.advance(bytes);
        seal_file(self.keys, &from, &to, &advanced)
            .map_err(|error| EncryptError::from_seal(error, self.source.path.join(path)))?;
        keep_attributes(&to, &stat).map_err(failed)?;
        self.advance(0);
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn symlink(
        &self,
        link: &OsStr,
        target: &OwnedFd,
        object: &str,
        stat: &FileStat,
        path: &Path,
    ) -> Result<(), EncryptError> {
        let failed = |error: nix::Error| self.failed(path, error.into());
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce)?;
        let sealed = seal_target(self.keys, &nonce, link)
            .map_err(|source| EncryptError::Link { path: self.source.path.join(path), source })?;
        symlinkat(sealed.as_str(), target, object).map_err(failed)?;
        let (accessed, modified) = times(stat);
        utimensat(target, object, &accessed, &modified, UtimensatFlags::NoFollowSymlink).map_err(failed)
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(progress) = self.progress {
            progress(Progress { done, total: self.total });
        }
    }

    fn failed(&self, path: &Path, source: std::io::Error) -> EncryptError {
        EncryptError::Target { path: path.to_owned(), source }
    }
}

fn new_dir_iv() -> Result<DirIv, EncryptError> {
    loop {
        let mut bytes = [0; DirIv::LEN];
        getrandom::fill(&mut bytes)?;
        if let Some(iv) = DirIv::new(bytes) {
            return Ok(iv);
        }
    }
}

fn keep_attributes(target: impl AsFd, stat: &FileStat) -> nix::Result<()> {
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
