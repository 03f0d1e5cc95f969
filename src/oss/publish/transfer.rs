//! One file: is it there, else send it whole or in parts.

use std::future::Future;
use std::ops::Range;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::error::UploadError;
use super::plan::LocalFile;
use super::{Event, Publisher, local};
use crate::error::{ErrorClass, Fault};
use crate::oss::error::{OssError, Reason};
use crate::oss::upload::{MultipartUpload, UploadedPart};
use crate::store::crc64;

/// How long an upload in parts that failed is tried to be aborted: somebody may be waiting after Ctrl-C.
const ABORT_LIMIT: Duration = Duration::from_secs(10);

impl Publisher<'_> {
    /// Make the bucket hold `file`. Gives the bytes sent, `None` when it was there.
    pub(super) async fn publish_file(&self, file: &LocalFile) -> Result<Option<u64>, UploadError> {
        if self.unless_stopped(self.is_there(file)).await? {
            (self.report)(Event::Moved(file.len));
            (self.report)(Event::Present(file));
            return Ok(None);
        }
        if self.options.dry_run {
            (self.report)(Event::Moved(file.len));
        } else if file.len <= file.part_len() {
            self.unless_stopped(self.whole(file)).await?;
        } else {
            self.in_parts(file).await?;
        }
        (self.report)(Event::Uploaded(file));
        Ok(Some(file.len))
    }

    /// Whether the server has an object of the same length and checksum. The file is only read if the length is the same.
    async fn is_there(&self, file: &LocalFile) -> Result<bool, UploadError> {
        let _slot = self.slots.acquire().await;
        let Some(theirs) = self.object_checksum(file).await? else { return Ok(false) };
        let ours = blocking(file, local::checksum).await?;
        Ok(ours == theirs)
    }

    /// Checksum of the object that has the key and the length of `file`, if there is such an object.
    async fn object_checksum(&self, file: &LocalFile) -> Result<Option<u64>, UploadError> {
        match self.persist(&self.stop, || self.client.head(&file.key)).await {
            Ok(head) => Ok(head.crc64.filter(|_| head.len == Some(file.len))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed(file, error)),
        }
    }

    async fn whole(&self, file: &LocalFile) -> Result<(), UploadError> {
        let _slot = self.slots.acquire().await;
        let bytes = blocking(file, |file| local::read(file, 0..file.len)).await?;
        let sent = self.persist(&self.stop, || self.client.put(&file.key, bytes.clone())).await;
        sent.map_err(|error| failed(file, error))?;
        (self.report)(Event::Moved(file.len));
        Ok(())
    }

    async fn in_parts(&self, file: &LocalFile) -> Result<(), UploadError> {
        // Not dropped midway when somebody stops us: an upload whose id never arrived could not be aborted.
        let begun = self.persist(&self.stop, || self.client.begin_upload(&file.key)).await;
        let upload = begun.map_err(|error| failed(file, error))?;
        let result = self.unless_stopped(self.all_parts(file, &upload)).await;
        if result.is_err() {
            self.abort(file, &upload).await;
        }
        result
    }

    async fn all_parts(&self, file: &LocalFile, upload: &MultipartUpload<'_>) -> Result<(), UploadError> {
        let sending = parts(file).map(|(number, range)| self.part(file, upload, number, range));
        let mut sent: Vec<UploadedPart> =
            stream::iter(sending).buffer_unordered(self.width).try_collect().await?;
        sent.sort_by_key(|part| part.number);
        match self.persist(&self.stop, || upload.complete(sent.clone())).await {
            Ok(_) => Ok(()),
            // An attempt whose answer was lost may have succeeded, and then there is no such upload any more.
            Err(error) if is_missing(&error) => {
                let ours = crc64::combine(sent.iter().map(|part| (part.crc64, part.len)));
                let theirs = self.object_checksum(file).await?;
                if theirs == Some(ours) { Ok(()) } else { Err(failed(file, error)) }
            }
            Err(error) => Err(failed(file, error)),
        }
    }

    async fn part(
        &self,
        file: &LocalFile,
        upload: &MultipartUpload<'_>,
        number: u32,
        range: Range<u64>,
    ) -> Result<UploadedPart, UploadError> {
        let _slot = self.slots.acquire().await;
        let bytes = blocking(file, move |file| local::read(file, range)).await?;
        let sent = self.persist(&self.stop, || upload.part(number, bytes.clone())).await;
        let part = sent.map_err(|error| failed(file, error))?;
        (self.report)(Event::Moved(part.len));
        Ok(part)
    }

    /// Free the parts. That it failed is news, but not the failure that is reported.
    async fn abort(&self, file: &LocalFile, upload: &MultipartUpload<'_>) {
        // Whoever stopped us wants exactly this: its own token is never cancelled.
        let patience = CancellationToken::new();
        let abort = self.persist(&patience, || upload.abort());
        match tokio::time::timeout(ABORT_LIMIT, abort).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_missing(&error) => {}
            Ok(Err(error)) => (self.report)(Event::LeftOpen(file, Some(error))),
            Err(_) => (self.report)(Event::LeftOpen(file, None)),
        }
    }

    /// Try until it works, fails for good, or has failed for too long; not again once `stop` is cancelled.
    async fn persist<T, F>(&self, stop: &CancellationToken, attempt: impl Fn() -> F) -> Result<T, OssError>
    where
        F: Future<Output = Result<T, OssError>>,
    {
        let (began, retry) = (Instant::now(), &self.options.retry);
        let mut tries = 0;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let pause = retry.pause(tries, asked(&error));
            let late = began.elapsed().saturating_add(pause) > retry.limit;
            if error.class() != ErrorClass::Transient || late {
                return Err(error);
            }
            tokio::select! {
                () = stop.cancelled() => return Err(error),
                () = tokio::time::sleep(pause) => {}
            }
            tries = tries.saturating_add(1);
        }
    }

    /// `work`, dropped at its next await once somebody has stopped us.
    async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, UploadError>>,
    ) -> Result<T, UploadError> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(UploadError::Interrupted),
            result = work => result,
        }
    }
}

/// Number and range of each part of `file`.
fn parts(file: &LocalFile) -> impl Iterator<Item = (u32, Range<u64>)> {
    let (len, part_len) = (file.len, file.part_len());
    (1..).zip(0..len.div_ceil(part_len)).map(move |(number, index)| {
        let start = index.saturating_mul(part_len);
        (number, start..start.saturating_add(part_len).min(len))
    })
}

/// Do `work` with `file` where it may block.
async fn blocking<T: Send + 'static>(
    file: &LocalFile,
    work: impl FnOnce(&LocalFile) -> Result<T, UploadError> + Send + 'static,
) -> Result<T, UploadError> {
    let owned = file.clone();
    let joined = tokio::task::spawn_blocking(move || work(&owned)).await;
    joined.unwrap_or_else(|source| Err(UploadError::Worker { path: file.path.clone(), source }))
}

fn failed(file: &LocalFile, error: OssError) -> UploadError {
    UploadError::Store { key: file.key.clone(), source: Box::new(error) }
}

/// No such object, or no such upload.
fn is_missing(error: &OssError) -> bool {
    matches!(error, OssError::Refused(refusal) if refusal.reason == Reason::NoSuchKey)
}

/// How long the server asked us to wait.
fn asked(error: &OssError) -> Option<Duration> {
    match error {
        OssError::Refused(refusal) => refusal.retry_after,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    fn file(len: u64) -> LocalFile {
        LocalFile { path: "x".into(), key: "x".into(), len, modified: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn parts_at_the_borders_are_exact() {
        const MIB: u64 = 1 << 20;
        let count = |len| parts(&file(len)).count();
        assert_eq!((count(8 * MIB), count(8 * MIB + 1), count(16 * MIB)), (1, 2, 2));
        // The longest file with the usual parts, the first one with longer ones, the longest one of all.
        assert_eq!((file(80_000 * MIB).part_len(), count(80_000 * MIB)), (8 * MIB, 10_000));
        assert_eq!(file(80_000 * MIB + 1).part_len(), 8 * MIB + 1);
        assert_eq!((file(640_000 * MIB).part_len(), count(640_000 * MIB)), (64 * MIB, 10_000));
    }

    proptest! {
        #[test]
        fn parts_of_any_file_follow_each_other_and_are_few(len in 1u64..=640_000 << 20) {
            let file = file(len);
            let mut end = 0;
            for ((number, range), expected) in parts(&file).zip(1u32..) {
                prop_assert_eq!((number, range.start), (expected, end));
                prop_assert!(range.end > range.start && range.end - range.start <= 64 << 20);
                prop_assert!(number <= 10_000);
                end = range.end;
            }
            prop_assert_eq!(end, len);
        }
    }
}
