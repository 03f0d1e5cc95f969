//! What is seen of a revision while it is fetched and served: its progress in the status, its problems in the state.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::model::Revision;
use super::stages::StageError;
use super::state::State;
use super::status::{Access, Failure, Progress};
use super::voice::{Lack, Voice};
use crate::error::{ErrorClass, Fault, chain};
use crate::store::{self, Filled, Store};

/// Pause before what the fill could not fetch is tried again: reads do not wait for it, they have their own retries.
const FILL_PAUSE: Duration = Duration::from_secs(30);

/// How often progress is shown at most: smooth for people, cheap for the bus.
const SHOW_EVERY: Duration = Duration::from_millis(250);

/// What changes by itself while a model is fetched.
pub(super) struct Watched {
    progress: watch::Receiver<store::Progress>,
    access: watch::Receiver<Access>,
}

impl Watched {
    /// Of this store, which fetches with what `access` is told of.
    pub(super) fn new(store: &Store, access: watch::Receiver<Access>) -> Self {
        Watched { progress: store.progress(), access }
    }

    /// The store's part.
    pub(super) fn progress(&self) -> store::Progress {
        self.progress.borrow().clone()
    }

    /// Put it into the status; gives the store's part.
    pub(super) fn show(&self, voice: &Voice) -> store::Progress {
        let (progress, access) = (self.progress(), self.access.borrow().clone());
        if access.clock_offset != 0 {
            voice.notice(
                "this machine's clock disagrees with OSS by minutes or more: set up time synchronisation",
            );
        }
        voice.update(|status| {
            status.progress = Progress::from(&progress);
            status.object_store = access;
        });
        progress
    }

    /// Wait for news.
    async fn changed(&mut self) -> Result<(), StageError> {
        tokio::select! {
            changed = self.progress.changed() => changed.map_err(|_| StageError::Panicked),
            // Without the client there is no store either, and that is told above.
            Ok(()) = self.access.changed() => Ok(()),
        }
    }
}

/// Where the stores that are open are, the newest last.
pub(super) type Stores = watch::Sender<Vec<Arc<Store>>>;

/// Fetch the whole of the newest model in the background, for ever.
pub(super) async fn fill_newest(mut stores: watch::Receiver<Vec<Arc<Store>>>) {
    loop {
        let newest = stores.borrow_and_update().last().cloned();
        tokio::select! {
            () = async { match newest { Some(store) => fill(&store).await, None => std::future::pending().await } } => {}
            changed = stores.changed() => if changed.is_err() { return },
        }
    }
}

/// What fails is tried again later; the store reports it meanwhile.
async fn fill(store: &Store) {
    loop {
        match store.fill(CancellationToken::new()).await {
            Ok(filled) => {
                if filled == Filled::Complete {
                    tracing::info!(event = "fill.complete", "every byte of the model is local");
                }
                return std::future::pending().await;
            }
            Err(error) => {
                tracing::warn!(event = "fill.incomplete", error = ?error, "the background fill: {}", chain(&error))
            }
        }
        tokio::time::sleep(FILL_PAUSE).await;
    }
}

/// Wait until every byte is here; `show` is called at every change.
pub(super) async fn wait_until_complete(
    watched: &mut Watched,
    mut show: impl FnMut(&Watched),
) -> Result<(), Failure> {
    loop {
        show(watched);
        let now = watched.progress();
        // What may pass is tried again by the store and by the fill; what is final ends the wait.
        if let Some(problem) = now.problems.iter().find(|problem| problem.class != ErrorClass::Transient) {
            return Err(Failure::new(State::Fetching, &Incomplete::from(problem)));
        }
        if now.bytes_done >= now.bytes_total {
            return Ok(());
        }
        watched.changed().await.map_err(|error| Failure::new(State::Fetching, &error))?;
    }
}

/// Part of the model cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
struct Incomplete {
    detail: String,
    code: &'static str,
    class: ErrorClass,
}

impl From<&store::Problem> for Incomplete {
    fn from(problem: &store::Problem) -> Self {
        Incomplete { detail: problem.detail.clone(), code: problem.code, class: problem.class }
    }
}

impl Fault for Incomplete {
    fn class(&self) -> ErrorClass {
        self.class
    }

    fn code(&self) -> &'static str {
        self.code
    }

    fn hint(&self) -> String {
        match self.class {
            ErrorClass::Corrupt => "once the upload of the model is complete: systemctl restart cai".into(),
            ErrorClass::Denied => {
                "the grant needs oss:GetObject on the model's objects; it is tried again by itself".into()
            }
            ErrorClass::Transient => {
                "it is tried again by itself; see the journal for the object store's answers".into()
            }
            ErrorClass::Config => "see the detail; after the change: systemctl restart cai".into(),
            ErrorClass::Internal => "this is a defect: please report it with the journal".into(),
        }
    }
}

/// Follow what is served: progress into the status, problems into `Degraded` and back.
pub(super) async fn follow(
    voice: &Voice,
    mut served: watch::Receiver<Arc<Revision>>,
    access: watch::Receiver<Access>,
) -> Failure {
    loop {
        let store = served.borrow_and_update().store.clone();
        let mut watched = Watched::new(&store, access.clone());
        tokio::select! {
            // First: the store of what was replaced may be closed by now.
            biased;
            changed = served.changed() => if changed.is_err() { return std::future::pending().await },
            failure = watch_progress(voice, &mut watched) => return failure,
        }
    }
}

async fn watch_progress(voice: &Voice, watched: &mut Watched) -> Failure {
    loop {
        let now = watched.show(voice);
        if let Err(failure) = follow_problems(voice, &now) {
            return failure;
        }
        tokio::time::sleep(SHOW_EVERY).await;
        if let Err(error) = watched.changed().await {
            return Failure::new(voice.state(), &error);
        }
    }
}

fn follow_problems(voice: &Voice, progress: &store::Progress) -> Result<(), Failure> {
    let failure =
        progress.problems.first().map(|problem| Failure::new(voice.state(), &Incomplete::from(problem)));
    match &failure {
        Some(failure) if voice.state() == State::Serving => voice.warn(failure),
        Some(failure) => voice.warn_if_new(failure),
        None => {}
    }
    voice.lacks(Lack::Source, failure.map(|failure| failure.to_string()))
}
