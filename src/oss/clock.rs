//! The time that requests are signed at: this machine's, corrected by what OSS says when the two are too far apart.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use crate::text::seconds_behind;

/// Corrections below this are no explanation for a refusal that allows 15 minutes, in seconds.
const WORTH_IT: u64 = 60;

/// This machine's clock and how far it is behind OSS.
#[derive(Debug, Default)]
pub struct Clock {
    /// Seconds to add.
    offset: AtomicI64,
}

impl Clock {
    /// The time at OSS, as far as is known.
    pub fn now(&self) -> SystemTime {
        let offset = self.offset();
        let by = Duration::from_secs(offset.unsigned_abs());
        let now = SystemTime::now();
        let shifted = if offset < 0 { now.checked_sub(by) } else { now.checked_add(by) };
        shifted.unwrap_or(now)
    }

    /// Seconds that this machine's clock is behind OSS; 0 where they agree well enough.
    pub fn offset(&self) -> i64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Take the `Date` of a refusal for the time. Whether that changes anything worth another attempt.
    pub fn learn(&self, date: &str) -> bool {
        let Some(offset) = seconds_behind(date, SystemTime::now()) else { return false };
        let before = self.offset.swap(offset, Ordering::Relaxed);
        offset.abs_diff(before) >= WORTH_IT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learnt_time_is_used_and_what_is_no_date_is_not() {
        let clock = Clock::default();
        assert!(!clock.learn("yesterday"));
        assert!(!clock.learn(""));
        assert_eq!(clock.offset(), 0);
        assert!(clock.learn("Tue, 31 Dec 2024 23:59:59 GMT"));
        let known = SystemTime::UNIX_EPOCH + Duration::from_secs(1_735_689_599);
        let passed = clock.now().duration_since(known).unwrap_or_else(|early| early.duration());
        assert!(passed < Duration::from_secs(10), "{passed:?}");
        // The same again explains nothing.
        assert!(!clock.learn("Tue, 31 Dec 2024 23:59:59 GMT"));
    }
}
