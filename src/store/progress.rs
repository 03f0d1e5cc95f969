//! What the store is doing, for people: counters, rate and current problems.
//!
//! Counted under the store's lock, published by one task.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::error::{DENIED, UNAVAILABLE};
use crate::error::ErrorClass;

/// Problems kept at most: enough to see a pattern, small enough for a status line and the bus.
const MAX_PROBLEMS: usize = 16;
/// Span the rate is averaged over: long enough to be steady with 8 MiB chunks, short enough to show a stall.
const RATE_SPAN: Duration = Duration::from_secs(5);

/// A snapshot. Bytes are ciphertext bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of all objects.
    pub bytes_total: u64,
    /// Bytes that are local and verified.
    pub bytes_done: u64,
    /// Of those, bytes found in the cache at the start.
    pub bytes_from_cache: u64,
    /// Bytes fetched in this run by source name, refetched ones included.
    pub bytes_by_source: Vec<(&'static str, u64)>,
    /// Number of objects.
    pub objects_total: usize,
    /// Objects that are local and verified as a whole.
    pub objects_done: usize,
    /// Fetches running.
    pub in_flight: usize,
    /// Objects of which something is fetched now.
    pub coming: Vec<Coming>,
    /// Fetches repeated since the start.
    pub retries: u64,
    /// Bytes fetched per second, over the last seconds.
    pub bytes_per_sec: u64,
    /// What went wrong lately and has not come right since, newest last.
    pub problems: Vec<Problem>,
    /// `false` where nothing is kept on the disk: by choice, or because it is full or failing.
    pub caching: bool,
    /// Most bytes kept on the disk; `None`: all there are.
    pub cache_limit: Option<u64>,
}

/// An object of which something is fetched now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coming {
    /// Its path.
    pub path: String,
    /// Bytes of it that are local and verified.
    pub bytes_done: u64,
    /// Bytes of all of it.
    pub bytes_total: u64,
}

/// Something an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the object, or of the cache directory.
    pub path: String,
    /// Stable code, as of [`crate::error::Fault::code`].
    pub code: &'static str,
    /// What kind of failure it is, as of [`crate::error::Fault::class`].
    pub class: ErrorClass,
    /// What happened, with the cause.
    pub detail: String,
}

/// Counters behind [`Progress`].
#[derive(Debug, Default)]
pub struct Counters {
    pub bytes_done: u64,
    pub bytes_from_cache: u64,
    pub bytes_fetched: u64,
    pub objects_done: usize,
    pub retries: u64,
    problems: VecDeque<Problem>,
}

impl Counters {
    /// Note a problem; one of the same object and code is replaced.
    pub fn report(&mut self, problem: Problem) {
        self.problems.retain(|other| (&other.path, other.code) != (&problem.path, problem.code));
        if self.problems.len() >= MAX_PROBLEMS {
            self.problems.pop_front();
        }
        self.problems.push_back(problem);
    }

    /// The object at `path` delivers again: neither the network nor a policy is in the way any more.
    pub fn recovered(&mut self, path: &str) {
        let over = |problem: &Problem| problem.path == path && [UNAVAILABLE, DENIED].contains(&problem.code);
        self.problems.retain(|problem| !over(problem));
    }

    /// Current problems, newest last.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.iter().cloned().collect()
    }
}

/// Average over [`RATE_SPAN`].
#[derive(Debug, Default)]
pub struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    /// Note that `bytes` have been fetched in all until `now`; gives bytes per second.
    pub fn sample(&mut self, now: Instant, bytes: u64) -> u64 {
        self.samples.push_back((now, bytes));
        // One sample older than the span stays, so that the span is covered.
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_SPAN) {
            self.samples.pop_front();
        }
        let Some((since, before)) = self.samples.front() else { return 0 };
        let millis = now.duration_since(*since).as_millis().max(1);
        let rate = u128::from(bytes.saturating_sub(*before)).saturating_mul(1000) / millis;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &str, code: &'static str, detail: &str) -> Problem {
        Problem { path: path.into(), code, class: ErrorClass::Transient, detail: detail.into() }
    }

    #[test]
    fn problems_are_bounded_and_one_per_object_and_code() {
        let mut counters = Counters::default();
        (0..40).for_each(|at| counters.report(problem(&format!("o{at}"), "store.denied", "no")));
        counters.report(problem("o39", "store.denied", "still no"));
        let problems = counters.problems();
        assert_eq!(problems.len(), MAX_PROBLEMS);
        assert_eq!(problems.last(), Some(&problem("o39", "store.denied", "still no")));
        assert_eq!(problems[0].path, "o24");
    }

    #[test]
    fn recovery_clears_what_can_pass_of_that_object_only() {
        let mut counters = Counters::default();
        counters.report(problem("a", "store.unavailable", "reset"));
        counters.report(problem("a", "store.denied", "no"));
        counters.report(problem("a", "store.object-changed", "other"));
        counters.report(problem("b", "store.unavailable", "reset"));
        counters.recovered("a");
        assert_eq!(
            counters.problems(),
            [problem("a", "store.object-changed", "other"), problem("b", "store.unavailable", "reset")]
        );
    }

    #[test]
    fn rate_is_averaged_over_the_last_seconds_only() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!(rate.sample(start, 1_000), 0);
        assert_eq!(rate.sample(start + Duration::from_secs(2), 3_000), 1_000);
        assert_eq!(rate.sample(start + Duration::from_secs(4), 3_000), 500);
        assert_eq!(rate.sample(start + Duration::from_secs(60), 3_000), 0);
    }
}
