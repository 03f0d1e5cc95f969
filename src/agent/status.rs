//! The one record of what the agent is doing. Everything that is shown derives from it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::state::State;
use crate::config::Lease;
use crate::error::{ErrorClass, Fault, chain};
use crate::gateway;
pub use crate::oss::Access;
pub use crate::peer::{Shown, Standing};
use crate::store;

/// What the agent is doing, complete: a snapshot that is replaced as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// See [`State`].
    pub state: State,
    /// When it entered that state, by the host's clock.
    pub since: SystemTime,
    /// How long it was in each state that it has left, by name, since start.
    pub spent: BTreeMap<&'static str, Duration>,
    /// What exactly, in words: `fetching 14 metadata objects`.
    pub stage: String,
    /// Ciphertext of the model that is here.
    pub progress: Progress,
    /// How the object store is used: credential, throttling.
    pub object_store: Access,
    /// Where the model lies: `conf-ai:/qwen3-32b/`.
    pub model: String,
    /// Where its plaintext can be read.
    pub mount_point: PathBuf,
    /// Counts the keys released since start; 0 before the first.
    pub key_generation: u32,
    /// The model identity where the model is signed, else SHA-256, hex, of the sorted list of objects (path, length,
    /// entity tag); empty before it is known.
    pub model_revision: String,
    /// When the verifier accepted our evidence.
    pub attested_at: Option<SystemTime>,
    /// When the attestation token expires.
    pub attestation_expires: Option<SystemTime>,
    /// Facts about the attestation: `tee`, `provider`, `gpus`, `protocol`, `key-algorithm`, `server`, `token`.
    pub attestation: BTreeMap<&'static str, String>,
    /// When the attestation is renewed, and for how long it is not needed to be.
    pub lease: Lease,
    /// The encrypted service port; `None` while it is shut, and where there is none.
    pub service_port: Option<ServicePort>,
    /// The machines that share the model with this one.
    pub peers: Vec<Shown>,
    /// The rotation that is under way, or the last one; `None` before the first.
    pub rotation: Option<Rotation>,
    /// Rotations that are over, by outcome, since start.
    pub rotations: BTreeMap<&'static str, u64>,
    /// Open files and directories of revisions that were replaced: these stay until the last one is closed.
    pub left_open: u64,
    /// What the operator chose and should not forget, such as an unauthenticated key broker.
    pub notices: Vec<String>,
    /// The newest failure; stays after a recovery, so that it can be read.
    pub last_error: Option<LastError>,
    /// Failures by code, since start.
    pub failures: BTreeMap<&'static str, u64>,
}

impl Status {
    /// At start, before anything happened.
    pub fn new(model: String, mount_point: PathBuf, notices: Vec<String>) -> Self {
        Status {
            state: State::Starting,
            since: SystemTime::now(),
            spent: BTreeMap::new(),
            stage: "starting".into(),
            progress: Progress::default(),
            object_store: Access::default(),
            model,
            mount_point,
            key_generation: 0,
            model_revision: String::new(),
            attested_at: None,
            attestation_expires: None,
            attestation: BTreeMap::new(),
            lease: Lease::default(),
            service_port: None,
            peers: Vec::new(),
            rotation: None,
            rotations: BTreeMap::new(),
            left_open: 0,
            notices,
            last_error: None,
            failures: BTreeMap::new(),
        }
    }

    /// Another state begins.
    pub(super) fn enter(&mut self, state: State) {
        // A clock that is set back took no time away.
        let stayed = self.since.elapsed().unwrap_or_default();
        *self.spent.entry(self.state.name()).or_default() += stayed;
        (self.state, self.since) = (state, SystemTime::now());
    }

    /// Something failed: it is counted, and shown until something else does.
    pub(super) fn failed(&mut self, error: LastError) {
        *self.failures.entry(error.code).or_default() += 1;
        self.last_error = Some(error);
    }

    /// One line for `systemctl status`, the journal and `cai status`.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {}", self.state, self.stage);
        let shown = self.state.is_serving() || self.state == State::Fetching;
        if shown && self.progress.bytes_total > self.progress.bytes_done {
            text.push_str(&format!(" ({} % of the model is local)", self.progress.percent()));
        }
        text
    }
}

/// A rotation: to another wrapping of the key, or to another revision of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// Counts rotations since start; 1 for the first.
    pub number: u32,
    /// How far it is.
    pub phase: Phase,
    /// The revision it goes to; empty before it is known.
    pub revision: String,
    /// What is here of that.
    pub progress: Progress,
    /// Why it failed.
    pub error: Option<LastError>,
}

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Attesting, and asking for the key.
    Attesting,
    /// Listing the model and comparing it with the one that is served.
    Comparing,
    /// Fetching the new revision beside the old one.
    Fetching,
    /// Over, for better or worse.
    Over(Outcome),
}

impl Phase {
    /// Name on D-Bus.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Attesting => "attesting",
            Phase::Comparing => "comparing",
            Phase::Fetching => "fetching",
            Phase::Over(outcome) => outcome.name(),
        }
    }
}

/// How a rotation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Key and model are the same as before.
    Unchanged,
    /// The same key, wrapped or signed anew, around the same model.
    Rewrapped,
    /// New opens get another revision of the model.
    Replaced,
    /// Everything is as it was before.
    Failed,
}

impl Outcome {
    /// Name on D-Bus.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Unchanged => "unchanged",
            Outcome::Rewrapped => "rewrapped",
            Outcome::Replaced => "replaced",
            Outcome::Failed => "failed",
        }
    }
}

/// How much of the model's ciphertext is here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Bytes that are local and verified.
    pub bytes_done: u64,
    /// Bytes of the whole model.
    pub bytes_total: u64,
    /// Bytes per second over the last seconds.
    pub rate: u64,
    /// Bytes fetched since start by source: `oss`; and found here at start: `cache`.
    pub by_source: BTreeMap<&'static str, u64>,
    /// Requests repeated since start.
    pub retries: u64,
    /// Whether fetched bytes are kept on disk; false after the disk ran full.
    pub caching: bool,
    /// Objects that are local and verified as a whole, of how many.
    pub objects: (usize, usize),
    /// Objects of which something is fetched now.
    pub fetching: Vec<store::Coming>,
}

impl Progress {
    /// Whole percent that is local, 100 only when all of it is.
    pub fn percent(&self) -> u64 {
        match self.bytes_total {
            0 => 100,
            total => u64::try_from(u128::from(self.bytes_done) * 100 / u128::from(total)).unwrap_or(100),
        }
    }

    /// Seconds until everything is local at the present rate; `None` when nothing moves or nothing is missing.
    pub fn eta_secs(&self) -> Option<u64> {
        let missing = self.bytes_total.saturating_sub(self.bytes_done);
        (missing > 0).then(|| missing.checked_div(self.rate)).flatten()
    }
}

impl From<&store::Progress> for Progress {
    fn from(progress: &store::Progress) -> Self {
        Progress {
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            rate: progress.bytes_per_sec,
            by_source: [("cache", progress.bytes_from_cache)]
                .into_iter()
                .chain(progress.bytes_by_source.clone())
                .collect(),
            retries: progress.retries,
            caching: progress.caching,
            objects: (progress.objects_done, progress.objects_total),
            fetching: progress.coming.clone(),
        }
    }
}

/// The encrypted service port.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServicePort {
    /// `mapping` or `capture`.
    pub mode: &'static str,
    /// Where it listens.
    pub listen: Vec<String>,
    /// Where the plaintext goes.
    pub backend: String,
    /// `gateway.certificate`.
    pub certificate: &'static str,
    /// How often evidence is made anew.
    pub refresh_secs: u64,
    /// When the evidence that is shown was made, by format; one that is too old to be shown is not here.
    pub evidence_at: BTreeMap<&'static str, SystemTime>,
    /// Why evidence could not be made anew; empty after it could.
    pub refresh_error: String,
    /// Connections.
    pub counts: gateway::Snapshot,
}

/// A failure as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// Stable dotted code.
    pub code: &'static str,
    /// State in which it happened.
    pub stage: State,
    /// The whole cause chain.
    pub detail: String,
    /// What to do.
    pub hint: String,
    /// What it would end the agent with.
    pub exit_status: u8,
    /// When.
    pub at: SystemTime,
}

/// A failure on its way up: what [`LastError`] shows and what decides retry and exit status.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .shown.detail)]
pub struct Failure {
    class: ErrorClass,
    shown: LastError,
}

impl Failure {
    /// Any module's failure, in the state where it happened.
    pub fn new(stage: State, fault: &dyn Fault) -> Self {
        let detail = chain(fault);
        Failure {
            class: fault.class(),
            shown: LastError {
                code: fault.code(),
                stage,
                detail,
                hint: fault.hint(),
                exit_status: fault.class().exit_code(),
                at: SystemTime::now(),
            },
        }
    }

    /// How it is shown.
    pub fn shown(&self) -> &LastError {
        &self.shown
    }
}

impl Fault for Failure {
    fn class(&self) -> ErrorClass {
        self.class
    }

    fn code(&self) -> &'static str {
        self.shown.code
    }

    fn hint(&self) -> String {
        self.shown.hint.clone()
    }
}

/// Seconds since 1970, for D-Bus and JSON; 0 for times before.
pub fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_is_a_hundred_only_when_all_is_here() {
        let progress = Progress { bytes_done: u64::MAX - 1, bytes_total: u64::MAX, ..Progress::default() };
        assert_eq!(progress.percent(), 99);
        let progress = Progress { bytes_done: 7, bytes_total: 7, ..Progress::default() };
        assert_eq!(progress.percent(), 100);
    }

    #[test]
    fn eta_needs_a_rate_and_something_missing() {
        let progress = Progress { bytes_done: 10, bytes_total: 110, rate: 25, ..Progress::default() };
        assert_eq!(progress.eta_secs(), Some(4));
        assert_eq!(Progress { rate: 0, ..progress.clone() }.eta_secs(), None);
        assert_eq!(Progress { bytes_done: 110, ..progress }.eta_secs(), None);
    }

    #[test]
    fn text_says_how_much_is_local_while_serving() {
        let mut status = Status::new("m".into(), "/tmp/model".into(), Vec::new());
        status.state = State::Serving;
        status.stage = "model at /tmp/model".into();
        status.progress = Progress { bytes_done: 1, bytes_total: 4, ..Progress::default() };
        assert_eq!(status.text(), "Serving: model at /tmp/model (25 % of the model is local)");
    }
}
