//! Chunks from other nodes: which of them are theirs to bring, what they are worth, and who is told.
//!
//! The origin stays the truth. A node fetches from it what falls to it ([`Peers::rank`]) and nobody has yet, and gets the rest
//! from whoever has it; what stays away falls to the next in rank after a while, and to everybody in the end. A chunk of a peer
//! counts once the manifest, or else every block of it, has shown that it is the model's (`proof`); until then nobody reads
//! it and nobody is served it. Nothing is resumed with another sender's bytes. Locks: see `engine`; [`Peers`] is asked under
//! the store's lock and answers from memory. Tested in `tests/store_sharing.rs`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use tokio::runtime::Handle;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::Store;
use super::chunkmap::Chunk;
use super::engine::Engine;
use super::flight::{Failure, Flight};
use super::layout::{ChunkIndex, ChunkKey, Layout, ObjectIndex};
use super::source::Urgency;
use super::state::State;
use crate::ciphertext::{EntryId, Judge, Judgement};

/// Chunks of peers on their way at once, for nobody in particular: enough for a handful of peers to be asked while others answer.
pub const FROM_PEERS: usize = 8;

/// What is asked at once of those that everybody asks, the origin and nodes that have everything: what comes in within so long,
/// and no less than so many chunks. A group is only as fast as its members have different chunks to pass on, and over a slow link
/// many at once land all at the end.
const FROM_ORIGIN: (Duration, usize) = (Duration::from_secs(2), 4);
const FROM_WHOLE: (Duration, usize) = (Duration::from_secs(1), 3);

/// How long a node waits for others.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the first byte of a chunk that a reader waits for. Then the origin is asked.
    pub answer: Duration,
    /// For the next bytes of it.
    pub pause: Duration,
    /// For all of a chunk, whoever waits.
    pub chunk: Duration,
    /// While nothing comes in, before it takes over what falls to the next in rank.
    pub turn: Duration,
}

impl Default for Patience {
    /// A peer on the same network answers in a few milliseconds (p2p.md 3.4).
    fn default() -> Self {
        Patience {
            answer: Duration::from_millis(20),
            pause: Duration::from_millis(250),
            // 8 MiB at 140 KB/s: whoever is slower is no help.
            chunk: Duration::from_secs(60),
            turn: Duration::from_secs(3),
        }
    }
}

/// How often a fill is planned at most: what falls to this node changes with time and with who is there, and each plan looks at
/// all that is missing.
pub const PLAN_EVERY: Duration = Duration::from_secs(1);

/// How long peers have to deliver until their rate says something: twice the span that rates are averaged over.
const KNOWN_AFTER: Duration = Duration::from_secs(10);

/// Times that peers are asked for one chunk in vain; then it falls to the origin, for as long as this.
const MISSES: u32 = 2;
const MISSED_FOR: Duration = Duration::from_secs(60);

/// The other nodes of the group. Answers from memory, but for [`Peers::fetch`].
pub trait Peers: Send + Sync + 'static {
    /// Whether any of them can be asked now.
    fn are_there(&self) -> bool;

    /// Who says that it has `chunk`, of those that can be asked for it now.
    fn holder(&self, chunk: ChunkKey) -> Option<Holder>;

    /// How many nodes are before this one in fetching `chunk` from the origin.
    fn rank(&self, chunk: ChunkKey) -> u32;

    /// Ask one of them for bytes `range` of its object, which are `chunk` or some of it.
    fn fetch<'a>(&'a self, chunk: ChunkKey, range: Range<u64>, urgency: &'a Urgency) -> ReceiveFuture<'a>;
}

/// Who has a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// A node that lacks others.
    Part,
    /// Nodes that have everything, alone.
    Whole,
}

/// Future of [`Peers::fetch`].
pub type ReceiveFuture<'a> = Pin<Box<dyn Future<Output = Result<Received<'a>, PeerFailed>> + Send + 'a>>;

/// No peer delivered; the log and the status say which, and why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct PeerFailed(pub String);

/// A chunk on its way from a peer.
pub struct Received<'a> {
    /// Its bytes in order, in frames of any length.
    pub frames: BoxStream<'a, Result<Bytes, PeerFailed>>,
    /// Who sends it.
    pub sender: Arc<dyn Sender>,
}

/// Hears what became of its chunk.
pub trait Sender: Send + Sync + 'static {
    /// It was judged. What is unprovable is not the sender's fault, and is not to be had from peers.
    fn judged(&self, chunk: ChunkKey, judgement: Judgement);
}

/// What a store needs to take chunks from peers.
pub struct Sharing {
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who can tell a model's bytes from others where there is no manifest. Without either, nothing of a peer is taken.
    pub judge: Option<Arc<dyn Judge>>,
    /// The files that peers may send; everything else comes from the origin alone.
    pub shared: Vec<EntryId>,
    /// Its default outside of tests.
    pub patience: Patience,
}

/// The same, by object.
pub struct Shared {
    pub peers: Arc<dyn Peers>,
    pub judge: Option<Arc<dyn Judge>>,
    pub patience: Patience,
    /// By object: whether peers may send it, and its first bytes once they are known.
    objects: Vec<(bool, OnceLock<Vec<u8>>)>,
    order: RandomState,
}

type Offers = BTreeMap<u64, ChunkKey>;

/// What changes of it. Under the engine's lock.
pub struct Exchange {
    /// Chunks that peers are believed to have, in an order that is no other node's: those of [`Holder::Part`], and those of
    /// [`Holder::Whole`].
    offered: (Offers, Offers),
    /// When something last came in, from wherever, or nothing was to come.
    moved: Instant,
    /// Bytes that came from peers.
    pub bytes: u64,
    /// When the first of them came.
    first: Option<Instant>,
    /// Bytes per second: from peers, and from the origin when it was last busy.
    rates: (u64, u64),
    /// When the fill was last planned.
    planned: Option<Instant>,
    /// Chunks that came from peers and only their blocks speak for, while the object is not whole.
    taken: HashMap<ChunkKey, Arc<dyn Sender>>,
    /// Chunks that peers cannot prove.
    barred: HashSet<ChunkKey>,
    /// How often peers did not bring a chunk, and when they last did not.
    missed: HashMap<ChunkKey, (u32, Instant)>,
    /// Objects whose checksum was not the origin's with what peers had sent.
    barred_objects: HashSet<ObjectIndex>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("offered", &(self.offered.0.len(), self.offered.1.len()))
            .field("rates", &self.rates)
            .finish_non_exhaustive()
    }
}

impl Default for Exchange {
    fn default() -> Self {
        Exchange {
            offered: (Offers::new(), Offers::new()),
            moved: Instant::now(),
            bytes: 0,
            first: None,
            rates: (0, 0),
            planned: None,
            taken: HashMap::new(),
            barred: HashSet::new(),
            missed: HashMap::new(),
            barred_objects: HashSet::new(),
        }
    }
}

impl Exchange {
    /// Something came in.
    pub fn moved(&mut self) {
        self.moved = Instant::now();
    }

    /// Measured, [`upkeep`](super::upkeep)'s five times a second: bytes per second from peers and from the origin. What the
    /// origin can is remembered while it is not asked, and believed less and less, half of it after 35 seconds.
    pub fn note_rates(&mut self, peers: u64, origin: u64) {
        self.rates = (peers, origin.max(self.rates.1.saturating_sub(self.rates.1 / 256)));
    }

    /// How many chunks of `len` bytes the fill asks at once: of the origin, where others pass on what it brings, and of nodes
    /// that have everything.
    pub fn at_once(&self, shared: &Shared, len: u64) -> (usize, usize) {
        let (peers, origin) = self.rates;
        let alone = self.is_slow() || !shared.peers.are_there();
        let of_origin = if alone { usize::MAX } else { at_once(FROM_ORIGIN, origin, len) };
        (of_origin, at_once(FROM_WHOLE, peers, len))
    }

    /// The next chunk that peers have; of those that have everything only if `whole`, but then first.
    fn next_offer(&mut self, whole: bool) -> Option<ChunkKey> {
        let (of_part, of_whole) = &mut self.offered;
        let first = if whole { of_whole.pop_first() } else { None };
        first.or_else(|| of_part.pop_first()).map(|(_, key)| key)
    }

    /// `holder` has `key`.
    fn offer(&mut self, order: u64, key: ChunkKey, holder: Holder) {
        let (of_part, of_whole) = &mut self.offered;
        match holder {
            Holder::Part => {
                of_whole.remove(&order);
                of_part.insert(order, key);
            }
            Holder::Whole => drop(of_whole.insert(order, key)),
        }
    }

    /// Whether it is time to plan again what the fill fetches from the origin; if so, it is noted that this was done now.
    pub fn plan_again(&mut self) -> bool {
        let due = self.planned.is_none_or(|at| at.elapsed() >= PLAN_EVERY);
        if due {
            self.planned = Some(Instant::now());
        }
        due
    }

    /// `key` is the origin's alone from now on.
    pub fn bar(&mut self, key: ChunkKey) {
        self.barred.insert(key);
    }

    /// No peer brought `key`, though one was asked.
    pub fn miss(&mut self, key: ChunkKey) {
        let (times, at) = self.missed.entry(key).or_insert((0, Instant::now()));
        (*times, *at) = (times.saturating_add(1), Instant::now());
    }

    /// Peers have been asked in vain for `key` often enough for now.
    fn is_missed(&self, key: ChunkKey) -> bool {
        self.missed.get(&key).is_some_and(|(times, at)| *times >= MISSES && at.elapsed() < MISSED_FOR)
    }

    /// `key` came from a peer and rests on its blocks alone.
    pub fn take(&mut self, key: ChunkKey, sender: Arc<dyn Sender>) {
        self.taken.insert(key, sender);
    }

    /// `object` is the origin's alone from now on.
    pub fn bar_object(&mut self, object: ObjectIndex) {
        self.barred_objects.insert(object);
    }

    /// The chunks of `object` that rest on their blocks alone; peers are not asked for it again.
    pub fn take_back(&mut self, object: ObjectIndex) -> Vec<(ChunkKey, Arc<dyn Sender>)> {
        self.bar_object(object);
        self.taken.extract_if(|key, _| key.object == object).collect()
    }

    /// `object` is whole, and what the origin has.
    pub fn is_whole(&mut self, object: ObjectIndex) {
        self.taken.retain(|key, _| key.object != object);
    }

    /// Whether peers are believed to have something that is wanted here.
    pub fn has_offers(&self) -> bool {
        !self.offered.0.is_empty() || !self.offered.1.is_empty()
    }

    /// Who has `key`, of those that may be asked for it.
    pub fn holder(&self, shared: &Shared, key: ChunkKey) -> Option<Holder> {
        let may_come = shared.may_send(key.object)
            && !self.barred.contains(&key)
            && !self.is_missed(key)
            && !self.barred_objects.contains(&key.object);
        may_come.then(|| shared.peers.holder(key)).flatten()
    }

    /// Peers have delivered for a while, and less than half of what the origin did: it does not pay to wait for them.
    pub fn is_slow(&self) -> bool {
        let (peers, origin) = self.rates;
        let known = self.first.is_some_and(|first| first.elapsed() >= KNOWN_AFTER);
        known && peers.saturating_mul(2) < origin
    }

    /// A chunk of `len` bytes came from a peer.
    pub fn count(&mut self, len: u64) {
        self.bytes = self.bytes.saturating_add(len);
        self.first.get_or_insert_with(Instant::now);
    }
}

/// Chunks of `len` bytes that come in within a span at `rate` bytes per second, and no less than so many.
fn at_once((span, least): (Duration, usize), rate: u64, len: u64) -> usize {
    let chunks = rate.saturating_mul(span.as_secs()) / len.max(1);
    usize::try_from(chunks).unwrap_or(usize::MAX).max(least)
}

impl Shared {
    /// Whether peers may send `object`, and are sent it.
    fn may_send(&self, object: ObjectIndex) -> bool {
        self.objects.get(object.0).is_some_and(|(shared, _)| *shared)
    }

    /// Where the first bytes of a shared object are kept.
    pub fn head_of(&self, object: ObjectIndex) -> Option<&OnceLock<Vec<u8>>> {
        self.objects.get(object.0).map(|(_, head)| head)
    }

    /// Whether the origin is to be asked for `key`, which nobody waits for.
    pub fn falls_to_us(&self, exchange: &Exchange, key: ChunkKey) -> bool {
        if exchange.is_slow() || !self.may_send(key.object) {
            return true;
        }
        let level = exchange.moved.elapsed().as_millis() / self.patience.turn.as_millis().max(1);
        exchange.holder(self, key).is_none() && u128::from(self.peers.rank(key)) <= level
    }
}

impl State {
    /// `key` is on offer if anybody has it.
    fn offer(&mut self, shared: &Shared, key: ChunkKey) {
        if let Some(holder) = self.exchange.holder(shared, key) {
            self.exchange.offer(shared.order.hash_one(key), key, holder);
        }
    }
}

impl Store {
    /// From now on take chunks from peers too. Once in the life of a store.
    pub fn share(&self, sharing: Sharing, handle: &Handle) {
        let Sharing { peers, judge, shared, patience } = sharing;
        let mut objects: Vec<(bool, OnceLock<Vec<u8>>)> = Vec::new();
        objects.resize_with(self.engine.slots.len(), Default::default);
        for (object, _) in shared.iter().filter_map(|id| self.object_of(*id)) {
            if let Some((shared, _)) = objects.get_mut(object.0) {
                *shared = true;
            }
        }
        let shared = Shared { peers, judge, patience, objects, order: RandomState::new() };
        self.engine.lock().exchange.moved();
        if self.engine.shared.set(shared).is_ok() {
            self.supervise_peers(handle);
        }
    }

    /// Peers say that they have these chunks, or a peer has come or gone.
    pub fn offered(&self, chunks: impl Iterator<Item = ChunkKey>) {
        let Some(shared) = self.engine.shared.get() else { return };
        let mut guard = self.engine.lock();
        let state = &mut *guard;
        for key in chunks {
            if state.asks_peers(key) {
                state.offer(shared, key);
            }
        }
        drop(guard);
        self.engine.work.notify_waiters();
    }

    /// The chunks of `object` that may be served on, one `bool` for each; empty for an object that is not shared.
    pub fn served(&self, object: ObjectIndex) -> Vec<bool> {
        let may_send = self.engine.shared.get().is_some_and(|shared| shared.may_send(object));
        let state = self.engine.lock();
        match state.object(object).filter(|object| may_send && object.broken.is_none()) {
            Some(object) => {
                object.map.chunks.iter().map(|chunk| matches!(chunk, Chunk::Present(_))).collect()
            }
            None => Vec::new(),
        }
    }

    /// Number of objects; they are counted in the order in which the store was given them.
    pub fn objects(&self) -> usize {
        self.engine.slots.len()
    }

    /// How each object is cut, in the same order.
    pub fn layouts(&self) -> Vec<Layout> {
        self.engine.slots.iter().map(|slot| slot.layout).collect()
    }

    /// Ends when chunks may have come or gone since it was made.
    pub fn changed(&self) -> Notified<'_> {
        self.engine.landed.notified()
    }

    /// How many chunks the files `ids` have together.
    pub fn chunks_in(&self, ids: &[EntryId]) -> u64 {
        let objects = ids.iter().filter_map(|id| self.object_of(*id));
        objects.fold(0, |sum, (_, slot)| sum.saturating_add(slot.layout.chunks()))
    }

    /// The bytes of a chunk that may be served on; `None` where it is not here (any more). Blocking.
    pub fn read_chunk(&self, key: ChunkKey) -> Option<Vec<u8>> {
        let slot = self.engine.slot(key.object)?;
        self.engine.shared.get().filter(|shared| shared.may_send(key.object))?;
        let range = slot.layout.range(key.chunk);
        self.engine.read_present(slot, key.object, &range)
    }
}

impl Engine {
    /// How many workers bring something for the fill: from the origin, and from nodes that have everything.
    pub fn at_once(&self, state: &State) -> (usize, usize) {
        let shared = self.shared.get();
        let (origin, whole) = shared.map_or((usize::MAX, FROM_PEERS), |shared| {
            state.exchange.at_once(shared, self.options.chunk_len)
        });
        (origin.min(self.options.concurrency), whole.min(FROM_PEERS))
    }

    /// Bring what peers offer, for ever. `number`: of the worker, from 0.
    pub async fn work_with_peers(self: Arc<Self>, number: usize) {
        loop {
            let queued = self.work.notified();
            tokio::pin!(queued);
            queued.as_mut().enable();
            let Some((key, flight)) = self.take_offered(number) else {
                queued.await;
                continue;
            };
            let outcome = match self.receive_from_peer(key, &flight).await {
                Some(ready) => Ok(ready),
                None if self.release(key, &flight) => continue,
                // A reader has joined.
                None => self.deliver(key, &flight).await,
            };
            self.land(key, &flight, outcome);
        }
    }

    /// The next chunk that peers offer and the fill wants.
    fn take_offered(&self, worker: usize) -> Option<(ChunkKey, Arc<Flight>)> {
        let shared = self.shared.get()?;
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.closed
            || !state.caching
            || !state.room.may_fill(self.options.chunk_len, state.filling_now.len())
        {
            return None;
        }
        let whole = worker < self.at_once(state).1;
        let (plan, lacking) = state.choice(Some(shared));
        let is_ours = |key| lacking.holder(key).is_some_and(|holder| whole || holder == Holder::Part);
        if let Some(key) = plan.next_advanced(is_ours) {
            return Some((key, state.depart(key)));
        }
        loop {
            let key = state.exchange.next_offer(whole)?;
            match state.exchange.holder(shared, key).filter(|_| state.asks_peers(key)) {
                Some(Holder::Whole) if !whole => state.offer(shared, key),
                Some(_) => return Some((key, state.depart(key))),
                None => {}
            }
        }
    }

    /// Let go of a flight that no peer could serve, unless somebody has come to wait for it.
    fn release(&self, key: ChunkKey, flight: &Flight) -> bool {
        let mut state = self.lock();
        if flight.urgency.is_raised() {
            return false;
        }
        state.forget_flight(key);
        state.exchange.miss(key);
        drop(state);
        flight.land(Err(Failure::Closed));
        self.landed.notify_waiters();
        true
    }

    /// Everything peers have that is still missing is on offer. For what was passed over while it was on its way, and given up.
    pub fn offer_again(&self, state: &mut State) {
        let Some(shared) = self.shared.get().filter(|_| !state.exchange.has_offers()) else { return };
        for (index, slot) in self.slots.iter().enumerate() {
            let object = ObjectIndex(index);
            for chunk in (0..slot.layout.chunks()).map(ChunkIndex) {
                let key = ChunkKey { object, chunk };
                if state.asks_peers(key) {
                    state.offer(shared, key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_at_once_grows_with_what_comes_in() {
        let (len, span) = (8 << 20, Duration::from_secs(2));
        let at_once = |rate| at_once((span, 4), rate, len);
        assert_eq!([0, 16 << 20, 20 << 20, 1 << 30].map(at_once), [4, 4, 5, 256]);
    }
}
