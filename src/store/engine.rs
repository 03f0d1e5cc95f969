//! The state behind a store and the work on it: look a chunk up, queue it, fetch it, keep it.
//!
//! Threads: readers (FUSE) look up and wait; workers (tokio) fetch; `spawn_blocking` threads write, check and sync. One
//! lock, `state`, guards everything that changes; no file or network is touched and no flight waited for under it. A data
//! file's own lock is taken before it.
//! Tested through `tests/fetch_faults.rs` and `tests/store_resume.rs`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::FutureExt;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::chunkmap::{Chunk, ChunkMap};
use super::crc64;
use super::disk::{CacheDir, ObjectFile};
use super::error::source_code;
use super::flight::{Failure, Flight, Outcome, Ready};
use super::landing::Landing;
use super::layout::{ChunkIndex, ChunkKey, Layout, ObjectIndex};
use super::memory::{KEPT, Recent};
use super::options::StoreOptions;
use super::plan::Plan;
use super::progress::{Counters, Problem};
use super::proof::Check;
use super::room::{Keeping, Room};
use super::sharing::{Exchange, Shared};
use super::source::{ChunkSource, Object, SourceError};
use super::state::{Broken, ObjectState, State, Whole};
use crate::ciphertext::Judgement;
use crate::error::chain;
use crate::manifest::Manifest;

/// Failures of one chunk in a row from which on they are a problem: one 503 is everyday life, and four attempts take the
/// better part of a second.
const REPORTED_FROM: u32 = 4;

/// One object and where it lies; fixed.
#[derive(Debug)]
pub struct Slot {
    pub object: Object,
    /// Of this version of it, in the notes of what landed.
    pub identity: u64,
    pub path: String,
    pub layout: Layout,
    pub file: ObjectFile,
}

/// What the store's tasks and readers share.
pub struct Engine {
    pub options: StoreOptions,
    pub slots: Vec<Slot>,
    pub cache: CacheDir,
    pub source: Arc<dyn ChunkSource>,
    /// Other nodes, once there are some.
    pub shared: OnceLock<Shared>,
    /// Chunks that may be on their way without a place on the disk: they are in memory whole.
    pub in_memory: Arc<Semaphore>,
    /// What every chunk must be in.
    manifest: Option<Arc<Manifest>>,
    state: Mutex<State>,
    /// A chunk's place on the disk was given back.
    pub punched: Condvar,
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
        manifest: Option<Arc<Manifest>>,
        keeping: Keeping,
        cache: CacheDir,
        source: Arc<dyn ChunkSource>,
    ) -> Self {
        let mut counters = Counters::default();
        let objects =
            slots.iter().zip(maps).map(|(slot, map)| ObjectState::new(slot, map, &mut counters)).collect();
        let mut state = State {
            objects,
            flights: HashMap::new(),
            plan: Plan::default(),
            filling: false,
            caching: true,
            closed: false,
            recent: Recent::default(),
            counters,
            room: Room::default(),
            punching: HashSet::new(),
            running: BTreeSet::new(),
            filling_now: HashSet::new(),
            exchange: Exchange::default(),
        };
        state.keep(keeping, &slots);
        Engine {
            options,
            slots,
            cache,
            source,
            shared: OnceLock::new(),
            in_memory: Arc::new(Semaphore::new(KEPT)),
            manifest,
            state: Mutex::new(state),
            punched: Condvar::new(),
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
        if let (Some(Chunk::Present(_)), Some(slot)) = (state.chunk(key), self.slot(key.object)) {
            let ready = Ready::Disk(slot.file.place());
            if slot.layout.chunks() > 1 && state.room.touch(key) {
                drop(state);
                // The fill may go on in place of what was read before.
                self.work.notify_waiters();
            }
            return Lookup::Here(ready);
        }
        if let Some(frames) = state.recent.get(key) {
            return Lookup::Here(Ready::Memory(frames));
        }
        if let Some(flight) = state.flights.get(&key) {
            flight.urgency.raise();
            return Lookup::Coming(flight.clone());
        }
        let flight = Arc::new(Flight::default());
        flight.urgency.raise();
        state.flights.insert(key, flight.clone());
        state.plan.push_reader(key);
        drop(state);
        self.work.notify_waiters();
        Lookup::Coming(flight)
    }

    /// Take the next job: a reader's chunk, or else, if worker `number` of the fill is to do something, one of that.
    fn take(&self, number: Option<usize>) -> Option<(ChunkKey, Arc<Flight>)> {
        let mut guard = self.lock();
        let state = &mut *guard;
        while let Some(key) = state.plan.next_for_reader() {
            if let Some(flight) = state.flights.get(&key) {
                let flight = flight.clone();
                state.running.insert(key);
                return Some((key, flight));
            }
        }
        if number.is_none_or(|number| number >= self.at_once(state).0) || !state.filling || !state.caching {
            return None;
        }
        if !state.room.may_fill(self.options.chunk_len, state.filling_now.len()) {
            return None;
        }
        let (plan, lacking) = state.choice(self.shared.get());
        let key = plan.next_to_fill(|key| lacking.asks_origin(key))?;
        Some((key, state.depart(key)))
    }

    /// Do jobs for ever: readers', and the fill's as its worker `number`.
    pub async fn work(self: Arc<Self>, number: Option<usize>) {
        loop {
            let queued = self.work.notified();
            tokio::pin!(queued);
            queued.as_mut().enable();
            match self.take(number) {
                Some((key, flight)) => {
                    let outcome = self.deliver(key, &flight).await;
                    self.land(key, &flight, outcome);
                }
                None => queued.await,
            }
        }
    }

    pub fn land(&self, key: ChunkKey, flight: &Flight, outcome: Outcome) {
        let Some(slot) = self.slot(key.object) else { return };
        let mut state = self.lock();
        state.forget_flight(key);
        match &outcome {
            Ok(_) => state.counters.recovered(&slot.path),
            Err(failure) => state.note_failure(slot, key.object, failure),
        }
        drop(state);
        flight.land(outcome);
        self.landed.notify_waiters();
    }

    /// Bring one chunk, retrying what may pass by itself: while a reader waits (it has its own deadline), and otherwise
    /// up to the retry limit, from the last attempt on that brought anything.
    pub async fn deliver(self: &Arc<Self>, key: ChunkKey, flight: &Flight) -> Outcome {
        let mut landing = None;
        let outcome = self.persist(key, flight, &mut landing).await;
        if let Some(landing) = landing {
            self.abandon(landing).await;
        }
        outcome
    }

    async fn persist(
        self: &Arc<Self>,
        key: ChunkKey,
        flight: &Flight,
        landing: &mut Option<Landing>,
    ) -> Outcome {
        let (mut started, retry) = (Instant::now(), self.options.retry);
        let (mut attempt, mut failures, mut got) = (0, 0u32, 0);
        loop {
            let error = match self.attempt(key, flight, landing).await {
                Err(Failure::Source(error @ SourceError::Unavailable { .. })) => error,
                other => return other,
            };
            let SourceError::Unavailable { retry_after, .. } = error else {
                return Err(Failure::Source(error));
            };
            let before = std::mem::replace(&mut got, landing.as_ref().map_or(0, Landing::got));
            if got > before {
                (attempt, started) = (0, Instant::now());
            }
            let pause = retry.pause(attempt, retry_after);
            if !flight.has_readers() && started.elapsed() + pause > retry.limit {
                return Err(Failure::Source(error));
            }
            failures = failures.saturating_add(1);
            self.note_retry(key, &error, failures, pause);
            attempt += 1;
            if let Some(idle) = landing.take_if(|landing| landing.is_in_memory() && !flight.has_readers()) {
                self.abandon(idle).await;
                got = 0;
            }
            // A reader that has been here for a while is not one who joins.
            let _ = flight.first_reader.notified().now_or_never();
            let asked = retry_after.is_some();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = flight.first_reader.notified(), if !asked => attempt = 0,
            }
        }
    }

    fn note_retry(&self, key: ChunkKey, error: &SourceError, failures: u32, pause: std::time::Duration) {
        let Some(slot) = self.slot(key.object) else { return };
        tracing::warn!(
            event = "store.retry", object = slot.path, chunk = key.chunk.0, failures,
            backoff_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX), error = ?error
        );
        let mut state = self.lock();
        state.counters.retries += 1;
        if failures >= REPORTED_FROM {
            let (path, code) = (slot.path.clone(), source_code(error));
            state.counters.report(Problem { path, code, class: error.class(), detail: chain(error) });
        }
    }

    /// One attempt: the local copy if there may be one, else the source.
    async fn attempt(
        self: &Arc<Self>,
        key: ChunkKey,
        flight: &Flight,
        landing: &mut Option<Landing>,
    ) -> Outcome {
        let Some(slot) = self.slot(key.object) else { return Err(Failure::Closed) };
        let found = self.lock().chunk(key);
        if let Some(Chunk::Unverified(crc)) = found {
            let engine = self.clone();
            match blocking(move || engine.verify(key, crc)).await? {
                Some(ready) => return Ok(ready),
                None => tracing::warn!(event = "chunk.corrupt", object = slot.path, chunk = key.chunk.0),
            }
        }
        if landing.is_none()
            && let Some(ready) = self.ask_peer_first(key, flight).await
        {
            return Ok(ready);
        }
        self.receive(key, flight, landing).await
    }

    /// Check a chunk that an unclean stop left behind, or that came into doubt: `None` when it is not what the map says.
    fn verify(&self, key: ChunkKey, crc: u64) -> Result<Option<Ready>, Failure> {
        let Some(slot) = self.slot(key.object) else { return Ok(None) };
        let range = slot.layout.range(key.chunk);
        let place = slot.file.place();
        let mut bytes = vec![0; usize::try_from(slot.layout.len_of(key.chunk)).unwrap_or(0)];
        let sound = matches!(slot.file.read_at(place, range.start, &mut bytes), Ok(true))
            && crc64::of(&bytes) == crc
            && self.is_genuine(slot, key, &bytes);
        let mut state = self.lock();
        let same =
            slot.file.generation() == place.generation && state.chunk(key) == Some(Chunk::Unverified(crc));
        if !sound || !same {
            state.mark(slot, key, Chunk::Missing);
            return Ok(None);
        }
        if !state.caching {
            // What a failing disk gives back now it may not give back next time: only these bytes are sure.
            return Ok(Some(state.recent.serve(key, vec![bytes.into()])));
        }
        state.note_verified(slot, key);
        state.mark(slot, key, Chunk::Present(crc));
        let ready = Ready::Disk(slot.file.place());
        drop(state);
        self.check_object(key.object).map(|()| Some(ready))
    }

    /// Whether these are the bytes of the chunk that the manifest names; without one, nobody knows better.
    fn is_genuine(&self, slot: &Slot, key: ChunkKey, bytes: &[u8]) -> bool {
        let mut check = self.check(slot, key);
        check.update(bytes);
        check.finish() == Judgement::Genuine
    }

    /// What tells whether bytes are chunk `key` as the manifest has it, where there is one.
    pub fn check(&self, slot: &Slot, key: ChunkKey) -> Check {
        match &self.manifest {
            Some(manifest) => Check::Manifest(Box::new(manifest.chunk_check(
                &slot.object.path,
                slot.object.len,
                key.chunk.0,
            ))),
            None => Check::Nothing,
        }
    }

    /// Whether a manifest speaks for every chunk.
    pub fn is_signed(&self) -> bool {
        self.manifest.is_some()
    }

    /// When `object` is whole: compare its checksum with the origin's. The first difference discards it, to be fetched
    /// once more (the failure is transient then); the second breaks it.
    pub fn check_object(&self, index: ObjectIndex) -> Result<(), Failure> {
        let Some(slot) = self.slot(index) else { return Ok(()) };
        let (crcs, promised) = {
            let mut state = self.lock();
            let whole = |object: &&mut ObjectState| object.missing == 0 && object.whole == Whole::Open;
            let Some(object) = state.objects.get_mut(index.0).filter(whole) else { return Ok(()) };
            object.whole = Whole::Checking;
            let crcs: Vec<u64> = object.map.chunks.iter().filter_map(|chunk| chunk.crc()).collect();
            // A manifest has vouched for every chunk; what the origin promised of some earlier object says less.
            (crcs, object.map.object_crc64.filter(|_| self.manifest.is_none()))
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
            state.exchange.is_whole(index);
            return Ok(());
        }
        let taken = state.exchange.take_back(index);
        if !taken.is_empty() {
            // Blocks of this file that open, and not the ones that the origin has: an older state of it, from a peer.
            tracing::error!(event = "object.stale", object = slot.path, chunks = taken.len());
            taken.iter().for_each(|(key, _)| state.mark(slot, *key, Chunk::Missing));
            drop(guard);
            // Of several nobody knows which.
            if let [(key, sender)] = &*taken {
                sender.judged(*key, Judgement::Forged);
            }
            return Err(self.unavailable(slot, "peers sent an older state of it".into()));
        }
        object.mismatches += 1;
        tracing::error!(event = "object.corrupt", object = slot.path, times = object.mismatches);
        let again = object.mismatches > 1;
        object.broken = again.then_some(Broken::Corrupt);
        // Also the second time: no later start may find these chunks marked.
        state.discard(slot, index);
        state.counters.bytes_done = state.counters.bytes_done.saturating_sub(slot.layout.len);
        drop(guard);
        if again {
            return Err(Failure::Corrupt);
        }
        let detail = "the whole object does not have the origin's checksum".to_owned();
        Err(Failure::Source(SourceError::Unavailable { path: slot.path.clone(), detail, retry_after: None }))
    }
}

/// Run `act` on a thread that may block.
pub async fn blocking<R: Send + 'static>(
    act: impl FnOnce() -> Result<R, Failure> + Send + 'static,
) -> Result<R, Failure> {
    // The runtime refuses only while it shuts down.
    tokio::task::spawn_blocking(act).await.unwrap_or(Err(Failure::Closed))
}
