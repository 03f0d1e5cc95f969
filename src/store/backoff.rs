//! Jittered exponential backoff.

use std::time::Duration;

/// Longest pause that a server is granted. Source: the request budget of ossfs2 (oss.md 1.5).
pub const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// How transient failures are retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// First pause.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
    /// How long a chunk is tried on when no reader with a deadline of its own waits for it.
    pub limit: Duration,
}

impl Default for Retry {
    /// 0.2 s doubling to 20 s, as the OSS SDKs do (oss.md 1.5); five minutes in all.
    fn default() -> Self {
        Retry {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(20),
            limit: Duration::from_secs(300),
        }
    }
}

impl Retry {
    /// Pause after the failed attempt number `attempt` (from 0): between half of and the whole exponential step, so that
    /// clients that failed together do not come back together; at least what the server `asked` for, up to a minute.
    pub fn pause(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let step = self.first.saturating_mul(2u32.saturating_pow(attempt)).min(self.longest);
        let jitter = getrandom::u32().unwrap_or(u32::MAX);
        let pause = step / 2 + (step / 2).mul_f64(f64::from(jitter) / f64::from(u32::MAX));
        pause.max(asked.unwrap_or_default().min(LONGEST_ASKED))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_doubles_within_its_jitter_up_to_the_longest() {
        let retry = Retry::default();
        for (attempt, step_ms) in [(0, 200), (1, 400), (5, 6_400), (7, 20_000), (u32::MAX, 20_000)] {
            let step = Duration::from_millis(step_ms);
            let pause = retry.pause(attempt, None);
            assert!(pause >= step / 2 && pause <= step, "attempt {attempt}: {pause:?}");
        }
    }

    #[test]
    fn pause_respects_what_the_server_asked_for() {
        let retry = Retry::default();
        assert_eq!(retry.pause(0, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(retry.pause(0, Some(Duration::from_secs(7_000))), LONGEST_ASKED);
    }
}
