//! Attestation and what follows from it: the model's secret, and GPUs that accept work.
//!
//! GPUs accept work only between the release of the key and the end of the agent: never half attested, and not behind an
//! agent that failed. The helper takes the state back by itself when the agent's line to it closes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::audit::{self, Purpose};
use super::patience::Patience;
use super::stages::ask;
use super::state::{Event, State};
use super::status::Failure;
use super::voice::Voice;
use crate::attest::{self, Attester, GpuClaims};
use crate::config::{Settings, TeeChoice};
use crate::error::{ErrorClass, Fault, chain};
use crate::helper::Helper;
use crate::helper::protocol::Request;
use crate::kbs::{self, Facts, Policy};
use crate::keyring::Secret;

/// What the broker's consent brings beside the secret.
#[derive(Debug, Clone)]
pub(super) struct Verdict {
    /// The policies that the machine was judged by, where nobody on the way can have named others.
    pub(super) policy: Policy,
    /// The time of the attestation token, where nobody on the way can have written it: the broker proved who it is, or the
    /// token is signed by a named signer. The token's end, the only time that the broker's dialects share.
    pub(super) time: Option<SystemTime>,
    /// When it was given.
    pub(super) at: Instant,
    /// The attestation that it followed.
    pub(super) facts: Facts,
}

impl Verdict {
    fn of(facts: &Facts) -> Self {
        let believed = facts.token_verified || facts.server_authenticated;
        let policy = if believed { facts.policy.clone() } else { Policy::default() };
        let time = facts.expires.filter(|_| believed);
        Verdict { policy, time, at: Instant::now(), facts: facts.clone() }
    }
}

/// Who is asked for the key, and by whom.
pub(super) struct Broker {
    /// Who gives the evidence.
    pub(super) attester: Arc<dyn Attester>,
    client: kbs::Client,
    uri: kbs::ResourceUri,
    retry_limit: Duration,
}

/// What the first consent brings.
pub(super) struct Released {
    /// The model's secret.
    pub(super) secret: Secret,
    /// Whether the GPUs were attested too, and accept work now.
    pub(super) gpus_ready: bool,
    pub(super) verdict: Verdict,
}

impl Broker {
    /// Find out how this machine attests; asks nobody outside.
    pub(super) async fn new(
        settings: &Settings,
        voice: &Voice,
        helper: &Arc<Helper>,
    ) -> Result<Self, Failure> {
        let fail = |fault: &dyn Fault| Failure::new(voice.state(), fault);
        if settings.attest.tee != TeeChoice::Sample {
            // Left by a crash of agent and helper together, or set while the machine booted. Before anything that can fail.
            hold_gpus_back(helper).await;
        }
        let attester = attest::detect(&settings.attesting(), helper).map_err(|error| fail(&error))?;
        let uri = kbs::ResourceUri::parse(&settings.trustee.key_id).map_err(|error| fail(&error))?;
        let client = kbs::Client::new(&settings.trustee).map_err(|error| fail(&error))?;
        Ok(Broker { attester, client, uri, retry_limit: settings.trustee.retry_limit })
    }

    /// Attest this machine and receive the model's secret, retrying what may pass until the operator's limit.
    pub(super) async fn release(
        &self,
        settings: &Settings,
        voice: &Voice,
        helper: &Arc<Helper>,
    ) -> Result<Released, Failure> {
        let fail = |fault: &dyn Fault| Failure::new(voice.state(), fault);
        let mut patience = Patience::new("the key broker", self.retry_limit);
        let uri = &self.uri;
        loop {
            let (mut outcome, mut judged) = (Ok(()), None);
            let heard = |facts: &Facts| {
                judged = Some(facts.clone());
                outcome = attested(voice, facts, uri);
            };
            let released = self.client.release(self.attester.clone(), uri, heard).await;
            outcome?;
            let error = match released {
                Ok((proof, secret)) => {
                    audit::key_released(settings, Purpose::Start, proof.facts());
                    self.note_release(voice);
                    let gpus_ready = !proof.facts().claims.gpus.is_empty();
                    if gpus_ready {
                        let (text, _) = ask(helper, Request::GpuReady).await.map_err(|error| fail(&error))?;
                        tracing::info!(event = "gpu.ready", "{text}");
                    }
                    voice.apply(Event::KeyReleased, "listing the model")?;
                    return Ok(Released { secret, gpus_ready, verdict: Verdict::of(proof.facts()) });
                }
                Err(error) => error,
            };
            let given_up = |failure: &Failure| {
                audit::key_not_released(settings, Purpose::Start, failure, error.claims(), judged.as_ref());
            };
            patience.after(voice, fail(&error)).await.inspect_err(given_up)?;
        }
    }

    /// The same once more while the model is served, asked once: nothing but what is shown of the attestation changes. That
    /// nobody answered is no refusal: who asked may ask again.
    pub(super) async fn again(
        &self,
        settings: &Settings,
        voice: &Voice,
        purpose: Purpose,
    ) -> Result<(Secret, Verdict), Failure> {
        let mut judged = None;
        let heard = |facts: &Facts| {
            judged = Some(facts.clone());
            show(voice, facts);
        };
        match self.client.release(self.attester.clone(), &self.uri, heard).await {
            Ok((proof, secret)) => {
                audit::key_released(settings, purpose, proof.facts());
                Ok((secret, Verdict::of(proof.facts())))
            }
            Err(error) => {
                let failure = Failure::new(voice.state(), &error);
                if failure.class() != ErrorClass::Transient {
                    audit::key_not_released(settings, purpose, &failure, error.claims(), judged.as_ref());
                }
                Err(failure)
            }
        }
    }

    /// The key was taken into use.
    pub(super) fn note_release(&self, voice: &Voice) {
        voice.update(|status| status.key_generation = status.key_generation.saturating_add(1));
    }
}

/// A handshake succeeded; the resource is asked for next. After a lost session this is not the first one.
fn attested(voice: &Voice, facts: &Facts, uri: &kbs::ResourceUri) -> Result<(), Failure> {
    if voice.state() == State::ReleasingKey {
        voice.apply(Event::SessionLost, "a new handshake was needed")?;
    }
    show(voice, facts);
    voice.apply(Event::Attested, format!("asking for {uri}"))
}

/// Put the facts of an attestation into the status.
fn show(voice: &Voice, facts: &Facts) {
    voice.update(|status| {
        status.attested_at = Some(facts.attested_at);
        status.attestation_expires = facts.expires;
        status.attestation = shown(facts);
    });
    for notice in &facts.claims.notices {
        voice.notice(notice);
    }
    if facts.downgraded {
        voice.notice(&format!(
            "the key broker, or whoever answers in its place, asked for protocol {}, which is not the newest: pin it with \
             trustee.protocol if that is right",
            facts.dialect.version()
        ));
    }
}

/// The facts of an attestation as the status shows them.
fn shown(facts: &Facts) -> BTreeMap<&'static str, String> {
    let server =
        if facts.server_authenticated { "authenticated by TLS" } else { "NOT AUTHENTICATED (plain http)" };
    let token = if facts.token_verified { "signature verified" } else { "signature not checked" };
    BTreeMap::from([
        ("tee", facts.tee.name().to_owned()),
        ("provider", facts.claims.provider.to_owned()),
        ("gpus", gpus(&facts.claims.gpus)),
        ("protocol", facts.dialect.version().to_owned()),
        ("key-algorithm", facts.algorithm.to_owned()),
        ("server", server.to_owned()),
        ("token", token.to_owned()),
        ("policy", facts.policy.ids.clone().unwrap_or_else(|| "not named".to_owned())),
    ])
}

/// `2 x NVIDIA H20`; `none`.
fn gpus(gpus: &[GpuClaims]) -> String {
    let mut names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    names.sort_unstable();
    let kinds: Vec<String> = names
        .chunk_by(|a, b| a == b)
        .filter_map(|kind| Some(format!("{} x {}", kind.len(), kind.first()?)))
        .collect();
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

/// Let the GPUs refuse work. A failure is only said: without GPUs there is nothing to hold back, and GPUs whose driver
/// does not answer are not attested either.
pub(super) async fn hold_gpus_back(helper: &Arc<Helper>) {
    match ask(helper, Request::GpuNotReady).await {
        Ok((text, _)) => tracing::info!(event = "gpu.not-ready", "{text}"),
        Err(error) => {
            tracing::warn!(event = "gpu.not-ready-failed", error = ?error, "holding the GPUs back: {}", chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_by_product() {
        let gpu = |name: &str| GpuClaims { name: name.into(), ..GpuClaims::default() };
        assert_eq!(gpus(&[]), "none");
        assert_eq!(gpus(&[gpu("H20"), gpu("H100"), gpu("H20")]), "1 x H100, 2 x H20");
    }
}
