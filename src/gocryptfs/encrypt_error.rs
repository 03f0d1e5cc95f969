//! Why a directory could not be encrypted.

use std::path::PathBuf;

use super::content::{BadBlock, Damage};
use super::error::FormatError;
use super::names::NameError;
use super::seal::SealError;
use crate::error::{ErrorClass, Fault, chain};

/// Encryption stopped. What was written waits in `DST.partial` for the next run, and cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// Something to be encrypted cannot be read.
    #[error("reading {path}")]
    Source {
        /// Source path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Something encrypted cannot be written.
    #[error("writing the encrypted {path}")]
    Target {
        /// Target directory, or path below the source of what was being written.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The target directory has something in it.
    #[error("{path} is not empty")]
    NotEmpty {
        /// Target path.
        path: PathBuf,
    },
    /// The target cannot be replaced by the complete directory.
    #[error("{path} is a mount point")]
    MountPoint {
        /// Target path.
        path: PathBuf,
    },
    /// Another run works on it.
    #[error("{path} is in use by another cai encrypt")]
    Busy {
        /// Working directory.
        path: PathBuf,
    },
    /// What an interrupted run left cannot be gone on with.
    #[error("continuing in {path}")]
    Resume {
        /// Working directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// A pattern of names to leave out is none.
    #[error("the pattern {pattern:?} cannot be used")]
    Pattern {
        /// As given.
        pattern: String,
        /// Why.
        #[source]
        source: globset::Error,
    },
    /// What describes the whole directory could not be added. A fault of any kind cannot be a source: it is shown here.
    #[error("finishing the encrypted directory: {}", chain(.cause.as_ref()))]
    Finish {
        /// Why.
        cause: Box<dyn Fault>,
    },
    /// Somebody else's failure, which is reported in this one's place.
    #[error("the encryption was stopped")]
    Stopped,
    /// One directory is in the other, or both are one.
    #[error("{src} and {dst} contain each other")]
    Nested {
        /// Source path.
        src: PathBuf,
        /// Target path.
        dst: PathBuf,
    },
    /// A directory that contains itself, or the target, by a symlink or a mount.
    #[error("{path} leads back to a directory above it, or into the target")]
    Circle {
        /// Source path.
        path: PathBuf,
    },
    /// Nested deeper than 200 directories.
    #[error("{path} is nested too deep")]
    TooDeep {
        /// Source path.
        path: PathBuf,
    },
    /// A file was written to while it was encrypted.
    #[error("{path} changed while it was encrypted")]
    Changed {
        /// Source path.
        path: PathBuf,
    },
    /// The target's file system is too small.
    #[error("{needed} bytes are needed and {free} are free")]
    NoSpace {
        /// Bytes of ciphertext.
        needed: u64,
        /// Bytes available.
        free: u64,
    },
    /// A name the format cannot store.
    #[error("the name of {path} cannot be stored")]
    Name {
        /// Source path.
        path: PathBuf,
        /// Why.
        #[source]
        source: NameError,
    },
    /// A symlink the format cannot store.
    #[error("the symlink {path} cannot be stored")]
    Link {
        /// Source path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Damage,
    },
    /// Conf or keys.
    #[error("preparing keys")]
    Format(#[from] FormatError),
    /// The system gave no random bytes.
    #[error("reading random bytes")]
    Random(#[from] getrandom::Error),
    /// Lengths that cannot be a block's; a defect in cai.
    #[error("sealing a block")]
    Block(#[from] BadBlock),
    /// No thread could be started.
    #[error("starting a thread")]
    Thread(#[source] std::io::Error),
}

impl EncryptError {
    /// What went wrong with the file at `path`.
    pub(super) fn from_seal(error: SealError, path: PathBuf) -> Self {
        match error {
            SealError::Read(source) => EncryptError::Source { path, source },
            SealError::Write(source) => EncryptError::Target { path, source },
            SealError::Changed => EncryptError::Changed { path },
            SealError::Random(source) => EncryptError::Random(source),
            SealError::Block(source) => EncryptError::Block(source),
        }
    }
}

impl Fault for EncryptError {
    fn class(&self) -> ErrorClass {
        match self {
            EncryptError::Source { .. }
            | EncryptError::Target { .. }
            | EncryptError::NotEmpty { .. }
            | EncryptError::MountPoint { .. }
            | EncryptError::Busy { .. }
            | EncryptError::Pattern { .. }
            | EncryptError::Nested { .. }
            | EncryptError::Circle { .. }
            | EncryptError::TooDeep { .. }
            | EncryptError::Changed { .. }
            | EncryptError::NoSpace { .. }
            | EncryptError::Name { .. }
            | EncryptError::Link { .. } => ErrorClass::Config,
            EncryptError::Format(source) | EncryptError::Resume { source, .. } => source.class(),
            EncryptError::Finish { cause } => cause.class(),
            EncryptError::Random(_)
            | EncryptError::Block(_)
            | EncryptError::Thread(_)
            | EncryptError::Stopped => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            EncryptError::Source { .. } => "encrypt.source",
            EncryptError::Target { .. } => "encrypt.target",
            EncryptError::NotEmpty { .. } => "encrypt.not-empty",
            EncryptError::MountPoint { .. } => "encrypt.mount-point",
            EncryptError::Busy { .. } => "encrypt.busy",
            EncryptError::Resume { .. } => "encrypt.resume",
            EncryptError::Pattern { .. } => "encrypt.pattern",
            EncryptError::Finish { cause } => cause.code(),
            EncryptError::Stopped => "encrypt.stopped",
            EncryptError::Nested { .. } => "encrypt.nested",
            EncryptError::Circle { .. } => "encrypt.circle",
            EncryptError::TooDeep { .. } => "encrypt.too-deep",
            EncryptError::Changed { .. } => "encrypt.changed",
            EncryptError::NoSpace { .. } => "encrypt.no-space",
            EncryptError::Name { .. } => "encrypt.name",
            EncryptError::Link { .. } => "encrypt.link",
            EncryptError::Format(source) => source.code(),
            EncryptError::Random(_) => "encrypt.random",
            EncryptError::Block(_) => "encrypt.block",
            EncryptError::Thread(_) => "encrypt.thread",
        }
    }

    fn hint(&self) -> String {
        let again = "then run the same command again: it goes on where it was";
        match self {
            EncryptError::Source { .. } => {
                format!("make the file readable, or, where a symlink leads nowhere, remove it; {again}")
            }
            EncryptError::Target { .. } => format!("check space and permissions of the target; {again}"),
            EncryptError::Changed { .. } => format!("let nothing write to the model meanwhile; {again}"),
            EncryptError::NotEmpty { .. } => "give a new or an empty directory".to_owned(),
            EncryptError::MountPoint { .. } => {
                "give the path of a new directory on it: a complete one takes the target's place by its name"
                    .to_owned()
            }
            EncryptError::Busy { .. } => "wait for it, or give another target".to_owned(),
            EncryptError::Resume { path, source: FormatError::WrongPassword } => format!(
                "an interrupted run began there with another password: give that one, or remove {} to begin anew",
                path.display()
            ),
            EncryptError::Resume { path, .. } => format!("remove {} to begin anew", path.display()),
            EncryptError::Pattern { .. } => {
                "patterns have *, ?, [abc], {a,b} and **; quote them so that the shell leaves them alone"
                    .to_owned()
            }
            EncryptError::Finish { cause } => cause.hint(),
            EncryptError::Nested { .. } => "choose a target outside of the source directory".to_owned(),
            EncryptError::Circle { .. } => "remove the link, or encrypt without --dereference".to_owned(),
            EncryptError::TooDeep { .. } => "this is no model directory".to_owned(),
            EncryptError::NoSpace { .. } => "choose a target on a larger file system".to_owned(),
            EncryptError::Name { .. } | EncryptError::Link { .. } => format!("rename or remove it; {again}"),
            EncryptError::Format(source) => source.hint(),
            EncryptError::Random(_) => "the kernel's random source must work".to_owned(),
            EncryptError::Block(_) | EncryptError::Stopped => {
                "this is a defect in cai: please report it".to_owned()
            }
            EncryptError::Thread(_) => format!("raise the limit of processes and threads; {again}"),
        }
    }
}
