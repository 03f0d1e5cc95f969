//! The audit trail: which model was served here, with which key, under whose approval, and what was refused.
//!
//! Owns: the names and fields of the records, which `docs/audit.md` describes for officers; only additive change. Each record
//! stands for one act and is written where that act is done. Must not know: a key, or an attestation token beyond its id. No
//! threads, no locks. Tested in `tests/audit.rs`, and with the documented queries on a real journal in `tests/system.rs`.

use crate::config::Settings;
use crate::error::{ErrorClass, Fault, chain};
use crate::kbs::{Facts, KbsError};
use crate::manifest::Identity;

use super::status::Failure;

/// What the records have in common: `journalctl TARGET=cai::audit`.
const TARGET: &str = "cai::audit";

/// A release of the model key, as far as later records name it.
#[derive(Debug)]
pub(super) struct Approval {
    /// Counts the keys released since start, from 1.
    pub(super) generation: u32,
    /// The attestation that it followed.
    pub(super) facts: Facts,
}

/// The broker gave the model key.
pub(super) fn key_released(settings: &Settings, approval: &Approval) {
    let Approval { generation, facts } = approval;
    let gpus: Vec<&str> = facts.claims.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    tracing::info!(
        target: TARGET,
        event = "key.released",
        key_id = settings.trustee.key_id,
        generation,
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

/// The broker was asked for the model key and did not give it, for as long as it was asked. `judged` is the last attestation that
/// it accepted, where it accepted one.
pub(super) fn key_not_released(settings: &Settings, error: &KbsError, judged: Option<&Facts>) {
    let claims = error.claims().or(judged.map(|facts| &facts.claims));
    tracing::warn!(
        target: TARGET,
        event = "key.not-released",
        key_id = settings.trustee.key_id,
        model = settings.oss.location(),
        broker = settings.trustee.url.as_str(),
        code = error.code(),
        token = judged.map(|facts| facts.token_id.as_str()),
        policy = judged.and_then(|facts| facts.policy.ids.as_deref()),
        evidence = claims.map(|claims| claims.evidence_sha256.as_str()),
        "the key {} was not released: {}",
        settings.trustee.key_id,
        chain(error)
    );
}

/// The plaintext of the model can be read from now on. `identity` is that of a signed model, `listing` the SHA-256 over the
/// list of objects.
pub(super) fn model_mounted(
    settings: &Settings,
    approval: &Approval,
    identity: Option<Identity>,
    listing: &[u8; 32],
) {
    let Approval { generation, facts } = approval;
    tracing::info!(
        target: TARGET,
        event = "model.mounted",
        model = settings.oss.location(),
        identity = identity.map(|identity| identity.to_string()),
        listing = hex::encode(listing),
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
