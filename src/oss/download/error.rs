//! Why objects were not downloaded.

use std::path::{Path, PathBuf};

use crate::error::{ErrorClass, Fault};
use crate::oss::error::{OssError, Reason};
use crate::oss::persist::concerns_all;

/// Paths of one kind that an error names.
const SHOWN: usize = 10;

/// Why objects were not downloaded.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The objects cannot be listed, or cannot be files.
    #[error("listing what to download")]
    List {
        /// What went wrong.
        #[source]
        source: Box<OssError>,
    },
    /// There is nothing.
    #[error("there is no object below {prefix:?}")]
    Nothing {
        /// The prefix.
        prefix: String,
    },
    /// Two keys cannot both be files.
    #[error("{file} is an object, and so is something below it, which no directory can hold")]
    Conflict {
        /// The path that would be both a file and a directory.
        file: PathBuf,
    },
    /// The directory holds something else than an earlier download.
    #[error("{dir} is not an earlier download of this: it has {count} other entries: {shown}")]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// The first of them, in words.
        shown: String,
        /// How many there are.
        count: usize,
    },
    /// The directory holds files that are not the objects of their names.
    #[error("{dir} has {count} files that are not the objects of their names: {shown}")]
    Differs {
        /// The directory.
        dir: PathBuf,
        /// The first of them, in words.
        shown: String,
        /// How many there are.
        count: usize,
    },
    /// Another download works in the directory.
    #[error("another cai download works in {dir}")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The file system is too full.
    #[error("{dir} has room for {free} bytes, and {missing} are missing")]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes to come.
        missing: u64,
    },
    /// A local file or directory.
    #[error("{doing} {path}")]
    Local {
        /// What was tried.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The object store.
    #[error("downloading {key}")]
    Store {
        /// The object.
        key: String,
        /// What went wrong.
        #[source]
        source: Box<OssError>,
    },
    /// The object is another one than was listed.
    #[error("{key} was replaced or removed while it was downloaded")]
    Replaced {
        /// The object.
        key: String,
    },
    /// What arrived is not the object.
    #[error("{key} arrived with checksum {ours}, and the service says {theirs}")]
    Checksum {
        /// The object.
        key: String,
        /// CRC-64 of what arrived.
        ours: u64,
        /// CRC-64 of the object.
        theirs: u64,
    },
    /// A thread died.
    #[error("work on {path} did not end")]
    Worker {
        /// The path.
        path: PathBuf,
        /// How it ended.
        #[source]
        source: tokio::task::JoinError,
    },
    /// Somebody asked to stop.
    #[error("the download was interrupted before it was complete")]
    Interrupted,
}

/// The first of `paths` in words, and how many there are.
fn list(mut paths: Vec<PathBuf>) -> (String, usize) {
    paths.sort();
    let shown: Vec<String> = paths.iter().take(SHOWN).map(|path| path.display().to_string()).collect();
    let more = paths.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(", and {more} more") } else { String::new() };
    (shown.join(", ") + &more, paths.len())
}

impl DownloadError {
    pub(super) fn foreign(dir: &Path, paths: Vec<PathBuf>) -> Self {
        let (shown, count) = list(paths);
        DownloadError::Foreign { dir: dir.to_owned(), shown, count }
    }

    pub(super) fn differs(dir: &Path, paths: Vec<PathBuf>) -> Self {
        let (shown, count) = list(paths);
        DownloadError::Differs { dir: dir.to_owned(), shown, count }
    }

    /// What the service said about `key`; an object that is not the listed one any more is news of its own.
    pub(super) fn of(key: &str, error: OssError) -> Self {
        match &error {
            OssError::Refused(refusal) if matches!(refusal.reason, Reason::Changed | Reason::NoSuchKey) => {
                DownloadError::Replaced { key: key.to_owned() }
            }
            _ => DownloadError::Store { key: key.to_owned(), source: Box::new(error) },
        }
    }

    /// Whether every other object would meet it too.
    pub(super) fn concerns_all(&self) -> bool {
        match self {
            DownloadError::Store { source, .. } => concerns_all(source),
            // A full or broken disk.
            DownloadError::Local { .. } => true,
            _ => false,
        }
    }
}

impl Fault for DownloadError {
    fn class(&self) -> ErrorClass {
        match self {
            DownloadError::List { source } | DownloadError::Store { source, .. } => source.class(),
            DownloadError::Nothing { .. } | DownloadError::Conflict { .. } => ErrorClass::Config,
            DownloadError::Foreign { .. } | DownloadError::Differs { .. } | DownloadError::InUse { .. } => {
                ErrorClass::Config
            }
            DownloadError::NoSpace { .. } | DownloadError::Local { .. } => ErrorClass::Config,
            DownloadError::Replaced { .. } | DownloadError::Interrupted => ErrorClass::Transient,
            DownloadError::Checksum { .. } => ErrorClass::Corrupt,
            DownloadError::Worker { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            // What the object store said has a code of its own.
            DownloadError::List { source } | DownloadError::Store { source, .. } => source.code(),
            DownloadError::Nothing { .. } => "download.nothing",
            DownloadError::Conflict { .. } => "download.conflict",
            DownloadError::Foreign { .. } => "download.foreign",
            DownloadError::Differs { .. } => "download.differs",
            DownloadError::InUse { .. } => "download.in-use",
            DownloadError::NoSpace { .. } => "download.no-space",
            DownloadError::Local { .. } => "download.local",
            DownloadError::Replaced { .. } => "download.replaced",
            DownloadError::Checksum { .. } => "download.checksum",
            DownloadError::Worker { .. } => "download.worker",
            DownloadError::Interrupted => "download.interrupted",
        }
    }

    fn hint(&self) -> String {
        match self {
            DownloadError::List { source } | DownloadError::Store { source, .. } => source.hint(),
            DownloadError::Nothing { .. } => "check MODEL_OSS_BUCKET_PATH".into(),
            DownloadError::Conflict { .. } => "remove one of the two from the bucket".into(),
            DownloadError::Foreign { .. } => "give a directory that is missing or empty".into(),
            DownloadError::Differs { .. } => {
                "give a directory that is missing or empty, or remove these files: nothing is overwritten".into()
            }
            DownloadError::InUse { .. } => "wait for it to end".into(),
            DownloadError::NoSpace { .. } => "make room, or give a directory on another file system".into(),
            DownloadError::Local { .. } => {
                "DIR, and what is above it, must be there for this user to write, with room".into()
            }
            DownloadError::Replaced { .. } => "run the download again, for the objects that are there now".into(),
            DownloadError::Checksum { .. } => {
                "something on the way changes bytes (a proxy, bad memory), or the object is damaged: upload it again"
                    .into()
            }
            DownloadError::Worker { .. } => "this is a defect in cai; please report it".into(),
            DownloadError::Interrupted => {
                "run the download again: files and parts that are there are not fetched again".into()
            }
        }
    }
}
