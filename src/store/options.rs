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
    /// What is kept on the disk.
    pub cache: CacheMode,
    /// Most bytes of chunks on the disk; `None`: what is free beside the reserve.
    pub cache_bytes: Option<u64>,
}

/// What is kept on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Everything if it fits, else as much as fits, else nothing.
    Auto,
    /// Everything, or the store does not open.
    Full,
    /// As much as fits, or the store does not open.
    Bounded,
    /// Nothing.
    Nothing,
}

impl StoreOptions {
    /// 8 MiB, the range length all fast readers of object stores arrived at (oss.md 4).
    pub const CHUNK_LEN: u64 = 8 << 20;

    /// Least bytes of a bounded cache: every fetch in flight, twice over, so that what is fetched is not let go before it is
    /// read.
    pub fn least_bounded(&self) -> u64 {
        self.chunk_len.saturating_mul(u64::try_from(self.concurrency).unwrap_or(u64::MAX)).saturating_mul(2)
    }

    /// Workers that serve readers only, so that a saturating fill never delays a read by more than a network round trip.
    pub fn reserved(&self) -> usize {
        match self.concurrency {
            0 | 1 => 0,
            all => all.div_ceil(4),
        }
    }
}
