//! Publishing: a local directory becomes the objects below a prefix.
//!
//! Owns the order of work: what the server already has is not sent again, and the file that makes a model of the others
//! (`Plan`'s *last*) is sent when all of them are there, so a half-uploaded model is never mistaken for a whole one. Must
//! not know: terminals, what the files mean.
//!
//! ```text
//!  plan: walk + refusals ──> Publisher::publish ──> transfer: HEAD, put or parts ──Event──> whoever shows it
//! ```
//!
//! One task: futures side by side, no locks. Files are read on tokio's blocking pool; at most [`MAX_SLOTS`] pieces of at
//! most 64 MiB are in memory. The first failure stops everything, and uploads in parts are aborted before it is reported.
//! Tested in `tests/upload.rs`.

mod error;
mod local;
mod plan;
mod transfer;

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use error::UploadError;
pub use plan::{LocalFile, Plan};

use super::client::Client;
use super::error::OssError;
use crate::store::Retry;

/// Pieces in memory at once, however many requests are allowed: 8 of the usual 8 MiB saturate a 10 Gbit/s line, and 8 of the
/// largest 64 MiB are half a gigabyte.
const MAX_SLOTS: usize = 8;

/// How a directory is published.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// Requests with a body in flight, all files together; at least 1, and 8 is the most that is used.
    pub concurrency: usize,
    /// How transient failures of one request are retried.
    pub retry: Retry,
    /// Compare with what is there, and send nothing.
    pub dry_run: bool,
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
    /// An upload in parts failed and could not be aborted: its parts stay, and are billed, until somebody does.
    /// What the server said, if it said anything.
    LeftOpen(&'a LocalFile, Option<OssError>),
}

/// What publishing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// Objects that were sent.
    pub uploaded: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that were there already, with the same length and checksum.
    pub present: usize,
}

/// Publishes plans to one bucket.
pub struct Publisher<'a> {
    client: &'a Client,
    options: PublishOptions,
    report: &'a dyn Fn(Event<'_>),
    /// Who may have a piece of a file in memory.
    slots: Semaphore,
    /// Files, and parts of one file, worked on side by side.
    width: usize,
    stop: CancellationToken,
}

impl<'a> Publisher<'a> {
    /// A publisher that tells `report` what happens, and gives up when `stop` is cancelled.
    pub fn new(
        client: &'a Client,
        options: PublishOptions,
        stop: CancellationToken,
        report: &'a dyn Fn(Event<'_>),
    ) -> Self {
        let width = options.concurrency.clamp(1, MAX_SLOTS);
        Publisher { client, options, report, slots: Semaphore::new(width), width, stop }
    }

    /// Make the bucket hold every file of `plan`; its last file only when all others are there.
    ///
    /// # Errors
    /// `Store`, `Local`, `Changed`, `Worker`, `Interrupted`: the first failure, after everything else has stopped.
    pub async fn publish(&self, plan: &Plan) -> Result<Published, UploadError> {
        let mut published = Published::default();
        let mut failure = None;
        let mut results =
            stream::iter(&plan.files).map(|file| self.publish_file(file)).buffer_unordered(self.width);
        while let Some(result) = results.next().await {
            match result {
                Ok(sent) => published.count(sent),
                Err(error) => {
                    // The first one is the cause; what follows was stopped by it.
                    failure.get_or_insert(error);
                    self.stop.cancel();
                }
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        if let Some(file) = &plan.last {
            published.count(self.publish_file(file).await?);
        }
        Ok(published)
    }
}

impl Published {
    /// Count a file of which so many bytes were sent; `None` was there already.
    fn count(&mut self, sent: Option<u64>) {
        match sent {
            None => self.present += 1,
            Some(len) => {
                self.uploaded += 1;
                self.bytes = self.bytes.saturating_add(len);
            }
        }
    }
}
