//! A key broker in scenes: what Trustee answers, made by the test's own cryptography so that the client is checked
//! against the specification and not against itself.

#![allow(dead_code)] // Each test binary uses its part of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use aes_kw::KwAes256;
use aws_lc_rs::rsa::{Pkcs1PublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cai::config::{GpuForm, KeyAlgorithm, Protocol, Trustee};
use p256::elliptic_curve::Generate as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384};

use super::scripted::{Answer, Request, Scene, Server, answer};

pub const NONCE: &str = "1zBy1stvtpOvwy4E4mvNzBdoGWBRXUqu5F/5c9hzOKA=";
pub const COOKIE: &str = "kbs-session-id=5d2c736624e2403b8543dc965260bc08";
pub const RESOURCE: &str = "kbs:///default/aliyun/model-decryption-key";
pub const SECRET: &[u8] = b"correct horse battery staple\n";
pub const TYPE: &str = "https://github.com/confidential-containers/kbs/errors/";

const IV: [u8; 12] = [7; 12];
const CONTENT_KEY: [u8; 32] = [9; 32];

/// Configuration of a client for `url`.
pub fn trustee(url: &str, protocol: Protocol) -> Trustee {
    Trustee {
        url: url.parse().unwrap(),
        key_id: RESOURCE.to_owned(),
        policy: String::new(),
        require_https: false,
        ca_file: None,
        protocol,
        key_algorithm: KeyAlgorithm::Auto,
        token_cert: None,
        gpu_evidence: GpuForm::Auto,
        timeout: Duration::from_secs(20),
        retry_limit: Duration::ZERO,
        lease: cai::config::Lease { interval: None, grace: Duration::ZERO },
    }
}

/// Configuration for a scripted server, with the CA bundle if it speaks TLS.
pub fn trustee_of(server: &Server, protocol: Protocol, ca_file: Option<PathBuf>) -> Trustee {
    let scheme = if ca_file.is_some() { "https" } else { "http" };
    Trustee { ca_file, ..trustee(&format!("{scheme}://{}", server.address), protocol) }
}

/// The key the client sent in its latest attest request.
#[derive(Clone, Default)]
pub struct Key(Arc<Mutex<Value>>);

impl Key {
    fn keep(&self, jwk: &Value) {
        self.0.lock().unwrap().clone_from(jwk);
    }

    pub fn jwk(&self) -> Value {
        self.0.lock().unwrap().clone()
    }
}

/// RFC 8785 for the values of the protocol (strings, no numbers), whatever features `serde_json` has.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            let members: Vec<String> =
                sorted.iter().map(|(name, value)| format!("{}:{}", json!(name), canonical(value))).collect();
            format!("{{{}}}", members.join(","))
        }
        other => other.to_string(),
    }
}

/// `report_data` a verifier expects for an attest body of either dialect.
pub fn expected_report_data(body: &Value, nonce: &str) -> String {
    let hashed = match body.get("runtime-data") {
        Some(data) => json!({
            "additional-evidence": body["tee-evidence"]["additional_evidence"],
            "nonce": data["nonce"], "tee-pubkey": data["tee-pubkey"],
        }),
        None => json!({ "nonce": nonce, "tee-pubkey": body["tee-pubkey"] }),
    };
    STANDARD.encode(Sha384::digest(canonical(&hashed)))
}

pub fn auth_ok() -> Scene {
    let body = json!({ "nonce": NONCE, "extra-params": "" });
    let cookie = format!("{COOKIE}; Expires=Sun, 22 Nov 2026 09:56:24 GMT");
    answer(Answer::new(200, body.to_string()).header("set-cookie", cookie))
}

/// Verify the sample evidence as the broker does, keep the key, answer with a token about it.
pub fn attest_ok(key: &Key) -> Scene {
    let key = key.clone();
    Box::new(move |request| {
        let body = request.json();
        let (jwk, evidence) = match body.get("runtime-data") {
            Some(data) => (data["tee-pubkey"].clone(), body["tee-evidence"]["primary_evidence"].clone()),
            None => {
                let evidence = match body["tee-evidence"].as_str() {
                    Some(text) => serde_json::from_str(text).unwrap(),
                    None => body["tee-evidence"].clone(),
                };
                (body["tee-pubkey"].clone(), evidence)
            }
        };
        assert_eq!(evidence["report_data"], expected_report_data(&body, NONCE));
        key.keep(&jwk);
        token_answer(&token(NONCE, &jwk))
    })
}

pub fn token_answer(token: &str) -> Answer {
    let cookie = format!("{COOKIE}; Expires=Sun, 22 Nov 2026 09:56:24 GMT");
    Answer::new(200, json!({ "token": token }).to_string()).header("set-cookie", cookie)
}

/// An EAR token of five minutes.
pub fn token(nonce: &str, jwk: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({ "iat": now, "exp": now + 300, "jti": "token-1", "submods": { "cpu0": {
        "ear.veraison.annotated-evidence": { "runtime_data_claims": { "nonce": nonce, "tee-pubkey": jwk } } } } });
    unsigned_token(&claims)
}

/// A token with these claims, and with a signature that is none.
pub fn unsigned_token(claims: &Value) -> String {
    let header = json!({ "typ": "JWT", "alg": "ES256" });
    let segment = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.c2lnbmF0dXJl", segment(&header), segment(claims))
}

pub fn resource_ok(key: &Key, plaintext: &'static [u8]) -> Scene {
    envelope_of(key, plaintext, |_| {})
}

/// The resource, in an envelope that `change` has damaged.
pub fn envelope_of(
    key: &Key,
    plaintext: &'static [u8],
    change: impl FnOnce(&mut Value) + Send + 'static,
) -> Scene {
    let key = key.clone();
    Box::new(move |_| {
        let jwk = key.jwk();
        let mut jwe = if jwk["kty"] == "EC" {
            ecdh_envelope(&jwk, plaintext)
        } else {
            legacy_envelope(&jwk, plaintext)
        };
        change(&mut jwe);
        Answer::new(200, jwe.to_string()).header("content-type", "application/json")
    })
}

fn member(jwk: &Value, name: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap()
}

/// RFC 7516 and RFC 7518 section 4.6, written from the RFCs.
fn ecdh_envelope(jwk: &Value, plaintext: &[u8]) -> Value {
    let point = [vec![4], member(jwk, "x"), member(jwk, "y")].concat();
    let theirs = p256::PublicKey::from_sec1_bytes(&point).unwrap();
    let ours = p256::SecretKey::generate();
    let z = ours.diffie_hellman(&theirs);
    let mut hash = Sha256::new();
    hash.update(1_u32.to_be_bytes());
    hash.update(z.raw_secret_bytes());
    hash.update(14_u32.to_be_bytes());
    hash.update("ECDH-ES+A256KW");
    hash.update([0; 8]);
    hash.update(256_u32.to_be_bytes());
    let kek: [u8; 32] = hash.finalize().into();
    let mut wrapped = [0; 40];
    KwAes256::new(&kek.into()).wrap_key(&CONTENT_KEY, &mut wrapped).unwrap();
    let point = ours.public_key().to_sec1_point(false);
    let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({ "alg": "ECDH-ES+A256KW", "enc": "A256GCM", "epk": {
        "crv": "P-256", "kty": "EC", "x": coordinate(point.x().unwrap()), "y": coordinate(point.y().unwrap()) } });
    let protected = URL_SAFE_NO_PAD.encode(header.to_string());
    let sealed = seal(plaintext, protected.as_bytes());
    let (ciphertext, tag) = sealed.split_at(plaintext.len());
    json!({ "protected": protected, "encrypted_key": URL_SAFE_NO_PAD.encode(wrapped), "iv": URL_SAFE_NO_PAD.encode(IV),
        "ciphertext": URL_SAFE_NO_PAD.encode(ciphertext), "tag": URL_SAFE_NO_PAD.encode(tag) })
}

fn legacy_envelope(jwk: &Value, plaintext: &[u8]) -> Value {
    let public: PublicEncryptingKey =
        PublicKeyComponents { n: member(jwk, "n"), e: member(jwk, "e") }.try_into().unwrap();
    let public = Pkcs1PublicEncryptingKey::new(public).unwrap();
    let mut wrapped = vec![0; public.ciphertext_size()];
    public.encrypt(&CONTENT_KEY, &mut wrapped).unwrap();
    json!({ "protected": r#"{"alg":"RSA1_5","enc":"A256GCM"}"#, "encrypted_key": URL_SAFE_NO_PAD.encode(wrapped),
        "iv": URL_SAFE_NO_PAD.encode(IV), "ciphertext": URL_SAFE_NO_PAD.encode(seal(plaintext, b"")), "tag": "" })
}

/// Ciphertext and tag, one after the other.
fn seal(plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
    Aes256Gcm::new(&CONTENT_KEY.into()).encrypt(&IV.into(), Payload { msg: plaintext, aad }).unwrap()
}

/// A refusal as the brokers send it: JSON without a content type.
pub fn refusal(status: u16, kind: &str, detail: &str) -> Scene {
    answer(Answer::new(status, json!({ "type": format!("{TYPE}{kind}"), "detail": detail }).to_string()))
}

/// Method and path of each request.
pub fn lines(requests: &[Request]) -> Vec<String> {
    requests.iter().map(|request| format!("{} {}", request.method, request.path)).collect()
}

pub const AUTH: &str = "POST /kbs/v0/auth";
pub const ATTEST: &str = "POST /kbs/v0/attest";
pub const GET: &str = "GET /kbs/v0/resource/default/aliyun/model-decryption-key";
