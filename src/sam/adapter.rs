//! Which program may be the adapter: opened once, looked at through that descriptor, and executed through it, so that nothing
//! can be put in its place in between.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use sha2::{Digest, Sha256};

use crate::error::{ErrorClass, Fault};

/// Where the operator installs it, below the root.
pub const PATH: &str = "usr/libexec/cai/decryptor.d/sam";

/// There is no adapter that may be run.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Nothing is there.
    #[error("there is no {}", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Others than root could have made or changed it, or it is no program.
    #[error("{} {flaw}", path.display())]
    Unsafe {
        /// The file, or a directory above it.
        path: PathBuf,
        /// What is wrong with it.
        flaw: String,
    },
    /// It is another one than was pinned.
    #[error("{} has SHA-256 {found}, expected {expected}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// `sam.adapter_sha256`, hex.
        expected: String,
        /// What it has, hex.
        found: String,
    },
    /// The system refused.
    #[error("opening {}", path.display())]
    Io {
        /// The file, or a directory above it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Fault for AdapterError {
    fn class(&self) -> ErrorClass {
        match self {
            AdapterError::Missing { .. }
            | AdapterError::Unsafe { .. }
            | AdapterError::Hash { .. }
            | AdapterError::Io { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            AdapterError::Missing { .. } => "sam.runtime-missing",
            AdapterError::Unsafe { .. } => "sam.adapter-unsafe",
            AdapterError::Hash { .. } => "sam.adapter-hash",
            AdapterError::Io { .. } => "sam.adapter-io",
        }
    }

    fn hint(&self) -> String {
        match self {
            AdapterError::Missing { path } => {
                format!(
                    "install the adapter to the vendor's runtime as {}: man 7 cai-decryptor",
                    path.display()
                )
            }
            AdapterError::Unsafe { path, .. } => format!(
                "after looking at who made it: chown root: {0}; chmod 0755 {0}; no links, and the same for what is above",
                path.display()
            ),
            AdapterError::Hash { path, .. } => {
                format!(
                    "if it was updated on purpose, put the sum of sha256sum {} into sam.adapter_sha256",
                    path.display()
                )
            }
            AdapterError::Io { .. } => "it must be readable by root".into(),
        }
    }
}

/// An adapter that may be run.
#[derive(Debug)]
pub struct Adapter {
    /// The file, open for reading.
    pub file: OwnedFd,
    /// SHA-256 of what is in it, hex.
    pub sha256: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Open the adapter below `root`, whose SHA-256 must be `pin` if there is one.
///
/// # Errors
/// [`AdapterError`].
pub fn open_below(root: &Path, pin: Option<[u8; 32]>) -> Result<Adapter, AdapterError> {
    let path = root.join(PATH);
    let fail = |at: &Path, error: Errno| match error {
        Errno::ENOENT => AdapterError::Missing { path: path.clone() },
        Errno::ELOOP | Errno::ENOTDIR => {
            AdapterError::Unsafe { path: at.into(), flaw: "is a symbolic link, or no directory".into() }
        }
        error => AdapterError::Io { path: at.into(), source: error.into() },
    };
    let way = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let end = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut at = root.to_path_buf();
    let mut here = open(root, way, Mode::empty()).map_err(|error| fail(&at, error))?;
    let mut names = Path::new(PATH).iter().peekable();
    while let Some(name) = names.next() {
        check_owner(&at, &fstat(&here).map_err(|error| fail(&at, error))?)?;
        at.push(name);
        let flags = if names.peek().is_some() { way } else { end };
        here = openat(&here, name, flags, Mode::empty()).map_err(|error| fail(&at, error))?;
    }
    let stat = fstat(&here).map_err(|error| fail(&at, error))?;
    check_owner(&at, &stat)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err(AdapterError::Unsafe { path, flaw: "is no regular file".into() });
    }
    if stat.st_mode & 0o005 != 0o005 {
        let flaw =
            format!("has mode {:04o}: {} could not read and run it", stat.st_mode & 0o7777, super::USER);
        return Err(AdapterError::Unsafe { path, flaw });
    }
    let found = hash(&here).map_err(|source| AdapterError::Io { path: path.clone(), source })?;
    match pin {
        Some(pin) if pin != found => {
            Err(AdapterError::Hash { path, expected: hex::encode(pin), found: hex::encode(found) })
        }
        Some(_) | None => Ok(Adapter { file: here, sha256: hex::encode(found), path }),
    }
}

fn check_owner(path: &Path, stat: &FileStat) -> Result<(), AdapterError> {
    let mode = stat.st_mode & 0o7777;
    if stat.st_uid == 0 && mode & 0o022 == 0 {
        return Ok(());
    }
    let flaw =
        format!("has uid {} and mode {mode:04o}: others than root could exchange the adapter", stat.st_uid);
    Err(AdapterError::Unsafe { path: path.into(), flaw })
}

fn hash(file: &OwnedFd) -> io::Result<[u8; 32]> {
    let mut file = std::fs::File::from(file.as_fd().try_clone_to_owned()?);
    let mut hash = Sha256::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            len => hash.update(piece.get(..len).unwrap_or_default()),
        }
    }
    Ok(hash.finalize().into())
}
