//! What cai checks of the attestation token: that it is about this handshake, for how long, and, where the operator has
//! named the signer, that it is signed.
//!
//! Without a named signer the token is opaque: the key in it proves nothing. Its text is never logged.
//!
//! Source: kbs.md section 9.1.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;

pub use super::signer::Signers;
use super::wire::Jwk;
use crate::jwt::{Jwt, JwtError};
use crate::pki::PkiError;
use crate::text::printable;

/// Where the brokers put the runtime data of the handshake: EAR tokens (`cpu` in Alibaba v1.1.3 to v1.5.x), and the
/// simple tokens of v1.0.0 to v1.1.2.
const RUNTIME_DATA: [&str; 3] = [
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims",
    "/submods/cpu/ear.veraison.annotated-evidence/runtime_data_claims",
    "/customized_claims/runtime_data",
];

/// How far the broker's clock and ours may be apart. A token lives five minutes.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What the status shows of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFacts {
    /// `exp`.
    pub expires: Option<SystemTime>,
    /// `jti`.
    pub id: Option<String>,
    /// Signed by one of the operator's signers.
    pub verified: bool,
    /// The policies that the machine was judged by.
    pub policy: Policy,
}

/// The policies that a machine was judged by, as far as the token names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Names, sorted and separated by commas.
    pub ids: Option<String>,
    /// Hashes, in the order of the names; simple tokens have them.
    pub hashes: Option<String>,
}

/// Check a token that arrived `now` against the handshake it came from, and its signature where there are `signers`.
///
/// # Errors
/// [`TokenError`]. A nonce or key that is *absent* is only a warning without signers: not every broker puts them in.
pub fn check(
    token: &str,
    nonce: &str,
    jwk: &Jwk,
    signers: Option<&Signers>,
    now: SystemTime,
) -> Result<TokenFacts, TokenError> {
    let token = Jwt::parse(token)?;
    let absent = check_binding(token.claims(), nonce, jwk)?;
    let expires = token.expires();
    if let Some(signers) = signers {
        signers.check(&token, now)?;
        let absent = absent.or(expires.is_none().then_some("end"));
        absent.map_or(Ok(()), |what| Err(TokenError::Missing { what }))?;
    } else if let Some(what) = absent {
        tracing::warn!(
            event = "kbs.token-unbound",
            what,
            "the attestation token does not name this handshake's"
        );
    }
    token.check_time(now, CLOCK_SKEW)?;
    let id = token.claims().get("jti").and_then(Value::as_str).map(|id| printable(id, 64));
    let id = id.filter(|id| !id.is_empty());
    Ok(TokenFacts { expires, id, verified: signers.is_some(), policy: policy(token.claims()) })
}

/// EAR tokens name a policy in each submodule, simple ones have a list of reports (kbs.md 9.1).
fn policy(claims: &Value) -> Policy {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(|text| printable(text, 128));
    let submodules = claims.get("submods").and_then(Value::as_object);
    let of_ear = submodules.into_iter().flat_map(|all| all.values());
    let of_ear = of_ear.filter_map(|one| Some((text(one.get("ear.appraisal-policy-id"))?, None)));
    let reports = claims.get("evaluation-reports").and_then(Value::as_array);
    let of_simple = reports.into_iter().flatten();
    let of_simple =
        of_simple.filter_map(|one| Some((text(one.get("policy-id"))?, text(one.get("policy-hash")))));
    let all: BTreeMap<String, Option<String>> = of_ear.chain(of_simple).take(16).collect();
    let join = |texts: Vec<String>| (!texts.is_empty()).then(|| texts.join(","));
    Policy { hashes: join(all.values().flatten().cloned().collect()), ids: join(all.into_keys().collect()) }
}

/// The handshake's nonce and key, wherever the token carries them, are ours. Which of them it does not carry at all.
fn check_binding(claims: &Value, nonce: &str, jwk: &Jwk) -> Result<Option<&'static str>, TokenError> {
    let runtime_data: Vec<&Value> =
        RUNTIME_DATA.iter().filter_map(|pointer| claims.pointer(pointer)).collect();
    let nonces: Vec<&Value> = runtime_data.iter().filter_map(|data| data.get("nonce")).collect();
    if nonces.iter().any(|theirs| theirs.as_str() != Some(nonce)) {
        return Err(TokenError::WrongNonce);
    }
    let keys: Vec<&Value> = runtime_data.iter().filter_map(|data| data.get("tee-pubkey")).collect();
    if !keys.iter().all(|theirs| is_our_key(theirs, jwk)) {
        return Err(TokenError::WrongKey);
    }
    Ok(if nonces.is_empty() {
        Some("nonce")
    } else if keys.is_empty() {
        Some("TEE key")
    } else {
        None
    })
}

fn is_our_key(theirs: &Value, ours: &Jwk) -> bool {
    let same = |name: &str, value: &str| theirs.get(name).and_then(Value::as_str) == Some(value);
    match ours {
        Jwk::Ec { alg: _, crv, kty, x, y } => {
            same("kty", kty) && same("crv", crv) && same("x", x) && same("y", y)
        }
        Jwk::Rsa { alg: _, e, kty, n } => same("kty", kty) && same("n", n) && same("e", e),
    }
}

/// The attestation token is not one for this handshake.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not three base64url segments of which two are JSON.
    #[error("the attestation token is not a JSON Web Token")]
    Malformed,
    /// Unsigned, signed with a shared secret, or in a way that cai does not know.
    #[error("the attestation token claims the signature algorithm {alg}")]
    Algorithm {
        /// The algorithm.
        alg: String,
    },
    /// The named signers did not sign it, or its signature is not one.
    #[error("the attestation token is not signed by a key of trustee.token_cert")]
    Untrusted,
    /// Its certificates do not lead up to the named ones.
    #[error("the certificates of the attestation token do not lead up to those of trustee.token_cert")]
    Chain(#[source] PkiError),
    /// Its certificate is right, its signature is not.
    #[error("the signature of the attestation token does not verify")]
    Signature,
    /// Signed, but about no handshake in particular, or for ever.
    #[error("the attestation token does not name its {what}")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
    /// About another challenge.
    #[error("the attestation token is about another nonce than this handshake's")]
    WrongNonce,
    /// About another key pair.
    #[error("the attestation token is about another TEE key than this handshake's")]
    WrongKey,
    /// Past its `exp`.
    #[error("the attestation token had expired {secs} s before it arrived")]
    Expired {
        /// By how much, in seconds.
        secs: u64,
    },
    /// Before its `nbf`.
    #[error("the attestation token is not valid for another {secs} s")]
    NotYetValid {
        /// By how much, in seconds.
        secs: u64,
    },
}

impl From<JwtError> for TokenError {
    fn from(error: JwtError) -> Self {
        match error {
            JwtError::Malformed => TokenError::Malformed,
            JwtError::Algorithm { alg } => TokenError::Algorithm { alg },
            JwtError::Untrusted => TokenError::Untrusted,
            JwtError::Chain(source) => TokenError::Chain(source),
            JwtError::Signature => TokenError::Signature,
            JwtError::Expired { secs } => TokenError::Expired { secs },
            JwtError::NotYetValid { secs } => TokenError::NotYetValid { secs },
        }
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
