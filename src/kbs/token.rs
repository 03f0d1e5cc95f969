//! What cai checks of the attestation token: that it is about this handshake, and for how long.
//!
//! The token is opaque otherwise: without a trust anchor the key in it proves nothing. It is dropped after the check, and
//! its text is never logged.
//!
//! Source: kbs.md section 9.1.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use super::error::printable;
use super::wire::{Jwk, decode_base64};

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
pub(super) struct TokenFacts {
    /// `exp`.
    pub expires: Option<SystemTime>,
    /// `jti`.
    pub id: Option<String>,
}

/// Check a token against the handshake it came from.
///
/// # Errors
/// [`TokenError`]. A nonce or key that is *absent* is only a warning: not every broker puts them in.
pub(super) fn check(token: &str, nonce: &str, jwk: &Jwk, now: SystemTime) -> Result<TokenFacts, TokenError> {
    let mut segments = token.split('.');
    let (Some(header), Some(claims), Some(_signature), None) =
        (segments.next(), segments.next(), segments.next(), segments.next())
    else {
        return Err(TokenError::Malformed);
    };
    refuse_unsigned(header)?;
    let claims: Value = parse_segment(claims)?;
    check_binding(&claims, nonce, jwk)?;
    let expires = date(&claims, "exp");
    if let Some(expires) = expires
        && let Ok(late) = now.duration_since(expires)
        && late > CLOCK_SKEW
    {
        return Err(TokenError::Expired { secs: late.as_secs() });
    }
    if let Some(start) = date(&claims, "nbf")
        && let Ok(early) = start.duration_since(now)
        && early > CLOCK_SKEW
    {
        return Err(TokenError::NotYetValid { secs: early.as_secs() });
    }
    let id = claims.get("jti").and_then(Value::as_str).map(|id| printable(id, 64));
    Ok(TokenFacts { expires, id })
}

/// `none` and the shared-secret algorithms can sign for anybody.
fn refuse_unsigned(header: &str) -> Result<(), TokenError> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
    }
    let Header { alg } = parse_segment(header)?;
    if alg.eq_ignore_ascii_case("none") || alg.to_ascii_uppercase().starts_with("HS") {
        return Err(TokenError::Algorithm { alg: printable(&alg, 32) });
    }
    Ok(())
}

/// The handshake's nonce and key, wherever the token carries them, are ours.
fn check_binding(claims: &Value, nonce: &str, jwk: &Jwk) -> Result<(), TokenError> {
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
    if nonces.is_empty() || keys.is_empty() {
        tracing::warn!(
            event = "kbs.token-unbound",
            nonce = !nonces.is_empty(),
            key = !keys.is_empty(),
            "the attestation token does not carry this handshake's nonce and key"
        );
    }
    Ok(())
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

/// A NumericDate of RFC 7519, which may have a fraction.
fn date(claims: &Value, name: &str) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(claims.get(name)?.as_f64()?).ok()?;
    UNIX_EPOCH.checked_add(since)
}

fn parse_segment<T: serde::de::DeserializeOwned>(segment: &str) -> Result<T, TokenError> {
    let json = decode_base64(segment).ok_or(TokenError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| TokenError::Malformed)
}

/// The attestation token is not one for this handshake.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not three base64url segments of which two are JSON.
    #[error("the attestation token is not a JSON Web Token")]
    Malformed,
    /// Unsigned, or signed with a shared secret.
    #[error("the attestation token claims the signature algorithm {alg}")]
    Algorithm {
        /// The algorithm.
        alg: String,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kbs::key::TeeKey;
    use crate::kbs::wire::{Dialect, encode_base64url};
    use serde_json::json;

    const NONCE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn token(alg: &str, claims: &Value) -> String {
        let segment = |value: &Value| encode_base64url(value.to_string().as_bytes());
        format!("{}.{}.c2ln", segment(&json!({ "typ": "JWT", "alg": alg })), segment(claims))
    }

    fn ear(submod: &str, nonce: &str, jwk: &Jwk) -> Value {
        json!({ "exp": 1000, "submods": { submod: { "ear.veraison.annotated-evidence": {
            "runtime_data_claims": { "nonce": nonce, "tee-pubkey": jwk } } } } })
    }

    #[test]
    fn token_of_every_known_shape_is_accepted_with_its_facts() {
        let key = TeeKey::generate(Dialect::V0_4_0).unwrap();
        let simple = json!({ "exp": 1000, "nbf": 900, "jti": "id-1",
            "customized_claims": { "runtime_data": { "nonce": NONCE, "tee-pubkey": key.jwk() } } });
        let check = |alg, claims: &Value| check(&token(alg, claims), NONCE, key.jwk(), at(950)).unwrap();
        assert_eq!(check("RS384", &simple), TokenFacts { expires: Some(at(1000)), id: Some("id-1".into()) });
        for submod in ["cpu", "cpu0"] {
            let facts = check("ES256", &ear(submod, NONCE, key.jwk()));
            assert_eq!(facts, TokenFacts { expires: Some(at(1000)), id: None });
        }
        assert_eq!(check("ES256", &json!({})), TokenFacts { expires: None, id: None });
        assert_eq!(check("ES256", &json!({ "exp": "soon" })).expires, None);
        assert_eq!(
            check("ES256", &json!({ "exp": 1000.5 })).expires,
            Some(at(1000) + Duration::from_millis(500))
        );
    }

    #[test]
    fn token_about_another_handshake_is_refused_wherever_it_says_so() {
        let key = TeeKey::generate(Dialect::V0_4_0).unwrap();
        let other = TeeKey::generate(Dialect::V0_4_0).unwrap();
        let rsa = TeeKey::generate(Dialect::V0_1_0).unwrap();
        let check = |claims: &Value| check(&token("ES256", claims), NONCE, key.jwk(), at(950));
        for submod in ["cpu", "cpu0"] {
            assert_eq!(check(&ear(submod, "another", key.jwk())), Err(TokenError::WrongNonce));
            assert_eq!(check(&ear(submod, NONCE, other.jwk())), Err(TokenError::WrongKey));
            assert_eq!(check(&ear(submod, NONCE, rsa.jwk())), Err(TokenError::WrongKey));
        }
        let simple = |nonce: Value, key: Value| json!({ "customized_claims": { "runtime_data": { "nonce": nonce, "tee-pubkey": key } } });
        assert_eq!(check(&simple(json!(7), json!(key.jwk()))), Err(TokenError::WrongNonce));
        assert_eq!(check(&simple(json!(NONCE), json!("text"))), Err(TokenError::WrongKey));
    }

    #[test]
    fn token_outside_its_time_is_refused_beyond_the_clock_skew() {
        let key = TeeKey::generate(Dialect::V0_4_0).unwrap();
        let check =
            |now| check(&token("ES256", &json!({ "exp": 1000, "nbf": 900 })), NONCE, key.jwk(), at(now));
        assert_eq!(check(1061), Err(TokenError::Expired { secs: 61 }));
        assert_eq!(check(839), Err(TokenError::NotYetValid { secs: 61 }));
        assert!(check(1060).is_ok() && check(840).is_ok());
    }

    #[test]
    fn token_that_anybody_could_have_made_or_nobody_can_read_is_refused() {
        let key = TeeKey::generate(Dialect::V0_4_0).unwrap();
        let check = |token: &str| check(token, NONCE, key.jwk(), at(950));
        for alg in ["none", "None", "HS256", "hs512"] {
            assert_eq!(check(&token(alg, &json!({}))), Err(TokenError::Algorithm { alg: alg.into() }));
        }
        let good = token("ES256", &json!({}));
        let two = good.rsplit_once('.').unwrap().0;
        for bad in
            ["", "..", two, &format!("{good}.x"), "!!.e30.c2ln", "e30.e30.c2ln", "eyJhbGciOiJFUzI1NiJ9.W.x"]
        {
            assert_eq!(check(bad), Err(TokenError::Malformed), "{bad}");
        }
    }
}
