//! Load mode's book: which large file is held in memory, who has it open, what leaves when. Pure; the loader acts on it.
//!
//! The kernel allows one way at a time for all who have a file open: through the page cache or passed through (it answers
//! `EIO` or `ETXTBSY` otherwise). So a file that somebody reads on demand is not passed through to anybody until it is closed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// A file in memory that the kernel reads through.
#[derive(Debug)]
struct Loaded<B> {
    buffer: B,
    /// The kernel's number for it.
    id: u32,
    bytes: u64,
    opens: u32,
    /// When it was last opened or closed.
    used: Instant,
}

#[derive(Debug)]
enum Held<W, B> {
    /// Open by this many, through the page cache.
    OnDemand(u32),
    /// Being decrypted, or waiting for its turn.
    Loading {
        bytes: u64,
        waiting: Vec<W>,
    },
    Loaded(Loaded<B>),
}

/// How an `open` is answered. `W` is who waits for the answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer<W> {
    /// Now, and the file is read block by block.
    OnDemand(W),
    /// Now, and the kernel reads the registered file with this number.
    Through(W, u32),
    /// When the file is loaded; it has been queued if it was not.
    Later,
}

/// A file that left memory: its buffer, and the kernel's number to be given back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Left<B> {
    pub(super) buffer: B,
    pub(super) id: u32,
    pub(super) bytes: u64,
}

/// The book. Keys are inodes; `bytes` are those a file takes in memory.
#[derive(Debug)]
pub(super) struct Ledger<W, B> {
    /// Most bytes in memory, what is being loaded included. 0: nothing is loaded.
    limit: u64,
    taken: u64,
    files: HashMap<u64, Held<W, B>>,
    /// Files that could not be loaded, and are not tried again.
    unfit: HashSet<u64>,
    /// To be loaded, those with waiters first.
    queue: VecDeque<u64>,
}

impl<W, B> Ledger<W, B> {
    /// A book that loads nothing until it gets a limit.
    pub(super) fn new() -> Self {
        Ledger { limit: 0, taken: 0, files: HashMap::new(), unfit: HashSet::new(), queue: VecDeque::new() }
    }

    /// From now on at most `limit` bytes are held.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Bytes that are held or promised.
    #[cfg(test)]
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Somebody opens `inode` of `bytes`. `fit` says whether it can be loaded now, from what is local.
    pub(super) fn open(&mut self, inode: u64, bytes: u64, fit: bool, who: W, now: Instant) -> Answer<W> {
        let may_load = fit && self.may_load(inode, bytes) && self.room_with_evictions() >= bytes;
        match self.files.get_mut(&inode) {
            Some(Held::Loaded(loaded)) => {
                loaded.opens += 1;
                loaded.used = now;
                Answer::Through(who, loaded.id)
            }
            Some(Held::Loading { waiting, .. }) => {
                let first = waiting.is_empty();
                waiting.push(who);
                if first && self.unqueue(inode) {
                    // It was only to be loaded ahead; now somebody waits.
                    self.enqueue_before_those_ahead(inode);
                }
                Answer::Later
            }
            Some(Held::OnDemand(opens)) => {
                *opens += 1;
                Answer::OnDemand(who)
            }
            None if may_load => {
                self.promise(inode, bytes, vec![who]);
                self.enqueue_before_those_ahead(inode);
                Answer::Later
            }
            None => {
                self.files.insert(inode, Held::OnDemand(1));
                Answer::OnDemand(who)
            }
        }
    }

    /// Load `inode` before anybody opens it, if there is room without taking anything from anybody.
    pub(super) fn ahead(&mut self, inode: u64, bytes: u64) -> bool {
        let wanted = !self.files.contains_key(&inode) && self.may_load(inode, bytes);
        let wanted = wanted && self.limit.saturating_sub(self.taken) >= bytes;
        if wanted {
            self.promise(inode, bytes, Vec::new());
            self.queue.push_back(inode);
        }
        wanted
    }

    /// The next file to load.
    pub(super) fn next(&mut self) -> Option<u64> {
        self.queue.pop_front()
    }

    /// Whether what is promised and held is over the limit: somebody has to leave before the next file is loaded.
    pub(super) fn over(&self) -> bool {
        self.taken > self.limit
    }

    /// `inode` is in memory, registered as `id`. Everybody who waited has it open now.
    pub(super) fn loaded(&mut self, inode: u64, buffer: B, id: u32, now: Instant) -> Vec<W> {
        let (bytes, waiting) = match self.files.remove(&inode) {
            Some(Held::Loading { bytes, waiting }) => (bytes, waiting),
            _ => (0, Vec::new()),
        };
        let opens = count(&waiting);
        self.files.insert(inode, Held::Loaded(Loaded { buffer, id, bytes, opens, used: now }));
        waiting
    }

    /// `inode` was not loaded; `again` says whether a later open may try. Everybody who waited reads on demand.
    pub(super) fn not_loaded(&mut self, inode: u64, again: bool) -> Vec<W> {
        let Some(Held::Loading { bytes, waiting }) = self.files.remove(&inode) else { return Vec::new() };
        self.taken = self.taken.saturating_sub(bytes);
        if !again {
            self.unfit.insert(inode);
        }
        if !waiting.is_empty() {
            self.files.insert(inode, Held::OnDemand(count(&waiting)));
        }
        waiting
    }

    /// Somebody closed `inode`, opened in the way that [`Answer`] said.
    pub(super) fn close(&mut self, inode: u64, now: Instant) {
        match self.files.get_mut(&inode) {
            Some(Held::Loaded(loaded)) => {
                loaded.opens = loaded.opens.saturating_sub(1);
                loaded.used = now;
            }
            Some(Held::OnDemand(opens)) if *opens > 1 => *opens -= 1,
            Some(Held::OnDemand(_)) => {
                self.files.remove(&inode);
            }
            Some(Held::Loading { .. }) | None => {}
        }
    }

    /// Take out the file that nobody has open and that was used longest ago. Its bytes stay taken until [`Ledger::freed`].
    pub(super) fn evict(&mut self) -> Option<Left<B>> {
        let oldest = self.idle().min_by_key(|(_, loaded)| loaded.used).map(|(inode, _)| inode);
        oldest.and_then(|inode| self.take_out(inode))
    }

    /// Take out a file that nobody has had open for `idle`.
    pub(super) fn expire(&mut self, idle: Duration, now: Instant) -> Option<Left<B>> {
        let old = |loaded: &Loaded<B>| now.saturating_duration_since(loaded.used) >= idle;
        let expired = self.idle().find(|(_, loaded)| old(loaded)).map(|(inode, _)| inode);
        expired.and_then(|inode| self.take_out(inode))
    }

    /// Memory of `bytes` was given back.
    pub(super) fn freed(&mut self, bytes: u64) {
        self.taken = self.taken.saturating_sub(bytes);
    }

    /// Everything that is in memory, at the end; nothing is loaded any more. Who waited is told to go on.
    pub(super) fn end(&mut self) -> (Vec<Left<B>>, Vec<W>) {
        self.limit = 0;
        self.queue.clear();
        let (mut left, mut waited) = (Vec::new(), Vec::new());
        for (_, held) in self.files.drain() {
            match held {
                Held::Loaded(Loaded { buffer, id, bytes, .. }) => left.push(Left { buffer, id, bytes }),
                Held::Loading { waiting, .. } => waited.extend(waiting),
                Held::OnDemand(_) => {}
            }
        }
        (left, waited)
    }

    fn may_load(&self, inode: u64, bytes: u64) -> bool {
        bytes <= self.limit && !self.unfit.contains(&inode)
    }

    /// What could be had if everything idle left.
    fn room_with_evictions(&self) -> u64 {
        let idle = self.idle().map(|(_, loaded)| loaded.bytes).fold(0, u64::saturating_add);
        self.limit.saturating_sub(self.taken.saturating_sub(idle))
    }

    fn promise(&mut self, inode: u64, bytes: u64, waiting: Vec<W>) {
        self.taken = self.taken.saturating_add(bytes);
        self.files.insert(inode, Held::Loading { bytes, waiting });
    }

    fn unqueue(&mut self, inode: u64) -> bool {
        let at = self.queue.iter().position(|queued| *queued == inode);
        at.is_some_and(|at| self.queue.remove(at).is_some())
    }

    fn enqueue_before_those_ahead(&mut self, inode: u64) {
        let ahead = self.queue.iter().position(|queued| !self.has_waiters(*queued));
        self.queue.insert(ahead.unwrap_or(self.queue.len()), inode);
    }

    fn has_waiters(&self, inode: u64) -> bool {
        matches!(self.files.get(&inode), Some(Held::Loading { waiting, .. }) if !waiting.is_empty())
    }

    fn idle(&self) -> impl Iterator<Item = (u64, &Loaded<B>)> {
        self.files.iter().filter_map(|(inode, held)| match held {
            Held::Loaded(loaded) if loaded.opens == 0 => Some((*inode, loaded)),
            _ => None,
        })
    }

    fn take_out(&mut self, inode: u64) -> Option<Left<B>> {
        match self.files.remove(&inode) {
            Some(Held::Loaded(Loaded { buffer, id, bytes, .. })) => Some(Left { buffer, id, bytes }),
            Some(other) => {
                self.files.insert(inode, other);
                None
            }
            None => None,
        }
    }
}

fn count<W>(waiting: &[W]) -> u32 {
    u32::try_from(waiting.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn book(limit: u64) -> (Ledger<u32, u64>, Instant) {
        let mut ledger = Ledger::new();
        ledger.set_limit(limit);
        (ledger, Instant::now())
    }

    #[test]
    fn file_is_loaded_once_for_all_who_wait_and_shared_by_all_who_come() {
        let (mut book, now) = book(100 * MIB);
        assert_eq!(book.open(7, 40 * MIB, true, 1, now), Answer::Later);
        assert_eq!(book.open(7, 40 * MIB, true, 2, now), Answer::Later);
        assert_eq!((book.next(), book.next()), (Some(7), None));
        assert_eq!(book.loaded(7, 70, 5, now), [1, 2]);
        assert_eq!(book.open(7, 40 * MIB, true, 3, now), Answer::Through(3, 5));
        assert_eq!(book.taken(), 40 * MIB);
        for _ in 0..3 {
            assert_eq!(book.evict(), None, "it is open");
            book.close(7, now);
        }
        assert_eq!(book.evict(), Some(Left { buffer: 70, id: 5, bytes: 40 * MIB }));
        assert_eq!(book.taken(), 40 * MIB, "until its memory is given back");
        book.freed(40 * MIB);
        assert_eq!(book.taken(), 0);
    }

    #[test]
    fn file_that_is_read_on_demand_is_not_passed_through_before_it_is_closed() {
        let (mut book, now) = book(100 * MIB);
        assert_eq!(book.open(7, 40 * MIB, false, 1, now), Answer::OnDemand(1));
        assert_eq!(book.open(7, 40 * MIB, true, 2, now), Answer::OnDemand(2));
        book.close(7, now);
        assert_eq!(book.open(7, 40 * MIB, true, 3, now), Answer::OnDemand(3));
        book.close(7, now);
        book.close(7, now);
        assert_eq!(book.open(7, 40 * MIB, true, 4, now), Answer::Later);
    }

    #[test]
    fn who_waits_comes_before_what_is_loaded_ahead() {
        let (mut book, now) = book(100 * MIB);
        assert!(book.ahead(1, MIB) && book.ahead(2, MIB));
        assert!(!book.ahead(2, MIB), "it is queued already");
        assert_eq!(book.open(3, MIB, true, 0, now), Answer::Later);
        assert_eq!(book.open(2, MIB, true, 0, now), Answer::Later);
        assert_eq!(std::iter::from_fn(|| book.next()).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn nothing_is_taken_from_anybody_to_load_ahead() {
        let (mut book, now) = book(50 * MIB);
        assert_eq!(book.open(1, 40 * MIB, true, 0, now), Answer::Later);
        book.loaded(1, 0, 0, now);
        book.close(1, now);
        assert!(!book.ahead(2, 20 * MIB));
        assert_eq!(book.open(2, 20 * MIB, true, 0, now), Answer::Later, "who waits may");
        assert!(book.over());
        assert!(book.evict().is_some());
        book.freed(40 * MIB);
        assert!(!book.over());
    }

    #[test]
    fn file_without_room_is_read_on_demand_and_loaded_later() {
        let (mut book, now) = book(50 * MIB);
        assert_eq!(book.open(1, 40 * MIB, true, 0, now), Answer::Later);
        book.loaded(1, 0, 0, now);
        assert_eq!(book.open(2, 20 * MIB, true, 0, now), Answer::OnDemand(0), "1 is open");
        assert_eq!(book.open(3, 60 * MIB, true, 0, now), Answer::OnDemand(0), "more than the limit");
        book.close(1, now);
        book.close(2, now);
        assert_eq!(book.open(2, 20 * MIB, true, 0, now), Answer::Later);
        assert_eq!(book.not_loaded(2, true), [0]);
        book.close(2, now);
        assert_eq!(book.open(2, 20 * MIB, true, 0, now), Answer::Later, "it may be tried again");
        assert_eq!(book.not_loaded(2, false), [0]);
        book.close(2, now);
        assert_eq!(book.open(2, 20 * MIB, true, 0, now), Answer::OnDemand(0), "damaged");
        assert_eq!(book.taken(), 40 * MIB);
    }

    #[test]
    fn the_longest_unused_leaves_first_and_only_the_idle_expire() {
        let (mut book, begun) = book(100 * MIB);
        let at = |secs| begun + Duration::from_secs(secs);
        for inode in [1, 2, 3] {
            book.open(inode, MIB, true, 0, begun);
            book.loaded(inode, inode, 0, begun);
        }
        book.close(2, at(1));
        book.close(1, at(2));
        let idle = Duration::from_secs(10);
        assert_eq!(book.expire(idle, at(10)), None);
        assert_eq!(book.expire(idle, at(11)).unwrap().buffer, 2);
        assert_eq!(book.evict().unwrap().buffer, 1);
        assert_eq!(book.expire(idle, at(100)), None, "3 is open");
    }

    #[test]
    fn the_end_lets_everybody_go() {
        let (mut book, now) = book(100 * MIB);
        book.open(1, MIB, true, 1, now);
        book.loaded(1, 10, 0, now);
        book.open(2, MIB, true, 2, now);
        book.open(3, MIB, false, 3, now);
        let (left, waited) = book.end();
        assert_eq!((left.len(), waited), (1, vec![2]));
        assert_eq!(book.open(4, MIB, true, 4, now), Answer::OnDemand(4));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Open(u64, bool),
        Close(u64),
        Ahead(u64),
        Work(bool),
        Expire,
    }

    fn act() -> impl Strategy<Value = Act> {
        let inode = 0..5_u64;
        prop_oneof![
            4 => (inode.clone(), any::<bool>()).prop_map(|(inode, fit)| Act::Open(inode, fit)),
            4 => inode.clone().prop_map(Act::Close),
            1 => inode.prop_map(Act::Ahead),
            3 => any::<bool>().prop_map(Act::Work),
            1 => Just(Act::Expire),
        ]
    }

    /// Who has what open, as the kernel counts it.
    #[derive(Default, Clone)]
    struct Kernel {
        through: HashMap<u64, Vec<u32>>,
        on_demand: HashMap<u64, u32>,
        waiting: HashMap<u64, u32>,
    }

    impl Kernel {
        fn opened(&mut self, inode: u64, answer: &Answer<u32>) -> Result<(), TestCaseError> {
            match answer {
                Answer::OnDemand(_) => *self.on_demand.entry(inode).or_default() += 1,
                Answer::Through(_, id) => self.through.entry(inode).or_default().push(*id),
                Answer::Later => *self.waiting.entry(inode).or_default() += 1,
            }
            self.holds(inode)
        }

        /// The kernel's rule: one way at a time, one registered file at a time.
        fn holds(&self, inode: u64) -> Result<(), TestCaseError> {
            let through = self.through.get(&inode).cloned().unwrap_or_default();
            prop_assert!(through.is_empty() || self.on_demand.get(&inode).is_none_or(|opens| *opens == 0));
            prop_assert!(through.windows(2).all(|ids| ids[0] == ids[1]));
            Ok(())
        }

        fn close(&mut self, inode: u64) -> bool {
            if let Some(opens) = self.on_demand.get_mut(&inode).filter(|opens| **opens > 0) {
                *opens -= 1;
                return true;
            }
            self.through.get_mut(&inode).and_then(Vec::pop).is_some()
        }
    }

    proptest! {
        #[test]
        fn kernel_never_sees_two_ways_and_memory_is_counted_to_the_byte(acts in prop::collection::vec(act(), 1..200)) {
            let (mut book, mut now) = book(100);
            let (mut kernel, mut ids) = (Kernel::default(), 0u32);
            let bytes = |inode: u64| 20 + 15 * inode;
            // Bytes by registered number: what is really in memory.
            let mut held: HashMap<u32, (u64, u64)> = HashMap::new();
            for act in acts {
                now += Duration::from_secs(1);
                match act {
                    Act::Open(inode, fit) => {
                        let answer = book.open(inode, bytes(inode), fit, 0, now);
                        kernel.opened(inode, &answer)?;
                    }
                    Act::Close(inode) => if kernel.close(inode) { book.close(inode, now) },
                    Act::Ahead(inode) => { book.ahead(inode, bytes(inode)); }
                    Act::Expire => while let Some(left) = book.expire(Duration::from_secs(5), now) {
                        prop_assert!(kernel.through.values().flatten().all(|id| *id != left.id), "evicted while open");
                        prop_assert_eq!(held.remove(&left.id), Some((left.buffer, left.bytes)));
                        book.freed(left.bytes);
                    },
                    Act::Work(succeeds) => {
                        let Some(inode) = book.next() else { continue };
                        while book.over() {
                            let Some(left) = book.evict() else { break };
                            prop_assert!(kernel.through.values().flatten().all(|id| *id != left.id), "evicted while open");
                            prop_assert_eq!(held.remove(&left.id), Some((left.buffer, left.bytes)));
                            book.freed(left.bytes);
                        }
                        let waiting = kernel.waiting.remove(&inode).unwrap_or(0);
                        let answered = if succeeds && !book.over() {
                            ids += 1;
                            held.insert(ids, (inode, bytes(inode)));
                            let waited = book.loaded(inode, inode, ids, now);
                            kernel.through.entry(inode).or_default().extend(waited.iter().map(|_| ids));
                            waited
                        } else {
                            let waited = book.not_loaded(inode, true);
                            *kernel.on_demand.entry(inode).or_default() += u32::try_from(waited.len()).unwrap();
                            waited
                        };
                        prop_assert_eq!(answered.len(), waiting as usize, "somebody waits for ever");
                        kernel.holds(inode)?;
                        prop_assert!(held.values().map(|(_, bytes)| bytes).sum::<u64>() <= 100);
                    }
                }
            }
            // Everything queued can be worked off, and then exactly what is held is counted.
            while let Some(inode) = book.next() {
                book.not_loaded(inode, true);
            }
            prop_assert_eq!(book.taken(), held.values().map(|(_, bytes)| bytes).sum::<u64>());
        }
    }
}
