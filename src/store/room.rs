//! What stays on a disk that cannot hold the whole model. Pure.
//!
//! A chunk that somebody reads comes before one that nobody has asked for: for a reader's chunk, the one goes that was read
//! longest ago, else the one that was fetched ahead last. The fill takes nothing from anybody: it goes on only in place of
//! chunks that were read a while ago, and does not fetch again what it let go.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::layout::{ChunkKey, ObjectIndex};

/// Chunks read last that the fill does not take: a reader takes a chunk in many small reads, and many readers do so side by
/// side.
const HOT: usize = 32;

/// How much of the ciphertext the disk keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// All of it.
    Full,
    /// At most so many bytes.
    Bounded(u64),
    /// Nothing.
    Nothing,
}

/// The book of a bounded cache; empty for a full one.
#[derive(Debug, Default)]
pub struct Room {
    /// Most bytes of chunks; `None`: all there are.
    limit: Option<u64>,
    /// Bytes of chunks that are there, and of those about to be written.
    taken: u64,
    /// Chunks in the order in which they were last read.
    read: BTreeMap<u64, ChunkKey>,
    /// Chunks that nobody has read yet, in the order in which they came.
    unread: BTreeMap<u64, ChunkKey>,
    /// Where each chunk stands, in one order or the other.
    stamps: HashMap<ChunkKey, u64>,
    clock: u64,
    /// What the fill need not fetch again.
    evicted: HashSet<ChunkKey>,
}

impl Room {
    /// A book with a limit.
    pub fn limited(limit: u64) -> Self {
        Room { limit: Some(limit), ..Room::default() }
    }

    /// The limit.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Chunk `key` of `len` bytes is on the disk.
    pub fn came(&mut self, key: ChunkKey, len: u64) {
        if self.limit.is_some() {
            self.taken = self.taken.saturating_add(len);
            self.clock += 1;
            self.unread.insert(self.clock, key);
            self.stamps.insert(key, self.clock);
        }
    }

    /// It is no longer.
    pub fn went(&mut self, key: ChunkKey, len: u64) {
        if self.limit.is_some() {
            self.taken = self.taken.saturating_sub(len);
            self.drop_from_order(key);
        }
    }

    /// Somebody reads `key`. Whether it is the first time: the fill may have new room then.
    pub fn touch(&mut self, key: ChunkKey) -> bool {
        if self.limit.is_none() {
            return false;
        }
        let first = !self.drop_from_order(key);
        self.clock += 1;
        self.read.insert(self.clock, key);
        self.stamps.insert(key, self.clock);
        first
    }

    /// Take `len` bytes for a chunk that is about to be written, if they are there.
    pub fn promise(&mut self, len: u64) -> bool {
        let Some(limit) = self.limit else { return true };
        let fits = self.taken.saturating_add(len) <= limit;
        if fits {
            self.taken += len;
        }
        fits
    }

    /// What was promised is settled: written and counted by [`Room::came`], or given up.
    pub fn settle(&mut self, len: u64) {
        if self.limit.is_some() {
            self.taken = self.taken.saturating_sub(len);
        }
    }

    /// Who goes for a chunk that a reader waits for (`demand`), or for one of the fill.
    pub fn victim(&mut self, demand: bool) -> Option<ChunkKey> {
        let oldest = if demand || self.read.len() > HOT { self.read.values().next().copied() } else { None };
        let victim = oldest.or_else(|| self.unread.values().next_back().copied().filter(|_| demand))?;
        self.evicted.insert(victim);
        Some(victim)
    }

    /// Whether the fill has room for another chunk of at most `len` bytes, beside `others` that it is fetching.
    pub fn may_fill(&self, len: u64, others: usize) -> bool {
        let all = len.saturating_mul(u64::try_from(others).unwrap_or(u64::MAX).saturating_add(1));
        let fits = |limit| self.taken.saturating_add(all) <= limit;
        self.limit.is_none_or(|limit| fits(limit) || self.read.len() > HOT.saturating_add(others))
    }

    /// Whether the fill has let `key` go, or had it taken away.
    pub fn was_evicted(&self, key: ChunkKey) -> bool {
        self.evicted.contains(&key)
    }

    /// What was let go of `object` may be fetched ahead again.
    pub fn forgive(&mut self, object: ObjectIndex) {
        self.evicted.retain(|key| key.object != object);
    }

    /// Whether it had been read.
    fn drop_from_order(&mut self, key: ChunkKey) -> bool {
        let Some(stamp) = self.stamps.remove(&key) else { return false };
        self.unread.remove(&stamp).is_none() && self.read.remove(&stamp).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{ChunkIndex, ObjectIndex};
    use super::*;

    fn key(chunk: u64) -> ChunkKey {
        ChunkKey { object: ObjectIndex(0), chunk: ChunkIndex(chunk) }
    }

    #[test]
    fn reader_takes_the_place_of_what_was_read_longest_ago_then_of_what_was_fetched_last() {
        let mut room = Room::limited(40);
        (0..4).for_each(|chunk| room.came(key(chunk), 10));
        assert!(!room.promise(10));
        assert!(room.touch(key(2)) && room.touch(key(0)) && !room.touch(key(2)));
        let mut gone = Vec::new();
        while let Some(victim) = room.victim(true) {
            room.went(victim, 10);
            gone.push(victim.chunk.0);
        }
        assert_eq!(gone, [0, 2, 3, 1]);
        assert!(room.promise(40) && !room.promise(1));
        room.settle(40);
        assert!(room.may_fill(40, 0) && !room.may_fill(21, 1));
    }

    #[test]
    fn fill_takes_only_what_was_read_a_while_ago() {
        let mut room = Room::limited(100 * 10);
        (0..100).for_each(|chunk| room.came(key(chunk), 10));
        assert!(!room.may_fill(10, 0) && room.victim(false).is_none());
        for chunk in 0..=HOT as u64 {
            assert!(room.touch(key(chunk)));
        }
        assert!(room.may_fill(10, 0) && !room.may_fill(10, 1), "one chunk goes for one");
        assert_eq!(room.victim(false), Some(key(0)));
        room.went(key(0), 10);
        assert!(room.was_evicted(key(0)) && !room.was_evicted(key(1)));
        assert_eq!(room.victim(false), None);
    }

    #[test]
    fn full_cache_has_room_and_keeps_no_book() {
        let mut room = Room::default();
        room.came(key(0), u64::MAX);
        assert!(room.promise(u64::MAX) && room.may_fill(u64::MAX, 1) && !room.touch(key(0)));
        assert_eq!((room.victim(true), room.limit()), (None, None));
    }

    proptest! {
        #[test]
        fn limit_is_never_passed(acts in prop::collection::vec((0u64..20, 0u8..4), 0..200)) {
            let mut room = Room::limited(50);
            let mut here = HashSet::new();
            for (chunk, act) in acts {
                match act {
                    0 if here.contains(&chunk) => {
                        room.touch(key(chunk));
                    }
                    0 | 1 if !here.contains(&chunk) => {
                        while !room.promise(10) {
                            let victim = room.victim(true).unwrap();
                            prop_assert!(here.remove(&victim.chunk.0), "a chunk that is not here went");
                            room.went(victim, 10);
                        }
                        room.settle(10);
                        room.came(key(chunk), 10);
                        here.insert(chunk);
                    }
                    2 if here.remove(&chunk) => room.went(key(chunk), 10),
                    _ => {}
                }
                prop_assert!(here.len() <= 5);
                prop_assert_eq!(room.promise(50 - here.len() as u64 * 10), true);
                room.settle(50 - here.len() as u64 * 10);
            }
        }
    }
}
