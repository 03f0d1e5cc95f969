//! One chunk on its way, and everybody who waits for it: blocking readers and async tasks alike.
//!
//! Lock order: the store's state before a flight's; a flight's lock is never held while taking another.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::Notify;

use super::disk::Place;
use super::source::{SourceError, Urgency};

/// Where the bytes of a chunk can be had now.
#[derive(Debug, Clone)]
pub enum Ready {
    /// In the object's data file, as long as this place is good.
    Disk(Place),
    /// Only here, because the cache is switched off.
    Memory(Vec<Bytes>),
}

/// Why a chunk did not come.
#[derive(Debug, Clone)]
pub enum Failure {
    /// The source's last word.
    Source(SourceError),
    /// The object as a whole contradicts the origin's checksum, for the second time.
    Corrupt,
    /// The store was closed meanwhile.
    Closed,
}

/// Result of a flight.
pub type Outcome = Result<Ready, Failure>;

/// A chunk that was asked for and is not here yet.
#[derive(Debug, Default)]
pub struct Flight {
    state: Mutex<State>,
    landed: Condvar,
    landed_async: Notify,
    /// Told when the first reader joins: no reader should sit out a backoff that began without one.
    pub first_reader: Notify,
    /// Raised once it is not only the fill that asks.
    pub urgency: Urgency,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    readers: usize,
}

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody with a deadline waits.
    pub fn has_readers(&self) -> bool {
        self.lock().readers > 0
    }

    /// Tell everybody.
    pub fn land(&self, outcome: Outcome) {
        self.lock().outcome = Some(outcome);
        self.landed.notify_all();
        self.landed_async.notify_waiters();
    }

    /// Wait on this thread, at most until `deadline`; `None` when that passed first.
    pub fn wait_until(&self, deadline: Instant) -> Option<Outcome> {
        let mut state = self.lock();
        state.readers = state.readers.saturating_add(1);
        if state.readers == 1 {
            self.first_reader.notify_one();
        }
        while state.outcome.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.landed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.readers = state.readers.saturating_sub(1);
        state.outcome.clone()
    }

    /// Wait without a deadline: the flight itself ends after the retry limit.
    pub async fn wait(&self) -> Outcome {
        loop {
            let landed = self.landed_async.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            if let Some(outcome) = self.lock().outcome.clone() {
                return outcome;
            }
            landed.await;
        }
    }
}
