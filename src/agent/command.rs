//! What the agent is asked to do while it serves, and the answers.
//!
//! Who may ask is decided where the question comes in (`bus`); what can be done, here.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::gocryptfs::{self, Tree};
use crate::store::Store;

/// Questions that wait while one is answered: more are an attack or a loop.
const WAITING: usize = 16;

/// What was brought forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetched {
    /// Files at or below the path.
    pub files: u64,
    /// Ciphertext bytes of them that are not local. A bounded cache may have no room for all until others were read.
    pub missing: u64,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to do it with.
    #[error("the model is not served now: ask again in state Serving")]
    NotServing,
    /// No such file or directory in the model.
    #[error("{} is no file or directory of the model; give it below the mount point, or the mount point's own path", path.display())]
    NoSuchPath {
        /// What was asked for.
        path: PathBuf,
    },
    /// What is fetched ahead would be thrown away.
    #[error("the cache keeps nothing (cache.mode, or a full disk), so nothing can be fetched ahead")]
    NothingKept,
}

enum Command {
    Prefetch { path: PathBuf, answer: oneshot::Sender<Result<Prefetched, Refusal>> },
}

/// Where questions are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Desk(mpsc::Sender<Command>);

/// Where they come out.
pub struct Commands(mpsc::Receiver<Command>);

/// Both ends.
pub fn desk() -> (Desk, Commands) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Desk(sender), Commands(receiver))
}

impl Desk {
    /// Fetch the file at `path`, or all files below it, before everything else that nobody waits for. `path` is absolute and at
    /// or below the mount point, or relative to it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn prefetch(&self, path: PathBuf) -> Result<Prefetched, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Command::Prefetch { path, answer }).await.map_err(|_| Refusal::NotServing)?;
        // Dropped unanswered where the agent stops serving.
        answered.await.unwrap_or(Err(Refusal::NotServing))
    }
}

impl Commands {
    /// Answer for ever, from a model that is served at `point`.
    pub(super) async fn obey(
        &mut self,
        store: &Arc<Store>,
        tree: &Tree,
        point: &Path,
    ) -> std::convert::Infallible {
        // What was asked before there was anything to ask has its answer.
        while self.0.try_recv().is_ok() {}
        while let Some(Command::Prefetch { path, answer }) = self.0.recv().await {
            let prefetched = prefetch(store, tree, point, &path);
            tracing::info!(event = "agent.prefetch", path = %path.display(), "prefetch: {prefetched:?}");
            let _ = answer.send(prefetched);
        }
        // Without a bus nobody asks.
        std::future::pending().await
    }
}

fn prefetch(store: &Store, tree: &Tree, point: &Path, path: &Path) -> Result<Prefetched, Refusal> {
    let below = path.strip_prefix(point).unwrap_or(path);
    let files = gocryptfs::files_at(tree, below).ok_or_else(|| Refusal::NoSuchPath { path: path.into() })?;
    // Also where the store was opened to keep nothing.
    if !store.progress().borrow().caching {
        return Err(Refusal::NothingKept);
    }
    store.prefetch(&files);
    let missing = store.missing(&files);
    Ok(Prefetched { files: u64::try_from(files.len()).unwrap_or(u64::MAX), missing })
}
