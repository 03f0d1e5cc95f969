//! The evidence that others are shown: clients at the service port, peers. One identity for both.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::state::State;
use super::status::Failure;
use super::voice::Voice;
use crate::attest::Attester;
use crate::config::{PeerAttestation, Settings};
use crate::gateway::Gateway;
use crate::kbs::Policy;
use crate::manifest;
use crate::ratls::identity::{Identity, Recipe};
use crate::ratls::{Format, MODEL_IDENTITY};
use crate::task::Tasks;

/// Members that name the policy of the key's release: hash where the token has it (simple tokens), name.
const POLICY_HASH: &str = "policy-hash";
const POLICY_ID: &str = "policy-id";

/// Collect evidence, if anybody is to be shown some, and keep it fresh in the `background`.
pub(super) async fn collect(
    settings: &Settings,
    voice: &Voice,
    attester: Arc<dyn Attester>,
    members: BTreeMap<String, String>,
    background: &mut Tasks,
) -> Result<Option<Arc<Identity>>, Failure> {
    let formats = formats(settings);
    if formats.is_empty() {
        return Ok(None);
    }
    voice.stage("collecting evidence for clients and peers");
    let identity = Identity::start(Recipe { attester, formats, members }, settings.gateway.refresh).await;
    let identity = Arc::new(identity.map_err(|error| Failure::new(State::Fetching, &error))?);
    let renewed = identity.clone();
    background.supervise("identity", async move { match renewed.keep_fresh().await {} });
    Ok(Some(identity))
}

/// What evidence binds beside a key: the model's identity and the policy that the key was released under, where they are known.
pub(super) fn members(model: Option<manifest::Identity>, policy: Policy) -> BTreeMap<String, String> {
    let model = model.map(|model| model.to_string());
    let members = [(MODEL_IDENTITY, model), (POLICY_HASH, policy.hashes), (POLICY_ID, policy.ids)];
    members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// The formats that the service port and the peers show.
fn formats(settings: &Settings) -> Vec<Format> {
    let mut formats = match settings.gateway.entrance {
        Some(_) => Gateway::formats(settings.gateway.certificate),
        None => Vec::new(),
    };
    let peers = !settings.peer.addresses.is_empty();
    if peers && settings.peer.attestation == PeerAttestation::Required && !formats.contains(&Format::Current)
    {
        formats.push(Format::Current);
    }
    formats
}
