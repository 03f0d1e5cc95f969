//! The store's own tasks: workers, the sync that makes chunk maps durable, and the publication of progress.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Store;
use super::chunkmap::Chunk;
use super::disk::Saved;
use super::engine::{Engine, Slot};
use super::error::StoreError;
use super::landed::Records;
use super::layout::ObjectIndex;
use super::progress::{Coming, Progress, Rate};
use super::sharing::FROM_PEERS;
use super::state::{ObjectState, State};
use crate::task::Tasks;

/// How often new chunks are made durable together. A crash costs what came in since.
const SYNC_EVERY: Duration = Duration::from_secs(2);
/// How often progress is published at most, five times a second: as smooth as a person can see.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);

/// Start all tasks of `engine`.
pub fn start(engine: &Arc<Engine>, progress: watch::Sender<Progress>, handle: &Handle) -> Tasks {
    let _runtime = handle.enter();
    let mut tasks = Tasks::new();
    let reserved = engine.options.reserved();
    for number in 0..engine.options.concurrency.max(1) {
        // The first are kept free for readers while the fill saturates the others.
        tasks.supervise("store-worker", engine.clone().work(number.checked_sub(reserved)));
    }
    tasks.supervise("store-sync", sync(engine.clone()));
    tasks.supervise("store-progress", publish(engine.clone(), progress));
    tasks
}

impl Store {
    /// Workers for what peers bring, beside those for the origin: neither waits for the other.
    pub(super) fn supervise_peers(&self, handle: &Handle) {
        let _runtime = handle.enter();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for tasks in tasks.iter_mut() {
            for number in 0..FROM_PEERS {
                tasks.supervise("store-peers", self.engine.clone().work_with_peers(number));
            }
        }
    }
}

async fn sync(engine: Arc<Engine>) {
    let mut ticks = interval(SYNC_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (dirty, engine) = (engine.is_dirty(), engine.clone());
        // A runtime that shuts down refuses; `close` has its own flush.
        let flushed =
            if dirty { tokio::task::spawn_blocking(move || engine.flush()).await } else { Ok(Ok(())) };
        if let Ok(Err(error)) = flushed {
            tracing::warn!(event = "store.sync-failed", ?error);
        }
    }
}

async fn publish(engine: Arc<Engine>, sender: watch::Sender<Progress>) {
    let (mut rate, mut of_peers, mut of_origin) = (Rate::default(), Rate::default(), Rate::default());
    let mut ticks = interval(PUBLISH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let landed = engine.landed.notified();
        let complete = sender.borrow().bytes_done == sender.borrow().bytes_total;
        tokio::select! {
            _ = ticks.tick() => {}
            // The last byte is news at once.
            () = landed, if !complete => if !engine.is_complete() { continue },
        }
        let now = engine.snapshot(&mut rate);
        {
            let (mut state, at) = (engine.lock(), Instant::now().into_std());
            state.plan.note_rate(now.bytes_per_sec);
            let origin = of_origin.sample(at, state.counters.bytes_fetched);
            let peers = of_peers.sample(at, state.exchange.bytes);
            let before = engine.at_once(&state);
            state.exchange.note_rates(peers, origin);
            let more = engine.at_once(&state) != before;
            drop(state);
            if more {
                engine.work.notify_waiters();
            }
        }
        sender.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

impl Engine {
    /// Chunks of these objects are in notes and in no map: the next save has them.
    pub fn is_only_noted(&self, notes: &Records) {
        let mut state = self.lock();
        let noted = self.slots.iter().map(|slot| notes.contains_key(&slot.identity));
        state.objects.iter_mut().zip(noted).for_each(|(object, noted)| object.dirty |= noted);
    }

    fn bytes_by_source(&self, state: &State) -> Vec<(&'static str, u64)> {
        let origin = (self.source_name(), state.counters.bytes_fetched);
        let peers = self.shared.get().map(|_| ("peers", state.exchange.bytes));
        std::iter::once(origin).chain(peers).collect()
    }

    fn is_dirty(&self) -> bool {
        let state = self.lock();
        state.caching && state.objects.iter().any(|object| object.dirty)
    }

    fn is_complete(&self) -> bool {
        self.lock().counters.objects_done == self.slots.len()
    }

    /// Make the chunks that came in durable, then their marks.
    pub fn flush(&self) -> Result<(), StoreError> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        self.cache.begin_save()?;
        for (index, slot) in self.slots.iter().enumerate() {
            if let Err(error) = self.save(index, slot) {
                self.stop_caching(&error);
                return Err(error);
            }
        }
        self.cache.end_save()
    }

    /// Save the chunk map of one object if it has changed.
    fn save(&self, index: usize, slot: &Slot) -> Result<(), StoreError> {
        // Again only when the data file was lost: then without the chunks that were in it.
        loop {
            let (map, unsynced, generation) = {
                let mut state = self.lock();
                let Some(object) = state.objects.get_mut(index).filter(|object| object.dirty) else {
                    return Ok(());
                };
                object.dirty = false;
                (object.map.clone(), std::mem::take(&mut object.unsynced), slot.file.generation())
            };
            let empty = map.chunks.iter().all(|chunk| *chunk == Chunk::Missing);
            // Marked chunks were written before the map was copied, so the sync inside `save` covers them.
            let saved = slot.file.save(&map.encode(&slot.object, slot.layout), empty);
            if matches!(saved, Ok(Saved::Durable)) {
                return Ok(());
            }
            let mut state = self.lock();
            if let Some(object) = state.objects.get_mut(index) {
                object.dirty = true;
                object.unsynced.extend(unsynced);
            }
            saved?;
            if slot.file.generation() == generation {
                state.forget_object(slot, ObjectIndex(index));
            }
        }
    }

    /// The flush of a clean stop. The directory is only called clean if everything in it has been checked.
    pub fn finish(&self) -> Result<(), StoreError> {
        if !self.lock().caching {
            return Ok(());
        }
        self.flush()?;
        // Not one expression: the marker must not be made under the lock.
        let doubtful = self.lock().objects.iter().any(ObjectState::in_doubt);
        if doubtful { Ok(()) } else { self.cache.mark_clean() }
    }

    /// Objects of which something is fetched now, in the order of the list: no more than are fetched at once.
    fn coming(&self, state: &State) -> Vec<Coming> {
        let objects: BTreeSet<ObjectIndex> = state.running.iter().map(|key| key.object).collect();
        let coming = |object: ObjectIndex| {
            let slot = self.slot(object)?;
            let bytes_done = state.object(object)?.bytes_done(slot.layout);
            Some(Coming { path: slot.path.clone(), bytes_done, bytes_total: slot.layout.len })
        };
        objects.into_iter().filter_map(coming).collect()
    }

    /// Progress now.
    pub fn snapshot(&self, rate: &mut Rate) -> Progress {
        let state = self.lock();
        let counters = &state.counters;
        Progress {
            bytes_total: self.slots.iter().fold(0, |sum, slot| sum.saturating_add(slot.layout.len)),
            bytes_done: counters.bytes_done,
            bytes_from_cache: counters.bytes_from_cache,
            bytes_by_source: self.bytes_by_source(&state),
            objects_total: self.slots.len(),
            objects_done: counters.objects_done,
            in_flight: state.running.len(),
            coming: self.coming(&state),
            retries: counters.retries,
            bytes_per_sec: rate.sample(
                Instant::now().into_std(),
                counters.bytes_fetched.saturating_add(state.exchange.bytes),
            ),
            problems: counters.problems(),
            caching: state.caching,
            cache_limit: state.room.limit(),
        }
    }
}
