//! How long an attestation is good for: renewed in time, asked about on demand, and what ends with it.
//!
//! An explicit denial, or evidence that is wrong in itself, ends the agent at once, whoever asked. Where nobody answers, the
//! model is served on for the operator's grace. Nothing here trusts the host's clock: time is what passed since a token.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};

use super::audit::{self, Purpose};
use super::model::Revision;
use super::origin;
use super::release::{Broker, Verdict};
use super::status::Failure;
use super::voice::{Lack, Voice};
use crate::config::{self, Settings};
use crate::error::{ErrorClass, Fault};
use crate::kbs::Facts;
use crate::store::Retry;

/// How often it is looked whether a licence has run out: they end on a day.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Who wants to hear of a new attestation.
pub(super) type Asked = oneshot::Sender<Result<(), Failure>>;

/// The attestation that everything rests on now.
pub(super) struct Lease {
    terms: watch::Sender<config::Lease>,
    verdict: Mutex<Verdict>,
    asks: mpsc::Sender<Asked>,
    asked: tokio::sync::Mutex<mpsc::Receiver<Asked>>,
}

impl Lease {
    /// On these terms, from this verdict on.
    pub(super) fn new(terms: config::Lease, verdict: Verdict) -> Self {
        let (asks, asked) = mpsc::channel(1);
        let asked = tokio::sync::Mutex::new(asked);
        Lease { terms: watch::Sender::new(terms), verdict: Mutex::new(verdict), asks, asked }
    }

    /// Other terms from now on.
    pub(super) fn set_terms(&self, terms: config::Lease) {
        self.terms.send_replace(terms);
    }

    /// A newer verdict.
    pub(super) fn renewed(&self, voice: &Voice, verdict: Verdict) -> Result<(), Failure> {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
        voice.lacks(Lack::Attestation, None)
    }

    /// Attest now; gives who asks back where somebody has asked already and not been answered.
    pub(super) fn ask(&self, asked: Asked) -> Result<(), Asked> {
        self.asks.try_send(asked).map_err(|refused| refused.into_inner())
    }

    /// The attestation that was renewed last.
    pub(super) fn facts(&self) -> Facts {
        self.verdict().facts
    }

    fn verdict(&self) -> Verdict {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Renew it whenever it is due or asked for, and hold the licence against the time. Returns only when serving must end.
    pub(super) async fn keep(
        &self,
        settings: &Settings,
        voice: &Voice,
        broker: &Broker,
        served: &watch::Sender<Arc<Revision>>,
    ) -> Failure {
        let mut terms = self.terms.subscribe();
        let mut asked = self.asked.lock().await;
        let mut unanswered: Option<Unanswered> = None;
        loop {
            let Verdict { at, time, .. } = self.verdict();
            if unanswered.as_ref().is_some_and(|unanswered| at > unanswered.since) {
                unanswered = None;
            }
            let lease = *terms.borrow_and_update();
            let due = next(lease, at, unanswered.as_ref());
            let who = tokio::select! {
                () = until(due) => None,
                Some(who) = asked.recv() => Some(who),
                _ = terms.changed() => continue,
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = time.map(|time| time + at.elapsed());
                    match self.licence(settings, voice, served, now) {
                        Ok(()) => continue,
                        Err(failure) => return failure,
                    }
                }
            };
            let outcome = match broker.again(settings, voice, Purpose::Renewal).await {
                Ok((_, verdict)) => {
                    let time = verdict.time;
                    self.renewed(voice, verdict).and_then(|()| self.licence(settings, voice, served, time))
                }
                Err(failure) => Err(failure),
            };
            let Err(failure) = outcome else {
                unanswered = None;
                tracing::info!(event = "lease.renewed", "attested again; the key would still be released");
                answer(who, Ok(()));
                continue;
            };
            voice.warn(&failure);
            let final_word = matches!(failure.class(), ErrorClass::Denied | ErrorClass::Corrupt);
            let since = unanswered.as_ref().map_or_else(Instant::now, |unanswered| unanswered.since);
            // Who only asked, without a lease, has no grace to lose.
            let over = lease.interval.is_some() && since.elapsed() >= lease.grace;
            if final_word || over {
                if !final_word {
                    audit::key_not_released(settings, Purpose::Renewal, &failure, None, None);
                }
                answer(who, Err(failure.clone()));
                return failure;
            }
            if lease.interval.is_some() {
                let attempts = unanswered.map_or(1, |unanswered| unanswered.attempts.saturating_add(1));
                unanswered = Some(Unanswered { since, attempts, last: Instant::now() });
                let left = lease.grace.saturating_sub(since.elapsed()).as_secs();
                let why = format!(
                    "the attestation could not be renewed; serving ends in {left} s unless it can: {failure}"
                );
                if let Err(failure) = voice.lacks(Lack::Attestation, Some(why)) {
                    return failure;
                }
            }
            answer(who, Err(failure));
        }
    }

    /// Whether the licence of what is served allows it at that time.
    fn licence(
        &self,
        settings: &Settings,
        voice: &Voice,
        served: &watch::Sender<Arc<Revision>>,
        now: Option<SystemTime>,
    ) -> Result<(), Failure> {
        let revision = served.borrow().clone();
        origin::still_licensed(settings, revision.listed.manifest.as_deref(), now)
            .map_err(|error| Failure::new(voice.state(), &error))
            .inspect_err(|failure| audit::model_refused(settings, failure))
    }
}

/// Attempts that nobody answered.
struct Unanswered {
    since: Instant,
    last: Instant,
    attempts: u32,
}

/// When the lease is to be renewed next; never without one.
fn next(lease: config::Lease, attested: Instant, unanswered: Option<&Unanswered>) -> Option<Instant> {
    let interval = lease.interval?;
    let Some(Unanswered { since, last, attempts }) = unanswered else {
        return attested.checked_add(interval);
    };
    // Not after the end of the grace: then is the last chance.
    let again = last.checked_add(Retry::default().pause(*attempts, None))?;
    Some(again.min(since.checked_add(lease.grace)?))
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

fn answer(who: Option<Asked>, outcome: Result<(), Failure>) {
    if let Some(who) = who {
        let _ = who.send(outcome);
    }
}
