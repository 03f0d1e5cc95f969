//! How a store is set up.

use std::path::PathBuf;
use std::time::Duration;

use super::backoff::Retry;

/// How a store is set up.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Cache directory, created with mode 0700.
    pub dir: PathBuf,
    /// Chunk length in bytes, at least 1; [`StoreOptions::CHUNK_LEN`] outside of tests.
    pub chunk_len: u64,
    /// Fetches in flight, at least 1; a quarter of them is kept for readers.
    pub concurrency: usize,
    /// How long a read waits for its bytes.
    pub read_timeout: Duration,
    /// How transient failures are retried.
    pub retry: Retry,
    /// Bytes of the file system that must stay free.
    pub reserve_bytes: u64,
}

impl StoreOptions {
    /// 8 MiB, the range length all fast readers of object stores arrived at (oss.md 4).
    pub const CHUNK_LEN: u64 = 8 << 20;

    /// Workers that serve readers only, so that a saturating fill never delays a read by more than a network round trip.
    pub fn reserved(&self) -> usize {
        match self.concurrency {
            0 | 1 => 0,
            all => all.div_ceil(4),
        }
    }
}
