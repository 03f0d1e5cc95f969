//! How many requests are in flight: as many as OSS takes.
//!
//! Additive increase, multiplicative decrease: an answer that says "too fast" halves the limit, each success while all of it
//! is used gives a little back, a whole slot per round of requests, up to what the operator allows. One controller for all
//! requests of a client, and the agent has one client: background and demand share it, and whoever has a reader waiting goes
//! first. One mutex, held for arithmetic.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::store::Urgency;

/// Answers to what was sent before the limit was lowered say nothing about the new limit.
const ROUND: Duration = Duration::from_secs(1);
/// First pause of whoever was throttled, doubled with each round. Source: ossfs2 (oss.md 1.5).
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause. Source: as above, the request budget of ossfs2.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Parts of a slot that the limit is counted in, so that a fraction can grow.
const SLOT: u64 = 1000;

/// The controller.
pub struct Throttle {
    most: u64,
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    /// In parts of a slot, at least one whole.
    limit: u64,
    running: u64,
    /// Of these, what somebody waited for when it began.
    running_urgent: u64,
    /// Those that wait for a slot and have somebody waiting for them.
    urgent: u64,
    lowered: Option<Instant>,
    /// Times the limit was lowered since the last success.
    rounds: u32,
    throttled: u64,
}

/// The right to have one request in flight.
pub struct Permit<'a> {
    throttle: &'a Throttle,
    urgent: bool,
}

/// A place among the urgent that wait.
struct Place<'a>(&'a Throttle);

impl<'a> Place<'a> {
    fn of(throttle: &'a Throttle) -> Self {
        throttle.state().urgent += 1;
        Place(throttle)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.urgent = state.urgent.saturating_sub(1);
        drop(state);
        // The last of them may leave room for those behind.
        self.0.freed.notify_waiters();
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.throttle.state();
        state.running = state.running.saturating_sub(1);
        state.running_urgent = state.running_urgent.saturating_sub(u64::from(self.urgent));
        drop(state);
        self.throttle.freed.notify_waiters();
    }
}

impl Throttle {
    /// At most `most` requests at once.
    pub fn new(most: usize) -> Self {
        let most = u64::try_from(most).unwrap_or(u64::MAX).max(1).saturating_mul(SLOT);
        let state = State {
            limit: most,
            running: 0,
            running_urgent: 0,
            urgent: 0,
            lowered: None,
            rounds: 0,
            throttled: 0,
        };
        Throttle { most, state: Mutex::new(state), freed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for a slot, behind those that are urgent unless this is.
    pub async fn acquire(&self, urgency: &Urgency) -> Permit<'_> {
        let mut place = None;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if place.is_none() && urgency.is_raised() {
                place = Some(Place::of(self));
            }
            if let Some(permit) = self.try_acquire(place.is_some()) {
                return permit;
            }
            tokio::select! {
                () = freed => {}
                () = urgency.raised(), if place.is_none() => {}
            }
        }
    }

    fn try_acquire(&self, urgent: bool) -> Option<Permit<'_>> {
        let mut state = self.state();
        let slots = state.limit / SLOT;
        let free = if urgent {
            // Not behind what the fill began before the limit was lowered: on a slow line that is most of a minute.
            state.running_urgent < slots && state.running < self.most / SLOT
        } else {
            state.running < slots && state.urgent == 0
        };
        free.then(|| {
            state.running += 1;
            state.running_urgent += u64::from(urgent);
            Permit { throttle: self, urgent }
        })
    }

    /// A request has been answered without a word about its rate.
    pub fn succeeded(&self) {
        let mut state = self.state();
        state.rounds = 0;
        if state.running >= state.limit / SLOT && state.limit < self.most {
            // One part in as many as there are slots.
            state.limit = (state.limit + SLOT * SLOT / state.limit).min(self.most);
            drop(state);
            self.freed.notify_waiters();
        }
    }

    /// OSS said that it is too much or too fast. Gives the time to wait before the same is asked again.
    pub fn throttled(&self) -> Duration {
        let mut state = self.state();
        state.throttled = state.throttled.saturating_add(1);
        let now = Instant::now();
        if state.lowered.is_none_or(|at| now.duration_since(at) >= ROUND) {
            state.lowered = Some(now);
            state.limit = (state.limit / 2).max(SLOT);
            state.rounds = state.rounds.saturating_add(1);
        }
        let doublings = state.rounds.saturating_sub(1);
        FIRST_PAUSE.saturating_mul(2u32.saturating_pow(doublings)).min(LONGEST_PAUSE)
    }

    /// Answers that asked for less, since the start, and the requests that may be in flight now.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state();
        (state.throttled, state.limit / SLOT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::AT_ONCE;

    fn limit(throttle: &Throttle) -> u64 {
        throttle.counts().1
    }

    #[tokio::test(start_paused = true)]
    async fn limit_halves_once_a_round_and_never_ends() {
        let throttle = Throttle::new(32);
        assert_eq!(throttle.throttled(), Duration::from_secs(1));
        // The rest of the same round.
        (0..31).for_each(|_| assert_eq!(throttle.throttled(), Duration::from_secs(1)));
        assert_eq!(throttle.counts(), (32, 16));
        for (expected, pause) in [(8, 2), (4, 4), (2, 8), (1, 16), (1, 32), (1, 60), (1, 60)] {
            tokio::time::advance(ROUND).await;
            assert_eq!(throttle.throttled(), Duration::from_secs(pause));
            assert_eq!(limit(&throttle), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn limit_grows_by_one_a_round_while_it_is_used() {
        let throttle = Throttle::new(8);
        throttle.throttled();
        assert_eq!(limit(&throttle), 4);
        // Nothing in flight: nothing shows that more would be taken.
        (0..100).for_each(|_| throttle.succeeded());
        assert_eq!(limit(&throttle), 4);
        for expected in [5, 6, 7, 8, 8] {
            let mut permits = Vec::new();
            for _ in 0..limit(&throttle) {
                permits.push(throttle.acquire(&AT_ONCE).await);
            }
            (0..6 + limit(&throttle)).for_each(|_| throttle.succeeded());
            assert!(limit(&throttle) >= expected, "{} < {expected}", limit(&throttle));
        }
        assert_eq!(limit(&throttle), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn slot_is_waited_for_and_success_ends_the_long_pauses() {
        let throttle = Throttle::new(2);
        let first = throttle.acquire(&AT_ONCE).await;
        let second = throttle.acquire(&AT_ONCE).await;
        let third = tokio::time::timeout(Duration::from_secs(9), throttle.acquire(&AT_ONCE)).await;
        assert!(third.is_err(), "three of two");
        throttle.throttled();
        drop(first);
        let third = tokio::time::timeout(Duration::from_secs(9), throttle.acquire(&AT_ONCE)).await;
        assert!(third.is_err(), "two of one");
        drop(second);
        let _third = throttle.acquire(&AT_ONCE).await;
        tokio::time::advance(ROUND).await;
        assert_eq!(throttle.throttled(), Duration::from_secs(2));
        throttle.succeeded();
        tokio::time::advance(ROUND).await;
        assert_eq!(throttle.throttled(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn urgent_request_goes_first_also_when_it_becomes_so_while_it_waits() {
        let throttle = Throttle::new(1);
        let (idle, turning) = (Urgency::default(), Urgency::default());
        let running = throttle.acquire(&AT_ONCE).await;
        let order = std::sync::Mutex::new(Vec::new());
        let request = async |name: &'static str, urgency: &Urgency| {
            let _permit = throttle.acquire(urgency).await;
            order.lock().unwrap().push(name);
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let release = async {
            tokio::task::yield_now().await;
            turning.raise();
            tokio::task::yield_now().await;
            drop(running);
        };
        tokio::join!(
            request("first of the fill", &idle),
            request("second of the fill", &idle),
            request("turning urgent", &turning),
            release,
            async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                request("urgent and late", &AT_ONCE).await;
            },
        );
        let order = order.into_inner().unwrap();
        assert_eq!(order[..2], ["turning urgent", "urgent and late"]);
        assert_eq!(order.len(), 4);
    }
}
