//! What a token of the attestation service must say about a certificate.
//!
//! Pure: time is an argument. Source: tng.md sections 4.4 and 5; kbs.md sections 9.1 and 10.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::Format;
use crate::jwt::{Jwt, JwtError, Signers};
use crate::text::printable;

/// How far the service's clock and ours may be apart, for the beginning of a token's life. Its end is taken as it stands.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// How much of a value that others wrote is shown, in characters.
const SHOWN: usize = 200;

/// The CPU's part of an EAR token; `cpu` in Alibaba's Trustee v1.1.3 to v1.5.x.
const CPU: [&str; 2] = ["cpu0", "cpu"];

/// What to do about a claim that is not as it must be.
const DISTRUST: &str = "do not use this peer, unless the policy asked for is the wrong one";
const ONE_POLICY: &str = "a service that issues EAR tokens appraises under the first policy alone: ask for one (cai connect: \
     --policy once)";
const DEVICES: &str = "the service did not judge all that the peer showed: does it know these devices, and has it a policy for them?";
const LEGACY: &str = "servers show newer certificates to newer clients: offer what those do (cai connect --mode auto), or have \
     the server show them to all (its cai.toml: gateway.certificate = \"current\")";

/// Suffix that upstream's Trustee gives the name of a policy for CPUs.
const CPU_POLICY: &str = "_cpu";

/// What a relying party wants to be told.
#[derive(Debug, Clone, Default)]
pub struct Demands {
    /// Ids of the policies the evidence must have been appraised under.
    pub policies: Vec<String>,
    /// Members of the runtime data, beside the key's hash, and their values.
    pub members: BTreeMap<String, String>,
}

/// What of the certificate the token must be about.
#[derive(Debug, Clone)]
pub struct Bound {
    /// Its format.
    pub format: Format,
    /// Its runtime data, which binds its key; see [`TaggedEvidence::bound`](super::evidence::TaggedEvidence::bound).
    pub runtime_data: Map<String, Value>,
    /// How many kinds of devices beside the CPU it has evidence of. A token of every kind must affirm what it appraises; an
    /// EAR must have appraised at least so many.
    pub devices: usize,
}

/// A token that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// End of the token's life.
    pub expires: SystemTime,
}

/// A token that is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Not a token, not now, not from whom it should be.
    #[error("the attestation service's token is not accepted")]
    Token(#[source] JwtError),
    /// A claim is not what it must be.
    #[error("claim {claim}: expected {expected}, the token says {found}")]
    Claim {
        /// Its name.
        claim: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
}

/// Hold a `token` that arrived `now` against what it must be about and say; against its signers too, where they are named.
///
/// # Errors
/// [`Refused`], with the first claim that is not as it must be.
pub fn judge(
    token: &str,
    bound: &Bound,
    demands: &Demands,
    signers: Option<&Signers>,
    now: SystemTime,
) -> Result<Verdict, Refused> {
    let token = Jwt::parse(token).map_err(Refused::Token)?;
    if let Some(signers) = signers {
        signers.check(&token, now).map_err(Refused::Token)?;
    }
    let expires = token.expires().ok_or_else(|| claim("exp", "a date", None))?;
    if let Ok(late) = now.duration_since(expires) {
        return Err(Refused::Token(JwtError::Expired { secs: late.as_secs() }));
    }
    token.check_time(now, CLOCK_SKEW).map_err(Refused::Token)?;
    let runtime_data = match token.claims().get("submods") {
        Some(submods) => ear(submods, bound, demands)?,
        None => simple(token.claims(), demands)?,
    };
    check_binding(runtime_data, bound)?;
    check_members(runtime_data, bound.format, demands)?;
    Ok(Verdict { expires })
}

fn claim(name: &str, expected: impl Into<String>, found: Option<&Value>) -> Refused {
    let found = found.map_or_else(|| "nothing".into(), |value| printable(&value.to_string(), SHOWN));
    Refused::Claim { claim: name.into(), expected: expected.into(), found, hint: DISTRUST }
}

/// The same refusal with another advice.
fn advised(refused: Refused, advice: &'static str) -> Refused {
    match refused {
        Refused::Claim { claim, expected, found, .. } => {
            Refused::Claim { claim, expected, found, hint: advice }
        }
        other @ Refused::Token(_) => other,
    }
}

/// The runtime data of an EAR token, if it is of the CPU and of as many devices as were shown, and everything in it is affirmed
/// under the demanded policies.
fn ear<'a>(submods: &'a Value, bound: &Bound, demands: &Demands) -> Result<&'a Value, Refused> {
    let parts = submods.as_object().ok_or_else(|| claim("submods", "an object", Some(submods)))?;
    for (name, part) in parts {
        let status = part.get("ear.status");
        if status.and_then(Value::as_str) != Some("affirming") {
            let name = printable(name, SHOWN);
            return Err(claim(&format!("submods.{name}.ear.status"), "affirming", status));
        }
    }
    let found = CPU.iter().find_map(|name| parts.get(*name).map(|part| (*name, part)));
    let (name, cpu) = found.ok_or_else(|| claim("submods.cpu0", "an appraisal of the CPU", None))?;
    let devices = parts.keys().filter(|part| !CPU.contains(&part.as_str())).count();
    if devices < bound.devices {
        let expected =
            format!("as many appraisals beside the CPU's as the peer showed devices ({})", bound.devices);
        let found = parts.keys().map(String::as_str).collect::<Vec<_>>().into();
        return Err(advised(claim("submods", expected, Some(&found)), DEVICES));
    }
    let appraised = cpu.get("ear.appraisal-policy-id");
    for policy in &demands.policies {
        let id = appraised.and_then(Value::as_str);
        if id.is_none_or(|id| id.strip_suffix(CPU_POLICY).unwrap_or(id) != policy && id != policy) {
            let name = format!("submods.{name}.ear.appraisal-policy-id");
            let refused = claim(&name, format!("\"{policy}\""), appraised);
            return Err(if demands.policies.len() > 1 { advised(refused, ONE_POLICY) } else { refused });
        }
    }
    let pointer = "/ear.veraison.annotated-evidence/runtime_data_claims";
    cpu.pointer(pointer).ok_or_else(|| claim("runtime_data_claims", "what the evidence is bound to", None))
}

/// The runtime data of a simple token, if the demanded policies are among its reports: there is no such token for evidence
/// that they deny.
fn simple<'a>(claims: &'a Value, demands: &Demands) -> Result<&'a Value, Refused> {
    let reports = claims.get("evaluation-reports");
    let listed = reports.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for policy in &demands.policies {
        let is_it = |report: &Value| report.get("policy-id").and_then(Value::as_str) == Some(policy);
        if !listed.iter().any(is_it) {
            return Err(claim("evaluation-reports", format!("policy-id \"{policy}\""), reports));
        }
    }
    let found = claims.pointer("/customized_claims/runtime_data");
    found.ok_or_else(|| claim("customized_claims.runtime_data", "what the evidence is bound to", None))
}

/// Legacy: the very same runtime data. Current: the key's hash among it.
fn check_binding(found: &Value, bound: &Bound) -> Result<(), Refused> {
    let is_bound = match bound.format {
        Format::Legacy => found.as_object() == Some(&bound.runtime_data),
        Format::Current => {
            let key = bound.runtime_data.get("pubkey-hash");
            key.is_some() && found.get("pubkey-hash") == key
        }
    };
    if is_bound {
        return Ok(());
    }
    let expected = match bound.format {
        Format::Legacy => Value::Object(bound.runtime_data.clone()).to_string(),
        Format::Current => {
            let key = bound.runtime_data.get("pubkey-hash").unwrap_or(&Value::Null);
            format!("\"pubkey-hash\":{key}")
        }
    };
    Err(claim("runtime_data", expected, Some(found)))
}

fn check_members(found: &Value, format: Format, demands: &Demands) -> Result<(), Refused> {
    for (name, expected) in &demands.members {
        let value = found.get(name);
        if value.and_then(Value::as_str) == Some(expected) {
            continue;
        }
        if format == Format::Legacy {
            return Err(Refused::Claim {
                claim: name.clone(),
                expected: format!("\"{expected}\""),
                found: "nothing: a certificate in the legacy format (TNG up to 2.2.6) cannot carry it".into(),
                hint: LEGACY,
            });
        }
        return Err(claim(name, format!("\"{expected}\""), value));
    }
    Ok(())
}
