//! A chunk from a peer: asked for, proven, kept.
//!
//! Locks: see `engine`. Tested in `tests/store_sharing.rs`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{TryFutureExt, TryStreamExt};

use super::chunkmap::Chunk;
use super::engine::{Engine, Slot, blocking};
use super::flight::{Failure, Flight, Ready};
use super::landing::{BATCH, Origin};
use super::layout::{ChunkIndex, ChunkKey, ObjectIndex};
use super::proof::{BlockCheck, Check, Edges};
use super::sharing::{Received, Shared};
use super::source::{Fetched, Urgency};
use super::state::State;
use crate::ciphertext::Judgement;

impl Engine {
    /// For a reader: ask a peer, where one has the chunk and answers at once. `None`: it is the origin's to bring.
    pub async fn ask_peer_first(self: &Arc<Self>, key: ChunkKey, flight: &Flight) -> Option<Ready> {
        let shared = self.shared.get().filter(|_| flight.urgency.is_raised())?;
        if !self.lock().exchange.may_come(shared, key) {
            return None;
        }
        let slot = self.slot(key.object)?;
        let asked = shared.peers.fetch(key, slot.layout.range(key.chunk), &flight.urgency);
        let received = tokio::time::timeout(shared.patience.answer, asked).await.ok()?.ok()?;
        self.take_in(key, flight, slot, shared, received).await
    }

    /// For the fill. `None`: no peer brought it, and the one that failed has been told or has told why.
    pub async fn receive_from_peer(self: &Arc<Self>, key: ChunkKey, flight: &Flight) -> Option<Ready> {
        let (shared, slot) = (self.shared.get()?, self.slot(key.object)?);
        let received = shared.peers.fetch(key, slot.layout.range(key.chunk), &flight.urgency).await.ok()?;
        self.take_in(key, flight, slot, shared, received).await
    }

    /// Take what a peer sends to the disk, and keep it if it is the model's.
    async fn take_in(
        self: &Arc<Self>,
        key: ChunkKey,
        flight: &Flight,
        slot: &Slot,
        shared: &Shared,
        received: Received<'_>,
    ) -> Option<Ready> {
        let Received { mut frames, sender } = received;
        let expected = slot.layout.len_of(key.chunk);
        let check = self.check_of_peer(slot, key, shared, &flight.urgency).await?;
        let mut coming = self.begin(key, flight, check).await.ok()?;
        while coming.got() <= expected {
            let frame = tokio::select! {
                frame = frames.try_next() => frame,
                () = stalled(&flight.urgency, shared.patience.pause) => Ok(None),
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
                return engine.keep(coming, demand, Origin::Peer).map(Some);
            }
            engine.give_up(&coming);
            if judgement == Judgement::Unprovable {
                engine.lock().exchange.bar(key);
            }
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
        let (judge, chunk) = (shared.judge.clone(), slot.layout.range(key.chunk));
        let span = judge.span(slot.layout.len, chunk.clone());
        let (head, before, after) = futures_util::try_join!(
            self.head(slot, key.object, shared, urgency),
            self.edge(slot, key.object, shared, span.start..chunk.start, urgency),
            self.edge(slot, key.object, shared, chunk.end..span.end, urgency),
        )
        .ok()?;
        let edges = Edges { head, before, after };
        Some(Check::Blocks(BlockCheck::new(judge, slot.layout.len, &chunk, edges)))
    }

    /// The first bytes of an object.
    async fn head(
        &self,
        slot: &Slot,
        object: ObjectIndex,
        shared: &Shared,
        urgency: &Urgency,
    ) -> Result<Vec<u8>, Failure> {
        let known = shared.head_of(object).ok_or(Failure::Closed)?;
        if let Some(head) = known.get() {
            return Ok(head.clone());
        }
        let range = 0..shared.judge.head().min(slot.layout.len);
        let head = self.believed(slot, object, range, urgency).await?;
        Ok(known.get_or_init(|| head).clone())
    }

    /// The rest of a block that lies across the border of a chunk. While the origin is away a peer's bytes do as well: a block opens
    /// with its own bytes alone, whoever brought them.
    async fn edge(
        &self,
        slot: &Slot,
        object: ObjectIndex,
        shared: &Shared,
        range: Range<u64>,
        urgency: &Urgency,
    ) -> Result<Vec<u8>, Failure> {
        let failed = match self.believed(slot, object, range.clone(), urgency).await {
            Err(failed) => failed,
            bytes => return bytes,
        };
        let Some(piece) = slot
            .layout
            .pieces(range.start, range.end.saturating_sub(range.start))
            .and_then(|mut all| all.next())
        else {
            return Err(failed);
        };
        let received =
            shared.peers.fetch(ChunkKey { object, chunk: piece.chunk }, range.clone(), urgency).await;
        let Ok(Received { frames, .. }) = received else { return Err(failed) };
        let most = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        let mut frames = frames;
        while let Ok(Some(frame)) = frames.try_next().await {
            bytes.extend_from_slice(&frame);
            if bytes.len() > most {
                return Err(failed);
            }
        }
        if bytes.len() == most { Ok(bytes) } else { Err(failed) }
    }

    /// Bytes of an object from here, where they were found to be right, or else from the origin.
    async fn believed(
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
        let Fetched { object_crc64, frames } = fetched.await.map_err(Failure::Source)?;
        let frames: Vec<bytes::Bytes> = frames.try_collect().map_err(Failure::Source).await?;
        if let Some(object) = self.lock().objects.get_mut(object.0) {
            object.map.object_crc64 = object.map.object_crc64.or(object_crc64);
        }
        let bytes = frames.concat();
        match u64::try_from(bytes.len()) == Ok(range.end.saturating_sub(range.start)) {
            true => Ok(bytes),
            false => {
                Err(self.unavailable(slot, format!("delivered {} bytes instead of {range:?}", bytes.len())))
            }
        }
    }

    /// What a chunk that came from `origin` means for the exchange.
    pub fn note_exchange(&self, state: &mut State, key: ChunkKey, origin: Origin) {
        let Some(shared) = self.shared.get() else { return };
        // What was taken over from others does not show that they deliver again.
        if origin == Origin::Peer || shared.peers.rank(key) == 0 {
            state.exchange.moved();
        }
        if origin == Origin::Peer && !self.is_signed() {
            state.exchange.take(key);
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
