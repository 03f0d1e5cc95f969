//! Who has what: the one place where the links write, and the store asks.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::asking::{Job, Queues};
use super::error::PeerError;
use super::wire::Have;
use crate::ciphertext::Judgement;
use crate::error::{Fault, chain};
use crate::store::{ChunkIndex, ChunkKey, Holder, Layout, ObjectIndex, Peers, ReceiveFuture, Urgency};

/// How long a peer that sent wrong bytes is not asked again. Each time costs as many chunks as are asked of one peer at once.
const DISTRUSTED_FOR: Duration = Duration::from_secs(600);

/// Chunks in a row that a peer does not bring until it is left alone, and for how long.
const FAILURES: u32 = 3;
const RESTS_FOR: Duration = Duration::from_secs(60);

/// How long nodes that start together get to find each other; whoever answers needs a fraction of it, attestation included.
const SETTLING: Duration = Duration::from_millis(1500);

/// How long nothing comes in until also those that have everything are asked for what falls to others: they are asked for each
/// chunk once, and the group passes it on.
const PASSING_ON: Duration = Duration::from_secs(3);

/// How a peer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is dialled, for the first time or again, and has not been reached yet.
    Dialling,
    /// It is asked and served.
    Connected,
    /// It is this machine.
    Itself,
    /// The last attempt failed: code and text, with what was expected and what came.
    Failed(&'static str, String),
}

/// What crossed, in bytes of chunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came from it and was right.
    pub received: u64,
    /// Went to it.
    pub sent: u64,
    /// Chunks from it that were wrong.
    pub wrong: u64,
    /// Chunks that it was asked for and did not bring.
    pub failed: u64,
}

/// A peer as people are shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Where it is dialled.
    pub address: SocketAddr,
    /// How it stands.
    pub standing: Standing,
    /// Not asked, because it sent wrong bytes.
    pub distrusted: bool,
    /// Chunks it says it has.
    pub chunks: u64,
    /// What crossed.
    pub counts: Counts,
}

struct Peer {
    address: SocketAddr,
    standing: Standing,
    node: Option<[u8; 16]>,
    /// By object.
    have: Vec<Vec<u8>>,
    chunks: u64,
    distrusted_until: Option<Instant>,
    /// Chunks in a row that it did not bring, and until when it is left alone for that.
    in_a_row: u32,
    rests_until: Option<Instant>,
    outstanding: usize,
    counts: Counts,
    jobs: mpsc::UnboundedSender<Job>,
    urgent: mpsc::UnboundedSender<Job>,
}

/// What is known of the group.
pub struct Board {
    /// Random name of this process.
    pub node: [u8; 16],
    /// SHA-256 over the list of objects.
    pub model: [u8; 32],
    /// Of each object.
    layouts: Vec<Layout>,
    /// Chunks that whoever has everything has.
    total: u64,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    peers: Vec<Peer>,
    /// When a chunk last came from a peer.
    arrival: Instant,
}

impl Peer {
    fn is_asked(&self) -> bool {
        let over = |until: Option<Instant>| until.is_none_or(|until| until <= Instant::now());
        self.standing == Standing::Connected && over(self.distrusted_until) && over(self.rests_until)
    }

    fn has(&self, chunk: ChunkKey) -> bool {
        let byte = usize::try_from(chunk.chunk.0 / 8).ok();
        let byte = byte.and_then(|byte| self.have.get(chunk.object.0)?.get(byte));
        byte.is_some_and(|byte| byte >> (chunk.chunk.0 % 8) & 1 == 1)
    }
}

impl Board {
    /// `layouts`: of each object. `total`: chunks of those that are shared.
    ///
    /// # Errors
    /// [`PeerError::Random`].
    pub fn new(
        model: [u8; 32],
        layouts: Vec<Layout>,
        total: u64,
        peers: &[SocketAddr],
    ) -> Result<(Self, Vec<Queues>), PeerError> {
        let mut node = [0; 16];
        getrandom::fill(&mut node).map_err(PeerError::Random)?;
        let mut queues = Vec::new();
        let peer = |address: &SocketAddr| {
            let (jobs, of_jobs) = mpsc::unbounded_channel();
            let (urgent, of_urgent) = mpsc::unbounded_channel();
            queues.push(Queues { jobs: of_jobs, urgent: of_urgent });
            Peer {
                address: *address,
                standing: Standing::Dialling,
                node: None,
                have: vec![Vec::new(); layouts.len()],
                chunks: 0,
                distrusted_until: None,
                in_a_row: 0,
                rests_until: None,
                outstanding: 0,
                counts: Counts::default(),
                jobs,
                urgent,
            }
        };
        let peers = peers.iter().map(peer).collect();
        let state = Mutex::new(State { peers, arrival: Instant::now() });
        Ok((Board { node, model, layouts, total, began: Instant::now(), state }, queues))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of chunks of an object.
    pub fn chunks_of(&self, object: usize) -> Option<u64> {
        self.layouts.get(object).map(Layout::chunks)
    }

    /// Length of a chunk in bytes; `None` outside of the object.
    pub fn len_of(&self, chunk: ChunkKey) -> Option<u64> {
        let len = self.layouts.get(chunk.object.0)?.len_of(chunk.chunk);
        Some(len).filter(|len| *len > 0)
    }

    /// Where a chunk begins in its object.
    pub(super) fn start_of(&self, chunk: ChunkKey) -> Option<u64> {
        Some(self.layouts.get(chunk.object.0)?.range(chunk.chunk).start)
    }

    /// Where a peer is dialled.
    pub fn address(&self, index: usize) -> Option<SocketAddr> {
        self.lock().peers.get(index).map(|peer| peer.address)
    }

    /// The peer at this address, whatever port it dials from.
    pub fn peer_at(&self, address: IpAddr) -> Option<usize> {
        let canonical = address.to_canonical();
        self.lock().peers.iter().position(|peer| peer.address.ip().to_canonical() == canonical)
    }

    /// A peer has said hello.
    pub fn connected(&self, index: usize, node: [u8; 16]) {
        if let Some(peer) = self.lock().peers.get_mut(index) {
            tracing::info!(event = "peer.connected", peer = %peer.address);
            (peer.standing, peer.node) = (Standing::Connected, Some(node));
        }
    }

    /// The connection to a peer is gone, or was not to be had.
    pub fn gone(&self, index: usize, error: &PeerError) {
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(index) else { return };
        let standing = match error {
            PeerError::Itself => Standing::Itself,
            error => Standing::Failed(error.code(), chain(error)),
        };
        if standing != peer.standing && standing != Standing::Itself {
            tracing::warn!(event = error.code(), peer = %peer.address, hint = error.hint(), "peer {}: {}", peer.address, chain(error));
        }
        peer.standing = standing;
        (peer.node, peer.chunks) = (None, 0);
        peer.have.iter_mut().for_each(Vec::clear);
    }

    /// This node takes part no more: nobody has anything, and everything falls to the origin.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.peers.clear();
    }

    /// A peer has told what it has of an object; the chunks that are news.
    pub fn heard(&self, index: usize, have: Have) -> Vec<ChunkKey> {
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(index) else { return Vec::new() };
        let Some(before) = peer.have.get_mut(have.object) else { return Vec::new() };
        let new =
            |at: &usize| have.bitmap.get(*at).copied().unwrap_or(0) & !before.get(*at).copied().unwrap_or(0);
        let mut news = Vec::new();
        for at in 0..have.bitmap.len() {
            let (first, new) = (u64::try_from(at).unwrap_or(u64::MAX).saturating_mul(8), new(&at));
            let bits = (0..8u64).filter(|bit| new >> bit & 1 == 1);
            news.extend(bits.map(|bit| ChunkKey {
                object: ObjectIndex(have.object),
                chunk: ChunkIndex(first.saturating_add(bit)),
            }));
        }
        let ones = |bitmap: &[u8]| bitmap.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
        peer.chunks = peer.chunks.saturating_sub(ones(before)).saturating_add(ones(&have.bitmap));
        *before = have.bitmap;
        news
    }

    /// A peer has not got a chunk that it said it had.
    pub fn lacks(&self, index: usize, chunk: ChunkKey) {
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(index).filter(|peer| peer.has(chunk)) else { return };
        let byte = usize::try_from(chunk.chunk.0 / 8).ok();
        if let Some(byte) = byte.and_then(|byte| peer.have.get_mut(chunk.object.0)?.get_mut(byte)) {
            *byte &= !(1 << (chunk.chunk.0 % 8));
            peer.chunks = peer.chunks.saturating_sub(1);
        }
    }

    /// Bytes went to a peer.
    pub fn sent(&self, index: usize, bytes: u64) {
        if let Some(peer) = self.lock().peers.get_mut(index) {
            peer.counts.sent = peer.counts.sent.saturating_add(bytes);
        }
    }

    /// Every peer, in the order of the configuration.
    pub fn shown(&self) -> Vec<Shown> {
        let state = self.lock();
        let shown = |peer: &Peer| Shown {
            address: peer.address,
            standing: peer.standing.clone(),
            distrusted: peer.distrusted_until.is_some_and(|until| until > Instant::now()),
            chunks: peer.chunks,
            counts: peer.counts,
        };
        state.peers.iter().map(shown).collect()
    }

    /// The peer to ask: rather one that has a part than one that has all, and the one with the least to do.
    pub(super) fn choose(
        &self,
        chunk: ChunkKey,
        urgent: bool,
    ) -> Option<(usize, mpsc::UnboundedSender<Job>)> {
        let mut state = self.lock();
        let total = self.total;
        let asked = state.peers.iter_mut().enumerate().filter(|(_, peer)| peer.is_asked() && peer.has(chunk));
        let (index, peer) = asked.min_by_key(|(index, peer)| {
            let score = score(peer.node.as_ref(), chunk);
            (!urgent && peer.chunks >= total, peer.outstanding, score, *index)
        })?;
        peer.outstanding = peer.outstanding.saturating_add(1);
        Some((index, if urgent { peer.urgent.clone() } else { peer.jobs.clone() }))
    }

    /// What a peer sent, `len` bytes of `chunk`, was judged.
    pub(super) fn judged(&self, index: usize, chunk: ChunkKey, len: u64, judgement: Judgement) {
        let mut state = self.lock();
        if judgement == Judgement::Genuine {
            state.arrival = Instant::now();
        }
        let Some(peer) = state.peers.get_mut(index) else { return };
        match judgement {
            Judgement::Genuine => {
                peer.counts.received = peer.counts.received.saturating_add(len);
                peer.in_a_row = 0;
            }
            Judgement::Unprovable => {}
            Judgement::Forged => {
                peer.counts.wrong = peer.counts.wrong.saturating_add(1);
                peer.distrusted_until = Some(Instant::now() + DISTRUSTED_FOR);
                let address = peer.address;
                drop(state);
                tracing::error!(
                    event = "peer.wrong", peer = %address, object = chunk.object.0, chunk = chunk.chunk.0,
                    "peer {address} sent bytes that are not the model's, and is not asked for {} s", DISTRUSTED_FOR.as_secs()
                );
            }
        }
    }

    /// A peer is done with what it was asked for; `failed`: it did not bring it, or not in time.
    pub(super) fn done(&self, index: usize, failed: bool) {
        let mut state = self.lock();
        let Some(peer) = state.peers.get_mut(index) else { return };
        peer.outstanding = peer.outstanding.saturating_sub(1);
        if failed {
            peer.counts.failed = peer.counts.failed.saturating_add(1);
            peer.in_a_row = peer.in_a_row.saturating_add(1);
        }
        if peer.in_a_row >= FAILURES {
            (peer.in_a_row, peer.rests_until) = (0, Some(Instant::now() + RESTS_FOR));
        }
    }
}

/// A number that is the same on all nodes, and no other node's: the highest fetches a chunk first (rendezvous hashing).
fn score(node: Option<&[u8; 16]>, chunk: ChunkKey) -> u64 {
    let Some(node) = node else { return 0 };
    let (low, high) = node.split_at(8);
    let number = |half: &[u8]| half.try_into().map(u64::from_le_bytes).unwrap_or(0);
    let object = u64::try_from(chunk.object.0).unwrap_or(u64::MAX);
    mix(mix(number(low) ^ object.rotate_left(40)) ^ number(high) ^ chunk.chunk.0)
}

/// The finaliser of SplitMix64: every bit of what goes in is in every bit of what comes out.
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Peers for Arc<Board> {
    fn are_there(&self) -> bool {
        self.lock().peers.iter().any(Peer::is_asked)
    }

    fn holder(&self, chunk: ChunkKey) -> Option<Holder> {
        let state = self.lock();
        let mut holders = state.peers.iter().filter(|peer| peer.is_asked() && peer.has(chunk)).peekable();
        holders.peek()?;
        if holders.any(|peer| peer.chunks < self.total) {
            return Some(Holder::Part);
        }
        let ours = state.arrival.elapsed() >= PASSING_ON || self.rank_among(&state, chunk) == 0;
        ours.then_some(Holder::Whole)
    }

    fn rank(&self, chunk: ChunkKey) -> u32 {
        self.rank_among(&self.lock(), chunk)
    }

    fn fetch<'a>(&'a self, chunk: ChunkKey, range: Range<u64>, urgency: &'a Urgency) -> ReceiveFuture<'a> {
        Box::pin(self.ask(chunk, range, urgency.is_raised()))
    }
}

impl Board {
    fn rank_among(&self, state: &State, chunk: ChunkKey) -> u32 {
        let ours = score(Some(&self.node), chunk);
        let before = state
            .peers
            .iter()
            .filter(|peer| peer.is_asked() && !peer.has(chunk) && score(peer.node.as_ref(), chunk) > ours);
        // While it is not known who is there, nodes that start together would all begin at the same end. Nobody waits longer for
        // that than for any other turn.
        let unknown = self.began.elapsed() < SETTLING
            && state.peers.iter().any(|peer| peer.standing == Standing::Dialling);
        u32::try_from(before.count()).unwrap_or(u32::MAX).saturating_add(u32::from(unknown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::asking::Asked;
    use crate::store::Sender as _;

    fn board(peers: u8) -> Arc<Board> {
        let addresses: Vec<SocketAddr> = (0..peers).map(|at| ([10, 0, 0, at], 1).into()).collect();
        // An object of 20 chunks of 10 bytes, the last of which has 3, and one that is not shared.
        let (board, _queues) =
            Board::new([0; 32], vec![Layout::new(193, 10), Layout::new(30, 10)], 20, &addresses).unwrap();
        (0..peers).for_each(|at| board.connected(at.into(), [at + 1; 16]));
        Arc::new(board)
    }

    fn key(chunk: u64) -> ChunkKey {
        ChunkKey { object: ObjectIndex(0), chunk: ChunkIndex(chunk) }
    }

    fn bitmap(chunks: impl Fn(usize) -> bool) -> Have {
        Have::of(0, &(0..20).map(chunks).collect::<Vec<_>>())
    }

    #[test]
    fn each_chunk_falls_to_one_node_first() {
        let board = board(3);
        let ranks: Vec<u32> = (0..20).map(|chunk| board.rank(key(chunk))).collect();
        assert!(
            ranks.iter().all(|rank| *rank < 4) && ranks.contains(&0) && ranks.iter().any(|rank| *rank > 0)
        );
        // Who has a chunk is not before anybody in fetching it, nor is who is gone.
        (0..3).for_each(|at| drop(board.heard(at, bitmap(|_| true))));
        assert!((0..20).all(|chunk| board.rank(key(chunk)) == 0));
    }

    #[test]
    fn nothing_falls_to_a_node_that_has_not_looked_who_is_there() {
        let (board, _queues) =
            Board::new([0; 32], vec![Layout::new(193, 10)], 20, &[([10, 0, 0, 1], 1).into()]).unwrap();
        let board = Arc::new(board);
        assert!((0..20).all(|chunk| board.rank(key(chunk)) == 1));
        board.gone(0, &PeerError::Silent { secs: 1 });
        assert!((0..20).all(|chunk| board.rank(key(chunk)) == 0));
    }

    #[test]
    fn news_are_the_chunks_that_were_not_there() {
        let board = board(2);
        assert_eq!(board.heard(0, bitmap(|at| at < 2)), [key(0), key(1)]);
        assert_eq!(board.heard(0, bitmap(|at| at < 2 || at == 17)), [key(17)]);
        assert_eq!(board.heard(0, bitmap(|_| false)), []);
        assert_eq!(board.heard(0, Have { object: 2, bitmap: vec![1] }), [], "no such object");
        assert_eq!(board.shown()[0].chunks, 0);
    }

    #[test]
    fn peers_that_lie_or_are_gone_are_not_asked() {
        let board = board(2);
        board.heard(0, bitmap(|at| at == 3));
        assert!(board.holder(key(3)).is_some() && board.holder(key(4)).is_none());
        let asked = Asked::new(board.clone(), 0, 10, false);
        asked.judged(key(3), Judgement::Forged);
        assert!(board.holder(key(3)).is_none() && board.shown()[0].distrusted);
        board.heard(1, bitmap(|at| at == 3));
        assert_eq!(board.choose(key(3), false).unwrap().0, 1);
        board.gone(1, &PeerError::Silent { secs: 1 });
        assert!(board.holder(key(3)).is_none());
        let failed = Standing::Failed("peer.silent", "said nothing for 1 s".into());
        assert_eq!(board.shown()[1].standing, failed);
    }

    #[test]
    fn peer_that_does_not_deliver_is_left_alone_for_a_while() {
        let board = board(1);
        board.heard(0, bitmap(|at| at == 3));
        let ask = || Asked::new(board.clone(), 0, 10, false);
        drop((ask(), ask()));
        ask().judged(key(3), Judgement::Genuine);
        drop((ask(), ask()));
        assert!(board.holder(key(3)).is_some(), "not three in a row");
        drop(ask());
        assert!(board.holder(key(3)).is_none() && board.shown()[0].counts.failed == 5);
    }

    #[test]
    fn node_with_a_part_is_asked_before_one_with_all() {
        let board = board(2);
        board.heard(0, bitmap(|_| true));
        board.heard(1, bitmap(|at| at == 3));
        assert_eq!(board.choose(key(3), false).unwrap().0, 1);
        // A reader takes whoever has the least to do.
        assert_eq!(board.choose(key(3), true).unwrap().0, 0);
        assert_eq!(board.holder(key(3)), Some(Holder::Part));
        // What only a full one has, who comes first fetches, and the others wait for them.
        let ours: Vec<u64> = (0..20).filter(|chunk| board.rank(key(*chunk)) == 0).collect();
        assert!(
            (0..20)
                .filter(|chunk| *chunk != 3)
                .all(|chunk| board.holder(key(chunk)).is_some() == ours.contains(&chunk))
        );
    }

    #[test]
    fn last_chunk_is_shorter() {
        let board = board(1);
        assert_eq!(
            [0, 18, 19, 20].map(|chunk| board.len_of(key(chunk))),
            [Some(10), Some(10), Some(3), None]
        );
    }
}
