//! The object store as a source of chunks.

use std::ops::Range;
use std::sync::Arc;

use super::client::Client;
use super::error::OssError;
use crate::store::{ChunkSource, FetchFuture, Object};

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

    fn fetch<'a>(&'a self, object: &'a Object, range: Range<u64>) -> FetchFuture<'a> {
        Box::pin(async move {
            // Paths come from `list`, which only makes them of valid UTF-8.
            let path = object.path.to_string_lossy();
            let key = format!("{}{path}", self.prefix);
            let fetched = self.client.get_range(&key, &object.etag, range, object.len).await;
            fetched.map_err(|error| error.into_source_error(&path))
        })
    }
}
