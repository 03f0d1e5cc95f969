//! Where ciphertext chunks come from: the trait that the object store implements. Peers have one of their own (`sharing`).

use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;

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

/// Bytes of one range as they arrive, and what the origin said about the whole object.
pub struct Fetched<'a> {
    /// CRC-64/XZ of the whole object, where the origin told it.
    pub object_crc64: Option<u64>,
    /// The range's bytes in order, in frames of any length; those before an error are good. Pulled at the reader's pace.
    pub frames: BoxStream<'a, Result<Bytes, SourceError>>,
}

impl Fetched<'_> {
    /// Everything, in memory.
    ///
    /// # Errors
    /// That of the frame that did not arrive.
    pub async fn all(self) -> Result<Vec<u8>, SourceError> {
        let frames: Vec<Bytes> = self.frames.try_collect().await?;
        Ok(frames.concat())
    }
}

/// Whether somebody waits for a fetch; may become true while it runs, and stays true.
#[derive(Debug, Default)]
pub struct Urgency {
    raised: AtomicBool,
    told: Notify,
}

/// Somebody waits, from the beginning.
pub static AT_ONCE: Urgency = Urgency { raised: AtomicBool::new(true), told: Notify::const_new() };

impl Urgency {
    /// From now on somebody waits.
    pub fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
        self.told.notify_waiters();
    }

    /// Whether somebody waits.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Wait until somebody does.
    pub async fn raised(&self) {
        let told = self.told.notified();
        tokio::pin!(told);
        told.as_mut().enable();
        if !self.is_raised() {
            told.await;
        }
    }
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
pub type FetchFuture<'a> = Pin<Box<dyn Future<Output = Result<Fetched<'a>, SourceError>> + Send + 'a>>;

/// A place that has the model's ciphertext.
///
/// An implementation makes one attempt (it may retry what costs nothing, such as a fresh connection); the store owns
/// retry, backoff and the choice between sources.
pub trait ChunkSource: Send + Sync + 'static {
    /// Short name for progress by source and for logs: `oss`, `peer`.
    fn name(&self) -> &'static str;

    /// Fetch `range` of `object`, from the listed entity only. Where requests have to queue, those whose `urgency` is raised
    /// come first.
    fn fetch<'a>(&'a self, object: &'a Object, range: Range<u64>, urgency: &'a Urgency) -> FetchFuture<'a>;
}
