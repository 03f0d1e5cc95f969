//! Why the store could not be opened, or could not bring what it was asked to bring.

use std::path::PathBuf;

use super::source::SourceError;
use crate::error::{ErrorClass, Fault};

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process uses the directory.
    #[error("cache directory {dir} is in use by another cai")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// There is not enough room for what is missing and the reserve.
    #[error("{dir} has {free} bytes free, {missing} are missing and {reserve} must stay free")]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// Free bytes for an unprivileged user.
        free: u64,
        /// Bytes still to be fetched.
        missing: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// A file or directory of the cache could not be used.
    #[error("{doing} {path}")]
    Io {
        /// What was being done: `opening`, `syncing`.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A listed path would leave the model's directory, or has an empty or over-long component.
    #[error("object name {path:?} cannot be a path in the model")]
    UnsafePath {
        /// The path as listed.
        path: PathBuf,
    },
    /// One name is both an object and the directory of another object, or is listed twice.
    #[error("object {path} is listed twice, or is also a directory of other objects")]
    Conflict {
        /// The path.
        path: PathBuf,
    },
    /// More objects than an entry number can name.
    #[error("{count} objects are more than a model can have")]
    TooMany {
        /// Number of objects and directories.
        count: usize,
    },
    /// A source did not deliver within the retry limit, or said a final no.
    #[error("fetching {path}")]
    Fetch {
        /// The object.
        path: String,
        /// What the source said last.
        #[source]
        source: SourceError,
    },
    /// The object's bytes differ from the origin's checksum, twice.
    #[error("the bytes of {path} do not have the checksum the origin promises")]
    ObjectCorrupt {
        /// The object.
        path: String,
    },
    /// The background fill ended with objects that could not be fetched.
    #[error("{objects} objects could not be fetched, {path} among them")]
    Incomplete {
        /// How many.
        objects: usize,
        /// One of them.
        path: String,
        /// Why that one.
        #[source]
        source: Box<StoreError>,
    },
    /// The cache has been given up because its disk is full or failing; bytes are served from memory only.
    #[error("the cache in {dir} is switched off")]
    CachingOff {
        /// The directory.
        dir: PathBuf,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl Fault for StoreError {
    fn class(&self) -> ErrorClass {
        match self {
            StoreError::InUse { .. } | StoreError::NoSpace { .. } | StoreError::Io { .. } => {
                ErrorClass::Config
            }
            StoreError::UnsafePath { .. } | StoreError::Conflict { .. } | StoreError::TooMany { .. } => {
                ErrorClass::Config
            }
            StoreError::Fetch { source, .. } => source.class(),
            StoreError::ObjectCorrupt { .. } => ErrorClass::Corrupt,
            StoreError::Incomplete { source, .. } => source.class(),
            StoreError::CachingOff { .. } => ErrorClass::Config,
            StoreError::Closed => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            StoreError::InUse { .. } => "store.in-use",
            StoreError::NoSpace { .. } => "store.no-space",
            StoreError::Io { .. } => "store.io",
            StoreError::UnsafePath { .. } => "store.unsafe-path",
            StoreError::Conflict { .. } => "store.conflict",
            StoreError::TooMany { .. } => "store.too-many-objects",
            StoreError::Fetch { source, .. } => source_code(source),
            StoreError::ObjectCorrupt { .. } => "store.object-corrupt",
            StoreError::Incomplete { .. } => "store.incomplete",
            StoreError::CachingOff { .. } => "store.caching-off",
            StoreError::Closed => "store.closed",
        }
    }

    fn hint(&self) -> String {
        match self {
            StoreError::InUse { dir } => {
                format!("stop the other cai that uses {}, or set another cache.dir", dir.display())
            }
            StoreError::NoSpace { free, missing, reserve, .. } => format!(
                "free at least {} bytes there, lower cache.reserve_bytes, or set cache.dir to a larger disk",
                missing.saturating_add(*reserve).saturating_sub(*free)
            ),
            StoreError::Io { path, .. } => {
                format!("check that {} is a healthy local disk and belongs to user cai", path.display())
            }
            StoreError::UnsafePath { .. } | StoreError::Conflict { .. } | StoreError::TooMany { .. } => {
                "MODEL_OSS_BUCKET_PATH must name exactly one encrypted model; remove other objects below it"
                    .into()
            }
            StoreError::Fetch { source, .. } => source_hint(source).into(),
            StoreError::ObjectCorrupt { .. } => "upload the object again, then restart cai".into(),
            StoreError::Incomplete { source, .. } => source.hint(),
            StoreError::CachingOff { dir } => format!("free space in {} and restart cai", dir.display()),
            StoreError::Closed => "this is a defect in cai; please report it".into(),
        }
    }
}

/// Code of problems that pass by themselves.
pub(super) const UNAVAILABLE: &str = "store.unavailable";
/// Code of a refusal, over as soon as the object is delivered.
pub(super) const DENIED: &str = "store.denied";

/// Stable code of a source's failure, for errors and for [`super::Problem`].
pub(super) fn source_code(error: &SourceError) -> &'static str {
    match error {
        SourceError::Changed { .. } => "store.object-changed",
        SourceError::Gone { .. } => "store.object-gone",
        SourceError::Denied { .. } => DENIED,
        SourceError::Unavailable { .. } => UNAVAILABLE,
    }
}

fn source_hint(error: &SourceError) -> &'static str {
    match error {
        SourceError::Changed { .. } | SourceError::Gone { .. } => {
            "the model was replaced while it was in use: restart cai to serve the new one"
        }
        SourceError::Denied { .. } => {
            "grant oss:GetObject on the bucket's objects (bucket/*) and oss:ListObjects on the bucket to the access key, \
             or to everyone for anonymous access"
        }
        SourceError::Unavailable { .. } => "check the network path to MODEL_OSS_ENDPOINT; cai keeps trying",
    }
}
