//! A few bytes of a chunk, straight to the reader who waits for them.
//!
//! Who reads here and there, as who looks at the heads of shards does, waits for 8 MiB otherwise, behind everything else on the
//! line. The first read that lands in a chunk out of nowhere fetches what it asks for and no more; nothing of it is kept. From
//! the second on, and for who reads through, the chunk itself comes. Not where a manifest speaks for chunks: it says nothing of
//! a part of one. Locks: see `engine`. Tested in `tests/store_direct.rs`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio::sync::oneshot;

use super::Store;
use super::chunkmap::Chunk;
use super::engine::{Engine, Slot, blocking};
use super::landing::Origin;
use super::layout::{ChunkIndex, ChunkKey, Piece};
use super::sharing::Received;
use super::source::AT_ONCE;
use crate::ciphertext::Judgement;

/// What a request of its own has to save, in bytes: with less than that the chunk is as good as here.
const WORTH: u64 = 1 << 20;

/// Most that is read past the store of one chunk, in bytes: a read of 1 MiB, in whole blocks of the format.
const MOST: u64 = (1 << 20) + (64 << 10);

/// Longest that a reader waits for it, before it waits for the chunk.
const LIMIT: Duration = Duration::from_secs(2);

/// Where readers of one object have been.
#[derive(Debug, Default)]
pub struct Trail {
    last: Option<ChunkIndex>,
    /// What was read past the store of a chunk.
    direct: HashMap<ChunkIndex, Range<u64>>,
}

impl Trail {
    /// A read of `range` comes to `chunk`, and begins there if that is the `first` that it comes to: whether it comes from somewhere
    /// else, and has never come before.
    fn comes(&mut self, chunk: ChunkIndex, range: &Range<u64>, first: bool) -> bool {
        let before = self.last.replace(chunk);
        if let Some(known) = self.direct.get_mut(&chunk) {
            // The kernel cuts one read into several requests, and brings them side by side.
            let touches = range.start == known.end || range.end == known.start;
            let both = known.start.min(range.start)..known.end.max(range.end);
            let goes_on = touches && both.end.saturating_sub(both.start) <= MOST;
            if goes_on {
                *known = both;
            }
            return goes_on;
        }
        let follows = before.is_some_and(|before| before.0.checked_add(1) == Some(chunk.0));
        let through = match before {
            Some(before) if first => before == chunk || follows,
            // It goes on as it began.
            Some(before) => !self.direct.contains_key(&before),
            None => false,
        };
        if !through {
            self.direct.insert(chunk, range.clone());
        }
        !through
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
    /// Ask for `piece` of `key` without the rest of the chunk, if that is the thing to do. `first`: a read begins here, and does not
    /// only go on from the chunk before.
    pub(super) fn ask_direct(
        &self,
        slot: &Slot,
        key: ChunkKey,
        piece: &Piece,
        first: bool,
    ) -> Option<Direct> {
        let range = piece.offset..piece.offset.saturating_add(piece.len);
        if !self.engine.goes_direct(slot, key, &range, first) {
            return None;
        }
        let engine = self.engine.clone();
        let (tell, bytes) = sync_channel(1);
        self.handle.spawn(async move {
            let _ = tell.send(engine.fetch_direct(key, range).await);
        });
        Some(Direct { until: Instant::now() + LIMIT, bytes })
    }
}

impl Engine {
    /// Whether a reader of `range` of `key` rather waits for that than for the chunk; noted as if it did.
    fn goes_direct(&self, slot: &Slot, key: ChunkKey, range: &Range<u64>, first: bool) -> bool {
        if self.is_signed() {
            return false;
        }
        let mut state = self.lock();
        let (len, chunk) = (range.end.saturating_sub(range.start), slot.layout.len_of(key.chunk));
        let mut goes = !state.closed
            && len.saturating_add(WORTH) <= chunk
            && state.chunk(key) == Some(Chunk::Missing)
            && state.flights.get(&key).is_none_or(|flight| !flight.urgency.is_raised())
            && state.recent.get(key).is_none();
        if let Some(object) = state.objects.get_mut(key.object.0) {
            goes = goes && object.broken.is_none();
            // Also where nothing is to be fetched: it shows who reads through.
            let comes = object.trail.comes(key.chunk, range, first);
            goes = goes && comes;
        }
        goes
    }

    /// The bytes `range` of the object of `key`, which are some of that, from whoever gives them first: the origin is asked too when
    /// a peer takes its time to begin. `None`: nobody gave them.
    async fn fetch_direct(self: Arc<Self>, key: ChunkKey, range: Range<u64>) -> Option<Vec<u8>> {
        let slot = self.slot(key.object)?;
        let shared = self.shared.get().filter(|shared| self.lock().exchange.holder(shared, key).is_some());
        let Some(shared) = shared else { return self.direct_from_origin(slot, key, range).await };
        let (begins, begun) = oneshot::channel();
        // A task of its own: a connection whose answer is cut off is lost, and with it what the next reader would be served by.
        let peer = tokio::spawn(self.clone().direct_from_peer(key, range.clone(), begins));
        tokio::pin!(peer);
        if let Ok(Ok(())) = tokio::time::timeout(shared.patience.answer, begun).await
            && let Ok(Ok(Some(bytes))) = tokio::time::timeout(shared.patience.pause, &mut peer).await
        {
            return Some(bytes);
        }
        let origin = self.direct_from_origin(slot, key, range);
        if peer.is_finished() {
            return origin.await;
        }
        tokio::pin!(origin);
        tokio::select! {
            bytes = &mut peer => match bytes {
                Ok(Some(bytes)) => Some(bytes),
                _ => origin.await,
            },
            bytes = &mut origin => match bytes {
                Some(bytes) => Some(bytes),
                None => peer.await.ok().flatten(),
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
        self: Arc<Self>,
        key: ChunkKey,
        range: Range<u64>,
        begins: oneshot::Sender<()>,
    ) -> Option<Vec<u8>> {
        let (shared, slot) = (self.shared.get()?, self.slot(key.object)?);
        // What mounts ask for are whole blocks; anything else is not worth a question more.
        if shared.judge.span(slot.layout.len, range.clone()) != range {
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

    /// Of reads that do not touch each other.
    fn comes(steps: &[(u64, bool)]) -> Vec<bool> {
        let mut trail = Trail::default();
        let comes = |(at, (chunk, first)): (usize, &(u64, bool))| {
            trail.comes(ChunkIndex(*chunk), &(at as u64 * 10..at as u64 * 10 + 5), *first)
        };
        steps.iter().enumerate().map(comes).collect()
    }

    #[test]
    fn who_reads_through_is_told_from_who_reads_here_and_there() {
        assert_eq!(comes(&[(0, true), (0, true), (1, true), (2, true)]), [true, false, false, false]);
        assert_eq!(comes(&[(7, true), (3, true), (7, true), (9, true)]), [true, true, false, true]);
    }

    #[test]
    fn requests_that_touch_are_one_read_up_to_a_limit() {
        let mut trail = Trail::default();
        let mut comes = |range: Range<u64>| trail.comes(ChunkIndex(3), &range, true);
        assert!(comes(1000..2000));
        assert!(comes(2000..2500) && comes(500..1000), "in any order");
        assert!(!comes(500..1000), "again");
        assert!(!comes(2600..2700), "elsewhere");
        assert!(!comes(2500..501 + MOST), "more than one read");
        assert!(comes(2500..500 + MOST));
    }

    #[test]
    fn read_over_a_border_goes_on_as_it_began() {
        assert_eq!(comes(&[(5, true), (6, false), (8, true), (9, false)]), [true; 4]);
        assert_eq!(comes(&[(5, true), (5, true), (6, true), (7, false)]), [true, false, false, false]);
    }
}
