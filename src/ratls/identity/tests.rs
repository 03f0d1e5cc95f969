//! The identity with an attester that does as it is told; time is tokio's, paused.

use std::sync::Mutex;

use serde_json::value::RawValue;

use super::*;
use crate::attest::{Claims, Digest, Evidence, Tee};
use crate::ratls::certificate::parse;

/// What was asked for, and whether to answer.
#[derive(Default)]
struct Script {
    asked: Mutex<Vec<(Verifier, Digest)>>,
    devices: Mutex<Vec<Digest>>,
    fails: Mutex<bool>,
}

impl Attester for Script {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn device_evidence(&self, digest: &Digest) -> Result<String, AttestError> {
        self.devices.lock().unwrap().push(*digest);
        Ok(r#"{"nvidia":{}}"#.into())
    }

    fn evidence(&self, digest: &Digest, verifier: Verifier) -> Result<Evidence, AttestError> {
        if *self.fails.lock().unwrap() {
            return Err(AttestError::NoTee { looked_for: "" });
        }
        self.asked.lock().unwrap().push((verifier, *digest));
        let object = RawValue::from_string(r#"{"quote":"AA"}"#.into()).unwrap();
        Ok(Evidence { object, claims: Claims::default() })
    }
}

fn recipe(script: &Arc<Script>) -> Recipe {
    Recipe {
        attester: script.clone(),
        formats: vec![Format::Legacy, Format::Current],
        members: [("model-identity".to_owned(), "ab".repeat(32))].into(),
    }
}

fn tagged(shown: &Shown) -> (Vec<u8>, TaggedEvidence) {
    let read = parse(&shown.certified().cert[0]).unwrap();
    (read.key.spki().to_vec(), TaggedEvidence::decode(&read.blob).unwrap())
}

#[test]
fn evidence_of_each_format_binds_its_own_key_for_its_own_verifier() {
    let script = Arc::new(Script::default());
    let recipe = recipe(&script);
    let (legacy_key, legacy) = tagged(&recipe.make(Format::Legacy).unwrap());
    let (current_key, current) = tagged(&recipe.make(Format::Current).unwrap());
    assert_ne!(legacy_key, current_key);
    assert_eq!((legacy.format(), current.format()), (Format::Legacy, Format::Current));
    assert_eq!((legacy.tee.as_str(), legacy.evidence.as_slice()), ("tdx", &br#"{"quote":"AA"}"#[..]));
    assert_eq!(legacy.bound(&legacy_key).unwrap().len(), 1);
    let bound = current.bound(&current_key).unwrap();
    assert_eq!(bound["model-identity"], "ab".repeat(32));
    // Devices are in the current format, and the TEE's evidence is over the same digest, for the right generation.
    assert_eq!((legacy.additional, current.additional), (None, Some(br#"{"nvidia":{}}"#.to_vec())));
    let digests = [evidence::digest(&legacy.runtime_data), evidence::digest(&current.runtime_data)];
    assert_eq!(
        *script.asked.lock().unwrap(),
        [(Verifier::Legacy, digests[0]), (Verifier::Current, digests[1])]
    );
    assert_eq!(*script.devices.lock().unwrap(), [digests[1]]);
}

#[tokio::test]
async fn start_without_evidence_fails_with_the_attesters_own_code() {
    let script = Arc::new(Script { fails: true.into(), ..Script::default() });
    let error = Identity::start(recipe(&script), Duration::from_secs(600)).await.err().unwrap();
    assert_eq!(error.code(), AttestError::NoTee { looked_for: "" }.code());
    assert_eq!(error.to_string(), "collecting evidence for the legacy certificate");
}

#[tokio::test(start_paused = true)]
async fn failed_renewal_keeps_the_old_certificate_and_the_next_one_replaces_it() {
    let script = Arc::new(Script::default());
    let identity = Identity::start(recipe(&script), Duration::from_secs(600)).await.unwrap();
    let mut fresh = identity.fresh();
    let now = Instant::now();
    let key = |fresh: &Fresh| tagged(fresh.shown(Format::Current, now).unwrap()).0;
    let first = key(&fresh.borrow_and_update());
    let renewing = identity.keep_fresh();
    tokio::pin!(renewing);

    *script.fails.lock().unwrap() = true;
    tokio::select! {
        never = &mut renewing => match never {},
        changed = fresh.changed() => changed.unwrap(),
    }
    let text = fresh.borrow_and_update().last_error.clone().unwrap();
    assert!(text.starts_with("collecting evidence for the legacy certificate: "), "{text}");
    assert_eq!(key(&fresh.borrow()), first);

    *script.fails.lock().unwrap() = false;
    let before = tokio::time::Instant::now();
    while fresh.borrow_and_update().last_error.is_some() {
        tokio::select! {
            never = &mut renewing => match never {},
            changed = fresh.changed() => changed.unwrap(),
        }
    }
    assert!(before.elapsed() < Duration::from_secs(62), "tried again after {:?}", before.elapsed());
    assert_ne!(key(&fresh.borrow()), first);
}

#[test]
fn certificate_is_not_shown_longer_than_it_is_valid_nor_in_a_format_not_made() {
    let script = Arc::new(Script::default());
    let mut fresh = Fresh::default();
    fresh.put(Format::Legacy, recipe(&script).make(Format::Legacy).unwrap());
    let now = Instant::now();
    assert!(fresh.shown(Format::Legacy, now).is_some());
    assert!(fresh.shown(Format::Current, now).is_none());
    assert!(fresh.shown(Format::Legacy, now + Duration::from_secs(6 * 3600 - 60)).is_some());
    assert!(fresh.shown(Format::Legacy, now + Duration::from_secs(6 * 3600)).is_none());
}

#[test]
fn key_signs_only_what_it_can() {
    let key = Key::generate().unwrap();
    assert!(key.choose_scheme(&[SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP384_SHA384]).is_none());
    let signer =
        key.choose_scheme(&[SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
    let signature = signer.sign(b"message").unwrap();
    let public = crate::pki::PublicKey::from_spki(key.spki().unwrap());
    public.verify(crate::pki::Algorithm::Es256Asn1, b"message", &signature).unwrap();
    assert!(!format!("{key:?}").contains("private"), "{key:?}");
}
