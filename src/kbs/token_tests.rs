//! Tokens without a named signer; `tests/kbs_token.rs` has those with one.

use std::time::UNIX_EPOCH;

use super::*;
use crate::kbs::key::{KeyAlg, RsaAlg, TeeKey};
use crate::kbs::wire::encode_base64url;
use proptest::prelude::*;
use serde_json::json;

const NONCE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn ec_key() -> TeeKey {
    TeeKey::generate(KeyAlg::EcdhEsA256Kw).unwrap()
}

/// Without named signers, compared by what the error says: a source in one of its variants has no equality.
fn check(token: &str, nonce: &str, jwk: &Jwk, now: SystemTime) -> Result<TokenFacts, String> {
    super::check(token, nonce, jwk, None, now).map_err(|error| format!("{error:?}"))
}

fn refused(error: TokenError) -> Result<TokenFacts, String> {
    Err(format!("{error:?}"))
}

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
    let key = ec_key();
    let simple = json!({ "exp": 1000, "nbf": 900, "jti": "id-1",
        "customized_claims": { "runtime_data": { "nonce": NONCE, "tee-pubkey": key.jwk() } } });
    let check = |alg, claims: &Value| check(&token(alg, claims), NONCE, key.jwk(), at(950)).unwrap();
    assert_eq!(
        check("RS384", &simple),
        TokenFacts {
            expires: Some(at(1000)),
            id: Some("id-1".into()),
            verified: false,
            policy: Policy::default()
        }
    );
    for submod in ["cpu", "cpu0"] {
        let facts = check("ES256", &ear(submod, NONCE, key.jwk()));
        assert_eq!(
            facts,
            TokenFacts { expires: Some(at(1000)), id: None, verified: false, policy: Policy::default() }
        );
    }
    assert_eq!(
        check("ES256", &json!({})),
        TokenFacts { expires: None, id: None, verified: false, policy: Policy::default() }
    );
    assert_eq!(check("ES256", &json!({ "exp": "soon" })).expires, None);
    assert_eq!(
        check("ES256", &json!({ "exp": 1000.5 })).expires,
        Some(at(1000) + Duration::from_millis(500))
    );
}

#[test]
fn token_about_another_handshake_is_refused_wherever_it_says_so() {
    let key = ec_key();
    let other = ec_key();
    let rsa = TeeKey::generate(KeyAlg::Rsa(RsaAlg::Pkcs1)).unwrap();
    let check = |claims: &Value| check(&token("ES256", claims), NONCE, key.jwk(), at(950));
    for submod in ["cpu", "cpu0"] {
        assert_eq!(check(&ear(submod, "another", key.jwk())), refused(TokenError::WrongNonce));
        assert_eq!(check(&ear(submod, NONCE, other.jwk())), refused(TokenError::WrongKey));
        assert_eq!(check(&ear(submod, NONCE, rsa.jwk())), refused(TokenError::WrongKey));
    }
    let simple = |nonce: Value, key: Value| json!({ "customized_claims": { "runtime_data": { "nonce": nonce, "tee-pubkey": key } } });
    assert_eq!(check(&simple(json!(7), json!(key.jwk()))), refused(TokenError::WrongNonce));
    assert_eq!(check(&simple(json!(NONCE), json!("text"))), refused(TokenError::WrongKey));
}

#[test]
fn token_outside_its_time_is_refused_beyond_the_clock_skew() {
    let key = ec_key();
    let check = |now| check(&token("ES256", &json!({ "exp": 1000, "nbf": 900 })), NONCE, key.jwk(), at(now));
    assert_eq!(check(1061), refused(TokenError::Expired { secs: 61 }));
    assert_eq!(check(839), refused(TokenError::NotYetValid { secs: 61 }));
    assert!(check(1060).is_ok() && check(840).is_ok());
}

#[test]
fn token_that_anybody_could_have_made_or_nobody_can_read_is_refused() {
    let key = ec_key();
    let check = |token: &str| check(token, NONCE, key.jwk(), at(950));
    for alg in ["none", "None", "HS256", "hs512"] {
        assert_eq!(check(&token(alg, &json!({}))), refused(TokenError::Algorithm { alg: alg.into() }));
    }
    let good = token("ES256", &json!({}));
    let two = good.rsplit_once('.').unwrap().0;
    for bad in
        ["", "..", two, &format!("{good}.x"), "!!.e30.c2ln", "e30.e30.c2ln", "eyJhbGciOiJFUzI1NiJ9.W.x"]
    {
        assert_eq!(check(bad), refused(TokenError::Malformed), "{bad}");
    }
}

proptest! {
    #[test]
    fn token_of_any_text_or_any_json_is_never_verified_and_never_a_panic(text in ".{0,80}", header in any::<Vec<u8>>(), exp in any::<f64>()) {
        let key = ec_key();
        let claims = json!({ "exp": exp, "nbf": -exp, "submods": text.clone() });
        for token in [text, format!("{}.e30.", encode_base64url(&header)), token("ES256", &claims)] {
            if let Ok(facts) = check(&token, NONCE, key.jwk(), at(950)) {
                prop_assert!(!facts.verified);
            }
        }
    }
}

#[test]
fn policies_are_read_from_tokens_of_both_kinds() {
    let named = |claims| {
        let Policy { ids, hashes } = policy(&claims);
        (ids.unwrap_or_default(), hashes.unwrap_or_default())
    };
    let ear = json!({"submods": {
        "gpu0": {"ear.appraisal-policy-id": "default_gpu"}, "cpu0": {"ear.appraisal-policy-id": "default_cpu"},
        "cpu1": {"ear.status": "affirming"},
    }});
    assert_eq!(named(ear), ("default_cpu,default_gpu".into(), String::new()));
    let simple = json!({"evaluation-reports": [
        {"policy-id": "default", "policy-hash": "c0ffee"}, {"policy-hash": "without a name"}, 7,
    ]});
    assert_eq!(named(simple), ("default".into(), "c0ffee".into()));
    for nothing in [json!({}), json!({"submods": [], "evaluation-reports": {}}), json!(null)] {
        assert_eq!(named(nothing), (String::new(), String::new()));
    }
}
