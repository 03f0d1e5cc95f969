//! One file: is it there, else send it whole or in parts.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::SemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::error::UploadError;
use super::look::There;
use super::plan::LocalFile;
use super::{Event, MEMORY, Publisher, Sent, is_missing, local, persist};
use crate::oss::error::OssError;
use crate::oss::upload::{MultipartUpload, UploadedPart};
use crate::store::crc64;

/// How long an upload in parts that failed is tried to be aborted: somebody may be waiting after Ctrl-C.
const ABORT_LIMIT: Duration = Duration::from_secs(10);
/// How often an object is sent of which another checksum arrives: once more may be an accident, three times is not.
const SPOILED_TRIES: u32 = 3;

/// An upload in parts, and the parts of it that are there.
struct Open<'a> {
    upload: MultipartUpload<'a>,
    have: BTreeMap<u32, UploadedPart>,
}

impl Publisher<'_> {
    /// Make the bucket hold `file`.
    pub(super) async fn publish_file(&self, file: &LocalFile, there: &There) -> Result<Sent, UploadError> {
        if self.unless_stopped(self.is_there(file, there)).await? {
            (self.report)(Event::Moved(file.len));
            (self.report)(Event::Present(file));
            return Ok(Sent::Present);
        }
        if there.whole && !self.begun.replace(true) {
            (self.report)(Event::Replacing);
        }
        let kept = if self.options.dry_run {
            (self.report)(Event::Moved(file.len));
            0
        } else {
            self.send(file, there).await?
        };
        (self.report)(Event::Uploaded(file));
        Ok(Sent::Uploaded { bytes: file.len, kept })
    }

    /// Whether the server has an object of the same length and checksum. The file is only read if the length is the same.
    async fn is_there(&self, file: &LocalFile, there: &There) -> Result<bool, UploadError> {
        if there.len_of(&file.key) != Some(file.len) {
            return Ok(false);
        }
        let _turn = self.requests.acquire().await;
        let Some(theirs) = self.object_checksum(file).await? else { return Ok(false) };
        let ours = blocking(file, local::checksum).await?;
        Ok(ours == theirs)
    }

    /// Checksum of the object that has the key and the length of `file`, if there is such an object.
    async fn object_checksum(&self, file: &LocalFile) -> Result<Option<u64>, UploadError> {
        match persist(&self.options.retry, &self.stop, || self.client.head(&file.key)).await {
            Ok(head) => Ok(head.crc64.filter(|_| head.len == Some(file.len))),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed(file, error)),
        }
    }

    /// Send `file` until what arrived is what was sent; what is not is deleted. Gives the bytes that an interrupted run had
    /// sent before.
    async fn send(&self, file: &LocalFile, there: &There) -> Result<u64, UploadError> {
        for tries in 1u32.. {
            let sent = if file.len <= file.part_len() {
                self.unless_stopped(self.whole(file)).await.map(|()| 0)
            } else {
                self.in_parts(file, there).await
            };
            match sent {
                Err(error) if error.is_spoiled() => {
                    self.remove(file).await?;
                    if tries >= SPOILED_TRIES {
                        return Err(error);
                    }
                    (self.report)(Event::Repeated(file));
                }
                sent => return sent,
            }
        }
        Err(UploadError::Interrupted)
    }

    /// Delete an object that is not what was sent: whoever finds it must not take it for good. Also when somebody stops us.
    async fn remove(&self, file: &LocalFile) -> Result<(), UploadError> {
        let patience = CancellationToken::new();
        let removed = persist(&self.options.retry, &patience, || self.client.delete(&file.key)).await;
        removed.map_err(|source| UploadError::NotRemoved { key: file.key.clone(), source: Box::new(source) })
    }

    async fn whole(&self, file: &LocalFile) -> Result<(), UploadError> {
        let _turn = self.turn(file.len).await;
        let bytes = blocking(file, |file| local::read(file, 0..file.len)).await?;
        let sent = persist(&self.options.retry, &self.stop, || async {
            spoiled_apart(self.client.put(&file.key, bytes.clone()).await)
        });
        sent.await.and_then(|put| put).map_err(|error| failed(file, error))?;
        (self.report)(Event::Moved(file.len));
        Ok(())
    }

    async fn in_parts(&self, file: &LocalFile, there: &There) -> Result<u64, UploadError> {
        let open = self.open(file, there).await?;
        let result = self.unless_stopped(self.all_parts(file, &open)).await;
        match &result {
            Ok(_) => {}
            // There is no such upload any more.
            Err(error) if error.is_spoiled() => {}
            Err(error) if error.may_go_on() => (self.report)(Event::Kept(file)),
            Err(_) => self.abort(file, &open.upload).await,
        }
        result
    }

    /// The upload that an earlier run has begun for this file, or a new one.
    async fn open<'f>(&'f self, file: &'f LocalFile, there: &There) -> Result<Open<'f>, UploadError> {
        for unfinished in there.unfinished(&file.key) {
            let upload = self.client.resume_upload(&file.key, &unfinished.id);
            match persist(&self.options.retry, &self.stop, || upload.parts()).await {
                Ok(have) if have.iter().all(|part| fits(file, part)) => {
                    let have = have.into_iter().map(|part| (part.number, part)).collect();
                    return Ok(Open { upload, have });
                }
                Ok(_) => (self.report)(Event::Foreign(file)),
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(failed(file, error)),
            }
        }
        // Not dropped midway when somebody stops us: an upload whose id never arrived would be found by the next run only.
        let begun = persist(&self.options.retry, &self.stop, || self.client.begin_upload(&file.key)).await;
        let upload = begun.map_err(|error| failed(file, error))?;
        Ok(Open { upload, have: BTreeMap::new() })
    }

    async fn all_parts(&self, file: &LocalFile, open: &Open<'_>) -> Result<u64, UploadError> {
        let sending = parts(file).map(|(number, range)| self.part(file, open, number, range));
        let sent: Vec<(UploadedPart, u64)> =
            stream::iter(sending).buffer_unordered(self.width).try_collect().await?;
        let kept = sent.iter().fold(0u64, |sum, (_, kept)| sum.saturating_add(*kept));
        let mut sent: Vec<UploadedPart> = sent.into_iter().map(|(part, _)| part).collect();
        sent.sort_by_key(|part| part.number);
        let _turn = self.requests.acquire().await;
        let completed = persist(&self.options.retry, &self.stop, || async {
            spoiled_apart(open.upload.complete(sent.clone()).await)
        });
        match completed.await.and_then(|completed| completed) {
            Ok(_) => Ok(kept),
            // An attempt whose answer was lost may have succeeded, and then there is no such upload any more.
            Err(error) if is_missing(&error) => {
                let ours = crc64::combine(sent.iter().map(|part| (part.crc64, part.len)));
                let theirs = self.object_checksum(file).await?;
                if theirs == Some(ours) { Ok(kept) } else { Err(failed(file, error)) }
            }
            Err(error) => Err(failed(file, error)),
        }
    }

    /// Part `number`, and how many of its bytes were there.
    async fn part(
        &self,
        file: &LocalFile,
        open: &Open<'_>,
        number: u32,
        range: Range<u64>,
    ) -> Result<(UploadedPart, u64), UploadError> {
        let _turn = self.turn(range.end.saturating_sub(range.start)).await;
        let bytes = blocking(file, move |file| local::read(file, range)).await?;
        if let Some(part) = open.have.get(&number)
            && part.crc64 == crc64::of(&bytes)
        {
            (self.report)(Event::Moved(part.len));
            return Ok((part.clone(), part.len));
        }
        let sent = persist(&self.options.retry, &self.stop, || open.upload.part(number, bytes.clone())).await;
        let part = sent.map_err(|error| failed(file, error))?;
        (self.report)(Event::Moved(part.len));
        Ok((part, 0))
    }

    /// Wait for a request's turn, and then for memory for `bytes`.
    async fn turn(&self, bytes: u64) -> (Option<SemaphorePermit<'_>>, Option<SemaphorePermit<'_>>) {
        let mib = usize::try_from(bytes.div_ceil(1 << 20)).unwrap_or(MEMORY).clamp(1, MEMORY);
        // The semaphores are never closed.
        let turn = self.requests.acquire().await.ok();
        (turn, self.memory.acquire_many(u32::try_from(mib).unwrap_or(1)).await.ok())
    }

    /// Free the parts. That it failed is news, but not the failure that is reported.
    async fn abort(&self, file: &LocalFile, upload: &MultipartUpload<'_>) {
        // Whoever stopped us wants exactly this: its own token is never cancelled.
        let patience = CancellationToken::new();
        let abort = persist(&self.options.retry, &patience, || upload.abort());
        match tokio::time::timeout(ABORT_LIMIT, abort).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_missing(&error) => {}
            Ok(Err(error)) => (self.report)(Event::LeftOpen(file, Some(error))),
            Err(_) => (self.report)(Event::LeftOpen(file, None)),
        }
    }

    /// `work`, dropped at its next await once somebody has stopped us.
    pub(super) async fn unless_stopped<T>(
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

/// A wrong checksum of a whole object taken out of what is tried again: the object is there, and must be dealt with first.
fn spoiled_apart<T>(result: Result<T, OssError>) -> Result<Result<T, OssError>, OssError> {
    match result {
        Err(error @ OssError::Checksum { .. }) => Ok(Err(error)),
        other => other.map(Ok),
    }
}

/// Whether `part` is one that `file` has, going by its number and length. What it holds is compared when the file is read.
fn fits(file: &LocalFile, part: &UploadedPart) -> bool {
    let index = u64::from(part.number).saturating_sub(1);
    let start = index.saturating_mul(file.part_len());
    start < file.len && part.len == file.part_len().min(file.len.saturating_sub(start))
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

    #[test]
    fn part_of_another_length_or_behind_the_end_does_not_fit() {
        const MIB: u64 = 1 << 20;
        let fits =
            |number, len| fits(&file(17 * MIB), &UploadedPart { number, len, crc64: 0, etag: String::new() });
        assert!(fits(1, 8 * MIB) && fits(2, 8 * MIB) && fits(3, MIB));
        assert!(!fits(3, 8 * MIB) && !fits(2, MIB) && !fits(4, MIB) && !fits(1, 8 * MIB + 1));
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
