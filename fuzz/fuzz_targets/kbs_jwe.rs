//! The envelope of a secret, opened with fixed keys of every kind.
//!
//! Holds: no input panics; what opens is no longer than its ciphertext and opens with no other key; the legacy form,
//! which has no associated data, opens only after a handshake in a dialect that has it.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cai::kbs::jwe::Jwe;
use cai::kbs::wire::Dialect;
use cai::kbs::{RsaAlg, TeeKey};
use libfuzzer_sys::fuzz_target;

/// The keys of this project's own vectors; they protect nothing.
const VECTORS: &str = include_str!("../../tests/vectors/kbs-vectors.json");

struct Keys {
    ec: TeeKey,
    stranger: TeeKey,
    pkcs1: TeeKey,
    oaep: TeeKey,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let vectors: serde_json::Value = serde_json::from_str(VECTORS).unwrap();
    let text = |name: &str| vectors[name].as_str().unwrap();
    let rsa = STANDARD.decode(text("rsa_pkcs8_b64")).unwrap();
    Keys {
        ec: TeeKey::from_p256_scalar(&hex::decode(text("ec_d_hex")).unwrap()).unwrap(),
        stranger: TeeKey::from_p256_scalar(&[7; 32]).unwrap(),
        pkcs1: TeeKey::from_rsa_pkcs8(&rsa, RsaAlg::Pkcs1).unwrap(),
        oaep: TeeKey::from_rsa_pkcs8(&rsa, RsaAlg::Oaep256).unwrap(),
    }
});

fuzz_target!(|body: &[u8]| {
    let Ok(jwe) = Jwe::parse(body) else { return };
    for dialect in Dialect::ALL {
        let opened = [&KEYS.ec, &KEYS.pkcs1, &KEYS.oaep].map(|key| jwe.open(key, dialect));
        for secret in opened.iter().flatten() {
            assert!(secret.len() <= body.len() / 4 * 3, "plaintext grew");
        }
        let count = opened.iter().filter(|result| result.is_ok()).count();
        assert!(count <= 1, "one envelope opened with {count} kinds of key");
        if count == 1 {
            assert!(jwe.open(&KEYS.stranger, dialect).is_err(), "a stranger's key opens it");
        }
        assert!(
            count == 0 || dialect.has_legacy_envelope() || !is_legacy(body),
            "legacy form after {dialect:?}"
        );
    }
});

fn is_legacy(body: &[u8]) -> bool {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) else { return false };
    body.get("protected")
        .and_then(|header| header.as_str())
        .is_some_and(|header| header.trim_start().starts_with('{'))
}
