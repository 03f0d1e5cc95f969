//! A few bytes of a chunk, straight to the reader who waits for them.
//!
//! Who reads here and there, as who looks at the heads of shards does, waits for 8 MiB otherwise, behind everything else on the
//! line. The first read out of nowhere in a chunk fetches what it asks for and no more; nothing of it is kept. So do those that
//! follow there, while the fill brings the chunk, before most that nobody waits for; where nothing is filled, the second waits for
//! the chunk. So does who reads through. Not where a manifest speaks for chunks: it says nothing of a part of one. Locks: see
//! `engine`. Tested in `tests/store_direct.rs`.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, TryStreamExt};
use tokio::sync::oneshot;

use super::Store;
use super::chunkmap::Chunk;
use super::engine::{Engine, Slot, blocking};
use super::landing::Origin;
use super::layout::{ChunkIndex, ChunkKey, Piece};
use super::sharing::{Received, Shared};
use super::source::AT_ONCE;
use crate::ciphertext::Judgement;

/// What a request of its own has to save, in bytes: with less than that the chunk is as good as here.
const WORTH: u64 = 1 << 20;

/// Most that is read past the store in a row, in bytes: twice 1 MiB, in whole blocks of the format. Of reads here and there some
/// happen to be side by side.
const MOST: u64 = 2 * ((1 << 20) + (64 << 10));

/// Requests of one read that come side by side are at most so far from each other, in bytes: another request of a mount, 512 KiB in
/// whole blocks of the format, may come after those around it.
const NEAR: u64 = MOST / 4;

/// How long the next request of one read takes to come, where it does not begin where the last one ended.
const SIDE_BY_SIDE: Duration = Duration::from_millis(20);

/// Less than a block of the format, in bytes, is no place where somebody reads: the header of a file, before any of its content.
const HEADER: u64 = 4 << 10;

/// Readers of one object that are told from each other.
const READERS: usize = 8;

/// Longest that a reader waits for it, before it waits for the chunk.
const LIMIT: Duration = Duration::from_secs(2);

/// Where readers of one object have been.
#[derive(Debug, Default)]
pub struct Trail {
    /// What each of them read in a row, the latest last.
    rows: VecDeque<Row>,
    /// Bytes of a chunk that were read past the store.
    spent: HashMap<ChunkIndex, u64>,
}

/// Requests of one reader.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    range: Range<u64>,
    /// Bytes asked for in it, again and again where they were.
    read: u64,
    /// When the last of them came.
    last: Instant,
}

impl Row {
    fn new(range: &Range<u64>, now: Instant) -> Self {
        Row { range: range.clone(), read: range.end.saturating_sub(range.start), last: now }
    }

    /// Whether a request for `range` that comes `now` is the same reader's.
    fn goes_on(&self, range: &Range<u64>, now: Instant) -> bool {
        let gap = range.start.saturating_sub(self.range.end).max(self.range.start.saturating_sub(range.end));
        let touches = self.range.end == range.start || range.end == self.range.start;
        touches || (gap <= NEAR && now.saturating_duration_since(self.last) <= SIDE_BY_SIDE)
    }

    fn join(&mut self, other: &Row) {
        self.range = self.range.start.min(other.range.start)..self.range.end.max(other.range.end);
        self.read = self.read.saturating_add(other.read);
    }
}

/// Who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comes {
    /// Somebody who was not there before.
    Anew,
    /// Another request of the same read.
    On,
    /// Somebody who reads through.
    Through,
}

impl Trail {
    fn comes(&mut self, range: &Range<u64>, now: Instant) -> Comes {
        // The kernel cuts one read into several requests, and brings them side by side, in any order.
        let (mut row, before) = (Row::new(range, now), self.rows.len());
        self.rows.retain(|other| {
            let goes_on = other.goes_on(range, now);
            if goes_on {
                row.join(other);
            }
            !goes_on
        });
        let comes = match row.read {
            read if read > MOST => Comes::Through,
            _ if self.rows.len() < before => Comes::On,
            _ => Comes::Anew,
        };
        if self.rows.len() == READERS {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
        comes
    }
}

/// Bytes that were asked for.
pub(super) struct Direct {
    until: Instant,
    bytes: Receiver<Option<Vec<u8>>>,
}

impl Direct {
    /// Wait for them, and fill `buf` with them. `false`: they did not come, or not in time. Blocking.
    pub(super) fn fill(self, buf: &mut [u8]) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        let bytes = self.bytes.recv_timeout(left).ok().flatten().filter(|bytes| bytes.len() == buf.len());
        bytes.is_some_and(|bytes| {
            buf.copy_from_slice(&bytes);
            true
        })
    }
}

impl Store {
    /// Ask for `piece` of `key` without the rest of the chunk, if that is the thing to do.
    pub(super) fn ask_direct(&self, slot: &Slot, key: ChunkKey, piece: &Piece) -> Option<Direct> {
        let range = piece.offset..piece.offset.saturating_add(piece.len);
        if !self.engine.goes_direct(slot, key, &range) {
            return None;
        }
        let (tell, bytes) = sync_channel(1);
        self.handle.spawn(self.engine.clone().fetch_direct(key, range, tell));
        Some(Direct { until: Instant::now() + LIMIT, bytes })
    }
}

impl Engine {
    /// Whether a reader of `range` of `key` rather waits for that than for the chunk; noted as if it did.
    fn goes_direct(&self, slot: &Slot, key: ChunkKey, range: &Range<u64>) -> bool {
        if self.is_signed() {
            return false;
        }
        let mut state = self.lock();
        let missing = !state.closed
            && state.chunk(key) == Some(Chunk::Missing)
            && state.flights.get(&key).is_none_or(|flight| !flight.urgency.is_raised())
            && state.recent.get(key).is_none();
        let fills_all = state.fills_all();
        let Some(object) = state.objects.get_mut(key.object.0) else { return false };
        // Also where nothing is to be fetched: it shows who reads through.
        let comes = object.trail.comes(range, Instant::now());
        if !missing || object.broken.is_some() || comes == Comes::Through {
            return false;
        }
        let before = object.trail.spent.get(&key.chunk).copied().unwrap_or(0);
        let spent = before.saturating_add(range.end.saturating_sub(range.start));
        if spent.saturating_add(WORTH) > slot.layout.len_of(key.chunk) {
            return false;
        }
        let again = before > HEADER && comes == Comes::Anew;
        // Otherwise nobody brings the chunk but who waits for it.
        if again && !fills_all {
            return false;
        }
        object.trail.spent.insert(key.chunk, spent);
        if again && !state.flights.contains_key(&key) {
            state.plan.advance(key);
            drop(state);
            self.work.notify_waiters();
        }
        true
    }

    /// Tell the bytes `range` of the object of `key`, which are some of that, of whoever gives them first: the origin is asked too
    /// when a peer takes its time. `None`: nobody gave them.
    async fn fetch_direct(
        self: Arc<Self>,
        key: ChunkKey,
        range: Range<u64>,
        tell: SyncSender<Option<Vec<u8>>>,
    ) {
        // The reader may have gone to wait for the chunk.
        let answer = |bytes| drop(tell.send(bytes));
        let Some(slot) = self.slot(key.object) else { return };
        let origin = self.direct_from_origin(slot, key, range.clone());
        let shared = self.shared.get().filter(|shared| self.lock().exchange.holder(shared, key).is_some());
        let Some(shared) = shared else { return answer(origin.await) };
        let (begins, mut begun) = oneshot::channel();
        let peer = self.direct_from_peer(shared, slot, key, range, begins);
        let peer = tokio::time::timeout(shared.patience.chunk, peer).map(|in_time| in_time.ok().flatten());
        let (mut peer, mut origin, mut has_begun) = (pin!(peer), pin!(origin), false);
        let late = async {
            has_begun = matches!(tokio::time::timeout(shared.patience.answer, &mut begun).await, Ok(Ok(())));
            if has_begun {
                tokio::time::sleep(shared.patience.pause).await;
            }
        };
        tokio::select! {
            bytes = &mut peer => return answer(if bytes.is_some() { bytes } else { origin.await }),
            () = late => {}
        }
        tokio::select! {
            bytes = &mut peer => answer(if bytes.is_some() { bytes } else { origin.await }),
            bytes = &mut origin => match bytes {
                Some(bytes) => {
                    answer(Some(bytes));
                    // What has begun, to its end: it may count as well. What has not begun is not waited for, nor held against the peer.
                    if has_begun || begun.try_recv().is_ok() {
                        peer.await;
                    }
                }
                None => answer(peer.await),
            },
        }
    }

    async fn direct_from_origin(&self, slot: &Slot, key: ChunkKey, range: Range<u64>) -> Option<Vec<u8>> {
        let bytes = self.believed(slot, key.object, range, &AT_ONCE).await.ok()?;
        self.lock().count(bytes.len() as u64, Origin::Listed { object_crc64: None });
        Some(bytes)
    }

    /// The same of a peer, judged block by block. `begins` is told of the first.
    async fn direct_from_peer(
        self: &Arc<Self>,
        shared: &Shared,
        slot: &Slot,
        key: ChunkKey,
        range: Range<u64>,
        begins: oneshot::Sender<()>,
    ) -> Option<Vec<u8>> {
        // What mounts ask for are whole blocks; anything else is not worth a question more.
        if shared.judge.as_ref()?.span(slot.layout.len, range.clone()) != range {
            return None;
        }
        let mut check = self.check_of_blocks(slot, key.object, range.clone(), shared, &AT_ONCE).await?;
        let asked = shared.peers.fetch(key, range.clone(), &AT_ONCE).await;
        let Received { mut frames, sender } = asked.ok()?;
        // Nobody listens where that took too long.
        let _ = begins.send(());
        let expected = usize::try_from(range.end.saturating_sub(range.start)).ok()?;
        let mut bytes = Vec::with_capacity(expected);
        while bytes.len() <= expected {
            match tokio::time::timeout(shared.patience.pause, frames.try_next()).await.ok()?.ok()? {
                Some(frame) => bytes.extend_from_slice(&frame),
                None => break,
            }
        }
        if bytes.len() != expected {
            // Less may be the line's fault.
            if bytes.len() > expected {
                sender.judged(key, Judgement::Forged);
            }
            return None;
        }
        let judged = blocking(move || {
            check.update(&bytes);
            Ok((check.finish(), bytes))
        });
        let (judgement, bytes) = judged.await.ok()?;
        if judgement == Judgement::Genuine {
            self.lock().count(bytes.len() as u64, Origin::Peer);
        }
        sender.judged(key, judgement);
        (judgement == Judgement::Genuine).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_come_side_by_side_are_one_read_up_to_a_limit() {
        let (mut trail, now) = (Trail::default(), Instant::now());
        let mut comes = |range: Range<u64>| trail.comes(&range, now);
        assert_eq!(comes(NEAR + 5000..NEAR + 6000), Comes::Anew);
        assert_eq!(comes(2 * NEAR + 6000..2 * NEAR + 6001), Comes::On, "what is between comes last");
        assert_eq!(comes(4000..5000), Comes::On, "in any order");
        assert_eq!(comes(4000..5000), Comes::On, "by two at once");
        assert_eq!(comes(3 * NEAR + 6002..3 * NEAR + 6003), Comes::Anew, "too far");
        assert_eq!(comes(NEAR..NEAR + MOST - 3002), Comes::On, "as much as there may be");
        assert_eq!(comes(NEAR..NEAR + 1), Comes::Through);
    }

    #[test]
    fn after_a_while_only_what_touches_is_the_same_read() {
        let (mut trail, begun) = (Trail::default(), Instant::now());
        let mut comes =
            |range: Range<u64>, millis| trail.comes(&range, begun + Duration::from_millis(millis));
        assert_eq!(comes(0..5000, 0), Comes::Anew);
        assert_eq!(comes(6000..7000, 20), Comes::On);
        assert_eq!(comes(7001..8000, 41), Comes::Anew, "a byte further on");
        assert_eq!(comes(0..5000, 90), Comes::Anew, "there again");
        assert_eq!(comes(8000..9000, 100_000), Comes::On, "where it ended");
    }

    #[test]
    fn request_that_comes_last_joins_those_on_both_sides() {
        let (mut trail, now) = (Trail::default(), Instant::now());
        let far = 2 * NEAR;
        let comes: Vec<_> = [0..9, far..far + 9, NEAR..NEAR + 9].map(|range| trail.comes(&range, now)).into();
        assert_eq!(comes, [Comes::Anew, Comes::Anew, Comes::On]);
        assert_eq!(trail.rows, [Row { range: 0..far + 9, read: 27, last: now }]);
    }

    #[test]
    fn readers_of_one_object_are_told_from_each_other() {
        let mut trail = Trail::default();
        let step = 800 << 10;
        let mut rounds = Vec::new();
        for round in 0..4u64 {
            let readers = (0..READERS as u64).map(|reader| (reader << 30) + round * step);
            let comes: Vec<_> = readers.map(|at| trail.comes(&(at..at + step), Instant::now())).collect();
            assert!(comes.iter().all(|one| *one == comes[0]), "{comes:?}");
            rounds.push(comes[0]);
        }
        assert_eq!(rounds, [Comes::Anew, Comes::On, Comes::Through, Comes::Through]);
    }
}
