//! Why a directory was not published.

use std::path::PathBuf;

use crate::error::{ErrorClass, Fault};
use crate::oss::error::{OssError, Reason};
use crate::oss::persist::concerns_all;

/// Why a directory was not published.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The file that makes a model of the others is missing.
    #[error("{dir} has no {name}, so this would upload plaintext")]
    NoLast {
        /// The directory.
        dir: PathBuf,
        /// The file.
        name: String,
    },
    /// There is nothing to upload.
    #[error("{dir} has no files")]
    Empty {
        /// The directory.
        dir: PathBuf,
    },
    /// An object cannot be a symbolic link.
    #[error("{dir} has {count} symbolic links: {}", list(.shown, *.count))]
    Symlinks {
        /// The directory.
        dir: PathBuf,
        /// The first of them.
        shown: Vec<PathBuf>,
        /// How many there are.
        count: usize,
    },
    /// An object cannot be a device, socket or pipe.
    #[error("{dir} has {count} files that are no regular files: {}", list(.shown, *.count))]
    Special {
        /// The directory.
        dir: PathBuf,
        /// The first of them.
        shown: Vec<PathBuf>,
        /// How many there are.
        count: usize,
    },
    /// A path cannot be a key.
    #[error("the name of {path:?} {why}")]
    Name {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file has more bytes than 10,000 parts hold.
    #[error("{path} has {len} bytes, more than {limit}")]
    TooLarge {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// Most bytes of an object.
        limit: u64,
    },
    /// A local file or directory cannot be read.
    #[error("reading {path}")]
    Local {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A local file is not what it was when the upload began.
    #[error("{path} changed while it was uploaded")]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The object store.
    #[error("uploading {key}")]
    Store {
        /// The object.
        key: String,
        /// What went wrong.
        #[source]
        source: Box<OssError>,
    },
    /// What is below the prefix cannot be told.
    #[error("looking at what is below {prefix:?}")]
    List {
        /// The prefix.
        prefix: String,
        /// What went wrong.
        #[source]
        source: Box<OssError>,
    },
    /// An object is not what was sent, and stays.
    #[error("{key} arrived with a wrong checksum and could not be deleted")]
    NotRemoved {
        /// The object.
        key: String,
        /// Why it could not be deleted.
        #[source]
        source: Box<OssError>,
    },
    /// An object that is no file of the directory could not be deleted.
    #[error("deleting {key}, which is no file of the directory")]
    Delete {
        /// The object.
        key: String,
        /// What went wrong.
        #[source]
        source: Box<OssError>,
    },
    /// A reading thread died.
    #[error("reading {path} did not end")]
    Worker {
        /// The path.
        path: PathBuf,
        /// How it ended.
        #[source]
        source: tokio::task::JoinError,
    },
    /// Somebody asked to stop.
    #[error("the upload was interrupted before it was complete")]
    Interrupted,
}

fn list(shown: &[PathBuf], count: usize) -> String {
    let mut text = shown.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    if count > shown.len() {
        text.push_str(&format!(", and {} more", count.saturating_sub(shown.len())));
    }
    text
}

impl UploadError {
    /// Whether every other file would meet it too.
    pub(super) fn concerns_all(&self) -> bool {
        match self {
            UploadError::Store { source, .. } | UploadError::Delete { source, .. } => concerns_all(source),
            _ => false,
        }
    }

    /// Whether the server holds another object than was sent.
    pub(super) fn is_spoiled(&self) -> bool {
        matches!(self, UploadError::Store { source, .. } if matches!(**source, OssError::Checksum { .. }))
    }

    /// Whether the next run can go on with the parts that are there: nobody has said no, and the file is the same.
    pub(super) fn may_go_on(&self) -> bool {
        match self {
            UploadError::Store { source, .. } => source.class() == ErrorClass::Transient,
            UploadError::Interrupted => true,
            _ => false,
        }
    }
}

impl Fault for UploadError {
    fn class(&self) -> ErrorClass {
        match self {
            UploadError::NoLast { .. } | UploadError::Empty { .. } | UploadError::Symlinks { .. } => {
                ErrorClass::Config
            }
            UploadError::Special { .. } | UploadError::Name { .. } | UploadError::TooLarge { .. } => {
                ErrorClass::Config
            }
            UploadError::Local { .. } => ErrorClass::Config,
            UploadError::Store { source, .. }
            | UploadError::List { source, .. }
            | UploadError::Delete { source, .. } => source.class(),
            UploadError::NotRemoved { .. } => ErrorClass::Corrupt,
            UploadError::Changed { .. } | UploadError::Interrupted => ErrorClass::Transient,
            UploadError::Worker { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            UploadError::NoLast { .. } => "upload.not-encrypted",
            UploadError::Empty { .. } => "upload.empty",
            UploadError::Symlinks { .. } => "upload.symlinks",
            UploadError::Special { .. } => "upload.special-files",
            UploadError::Name { .. } => "upload.name",
            UploadError::TooLarge { .. } => "upload.too-large",
            UploadError::Local { .. } => "upload.local",
            UploadError::Changed { .. } => "upload.file-changed",
            // What the object store said has a code of its own.
            UploadError::Store { source, .. }
            | UploadError::List { source, .. }
            | UploadError::Delete { source, .. } => source.code(),
            UploadError::NotRemoved { .. } => "upload.spoiled-object",
            UploadError::Worker { .. } => "upload.worker",
            UploadError::Interrupted => "upload.interrupted",
        }
    }

    fn hint(&self) -> String {
        match self {
            UploadError::NoLast { .. } => {
                "encrypt the model first (cai encrypt), or say --allow-plaintext if everybody who can read the bucket may \
                 read the model"
                    .into()
            }
            UploadError::Empty { .. } => "is this the right directory?".into(),
            UploadError::Symlinks { .. } => {
                "an object store has no symbolic links: cai encrypt --dereference stores what they point to".into()
            }
            UploadError::Special { .. } => "remove the devices, sockets and pipes".into(),
            UploadError::Name { .. } => "rename it: object keys are at most 1023 bytes of UTF-8".into(),
            UploadError::TooLarge { .. } => "split the model into smaller shards".into(),
            UploadError::Local { .. } => "DIR must be a directory that this user can read, with all below it".into(),
            UploadError::Changed { .. } => "let nothing write to the directory, and run the upload again".into(),
            UploadError::Store { source, .. }
            | UploadError::List { source, .. }
            | UploadError::Delete { source, .. } => store_hint(source),
            UploadError::NotRemoved { .. } => {
                "delete the object by hand (oss:DeleteObject), and look for what changes bytes on the way".into()
            }
            UploadError::Worker { .. } => "this is a defect in cai; please report it".into(),
            UploadError::Interrupted => {
                "run the upload again: objects and parts that are there already are not sent again".into()
            }
        }
    }
}

/// What is different about uploading: it needs other grants than the agent, and nobody waits for it.
fn store_hint(error: &OssError) -> String {
    let OssError::Refused(refusal) = error else {
        return match error {
            OssError::Checksum { .. } => {
                "what arrived was deleted; something on the way changes bytes (a proxy, bad memory): try https, or \
                 another machine"
                    .into()
            }
            _ => error.hint(),
        };
    };
    match refusal.reason {
        Reason::AccessDenied => "uploading needs an access key with oss:PutObject, oss:GetObject, \
                                 oss:DeleteObject, oss:ListParts and oss:AbortMultipartUpload on the prefix, \
                                 and oss:ListObjects and oss:ListMultipartUploads on the bucket; the agent's \
                                 own key only reads"
            .into(),
        Reason::Passing | Reason::Throttled => {
            "run the upload again later: what is there is not sent again".into()
        }
        Reason::ClockSkew
        | Reason::Credentials
        | Reason::Signature
        | Reason::SecondLevelDomain
        | Reason::Archived
        | Reason::NoSuchKey
        | Reason::NoSuchBucket
        | Reason::ProxyLogin
        | Reason::Changed
        | Reason::Other => error.hint(),
    }
}
