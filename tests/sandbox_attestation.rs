//! Claim: the stand-in attestation service takes the bodies of both generations, each its own, verifies the sample TEE's
//! binding, and is wrong only in the ways it is asked to be.
#![cfg(feature = "sandbox")]

#[path = "common/sandbox.rs"]
mod sandbox;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sandbox::{Builder, Sandbox};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

async fn post(sandbox: &Sandbox, path: &str, body: &Value) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = client.post(format!("{}/as/{path}", sandbox.kbs)).body(body.to_string());
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

fn item(runtime_data: &Value) -> Value {
    let evidence = json!({
        "svn": "1",
        "report_data": STANDARD.encode(Sha384::digest(runtime_data.to_string())),
        "measure_register": "0".repeat(64),
    });
    json!({
        "tee": "sample",
        "evidence": URL_SAFE_NO_PAD.encode(evidence.to_string()),
        "runtime_data": {"structured": runtime_data},
        "init_data": null,
        "runtime_data_hash_algorithm": "sha384",
    })
}

fn new_body(runtime_data: &Value) -> Value {
    json!({"verification_requests": [item(runtime_data)], "policy_ids": ["default"]})
}

fn old_body(runtime_data: &Value) -> Value {
    let mut body = item(runtime_data);
    body["init_data_hash_algorithm"] = Value::Null;
    body["policy_ids"] = json!(["default"]);
    body
}

/// Header and claims.
fn token(text: &str) -> (Value, Value) {
    let segments: Vec<&str> = text.split('.').collect();
    let [header, claims, _] = segments[..] else { panic!("{text}") };
    let parse = |segment| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(segment).unwrap()).unwrap();
    (parse(header), parse(claims))
}

#[tokio::test]
async fn new_generation_answers_the_new_body_with_an_ear_token() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let sandbox = Sandbox::start(Builder::default().with(&["--token-cert-out", ca.to_str().unwrap()]));
    let data = json!({"pubkey-hash": "abc"});
    let (status, text) = post(&sandbox, "attestation", &new_body(&data)).await;
    assert_eq!(status, 200, "{text}");
    let (header, claims) = token(&text);
    assert_eq!(header["alg"], "ES256");
    assert_eq!(claims["submods"]["cpu0"]["ear.status"], "affirming");
    assert_eq!(claims["submods"]["cpu0"]["ear.appraisal-policy-id"], "default");
    let pointer = "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims";
    assert_eq!(claims.pointer(pointer), Some(&data));

    let (status, text) = post(&sandbox, "attestation", &old_body(&data)).await;
    assert_eq!(status, 400);
    assert!(text.contains("missing field `verification_requests`"), "{text}");

    let (status, text) = post(&sandbox, "challenge", &json!({})).await;
    assert_eq!(status, 200);
    let challenge: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(token(challenge["extra-params"]["jwt"].as_str().unwrap()).1["nonce"], challenge["nonce"]);

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let pem =
        client.get(format!("{}/as/certificate", sandbox.kbs)).send().await.unwrap().text().await.unwrap();
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(pem.ends_with(&std::fs::read_to_string(&ca).unwrap()));
    assert_eq!(sandbox.count("kbs.evaluate").await, 2);
}

#[tokio::test]
async fn old_generation_answers_the_old_body_with_a_simple_token() {
    let sandbox = Sandbox::start(Builder::default().protocol("0.1.0").with(&["--kbs-oldest"]));
    let data = json!({"rats-rs.raw_runtime_data": "abc"});
    let (status, text) = post(&sandbox, "attestation", &new_body(&data)).await;
    assert_eq!(status, 400);
    assert!(text.contains("missing field `tee`"), "{text}");

    let (status, text) = post(&sandbox, "attestation", &old_body(&data)).await;
    assert_eq!(status, 200, "{text}");
    let (header, claims) = token(&text);
    assert_eq!((&header["alg"], &claims["jwk"]["alg"]), (&json!("RS384"), &json!("RS384")));
    assert_eq!(claims["customized_claims"]["runtime_data"], data);
    assert_eq!(claims["evaluation-reports"], json!([{"policy-id": "default"}]));

    let (status, text) = post(&sandbox, "challenge", &json!({})).await;
    assert_eq!((status, text.contains("Failed to get inner tee")), (500, true), "{text}");
}

#[tokio::test]
async fn evidence_that_is_not_bound_to_the_runtime_data_is_refused() {
    let sandbox = Sandbox::start(Builder::default());
    let mut body = new_body(&json!({"pubkey-hash": "abc"}));
    body["verification_requests"][0]["runtime_data"]["structured"]["pubkey-hash"] = json!("abd");
    let (status, text) = post(&sandbox, "attestation", &body).await;
    let detail = serde_json::from_str::<Value>(&text).unwrap()["detail"].clone();
    assert_eq!((status, detail), (500, json!("REPORT_DATA is different from that in Sample Quote")));

    for (what, change) in [
        ("no runtime data", json!({"runtime_data": null})),
        ("TEE `snp` verifier is not implemented.", json!({"tee": "snp"})),
        ("unknown hash algorithm md5", json!({"runtime_data_hash_algorithm": "md5"})),
        (
            "init data: the stand-ins have nothing to compare it with",
            json!({"init_data": {"init_data_toml": ""}}),
        ),
    ] {
        let mut body = new_body(&json!({}));
        for (name, value) in change.as_object().unwrap() {
            body["verification_requests"][0][name] = value.clone();
        }
        let (status, text) = post(&sandbox, "attestation", &body).await;
        let detail = serde_json::from_str::<Value>(&text).unwrap()["detail"].clone();
        assert_eq!((status, detail), (500, json!(what)));
    }
}

#[tokio::test]
async fn every_fault_of_a_verdict_shows_where_it_should() {
    let sandbox = Sandbox::start(Builder::default());
    let data = json!({"pubkey-hash": "abc"});
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = async |fault: Value| {
        sandbox.faults(json!([{"do": fault, "on": ["evaluate"]}])).await;
        let (status, text) = post(&sandbox, "attestation", &new_body(&data)).await;
        assert_eq!(status, 200, "{text}");
        token(&text).1
    };
    let cpu = |claims: &Value, name: &str| claims["submods"]["cpu0"][name].clone();
    assert_eq!(cpu(&claims(json!("as_contraindicate")).await, "ear.status"), "contraindicated");
    assert_eq!(cpu(&claims(json!("as_other_policy")).await, "ear.appraisal-policy-id"), "another");
    let other = cpu(&claims(json!("as_other_data")).await, "ear.veraison.annotated-evidence");
    assert_eq!(other["runtime_data_claims"], json!({"pubkey-hash": "of another key"}));
    assert!(claims(json!("kbs_token_expired")).await["exp"].as_u64().unwrap() < now);
    let short = claims(json!({"as_token_life": {"secs": 7}})).await;
    assert_eq!(short["exp"].as_u64().unwrap() - short["iat"].as_u64().unwrap(), 7);
    sandbox.faults(json!([{"do": "as_garbage"}])).await;
    assert_eq!(post(&sandbox, "attestation", &new_body(&data)).await, (200, "not a token".to_owned()));
    sandbox.faults(json!([{"do": "kbs_refuse_evidence"}])).await;
    assert_eq!(post(&sandbox, "attestation", &new_body(&data)).await.0, 500);
}
