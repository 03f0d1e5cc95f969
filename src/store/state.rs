//! What changes in a store, and the few rules that keep it consistent. Only ever touched under the engine's lock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::chunkmap::{Chunk, ChunkMap};
use super::crc64;
use super::direct::Trail;
use super::engine::Slot;
use super::error::{StoreError, source_code};
use super::flight::{Failure, Flight};
use super::landing::Origin;
use super::layout::{ChunkIndex, ChunkKey, Layout, ObjectIndex};
use super::memory::Recent;
use super::plan::Plan;
use super::progress::{Counters, Problem};
use super::room::Room;
use super::sharing::{Exchange, Holder, Shared};
use super::source::SourceError;
use crate::error::{Fault, chain};

/// What makes every read of an object fail, for the rest of the store's life.
#[derive(Debug, Clone)]
pub enum Broken {
    /// The origin has another object, or none.
    Source(SourceError),
    /// The bytes contradict the origin's checksum, twice.
    Corrupt,
}

/// Where the comparison of a whole object with the origin's checksum stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// Chunks are missing.
    Open,
    /// All are here and being compared.
    Checking,
    /// They are what the origin has, or it promised nothing.
    Done,
}

/// What changes about an object.
#[derive(Debug)]
pub struct ObjectState {
    pub map: ChunkMap,
    /// Chunks that are not [`Chunk::Present`].
    pub missing: u64,
    pub whole: Whole,
    pub broken: Option<Broken>,
    /// Times the whole object did not have the origin's checksum.
    pub mismatches: u32,
    /// Chunks that were last delivered with other bytes than the manifest names.
    pub forged: HashSet<ChunkIndex>,
    /// The sidecar is older than the map.
    pub dirty: bool,
    /// Chunks written since the last sync began.
    pub unsynced: Vec<ChunkIndex>,
    /// Unverified chunks that were present before in this run.
    distrusted: HashSet<ChunkIndex>,
    /// The fill gave up on it, until the next fill.
    pub aside: Option<SourceError>,
    /// Where its readers have been.
    pub trail: Trail,
}

/// Everything that changes.
#[derive(Debug)]
pub struct State {
    pub objects: Vec<ObjectState>,
    pub flights: HashMap<ChunkKey, Arc<Flight>>,
    pub plan: Plan,
    pub filling: bool,
    pub caching: bool,
    pub closed: bool,
    pub recent: Recent,
    pub counters: Counters,
    /// What stays where not everything can.
    pub room: Room,
    /// Chunks whose place on the disk is being given back; nobody may write there meanwhile.
    pub punching: HashSet<ChunkKey>,
    /// Chunks that the fill has begun, and that room is still to be found for.
    pub filling_now: HashSet<ChunkKey>,
    /// Chunks that are fetched now; of the other flights some only wait for their turn.
    pub running: BTreeSet<ChunkKey>,
    /// What peers have to do with it.
    pub exchange: Exchange,
}

/// What the fill's choice of the next chunk depends on, beside the plan.
pub struct Lacking<'a> {
    objects: &'a [ObjectState],
    flights: &'a HashMap<ChunkKey, Arc<Flight>>,
    room: &'a Room,
    exchange: &'a Exchange,
    shared: Option<&'a Shared>,
}

impl Lacking<'_> {
    /// Whether `key` is to come: it is not here, not on its way, was not let go, and its object is not broken.
    pub fn wants(&self, key: ChunkKey) -> bool {
        let object = self.objects.get(key.object.0);
        object.is_some_and(|object| object.broken.is_none() && !object.is_present(key.chunk))
            && !self.flights.contains_key(&key)
            && !self.room.was_evicted(key)
    }

    /// Whether there is a copy of `key` here that has only to be checked.
    fn is_doubtful(&self, key: ChunkKey) -> bool {
        let chunk = self.objects.get(key.object.0).and_then(|object| object.chunk(key.chunk));
        matches!(chunk, Some(Chunk::Unverified(_)))
    }

    /// Whether peers may be asked for `key`.
    pub fn asks_peers(&self, key: ChunkKey) -> bool {
        self.wants(key) && !self.is_doubtful(key)
    }

    /// Who has `key`, of those that are to be asked for it.
    pub fn holder(&self, key: ChunkKey) -> Option<Holder> {
        let shared = self.shared.filter(|_| !self.exchange.is_slow() && self.asks_peers(key))?;
        self.exchange.holder(shared, key)
    }

    /// Whether the fill's own workers bring `key`, which look here and then at the origin: it is wanted, its object has not been given
    /// up, and no peer is to bring it.
    pub fn asks_origin(&self, key: ChunkKey) -> bool {
        self.objects.get(key.object.0).is_some_and(|object| object.aside.is_none())
            && self.wants(key)
            && self
                .shared
                .is_none_or(|shared| self.is_doubtful(key) || shared.falls_to_us(self.exchange, key))
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Source(error) => Failure::Source(error),
            Broken::Corrupt => Failure::Corrupt,
        }
    }
}

impl ObjectState {
    pub fn new(slot: &Slot, map: ChunkMap, counters: &mut Counters) -> Self {
        // A full map may have been saved before the object was compared, or be one the comparison refused.
        let contradicted = contradicted(slot, &map);
        let map = if contradicted { ChunkMap::empty(slot.layout) } else { map };
        let (mut missing, mut present) = (0u64, 0u64);
        for (index, chunk) in (0..).zip(&map.chunks) {
            match chunk {
                Chunk::Present(_) => present = present.saturating_add(slot.layout.len_of(ChunkIndex(index))),
                Chunk::Missing | Chunk::Unverified(_) => missing += 1,
            }
        }
        counters.bytes_done = counters.bytes_done.saturating_add(present);
        counters.bytes_from_cache = counters.bytes_from_cache.saturating_add(present);
        let whole = if missing == 0 { Whole::Done } else { Whole::Open };
        counters.objects_done += usize::from(missing == 0);
        ObjectState {
            map,
            missing,
            whole,
            broken: None,
            mismatches: 0,
            forged: HashSet::new(),
            dirty: contradicted,
            unsynced: Vec::new(),
            distrusted: HashSet::new(),
            aside: None,
            trail: Trail::default(),
        }
    }

    /// The mark of `chunk`; `None` outside of the object.
    pub fn chunk(&self, chunk: ChunkIndex) -> Option<Chunk> {
        self.map.chunks.get(usize::try_from(chunk.0).ok()?).copied()
    }

    pub fn is_present(&self, chunk: ChunkIndex) -> bool {
        matches!(self.chunk(chunk), Some(Chunk::Present(_)))
    }

    /// Bytes of it that are [`Chunk::Present`].
    pub fn bytes_done(&self, layout: Layout) -> u64 {
        let last = layout.chunks().checked_sub(1).map(ChunkIndex);
        layout.len_without(self.missing, last.is_some_and(|last| !self.is_present(last)))
    }

    /// Whether every chunk is on the disk.
    pub fn is_complete(&self) -> bool {
        self.missing == 0 && self.broken.is_none()
    }

    /// Whether the fill has something to do here.
    pub fn to_fill(&self) -> bool {
        self.missing > 0 && self.broken.is_none() && self.aside.is_none()
    }

    /// Whether the sidecar says nothing, or not for certain, of what is known here.
    pub fn in_doubt(&self) -> bool {
        let unverified = |chunk: &Chunk| matches!(chunk, Chunk::Unverified(_));
        self.dirty
            || self.broken.is_some()
            || self.whole == Whole::Checking
            || self.map.chunks.iter().any(unverified)
    }

    /// Forget every chunk. The data stays in the file until it is overwritten: a reader may be in the middle of it, and
    /// must not find a hole there.
    pub fn discard(&mut self) {
        self.map.chunks.fill(Chunk::Missing);
        self.missing = self.map.chunks.len() as u64;
        self.map.object_crc64 = None;
        self.whole = Whole::Open;
        self.dirty = true;
    }
}

impl State {
    pub fn object(&self, index: ObjectIndex) -> Option<&ObjectState> {
        self.objects.get(index.0)
    }

    pub fn chunk(&self, key: ChunkKey) -> Option<Chunk> {
        self.object(key.object)?.chunk(key.chunk)
    }

    /// The plan, and what goes into the choice of the next chunk of it.
    pub fn choice<'a>(&'a mut self, shared: Option<&'a Shared>) -> (&'a mut Plan, Lacking<'a>) {
        let State { objects, flights, room, exchange, plan, .. } = self;
        (plan, Lacking { objects, flights, room, exchange, shared })
    }

    /// As [`Lacking::asks_peers`].
    pub fn asks_peers(&mut self, key: ChunkKey) -> bool {
        self.choice(None).1.asks_peers(key)
    }

    /// Whether every chunk comes by itself.
    pub fn fills_all(&self) -> bool {
        self.filling && self.caching && self.room.limit().is_none()
    }

    /// The fill sets out for `key`.
    pub fn depart(&mut self, key: ChunkKey) -> Arc<Flight> {
        let flight = Arc::new(Flight::default());
        self.flights.insert(key, flight.clone());
        self.running.insert(key);
        self.filling_now.insert(key);
        flight
    }

    /// The flight of `key` is over.
    pub fn forget_flight(&mut self, key: ChunkKey) {
        self.flights.remove(&key);
        self.running.remove(&key);
        self.filling_now.remove(&key);
    }

    /// Count `len` bytes that came and are right.
    pub fn count(&mut self, len: u64, origin: Origin) {
        match origin {
            Origin::Listed { .. } => {
                self.counters.bytes_fetched = self.counters.bytes_fetched.saturating_add(len)
            }
            Origin::Peer => self.exchange.count(len),
        }
    }

    /// Set a chunk's mark and everything that is counted from it.
    pub fn mark(&mut self, slot: &Slot, key: ChunkKey, to: Chunk) {
        let len = slot.layout.len_of(key.chunk);
        let Some(object) = self.objects.get_mut(key.object.0) else { return };
        let chunk = usize::try_from(key.chunk.0).ok().and_then(|index| object.map.chunks.get_mut(index));
        let Some(chunk) = chunk else { return };
        let (was, is) = (matches!(chunk, Chunk::Present(_)), matches!(to, Chunk::Present(_)));
        let (had, has) = (chunk.crc().is_some(), to.crc().is_some());
        *chunk = to;
        object.dirty = true;
        // Metadata stays: objects of one chunk are small, and everything needs them.
        match (had, has) {
            (false, true) if slot.layout.chunks() > 1 => self.room.came(key, len),
            (true, false) if slot.layout.chunks() > 1 => self.room.went(key, len),
            _ => {}
        }
        match (was, is) {
            (false, true) => {
                object.missing = object.missing.saturating_sub(1);
                self.counters.bytes_done = self.counters.bytes_done.saturating_add(len);
            }
            (true, false) => {
                object.missing = object.missing.saturating_add(1);
                self.counters.bytes_done = self.counters.bytes_done.saturating_sub(len);
                if std::mem::replace(&mut object.whole, Whole::Open) == Whole::Done {
                    self.counters.objects_done = self.counters.objects_done.saturating_sub(1);
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    /// Forget every chunk of an object whose data file is lost.
    pub fn forget_object(&mut self, slot: &Slot, object: ObjectIndex) {
        for chunk in (0..slot.layout.chunks()).map(ChunkIndex) {
            let key = ChunkKey { object, chunk };
            if self.chunk(key).is_some_and(|chunk| chunk != Chunk::Missing) {
                self.mark(slot, key, Chunk::Missing);
            }
        }
    }

    /// Have a chunk that is here checked before its next use.
    pub fn distrust(&mut self, slot: &Slot, key: ChunkKey) {
        let Some(Chunk::Present(crc)) = self.chunk(key) else { return };
        self.mark(slot, key, Chunk::Unverified(crc));
        if let Some(object) = self.objects.get_mut(key.object.0) {
            object.distrusted.insert(key.chunk);
        }
    }

    /// The same for every chunk that no sync covers.
    pub fn distrust_unsynced(&mut self, slot: &Slot, object: ObjectIndex) {
        let unsynced = self.objects.get_mut(object.0).map(|object| std::mem::take(&mut object.unsynced));
        for chunk in unsynced.unwrap_or_default() {
            self.distrust(slot, ChunkKey { object, chunk });
        }
    }

    /// Count a chunk that was found sound, unless it is known from before in this run.
    pub fn note_verified(&mut self, slot: &Slot, key: ChunkKey) {
        let Some(object) = self.objects.get_mut(key.object.0) else { return };
        if !object.distrusted.remove(&key.chunk) {
            self.counters.bytes_from_cache += slot.layout.len_of(key.chunk);
        }
    }

    /// Remember what a failed flight says about its object.
    pub fn note_failure(&mut self, slot: &Slot, index: ObjectIndex, failure: &Failure) {
        let Some(object) = self.objects.get_mut(index.0) else { return };
        let (code, class, detail) = match failure {
            Failure::Closed => return,
            Failure::Corrupt => {
                let error = StoreError::ObjectCorrupt { path: slot.path.clone() };
                (error.code(), error.class(), chain(&error))
            }
            Failure::Source(error) => {
                match error {
                    SourceError::Changed { .. } | SourceError::Gone { .. } => {
                        object.broken = Some(Broken::Source(error.clone()));
                    }
                    SourceError::Denied { .. } | SourceError::Unavailable { .. } => {
                        object.aside = Some(error.clone())
                    }
                }
                (source_code(error), error.class(), chain(error))
            }
        };
        tracing::error!(event = "store.object-failed", object = slot.path, code, detail);
        self.counters.report(Problem { path: slot.path.clone(), code, class, detail });
    }
}

/// Whether `map` has every chunk, and their checksums do not make the one the origin promised.
fn contradicted(slot: &Slot, map: &ChunkMap) -> bool {
    let crcs = map.chunks.iter().map(|chunk| match chunk {
        Chunk::Present(crc) => Some(*crc),
        Chunk::Missing | Chunk::Unverified(_) => None,
    });
    let (Some(promised), Some(crcs)) = (map.object_crc64, crcs.collect::<Option<Vec<_>>>()) else {
        return false;
    };
    let lens = (0..).map(|chunk| slot.layout.len_of(ChunkIndex(chunk)));
    let contradicted = crc64::combine(crcs.into_iter().zip(lens)) != promised;
    if contradicted {
        tracing::error!(event = "object.corrupt", object = slot.path, times = 0);
    }
    contradicted
}
