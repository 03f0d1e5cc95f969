//! What readers got and how long they waited, counted since the process began. One process has one mount, so the counters are
//! the process's: they outlive every revision. Each is exact by itself; together they are of about the same moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::gocryptfs;

/// Upper bounds of the counted latencies, microseconds: from the page-cache hit of a local block to the default deadline of a
/// read that waits for the network.
pub const READ_BOUNDS: [u64; 14] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// Reads of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reads {
    /// How many took no longer than the bound at the same place of [`READ_BOUNDS`], and longer than the one before.
    pub within: [u64; READ_BOUNDS.len()],
    /// How many took longer than all of them.
    pub longer: u64,
    /// How long all of them took.
    pub spent: Duration,
}

/// What was counted up to one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The kernel's reads of files that were here as a whole.
    pub local: Reads,
    /// The kernel's reads of files of which something was still to come, the time in the line included.
    pub remote: Reads,
    /// Plaintext bytes given to the kernel.
    pub bytes: u64,
    /// Reads answered with an error.
    pub errors: u64,
    /// Plaintext bytes that were opened, for whatever purpose.
    pub decrypted: u64,
    /// How long that took, of all threads together.
    pub decrypting: Duration,
    /// Plaintext bytes of whole files in memory (load and ram mode).
    pub in_memory: u64,
}

struct Times {
    within: [AtomicU64; READ_BOUNDS.len()],
    longer: AtomicU64,
    nanos: AtomicU64,
}

static LOCAL: Times = Times::new();
static REMOTE: Times = Times::new();
static BYTES: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU64 = AtomicU64::new(0);
static IN_MEMORY: AtomicU64 = AtomicU64::new(0);

impl Times {
    const fn new() -> Self {
        let within = [const { AtomicU64::new(0) }; READ_BOUNDS.len()];
        Times { within, longer: AtomicU64::new(0), nanos: AtomicU64::new(0) }
    }

    fn note(&self, took: Duration) {
        let fits = |bound: &u64| took <= Duration::from_micros(*bound);
        let place = READ_BOUNDS.iter().position(fits).and_then(|at| self.within.get(at));
        add(place.unwrap_or(&self.longer), 1);
        add(&self.nanos, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    fn reads(&self) -> Reads {
        let within = self.within.each_ref().map(now);
        Reads { within, longer: now(&self.longer), spent: Duration::from_nanos(now(&self.nanos)) }
    }
}

fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

fn now(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A read that came in at `since` is answered with so many bytes, or an error.
pub(super) fn read(is_local: bool, since: Instant, bytes: Option<usize>) {
    let times = if is_local { &LOCAL } else { &REMOTE };
    times.note(since.elapsed());
    match bytes {
        Some(bytes) => add(&BYTES, u64::try_from(bytes).unwrap_or(u64::MAX)),
        None => add(&ERRORS, 1),
    }
}

/// A file of `bytes` takes memory.
pub(super) fn taken(bytes: u64) {
    add(&IN_MEMORY, bytes);
}

/// It is given back.
pub(super) fn freed(bytes: u64) {
    IN_MEMORY.fetch_sub(bytes, Ordering::Relaxed);
}

/// What was counted until now.
pub fn counts() -> Counts {
    let (decrypted, decrypting) = gocryptfs::opened();
    Counts {
        local: LOCAL.reads(),
        remote: REMOTE.reads(),
        bytes: now(&BYTES),
        errors: now(&ERRORS),
        decrypted,
        decrypting,
        in_memory: now(&IN_MEMORY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_counted_at_the_first_bound_that_they_keep() {
        let times = Times::new();
        for micros in [0, 50, 51, 30_000_000, 30_000_001] {
            times.note(Duration::from_micros(micros));
        }
        let mut expected = Reads { longer: 1, spent: Duration::from_micros(60_000_102), ..Reads::default() };
        (expected.within[0], expected.within[1], expected.within[13]) = (2, 1, 1);
        assert_eq!(times.reads(), expected);
    }

    #[test]
    fn bounds_rise() {
        assert!(READ_BOUNDS.is_sorted_by(|one, next| one < next));
    }
}
