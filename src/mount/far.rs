//! Reads that may have to wait for the network: some of the FUSE threads do, never all of them. The kernel reads ahead with
//! several requests for one reader, so without a limit two readers of missing files would keep everybody waiting.
//!
//! Lock: one mutex around the line, never held over a read.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One in so many threads is left to what is local.
const LEFT_FREE: usize = 4;

/// A line of work that only some threads do at a time.
pub(super) struct Far<W> {
    limit: usize,
    line: Mutex<Line<W>>,
}

struct Line<W> {
    busy: usize,
    waiting: VecDeque<W>,
}

impl<W> Far<W> {
    /// For a session of `threads`. A single one cannot be left free.
    pub(super) fn new(threads: usize) -> Self {
        let limit = threads.saturating_sub((threads / LEFT_FREE).max(1)).max(1);
        Far { limit, line: Mutex::new(Line { busy: 0, waiting: VecDeque::new() }) }
    }

    /// Do `work`, and what was left in the line meanwhile; or leave it to the threads that do such work already.
    pub(super) fn run(&self, work: W, mut act: impl FnMut(W)) {
        let mut next = self.enter(work);
        while let Some(work) = next {
            act(work);
            next = self.proceed();
        }
    }

    fn enter(&self, work: W) -> Option<W> {
        let mut line = self.lock();
        if line.busy == self.limit {
            line.waiting.push_back(work);
            return None;
        }
        line.busy += 1;
        Some(work)
    }

    fn proceed(&self) -> Option<W> {
        let mut line = self.lock();
        let next = line.waiting.pop_front();
        if next.is_none() {
            line.busy = line.busy.saturating_sub(1);
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, Line<W>> {
        // Each change of the line is complete in itself.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_left_free_unless_there_is_only_one() {
        let limits = [0, 1, 2, 3, 4, 8, 16, 64].map(|threads| Far::<()>::new(threads).limit);
        assert_eq!(limits, [1, 1, 1, 2, 3, 6, 12, 48]);
    }

    #[test]
    fn work_over_the_limit_is_done_in_order_by_who_works_already() {
        let far = Far::new(2);
        let mut done = Vec::new();
        far.run(1, |work| {
            if work == 1 {
                // Another thread comes along, twice, and is sent away.
                far.run(2, |_| panic!("two at a time"));
                far.run(3, |_| panic!("two at a time"));
            }
            done.push(work);
        });
        assert_eq!(done, [1, 2, 3]);
        // Nobody is busy now.
        far.run(4, |work| done.push(work));
        assert_eq!(done, [1, 2, 3, 4]);
    }
}
