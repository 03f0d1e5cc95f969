//! A chunk from a peer: asked for, proven, kept.
//!
//! Locks: see `engine`. Tested in `tests/store_sharing.rs`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{TryFutureExt, TryStreamExt};
use tokio::time::Instant;

use super::chunkmap::Chunk;
use super::engine::{Engine, Slot, blocking};
use super::flight::{Failure, Flight, Ready};
use super::landing::{BATCH, Landing, Origin};
use super::layout::{ChunkIndex, ChunkKey, ObjectIndex};
use super::proof::{BlockCheck, Check, Edges};
use super::sharing::{Patience, Received, Sender, Shared};
use super::source::{Fetched, Urgency};
use super::state::State;
use crate::ciphertext::Judgement;

impl Engine {
    /// For a reader: ask a peer, where one has the chunk and answers at once. `None`: it is the origin's to bring.
    pub async fn ask_peer_first(self: &Arc<Self>, key: ChunkKey, flight: &Flight) -> Option<Ready> {
        let shared = self.shared.get().filter(|_| flight.urgency.is_raised())?;
        self.lock().exchange.holder(shared, key)?;
        self.receive_from_peer(key, flight).await
    }

    /// Bring `key` from a peer, in time. `None`: none brought it, and the one that failed has been told or has told why.
    pub async fn receive_from_peer(self: &Arc<Self>, key: ChunkKey, flight: &Flight) -> Option<Ready> {
        let (shared, slot) = (self.shared.get()?, self.slot(key.object)?);
        let (urgency, patience) = (&flight.urgency, shared.patience);
        // First what it is judged by: a peer's bytes must not wait for the origin's in a line that others need.
        let check = tokio::select! {
            check = self.check_of_peer(slot, key, shared, urgency) => check?,
            () = stalled(urgency, patience.pause) => return None,
        };
        let received = tokio::select! {
            received = shared.peers.fetch(key, slot.layout.range(key.chunk), urgency) => received.ok()?,
            () = stalled(urgency, patience.answer) => return None,
            () = tokio::time::sleep(patience.chunk) => return None,
        };
        let coming = self.begin(key, flight, check).await.ok()?;
        self.take_in(coming, flight, slot, received, patience).await
    }

    /// Take what a peer sends to the disk, and keep it if it is the model's.
    async fn take_in(
        self: &Arc<Self>,
        mut coming: Landing,
        flight: &Flight,
        slot: &Slot,
        received: Received<'_>,
        patience: Patience,
    ) -> Option<Ready> {
        let Received { mut frames, sender } = received;
        let (key, deadline) = (coming.key(), Instant::now() + patience.chunk);
        let expected = slot.layout.len_of(key.chunk);
        while coming.got() <= expected {
            let frame = tokio::select! {
                frame = frames.try_next() => frame,
                () = stalled(&flight.urgency, patience.pause) => Ok(None),
                () = tokio::time::sleep_until(deadline) => Ok(None),
            };
            match frame {
                Ok(Some(frame)) => coming.push(frame),
                Ok(None) | Err(_) => break,
            }
            if coming.batched() >= BATCH {
                coming = self.absorbed(coming).await.ok()?;
            }
        }
        if coming.got() != expected {
            let too_much = coming.got() > expected;
            self.abandon(coming).await;
            if too_much {
                sender.judged(key, Judgement::Forged);
            }
            return None;
        }
        let (engine, demand) = (self.clone(), flight.urgency.is_raised());
        blocking(move || {
            let judgement = engine.judge(&mut coming)?;
            sender.judged(key, judgement);
            if judgement == Judgement::Genuine {
                engine.rests_on(key, sender);
                return engine.keep(coming, demand, Origin::Peer).map(Some);
            }
            engine.give_up(&coming);
            // Once is enough: where the origin itself has a block that does not open, every peer's would be called forged.
            engine.lock().exchange.bar(key);
            Ok(None)
        })
        .await
        .ok()?
    }

    /// What shows whether a peer's bytes are chunk `key`. `None`: it cannot be known now.
    async fn check_of_peer(
        &self,
        slot: &Slot,
        key: ChunkKey,
        shared: &Shared,
        urgency: &Urgency,
    ) -> Option<Check> {
        if let check @ Check::Manifest(_) = self.check(slot, key) {
            return Some(check);
        }
        self.check_of_blocks(slot, key.object, slot.layout.range(key.chunk), shared, urgency).await
    }

    /// What shows whether a peer's bytes are `range` of `object`, where no manifest does. `None`: it cannot be known now.
    pub async fn check_of_blocks(
        &self,
        slot: &Slot,
        object: ObjectIndex,
        range: Range<u64>,
        shared: &Shared,
        urgency: &Urgency,
    ) -> Option<Check> {
        let judge = shared.judge.clone()?;
        let span = judge.span(slot.layout.len, range.clone());
        let (head, before, after) = futures_util::try_join!(
            self.head(slot, object, shared, judge.head(), urgency),
            self.believed(slot, object, span.start..range.start, urgency),
            self.believed(slot, object, range.end..span.end, urgency),
        )
        .ok()?;
        let edges = Edges { head, before, after };
        Some(Check::Blocks(BlockCheck::new(judge, slot.layout.len, &range, edges)))
    }

    /// The first `len` bytes of an object.
    async fn head(
        &self,
        slot: &Slot,
        object: ObjectIndex,
        shared: &Shared,
        len: u64,
        urgency: &Urgency,
    ) -> Result<Vec<u8>, Failure> {
        let known = shared.head_of(object).ok_or(Failure::Closed)?;
        if let Some(head) = known.get() {
            return Ok(head.clone());
        }
        let range = 0..len.min(slot.layout.len);
        let head = self.believed(slot, object, range, urgency).await?;
        Ok(known.get_or_init(|| head).clone())
    }

    /// Bytes of an object from here, where they were found to be right, or else from the origin.
    pub async fn believed(
        &self,
        slot: &Slot,
        object: ObjectIndex,
        range: Range<u64>,
        urgency: &Urgency,
    ) -> Result<Vec<u8>, Failure> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        // A few KiB that were just written, or will be: not worth another thread.
        if let Some(bytes) = self.read_present(slot, object, &range) {
            return Ok(bytes);
        }
        let fetched = self.source.fetch(&slot.object, range.clone(), urgency);
        let Fetched { object_crc64, mut frames } = fetched.await.map_err(Failure::Source)?;
        let mut bytes =
            Vec::with_capacity(usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(0));
        while let Some(frame) = frames.try_next().map_err(Failure::Source).await? {
            bytes.extend_from_slice(&frame);
        }
        if let Some(object) = self.lock().objects.get_mut(object.0) {
            object.map.object_crc64 = object.map.object_crc64.or(object_crc64);
        }
        match u64::try_from(bytes.len()) == Ok(range.end.saturating_sub(range.start)) {
            true => Ok(bytes),
            false => {
                Err(self.unavailable(slot, format!("delivered {} bytes instead of {range:?}", bytes.len())))
            }
        }
    }

    /// What a chunk that came from `origin`, or is coming from there, means for the exchange.
    pub fn note_exchange(&self, state: &mut State, key: ChunkKey, origin: Origin) {
        let Some(shared) = self.shared.get() else { return };
        // What was taken over from others does not show that they deliver again.
        if origin == Origin::Peer || shared.peers.rank(key) == 0 {
            state.exchange.moved();
        }
    }

    /// Without a manifest a chunk of a peer rests on its blocks alone, until its object is whole.
    fn rests_on(&self, key: ChunkKey, sender: Arc<dyn Sender>) {
        if !self.is_signed() {
            self.lock().exchange.take(key, sender);
        }
    }

    /// Bytes of chunks that are all present; `None` where one is not, or cannot be read back. Blocking.
    pub fn read_present(&self, slot: &Slot, object: ObjectIndex, range: &Range<u64>) -> Option<Vec<u8>> {
        let len = range.end.saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        loop {
            let place = {
                let state = self.lock();
                let present = |chunk: ChunkIndex| {
                    matches!(state.chunk(ChunkKey { object, chunk }), Some(Chunk::Present(_)))
                };
                let all = slot.layout.pieces(range.start, len)?.all(|piece| present(piece.chunk));
                all.then(|| slot.file.place())?
            };
            match slot.file.read_at(place, range.start, &mut bytes) {
                Ok(true) => return Some(bytes),
                // Another chunk was let go, or this one.
                Ok(false) => {}
                Err(_) => return None,
            }
        }
    }
}

/// Wait until a reader has waited for too long for the next bytes.
async fn stalled(urgency: &Urgency, pause: Duration) {
    urgency.raised().await;
    tokio::time::sleep(pause).await;
}
