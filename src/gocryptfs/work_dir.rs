//! Where an encryption is written until it is complete: `DST.partial`, beside the target it becomes.
//!
//! Until then its conf is called [`UNFINISHED_CONF`], so nobody can mount or upload it by accident; it holds the keys that
//! the next run goes on with. At the end everything is synced, the conf gets its name, then the directory gets its own:
//! each step is one rename, so that a target is complete or not there. One run at a time holds the directory's lock.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{UnlinkatFlags, syncfs, unlinkat};

use super::conf::{CONF_NAME, Conf, LARGEST_CONF};
use super::dirfd;
use super::encrypt_error::EncryptError;
use super::keys::{Keys, unlock};
use super::passphrase::Passphrase;

/// The conf of a directory that is not complete.
pub(super) const UNFINISHED_CONF: &str = "gocryptfs.conf.unfinished";
/// The same while it is written.
const CONF_DRAFT: &str = "gocryptfs.conf.draft";
/// What the working directory is called after the target.
const SUFFIX: &str = ".partial";

/// The directory an encryption is written to.
pub(super) struct WorkDir {
    lock: Flock<OwnedFd>,
    path: PathBuf,
    target: PathBuf,
    /// Whether an earlier run has left something here.
    pub(super) resumed: bool,
}

impl WorkDir {
    /// Make or take up the working directory of `dst`, which must be missing or an empty directory.
    pub(super) fn open(src: &Path, dst: &Path) -> Result<Self, EncryptError> {
        let target = real_target(src, dst)?;
        let name = target.file_name().unwrap_or_default();
        let path = target.with_file_name([name, OsStr::new(SUFFIX)].into_iter().collect::<OsString>());
        let failed = |source: std::io::Error| EncryptError::Target { path: path.clone(), source };
        match std::fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = nix::fcntl::open(&path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let lock = Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
            nix::Error::EWOULDBLOCK => EncryptError::Busy { path: path.clone() },
            other => failed(other.into()),
        })?;
        let mut work = WorkDir { lock, path, target, resumed: false };
        work.resumed = work.look()?;
        Ok(work)
    }

    /// Whether there is something to go on with. What is neither that nor empty is not ours to write to.
    fn look(&self) -> Result<bool, EncryptError> {
        let listed = dirfd::open_dir(self, OsStr::new(".")).and_then(|mut dir| dirfd::names(&mut dir));
        let names = listed.map_err(|error| self.failed(error))?;
        let has = |name: &str| names.iter().any(|found| found == name);
        if has(CONF_NAME) {
            // Interrupted between the last two steps; what follows checks all of it once more.
            renameat(self, CONF_NAME, self, UNFINISHED_CONF).map_err(|error| self.failed(error))?;
            return Ok(true);
        }
        if has(UNFINISHED_CONF) {
            return Ok(true);
        }
        match names.as_slice() {
            [] => Ok(false),
            [only] if only == CONF_DRAFT => {
                unlinkat(self, CONF_DRAFT, UnlinkatFlags::NoRemoveDir).map_err(|error| self.failed(error))?;
                Ok(false)
            }
            _ => Err(EncryptError::NotEmpty { path: self.path.clone() }),
        }
    }

    /// The keys: those of the interrupted run if its passphrase was the same, else new ones.
    pub(super) fn keys(&self, passphrase: &Passphrase, scrypt_log_n: u8) -> Result<Keys, EncryptError> {
        let failed = |source: std::io::Error| EncryptError::Target { path: self.path.clone(), source };
        if self.resumed {
            let json = self.read(UNFINISHED_CONF).map_err(failed)?;
            let keys = Conf::parse(&json).and_then(|conf| unlock(&conf, passphrase));
            return keys.map_err(|source| EncryptError::Resume { path: self.path.clone(), source });
        }
        let (conf, keys) = Conf::create(passphrase, scrypt_log_n)?;
        let mut draft = create(self, CONF_DRAFT).map_err(failed)?;
        draft.write_all(&conf.to_json()?).map_err(failed)?;
        fchmod(&draft, Mode::from_bits_truncate(0o400)).map_err(|error| self.failed(error))?;
        draft.sync_all().map_err(failed)?;
        renameat(self, CONF_DRAFT, self, UNFINISHED_CONF).map_err(|error| self.failed(error))?;
        Ok(keys)
    }

    /// Everything is written: make it durable and the conf a conf, let `last` add what describes the whole, and give the
    /// directory its name.
    pub(super) fn finish(
        self,
        last: impl FnOnce(&Path) -> Result<(), EncryptError>,
    ) -> Result<(), EncryptError> {
        syncfs(&self).map_err(|error| self.failed(error))?;
        renameat(&self, UNFINISHED_CONF, &self, CONF_NAME).map_err(|error| self.failed(error))?;
        last(&self.path)?;
        syncfs(&self).map_err(|error| self.failed(error))?;
        let failed = |source| EncryptError::Target { path: self.target.clone(), source };
        std::fs::rename(&self.path, &self.target).map_err(failed)?;
        // The new name lies in the parent directory.
        self.target.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all()).map_err(failed)
    }

    fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat(self, name, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        let limit = u64::try_from(LARGEST_CONF).unwrap_or(u64::MAX).saturating_add(1);
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The directory, for writing into it.
    pub(super) fn root(&self) -> Result<OwnedFd, EncryptError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(self, ".", flags, Mode::empty()).map_err(|error| self.failed(error))
    }

    /// Leave no trace of a run that wrote nothing.
    pub(super) fn remove_if_empty(&self) {
        // One that holds something stays, which is the point.
        let _ = std::fs::remove_dir(&self.path);
    }

    pub(super) fn failed(&self, error: nix::Error) -> EncryptError {
        EncryptError::Target { path: self.path.clone(), source: error.into() }
    }
}

impl AsFd for WorkDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// `dst` without symlinks: missing or an empty directory that can be replaced, and neither inside `src` nor around it.
fn real_target(src: &Path, dst: &Path) -> Result<PathBuf, EncryptError> {
    let failed = |source: std::io::Error| EncryptError::Target { path: dst.to_owned(), source };
    let real_src =
        src.canonicalize().map_err(|source| EncryptError::Source { path: src.to_owned(), source })?;
    let (real_dst, exists) = match dst.canonicalize() {
        Ok(real) => (real, true),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent =
                dst.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let name = dst.file_name().ok_or_else(|| failed(error))?;
            (parent.canonicalize().map_err(failed)?.join(name), false)
        }
        Err(error) => return Err(failed(error)),
    };
    if real_dst.starts_with(&real_src) || real_src.starts_with(&real_dst) {
        return Err(EncryptError::Nested { src: src.to_owned(), dst: dst.to_owned() });
    }
    if exists {
        if std::fs::read_dir(&real_dst).map_err(failed)?.next().is_some() {
            return Err(EncryptError::NotEmpty { path: dst.to_owned() });
        }
        let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev());
        let parent = real_dst.parent().unwrap_or(Path::new("/"));
        if device(&real_dst).map_err(failed)? != device(parent).map_err(failed)? {
            return Err(EncryptError::MountPoint { path: dst.to_owned() });
        }
    }
    Ok(real_dst)
}

/// A new file, for writing and reading.
pub(super) fn create(dir: impl AsFd, name: &str) -> std::io::Result<File> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(dir, name, flags, Mode::from_bits_truncate(0o600))?))
}
