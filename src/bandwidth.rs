//! A token bucket over bytes: those that `oss.bandwidth_limit` allows to come, and `peer.upload_limit` to go.
//!
//! Whoever has received too much reads on later; the peer notices by its full window. Bytes that a reader waits for are only held
//! back by each other; the others by all. One mutex, held for arithmetic.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::Urgency;

/// How much may come at once after a quiet time, as a time at full rate: enough for the scheduler's jitter.
const BURST: Duration = Duration::from_millis(100);

/// When what was taken will have been due.
#[derive(Clone, Copy)]
struct Due {
    all: Instant,
    urgent: Instant,
}

/// The bucket.
pub struct Bandwidth {
    bytes_per_sec: u64,
    due: Mutex<Due>,
}

impl Bandwidth {
    /// `bytes_per_sec` at most, or `None` for 0.
    pub fn new(bytes_per_sec: u64) -> Option<Self> {
        (bytes_per_sec > 0).then(|| {
            let now = Instant::now();
            Bandwidth { bytes_per_sec, due: Mutex::new(Due { all: now, urgent: now }) }
        })
    }

    /// `len` bytes have arrived; wait until they were due.
    pub async fn take(&self, len: usize, urgency: &Urgency) {
        let nanos = u128::try_from(len).unwrap_or(u128::MAX).saturating_mul(1_000_000_000)
            / u128::from(self.bytes_per_sec);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let all = self.charge(cost, |due| &mut due.all);
        tokio::select! {
            biased;
            () = urgency.raised() => {
                let urgent = self.charge(cost, |due| &mut due.urgent);
                tokio::time::sleep_until(urgent.min(all)).await;
            }
            () = tokio::time::sleep_until(all) => {}
        }
    }

    /// When that will have been due.
    fn charge(&self, cost: Duration, whose: impl FnOnce(&mut Due) -> &mut Instant) -> Instant {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let at = whose(&mut due);
        let start = (*at).max(now.checked_sub(BURST).unwrap_or(now));
        *at = start.checked_add(cost).unwrap_or(start);
        *at
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::AT_ONCE;

    #[tokio::test(start_paused = true)]
    async fn many_readers_together_get_the_rate_and_no_more() {
        let bandwidth = Arc::new(Bandwidth::new(10 << 20).unwrap());
        let began = Instant::now();
        let readers = (0..8).map(|_| {
            let bandwidth = bandwidth.clone();
            async move {
                for _ in 0..100 {
                    bandwidth.take(128 << 10, &Urgency::default()).await;
                }
            }
        });
        futures_util::future::join_all(readers).await;
        // 100 MiB at 10 MiB/s, less the burst.
        let took = began.elapsed();
        assert!(took > Duration::from_millis(9_800) && took < Duration::from_millis(10_100), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn quiet_time_is_not_saved_up() {
        let bandwidth = Bandwidth::new(1_000).unwrap();
        tokio::time::advance(Duration::from_secs(3600)).await;
        let began = Instant::now();
        bandwidth.take(2_000, &Urgency::default()).await;
        assert_eq!(began.elapsed().as_millis() / 10, 190);
    }

    #[tokio::test(start_paused = true)]
    async fn reader_is_held_back_by_readers_only_and_the_rate_stays() {
        let bandwidth = Bandwidth::new(1_000).unwrap();
        let (began, idle) = (Instant::now(), Urgency::default());
        let seconds = || (began.elapsed().as_millis() + 50) / 1000;
        let fill = async {
            bandwidth.take(10_100, &idle).await;
            assert_eq!(seconds(), 10);
            // After what the reader took.
            bandwidth.take(1_000, &idle).await;
            assert_eq!(seconds(), 14);
        };
        let reader = async {
            bandwidth.take(2_100, &AT_ONCE).await;
            assert_eq!(seconds(), 2);
            bandwidth.take(1_000, &AT_ONCE).await;
            assert_eq!(seconds(), 3);
        };
        tokio::join!(fill, reader);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_somebody_begins_to_wait_for_are_let_go_at_once() {
        let bandwidth = Bandwidth::new(1_000).unwrap();
        let (began, idle, turning) = (Instant::now(), Urgency::default(), Urgency::default());
        let late = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            turning.raise();
        };
        tokio::join!(bandwidth.take(60_000, &idle), late, async {
            bandwidth.take(1_000, &turning).await;
            assert_eq!(began.elapsed().as_millis() / 100, 39);
        });
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(Bandwidth::new(0).is_none());
    }
}
