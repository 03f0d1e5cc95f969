//! What is fetched next. Pure; the order is tested here.
//!
//! Readers come first, always. Behind them the background fill: chunks around which somebody reads, in turn with objects of one
//! chunk, then the first chunk of each large object (it answers every `safe_open`, and proves each object readable), then the rest,
//! one object after the other: the first is the one a loader reads now. Once that is faster than one object may be served (10 Gbit/s,
//! oss.md 1.10), the rest runs over several objects at once, with half of the turns for the first.

use std::collections::{HashMap, VecDeque};

use super::layout::{ChunkIndex, ChunkKey, Layout, ObjectIndex};

/// Objects that are filled at once: enough of them to fill a 100 Gbit/s port at 10 Gbit/s each (oss.md 1.10).
const WINDOW: usize = 8;

/// Rate from which on one object may be what is slow: half of what is served of one (oss.md 1.10), bytes per second.
const SPREAD_FROM: u64 = 600_000_000;

/// Chunks around which somebody reads that are remembered: with more, the oldest come when their turn is.
const ADVANCED: usize = 64;

/// Queue of readers' chunks, and the background order.
#[derive(Debug, Default)]
pub struct Plan {
    readers: VecDeque<ChunkKey>,
    /// What comes between the others, of peers or of the origin, in the order in which it was asked for.
    advanced: VecDeque<ChunkKey>,
    /// The last that the fill took was one of those.
    took_advanced: bool,
    first: VecDeque<ChunkKey>,
    rest: VecDeque<Run>,
    turn: usize,
    /// One object at a time is not enough for the line.
    spread: bool,
    /// Objects somebody opened, the latest first.
    opened: Vec<ObjectIndex>,
    /// The order in which objects are read, as far as it is known.
    ranks: HashMap<ObjectIndex, usize>,
}

/// Chunks of one object that are still to be visited.
#[derive(Debug)]
struct Run {
    object: ObjectIndex,
    next: u64,
    end: u64,
}

impl Run {
    fn next_wanted(&self, wanted: impl Fn(ChunkKey) -> bool) -> Option<ChunkKey> {
        let mut keys =
            (self.next..self.end).map(|chunk| ChunkKey { object: self.object, chunk: ChunkIndex(chunk) });
        keys.find(|key| wanted(*key))
    }
}

impl Plan {
    /// Queue a chunk that somebody waits for.
    pub fn push_reader(&mut self, key: ChunkKey) {
        self.readers.push_back(key);
    }

    /// The next chunk somebody waits for.
    pub fn next_for_reader(&mut self) -> Option<ChunkKey> {
        self.readers.pop_front()
    }

    /// Bytes of the model arrive at this rate, in bytes per second.
    pub fn note_rate(&mut self, rate: u64) {
        self.spread = rate >= SPREAD_FROM;
    }

    /// Objects will be read in this order; those that are not named, behind them. For the next [`Plan::fill`].
    pub fn set_order(&mut self, order: impl Iterator<Item = ObjectIndex>) {
        self.ranks = order.zip(0..).collect();
    }

    /// Plan the fill of `objects`: the opened ones, then in the order that was set, then in list order. Replaces what was
    /// planned before.
    pub fn fill(&mut self, objects: impl Iterator<Item = (ObjectIndex, Layout)>) {
        let mut objects: Vec<_> = objects.collect();
        let opened = |object: ObjectIndex| self.opened.iter().position(|other| *other == object);
        let rank = |object: ObjectIndex| self.ranks.get(&object).copied().unwrap_or(usize::MAX);
        objects.sort_by_key(|(object, _)| (opened(*object).unwrap_or(usize::MAX), rank(*object)));
        let small = |layout: &Layout| layout.chunks() == 1;
        let head = |object: ObjectIndex| ChunkKey { object, chunk: ChunkIndex(0) };
        let (mut first, mut heads) = (VecDeque::new(), VecDeque::new());
        self.rest.clear();
        for (object, layout) in objects.into_iter().filter(|(_, layout)| layout.chunks() > 0) {
            if small(&layout) {
                first.push_back(head(object));
            } else {
                heads.push_back(head(object));
                self.rest.push_back(Run { object, next: 1, end: layout.chunks() });
            }
        }
        first.append(&mut heads);
        self.first = first;
    }

    /// The next chunk of the fill for which `wanted` holds; `None` when the plan is exhausted.
    pub fn next_to_fill(&mut self, wanted: impl Fn(ChunkKey) -> bool) -> Option<ChunkKey> {
        self.drop_unwanted_heads(&wanted);
        let takes_advanced = !self.took_advanced || self.first.is_empty();
        let advanced = if takes_advanced { self.next_advanced(&wanted) } else { None };
        self.took_advanced = advanced.is_some();
        if let Some(key) = advanced.or_else(|| self.first.pop_front()) {
            return Some(key);
        }
        loop {
            let window = if self.spread { WINDOW } else { 1 };
            let others = self.rest.len().min(window).saturating_sub(1);
            let slot = match (self.turn.is_multiple_of(2), others) {
                (true, _) | (_, 0) => 0,
                (false, others) => 1 + (self.turn / 2) % others,
            };
            self.turn = self.turn.wrapping_add(1);
            let run = self.rest.get_mut(slot)?;
            match run.next_wanted(&wanted) {
                Some(key) => {
                    run.next = key.chunk.0.saturating_add(1);
                    return Some(key);
                }
                None => drop(self.rest.remove(slot)),
            }
        }
    }

    /// Whether the fill has no chunk left for which `wanted` holds.
    pub fn is_exhausted(&mut self, wanted: impl Fn(ChunkKey) -> bool) -> bool {
        // What is not wanted now is planned again when that changes, so it can go; usually it is a chunk or two.
        self.drop_unwanted_heads(&wanted);
        self.rest.retain_mut(|run| {
            let next = run.next_wanted(&wanted);
            run.next = next.map_or(run.end, |key| key.chunk.0);
            next.is_some()
        });
        // What is advanced is planned besides, or is again once this is exhausted.
        self.first.is_empty() && self.rest.is_empty()
    }

    fn drop_unwanted_heads(&mut self, wanted: impl Fn(ChunkKey) -> bool) {
        while self.first.front().is_some_and(|key| !wanted(*key)) {
            self.first.pop_front();
        }
    }

    /// Move `object` to the front, now and in the next [`Plan::fill`].
    pub fn prefer(&mut self, object: ObjectIndex) {
        self.opened.retain(|other| *other != object);
        self.opened.insert(0, object);
        if let Some(run) =
            self.rest.iter().position(|run| run.object == object).and_then(|at| self.rest.remove(at))
        {
            self.rest.push_front(run);
        }
        if let Some(head) =
            self.first.iter().position(|key| key.object == object).and_then(|at| self.first.remove(at))
        {
            self.first.push_front(head);
        }
    }

    /// Fill `key` soon: somebody reads around it, and does not wait for it.
    pub fn advance(&mut self, key: ChunkKey) {
        if self.advanced.contains(&key) {
            return;
        }
        if self.advanced.len() == ADVANCED {
            self.advanced.pop_front();
        }
        self.advanced.push_back(key);
    }

    /// The next of those for which `wanted` holds. Peers and the origin are not asked for the same ones.
    pub fn next_advanced(&mut self, wanted: impl Fn(ChunkKey) -> bool) -> Option<ChunkKey> {
        let at = self.advanced.iter().position(|key| wanted(*key))?;
        self.advanced.remove(at)
    }

    /// Chunks planned for nobody in particular are dropped; readers' stay.
    pub fn clear_fill(&mut self) {
        self.advanced.clear();
        self.first.clear();
        self.rest.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planned(lens: &[u64], opened: &[usize]) -> Vec<(usize, u64)> {
        let mut plan = Plan::default();
        plan.fill(layouts(lens));
        opened.iter().for_each(|object| plan.prefer(ObjectIndex(*object)));
        drain(&mut plan)
    }

    fn layouts(lens: &[u64]) -> impl Iterator<Item = (ObjectIndex, Layout)> {
        lens.iter().enumerate().map(|(at, len)| (ObjectIndex(at), Layout::new(*len, 10)))
    }

    fn drain(plan: &mut Plan) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| plan.next_to_fill(|_| true)).map(|key| (key.object.0, key.chunk.0)).collect()
    }

    #[test]
    fn fill_takes_small_objects_then_heads_then_the_rest() {
        assert_eq!(
            planned(&[30, 5, 0, 10, 20], &[]),
            [(1, 0), (3, 0), (0, 0), (4, 0), (0, 1), (0, 2), (4, 1)]
        );
    }

    #[test]
    fn fast_fill_gives_half_of_the_turns_to_the_first_object() {
        let mut plan = Plan::default();
        plan.fill(layouts(&[100, 100, 100]));
        plan.note_rate(SPREAD_FROM);
        let order = drain(&mut plan);
        let rest: Vec<usize> = order[3..11].iter().map(|(object, _)| *object).collect();
        assert_eq!(rest, [0, 1, 0, 2, 0, 1, 0, 2]);
        assert_eq!(
            planned(&[30, 30], &[])[2..],
            [(0, 1), (0, 2), (1, 1), (1, 2)],
            "a slow one reads as a loader does"
        );
    }

    #[test]
    fn opened_object_moves_to_the_front() {
        let order = planned(&[30, 30, 30], &[2]);
        assert_eq!(order[..5], [(2, 0), (0, 0), (1, 0), (2, 1), (2, 2)]);
    }

    #[test]
    fn object_opened_before_the_fill_is_planned_first() {
        let mut plan = Plan::default();
        plan.prefer(ObjectIndex(1));
        plan.fill(layouts(&[20, 20]));
        assert_eq!(drain(&mut plan), [(1, 0), (0, 0), (1, 1), (0, 1)]);
    }

    #[test]
    fn objects_are_filled_in_the_order_in_which_they_are_read() {
        let mut plan = Plan::default();
        plan.set_order([2, 0].map(ObjectIndex).into_iter());
        plan.fill(layouts(&[20, 5, 20, 5]));
        assert_eq!(drain(&mut plan), [(1, 0), (3, 0), (2, 0), (0, 0), (2, 1), (0, 1)]);
        plan.prefer(ObjectIndex(0));
        plan.fill(layouts(&[20, 5, 20, 5]));
        assert_eq!(drain(&mut plan)[2..4], [(0, 0), (2, 0)]);
    }

    #[test]
    fn chunks_that_are_advanced_come_in_turn_with_the_first_ones_and_once() {
        let mut plan = Plan::default();
        plan.fill(layouts(&[55, 5, 5]));
        [3, 2, 4, 2].into_iter().for_each(|chunk| plan.advance(of_first(chunk)));
        let mut done = Vec::new();
        while let Some(next) = plan.next_to_fill(|key| !done.contains(&key)) {
            done.push(next);
        }
        let done: Vec<_> = done.iter().map(|key| (key.object.0, key.chunk.0)).collect();
        assert_eq!(done, [(0, 3), (1, 0), (0, 2), (2, 0), (0, 4), (0, 0), (0, 1), (0, 5)]);
    }

    #[test]
    fn no_more_than_so_many_chunks_are_advanced() {
        let mut plan = Plan::default();
        (0..=ADVANCED as u64).for_each(|chunk| plan.advance(of_first(chunk)));
        assert_eq!(drain(&mut plan), (1..=ADVANCED as u64).map(|chunk| (0, chunk)).collect::<Vec<_>>());
        plan.advance(of_first(7));
        assert!(plan.is_exhausted(|_| true), "it is to be planned as the others are");
        plan.advance(of_first(8));
        assert_eq!(
            plan.next_advanced(|key| key != of_first(7)),
            Some(of_first(8)),
            "the other is somebody else's"
        );
        plan.clear_fill();
        assert_eq!(plan.next_advanced(|_| true), None);
    }

    fn of_first(chunk: u64) -> ChunkKey {
        ChunkKey { object: ObjectIndex(0), chunk: ChunkIndex(chunk) }
    }

    #[test]
    fn readers_are_served_in_order_and_survive_a_stopped_fill() {
        let mut plan = Plan::default();
        plan.fill(layouts(&[20]));
        let keys = [3, 1].map(|chunk| ChunkKey { object: ObjectIndex(7), chunk: ChunkIndex(chunk) });
        keys.into_iter().for_each(|key| plan.push_reader(key));
        plan.clear_fill();
        assert!(plan.is_exhausted(|_| true));
        assert_eq!(
            [plan.next_for_reader(), plan.next_for_reader(), plan.next_for_reader()],
            [Some(keys[0]), Some(keys[1]), None]
        );
    }

    proptest! {
        #[test]
        fn fill_visits_every_wanted_chunk_once(
            lens in proptest::collection::vec(0u64..80, 0..20), opened in proptest::collection::vec(0usize..20, 0..6),
            skip in 1u64..5, rate in prop_oneof![Just(0), Just(SPREAD_FROM)],
        ) {
            let mut plan = Plan::default();
            plan.note_rate(rate);
            plan.fill(layouts(&lens));
            opened.iter().for_each(|object| plan.prefer(ObjectIndex(*object)));
            let wanted = |key: ChunkKey| !(key.chunk.0 + key.object.0 as u64).is_multiple_of(skip) || skip == 1;
            let mut seen: Vec<_> = std::iter::from_fn(|| plan.next_to_fill(wanted)).collect();
            prop_assert!(plan.is_exhausted(|_| true));
            seen.sort();
            let mut expected: Vec<_> = layouts(&lens)
                .flat_map(|(object, layout)| (0..layout.chunks()).map(move |chunk| ChunkKey { object, chunk: ChunkIndex(chunk) }))
                .filter(|key| wanted(*key))
                .collect();
            expected.sort();
            prop_assert_eq!(seen, expected);
        }
    }
}
