//! What becomes of chunks that are marked and may not be there: lost files, failed syncs, bytes that do not open.
//!
//! Owns the ways from *present* back to *unverified* and *missing*; the way forward is `engine`'s. Locks: see `engine`.
//! Tested through `tests/store_resume.rs`.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::Store;
use super::chunkmap::Chunk;
use super::disk;
use super::engine::{Engine, Slot};
use super::error::StoreError;
use super::layout::{ChunkKey, ObjectIndex};
use super::progress::Problem;
use crate::ciphertext::EntryId;
use crate::error::{Fault, chain};

impl Store {
    /// Check the local chunks of bytes `range` of file `id` before their next use, and fetch those afresh that are not
    /// what was fetched: for a reader to whom they do not make sense. What is outside of the file is passed over.
    pub fn distrust(&self, id: EntryId, range: Range<u64>) {
        let Some((object, slot)) = self.object_of(id) else { return };
        let (start, end) = (range.start.min(slot.layout.len), range.end.min(slot.layout.len));
        let Some(pieces) = slot.layout.pieces(start, end.saturating_sub(start)) else { return };
        let mut state = self.engine.lock();
        pieces.for_each(|piece| state.distrust(slot, ChunkKey { object, chunk: piece.chunk }));
    }
}

impl Engine {
    /// A chunk that could not be read back from the file of `generation` is fetched afresh at its next use; all chunks
    /// are if the file is lost.
    pub fn forget(&self, key: ChunkKey, generation: u64, error: &io::Error) {
        let Some(slot) = self.slot(key.object) else { return };
        tracing::warn!(event = "store.read-back", object = slot.path, chunk = key.chunk.0, ?error);
        let mut state = self.lock();
        if slot.file.generation() != generation {
            return;
        }
        if disk::is_lost(error) {
            state.forget_object(slot, key.object);
        } else if let Some(Chunk::Present(_)) = state.chunk(key) {
            state.mark(slot, key, Chunk::Missing);
        }
    }

    /// Write `frames` and give the generation of the file they are in; `None` when the disk does not take them, which is
    /// not tried again.
    pub fn write(&self, index: ObjectIndex, slot: &Slot, offset: u64, frames: &[Bytes]) -> Option<u64> {
        let begin = || {
            let mut state = self.lock();
            state.forget_object(slot, index);
            slot.file.begin_generation();
        };
        let failed = |source| {
            let path = self.cache.path().to_owned();
            self.stop_caching(&StoreError::Io { doing: "writing", path, source });
        };
        slot.file.write_at(offset, frames, begin).map_err(failed).ok()
    }

    /// Go on without the disk, because of `error`. What has not been synced yet never will be, and the system may have
    /// dropped it already: it is checked before each use.
    pub fn stop_caching(&self, error: &StoreError) {
        let mut state = self.lock();
        // Also when caching has stopped before: a sync that was under way then may bring back what it did not sync.
        self.slots
            .iter()
            .enumerate()
            .for_each(|(index, slot)| state.distrust_unsynced(slot, ObjectIndex(index)));
        if !state.caching {
            return;
        }
        state.caching = false;
        state.plan.clear_fill();
        let path = self.cache.path().display().to_string();
        let (code, class, detail) = ("store.caching-off", error.class(), chain(error));
        state.counters.report(Problem { path, code, class, detail });
        drop(state);
        tracing::error!(event = "store.caching-off", error = ?error, hint = error.hint());
        self.landed.notify_waiters();
    }
}
