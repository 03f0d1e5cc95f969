//! How long an attestation is good for: renewed in time, asked about on demand, and what ends with it.
//!
//! An explicit denial, or evidence that is wrong in itself, ends the agent at once, whether the lease or `cai reattest` heard it; a
//! rotation that is denied leaves everything as it was. Where nobody answers, the model is served on for the operator's grace. Nothing
//! here trusts the host's clock: time is what passed since a token.

use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Longest attempt: the host can keep a quote from us for ever.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(300);

/// Nobody answered in time.
#[derive(Debug, thiserror::Error)]
#[error("this machine could not be attested in {} s", after.as_secs())]
struct Unheard {
    after: Duration,
}

impl Fault for Unheard {
    fn class(&self) -> ErrorClass {
        ErrorClass::Transient
    }

    fn code(&self) -> &'static str {
        "lease.no-answer"
    }

    fn hint(&self) -> String {
        "who keeps it waiting? cai attest shows whether this machine gets a quote; the Trustee's log, whether it was asked".into()
    }
}

/// Who wants to hear of a new attestation.
pub(super) type Asked = oneshot::Sender<Result<(), Failure>>;

/// The attestation that everything rests on now.
pub(super) struct Lease {
    terms: watch::Sender<config::Lease>,
    verdict: watch::Sender<Verdict>,
    asks: mpsc::Sender<Asked>,
    asked: tokio::sync::Mutex<mpsc::Receiver<Asked>>,
}

impl Lease {
    /// On these terms, from this verdict on.
    pub(super) fn new(voice: &Voice, terms: config::Lease, verdict: Verdict) -> Self {
        voice.update(|status| status.lease = terms);
        let (asks, asked) = mpsc::channel(1);
        let asked = tokio::sync::Mutex::new(asked);
        Lease { terms: watch::Sender::new(terms), verdict: watch::Sender::new(verdict), asks, asked }
    }

    /// Other terms from now on.
    pub(super) fn set_terms(&self, voice: &Voice, terms: config::Lease) {
        voice.update(|status| status.lease = terms);
        self.terms.send_replace(terms);
    }

    /// A newer verdict.
    pub(super) fn renewed(&self, voice: &Voice, verdict: Verdict) -> Result<(), Failure> {
        self.verdict.send_replace(verdict);
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
        self.verdict.borrow().clone()
    }

    /// Renew it whenever it is due or asked for, and hold the licence against the time. Returns only when serving must end.
    pub(super) async fn keep(
        &self,
        settings: &Settings,
        voice: &Voice,
        broker: &Broker,
        served: &watch::Sender<Arc<Revision>>,
    ) -> Failure {
        tokio::select! {
            failure = self.renew(settings, voice, broker) => failure,
            failure = self.watch_licence(settings, voice, served) => failure,
        }
    }

    async fn renew(&self, settings: &Settings, voice: &Voice, broker: &Broker) -> Failure {
        let mut terms = self.terms.subscribe();
        let mut asked = self.asked.lock().await;
        let mut unanswered: Option<Unanswered> = None;
        loop {
            let at = self.verdict().at;
            unanswered = unanswered.filter(|unanswered| unanswered.since > at);
            let lease = *terms.borrow_and_update();
            let who = tokio::select! {
                () = until(next(lease, at, unanswered.as_ref())) => None,
                Some(who) = asked.recv() => Some(who),
                _ = terms.changed() => continue,
            };
            let begun = Instant::now();
            // Who asks before it is due, or without a lease, has no grace to lose.
            let due = lease.interval.is_some_and(|interval| at.elapsed() >= interval);
            let since = unanswered.as_ref().map_or(begun, |unanswered| unanswered.since);
            let left = |lease: config::Lease| lease.grace.saturating_sub(since.elapsed());
            let limit = if due { left(lease).max(Duration::from_secs(1)) } else { LONGEST_ATTEMPT };
            let failure = match self.attempt(settings, voice, broker, limit.min(LONGEST_ATTEMPT)).await {
                Ok(()) => {
                    answer(who, Ok(()));
                    continue;
                }
                Err(failure) => failure,
            };
            voice.warn(&failure);
            // A rotation may have renewed it meanwhile.
            let due = due && self.verdict().at < begun;
            let is_final = matches!(failure.class(), ErrorClass::Denied | ErrorClass::Corrupt);
            if is_final || (due && left(lease).is_zero()) {
                if !is_final {
                    audit::key_not_released(settings, Purpose::Renewal, &failure, None, None);
                }
                answer(who, Err(failure.clone()));
                return failure;
            }
            if due {
                let attempts = unanswered.map_or(1, |unanswered| unanswered.attempts.saturating_add(1));
                unanswered = Some(Unanswered { since, attempts, last: Instant::now() });
                let left = left(lease).as_secs();
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

    /// Attest once, and ask for the key; what comes is wiped.
    async fn attempt(
        &self,
        settings: &Settings,
        voice: &Voice,
        broker: &Broker,
        limit: Duration,
    ) -> Result<(), Failure> {
        let asking = broker.again(settings, voice, Purpose::Renewal);
        match tokio::time::timeout(limit, asking).await {
            Ok(Ok((_, verdict))) => {
                tracing::info!(event = "lease.renewed", "attested again; the key would still be released");
                self.renewed(voice, verdict)
            }
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::new(voice.state(), &Unheard { after: limit })),
        }
    }

    /// Until the licence of what is served does not allow it any more.
    async fn watch_licence(
        &self,
        settings: &Settings,
        voice: &Voice,
        served: &watch::Sender<Arc<Revision>>,
    ) -> Failure {
        let mut verdicts = self.verdict.subscribe();
        loop {
            let Verdict { at, time, .. } = verdicts.borrow_and_update().clone();
            let manifest = served.borrow().listed.manifest.clone();
            let now = time.map(|time| time + at.elapsed());
            if let Err(error) = origin::still_licensed(settings, manifest.as_deref(), now) {
                let failure = Failure::new(voice.state(), &error);
                audit::model_refused(settings, &failure);
                return failure;
            }
            // The sender is ours. An error would be the end of it.
            let _ = tokio::time::timeout(LOOK_EVERY, verdicts.changed()).await;
        }
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
