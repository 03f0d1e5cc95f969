//! Where ciphertext chunks come from: the trait the object store and the peers implement.

use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::error::ErrorClass;

/// One object of the model as the origin listed it. Identity for caching is (`path`, `len`, `etag`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Path relative to the model's prefix.
    pub path: PathBuf,
    /// Length in bytes.
    pub len: u64,
    /// Entity tag, opaque, with its quotes as sent.
    pub etag: String,
    /// Last modification at the origin.
    pub modified: SystemTime,
}

/// Bytes of one range, in the frames they arrived in, and what the origin said about the whole object.
#[derive(Debug, Clone, Default)]
pub struct Fetched {
    /// The range's bytes in order; their lengths sum to the range's length exactly.
    pub frames: Vec<Bytes>,
    /// CRC-64/XZ of the whole object, where the origin told it.
    pub object_crc64: Option<u64>,
}

/// Why a source did not deliver.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The object's entity tag is another one now, or it is shorter than listed.
    #[error("{path} is not the object that was listed")]
    Changed {
        /// Path relative to the model's prefix.
        path: String,
    },
    /// The object is no longer there.
    #[error("{path} does not exist any more")]
    Gone {
        /// Path relative to the model's prefix.
        path: String,
    },
    /// Access refused; retrying will not help.
    #[error("access to {path} refused: {detail}")]
    Denied {
        /// Path relative to the model's prefix.
        path: String,
        /// The origin's code, message and request id.
        detail: String,
    },
    /// Not now: network, throttling, a server's fault.
    #[error("fetching {path}: {detail}")]
    Unavailable {
        /// Path relative to the model's prefix.
        path: String,
        /// What went wrong, with the request id if there is one.
        detail: String,
        /// How long the source asked us to wait, if it did.
        retry_after: Option<Duration>,
    },
}

impl SourceError {
    /// See [`ErrorClass`].
    pub fn class(&self) -> ErrorClass {
        match self {
            SourceError::Changed { .. } | SourceError::Gone { .. } => ErrorClass::Corrupt,
            SourceError::Denied { .. } => ErrorClass::Denied,
            SourceError::Unavailable { .. } => ErrorClass::Transient,
        }
    }
}

/// Future of [`ChunkSource::fetch`].
pub type FetchFuture<'a> = Pin<Box<dyn Future<Output = Result<Fetched, SourceError>> + Send + 'a>>;

/// A place that has the model's ciphertext.
///
/// An implementation makes one attempt (it may retry what costs nothing, such as a fresh connection); the store owns
/// retry, backoff and the choice between sources.
pub trait ChunkSource: Send + Sync + 'static {
    /// Short name for progress by source and for logs: `oss`, `peer`.
    fn name(&self) -> &'static str;

    /// Fetch `range` of `object`, complete and from the listed entity only.
    fn fetch<'a>(&'a self, object: &'a Object, range: Range<u64>) -> FetchFuture<'a>;
}
