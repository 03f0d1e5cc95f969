//! What the gateway counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers since start, and what is open now. Each is exact by itself; together they are of about the same moment.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) streams: AtomicU64,
    pub(super) streams_total: AtomicU64,
    pub(super) handshakes_done: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) plaintext_checks: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
}

/// What was counted up to one moment, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Connections open now.
    pub connections: u64,
    /// Tunnelled connections to the backend open now.
    pub streams: u64,
    /// Tunnelled connections since start.
    pub streams_total: u64,
    /// TLS handshakes done since start.
    pub handshakes_done: u64,
    /// Refused since start: handshakes that failed, plaintext, too many at a time, a backend that was not there.
    pub refused: u64,
    /// Health checks passed on in plaintext since start.
    pub plaintext_checks: u64,
    /// Plaintext bytes passed on from clients to the backend since start.
    pub received: u64,
    /// Plaintext bytes passed on from the backend to clients since start.
    pub sent: u64,
}

impl Counters {
    pub(super) fn snapshot(&self) -> Snapshot {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            connections: now(&self.connections),
            streams: now(&self.streams),
            streams_total: now(&self.streams_total),
            handshakes_done: now(&self.handshakes_done),
            refused: now(&self.refused),
            plaintext_checks: now(&self.plaintext_checks),
            received: now(&self.received),
            sent: now(&self.sent),
        }
    }
}

/// Count one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Count so many bytes more.
pub(super) fn add(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// One that is open, until dropped.
pub(super) struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    pub(super) fn new(counter: &'a AtomicU64) -> Self {
        count(counter);
        Open(counter)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
