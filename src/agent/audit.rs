//! The audit trail: which model was served here, with which key, under whose approval, and what was refused.
//!
//! Owns: the names and fields of the records, which `docs/audit.md` describes for officers; only additive change. Each record
//! stands for one act and is written where that act is done. Must not know: a key, or an attestation token beyond its id. No
//! threads, no locks. Tested in `tests/audit.rs`, and with the documented queries on a real journal in `tests/system.rs`.

use super::model::Listed;
use super::status::{Failure, Outcome};
use crate::attest::Claims;
use crate::config::Settings;
use crate::error::{ErrorClass, Fault};
use crate::kbs::Facts;

/// What the records have in common: `journalctl TARGET=cai::audit`.
const TARGET: &str = "cai::audit";

/// What the broker was asked for the key for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To serve the model.
    Start,
    /// To go to the key and the revision that there are now.
    Rotation,
    /// To hear whether it would still be given; what came is wiped unused.
    Renewal,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Purpose::Start => "start",
            Purpose::Rotation => "rotation",
            Purpose::Renewal => "renewal",
        }
    }
}

/// The broker gave the model key.
pub(super) fn key_released(settings: &Settings, purpose: Purpose, facts: &Facts) {
    let gpus: Vec<&str> = facts.claims.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    tracing::info!(
        target: TARGET,
        event = "key.released",
        purpose = purpose.name(),
        key_id = settings.trustee.key_id,
        model = settings.oss.location(),
        broker = settings.trustee.url.as_str(),
        broker_authenticated = facts.server_authenticated,
        token = facts.token_id,
        token_verified = facts.token_verified,
        policy = facts.policy.ids,
        policy_hash = facts.policy.hashes,
        tee = facts.tee.name(),
        gpus = gpus.join(","),
        evidence = facts.claims.evidence_sha256,
        "the broker released the key {}",
        settings.trustee.key_id
    );
}

/// The broker was asked for the model key and did not give it, for as long as it was asked. `refused` is what the evidence said
/// that it refused, `judged` the last attestation that it accepted, where it accepted one.
pub(super) fn key_not_released(
    settings: &Settings,
    purpose: Purpose,
    failure: &Failure,
    refused: Option<&Claims>,
    judged: Option<&Facts>,
) {
    let claims = refused.or(judged.map(|facts| &facts.claims));
    tracing::warn!(
        target: TARGET,
        event = "key.not-released",
        purpose = purpose.name(),
        key_id = settings.trustee.key_id,
        model = settings.oss.location(),
        broker = settings.trustee.url.as_str(),
        code = failure.code(),
        token = judged.map(|facts| facts.token_id.as_str()),
        policy = judged.and_then(|facts| facts.policy.ids.as_deref()),
        evidence = claims.map(|claims| claims.evidence_sha256.as_str()),
        "the key {} was not released: {failure}",
        settings.trustee.key_id
    );
}

/// The plaintext of the model can be read from now on. `generation` counts the keys that were taken into use since start.
pub(super) fn model_mounted(settings: &Settings, generation: u32, facts: &Facts, listed: &Listed) {
    tracing::info!(
        target: TARGET,
        event = "model.mounted",
        model = settings.oss.location(),
        identity = listed.identity().map(|identity| identity.to_string()),
        revision = listed.name,
        mount_point = %settings.mount.point.display(),
        key_id = settings.trustee.key_id,
        generation,
        token = facts.token_id,
        policy = facts.policy.ids,
        policy_hash = facts.policy.hashes,
        evidence = facts.claims.evidence_sha256,
        "the model {} can be read at {}",
        settings.oss.location(),
        settings.mount.point.display()
    );
}

/// A rotation ended in one of its three good ways: `listed` is what is served now.
pub(super) fn rotated(
    settings: &Settings,
    number: u32,
    outcome: Outcome,
    generation: u32,
    facts: &Facts,
    listed: &Listed,
) {
    tracing::info!(
        target: TARGET,
        event = "rotation.over",
        rotation = number,
        outcome = outcome.name(),
        model = settings.oss.location(),
        identity = listed.identity().map(|identity| identity.to_string()),
        revision = listed.name,
        key_id = settings.trustee.key_id,
        generation,
        token = facts.token_id,
        policy = facts.policy.ids,
        policy_hash = facts.policy.hashes,
        evidence = facts.claims.evidence_sha256,
        "rotation {number}: {}",
        outcome.name()
    );
}

/// A rotation failed, and everything is as it was before.
pub(super) fn rotation_failed(settings: &Settings, number: u32, failure: &Failure) {
    tracing::warn!(
        target: TARGET,
        event = "rotation.over",
        rotation = number,
        outcome = Outcome::Failed.name(),
        model = settings.oss.location(),
        key_id = settings.trustee.key_id,
        code = failure.code(),
        "rotation {number} failed: {failure}"
    );
}

/// The model's origin or licence was judged, and it is not served. What merely could not be fetched is no refusal.
pub(super) fn model_refused(settings: &Settings, failure: &Failure) {
    if !matches!(failure.class(), ErrorClass::Denied | ErrorClass::Corrupt) {
        return;
    }
    tracing::warn!(
        target: TARGET,
        event = "model.refused",
        model = settings.oss.location(),
        key_id = settings.trustee.key_id,
        code = failure.code(),
        "the model {} is refused: {failure}",
        settings.oss.location()
    );
}

/// Somebody asked over D-Bus for what they may not do; `caller` is their user number, where the bus told it.
pub fn request_refused(action: &str, caller: Option<u32>, why: &str) {
    tracing::warn!(target: TARGET, event = "bus.refused", action, caller, "{why}");
}
