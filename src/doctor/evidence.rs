//! What this machine can prove, collected as for a key broker and shown to nobody. Needs no network.

use std::sync::Arc;

use super::context::{AS_ROOT, Blocked, Context};
use super::finding::{Finding, count};
use crate::attest::{AttestError, Claims, Digest, Evidence, Tee, Verifier};
use crate::config::Protocol;
use crate::error::ErrorClass;
use crate::host;

/// What follows where there is no evidence.
pub(super) const NOTHING_PROVEN: &str = "no key broker releases a key to this machine";

/// Why there is nobody to give evidence.
pub(super) fn blocked(id: &'static str, blocked: &Blocked) -> Finding {
    match blocked {
        Blocked::NotAllowed => {
            let found = format!("evidence is made for root and user {} alone", host::DAEMON_USER);
            Finding::unseen(id, found, AS_ROOT)
        }
        Blocked::Unconfigured => Finding::unseen(id, "needs a valid cai.toml", "cai check-config"),
        Blocked::Failed(fault) => Finding::fault(id, fault.as_ref(), NOTHING_PROVEN),
    }
}

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let attester = match context.attester().await {
        Ok(attester) => attester,
        Err(why) => return vec![blocked("evidence.quote", &why)],
    };
    let verifier = match context.attesting().map(|settings| settings.protocol) {
        Some(Protocol::V0_1_0 | Protocol::V0_1_1) => Verifier::Legacy,
        Some(Protocol::Auto | Protocol::V0_2_0 | Protocol::V0_4_0) | None => Verifier::Current,
    };
    // Nobody has asked for it; but a GPU is not believed that answers zeros.
    let mut nonce = [0; 48];
    if let Err(error) = getrandom::fill(&mut nonce) {
        let found = format!("the system gives no random numbers: {error}");
        return vec![Finding::error("evidence.quote", ErrorClass::Transient, found, NOTHING_PROVEN)];
    }
    let collect = move || {
        let nonce = Digest(nonce);
        let tee = attester.tee();
        attester.device_evidence(&nonce)?;
        attester.evidence(&nonce, verifier).map(|evidence| (tee, evidence))
    };
    match tokio::task::spawn_blocking(collect).await {
        Ok(collected) => judge(collected),
        Err(_) => {
            let found = "collecting evidence panicked";
            vec![Finding::error("evidence.quote", ErrorClass::Internal, found, NOTHING_PROVEN)]
        }
    }
}

fn judge(collected: Result<(Tee, Evidence), AttestError>) -> Vec<Finding> {
    let (tee, claims) = match collected {
        Ok((tee, Evidence { claims, .. })) => (tee, claims),
        Err(error) => return vec![Finding::fault("evidence.quote", &error, NOTHING_PROVEN)],
    };
    let Claims { provider, gpus, notices, .. } = claims;
    let mut findings = vec![match tee {
        Tee::Tdx => Finding::ok("evidence.quote", format!("a TDX quote from {provider}")),
        Tee::Sample => Finding::warning(
            "evidence.quote",
            "sample evidence",
            "it proves nothing, and default policies deny it",
        ),
    }];
    let confidential = gpus.iter().filter(|gpu| gpu.confidential).count();
    if let Some(first) = gpus.first() {
        let found = format!("{} verified, such as {}", count(confidential, "confidential GPU"), first.name);
        findings.push(Finding::ok("evidence.gpus", found));
    }
    findings.extend(notices.into_iter().map(|notice| Finding::warning("evidence.notice", notice, "")));
    findings
}
