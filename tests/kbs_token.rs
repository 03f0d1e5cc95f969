//! Claim: with `trustee.token_cert` set, a token counts only when it is signed by a configured certificate or by what one of
//! them issued, in an algorithm that fits the key, about this handshake and not for ever; without it, a token is opaque.
//!
//! Against tokens signed here, in every algorithm, and against the stand-in Trustee's, in every form a release has.

#![cfg(feature = "sandbox")]

#[path = "common/kbs_scenes.rs"]
mod kbs_scenes;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/scripted.rs"]
mod scripted;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature as alg;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cai::attest::sample_attester;
use cai::config::{Protocol, Trustee};
use cai::error::{ErrorClass, Fault, chain};
use cai::kbs::{Client, KbsError, ResourceUri};
use kbs_scenes::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sandbox::{Builder, Sandbox};
use scripted::{Scene, Server};
use serde_json::{Value, json};

/// A key that signs tokens, in one algorithm.
struct Signer {
    name: &'static str,
    pair: KeyPair,
}

impl Signer {
    fn new(name: &'static str) -> Signer {
        let pair = match name {
            "ES256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
            "ES384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
            "ES512" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap(),
            _ => {
                use aws_lc_rs::encoding::AsDer as _;
                let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
                let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().unwrap();
                let der = rustls::pki_types::PrivatePkcs8KeyDer::from(der.as_ref().to_vec());
                KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_RSA_SHA256).unwrap()
            }
        };
        Signer { name, pair }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let (random, der) = (SystemRandom::new(), self.pair.serialize_der());
        let ecdsa = |scheme| {
            let key = alg::EcdsaKeyPair::from_pkcs8(scheme, &der).unwrap();
            key.sign(&random, message).unwrap().as_ref().to_vec()
        };
        let rsa = |scheme: &'static dyn alg::RsaEncoding| {
            let key = aws_lc_rs::rsa::KeyPair::from_pkcs8(&der).unwrap();
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(scheme, &random, message, &mut signature).unwrap();
            signature
        };
        match self.name {
            "ES256" => ecdsa(&alg::ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => ecdsa(&alg::ECDSA_P384_SHA384_FIXED_SIGNING),
            "ES512" => ecdsa(&alg::ECDSA_P521_SHA512_FIXED_SIGNING),
            "RS256" => rsa(&alg::RSA_PKCS1_SHA256),
            "RS384" => rsa(&alg::RSA_PKCS1_SHA384),
            "RS512" => rsa(&alg::RSA_PKCS1_SHA512),
            "PS256" => rsa(&alg::RSA_PSS_SHA256),
            "PS384" => rsa(&alg::RSA_PSS_SHA384),
            "PS512" => rsa(&alg::RSA_PSS_SHA512),
            other => panic!("{other}"),
        }
    }

    /// A token with this header beside its `alg`, and these claims.
    fn token(&self, alg: &str, header: Value, claims: &Value) -> String {
        let mut header = header;
        header["alg"] = json!(alg);
        let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", segment(&header), segment(claims));
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(self.sign(signed.as_bytes())))
    }

    fn self_signed(&self) -> rcgen::Certificate {
        CertificateParams::new(vec!["signer".to_owned()]).unwrap().self_signed(&self.pair).unwrap()
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn claims(jwk: &Value) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    json!({ "exp": now + 300, "submods": { "cpu0": { "ear.veraison.annotated-evidence": {
        "runtime_data_claims": { "nonce": NONCE, "tee-pubkey": jwk } } } } })
}

fn pem(dir: &tempfile::TempDir, pem: &str) -> PathBuf {
    let path = dir.path().join("signers.pem");
    std::fs::write(&path, pem).unwrap();
    path
}

/// What the client makes of a token, with the certificates in `signers` configured: whether it is verified.
async fn taken(
    signers: Option<&Path>,
    token: impl FnOnce(&Value) -> String + Send + 'static,
) -> Result<bool, KbsError> {
    let attest: Scene =
        Box::new(move |request| token_answer(&token(&request.json()["runtime-data"]["tee-pubkey"])));
    let server = Server::start(vec![auth_ok(), attest]);
    let config =
        Trustee { token_cert: signers.map(Path::to_owned), ..trustee_of(&server, Protocol::V0_4_0, None) };
    let attested = Client::new(&config).unwrap().attest(sample_attester().unwrap()).await;
    server.finish();
    attested.map(|attested| attested.facts().token_verified)
}

/// The error's class and what it ends in.
fn told(error: &KbsError) -> (ErrorClass, String) {
    assert_eq!(error.code(), "kbs.token");
    (error.class(), chain(error).split_once("Z: ").unwrap().1.to_owned())
}

const UNTRUSTED: &str = "the attestation token is not signed by a key of trustee.token_cert";
const CHAIN: &str = "the certificates of the attestation token do not lead up to those of trustee.token_cert";
const SIGNATURE: &str = "the signature of the attestation token does not verify";

#[tokio::test]
async fn token_without_certificates_is_checked_with_the_configured_key_in_every_algorithm() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"] {
        let signer = Signer::new(name);
        let signers = pem(&dir, &signer.self_signed().pem());
        let good = signer.token(name, json!({}), &json!({ "exp": 4_102_444_800_u64 }));
        let error = taken(Some(&signers), move |_| good).await.unwrap_err();
        let unbound = "the attestation token does not name its nonce".to_owned();
        assert_eq!(told(&error), (ErrorClass::Config, unbound), "{name}: signed, but about no handshake");
        let other = Signer::new(name);
        let forged = move |jwk: &Value| other.token(name, json!({}), &claims(jwk));
        assert_eq!(told(&taken(Some(&signers), forged).await.unwrap_err()).1, UNTRUSTED, "{name}");
        let verified = taken(Some(&signers), move |jwk| signer.token(name, json!({}), &claims(jwk))).await;
        assert!(verified.unwrap(), "{name}");
    }
}

#[tokio::test]
async fn algorithm_that_does_not_fit_the_key_or_proves_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ec, rsa) = (Signer::new("ES256"), Signer::new("RS256"));
    let signers = pem(&dir, &format!("{}{}", ec.self_signed().pem(), rsa.self_signed().pem()));
    // The right key, under another algorithm's name.
    for alg in ["ES384", "RS256", "PS256", "RS384"] {
        let signer = Signer { name: "ES256", pair: KeyPair::from_pem(&ec.pair.serialize_pem()).unwrap() };
        let token = move |jwk: &Value| signer.token(alg, json!({}), &claims(jwk));
        assert_eq!(told(&taken(Some(&signers), token).await.unwrap_err()).1, UNTRUSTED, "{alg}");
    }
    for alg in ["none", "HS256", "ES256K", "EdDSA"] {
        let signer = Signer { name: "ES256", pair: KeyPair::from_pem(&ec.pair.serialize_pem()).unwrap() };
        let token = move |jwk: &Value| signer.token(alg, json!({}), &claims(jwk));
        let error = taken(Some(&signers), token).await.unwrap_err();
        let text = format!("the attestation token claims the signature algorithm {alg}");
        assert_eq!(told(&error), (ErrorClass::Corrupt, text));
    }
}

#[tokio::test]
async fn chain_of_a_token_is_found_in_every_place_and_encoding() {
    let dir = tempfile::tempdir().unwrap();
    let (authority, signer) = (authority(), Signer::new("ES256"));
    let leaf = CertificateParams::new(vec!["signer".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&signer.pair, &authority).unwrap();
    let (by_authority, by_leaf) = (authority.pem(), leaf.pem());
    let stranger = json!({ "kty": "EC", "crv": "P-256", "x": "eA", "y": "eQ" });
    for certificate in [STANDARD.encode(leaf.der()), URL_SAFE_NO_PAD.encode(leaf.der())] {
        let x5c = json!([certificate]);
        let mut jwk = stranger.clone();
        jwk["x5c"] = x5c.clone();
        for (header, payload) in
            [(json!({ "jwk": jwk }), false), (json!({ "x5c": x5c }), false), (json!({}), true)]
        {
            for anchor in [&by_authority, &by_leaf] {
                let signers = pem(&dir, anchor);
                let signer =
                    Signer { name: "ES256", pair: KeyPair::from_pem(&signer.pair.serialize_pem()).unwrap() };
                let (header, jwk) = (header.clone(), jwk.clone());
                let token = move |key: &Value| {
                    let mut claims = claims(key);
                    if payload {
                        claims["jwk"] = jwk;
                    }
                    signer.token("ES256", header, &claims)
                };
                assert!(taken(Some(&signers), token).await.unwrap(), "{certificate} {payload}");
            }
        }
    }
}

#[tokio::test]
async fn chain_that_leads_elsewhere_or_is_somebody_elses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (authority(), authority());
    let (signer, other) = (Signer::new("ES256"), Signer::new("ES256"));
    let leaf = |issuer| {
        let params = CertificateParams::new(vec!["signer".to_owned()]).unwrap();
        params.signed_by(&signer.pair, issuer).unwrap()
    };
    let signers = pem(&dir, &ours.pem());
    let header = |der: &[u8]| json!({ "jwk": { "x5c": [STANDARD.encode(der)] } });

    let (forged, by) =
        (header(leaf(&theirs).der()), KeyPair::from_pem(&signer.pair.serialize_pem()).unwrap());
    let by = Signer { name: "ES256", pair: by };
    let error = taken(Some(&signers), move |jwk| by.token("ES256", forged, &claims(jwk))).await.unwrap_err();
    let (class, text) = told(&error);
    assert!(class == ErrorClass::Config && text.starts_with(CHAIN), "{text}");
    assert!(error.hint().contains("trustee.token_cert"), "{}", error.hint());

    // Our chain over a signature of another key: only the certificate's key counts, whatever the header's `jwk` says.
    let stolen = header(leaf(&ours).der());
    let error =
        taken(Some(&signers), move |jwk| other.token("ES256", stolen, &claims(jwk))).await.unwrap_err();
    assert_eq!(told(&error), (ErrorClass::Corrupt, SIGNATURE.to_owned()));

    for x5c in [json!([]), json!(["!"]), json!("text"), json!([7]), json!([STANDARD.encode(b"no DER")])] {
        let header = json!({ "jwk": { "x5c": x5c } });
        let by = Signer { name: "ES256", pair: KeyPair::from_pem(&signer.pair.serialize_pem()).unwrap() };
        let error = taken(Some(&signers), move |jwk| by.token("ES256", header, &claims(jwk))).await;
        assert_eq!(error.unwrap_err().code(), "kbs.token", "{x5c}");
    }
}

#[tokio::test]
async fn signed_token_must_name_this_handshake_and_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let signer = Signer::new("ES256");
    let signers = pem(&dir, &signer.self_signed().pem());
    let evidence = "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims";
    type Change = fn(&mut Value, &str);
    let rows: [(Change, &str); 3] = [
        (
            |claims, at| drop(claims.pointer_mut(at).unwrap().as_object_mut().unwrap().remove("nonce")),
            "nonce",
        ),
        (
            |claims, at| drop(claims.pointer_mut(at).unwrap().as_object_mut().unwrap().remove("tee-pubkey")),
            "TEE key",
        ),
        (|claims, _| drop(claims.as_object_mut().unwrap().remove("exp")), "end"),
    ];
    for (change, what) in rows {
        for (signers, verified) in [(Some(signers.as_path()), false), (None, true)] {
            let by = Signer { name: "ES256", pair: KeyPair::from_pem(&signer.pair.serialize_pem()).unwrap() };
            let outcome = taken(signers, move |jwk| {
                let mut claims = claims(jwk);
                change(&mut claims, evidence);
                by.token("ES256", json!({}), &claims)
            });
            match outcome.await {
                Err(error) => {
                    let text = format!("the attestation token does not name its {what}");
                    assert_eq!(told(&error), (ErrorClass::Config, text));
                }
                // Without a signer the token is opaque: a warning, and never a claim that it was checked.
                Ok(is_verified) => assert!(verified && !is_verified, "{what}"),
            }
        }
    }
}

#[tokio::test]
async fn tokens_of_every_release_are_verified_to_the_sandboxs_authority_and_to_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere.pem");
    std::fs::write(&elsewhere, authority().pem()).unwrap();
    let rows: [(&str, &[&str]); 4] = [
        ("0.4.0", &["--kbs-maker", "alibaba"]),
        ("0.4.0", &["--kbs-maker", "upstream"]),
        ("0.2.0", &["--kbs-maker", "upstream"]),
        ("0.1.0", &["--kbs-oldest"]),
    ];
    for (number, (protocol, arguments)) in rows.into_iter().enumerate() {
        let ca = dir.path().join(format!("ca-{number}.pem"));
        let builder = Builder::default().protocol(protocol).resource(sandbox::RESOURCE, SECRET);
        let server =
            Sandbox::start(builder.with(arguments).with(&["--token-cert-out", ca.to_str().unwrap()]));
        let with = |token_cert: Option<&Path>| {
            let config = trustee(&server.kbs, Protocol::Auto);
            Client::new(&Trustee { token_cert: token_cert.map(Path::to_owned), ..config }).unwrap()
        };
        let uri = ResourceUri::parse(RESOURCE).unwrap();
        let attester = || sample_attester().unwrap();
        let (attested, secret) = with(Some(&ca)).release(attester(), &uri, |_| {}).await.unwrap();
        assert!(secret.with(|bytes| bytes == SECRET) && attested.facts().token_verified, "{protocol}");
        assert_eq!(attested.facts().token_id.len(), 16, "the stand-in's `jti`");
        let (attested, _) = with(None).release(attester(), &uri, |_| {}).await.unwrap();
        assert!(!attested.facts().token_verified, "{protocol}");
        let error = with(Some(&elsewhere)).release(attester(), &uri, |_| {}).await.err().unwrap();
        assert!(told(&error).1.starts_with(CHAIN), "{protocol}: {}", chain(&error));
        for (fault, class, text) in [
            ("kbs_token_signature", ErrorClass::Corrupt, SIGNATURE),
            ("kbs_token_expired", ErrorClass::Transient, "the attestation token had expired"),
            ("kbs_token_nonce", ErrorClass::Corrupt, "the attestation token is about another nonce"),
            ("kbs_token_key", ErrorClass::Corrupt, "the attestation token is about another TEE key"),
        ] {
            server.faults(json!([{ "do": fault }])).await;
            let error = with(Some(&ca)).attest(attester()).await.err().unwrap();
            let (told_class, told_text) = told(&error);
            assert!(told_class == class && told_text.starts_with(text), "{protocol} {fault}: {told_text}");
        }
    }

    // A service whose signer is not configured has a bare key in its tokens, which nobody vouches for.
    let bare = Sandbox::start(Builder::default());
    let config = Trustee { token_cert: Some(elsewhere), ..trustee(&bare.kbs, Protocol::Auto) };
    let error = Client::new(&config).unwrap().attest(sample_attester().unwrap()).await.err().unwrap();
    assert_eq!(told(&error), (ErrorClass::Config, UNTRUSTED.to_owned()));
}

#[test]
fn signers_that_cannot_be_read_are_refused_before_any_connection() {
    let dir = tempfile::tempdir().unwrap();
    let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    for content in [None, Some(""), Some("text"), Some(broken)] {
        let path = dir.path().join("signers.pem");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let config = Trustee { token_cert: Some(path), ..trustee("https://kbs.example", Protocol::Auto) };
        let error = Client::new(&config).err().unwrap();
        assert_eq!((error.code(), error.class()), ("kbs.token-cert", ErrorClass::Config), "{content:?}");
    }
}
