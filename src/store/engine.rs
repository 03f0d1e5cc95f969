//! The state behind a store and the work on it: look a chunk up, queue it, fetch it, keep it.
//!
//! Threads: readers (FUSE) look up and wait; workers (tokio) fetch; `spawn_blocking` threads write, check and sync. One
//! lock, `state`, guards everything that changes; no file or network is touched and no flight waited for under it.
//! Tested through `tests/fetch_faults.rs` and `tests/store_resume.rs`.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::chunkmap::{Chunk, ChunkMap};
use super::crc64;
use super::disk::{CacheDir, ObjectFile};
use super::error::{StoreError, source_code};
use super::flight::{Failure, Flight, Outcome, Ready};
use super::layout::{ChunkIndex, ChunkKey, Layout, ObjectIndex};
use super::memory::Recent;
use super::options::StoreOptions;
use super::plan::Plan;
use super::progress::{Counters, Problem};
use super::source::{ChunkSource, Fetched, Object, SourceError};
use super::state::{Broken, ObjectState, State, Whole};
use crate::error::{Fault, chain};

/// One object and where it lies; fixed.
#[derive(Debug)]
pub struct Slot {
    pub object: Object,
    pub path: String,
    pub layout: Layout,
    pub file: ObjectFile,
}

/// What the store's tasks and readers share.
pub struct Engine {
    pub options: StoreOptions,
    pub slots: Vec<Slot>,
    pub cache: CacheDir,
    source: Arc<dyn ChunkSource>,
    state: Mutex<State>,
    /// Held while chunk maps are saved: one writer of a sidecar at a time. Taken before `state`, never the other way round.
    pub saving: Mutex<()>,
    /// Work was queued, or the store closed.
    pub work: Notify,
    /// A flight ended: the fill may be at its end, and the progress is worth publishing.
    pub landed: Notify,
}

/// Answer to "where is this chunk".
pub enum Lookup {
    Here(Ready),
    Coming(Arc<Flight>),
    Failed(Failure),
}

impl Engine {
    pub fn new(
        options: StoreOptions,
        slots: Vec<Slot>,
        maps: Vec<ChunkMap>,
        cache: CacheDir,
        source: Arc<dyn ChunkSource>,
    ) -> Self {
        let mut counters = Counters::default();
        let objects =
            slots.iter().zip(maps).map(|(slot, map)| ObjectState::new(slot, map, &mut counters)).collect();
        let state = State {
            objects,
            flights: HashMap::new(),
            plan: Plan::default(),
            filling: false,
            caching: true,
            closed: false,
            recent: Recent::default(),
            counters,
        };
        Engine {
            options,
            slots,
            cache,
            source,
            state: Mutex::new(state),
            saving: Mutex::default(),
            work: Notify::new(),
            landed: Notify::new(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // A panicking holder leaves counters behind at worst: chunk marks are single assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn slot(&self, object: ObjectIndex) -> Option<&Slot> {
        self.slots.get(object.0)
    }

    pub fn source_name(&self) -> &'static str {
        self.source.name()
    }

    /// Where `key` is. A missing chunk is queued before everything the fill has planned, once however many ask.
    pub fn look_up(&self, key: ChunkKey) -> Lookup {
        let mut state = self.lock();
        if state.closed {
            return Lookup::Failed(Failure::Closed);
        }
        if let Some(broken) = state.object(key.object).and_then(|object| object.broken.clone()) {
            return Lookup::Failed(broken.into());
        }
        if matches!(state.chunk(key), Some(Chunk::Present(_))) {
            return Lookup::Here(Ready::Disk);
        }
        if let Some(frames) = state.recent.get(key) {
            return Lookup::Here(Ready::Memory(frames));
        }
        if let Some(flight) = state.flights.get(&key) {
            return Lookup::Coming(flight.clone());
        }
        let flight = Arc::new(Flight::default());
        state.flights.insert(key, flight.clone());
        state.plan.push_reader(key);
        drop(state);
        self.work.notify_waiters();
        Lookup::Coming(flight)
    }

    /// A chunk that could not be read back is fetched afresh at its next use.
    pub fn forget(&self, key: ChunkKey, error: &io::Error) {
        let Some(slot) = self.slot(key.object) else { return };
        tracing::warn!(event = "store.read-back", object = slot.path, chunk = key.chunk.0, ?error);
        let mut state = self.lock();
        if let Some(Chunk::Present(_)) = state.chunk(key) {
            state.mark(slot, key, Chunk::Missing);
        }
    }

    /// Take the next job: a reader's chunk, or else, unless `readers_only`, one of the fill.
    fn take(&self, readers_only: bool) -> Option<(ChunkKey, Arc<Flight>)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        while let Some(key) = state.plan.next_for_reader() {
            if let Some(flight) = state.flights.get(&key) {
                state.counters.in_flight += 1;
                return Some((key, flight.clone()));
            }
        }
        if readers_only || !state.filling || !state.caching {
            return None;
        }
        let (objects, flights) = (&state.objects, &state.flights);
        let wanted = |key: ChunkKey| {
            let object = objects.get(key.object.0);
            object.is_some_and(|object| object.to_fill() && !object.is_present(key.chunk))
                && !flights.contains_key(&key)
        };
        let Some(key) = state.plan.next_to_fill(wanted) else {
            // That the plan is at its end shows only when it is asked; the fill may have looked just before.
            self.landed.notify_waiters();
            return None;
        };
        let flight = Arc::new(Flight::default());
        state.flights.insert(key, flight.clone());
        state.counters.in_flight += 1;
        Some((key, flight))
    }

    /// Do jobs for ever. `readers_only` keeps this worker free for readers while the fill saturates the others.
    pub async fn work(self: Arc<Self>, readers_only: bool) {
        loop {
            let queued = self.work.notified();
            tokio::pin!(queued);
            queued.as_mut().enable();
            match self.take(readers_only) {
                Some((key, flight)) => {
                    let outcome = self.deliver(key, &flight).await;
                    self.land(key, &flight, outcome);
                }
                None => queued.await,
            }
        }
    }

    fn land(&self, key: ChunkKey, flight: &Flight, outcome: Outcome) {
        let Some(slot) = self.slot(key.object) else { return };
        let mut state = self.lock();
        state.flights.remove(&key);
        state.counters.in_flight = state.counters.in_flight.saturating_sub(1);
        match &outcome {
            Ok(_) => state.counters.recovered(&slot.path),
            Err(failure) => state.note_failure(slot, key.object, failure),
        }
        drop(state);
        flight.land(outcome);
        self.landed.notify_waiters();
    }

    /// Bring one chunk, retrying what may pass by itself: while a reader waits (it has its own deadline), and otherwise
    /// up to the retry limit.
    async fn deliver(self: &Arc<Self>, key: ChunkKey, flight: &Flight) -> Outcome {
        let (started, retry) = (Instant::now(), self.options.retry);
        let mut attempt = 0;
        loop {
            let error = match self.attempt(key).await {
                Err(Failure::Source(error @ SourceError::Unavailable { .. })) => error,
                other => return other,
            };
            let SourceError::Unavailable { retry_after, .. } = &error else {
                return Err(Failure::Source(error));
            };
            let pause = retry.pause(attempt, *retry_after);
            if !flight.has_readers() && started.elapsed() + pause > retry.limit {
                return Err(Failure::Source(error));
            }
            self.note_retry(key, &error, attempt, pause);
            attempt += 1;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = flight.first_reader.notified() => attempt = 0,
            }
        }
    }

    fn note_retry(&self, key: ChunkKey, error: &SourceError, attempt: u32, pause: std::time::Duration) {
        let Some(slot) = self.slot(key.object) else { return };
        tracing::warn!(
            event = "store.retry", object = slot.path, chunk = key.chunk.0, attempt,
            backoff_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), error = ?error
        );
        let mut state = self.lock();
        state.counters.retries += 1;
        let problem = Problem { path: slot.path.clone(), code: source_code(error), detail: chain(error) };
        state.counters.report(problem);
    }

    /// One attempt: the local copy if there may be one, else the source.
    async fn attempt(self: &Arc<Self>, key: ChunkKey) -> Outcome {
        let Some(slot) = self.slot(key.object) else { return Err(Failure::Closed) };
        let found = self.lock().chunk(key);
        if let Some(Chunk::Unverified(crc)) = found {
            let engine = self.clone();
            match blocking(move || engine.verify(key, crc)).await? {
                Some(ready) => return Ok(ready),
                None => tracing::warn!(event = "chunk.corrupt", object = slot.path, chunk = key.chunk.0),
            }
        }
        let range = slot.layout.range(key.chunk);
        let fetched = self.source.fetch(&slot.object, range).await.map_err(Failure::Source)?;
        let engine = self.clone();
        blocking(move || engine.keep(key, fetched)).await
    }

    /// Check a chunk that an unclean stop left behind: `None` when it is not what the sidecar says.
    fn verify(&self, key: ChunkKey, crc: u64) -> Result<Option<Ready>, Failure> {
        let Some(slot) = self.slot(key.object) else { return Ok(None) };
        let range = slot.layout.range(key.chunk);
        let mut bytes = vec![0; usize::try_from(slot.layout.len_of(key.chunk)).unwrap_or(0)];
        if slot.file.read_at(range.start, &mut bytes).is_ok() && crc64::of(&bytes) == crc {
            let mut state = self.lock();
            state.counters.bytes_from_cache += slot.layout.len_of(key.chunk);
            state.mark(slot, key, Chunk::Present(crc));
            drop(state);
            return self.check_object(key.object).map(|()| Some(Ready::Disk));
        }
        self.lock().mark(slot, key, Chunk::Missing);
        Ok(None)
    }

    /// Take in what a source delivered: check, write, mark. The mark in the sidecar follows after a sync.
    fn keep(&self, key: ChunkKey, fetched: Fetched) -> Outcome {
        let Some(slot) = self.slot(key.object) else { return Err(Failure::Closed) };
        let range = slot.layout.range(key.chunk);
        let expected = slot.layout.len_of(key.chunk);
        let got = fetched.frames.iter().fold(0u64, |sum, frame| sum.saturating_add(frame.len() as u64));
        if got != expected {
            let detail = format!("{} delivered {got} bytes of {expected}", self.source_name());
            let path = slot.path.clone();
            return Err(Failure::Source(SourceError::Unavailable { path, detail, retry_after: None }));
        }
        let crc = crc64::of_frames(&fetched.frames);
        // Not one expression: the guard of the first half would live through the second.
        let caching = self.lock().caching;
        let written = caching && self.write(slot, range.start, &fetched.frames);
        let mut state = self.lock();
        state.counters.bytes_fetched = state.counters.bytes_fetched.saturating_add(got);
        if !written {
            state.recent.put(key, fetched.frames.clone());
            return Ok(Ready::Memory(fetched.frames));
        }
        if let Some(object) = state.objects.get_mut(key.object.0) {
            object.map.object_crc64 = object.map.object_crc64.or(fetched.object_crc64);
        }
        state.mark(slot, key, Chunk::Present(crc));
        drop(state);
        self.check_object(key.object).map(|()| Ready::Disk)
    }

    /// Whether `frames` are in the file now. A disk that cannot take them is not tried again.
    fn write(&self, slot: &Slot, offset: u64, frames: &[Bytes]) -> bool {
        let Err(source) = slot.file.write_at(offset, frames) else { return true };
        self.stop_caching(&StoreError::Io { doing: "writing", path: self.cache.path().to_owned(), source });
        false
    }

    /// Go on without the disk, because of `error`.
    pub fn stop_caching(&self, error: &StoreError) {
        let mut state = self.lock();
        if !state.caching {
            return;
        }
        state.caching = false;
        state.plan.clear_fill();
        let path = self.cache.path().display().to_string();
        state.counters.report(Problem { path, code: "store.caching-off", detail: chain(error) });
        drop(state);
        tracing::error!(event = "store.caching-off", error = ?error, hint = error.hint());
        self.landed.notify_waiters();
    }

    /// When `object` is whole: compare its checksum with the origin's. The first difference discards it, to be fetched
    /// once more (the failure is transient then); the second breaks it.
    fn check_object(&self, index: ObjectIndex) -> Result<(), Failure> {
        let Some(slot) = self.slot(index) else { return Ok(()) };
        let (crcs, promised) = {
            let mut state = self.lock();
            let whole = |object: &&mut ObjectState| object.missing == 0 && object.whole == Whole::Open;
            let Some(object) = state.objects.get_mut(index.0).filter(whole) else { return Ok(()) };
            object.whole = Whole::Checking;
            let crcs: Vec<u64> = object.map.chunks.iter().filter_map(|chunk| chunk.crc()).collect();
            (crcs, object.map.object_crc64)
        };
        let lens = (0..).map(|chunk| slot.layout.len_of(ChunkIndex(chunk)));
        // Outside the lock: milliseconds for a large object.
        let mismatch =
            promised.is_some_and(|promised| crc64::combine(crcs.into_iter().zip(lens)) != promised);
        let mut guard = self.lock();
        let state = &mut *guard;
        let checking = |object: &&mut ObjectState| object.whole == Whole::Checking;
        let Some(object) = state.objects.get_mut(index.0).filter(checking) else { return Ok(()) };
        if !mismatch {
            object.whole = Whole::Done;
            state.counters.objects_done += 1;
            return Ok(());
        }
        object.mismatches += 1;
        tracing::error!(event = "object.corrupt", object = slot.path, times = object.mismatches);
        if object.mismatches > 1 {
            object.broken = Some(Broken::Corrupt);
            return Err(Failure::Corrupt);
        }
        object.discard();
        state.counters.bytes_done = state.counters.bytes_done.saturating_sub(slot.layout.len);
        drop(guard);
        let detail = "the whole object does not have the origin's checksum".to_owned();
        Err(Failure::Source(SourceError::Unavailable { path: slot.path.clone(), detail, retry_after: None }))
    }
}

/// Run `act` on a thread that may block.
async fn blocking<R: Send + 'static>(
    act: impl FnOnce() -> Result<R, Failure> + Send + 'static,
) -> Result<R, Failure> {
    // The runtime refuses only while it shuts down.
    tokio::task::spawn_blocking(act).await.unwrap_or(Err(Failure::Closed))
}
