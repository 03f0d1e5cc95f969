//! Downloading: the objects below a prefix become a local directory.
//!
//! Owns the order of work: what is in the directory already is not fetched again, and the files that make a model of the
//! others come last. A file has its name only when it is whole and its CRC-64 is the object's; until then it is a sparse
//! file beside, with a list of the parts that are in it (`partial`), so that a run that was killed goes on with the parts it
//! had. Never overwrites a file it did not recognise. Must not know: terminals, what the files mean.
//!
//! ```text
//!  list ──> survey: what is in the directory + refusals ──> transfer: ranged GETs with If-Match ──Event──> whoever shows it
//! ```
//!
//! One task: futures side by side, no locks; files are touched on tokio's blocking pool. Not the store of the daemon: that
//! keeps chunks for readers, this makes a plain directory. Tested in `tests/download.rs`.

mod error;
mod partial;
mod survey;
mod transfer;

use std::path::{Path, PathBuf};

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use error::DownloadError;

use self::survey::Survey;
use super::client::Client;
use super::persist::persist;
use crate::store::{Object, Retry};

/// Ranges in memory at once, at most: 64 of 8 MiB are half a gigabyte.
const MAX_RANGES: usize = 64;

/// How objects are downloaded.
#[derive(Debug, Clone)]
pub struct DownloadOptions {
    /// What every key begins with: empty, or ending in `/`.
    pub prefix: String,
    /// Files at the top that are put into place when all others are, in this order.
    pub last: Vec<PathBuf>,
    /// Requests in flight, all objects together; at least 1, and 64 is the most that is used.
    pub concurrency: usize,
    /// How transient failures of one request are retried.
    pub retry: Retry,
    /// Compare with what is there, and fetch nothing.
    pub dry_run: bool,
}

/// What has happened, for whoever watches.
#[derive(Debug)]
pub enum DownloadEvent<'a> {
    /// So many bytes are listed.
    Total(u64),
    /// These bytes of some object are there.
    Moved(u64),
    /// A whole object is there now (or would be).
    Downloaded(&'a Object),
    /// A file was there already.
    Present(&'a Object),
    /// The file that arrived has another checksum than the object; it is fetched again.
    Repeated(&'a Object),
}

/// What downloading did.
#[derive(Debug, Default)]
pub struct Downloaded {
    /// Objects that were fetched.
    pub downloaded: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How many of these an interrupted run had fetched before.
    pub kept: u64,
    /// Files that were there already, with the same length and checksum.
    pub present: usize,
    /// Objects of which the service told no checksum, so that nobody knows whether they arrived as they are.
    pub unchecked: usize,
    /// Why objects failed, in the order in which they did.
    pub failed: Vec<DownloadError>,
    /// Objects that were not finished because of that, or because somebody stopped it.
    pub undone: usize,
}

/// What became of one object.
struct Done {
    kept: u64,
    checked: bool,
}

/// Downloads from one bucket.
pub struct Downloader<'a> {
    client: &'a Client,
    options: DownloadOptions,
    report: &'a dyn Fn(DownloadEvent<'_>),
    requests: Semaphore,
    width: usize,
    stop: CancellationToken,
}

impl<'a> Downloader<'a> {
    /// A downloader that tells `report` what happens, and gives up when `stop` is cancelled.
    pub fn new(
        client: &'a Client,
        options: DownloadOptions,
        stop: CancellationToken,
        report: &'a dyn Fn(DownloadEvent<'_>),
    ) -> Self {
        let width = options.concurrency.clamp(1, MAX_RANGES);
        Downloader { client, options, report, requests: Semaphore::new(width), width, stop }
    }

    /// Make `dir` hold every object below the prefix. What failed is in the result.
    ///
    /// # Errors
    /// Nothing was fetched: `List`, `Nothing`, `Conflict` about the bucket; `Foreign`, `Differs`, `InUse`, `NoSpace`, `Local`
    /// about the directory; `Interrupted`.
    pub async fn download(&self, dir: &Path) -> Result<Downloaded, DownloadError> {
        let objects = self.list().await?;
        (self.report)(DownloadEvent::Total(
            objects.iter().fold(0, |sum, object| sum.saturating_add(object.len)),
        ));
        let survey = Survey::of(dir, &objects, self.options.dry_run)?;
        let mut downloaded = Downloaded::default();
        let missing = self.compare(dir, objects, &survey, &mut downloaded).await?;
        if self.options.dry_run {
            for object in &missing {
                (self.report)(DownloadEvent::Moved(object.len));
                downloaded.count(object, Done { kept: 0, checked: true });
                (self.report)(DownloadEvent::Downloaded(object));
            }
            return Ok(downloaded);
        }
        survey.check_space(dir, &missing)?;
        let (last, first): (Vec<Object>, Vec<Object>) =
            missing.into_iter().partition(|object| self.options.last.contains(&object.path));
        self.fetch_all(dir, &first, self.width, &mut downloaded).await;
        for name in &self.options.last {
            let object: Vec<Object> = last.iter().filter(|object| object.path == *name).cloned().collect();
            if downloaded.is_complete() {
                self.fetch_all(dir, &object, 1, &mut downloaded).await;
            } else {
                downloaded.undone += object.len();
            }
        }
        if downloaded.is_complete() {
            survey.remove_partials(dir);
        }
        Ok(downloaded)
    }

    async fn list(&self) -> Result<Vec<Object>, DownloadError> {
        let prefix = self.options.prefix.as_str();
        let listed = async {
            let listed = persist(&self.options.retry, &self.stop, || self.client.list(prefix)).await;
            listed.map_err(|source| DownloadError::List { source: Box::new(source) })
        };
        let objects = self.unless_stopped(listed).await?;
        if objects.is_empty() {
            return Err(DownloadError::Nothing { prefix: prefix.to_owned() });
        }
        Ok(objects)
    }

    /// The objects that are not in the directory yet.
    async fn compare(
        &self,
        dir: &Path,
        objects: Vec<Object>,
        survey: &Survey,
        downloaded: &mut Downloaded,
    ) -> Result<Vec<Object>, DownloadError> {
        let (there, mut missing): (Vec<Object>, Vec<Object>) =
            objects.into_iter().partition(|object| survey.files.contains(&object.path));
        let mut differing = Vec::new();
        let compared: Vec<_> = stream::iter(there)
            .map(|object| async move {
                let same = self.unless_stopped(self.is_there(dir, &object)).await;
                (object, same)
            })
            .buffered(self.width)
            .collect()
            .await;
        for (object, same) in compared {
            match same? {
                Some(true) => {
                    (self.report)(DownloadEvent::Moved(object.len));
                    (self.report)(DownloadEvent::Present(&object));
                    downloaded.present += 1;
                }
                Some(false) => differing.push(object.path),
                None => missing.push(object),
            }
        }
        if !differing.is_empty() {
            return Err(DownloadError::differs(dir, differing));
        }
        Ok(missing)
    }

    async fn fetch_all(&self, dir: &Path, objects: &[Object], width: usize, downloaded: &mut Downloaded) {
        let mut results = stream::iter(objects)
            .map(|object| async move { (object, self.fetch(dir, object).await) })
            .buffer_unordered(width);
        while let Some((object, result)) = results.next().await {
            match result {
                Ok(done) => {
                    downloaded.count(object, done);
                    (self.report)(DownloadEvent::Downloaded(object));
                }
                Err(DownloadError::Interrupted) => downloaded.undone += 1,
                Err(error) => {
                    if error.concerns_all() {
                        self.stop.cancel();
                    }
                    downloaded.failed.push(error);
                }
            }
        }
    }
}

impl Downloaded {
    /// Whether everything is there.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.undone == 0
    }

    fn count(&mut self, object: &Object, done: Done) {
        self.downloaded += 1;
        self.bytes = self.bytes.saturating_add(object.len);
        self.kept = self.kept.saturating_add(done.kept);
        self.unchecked += usize::from(!done.checked);
    }
}
