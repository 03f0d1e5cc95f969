//! Publishing: a local directory becomes the objects below a prefix.
//!
//! Owns the order of work: what the server already has is not sent again, and the files that make a model of the others
//! (`Plan`'s *last*) are sent when all of them are there, so a half-uploaded model is never mistaken for a whole one. Must
//! not know: terminals, what the files mean.
//!
//! ```text
//!  plan: walk + refusals ──> Publisher::publish ──> look: what is there ──> transfer: HEAD, put or parts ──Event──> whoever shows it
//! ```
//!
//! One task: futures side by side, no locks. Files are read on tokio's blocking pool; [`MEMORY`] bounds the pieces in memory.
//! What is wrong with one object does not keep the others waiting; what every request would meet stops all. A run that was
//! interrupted, killed or cut off leaves its parts at the server, and the next one, on whatever machine, finds them there:
//! those whose CRC-64 is the one of the file are not sent again. Tested in `tests/upload.rs` and `tests/upload_resume.rs`.

mod error;
mod local;
mod look;
mod plan;
mod transfer;

use std::cell::Cell;

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use error::UploadError;
pub use plan::{LocalFile, Plan, Rules};

use super::client::Client;
use super::error::OssError;
use super::persist::{is_missing, persist};
use crate::store::Retry;

/// Bytes of files in memory at once, in MiB: 64 parts of the usual 8 MiB, or 8 of the largest.
const MEMORY: usize = 512;

/// How a directory is published.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// Requests in flight, all files together; at least 1.
    pub concurrency: usize,
    /// How transient failures of one request are retried.
    pub retry: Retry,
    /// Compare with what is there, and send nothing.
    pub dry_run: bool,
    /// Delete the objects below the prefix that are none of the plan's, when all of it is there.
    pub delete: bool,
}

/// What has happened, for whoever watches.
#[derive(Debug)]
pub enum Event<'a> {
    /// These bytes of some file are there.
    Moved(u64),
    /// A whole file is there now (or would be, when nothing is to be sent).
    Uploaded(&'a LocalFile),
    /// A file was there already.
    Present(&'a LocalFile),
    /// Objects of a whole model will be overwritten: until all is done, what is there is a mixture of two.
    Replacing,
    /// What arrived has another checksum than what was sent; it was deleted, and is sent again.
    Repeated(&'a LocalFile),
    /// An upload in parts stays for the next run, which goes on with it.
    Kept(&'a LocalFile),
    /// An unfinished upload to this key is there, and not one of this file: somebody else's, or of the file as it was. Its
    /// parts stay, and are billed.
    Foreign(&'a LocalFile),
    /// An upload in parts failed and could not be aborted: its parts stay, and are billed, until somebody does.
    /// What the server said, if it said anything.
    LeftOpen(&'a LocalFile, Option<OssError>),
    /// An object that is none of the plan's was deleted (or would be).
    Deleted(&'a str),
}

/// What publishing did.
#[derive(Debug, Default)]
pub struct Published {
    /// Objects that were sent.
    pub uploaded: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How many of these an interrupted run had sent before.
    pub kept: u64,
    /// Objects that were there already, with the same length and checksum.
    pub present: usize,
    /// Why objects failed, in the order in which they did.
    pub failed: Vec<UploadError>,
    /// Objects that were not finished because of that, or because somebody stopped it.
    pub undone: usize,
    /// Keys below the prefix that are none of the plan's, in order; those that were deleted are not among them.
    pub others: Vec<String>,
}

/// What became of one file.
enum Sent {
    Present,
    Uploaded { bytes: u64, kept: u64 },
}

/// Publishes plans to one bucket.
pub struct Publisher<'a> {
    client: &'a Client,
    options: PublishOptions,
    report: &'a dyn Fn(Event<'_>),
    /// Who may have a request in flight.
    requests: Semaphore,
    /// Who may have how many MiB of a file in memory; asked for after `requests`.
    memory: Semaphore,
    /// Files, and parts of one file, worked on side by side.
    width: usize,
    stop: CancellationToken,
    /// Whether the first file that is sent has been.
    begun: Cell<bool>,
}

impl<'a> Publisher<'a> {
    /// A publisher that tells `report` what happens, and gives up when `stop` is cancelled.
    pub fn new(
        client: &'a Client,
        options: PublishOptions,
        stop: CancellationToken,
        report: &'a dyn Fn(Event<'_>),
    ) -> Self {
        let width = options.concurrency.max(1);
        let (requests, memory) = (Semaphore::new(width), Semaphore::new(MEMORY));
        Publisher { client, options, report, requests, memory, width, stop, begun: Cell::new(false) }
    }

    /// Make the bucket hold every file of `plan`; its last files only when all others are there. What failed is in the
    /// result.
    ///
    /// # Errors
    /// `List`, `Interrupted`: nothing was begun.
    pub async fn publish(&self, plan: &Plan) -> Result<Published, UploadError> {
        let there = self.look(plan).await?;
        let mut published = Published { others: there.others(plan), ..Published::default() };
        let mut results = stream::iter(&plan.files)
            .map(|file| self.publish_file(file, &there))
            .buffer_unordered(self.width);
        while let Some(result) = results.next().await {
            self.count(&mut published, result);
        }
        for file in &plan.last {
            if published.is_complete() {
                let result = self.publish_file(file, &there).await;
                self.count(&mut published, result);
            } else {
                published.undone += 1;
            }
        }
        if self.options.delete && published.is_complete() {
            self.delete_others(&mut published).await;
        }
        Ok(published)
    }

    fn count(&self, published: &mut Published, result: Result<Sent, UploadError>) {
        match result {
            Ok(Sent::Present) => published.present += 1,
            Ok(Sent::Uploaded { bytes, kept }) => {
                published.uploaded += 1;
                published.bytes = published.bytes.saturating_add(bytes);
                published.kept = published.kept.saturating_add(kept);
            }
            Err(UploadError::Interrupted) => published.undone += 1,
            Err(error) => {
                if error.concerns_all() {
                    self.stop.cancel();
                }
                published.failed.push(error);
            }
        }
    }

    async fn delete_others(&self, published: &mut Published) {
        let mut left = Vec::new();
        for key in std::mem::take(&mut published.others) {
            let deleted = async {
                if self.options.dry_run {
                    return Ok(());
                }
                persist(&self.options.retry, &self.stop, || self.client.delete(&key)).await
            };
            match deleted.await {
                Ok(()) => (self.report)(Event::Deleted(&key)),
                Err(source) => {
                    let error = UploadError::Delete { key: key.clone(), source: Box::new(source) };
                    self.count(published, Err(error));
                    left.push(key);
                }
            }
        }
        published.others = left;
    }
}

impl Published {
    /// Whether all that was begun has been done.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.undone == 0
    }
}
