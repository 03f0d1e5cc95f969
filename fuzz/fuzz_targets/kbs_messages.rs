//! What a key broker answers before the secret: challenge, token, and the resource's name as an operator writes it.
//!
//! Holds: no input panics; a nonce that is taken has its bounds, comes back verbatim in the attest body and changes the
//! digest; an error quotes nothing of the answer; a resource name that is taken reads back as itself.
#![no_main]

use std::sync::LazyLock;

use cai::kbs::wire::{Challenge, Dialect, WireError, attest_body, parse_token, primary_digest};
use cai::kbs::{ResourceUri, TeeKey};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static KEY: LazyLock<TeeKey> = LazyLock::new(|| TeeKey::from_p256_scalar(&[7; 32]).unwrap());

fuzz_target!(|body: &[u8]| {
    match Challenge::parse(body) {
        Ok(challenge) => check_nonce(&challenge.nonce),
        Err(error) => check_error(&error),
    }
    match parse_token(body) {
        Ok(token) => assert!(token.len() <= body.len()),
        Err(error) => check_error(&error),
    }
    if let Ok(text) = std::str::from_utf8(body)
        && let Ok(uri) = ResourceUri::parse(text)
    {
        assert_eq!(uri.to_string(), text);
        assert_eq!(ResourceUri::parse(&uri.to_string()).unwrap(), uri);
    }
});

fn check_nonce(nonce: &str) {
    assert!((43..=1024).contains(&nonce.len()), "{} characters", nonce.len());
    let evidence = serde_json::value::to_raw_value(&serde_json::json!({})).unwrap();
    for dialect in Dialect::ALL {
        let sent = attest_body(dialect, nonce, KEY.jwk(), &evidence, "").unwrap();
        let sent: Value = serde_json::from_slice(&sent).unwrap();
        if dialect == Dialect::V0_4_0 {
            assert_eq!(sent["runtime-data"]["nonce"], *nonce);
        }
        let digest = primary_digest(dialect, "", nonce, KEY.jwk()).unwrap();
        assert_ne!(digest, primary_digest(dialect, "", "another nonce", KEY.jwk()).unwrap());
    }
}

/// An answer may hold a token: what is shown of it is bounded, and free of control characters.
fn check_error(error: &WireError) {
    let text = error.to_string();
    assert!(text.len() < 256 && !text.contains(char::is_control), "{text:?}");
}
