//! Claim: the stand-in Trustee can be each of the releases in the field: it speaks their version, their bodies, and says no
//! in their words and statuses.
//!
//! The client here is raw HTTP; v1.8.7 and v1.5.2 of Alibaba's are in `sandbox_kbs.rs`.

#![cfg(feature = "sandbox")]

#[path = "common/sandbox.rs"]
mod sandbox;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::{Client, Response};
use sandbox::{Builder, RESOURCE, Sandbox};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

const KEY: &str = include_str!("vectors/kbs-vectors.json");

/// The RSA key of the vectors, as `RSA1_5`, in the order it is hashed in.
fn jwk() -> Value {
    let vectors: Value = serde_json::from_str(KEY).unwrap();
    let runtime: Value = serde_json::from_str(vectors["v010_runtime"].as_str().unwrap()).unwrap();
    runtime["tee-pubkey"].clone()
}

fn sample(nonce: &str) -> Value {
    let n = jwk()["n"].as_str().unwrap().to_owned();
    let hashed =
        format!(r#"{{"nonce":"{nonce}","tee-pubkey":{{"alg":"RSA1_5","e":"AQAB","kty":"RSA","n":"{n}"}}}}"#);
    json!({ "svn": "1", "report_data": STANDARD.encode(Sha384::digest(hashed)) })
}

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

async fn post(sandbox: &Sandbox, step: &str, cookie: &str, body: &Value) -> Response {
    let request = client().post(format!("{}/kbs/v0/{step}", sandbox.kbs)).header("cookie", cookie);
    request.body(body.to_string()).send().await.unwrap()
}

async fn get(sandbox: &Sandbox, path: &str, cookie: &str) -> Response {
    let url = format!("{}/kbs/v0/resource/{path}", sandbox.kbs);
    client().get(url).header("cookie", cookie).send().await.unwrap()
}

/// Status, last segment of `type`, `detail`.
async fn refusal(answer: Response) -> (u16, String, String) {
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    let kind = body["type"].as_str().unwrap().rsplit('/').next().unwrap();
    (status, kind.to_owned(), body["detail"].as_str().unwrap().to_owned())
}

fn said(status: u16, kind: &str, detail: &str) -> (u16, String, String) {
    (status, kind.to_owned(), detail.to_owned())
}

/// Cookie and nonce of a new session.
async fn auth(sandbox: &Sandbox, version: &str, extra_params: Value) -> (String, String) {
    let body = json!({ "version": version, "tee": "sample", "extra-params": extra_params });
    let answer = post(sandbox, "auth", "", &body).await;
    assert_eq!(answer.status(), 200);
    let cookie = answer.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let challenge: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    (cookie, challenge["nonce"].as_str().unwrap().to_owned())
}

async fn json_of(answer: Response) -> Value {
    assert_eq!(answer.status(), 200);
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

fn start(protocol: &str, arguments: &[&str]) -> Sandbox {
    Sandbox::start(Builder::default().protocol(protocol).resource(RESOURCE, b"secret").with(arguments))
}

#[tokio::test]
async fn upstream_releases_take_evidence_as_an_object_and_differ_in_the_envelope() {
    for (version, legacy) in [("0.1.1", true), ("0.2.0", false)] {
        let sandbox = start(version, &["--kbs-maker", "upstream"]);
        let (cookie, nonce) =
            auth(&sandbox, version, json!({ "supported-hash-algorithms": ["sha384"] })).await;
        let body = json!({ "tee-pubkey": jwk(), "tee-evidence": sample(&nonce) });
        let token = json_of(post(&sandbox, "attest", &cookie, &body).await).await["token"].clone();
        let claims = token.as_str().unwrap().split('.').nth(1).unwrap().to_owned();
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["nbf"].as_u64().unwrap(), 300);
        assert!(claims["submods"]["cpu"].is_object() && claims["jti"].is_string());
        let envelope = json_of(get(&sandbox, RESOURCE, &cookie).await).await;
        let protected = envelope["protected"].as_str().unwrap();
        assert_eq!(protected.starts_with('{'), legacy);
        assert_eq!(envelope["tag"].as_str().unwrap().is_empty(), legacy);

        let (cookie, nonce) = auth(&sandbox, version, json!("")).await;
        let text = json!({ "tee-pubkey": jwk(), "tee-evidence": sample(&nonce).to_string() });
        let no = said(401, "AttestationError", "Attestation error: RCAR handshake Attest failed");
        assert_eq!(refusal(post(&sandbox, "attest", &cookie, &text).await).await, no);
        let newest = json!({ "version": "0.4.0", "tee": "sample", "extra-params": "" });
        let detail = format!(
            "RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect ={version} while the request is 0.4.0"
        );
        let refused = refusal(post(&sandbox, "auth", "", &newest).await).await;
        assert_eq!(refused, said(401, "AttestationError", &detail));
        let missing = get(&sandbox, "default/aliyun/missing", &cookie).await;
        assert_eq!(refusal(missing).await.0, 401);
    }
}

#[tokio::test]
async fn oldest_release_issues_a_simple_token_and_says_everything_in_its_own_words() {
    let sandbox = start("0.1.0", &["--kbs-oldest"]);
    let (cookie, nonce) = auth(&sandbox, "0.1.0", json!("")).await;
    let body = json!({ "tee-pubkey": jwk(), "tee-evidence": sample(&nonce).to_string() });
    let token = json_of(post(&sandbox, "attest", &cookie, &body).await).await["token"].clone();
    let parts: Vec<Value> = token
        .as_str()
        .unwrap()
        .split('.')
        .take(2)
        .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
        .collect();
    assert_eq!(parts[0], json!({ "typ": "JWT", "alg": "RS384" }));
    assert_eq!(parts[1]["jwk"]["kty"], "RSA");
    assert_eq!(parts[1]["tee"], "sample");
    assert_eq!(parts[1]["customized_claims"]["runtime_data"], json!({ "nonce": nonce, "tee-pubkey": jwk() }));
    assert_eq!(parts[1]["tcb-status"]["sample.svn"], "1");
    assert_eq!(json_of(get(&sandbox, RESOURCE, &cookie).await).await["tag"], "");

    let auth_of = |version: &str| json!({ "version": version, "tee": "sample", "extra-params": "" });
    let (fresh, nonce) = auth(&sandbox, "0.1.0", json!("")).await;
    let mut wrong = sample(&nonce);
    wrong["report_data"] = json!("AAAA");
    let wrong = json!({ "tee-pubkey": jwk(), "tee-evidence": wrong.to_string() });
    let mismatch =
        "KBS Client Protocol Version Mismatch: expected version: <=0.1.0, requested version: 0.4.0";
    let rows = [
        (post(&sandbox, "auth", "", &auth_of("0.4.0")).await, said(401, "ProtocolVersion", mismatch)),
        (
            post(&sandbox, "attest", "", &wrong).await,
            said(401, "MissingCookie", "No cookie found in the request"),
        ),
        (
            post(&sandbox, "attest", "kbs-session-id=0", &wrong).await,
            said(401, "InvalidCookie", "The cookie is not known"),
        ),
        (
            post(&sandbox, "attest", &fresh, &wrong).await,
            said(
                401,
                "AttestationFailed",
                "Attestation failed: REPORT_DATA is different from that in Sample Quote",
            ),
        ),
        (
            get(&sandbox, RESOURCE, "kbs-session-id=0").await,
            said(401, "InvalidRequest", "The request is invalid: parse Authorization header failed: Header"),
        ),
        (
            get(&sandbox, "default/aliyun/missing", &cookie).await,
            said(404, "ReadSecretFailed", "Read secret failed: no such file"),
        ),
    ];
    for (answer, expected) in rows {
        assert_eq!(refusal(answer).await, expected);
    }
    sandbox.faults(json!([{ "do": "kbs_deny" }])).await;
    let denied = said(401, "PolicyReject", "Resource not permitted.");
    assert_eq!(refusal(get(&sandbox, RESOURCE, &cookie).await).await, denied);
    let object = json!({ "version": "0.1.0", "tee": "sample", "extra-params": {} });
    let malformed = post(&sandbox, "auth", "", &object).await;
    assert_eq!(malformed.status(), 400);
    assert!(malformed.text().await.unwrap().starts_with("Json deserialize error"));
}

#[tokio::test]
async fn lost_session_leaves_its_token_good_and_an_expired_one_does_not() {
    let sandbox = start("0.2.0", &[]);
    let (cookie, nonce) = auth(&sandbox, "0.2.0", json!("")).await;
    let body = json!({ "tee-pubkey": jwk(), "tee-evidence": sample(&nonce) });
    let token = json_of(post(&sandbox, "attest", &cookie, &body).await).await["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    let with_token = || async {
        let url = format!("{}/kbs/v0/resource/{RESOURCE}", sandbox.kbs);
        client().get(url).header("authorization", &bearer).send().await.unwrap()
    };
    sandbox.faults(json!([{ "do": "kbs_lose_session", "times": 1 }])).await;
    assert_eq!(refusal(get(&sandbox, RESOURCE, &cookie).await).await.1, "TokenNotFound");
    assert_eq!(with_token().await.status(), 200);
    sandbox.faults(json!([{ "do": "kbs_expire_session", "times": 1 }])).await;
    assert_eq!(refusal(with_token().await).await.1, "TokenVerifierError");
}

#[test]
fn arguments_that_do_not_go_together_are_refused() {
    let refused = |arguments: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cai-sandbox"));
        command.args([
            "serve",
            "--bucket",
            "b",
            "--region",
            "r",
            "--access-key-id",
            "a",
            "--exit-with-stdin",
        ]);
        command.arg("--state-dir").arg(dir.path().join("state"));
        command.arg("--access-key-secret-file").arg(dir.path().join("secret"));
        let output = command.args(arguments).stdin(std::process::Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    for (arguments, text) in [
        (&["--kbs-oldest"][..], "--kbs-oldest goes with --kbs-protocol 0.1.0"),
        (&["--require-mrtd", "a1"], "--require-mrtd takes 96 hexadecimal digits"),
    ] {
        let (success, stderr) = refused(arguments);
        assert!(!success && stderr.contains(text), "{stderr}");
    }
}
