//! The only place where the state changes, and where everybody hears of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::state::{Event, Illegal, State};
use super::status::{Failure, LastError, Outcome, Phase, Progress, Rotation, ServicePort, Status};
use crate::error::{ErrorClass, Fault};
use crate::host::Notifier;
use crate::peer;

/// How much longer the service manager waits after each sign of progress: more than the longest step without one, which is
/// the two minutes that the helper's child has for a vendor's library. `TimeoutStartSec=` of the unit is the same.
const PATIENCE: Duration = Duration::from_secs(180);

impl Fault for Illegal {
    fn class(&self) -> ErrorClass {
        ErrorClass::Internal
    }

    fn code(&self) -> &'static str {
        "agent.illegal-event"
    }

    fn hint(&self) -> String {
        "this is a defect: please report it with the journal".into()
    }
}

/// Speaks for the agent: status record, service manager, journal.
pub(super) struct Voice {
    status: watch::Sender<Status>,
    notifier: Mutex<Notifier>,
    words: Mutex<Words>,
    /// The notice about the model's origin.
    origin: Mutex<Option<String>>,
}

/// What there is to say of a model that is served.
#[derive(Default)]
struct Words {
    /// What is served, and how.
    served: String,
    /// What is being done.
    passing: Option<String>,
    /// What is missing, and why.
    lacks: BTreeMap<Lack, String>,
}

impl Words {
    fn served(&self) -> String {
        if self.lacks.is_empty() {
            return self.passing.as_ref().unwrap_or(&self.served).clone();
        }
        self.lacks.values().cloned().collect::<Vec<_>>().join("; ")
    }
}

/// What can be missing while the model is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lack {
    /// An attestation that is young enough.
    Attestation,
    /// A source of ciphertext.
    Source,
}

impl Voice {
    pub(super) fn new(status: watch::Sender<Status>) -> Self {
        Voice {
            status,
            notifier: Mutex::new(Notifier::new()),
            words: Mutex::default(),
            origin: Mutex::default(),
        }
    }

    pub(super) fn state(&self) -> State {
        self.status.borrow().state
    }

    /// Apply `event`; `stage` says what is done in the new state.
    pub(super) fn apply(&self, event: Event, stage: impl Into<String>) -> Result<(), Failure> {
        let from = self.state();
        let to = from.on(event).map_err(|illegal| Failure::new(from, &illegal))?;
        let stage = stage.into();
        if event == Event::Mounted {
            self.words().served.clone_from(&stage);
        }
        tracing::info!(
            event = "state.changed",
            from = from.name(),
            to = to.name(),
            stage,
            "{from} -> {to}: {stage}"
        );
        self.update(|status| {
            status.enter(to);
            status.stage = stage;
        });
        let mut notifier = self.notifier();
        if to.is_serving() {
            notifier.ready();
        }
        if matches!(to, State::Stopping | State::Failed) {
            notifier.stopping();
        }
        Ok(())
    }

    /// Change anything but the state.
    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
        let text = self.status.borrow().text();
        self.notifier().status(&text, PATIENCE);
    }

    /// Keys that were taken into use since start.
    pub(super) fn key_generation(&self) -> u32 {
        self.status.borrow().key_generation
    }

    /// Say what is being done now, within the same state. While the model is served that passes: [`Voice::stage_over`].
    pub(super) fn stage(&self, stage: impl Into<String>) {
        let stage = stage.into();
        if self.state().is_serving() {
            self.words().passing = Some(stage);
            self.show_served();
        } else {
            self.update(|status| status.stage = stage);
        }
    }

    /// What was being done while the model is served is over.
    pub(super) fn stage_over(&self) {
        self.words().passing = None;
        self.show_served();
    }

    /// What is missing comes first, then what is being done, then what is served.
    fn show_served(&self) {
        let stage = self.words().served();
        if self.state().is_serving() && self.status.borrow().stage != stage {
            self.update(|status| status.stage = stage);
        }
    }

    /// While the model is served: say what is missing, and why, or that it is not (any more). Degraded as long as anything is.
    pub(super) fn lacks(&self, what: Lack, why: Option<String>) -> Result<(), Failure> {
        let lacking = {
            let mut words = self.words();
            match why {
                Some(why) => drop(words.lacks.insert(what, why)),
                None => drop(words.lacks.remove(&what)),
            }
            !words.lacks.is_empty()
        };
        let stage = self.words().served();
        match (self.state(), lacking) {
            (State::Serving, true) => self.apply(Event::Impaired, stage),
            (State::Degraded, false) => self.apply(Event::Restored, stage),
            _ => {
                self.show_served();
                Ok(())
            }
        }
    }

    /// A rotation begins.
    pub(super) fn rotation(&self, rotation: Rotation) {
        self.update(|status| status.rotation = Some(rotation));
    }

    /// The rotation that is under way is in this phase, on the way to that revision.
    pub(super) fn rotation_phase(&self, phase: Phase, revision: &str) {
        self.change_rotation(|rotation| {
            rotation.phase = phase;
            rotation.revision = revision.to_owned();
        });
    }

    /// So much of the new revision is here.
    pub(super) fn rotation_progress(&self, progress: Progress) {
        self.change_rotation(|rotation| rotation.progress = progress);
    }

    /// The rotation is over.
    pub(super) fn rotated(&self, outcome: Outcome, error: Option<LastError>) {
        self.update(|status| {
            *status.rotations.entry(outcome.name()).or_default() += 1;
            if let Some(rotation) = &mut status.rotation {
                rotation.phase = Phase::Over(outcome);
                rotation.error = error;
            }
        });
    }

    /// Open files and directories of replaced revisions; told only when it changed.
    pub(super) fn left_open(&self, count: u64) {
        if self.status.borrow().left_open != count {
            self.update(|status| status.left_open = count);
        }
    }

    fn change_rotation(&self, change: impl FnOnce(&mut Rotation)) {
        self.update(|status| {
            if let Some(rotation) = &mut status.rotation {
                change(rotation);
            }
        });
    }

    /// What is shown of the service port; told only when it changed.
    pub(super) fn service_port(&self, port: Option<ServicePort>) {
        if self.status.borrow().service_port != port {
            self.status.send_modify(|status| status.service_port = port);
        }
    }

    /// What is shown of the peers; told only when it changed.
    pub(super) fn peers(&self, peers: Vec<peer::Shown>) {
        if self.status.borrow().peers != peers {
            self.status.send_modify(|status| status.peers = peers);
        }
    }

    /// A failure that is not the end: shown, and logged as a warning.
    pub(super) fn warn(&self, failure: &Failure) {
        let error = failure.shown().clone();
        tracing::warn!(event = error.code, stage = error.stage.name(), hint = error.hint, "{}", error.detail);
        self.update(|status| status.failed(error));
    }

    /// Something the operator should know beside what the configuration says; shown once.
    pub(super) fn notice(&self, text: &str) {
        if !self.status.borrow().notices.iter().any(|notice| notice == text) {
            tracing::warn!(event = "agent.notice", "{text}");
            self.update(|status| status.notices.push(text.to_owned()));
        }
    }

    /// What is to be said of where the model comes from, in place of what was said of it before.
    pub(super) fn origin(&self, notice: Option<String>) {
        let before = self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if before == notice {
            return;
        }
        if let Some(notice) = &notice {
            tracing::warn!(event = "model.origin", "{notice}");
        }
        self.update(|status| {
            status.notices.retain(|shown| Some(shown) != before.as_ref());
            status.notices.extend(notice.clone());
        });
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = notice;
    }

    /// [`Voice::warn`], unless the failure is the one that is shown already.
    pub(super) fn warn_if_new(&self, failure: &Failure) {
        let shown = |status: &Status| {
            status.last_error.as_ref().is_some_and(|error| error.detail == failure.shown().detail)
        };
        if !shown(&self.status.borrow()) {
            self.warn(failure);
        }
    }

    /// The loop turns and the mount answers: for the service manager's watchdog.
    pub(super) fn alive(&self) {
        self.notifier().alive();
    }

    fn words(&self) -> std::sync::MutexGuard<'_, Words> {
        // Each change of it is complete in itself.
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notifier(&self) -> std::sync::MutexGuard<'_, Notifier> {
        // A panic while holding it cannot leave it in a state that matters: it only remembers what was said.
        self.notifier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
