//! The key broker: what it speaks, and whether it would release the key to this machine.

use std::sync::Arc;

use super::context::Context;
use super::evidence::{NOTHING_PROVEN, blocked};
use super::finding::{Finding, count};
use crate::config::Settings;
use crate::error::Fault;
use crate::kbs::{self, Attested, Facts, KbsError, Probe};
use crate::keyring::Secret;

const NO_KEY: &str = "the model's key is not released, and the agent does not start";

pub(super) async fn protocol(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings() else { return Vec::new() };
    match context.probe().await {
        Some(Ok(probe)) => vec![speaks(settings, probe)],
        Some(Err(error)) => vec![Finding::fault("trustee.protocol", error.as_ref(), NO_KEY)],
        None => Vec::new(),
    }
}

fn speaks(settings: &Settings, probe: &Probe) -> Finding {
    let version = probe.dialect.version();
    let found = format!("{} speaks protocol {version}", settings.trustee.url);
    if !probe.downgraded {
        return Finding::ok("trustee.protocol", found);
    }
    let meaning = "not the newest: it, or somebody answering in its place, asked for it";
    Finding::warning("trustee.protocol", found, meaning)
        .fixed_by(format!("if that is right, pin it: trustee.protocol = \"{version}\" in cai.toml"))
}

/// Attest, and ask for the key. It is wiped before anything is said about it.
pub(super) async fn release(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings() else { return Vec::new() };
    let attester = match context.attester().await {
        Ok(attester) => attester,
        Err(why) => return vec![blocked("key.release", &why)],
    };
    let failed = |fault: &dyn Fault, meaning| vec![Finding::fault("key.release", fault, meaning)];
    let uri = match kbs::ResourceUri::parse(&settings.trustee.key_id) {
        Ok(uri) => uri,
        Err(error) => return failed(&error, NO_KEY),
    };
    let client = match kbs::Client::new(&settings.trustee) {
        Ok(client) => client,
        Err(error) => return failed(&error, NO_KEY),
    };
    match client.release(attester, &uri, |_| ()).await {
        Ok((attested, secret)) => released(&attested, secret),
        Err(error @ KbsError::Evidence { .. }) => failed(&error, NOTHING_PROVEN),
        Err(error) => failed(&error, NO_KEY),
    }
}

fn released(attested: &Attested, secret: Secret) -> Vec<Finding> {
    let bytes = secret.len();
    // Wiped here and now.
    drop(secret);
    let Facts { dialect, algorithm, token_verified, policy, claims, .. } = attested.facts();
    let policy = policy.ids.as_deref().unwrap_or("not named");
    let found = format!("the key ({}) is released to this machine; policy {policy}", count(bytes, "byte"));
    let token = if *token_verified { "token verified" } else { "token not checked" };
    let mut findings = vec![
        Finding::ok("key.release", found),
        Finding::ok("key.protocol", format!("protocol {}, {algorithm}, {token}", dialect.version())),
    ];
    findings.extend(claims.notices.iter().map(|notice| Finding::warning("key.notice", notice.as_str(), "")));
    findings
}
