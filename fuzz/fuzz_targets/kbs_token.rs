//! The attestation token, which arrives over a connection that may be anybody's.
//!
//! Holds: no input panics; a token that is taken is a signed one, has three parts and is in its time; with a signer
//! configured whose key nobody has, no token is ever taken; an error quotes at most a few characters of it.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cai::kbs::TeeKey;
use cai::kbs::token::{Signers, check};
use libfuzzer_sys::fuzz_target;

const NONCE: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// How far clocks may be apart.
const SKEW: Duration = Duration::from_secs(60);

static KEY: LazyLock<TeeKey> = LazyLock::new(|| TeeKey::from_p256_scalar(&[7; 32]).unwrap());

/// A certificate made now, whose key is gone.
static SIGNERS: LazyLock<Signers> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["signer".into()]).unwrap().self_signed(&key).unwrap();
    let path = std::env::temp_dir().join(format!("cai-fuzz-{}.pem", std::process::id()));
    std::fs::write(&path, certificate.pem()).unwrap();
    let signers = Signers::load(&path);
    std::fs::remove_file(&path).unwrap();
    signers.unwrap_or_else(|error| panic!("{error}"))
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    // When the tokens of the seeds were issued.
    let now: SystemTime = UNIX_EPOCH + Duration::from_secs(1_795_341_100);
    assert!(check(token, NONCE, KEY.jwk(), Some(&*SIGNERS), now).is_err());
    match check(token, NONCE, KEY.jwk(), None, now) {
        Ok(facts) => {
            assert_eq!(token.split('.').count(), 3);
            assert!(!facts.verified);
            assert!(
                facts.expires.is_none_or(|expires| now.duration_since(expires).unwrap_or_default() <= SKEW)
            );
            assert!(facts.id.is_none_or(|id| id.chars().count() <= 65 && !id.contains(char::is_control)));
        }
        Err(error) => assert!(error.to_string().chars().count() < 160),
    }
});
