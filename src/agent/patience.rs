//! Retries of a stage: what may pass is tried again with growing pauses, up to the operator's limit, and shown meanwhile.

use std::time::{Duration, Instant};

use super::status::Failure;
use super::voice::Voice;
use crate::error::{ErrorClass, Fault};
use crate::store::Retry;

/// How long somebody is waited for, and how long already.
pub(super) struct Patience {
    /// Who is waited for, in words.
    whom: &'static str,
    limit: Duration,
    begun: Instant,
    attempt: u32,
}

impl Patience {
    pub(super) fn new(whom: &'static str, limit: Duration) -> Self {
        Patience { whom, limit, begun: Instant::now(), attempt: 0 }
    }

    /// Wait before the next attempt.
    ///
    /// # Errors
    /// `failure` itself, when it will not pass or the limit is reached.
    pub(super) async fn after(&mut self, voice: &Voice, failure: Failure) -> Result<(), Failure> {
        if failure.class() != ErrorClass::Transient || self.begun.elapsed() >= self.limit {
            return Err(failure);
        }
        voice.warn(&failure);
        let pause = Retry::default().pause(self.attempt, None);
        self.attempt = self.attempt.saturating_add(1);
        let (whom, next, secs) = (self.whom, self.attempt.saturating_add(1), pause.as_secs_f32());
        voice.stage(format!("{whom} is not available, attempt {next} in {secs:.1} s"));
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
