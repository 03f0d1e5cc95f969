//! The object store as a source of chunks.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::client::{Client, Ranged};
use super::error::OssError;
use crate::store::{ChunkSource, FetchFuture, Fetched, Object, Urgency};

/// The objects below one prefix of a bucket.
pub struct OssSource {
    client: Arc<Client>,
    prefix: String,
}

impl OssSource {
    /// The objects below `prefix`: empty, or ending in `/`.
    pub fn new(client: Arc<Client>, prefix: impl Into<String>) -> Self {
        OssSource { client, prefix: prefix.into() }
    }

    /// Every object, its path relative to the prefix.
    ///
    /// # Errors
    /// As [`Client::list`].
    pub async fn list(&self) -> Result<Vec<Object>, OssError> {
        self.client.list(&self.prefix).await
    }
}

impl ChunkSource for OssSource {
    fn name(&self) -> &'static str {
        "oss"
    }

    fn fetch<'a>(&'a self, object: &'a Object, range: Range<u64>, urgency: &'a Urgency) -> FetchFuture<'a> {
        Box::pin(async move {
            // Paths come from `list`, which only makes them of valid UTF-8.
            let path = object.path.to_string_lossy();
            let key = format!("{}{path}", self.prefix);
            let ranged = self.client.open_range(&key, &object.etag, range, object.len, urgency).await;
            let ranged = ranged.map_err(|error| error.into_source_error(&path))?;
            let object_crc64 = ranged.object_crc64;
            let next = async |mut ranged: Ranged<'a>| Ok(ranged.next().await?.map(|frame| (frame, ranged)));
            let frames = stream::try_unfold(ranged, next)
                .map_err(|error: OssError| error.into_source_error(&object.path.to_string_lossy()));
            Ok(Fetched { object_crc64, frames: frames.boxed() })
        })
    }
}
