//! A few bytes of a chunk, straight to the reader who waits for them.
//!
//! Who reads here and there, as who looks at the heads of shards does, waits for 8 MiB otherwise, behind everything else on the
//! line. The first read that lands in a chunk out of nowhere fetches what it asks for and no more; nothing of it is kept. From
//! the second on, and for who reads through, the chunk itself comes. Not where a manifest speaks for chunks: it says nothing of
//! a part of one. Locks: see `engine`. Tested in `tests/store_direct.rs`.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt};

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

/// Longest that a reader waits for it, before it waits for the chunk.
const LIMIT: Duration = Duration::from_secs(2);

/// Where readers of one object have been.
#[derive(Debug, Default)]
pub struct Trail {
    last: Option<ChunkIndex>,
    /// Chunks of which something was read past the store.
    direct: HashSet<ChunkIndex>,
}

impl Trail {
    /// A read comes to `chunk`, and begins there if it is the `first` that it comes to: whether it comes from somewhere else, and has
    /// never come before.
    fn comes(&mut self, chunk: ChunkIndex, first: bool) -> bool {
        let before = self.last.replace(chunk);
        let follows = before.is_some_and(|before| before.0.checked_add(1) == Some(chunk.0));
        let through = match before {
            Some(before) if first => before == chunk || follows,
            // It goes on as it began.
            Some(before) => !self.direct.contains(&before),
            None => false,
        };
        !through && self.direct.insert(chunk)
    }
}

impl Store {
    /// Fill `buf` with `piece` of `key` without the rest of the chunk, if that is the thing to do. `first`: a read begins here, and
    /// does not only go on from the chunk before. Blocking.
    pub(super) fn read_direct(
        &self,
        slot: &Slot,
        key: ChunkKey,
        piece: &Piece,
        first: bool,
        buf: &mut [u8],
    ) -> bool {
        if !self.engine.goes_direct(slot, key, piece.len, first) {
            return false;
        }
        let (engine, range) = (self.engine.clone(), piece.offset..piece.offset.saturating_add(piece.len));
        let (tell, hear) = sync_channel(1);
        self.handle.spawn(async move {
            let _ = tell.send(engine.fetch_direct(key, range).await);
        });
        match hear.recv_timeout(LIMIT).ok().flatten() {
            Some(bytes) if bytes.len() == buf.len() => {
                buf.copy_from_slice(&bytes);
                true
            }
            _ => false,
        }
    }
}

impl Engine {
    /// Whether a reader of `len` bytes of `key` rather waits for them than for the chunk; noted as if it did.
    fn goes_direct(&self, slot: &Slot, key: ChunkKey, len: u64, first: bool) -> bool {
        if self.is_signed() {
            return false;
        }
        let mut state = self.lock();
        let chunk = slot.layout.len_of(key.chunk);
        let mut goes = !state.closed
            && len.saturating_add(WORTH) <= chunk
            && state.chunk(key) == Some(Chunk::Missing)
            && state.flights.get(&key).is_none_or(|flight| !flight.urgency.is_raised())
            && state.recent.get(key).is_none();
        if let Some(object) = state.objects.get_mut(key.object.0) {
            goes = goes && object.broken.is_none();
            // Also where nothing is to be fetched: it shows who reads through.
            let comes = object.trail.comes(key.chunk, first);
            goes = goes && comes;
        }
        goes
    }

    /// The bytes `range` of the object of `key`, which are some of that, from whoever gives them first: the origin is asked too when
    /// a peer takes its time. `None`: nobody gave them.
    async fn fetch_direct(self: Arc<Self>, key: ChunkKey, range: Range<u64>) -> Option<Vec<u8>> {
        let slot = self.slot(key.object)?;
        let shared = self.shared.get().filter(|shared| self.lock().exchange.holder(shared, key).is_some());
        let Some(shared) = shared else { return self.direct_from_origin(slot, key, range).await };
        let peer = self.direct_from_peer(shared, slot, key, range.clone());
        tokio::pin!(peer);
        if let Ok(bytes) = tokio::time::timeout(shared.patience.answer, &mut peer).await {
            return match bytes {
                Some(bytes) => Some(bytes),
                None => self.direct_from_origin(slot, key, range).await,
            };
        }
        let origin = self.direct_from_origin(slot, key, range);
        tokio::pin!(origin);
        let (first, other) = tokio::select! {
            bytes = &mut peer => (bytes, origin.left_future()),
            bytes = &mut origin => (bytes, peer.right_future()),
        };
        match first {
            Some(bytes) => Some(bytes),
            None => other.await,
        }
    }

    async fn direct_from_origin(&self, slot: &Slot, key: ChunkKey, range: Range<u64>) -> Option<Vec<u8>> {
        let bytes = self.believed(slot, key.object, range, &AT_ONCE).await.ok()?;
        self.lock().count(bytes.len() as u64, Origin::Listed { object_crc64: None });
        Some(bytes)
    }

    /// The same of a peer, judged block by block.
    async fn direct_from_peer(
        self: &Arc<Self>,
        shared: &Shared,
        slot: &Slot,
        key: ChunkKey,
        range: Range<u64>,
    ) -> Option<Vec<u8>> {
        // What mounts ask for are whole blocks; anything else is not worth a question more.
        if shared.judge.span(slot.layout.len, range.clone()) != range {
            return None;
        }
        let mut check = self.check_of_blocks(slot, key.object, range.clone(), shared, &AT_ONCE).await?;
        let asked = shared.peers.fetch(key, range.clone(), &AT_ONCE).await;
        let Received { mut frames, sender } = asked.ok()?;
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

    fn comes(steps: &[(u64, bool)]) -> Vec<bool> {
        let mut trail = Trail::default();
        steps.iter().map(|(chunk, first)| trail.comes(ChunkIndex(*chunk), *first)).collect()
    }

    #[test]
    fn who_reads_through_is_told_from_who_reads_here_and_there() {
        assert_eq!(comes(&[(0, true), (0, true), (1, true), (2, true)]), [true, false, false, false]);
        assert_eq!(comes(&[(7, true), (3, true), (7, true), (9, true)]), [true, true, false, true]);
    }

    #[test]
    fn read_over_a_border_goes_on_as_it_began() {
        assert_eq!(comes(&[(5, true), (6, false), (8, true), (9, false)]), [true; 4]);
        assert_eq!(comes(&[(5, true), (5, true), (6, true), (7, false)]), [true, false, false, false]);
    }
}
