//! Claim: the stand-in Trustee answers as the observed ones do, in both protocols, and its fault switches are exact.
//!
//! The client here is raw HTTP and other crates' ciphers; it is proved on the vectors before it judges the server.
#![cfg(feature = "sandbox")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use aes_kw::KwAes256;
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use p256::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::ToSec1Point;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha384, Sha512};

#[path = "common/sandbox.rs"]
mod sandbox;
use sandbox::{Builder, RESOURCE, Sandbox};

const SECRET: &[u8] = b"correct horse battery staple\n";

static VECTORS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("vectors/kbs-vectors.json")).unwrap());

// ---- the client's keys and ciphers -------------------------------------------------------------------------------------

enum Key {
    Ec(p256::SecretKey),
    Rsa { alg: &'static str },
}

impl Key {
    fn vector_ec() -> Key {
        Key::Ec(p256::SecretKey::from_slice(&unhex(VECTORS["ec_d_hex"].as_str().unwrap())).unwrap())
    }

    fn jwk(&self) -> BTreeMap<&'static str, String> {
        match self {
            Key::Ec(secret) => {
                let point = secret.public_key().to_sec1_point(false);
                let (x, y) = point.as_bytes()[1..].split_at(32);
                BTreeMap::from([
                    ("alg", "ECDH-ES+A256KW".to_owned()),
                    ("crv", "P-256".to_owned()),
                    ("kty", "EC".to_owned()),
                    ("x", URL_SAFE_NO_PAD.encode(x)),
                    ("y", URL_SAFE_NO_PAD.encode(y)),
                ])
            }
            Key::Rsa { alg } => {
                let runtime: Value = serde_json::from_str(VECTORS["v010_runtime"].as_str().unwrap()).unwrap();
                BTreeMap::from([
                    ("alg", (*alg).to_owned()),
                    ("e", "AQAB".to_owned()),
                    ("kty", "RSA".to_owned()),
                    ("n", runtime["tee-pubkey"]["n"].as_str().unwrap().to_owned()),
                ])
            }
        }
    }

    fn open(&self, jwe: &Value) -> Result<Vec<u8>, aes_gcm::aead::Error> {
        let text = |name: &str| jwe[name].as_str().unwrap();
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)).unwrap();
        let legacy = text("protected").starts_with('{');
        let header = if legacy { text("protected").as_bytes().to_vec() } else { bytes("protected") };
        let header: Value = serde_json::from_slice(&header).unwrap();
        assert_eq!(header["enc"], "A256GCM");
        assert_eq!(header["alg"], self.jwk()["alg"]);
        let cek = self.unwrap_key(&header, &bytes("encrypted_key"));
        let sealed = [bytes("ciphertext"), bytes("tag")].concat();
        assert_eq!(bytes("tag").len(), if legacy { 0 } else { 16 });
        let aad: &[u8] = if legacy { b"" } else { text("protected").as_bytes() };
        let iv: [u8; 12] = bytes("iv").try_into().unwrap();
        Aes256Gcm::new_from_slice(&cek).unwrap().decrypt(&Nonce::from(iv), Payload { msg: &sealed, aad })
    }

    fn unwrap_key(&self, header: &Value, wrapped: &[u8]) -> Vec<u8> {
        match self {
            Key::Ec(secret) => {
                let coordinate =
                    |name: &str| URL_SAFE_NO_PAD.decode(header["epk"][name].as_str().unwrap()).unwrap();
                let point = [vec![4], coordinate("x"), coordinate("y")].concat();
                let peer = p256::PublicKey::from_sec1_bytes(&point).unwrap();
                let z = diffie_hellman(secret.to_nonzero_scalar(), peer.as_affine());
                let info = unhex(VECTORS["otherinfo_hex"].as_str().unwrap());
                let kek: [u8; 32] =
                    Sha256::digest([&[0, 0, 0, 1][..], z.raw_secret_bytes(), &info].concat()).into();
                let mut out = [0; 32];
                KwAes256::new(&kek.into()).unwrap_key(wrapped, &mut out).unwrap().to_vec()
            }
            Key::Rsa { alg } => {
                let pkcs8 = STANDARD.decode(VECTORS["rsa_pkcs8_b64"].as_str().unwrap()).unwrap();
                let key = PrivateDecryptingKey::from_pkcs8(&pkcs8).unwrap();
                let mut out = vec![0; 256];
                match *alg {
                    "RSA1_5" => Pkcs1PrivateDecryptingKey::new(key)
                        .unwrap()
                        .decrypt(wrapped, &mut out)
                        .unwrap()
                        .to_vec(),
                    _ => OaepPrivateDecryptingKey::new(key)
                        .unwrap()
                        .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut out, None)
                        .unwrap()
                        .to_vec(),
                }
            }
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn bound(nonce: &str, key: &Key, additional: Option<&str>) -> String {
    let mut object: BTreeMap<&str, Value> =
        BTreeMap::from([("nonce", json!(nonce)), ("tee-pubkey", json!(key.jwk()))]);
    if let Some(additional) = additional {
        object.insert("additional-evidence", json!(additional));
    }
    serde_json::to_string(&object).unwrap()
}

fn report_data(nonce: &str, key: &Key, additional: Option<&str>) -> String {
    STANDARD.encode(Sha384::digest(bound(nonce, key, additional)))
}

// ---- the client's requests ---------------------------------------------------------------------------------------------

struct Session {
    client: Client,
    base: String,
    cookie: String,
    nonce: String,
}

/// Status, last segment of `type`, `detail`.
type Refusal = (u16, String, String);

async fn refusal(answer: Response) -> Refusal {
    let status = answer.status().as_u16();
    assert!(answer.headers().get("content-type").is_none(), "error bodies have no Content-Type");
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(body.as_object().unwrap().len(), 2);
    let kind = body["type"].as_str().unwrap();
    let kind = kind.strip_prefix("https://github.com/confidential-containers/kbs/errors/").unwrap();
    (status, kind.to_owned(), body["detail"].as_str().unwrap().to_owned())
}

fn refused(status: u16, kind: &str, detail: &str) -> Refusal {
    (status, kind.to_owned(), detail.to_owned())
}

fn client() -> Client {
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

async fn post_auth(sandbox: &Sandbox, body: &str) -> Response {
    client().post(format!("{}/kbs/v0/auth", sandbox.kbs)).body(body.to_owned()).send().await.unwrap()
}

impl Session {
    async fn auth(sandbox: &Sandbox, version: &str) -> Session {
        let body = json!({"version": version, "tee": "sample", "extra-params": ""}).to_string();
        let answer = post_auth(sandbox, &body).await;
        assert_eq!(answer.status(), 200);
        let cookie = answer.headers()["set-cookie"].to_str().unwrap().to_owned();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert!(attributes.starts_with("Expires=") && attributes.ends_with(" GMT"), "{attributes}");
        let id = pair.strip_prefix("kbs-session-id=").unwrap();
        assert!(
            id.len() == 32 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)),
            "{id}"
        );
        let challenge: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        assert_eq!(challenge["extra-params"], "");
        let nonce = challenge["nonce"].as_str().unwrap().to_owned();
        Session { client: client(), base: format!("{}/kbs/v0", sandbox.kbs), cookie: pair.to_owned(), nonce }
    }

    async fn attest(&self, body: &Value) -> Response {
        let request = self.client.post(format!("{}/attest", self.base)).header("cookie", &self.cookie);
        request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap()
    }

    async fn attested(&self, body: &Value) -> String {
        let answer = self.attest(body).await;
        assert_eq!(answer.status(), 200);
        let cookie = answer.headers()["set-cookie"].to_str().unwrap();
        assert!(cookie.starts_with(&self.cookie), "the same session again");
        let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        body["token"].as_str().unwrap().to_owned()
    }

    async fn resource(&self, path: &str) -> Response {
        self.resource_with(path, "cookie", &self.cookie).await
    }

    async fn resource_with(&self, path: &str, name: &str, value: &str) -> Response {
        let url = format!("{}/resource/{path}", self.base);
        self.client.get(url).header(name, value).send().await.unwrap()
    }

    fn body_040(&self, key: &Key) -> Value {
        json!({
            "init-data": null,
            "runtime-data": {"nonce": self.nonce, "tee-pubkey": key.jwk()},
            "tee-evidence": {
                "additional_evidence": "",
                "primary_evidence": {
                    "svn": "1",
                    "report_data": report_data(&self.nonce, key, Some("")),
                    "measure_register": "0".repeat(64),
                    "cc_eventlog": null,
                },
            },
        })
    }

    fn body_010(&self, key: &Key) -> Value {
        let evidence = json!({"svn": "1", "report_data": report_data(&self.nonce, key, None)});
        json!({"tee-pubkey": key.jwk(), "tee-evidence": evidence.to_string()})
    }
}

async fn jwe(answer: Response) -> Value {
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/json");
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

fn start() -> Sandbox {
    Sandbox::start(Builder::default().resource(RESOURCE, SECRET))
}

fn start_010() -> Sandbox {
    Sandbox::start(Builder::default().resource(RESOURCE, SECRET).protocol("0.1.0"))
}

const AUTH_FAILED: &str = "RCAR handshake Auth failed: ";
const ATTEST_FAILED: &str = "Attestation error: RCAR handshake Attest failed";

// ---- the client, on the vectors ----------------------------------------------------------------------------------------

#[test]
fn client_on_the_vectors_opens_and_hashes_as_they_say() {
    let nonce = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    for (key, name) in [
        (Key::vector_ec(), "ec_jwe"),
        (Key::Rsa { alg: "RSA-OAEP-256" }, "oaep_jwe"),
        (Key::Rsa { alg: "RSA1_5" }, "legacy_jwe"),
    ] {
        assert_eq!(key.open(&VECTORS[name]).unwrap(), SECRET, "{name}");
    }
    let ec = Key::vector_ec();
    let additional = VECTORS["v040_add_string"].as_str().unwrap();
    for (text, vector) in [
        (bound(nonce, &Key::Rsa { alg: "RSA1_5" }, None), "v010_runtime"),
        (bound(nonce, &ec, None), "v040_device_runtime"),
        (bound(nonce, &ec, Some("")), "v040_primary_runtime_noadd"),
        (bound(nonce, &ec, Some(additional)), "v040_primary_runtime_add"),
    ] {
        assert_eq!(text, VECTORS[vector].as_str().unwrap());
    }
}

// ---- protocol 0.4.0 ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn handshake_040_with_each_key_type_releases_the_secret() {
    let sandbox = start();
    for key in [Key::vector_ec(), Key::Rsa { alg: "RSA-OAEP-256" }, Key::Rsa { alg: "RSA1_5" }] {
        let session = Session::auth(&sandbox, "0.4.0").await;
        let token = session.attested(&session.body_040(&key)).await;
        assert_eq!(key.open(&jwe(session.resource(RESOURCE).await).await).unwrap(), SECRET);
        let bearer = format!("Bearer {token}");
        for (name, value) in [("authorization", bearer.as_str()), ("attestation", &token)] {
            let answer = session.resource_with(RESOURCE, name, value).await;
            assert_eq!(key.open(&jwe(answer).await).unwrap(), SECRET, "{name}");
        }
    }
}

#[tokio::test]
async fn token_040_is_signed_by_its_jwk_and_carries_nonce_and_key() {
    let sandbox = start();
    let session = Session::auth(&sandbox, "0.4.0").await;
    let key = Key::vector_ec();
    let token = session.attested(&session.body_040(&key)).await;
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let header: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split('.').next().unwrap()).unwrap()).unwrap();
    assert_eq!((header["alg"].as_str(), header["typ"].as_str()), (Some("ES256"), Some("JWT")));
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(header["jwk"][name].as_str().unwrap()).unwrap();
    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
    aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED, point)
        .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
        .unwrap();
    let claims = claims(&token);
    assert_eq!(claims["exp"].as_u64().unwrap(), claims["iat"].as_u64().unwrap() + 300);
    let submod = &claims["submods"]["cpu0"];
    assert_eq!(submod["ear.status"], "contraindicated");
    assert_eq!(
        submod["ear.trustworthiness-vector"],
        json!({"configuration": 36, "executables": 33, "file-system": 35, "hardware": 97})
    );
    let evidence = &submod["ear.veraison.annotated-evidence"];
    let runtime = json!({"nonce": session.nonce, "tee-pubkey": key.jwk(), "additional-evidence": ""});
    assert_eq!(evidence["runtime_data_claims"], runtime);
    assert_eq!(evidence["report_data"], report_data(&session.nonce, &key, Some("")));
    assert_eq!(
        evidence["sample"],
        json!({"svn": "1", "cc_eventlog": null, "measure_register": "0".repeat(64)})
    );
}

#[tokio::test]
async fn attest_040_with_a_second_device_is_bound_to_it() {
    let sandbox = start();
    let key = Key::vector_ec();
    for (device_nonce_is_right, status) in [(true, 200), (false, 502)] {
        let session = Session::auth(&sandbox, "0.4.0").await;
        let nonce = if device_nonce_is_right { session.nonce.as_str() } else { "other" };
        let device =
            json!({"sampledevice": {"svn": "2", "report_data": report_data(nonce, &key, None)}}).to_string();
        let mut body = session.body_040(&key);
        body["tee-evidence"]["additional_evidence"] = json!(device);
        body["tee-evidence"]["primary_evidence"]["report_data"] =
            json!(report_data(&session.nonce, &key, Some(&device)));
        assert_eq!(session.attest(&body).await.status(), status);
    }
}

#[tokio::test]
async fn auth_040_refusals_are_as_observed() {
    let sandbox = start();
    let mismatch = |version: &str| {
        format!(
            "{AUTH_FAILED}KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is {version}"
        )
    };
    for version in ["0.1.0", "0.2.0", "0.4.1"] {
        let body = json!({"version": version, "tee": "sample", "extra-params": ""}).to_string();
        let answer = refusal(post_auth(&sandbox, &body).await).await;
        assert_eq!(answer, refused(502, "AttestationError", &mismatch(version)));
    }
    let malformed = refused(502, "AttestationError", &format!("{AUTH_FAILED}deserialize Request"));
    for body in [
        r#"{"version":"0.4.0","tee":"sample"}"#,
        r#"{"version":"0.4.0","tee":"no-such-tee","extra-params":""}"#,
        r#"{"version":"0.4.0","extra-params":""}"#,
        "not json",
        "",
    ] {
        assert_eq!(refusal(post_auth(&sandbox, body).await).await, malformed, "{body}");
    }
    for body in [
        r#"{"version":"0.4.0","tee":"sample","extra-params":{"supported-hash-algorithms":["sha384"]}}"#,
        r#"{"version":"0.4.0","tee":"tdx","extra-params":""}"#,
    ] {
        assert_eq!(post_auth(&sandbox, body).await.status(), 200, "{body}");
    }
}

#[tokio::test]
async fn attest_040_refusals_are_as_observed() {
    let sandbox = start();
    let key = Key::vector_ec();
    let digest_of = |session: &Session| bound(&session.nonce, &key, Some(""));
    let padded = |session: &Session| {
        STANDARD.encode([Sha384::digest(digest_of(session)).to_vec(), vec![0; 16]].concat())
    };
    type Spoil<'a> = Box<dyn Fn(&Session, &mut Value) + 'a>;
    let evidence =
        |body: &mut Value, value: Value| body["tee-evidence"]["primary_evidence"]["report_data"] = value;
    let rows: Vec<(&str, Spoil<'_>)> = vec![
        ("wrong digest", Box::new(|_, b| evidence(b, json!(STANDARD.encode([1; 48]))))),
        ("SHA-512", Box::new(|s, b| evidence(b, json!(STANDARD.encode(Sha512::digest(digest_of(s))))))),
        ("zero-padded", Box::new(|s, b| evidence(b, json!(padded(s))))),
        ("0.1.0 digest", Box::new(|s, b| evidence(b, json!(report_data(&s.nonce, &key, None))))),
        ("not wrapped", Box::new(|_, b| b["tee-evidence"] = b["tee-evidence"]["primary_evidence"].take())),
        (
            "no measure_register",
            Box::new(|_, b| {
                b["tee-evidence"]["primary_evidence"].as_object_mut().unwrap().remove("measure_register");
            }),
        ),
        (
            "short measure_register",
            Box::new(|_, b| b["tee-evidence"]["primary_evidence"]["measure_register"] = json!("00")),
        ),
        (
            "additional_evidence is an object",
            Box::new(|_, b| b["tee-evidence"]["additional_evidence"] = json!({})),
        ),
        ("another nonce", Box::new(|_, b| b["runtime-data"]["nonce"] = json!(STANDARD.encode([0; 32])))),
        ("init-data", Box::new(|_, b| b["init-data"] = json!({"format": "toml", "body": ""}))),
        ("another key", Box::new(|_, b| b["runtime-data"]["tee-pubkey"]["x"] = json!("AAAA"))),
    ];
    let expected = refused(502, "AttestationError", ATTEST_FAILED);
    for (name, spoil) in rows {
        let session = Session::auth(&sandbox, "0.4.0").await;
        let mut body = session.body_040(&key);
        spoil(&session, &mut body);
        assert_eq!(refusal(session.attest(&body).await).await, expected, "{name}");
        assert_eq!(
            session.attest(&session.body_040(&key)).await.status(),
            200,
            "{name}: the session lives on"
        );
    }
    let mut session = Session::auth(&sandbox, "0.4.0").await;
    session.cookie = format!("kbs-session-id={}", "0".repeat(32));
    assert_eq!(refusal(session.attest(&session.body_040(&key)).await).await, expected, "unknown cookie");
    session.cookie = "other=1".to_owned();
    assert_eq!(refusal(session.attest(&session.body_040(&key)).await).await, expected, "no cookie");
}

#[tokio::test]
async fn attest_040_of_a_tee_without_verifier_is_refused() {
    let sandbox = start();
    let answer = post_auth(&sandbox, r#"{"version":"0.4.0","tee":"tdx","extra-params":""}"#).await;
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let challenge: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    let nonce = challenge["nonce"].as_str().unwrap().to_owned();
    let session = Session { client: client(), base: format!("{}/kbs/v0", sandbox.kbs), cookie, nonce };
    assert_eq!(session.attest(&session.body_040(&Key::vector_ec())).await.status(), 502);
}

#[tokio::test]
async fn attest_again_in_an_attested_session_repeats_the_token() {
    let sandbox = start();
    let session = Session::auth(&sandbox, "0.4.0").await;
    let token = session.attested(&session.body_040(&Key::vector_ec())).await;
    assert_eq!(session.attested(&json!({"anything": 1})).await, token);
}

#[tokio::test]
async fn resource_040_refusals_are_as_observed() {
    let sandbox = start();
    let session = Session::auth(&sandbox, "0.4.0").await;
    let not_found = refused(401, "TokenNotFound", "Attestation Token not found");
    assert_eq!(refusal(session.resource_with(RESOURCE, "accept", "*/*").await).await, not_found);
    assert_eq!(refusal(session.resource(RESOURCE).await).await, not_found, "a session not attested yet");
    let key = Key::vector_ec();
    let token = session.attested(&session.body_040(&key)).await;
    let changed = format!("{}AAAA", &token[..token.len() - 4]);
    for bad in ["garbage", "a.b.c", &changed] {
        for (name, value) in [("attestation", bad.to_owned()), ("authorization", format!("Bearer {bad}"))] {
            let (status, kind, _) = refusal(session.resource_with(RESOURCE, name, &value).await).await;
            assert_eq!((status, kind.as_str()), (401, "TokenVerifierError"), "{name}: {value}");
        }
    }
    for path in ["default/aliyun/absent", "default/aliyun", "default/aliyun/model/decryption", ".a/b/c"] {
        let (status, kind, _) = refusal(session.resource(path).await).await;
        assert_eq!((status, kind.as_str()), (500, "PluginInternalError"), "{path}");
    }
    let post = session.client.post(format!("{}/resource/a/b", session.base)).send().await.unwrap();
    assert_eq!(refusal(post).await.0, 500);
}

#[tokio::test]
async fn resource_to_an_unusable_key_is_a_jwe_error() {
    let sandbox = start();
    let session = Session::auth(&sandbox, "0.4.0").await;
    let key = Key::Rsa { alg: "RSA-OAEP" };
    session.attested(&session.body_040(&key)).await;
    let (status, kind, _) = refusal(session.resource(RESOURCE).await).await;
    assert_eq!((status, kind.as_str()), (400, "JweError"));
}

#[tokio::test]
async fn body_over_two_mebibytes_is_refused() {
    let sandbox = start();
    let answer = post_auth(&sandbox, &" ".repeat((2 << 20) + 1)).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

// ---- protocol 0.1.0 ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn handshake_010_releases_the_secret_in_the_legacy_form() {
    let sandbox = start_010();
    let session = Session::auth(&sandbox, "0.1.0").await;
    let key = Key::Rsa { alg: "RSA1_5" };
    let token = session.attested(&session.body_010(&key)).await;
    let envelope = jwe(session.resource(RESOURCE).await).await;
    assert_eq!(envelope["protected"], r#"{"alg":"RSA1_5","enc":"A256GCM"}"#);
    assert_eq!(envelope["tag"], "");
    assert_eq!(key.open(&envelope).unwrap(), SECRET);
    let claims = claims(&token);
    let submod = &claims["submods"]["cpu"];
    assert_eq!(
        submod["ear.trustworthiness-vector"],
        json!({"configuration": 36, "executables": 33, "hardware": 97})
    );
    let runtime = &submod["ear.veraison.annotated-evidence"]["runtime_data_claims"];
    assert_eq!(*runtime, json!({"nonce": session.nonce, "tee-pubkey": key.jwk()}));
}

#[tokio::test]
async fn handshake_010_ignores_an_extra_measure_register() {
    let sandbox = start_010();
    let session = Session::auth(&sandbox, "0.1.0").await;
    let key = Key::Rsa { alg: "RSA1_5" };
    let evidence = json!({
        "svn": "1", "report_data": report_data(&session.nonce, &key, None), "measure_register": "0".repeat(64),
    });
    session.attested(&json!({"tee-pubkey": key.jwk(), "tee-evidence": evidence.to_string()})).await;
}

#[tokio::test]
async fn refusals_010_are_as_observed() {
    let sandbox = start_010();
    let answer = post_auth(&sandbox, r#"{"version":"0.4.0","tee":"sample","extra-params":""}"#).await;
    let mismatch = "KBS Client Protocol Version Mismatch: expect =0.1.0 while the request is 0.4.0";
    assert_eq!(refusal(answer).await, refused(500, "AttestationError", &format!("{AUTH_FAILED}{mismatch}")));
    let answer = post_auth(&sandbox, r#"{"version":"0.1.0","tee":"sample","extra-params":{}}"#).await;
    let malformed = refused(500, "AttestationError", &format!("{AUTH_FAILED}deserialize Request"));
    assert_eq!(refusal(answer).await, malformed);
    let session = Session::auth(&sandbox, "0.1.0").await;
    let key = Key::Rsa { alg: "RSA1_5" };
    let mut unwrapped = session.body_010(&key);
    unwrapped["tee-evidence"] = serde_json::from_str(unwrapped["tee-evidence"].as_str().unwrap()).unwrap();
    for body in [unwrapped, session.body_040(&key), session.body_010(&Key::vector_ec())] {
        assert_eq!(
            refusal(session.attest(&body).await).await,
            refused(500, "AttestationError", ATTEST_FAILED)
        );
    }
}

// ---- faults, control port, life ----------------------------------------------------------------------------------------

#[tokio::test]
async fn resource_put_on_the_control_port_is_served_and_deleted() {
    let sandbox = start();
    sandbox.put_resource("default/aliyun/other", b"second").await;
    let session = Session::auth(&sandbox, "0.4.0").await;
    let key = Key::vector_ec();
    session.attested(&session.body_040(&key)).await;
    let answer = session.resource("default/aliyun/other").await;
    assert_eq!(key.open(&jwe(answer).await).unwrap(), b"second");
    let url = format!("{}/resource/default/aliyun/other", sandbox.control);
    assert_eq!(client().delete(&url).send().await.unwrap().status(), 204);
    assert_eq!(client().delete(&url).send().await.unwrap().status(), 404);
    assert_eq!(session.resource("default/aliyun/other").await.status(), 500);
    let malformed = client().put(format!("{}/resource/a/b", sandbox.control)).body("x").send().await.unwrap();
    assert_eq!(malformed.status(), 400);
}

#[tokio::test]
async fn faults_instead_of_the_answer_count_down_exactly() {
    let sandbox = start();
    sandbox
        .faults(json!([
            {"do": {"kbs_status": {"status": 503}}, "on": ["auth"], "times": 2},
            {"do": "kbs_drop", "on": ["auth"], "times": 1},
            {"do": {"kbs_redirect": {"location": "http://127.0.0.1:1/"}}, "times": 1},
            {"do": {"kbs_oversize": {"bytes": 70000}}, "times": 1},
        ]))
        .await;
    let body = r#"{"version":"0.4.0","tee":"sample","extra-params":""}"#;
    for _ in 0..2 {
        let answer = post_auth(&sandbox, body).await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["content-type"], "text/html");
    }
    let url = format!("{}/kbs/v0/auth", sandbox.kbs);
    assert!(client().post(&url).body(body).send().await.is_err(), "dropped");
    let answer = post_auth(&sandbox, body).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (302, &"http://127.0.0.1:1/".parse().unwrap())
    );
    assert_eq!(post_auth(&sandbox, body).await.bytes().await.unwrap().len(), 70_000);
    assert_eq!(post_auth(&sandbox, body).await.status(), 200);
    assert_eq!(sandbox.fired().await, [2, 1, 1, 1]);
    assert_eq!(sandbox.count("kbs.auth").await, 6);
    let statuses: Vec<u64> = sandbox.log().await["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|request| request["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [503, 503, 0, 302, 200, 200]);
}

#[tokio::test]
async fn faults_of_the_handshake_act_once_each() {
    let sandbox = start();
    let key = Key::vector_ec();
    let one = |act: &str| json!([{"do": act, "times": 1}]);

    sandbox.faults(one("kbs_wrong_nonce")).await;
    let session = Session::auth(&sandbox, "0.4.0").await;
    assert_eq!(session.attest(&session.body_040(&key)).await.status(), 502);

    sandbox.faults(one("kbs_short_nonce")).await;
    let session = Session::auth(&sandbox, "0.4.0").await;
    assert_eq!(STANDARD.decode(&session.nonce).unwrap().len(), 8);

    sandbox.faults(one("kbs_refuse_evidence")).await;
    let session = Session::auth(&sandbox, "0.4.0").await;
    assert_eq!(session.attest(&session.body_040(&key)).await.status(), 502);
    assert_eq!(session.attest(&session.body_040(&key)).await.status(), 200);

    sandbox.faults(one("kbs_token_nonce")).await;
    let session = Session::auth(&sandbox, "0.4.0").await;
    let token = session.attested(&session.body_040(&key)).await;
    let runtime =
        &claims(&token)["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["runtime_data_claims"];
    assert_ne!(runtime["nonce"], session.nonce);
}

#[tokio::test]
async fn faults_of_the_release_act_on_the_matching_resource_only() {
    let sandbox = start();
    sandbox.put_resource("default/aliyun/other", b"second").await;
    let key = Key::vector_ec();
    let session = Session::auth(&sandbox, "0.4.0").await;
    let token = session.attested(&session.body_040(&key)).await;

    sandbox.faults(json!([{"do": "kbs_deny", "match": "aliyun/model"}])).await;
    for _ in 0..2 {
        let denied = refusal(session.resource(RESOURCE).await).await;
        assert_eq!(denied, refused(403, "PolicyDeny", "Access denied by policy"));
        assert_eq!(session.resource("default/aliyun/other").await.status(), 200);
    }
    sandbox.faults(json!([{"do": "kbs_bad_tag", "times": 1}])).await;
    assert!(key.open(&jwe(session.resource(RESOURCE).await).await).is_err());
    assert_eq!(key.open(&jwe(session.resource(RESOURCE).await).await).unwrap(), SECRET);

    sandbox.faults(json!([{"do": "kbs_expire_session", "times": 2}])).await;
    let expired = refused(401, "TokenNotFound", "Attestation Token not found");
    assert_eq!(refusal(session.resource(RESOURCE).await).await, expired);
    let (status, kind, _) = refusal(session.resource_with(RESOURCE, "attestation", &token).await).await;
    assert_eq!((status, kind.as_str()), (401, "TokenVerifierError"));
    assert_eq!(
        refusal(session.resource(RESOURCE).await).await,
        expired,
        "an expired session does not come back"
    );
}

#[tokio::test]
async fn control_port_refuses_what_it_does_not_understand() {
    let sandbox = start();
    let put = |body: &'static str| client().put(format!("{}/faults", sandbox.control)).body(body).send();
    assert_eq!(put("[{\"do\":\"nothing\"}]").await.unwrap().status(), 400);
    assert_eq!(put("[]").await.unwrap().status(), 204);
    assert_eq!(client().get(format!("{}/nothing", sandbox.control)).send().await.unwrap().status(), 404);
    assert_eq!(client().delete(format!("{}/log", sandbox.control)).send().await.unwrap().status(), 204);
}

#[tokio::test]
async fn sandbox_ends_with_status_zero_on_sigterm_and_sigint() {
    for signal in [nix::sys::signal::Signal::SIGTERM, nix::sys::signal::Signal::SIGINT] {
        let mut sandbox = start();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(sandbox.pid()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        assert_eq!(sandbox.wait().code(), Some(0), "{signal}");
    }
}
