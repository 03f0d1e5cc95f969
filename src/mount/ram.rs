//! RAM mode: the whole model, decrypted into a memory file system that then is the mount.
//!
//! Every tag of every file is verified before anything is shown. Owners and permissions are the helper's work, when it
//! mounts the file system. Not carried over: device nodes, sockets and extended attributes, which no model in a bucket has.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, futimens, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, symlinkat};

use super::fs::{FsError, ModelFs};
use super::memory::{Buffer, Memory, taken};
use super::whole::{Decryptor, FillError};
use crate::error::{ErrorClass, Fault};
use crate::gocryptfs::{Kind, Node};
use crate::meminfo::MemInfo;

/// The model could not be decrypted into memory.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// It does not fit.
    #[error("the model takes {needed} bytes of memory and mount.memory_bytes allows {allowed}")]
    TooLarge {
        /// What it takes.
        needed: u64,
        /// What there is.
        allowed: u64,
    },
    /// The machine has not so much to spare.
    #[error("the model takes {needed} bytes of memory and {available} are available on this machine")]
    NotAvailable {
        /// What it takes.
        needed: u64,
        /// What there is.
        available: u64,
    },
    /// A file is damaged, or its ciphertext cannot be had; the log names the block.
    #[error("decrypting {}", path.display())]
    Unreadable {
        /// The file, below the mount point.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: FsError,
    },
    /// The memory file system refused something.
    #[error("writing {} to memory", path.display())]
    Io {
        /// The file, below the mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The threads could not be started.
    #[error("starting the threads that decrypt")]
    Threads(#[source] io::Error),
}

impl Fault for RamError {
    fn class(&self) -> ErrorClass {
        match self {
            RamError::TooLarge { .. } | RamError::NotAvailable { .. } => ErrorClass::Config,
            RamError::Unreadable { source: FsError::Damaged, .. } => ErrorClass::Corrupt,
            RamError::Unreadable { .. } | RamError::Io { .. } | RamError::Threads(_) => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            RamError::TooLarge { .. } => "ram.too-large",
            RamError::NotAvailable { .. } => "ram.not-available",
            RamError::Unreadable { .. } => "ram.unreadable",
            RamError::Io { .. } => "ram.io",
            RamError::Threads(_) => "ram.threads",
        }
    }

    fn hint(&self) -> String {
        match self {
            RamError::TooLarge { .. } => {
                "raise mount.memory_bytes (--memory of cai mount), or set mount.mode = \"auto\""
            }
            RamError::NotAvailable { .. } => "stop what uses the memory, or set mount.mode = \"auto\"",
            RamError::Unreadable { .. } => {
                "see the block in the log; upload the encrypted model again, or set mount.mode = \"auto\" to serve the rest"
            }
            RamError::Io { .. } | RamError::Threads(_) => {
                "see whether memory is exhausted; mount.mode = \"auto\" needs less"
            }
        }
        .to_owned()
    }
}

/// Length from which on the target of a symlink takes a page of a tmpfs, bytes (Linux's `SHORT_SYMLINK_LEN`, without the NUL).
const LONG_TARGET: usize = 128;

/// Bytes of memory that [`fill`] takes for `fs`: a file with many names is there once.
pub fn memory_needed(fs: &ModelFs) -> u64 {
    let mut seen = HashSet::new();
    let nodes = fs.tree().nodes().iter().filter(|node| seen.insert(fs.inode(node.id)));
    nodes.map(|node| taken(len_in_memory(node))).fold(0, u64::saturating_add)
}

/// Decrypt everything in `fs` into `memory`. `progress` gets the plaintext bytes done, after each file.
///
/// # Errors
/// [`RamError`]; `memory` then holds nothing of use.
pub fn fill(fs: &ModelFs, memory: &Memory, progress: impl FnMut(u64)) -> Result<(), RamError> {
    let needed = memory_needed(fs);
    if let Ok(MemInfo { available, .. }) = MemInfo::read()
        && needed > available
    {
        return Err(RamError::NotAvailable { needed, available });
    }
    if needed > memory.size() {
        return Err(RamError::TooLarge { needed, allowed: memory.size() });
    }
    let decryptor = Decryptor::new().map_err(RamError::Threads)?;
    let mut filling =
        Filling { fs, decryptor, root: memory.root(), links: HashMap::new(), progress, done: 0 };
    let Some(root) = fs.tree().node(fs.tree().root()) else { return Ok(()) };
    let directory = memory.root().try_clone_to_owned().map_err(|source| failed(Path::new(""), source))?;
    filling.directory(root, directory)
}

struct Filling<'a, P> {
    fs: &'a ModelFs,
    decryptor: Decryptor,
    root: BorrowedFd<'a>,
    /// Where the files lie that have more names than one, by inode.
    links: HashMap<u64, PathBuf>,
    progress: P,
    done: u64,
}

impl<P: FnMut(u64)> Filling<'_, P> {
    /// What is in the directory `node`, open as `directory`.
    fn directory(&mut self, node: &Node, directory: OwnedFd) -> Result<(), RamError> {
        let Kind::Directory { children } = &node.kind else { return Ok(()) };
        let fs = self.fs;
        for child in children.iter().filter_map(|id| fs.tree().node(*id)) {
            self.entry(child, &directory)?;
        }
        // Last: what is made inside changes it.
        futimens(&directory, &time(node), &time(node)).map_err(|error| failed(&self.path(node), error))
    }

    fn entry(&mut self, node: &Node, parent: &OwnedFd) -> Result<(), RamError> {
        let path = self.path(node);
        let failed = |error: nix::Error| failed(&path, error);
        match &node.kind {
            Kind::Directory { .. } => {
                mkdirat(parent, node.name.as_os_str(), Mode::S_IRWXU).map_err(failed)?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let directory =
                    openat(parent, node.name.as_os_str(), flags, Mode::empty()).map_err(failed)?;
                self.directory(node, directory)
            }
            Kind::File { plain_len, .. } => self.file(node, parent, *plain_len),
            Kind::Symlink { target } => {
                symlinkat(target.as_os_str(), parent, node.name.as_os_str()).map_err(failed)?;
                let flags = UtimensatFlags::NoFollowSymlink;
                utimensat(parent, node.name.as_os_str(), &time(node), &time(node), flags).map_err(failed)
            }
            Kind::Special { .. } => {
                tracing::warn!(
                    event = "ram.skipped",
                    "{} is neither a file nor a directory nor a link, and is not in memory",
                    path.display()
                );
                Ok(())
            }
        }
    }

    fn file(&mut self, node: &Node, parent: &OwnedFd, len: u64) -> Result<(), RamError> {
        let (path, inode) = (self.path(node), self.fs.inode(node.id));
        let io = |error: nix::Error| failed(&path, error);
        if let Some(first) = self.links.get(&inode) {
            return linkat(self.root, first, parent, node.name.as_os_str(), AtFlags::empty()).map_err(io);
        }
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = File::from(openat(parent, node.name.as_os_str(), flags, mode).map_err(io)?);
        let mut buffer = Buffer::named(file);
        self.decryptor.fill(self.fs, inode, &mut buffer).map_err(|error| match error {
            FillError::Memory(source) => failed(&path, source),
            FillError::Read(source) => RamError::Unreadable { path: path.clone(), source },
        })?;
        futimens(buffer.file(), &time(node), &time(node)).map_err(io)?;
        if node.attributes.nlink > 1 {
            self.links.insert(inode, path.clone());
        }
        self.done = self.done.saturating_add(len);
        (self.progress)(self.done);
        Ok(())
    }

    fn path(&self, node: &Node) -> PathBuf {
        self.fs.tree().path(node.id)
    }
}

fn time(node: &Node) -> TimeSpec {
    match node.attributes.mtime.duration_since(UNIX_EPOCH) {
        Ok(since) => TimeSpec::from_duration(since),
        // Whole seconds are enough for times before 1970.
        Err(before) => TimeSpec::new(i64::try_from(before.duration().as_secs()).map_or(0, |secs| -secs), 0),
    }
}

/// Bytes that need pages.
fn len_in_memory(node: &Node) -> u64 {
    match &node.kind {
        Kind::File { plain_len, .. } => *plain_len,
        Kind::Symlink { target } if target.len() >= LONG_TARGET => 1,
        Kind::Directory { .. } | Kind::Symlink { .. } | Kind::Special { .. } => 0,
    }
}

fn failed(path: &Path, source: impl Into<io::Error>) -> RamError {
    RamError::Io { path: path.to_path_buf(), source: source.into() }
}
