//! One object: is it there, else fetch its parts and put them together.

use std::future::Future;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::error::DownloadError;
use super::partial::{PART, Partial};
use super::{Done, DownloadEvent, Downloader};
use crate::oss::persist::persist;
use crate::store::{Object, crc64};

/// How often an object is fetched of which another checksum arrives.
const SPOILED_TRIES: u32 = 2;

/// A part that is in the file.
struct Part {
    len: u64,
    crc: u64,
    /// What the service said about the whole object with it; `None` when the part was there.
    answer: Option<Option<u64>>,
}

impl Downloader<'_> {
    fn key(&self, object: &Object) -> String {
        // Paths come from `list`, which only makes them of valid UTF-8.
        format!("{}{}", self.options.prefix, object.path.to_string_lossy())
    }

    /// Whether the file with the name and length of `object` has its checksum; `None` when the service does not tell one.
    pub(super) async fn is_there(&self, dir: &Path, object: &Object) -> Result<Option<bool>, DownloadError> {
        let _turn = self.requests.acquire().await;
        let Some(theirs) = self.object_checksum(object).await? else { return Ok(None) };
        let ours = blocking(&dir.join(&object.path), checksum).await?;
        Ok(Some(ours == theirs))
    }

    async fn object_checksum(&self, object: &Object) -> Result<Option<u64>, DownloadError> {
        let key = self.key(object);
        let head = persist(&self.options.retry, &self.stop, || self.client.head(&key)).await;
        let head = head.map_err(|error| DownloadError::of(&key, error))?;
        if head.etag.as_deref() != Some(object.etag.as_str()) {
            return Err(DownloadError::Replaced { key });
        }
        Ok(head.crc64)
    }

    /// Make the file of `object`.
    pub(super) async fn fetch(&self, dir: &Path, object: &Object) -> Result<Done, DownloadError> {
        let path = dir.join(&object.path);
        for tries in 1u32.. {
            let opened = object.clone();
            let opening = blocking(&path, move |path| Partial::open(path, &opened));
            // After a stop nothing is begun.
            let partial = Arc::new(self.unless_stopped(opening).await?);
            match self.unless_stopped(self.fetch_parts(object, &partial)).await {
                Ok(done) => {
                    blocking(&path, move |_| partial.finish()).await?;
                    return Ok(done);
                }
                Err(error @ DownloadError::Checksum { .. }) => {
                    partial.discard();
                    if tries >= SPOILED_TRIES {
                        return Err(error);
                    }
                    (self.report)(DownloadEvent::Repeated(object));
                }
                Err(error) => {
                    if matches!(error, DownloadError::Replaced { .. }) {
                        partial.discard();
                    }
                    return Err(error);
                }
            }
        }
        Err(DownloadError::Interrupted)
    }

    async fn fetch_parts(&self, object: &Object, partial: &Arc<Partial>) -> Result<Done, DownloadError> {
        let parts: Vec<Part> = stream::iter(0..object.len.div_ceil(PART))
            .map(|index| self.part(object, partial, index))
            .buffered(self.width)
            .try_collect()
            .await?;
        let ours = crc64::combine(parts.iter().map(|part| (part.crc, part.len)));
        let theirs = match parts.iter().find_map(|part| part.answer) {
            Some(theirs) => theirs,
            // Nothing was fetched, so nothing was said.
            None => {
                let _turn = self.requests.acquire().await;
                self.object_checksum(object).await?
            }
        };
        if let Some(theirs) = theirs.filter(|theirs| *theirs != ours) {
            return Err(DownloadError::Checksum { key: self.key(object), ours, theirs });
        }
        let kept = parts.iter().filter(|part| part.answer.is_none()).map(|part| part.len).sum();
        Ok(Done { kept, checked: theirs.is_some() })
    }

    async fn part(&self, object: &Object, partial: &Arc<Partial>, index: u64) -> Result<Part, DownloadError> {
        let start = index.saturating_mul(PART);
        let range = start..start.saturating_add(PART).min(object.len);
        let len = range.end.saturating_sub(start);
        let _turn = self.requests.acquire().await;
        let (mine, wanted) = (partial.clone(), range.clone());
        if let Some(crc) = blocking(&object.path, move |_| Ok(mine.have(index, wanted))).await? {
            (self.report)(DownloadEvent::Moved(len));
            return Ok(Part { len, crc, answer: None });
        }
        let key = self.key(object);
        let fetched = persist(&self.options.retry, &self.stop, || {
            self.client.get_range(&key, &object.etag, range.clone(), object.len)
        });
        let fetched = fetched.await.map_err(|error| DownloadError::of(&key, error))?;
        let (mine, frames) = (partial.clone(), fetched.frames);
        let crc = blocking(&object.path, move |_| mine.put(index, start, &frames)).await?;
        (self.report)(DownloadEvent::Moved(len));
        Ok(Part { len, crc, answer: Some(fetched.object_crc64) })
    }

    /// `work`, dropped at its next await once somebody has stopped us.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, DownloadError>>,
    ) -> Result<T, DownloadError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(DownloadError::Interrupted),
            result = work => result,
        }
    }
}

/// CRC-64 of all of a file.
fn checksum(path: &Path) -> Result<u64, DownloadError> {
    let fail = |source| DownloadError::Local { doing: "reading", path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(fail)?;
    let (mut pieces, mut buffer) = (Vec::new(), Vec::new());
    loop {
        buffer.clear();
        let len = file.by_ref().take(PART).read_to_end(&mut buffer).map_err(fail)? as u64;
        if len == 0 {
            return Ok(crc64::combine(pieces));
        }
        pieces.push((crc64::of(&buffer), len));
    }
}

/// Do `work` with `path` where it may block.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> Result<T, DownloadError> + Send + 'static,
) -> Result<T, DownloadError> {
    let owned = path.to_owned();
    let joined = tokio::task::spawn_blocking(move || work(&owned)).await;
    joined.unwrap_or_else(|source| Err(DownloadError::Worker { path: path.to_owned(), source }))
}
