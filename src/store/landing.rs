//! A chunk whose bytes are arriving: they go to the disk batch by batch, and count once all of them are there.
//!
//! What has arrived outlives a broken connection: the next attempt asks for the rest. It does not outlive anything that makes
//! it doubtful, a file that was lost, a disk that takes no more, a chunk that is not the manifest's: then it begins anew.
//! Locks: see `engine`. Tested through `tests/fetch_faults.rs` and `tests/store_manifest.rs`.

use std::mem::take;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::chunkmap::Chunk;
use super::crc64::Crc64;
use super::engine::{Engine, Slot, blocking};
use super::flight::{Failure, Flight, Outcome, Ready};
use super::layout::ChunkKey;
use super::proof::Check;
use super::source::SourceError;
use super::state::Broken;
use crate::ciphertext::Judgement;

/// Bytes that are summed and written at once: few enough to be in a core's cache still, enough for the hand-over to a thread that
/// may block to cost nothing.
pub const BATCH: u64 = 1 << 20;

/// A chunk that has begun to arrive.
pub struct Landing {
    key: ChunkKey,
    /// Bytes that arrived, in order from the chunk's first.
    got: u64,
    /// The last of them, which nothing has been done with yet.
    batch: Vec<Bytes>,
    batched: u64,
    crc: Crc64,
    check: Check,
    kept: Kept,
    /// Room in the cache is promised to it.
    promised: bool,
    /// The right to be in memory whole.
    _in_memory: Option<OwnedSemaphorePermit>,
}

/// Where the bytes are that were dealt with.
enum Kept {
    /// In the data file of this generation; in none yet.
    Disk(Option<u64>),
    /// Here.
    Memory(Vec<Bytes>),
}

/// Who sent a chunk that is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The origin, and what it says of the whole object.
    Listed {
        /// CRC-64/XZ of the whole object, where it was told.
        object_crc64: Option<u64>,
    },
    /// A peer, whose word for the object is worth nothing.
    Peer,
}

impl Origin {
    fn object_crc64(self) -> Option<u64> {
        match self {
            Origin::Listed { object_crc64 } => object_crc64,
            Origin::Peer => None,
        }
    }
}

impl Landing {
    /// Which chunk it is.
    pub fn key(&self) -> ChunkKey {
        self.key
    }

    /// Bytes that arrived.
    pub fn got(&self) -> u64 {
        self.got
    }

    /// The last of them, which nothing has been done with yet.
    pub fn batched(&self) -> u64 {
        self.batched
    }

    /// Whether it keeps memory that others wait for.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.kept, Kept::Memory(_))
    }

    /// The next bytes.
    pub fn push(&mut self, frame: Bytes) {
        let len = frame.len() as u64;
        self.got = self.got.saturating_add(len);
        self.batched = self.batched.saturating_add(len);
        self.batch.push(frame);
    }
}

impl Engine {
    /// Bring what is missing of `key` to the end: of `landing`, where an earlier attempt has left one, and left in it again when
    /// this one fails in a way that says nothing against what arrived.
    pub async fn receive(
        self: &Arc<Self>,
        key: ChunkKey,
        flight: &Flight,
        landing: &mut Option<Landing>,
    ) -> Outcome {
        let Some(slot) = self.slot(key.object) else { return Err(Failure::Closed) };
        let mut coming = match landing.take() {
            Some(coming) => coming,
            None => {
                self.begin(key, flight, self.check(self.slot(key.object).ok_or(Failure::Closed)?, key))
                    .await?
            }
        };
        let (range, expected) = (slot.layout.range(key.chunk), slot.layout.len_of(key.chunk));
        // Never empty: what has arrived whole has landed.
        let rest = range.start.saturating_add(coming.got)..range.end;
        let mut fetched = match self.source.fetch(&slot.object, rest, &flight.urgency).await {
            Ok(fetched) => fetched,
            Err(error) => return Err(self.interrupted(coming, landing, error)),
        };
        loop {
            match fetched.frames.try_next().await {
                Ok(Some(frame)) => coming.push(frame),
                Ok(None) => break,
                // Nothing is missing that the connection could still bring.
                Err(_) if coming.got == expected => break,
                Err(error) => return Err(self.interrupted(coming, landing, error)),
            }
            if coming.got > expected {
                self.abandon(coming).await;
                return Err(self.unavailable(slot, format!("delivered more than {expected} bytes")));
            }
            if coming.batched >= BATCH {
                coming = self.absorbed(coming).await?;
                self.note_exchange(&mut self.lock(), key, Origin::Listed { object_crc64: None });
            }
        }
        if coming.got < expected {
            let error = self.unavailable(slot, format!("delivered {} bytes of {expected}", coming.got));
            *landing = Some(coming);
            return Err(error);
        }
        let (engine, demand, crc) = (self.clone(), flight.urgency.is_raised(), fetched.object_crc64);
        blocking(move || match engine.judge(&mut coming)? {
            Judgement::Genuine => engine.keep(coming, demand, Origin::Listed { object_crc64: crc }),
            Judgement::Forged | Judgement::Unprovable => {
                engine.give_up(&coming);
                Err(engine.slot(key.object).map_or(Failure::Closed, |slot| engine.forged(slot, key)))
            }
        })
        .await
    }

    /// Nothing is wrong with what came before `error`.
    fn interrupted(&self, coming: Landing, landing: &mut Option<Landing>, error: SourceError) -> Failure {
        if coming.got > 0 {
            *landing = Some(coming);
        } else {
            // Its place is for others while it waits for better times. Nothing of it is on the disk.
            self.give_up(&coming);
        }
        Failure::Source(error)
    }

    /// Find a place for `key`.
    pub async fn begin(
        self: &Arc<Self>,
        key: ChunkKey,
        flight: &Flight,
        check: Check,
    ) -> Result<Landing, Failure> {
        let (engine, demand) = (self.clone(), flight.urgency.is_raised());
        let promised = blocking(move || {
            let Some(slot) = engine.slot(key.object) else { return Err(Failure::Closed) };
            let promised = engine.make_room(slot, key, demand);
            let mut state = engine.lock();
            state.filling_now.remove(&key);
            Ok(promised && state.caching)
        });
        let promised = promised.await?;
        let (kept, _in_memory) = if promised {
            (Kept::Disk(None), None)
        } else {
            // Closed only with the engine.
            (Kept::Memory(Vec::new()), self.in_memory.clone().acquire_owned().await.ok())
        };
        let (crc, batch) = (Crc64::default(), Vec::new());
        Ok(Landing { key, got: 0, batch, batched: 0, crc, check, kept, promised, _in_memory })
    }

    /// Sum the last batch and put it with the rest, on a thread that may block.
    pub async fn absorbed(self: &Arc<Self>, mut landing: Landing) -> Result<Landing, Failure> {
        let engine = self.clone();
        blocking(move || {
            let absorbed = engine.absorb(&mut landing);
            absorbed.inspect_err(|_| engine.give_up(&landing)).map(|()| landing)
        })
        .await
    }

    /// Sum the last batch and put it with the rest.
    fn absorb(&self, landing: &mut Landing) -> Result<(), Failure> {
        let Some(slot) = self.slot(landing.key.object) else { return Err(Failure::Closed) };
        for frame in &landing.batch {
            landing.crc.update(frame);
            landing.check.update(frame);
        }
        let batch = take(&mut landing.batch);
        let start = slot.layout.range(landing.key.chunk).start;
        let offset = start.saturating_add(landing.got.saturating_sub(take(&mut landing.batched)));
        let before = match &mut landing.kept {
            Kept::Disk(generation) => *generation,
            Kept::Memory(frames) => {
                frames.extend(batch);
                return Ok(());
            }
        };
        // Not one expression: the guard of the first half would live through the second.
        let caching = self.lock().caching;
        let written = if caching { self.write(landing.key.object, slot, offset, &batch) } else { None };
        landing.kept = match (before, written) {
            (None, None) => Kept::Memory(batch),
            (None, Some(now)) => Kept::Disk(Some(now)),
            (Some(before), Some(now)) if before == now => return Ok(()),
            (Some(_), _) => return Err(self.lost(slot)),
        };
        Ok(())
    }

    /// All bytes have arrived: what they are.
    pub fn judge(&self, landing: &mut Landing) -> Result<Judgement, Failure> {
        self.absorb(landing).inspect_err(|_| self.give_up(landing))?;
        Ok(std::mem::replace(&mut landing.check, Check::Nothing).finish())
    }

    /// All bytes have arrived and are right: mark. The mark in the sidecar follows after a sync.
    pub fn keep(&self, landing: Landing, demand: bool, origin: Origin) -> Outcome {
        let key = landing.key;
        let Some(slot) = self.slot(key.object) else { return Err(Failure::Closed) };
        let mut state = self.lock();
        if landing.promised && slot.layout.chunks() > 1 {
            state.room.settle(slot.layout.len_of(key.chunk));
        }
        state.count(landing.got, origin);
        self.note_exchange(&mut state, key, origin);
        let object_crc64 = origin.object_crc64();
        if let Some(object) = state.objects.get_mut(key.object.0) {
            object.forged.remove(&key.chunk);
        }
        match landing.kept {
            Kept::Memory(frames) => return Ok(state.recent.serve(key, frames)),
            Kept::Disk(Some(generation)) if generation == slot.file.generation() && state.caching => {}
            Kept::Disk(_) => {
                drop(state);
                return Err(self.lost(slot));
            }
        }
        if let Some(object) = state.objects.get_mut(key.object.0) {
            object.map.object_crc64 = object.map.object_crc64.or(object_crc64);
            object.unsynced.push(key.chunk);
        }
        let crc = landing.crc.finish();
        state.mark(slot, key, Chunk::Present(crc));
        if demand && slot.layout.chunks() > 1 {
            // A reader waits for it: it is not the next to go.
            state.room.touch(key);
        }
        // Under the lock: a chunk that is let go later makes this place stale.
        let ready = Ready::Disk(slot.file.place());
        drop(state);
        self.cache.landed.note(slot.identity, key.chunk, crc, object_crc64);
        self.check_object(key.object).map(|()| ready)
    }

    /// `landing` comes to nothing.
    pub async fn abandon(self: &Arc<Self>, landing: Landing) {
        let engine = self.clone();
        // Refused only while the runtime shuts down.
        let _ = blocking(move || {
            engine.give_up(&landing);
            Ok(())
        })
        .await;
    }

    /// What was promised to `landing` is free again, and what it took of a disk that is counted.
    pub fn give_up(&self, landing: &Landing) {
        let Some(slot) = self.slot(landing.key.object) else { return };
        let bounded = self.lock().room.limit().is_some();
        if bounded && matches!(landing.kept, Kept::Disk(Some(_))) {
            // Its flight is not over: nobody else writes there.
            if let Err(error) = slot.file.punch(&slot.layout.range(landing.key.chunk)) {
                tracing::debug!(event = "store.punch", ?error, "giving back the place of half a chunk");
            }
        }
        if landing.promised && slot.layout.chunks() > 1 {
            self.lock().room.settle(slot.layout.len_of(landing.key.chunk));
        }
    }

    /// Where the file was begun anew meanwhile, the bytes went into the old one.
    fn lost(&self, slot: &Slot) -> Failure {
        self.unavailable(slot, "came in while its file was lost".into())
    }

    pub fn unavailable(&self, slot: &Slot, detail: String) -> Failure {
        let detail = format!("{} {detail}", self.source_name());
        Failure::Source(SourceError::Unavailable { path: slot.path.clone(), detail, retry_after: None })
    }

    /// A source delivered other bytes than the manifest names: fetched once more, for the network may have done it; the second
    /// time in a row the object is broken.
    fn forged(&self, slot: &Slot, key: ChunkKey) -> Failure {
        let mut state = self.lock();
        let Some(object) = state.objects.get_mut(key.object.0) else { return Failure::Closed };
        tracing::error!(event = "chunk.forged", object = slot.path, chunk = key.chunk.0);
        if !object.forged.insert(key.chunk) {
            object.broken = Some(Broken::Corrupt);
            return Failure::Corrupt;
        }
        let detail = format!("chunk {} is not the one that the manifest names", key.chunk.0);
        Failure::Source(SourceError::Unavailable { path: slot.path.clone(), detail, retry_after: None })
    }
}
