//! How long a verdict holds: to the end of its token, by two clocks, whichever comes first.
//!
//! The wall clock may be set back, which must not make a verdict longer; the steady one stands still while the machine
//! sleeps. No locks. Tested below.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep};

/// Longest time a verdict is taken for, whatever its token says. Trustee's live five minutes.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How often whoever waits for an end looks at the wall clock, which may be set forward.
const LOOK: Duration = Duration::from_secs(10);

/// The time in which a verdict holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    expires: SystemTime,
    deadline: Instant,
}

impl Term {
    /// From now to the end of a token.
    pub fn until(expires: SystemTime) -> Self {
        let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
        Term { expires, deadline: Instant::now() + left.min(LONGEST) }
    }

    /// The end by the wall clock, as the token says it.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Whether it has not ended by either clock.
    pub fn holds(&self) -> bool {
        self.left() > Duration::ZERO
    }

    /// Wait for the end.
    pub async fn ended(&self) {
        while self.holds() {
            sleep(self.left().min(LOOK)).await;
        }
    }

    fn left(&self) -> Duration {
        let wall = self.expires.duration_since(SystemTime::now()).unwrap_or_default();
        wall.min(self.deadline.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn term_ends_by_the_clock_that_comes_first() {
        // The wall clock goes on, the steady one does not.
        let past = Term::until(SystemTime::now() - Duration::from_secs(1));
        assert!(!past.holds());
        past.ended().await;
        // The steady one goes on, the wall clock was stopped.
        let begin = Instant::now();
        let term = Term::until(SystemTime::now() + Duration::from_secs(300));
        assert!(term.holds());
        term.ended().await;
        assert!(!term.holds());
        let took = begin.elapsed().as_secs();
        assert!((299..=300).contains(&took), "{took}");
        // Whatever a token says, no more than a day, and no overflow.
        let long = Term::until(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::MAX >> 1));
        tokio::time::advance(LONGEST).await;
        assert!(!long.holds());
    }
}
