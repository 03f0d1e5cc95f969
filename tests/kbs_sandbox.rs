//! Claim: client and stand-in Trustee, written apart from the specification, understand each other in every dialect, and
//! the client meets each of its refusals as an operator should see them.

#![cfg(feature = "sandbox")]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::sync::Arc;
use std::time::Duration;

use cai::attest::{AttestError, Attester, Digest, Evidence, Tee, Verifier, sample_attester};
use cai::config::{GpuForm, KeyAlgorithm, Protocol, Trustee};
use cai::error::{ErrorClass, Fault};
use cai::kbs::wire::Dialect;
use cai::kbs::{Client, KbsError, ResourceUri};
use cai::keyring::Secret;
use sandbox::{Builder, RESOURCE, Sandbox};
use serde_json::json;

const SECRET: &[u8] = b"correct horse battery staple\n";

fn sample() -> Arc<dyn Attester> {
    sample_attester().unwrap()
}

fn uri() -> ResourceUri {
    ResourceUri::parse(&format!("kbs:///{RESOURCE}")).unwrap()
}

fn client(url: &str, protocol: Protocol) -> Client {
    Client::new(&trustee(url, protocol)).unwrap()
}

fn trustee(url: &str, protocol: Protocol) -> Trustee {
    Trustee {
        url: url.parse().unwrap(),
        key_id: uri().to_string(),
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

fn start(protocol: &str) -> Sandbox {
    Sandbox::start(Builder::default().protocol(protocol).resource(RESOURCE, SECRET))
}

fn holds(secret: &Secret, expected: &[u8]) -> bool {
    secret.with(|bytes| bytes == expected)
}

async fn failed(sandbox: &Sandbox, faults: serde_json::Value) -> KbsError {
    sandbox.faults(faults).await;
    client(&sandbox.kbs, Protocol::Auto).release(sample(), &uri(), |_| {}).await.err().unwrap()
}

#[tokio::test]
async fn secret_is_released_in_every_dialect_pinned_and_found_with_each_of_its_key_algorithms() {
    use KeyAlgorithm::{Auto, EcdhEsA256Kw, Rsa1_5, RsaOaep256};
    let (ec, oaep, pkcs1) = ("ECDH-ES+A256KW", "RSA-OAEP-256", "RSA1_5");
    let new = &[(Auto, ec), (EcdhEsA256Kw, ec), (RsaOaep256, oaep), (Rsa1_5, pkcs1)][..];
    let old = &[(Auto, pkcs1), (Rsa1_5, pkcs1)][..];
    let rows = [
        (Protocol::V0_4_0, Dialect::V0_4_0, new),
        (Protocol::V0_2_0, Dialect::V0_2_0, new),
        (Protocol::V0_1_1, Dialect::V0_1_1, old),
        (Protocol::V0_1_0, Dialect::V0_1_0, old),
    ];
    for (pin, dialect, algorithms) in rows {
        let sandbox = start(dialect.version());
        for (key_algorithm, name) in algorithms.iter().copied() {
            for protocol in [pin, Protocol::Auto] {
                let config = Trustee { key_algorithm, ..trustee(&sandbox.kbs, protocol) };
                let client = Client::new(&config).unwrap();
                let refused_first = protocol == Protocol::Auto && dialect != Dialect::NEWEST;
                let (auths, case) = (sandbox.count("kbs.auth").await, (dialect, protocol, name));
                let (attested, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
                assert!(holds(&secret, SECRET), "{case:?}");
                let facts = attested.facts();
                assert_eq!((facts.dialect, facts.algorithm), (dialect, name), "{case:?}");
                assert_eq!(facts.downgraded, refused_first, "{case:?}");
                assert_eq!(sandbox.count("kbs.auth").await - auths, 1 + u64::from(refused_first), "{case:?}");
            }
        }
    }
}

#[tokio::test]
async fn secret_is_released_by_the_oldest_release_whose_texts_differ() {
    let oldest = Builder::default().protocol("0.1.0").with(&["--kbs-oldest"]).resource(RESOURCE, SECRET);
    let sandbox = Sandbox::start(oldest);
    let client = client(&sandbox.kbs, Protocol::Auto);
    let (attested, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(holds(&secret, SECRET));
    assert_eq!((attested.facts().dialect, attested.facts().downgraded), (Dialect::V0_1_0, true));
    let rows = [
        (json!({ "do": "kbs_deny" }), "kbs.denied"),
        (json!({ "do": "kbs_expire_session", "on": ["resource"] }), "kbs.session-lost"),
        (json!({ "do": "kbs_expire_session", "on": ["attest"] }), "kbs.session-lost"),
        (json!({ "do": "kbs_refuse_evidence" }), "kbs.attestation-refused"),
        (json!({ "do": "kbs_wrong_nonce" }), "kbs.report-data"),
    ];
    for (fault, code) in rows {
        sandbox.faults(json!([fault])).await;
        assert_eq!(client.release(sample(), &uri(), |_| {}).await.err().unwrap().code(), code, "{fault}");
    }
    sandbox.faults(json!([])).await;
    let missing = ResourceUri::parse("kbs:///default/aliyun/missing").unwrap();
    assert_eq!(client.release(sample(), &missing, |_| {}).await.err().unwrap().code(), "kbs.not-found");
}

#[tokio::test]
async fn resource_of_no_bytes_and_of_many_arrives_whole() {
    let sandbox = start("0.4.0");
    let client = client(&sandbox.kbs, Protocol::Auto);
    for len in [0, 1, 15, 16, 17, 4096, 500_000] {
        let bytes: Vec<u8> = (0..=255).cycle().take(len).collect();
        sandbox.put_resource(RESOURCE, &bytes).await;
        let (_, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
        assert!(holds(&secret, &bytes), "{len}");
    }
}

#[tokio::test]
async fn pin_against_the_brokers_version_is_a_mismatch() {
    let pins = [
        ("0.4.0", Protocol::V0_1_0),
        ("0.4.0", Protocol::V0_2_0),
        ("0.1.0", Protocol::V0_4_0),
        ("0.1.1", Protocol::V0_1_0),
        ("0.2.0", Protocol::V0_4_0),
    ];
    for (speaks, protocol) in pins {
        let sandbox = start(speaks);
        let error = client(&sandbox.kbs, protocol).release(sample(), &uri(), |_| {}).await.err().unwrap();
        assert_eq!((error.code(), error.class()), ("kbs.version-mismatch", ErrorClass::Config));
        assert!(error.hint().contains(&format!("set it to {speaks} or auto")), "{}", error.hint());
    }
}

#[tokio::test]
async fn denial_is_final_after_one_handshake_in_both_dialects() {
    for speaks in ["0.4.0", "0.1.0"] {
        let sandbox = start(speaks);
        let error = failed(&sandbox, json!([{ "do": "kbs_deny" }])).await;
        assert_eq!((error.code(), error.class()), ("kbs.denied", ErrorClass::Denied), "{speaks}");
        assert_eq!((sandbox.count("kbs.attest").await, sandbox.count("kbs.resource").await), (1, 1));
    }
}

#[tokio::test]
async fn bad_tag_is_corrupt_in_both_dialects() {
    for speaks in ["0.4.0", "0.1.0"] {
        let error = failed(&start(speaks), json!([{ "do": "kbs_bad_tag" }])).await;
        assert_eq!((error.code(), error.class()), ("kbs.jwe", ErrorClass::Corrupt), "{speaks}");
    }
}

#[tokio::test]
async fn missing_resource_is_not_found_and_asked_for_once() {
    for speaks in ["0.4.0", "0.1.0"] {
        let sandbox = Sandbox::start(Builder::default().protocol(speaks));
        let error = failed(&sandbox, json!([])).await;
        assert_eq!((error.code(), error.class()), ("kbs.not-found", ErrorClass::Transient), "{speaks}");
        assert_eq!(sandbox.count("kbs.resource").await, 1);
    }
}

#[tokio::test]
async fn session_that_is_over_is_replaced_by_a_new_handshake() {
    for speaks in ["0.4.0", "0.1.0"] {
        let sandbox = start(speaks);
        // For the cookie, and for the token in its place.
        sandbox.faults(json!([{ "do": "kbs_expire_session", "on": ["resource"], "times": 2 }])).await;
        let client = client(&sandbox.kbs, Protocol::Auto);
        let (_, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
        assert!(holds(&secret, SECRET), "{speaks}");
        assert_eq!((sandbox.count("kbs.attest").await, sandbox.count("kbs.resource").await), (2, 3));
    }
}

#[tokio::test]
async fn session_of_another_replica_is_asked_for_with_the_token_and_no_new_handshake() {
    for speaks in ["0.4.0", "0.2.0", "0.1.0"] {
        let sandbox = start(speaks);
        sandbox.faults(json!([{ "do": "kbs_lose_session", "on": ["resource"], "times": 1 }])).await;
        let client = client(&sandbox.kbs, Protocol::Auto);
        let (_, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
        assert!(holds(&secret, SECRET), "{speaks}");
        assert_eq!((sandbox.count("kbs.attest").await, sandbox.count("kbs.resource").await), (1, 2));
    }
}

/// The sample TEE, with an event log far longer than what TLS and header lines carry.
struct Talkative;

impl Attester for Talkative {
    fn tee(&self) -> Tee {
        Tee::Sample
    }

    fn device_evidence(&self, _: &Digest) -> Result<String, AttestError> {
        Ok(String::new())
    }

    fn evidence(&self, digest: &Digest, verifier: Verifier) -> Result<Evidence, AttestError> {
        let Evidence { object, claims } = sample_attester()?.evidence(digest, verifier)?;
        let mut object: serde_json::Value = serde_json::from_str(object.get())?;
        object["cc_eventlog"] = json!("A".repeat(200 << 10));
        Ok(Evidence { object: serde_json::value::to_raw_value(&object)?, claims })
    }
}

#[tokio::test]
async fn evidence_over_64_kib_goes_through_the_whole_exchange_and_its_token_never_into_a_header() {
    for speaks in ["0.4.0", "0.2.0", "0.1.0"] {
        let sandbox = start(speaks);
        let client = client(&sandbox.kbs, Protocol::Auto);
        let (_, secret) = client.release(Arc::new(Talkative), &uri(), |_| {}).await.unwrap();
        assert!(holds(&secret, SECRET), "{speaks}");
    }
    // The token of 0.4.0 has the log in it: too long for a header, so a lost session means a new handshake.
    let sandbox = start("0.4.0");
    sandbox.faults(json!([{ "do": "kbs_lose_session", "on": ["resource"], "times": 1 }])).await;
    let client = client(&sandbox.kbs, Protocol::Auto);
    client.release(Arc::new(Talkative), &uri(), |_| {}).await.unwrap();
    assert_eq!((sandbox.count("kbs.attest").await, sandbox.count("kbs.resource").await), (2, 2));
}

#[tokio::test]
async fn refused_evidence_is_denied_after_three_handshakes_and_forgiven_before() {
    let sandbox = start("0.4.0");
    let error = failed(&sandbox, json!([{ "do": "kbs_refuse_evidence" }])).await;
    assert_eq!((error.code(), error.class()), ("kbs.attestation-refused", ErrorClass::Denied));
    assert_eq!((sandbox.count("kbs.attest").await, sandbox.count("kbs.resource").await), (3, 0));
    sandbox.faults(json!([{ "do": "kbs_refuse_evidence", "times": 2 }])).await;
    let (_, secret) = client(&sandbox.kbs, Protocol::Auto).release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(holds(&secret, SECRET));
}

#[tokio::test]
async fn faults_on_the_way_are_told_apart() {
    let sandbox = start("0.4.0");
    let rows = [
        (json!({ "do": "kbs_drop" }), "kbs.unreachable", ErrorClass::Transient),
        (json!({ "do": { "kbs_status": { "status": 503 } } }), "kbs.server-fault", ErrorClass::Transient),
        (json!({ "do": { "kbs_status": { "status": 404 } } }), "kbs.not-a-broker", ErrorClass::Config),
        (
            json!({ "do": { "kbs_redirect": { "location": "http://127.0.0.1:9/" } } }),
            "kbs.redirected",
            ErrorClass::Config,
        ),
        (
            json!({ "do": { "kbs_oversize": { "bytes": 3_000_000 } } }),
            "kbs.answer-too-large",
            ErrorClass::Config,
        ),
        (json!({ "do": "kbs_short_nonce" }), "kbs.malformed", ErrorClass::Transient),
        (json!({ "do": "kbs_wrong_nonce" }), "kbs.attestation-refused", ErrorClass::Denied),
        (json!({ "do": "kbs_token_nonce" }), "kbs.token", ErrorClass::Corrupt),
        (json!({ "do": "kbs_token_key" }), "kbs.token", ErrorClass::Corrupt),
        (json!({ "do": "kbs_token_expired" }), "kbs.token", ErrorClass::Transient),
        (json!({ "do": "kbs_swap_key" }), "kbs.jwe", ErrorClass::Corrupt),
    ];
    for (fault, code, class) in rows {
        let error = failed(&sandbox, json!([fault])).await;
        assert_eq!((error.code(), error.class()), (code, class), "{fault}");
    }
}

#[tokio::test]
async fn broker_that_is_down_is_unreachable() {
    let sandbox = start("0.4.0");
    let client = client(&sandbox.kbs, Protocol::Auto);
    let attested = client.attest(sample()).await.unwrap();
    drop(sandbox);
    let error = client.secret(&attested, &uri()).await.err().unwrap();
    assert_eq!((error.code(), error.class()), ("kbs.unreachable", ErrorClass::Transient));
}
