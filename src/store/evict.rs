//! Room on the disk for one more chunk, in place of others where the cache is bounded.

use std::sync::PoisonError;

use super::Store;
use super::chunkmap::Chunk;
use super::engine::{Engine, Slot};
use super::error::StoreError;
use super::layout::{ChunkIndex, ChunkKey, ObjectIndex};
use super::room::{Keeping, Room};
use super::state::State;

impl Engine {
    /// Take room for `key`, which is about to be written; `false` when nothing can go for it. Nobody gives back the place of
    /// `key` itself any more when this returns.
    pub fn make_room(&self, slot: &Slot, key: ChunkKey, demand: bool) -> bool {
        let mut state = self.lock();
        while state.punching.contains(&key) {
            state = self.punched.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // Metadata stays, and is not counted.
        if slot.layout.chunks() < 2 {
            return true;
        }
        loop {
            // What goes now would not be in the maps that a closing store has saved.
            if state.closed {
                return false;
            }
            if state.room.promise(slot.layout.len_of(key.chunk)) {
                return true;
            }
            let Some(victim) = state.room.victim(demand) else { return false };
            let Some(slot) = self.slot(victim.object) else { return false };
            state.mark(slot, victim, Chunk::Missing);
            slot.file.let_go();
            state.punching.insert(victim);
            drop(state);
            let punched = slot.file.punch(&slot.layout.range(victim.chunk));
            state = self.lock();
            state.punching.remove(&victim);
            self.punched.notify_all();
            if let Err(source) = punched {
                drop(state);
                let path = self.cache.path().to_owned();
                self.stop_caching(&StoreError::Io { doing: "punching a hole into a file of", path, source });
                return false;
            }
        }
    }
}

impl State {
    /// Keep what `keeping` says; for the beginning, when nobody reads yet.
    pub fn keep(&mut self, keeping: Keeping, slots: &[Slot]) {
        match keeping {
            Keeping::Full => return,
            Keeping::Nothing => self.caching = false,
            Keeping::Bounded(limit) => {
                let small = slots.iter().filter(|slot| slot.layout.chunks() < 2).map(|slot| slot.layout.len);
                self.room = Room::limited(limit.saturating_sub(small.fold(0, u64::saturating_add)));
            }
        }
        for (index, (slot, object)) in slots.iter().zip(&self.objects).enumerate() {
            if slot.layout.chunks() < 2 {
                continue;
            }
            let here = (0..).zip(&object.map.chunks).filter(|(_, chunk)| chunk.crc().is_some());
            for (chunk, _) in here {
                let chunk = ChunkIndex(chunk);
                let key = ChunkKey { object: ObjectIndex(index), chunk };
                self.room.came(key, slot.layout.len_of(chunk));
            }
        }
    }

    /// Forget every chunk of an object that is not what the origin has.
    pub fn discard(&mut self, slot: &Slot, object: ObjectIndex) {
        let Some(state) = self.objects.get_mut(object.0) else { return };
        for (chunk, _) in (0..).zip(&state.map.chunks).filter(|(_, chunk)| chunk.crc().is_some()) {
            let chunk = ChunkIndex(chunk);
            if slot.layout.chunks() > 1 {
                self.room.went(ChunkKey { object, chunk }, slot.layout.len_of(chunk));
            }
        }
        state.discard();
    }
}

impl Store {
    /// How much of the ciphertext the disk keeps.
    pub fn keeping(&self) -> Keeping {
        self.keeping
    }
}
