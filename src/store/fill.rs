//! Fetching ahead: what the metadata stage needs, and the background fill.

use tokio_util::sync::CancellationToken;

use super::Store;
use super::engine::{Engine, Lookup};
use super::error::StoreError;
use super::flight::Failure;
use super::layout::{ChunkIndex, ChunkKey, ObjectIndex};
use super::sharing::PLAN_EVERY;
use super::state::{Broken, ObjectState, State};
use crate::ciphertext::EntryId;

/// How a fill ended. What is complete is also durable: a crash after it costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// Every byte of every object is local, verified and synced.
    Complete,
    /// It was cancelled.
    Cancelled,
}

impl Store {
    /// Bring every byte of the files `ids`, before everything the fill has planned. Directories are passed over.
    ///
    /// # Errors
    /// `Fetch`, `ObjectCorrupt`, `Closed` of the first file that did not come.
    pub async fn fetch_entries(&self, ids: &[EntryId]) -> Result<(), StoreError> {
        let mut flights = Vec::new();
        for (object, slot) in ids.iter().filter_map(|id| self.object_of(*id)) {
            for chunk in (0..slot.layout.chunks()).map(ChunkIndex) {
                match self.engine.look_up(ChunkKey { object, chunk }) {
                    Lookup::Here(_) => {}
                    Lookup::Coming(flight) => flights.push((slot, flight)),
                    Lookup::Failed(failure) => return Err(store_error(&slot.path, failure)),
                }
            }
        }
        for (slot, flight) in flights {
            flight.wait().await.map_err(|failure| store_error(&slot.path, failure))?;
        }
        Ok(())
    }

    /// Bring everything, behind all readers, until it is here or `token` is cancelled. Objects that fail are passed over
    /// and reported at the end; call again to try them again. One fill runs at a time.
    ///
    /// # Errors
    /// `Incomplete`, `CachingOff`, `Closed`.
    pub async fn fill(&self, token: CancellationToken) -> Result<Filled, StoreError> {
        let _turn = self.fill_turn.lock().await;
        self.engine.lock().objects.iter_mut().for_each(|object| object.aside = None);
        // Also when this future is dropped.
        let _stop = StopFilling(&self.engine);
        loop {
            let landed = self.engine.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if let Some(end) = self.engine.fill_step() {
                end?;
                self.make_durable().await?;
                if self.engine.lock().objects.iter().all(|object| object.missing == 0) {
                    return Ok(Filled::Complete);
                }
                // A data file turned out to be lost when it was to be synced.
                continue;
            }
            let sharing = self.engine.shared.get().is_some();
            tokio::select! {
                () = landed => {}
                // What falls to this node also changes with time.
                () = tokio::time::sleep(PLAN_EVERY), if sharing => {}
                () = token.cancelled() => return Ok(Filled::Cancelled),
            }
        }
    }
}

impl Store {
    async fn make_durable(&self) -> Result<(), StoreError> {
        let engine = self.engine.clone();
        tokio::task::spawn_blocking(move || engine.flush()).await.unwrap_or(Err(StoreError::Closed))
    }
}

/// Ends the filling at the end of [`Store::fill`].
struct StopFilling<'a>(&'a Engine);

impl Drop for StopFilling<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.filling = false;
        state.plan.clear_fill();
    }
}

impl Engine {
    /// Plan what is missing if nothing is planned; `Some` when nothing can be fetched any more and nothing is on its way.
    fn fill_step(&self) -> Option<Result<(), StoreError>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.closed {
            return Some(Err(StoreError::Closed));
        }
        if !state.caching {
            return Some(Err(StoreError::CachingOff { dir: self.options.dir.clone() }));
        }
        state.filling = true;
        if !state.objects.iter().any(ObjectState::to_fill) {
            // A flight may still find the whole object wrong and discard it: the end is only known when all have landed.
            return state.flights.is_empty().then(|| self.fill_result(state));
        }
        let shared = self.shared.get();
        let (plan, lacking) = state.choice(shared);
        if !plan.is_exhausted(|key| lacking.asks_origin(key)) {
            return None;
        }
        if shared.is_some() && !state.exchange.plan_again() {
            return None;
        }
        self.offer_again(state);
        let to_fill = |(index, object): (usize, &ObjectState)| {
            let slot = self.slots.get(index).filter(|_| object.to_fill())?;
            Some((ObjectIndex(index), slot.layout))
        };
        state.plan.fill(state.objects.iter().enumerate().filter_map(to_fill));
        // With all that is missing on its way there is nothing to wake workers for: the next landing comes back here.
        let (plan, lacking) = state.choice(shared);
        if !plan.is_exhausted(|key| lacking.asks_origin(key)) || state.exchange.has_offers() {
            drop(guard);
            self.work.notify_waiters();
        }
        None
    }

    fn fill_result(&self, state: &State) -> Result<(), StoreError> {
        let failed = self.slots.iter().zip(&state.objects).filter_map(|(slot, object)| {
            let failure = match (&object.broken, &object.aside) {
                (Some(Broken::Source(error)), _) | (None, Some(error)) => Failure::Source(error.clone()),
                (Some(Broken::Corrupt), _) => Failure::Corrupt,
                (None, None) => return None,
            };
            Some((slot, failure)).filter(|_| object.missing > 0 || object.broken.is_some())
        });
        let mut failed: Vec<_> = failed.collect();
        let objects = failed.len();
        let Some((slot, failure)) = failed.pop() else { return Ok(()) };
        let (path, source) = (slot.path.clone(), Box::new(store_error(&slot.path, failure)));
        Err(StoreError::Incomplete { objects, path, source })
    }
}

fn store_error(path: &str, failure: Failure) -> StoreError {
    match failure {
        Failure::Source(source) => StoreError::Fetch { path: path.to_owned(), source },
        Failure::Corrupt => StoreError::ObjectCorrupt { path: path.to_owned() },
        Failure::Closed => StoreError::Closed,
    }
}
