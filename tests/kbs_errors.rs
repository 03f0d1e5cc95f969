//! Claim: every refusal of every generation of brokers reaches the operator with its step, the server's own words, a stable
//! code, the right class, and a hint that can be acted on; a refused machine is told how to make itself known.

#![cfg(feature = "sandbox")]

#[path = "common/kbs_scenes.rs"]
mod kbs_scenes;
#[path = "common/scripted.rs"]
mod scripted;

use std::sync::Arc;

use cai::attest::{
    AttestError, Attester, Claims, Digest, Evidence, GpuClaims, TdxClaims, Tee, Verifier, sample_attester,
};
use cai::config::Protocol;
use cai::error::{ErrorClass, Fault};
use cai::kbs::{Cause, Client, KbsError, ResourceUri};
use kbs_scenes::*;
use scripted::{Answer, Request, Scene, Server, answer};
use serde_json::{Value, json};

fn uri() -> ResourceUri {
    ResourceUri::parse(RESOURCE).unwrap()
}

async fn failed(
    attester: Arc<dyn Attester>,
    protocol: Protocol,
    scenes: Vec<Scene>,
) -> (KbsError, Vec<Request>) {
    let server = Server::start(scenes);
    let client = Client::new(&trustee_of(&server, protocol, None)).unwrap();
    let error = client.release(attester, &uri(), |_| {}).await.err().unwrap();
    (error, server.finish())
}

async fn failed_release(protocol: Protocol, scenes: Vec<Scene>) -> (KbsError, Vec<Request>) {
    failed(sample_attester().unwrap(), protocol, scenes).await
}

/// A TD whose evidence is the sample TEE's, so that the scripted broker accepts it, and whose claims are known.
struct Td {
    boot: usize,
}

impl Attester for Td {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn device_evidence(&self, _: &Digest) -> Result<String, AttestError> {
        Ok(String::new())
    }

    fn evidence(&self, digest: &Digest, verifier: Verifier) -> Result<Evidence, AttestError> {
        let Evidence { object, claims } = sample_attester()?.evidence(digest, verifier)?;
        let boot = (0..self.boot).map(|n| (format!("measurement.kernel.{n}"), vec!["b0".repeat(48)]));
        let tdx = TdxClaims {
            mrtd: "a1".repeat(48),
            rtmrs: ["c0", "c1", "c2", "c3"].map(|byte| byte.repeat(48)),
            xfam: "e702060000000000".to_owned(),
            boot: boot.collect(),
            ..TdxClaims::default()
        };
        let gpu = GpuClaims {
            uuid: "GPU-1".into(),
            name: "NVIDIA H20".into(),
            driver_version: "550.1".into(),
            vbios_version: "96.2".into(),
            ..GpuClaims::default()
        };
        Ok(Evidence { object, claims: Claims { provider: "qgs", tdx: Some(tdx), gpus: vec![gpu], ..claims } })
    }
}

/// The JSON object that a hint quotes.
fn quoted(hint: &str) -> Value {
    let start = hint.find('{').unwrap();
    serde_json::Deserializer::from_str(&hint[start..]).into_iter::<Value>().next().unwrap().unwrap()
}

#[tokio::test]
async fn refused_machine_is_told_the_reference_values_that_would_make_it_known() {
    let denied =
        vec![auth_ok(), attest_ok(&Key::default()), refusal(403, "PolicyDeny", "Access denied by policy")];
    let unknown = vec![auth_ok(), refusal(401, "AttestationFailed", "Reject by policy default")];
    for (scenes, code) in [(denied, "kbs.denied"), (unknown, "kbs.attestation-policy")] {
        let (error, requests) = failed(Arc::new(Td { boot: 1 }), Protocol::Auto, scenes).await;
        assert_eq!((error.code(), error.class()), (code, ErrorClass::Denied));
        assert!(requests.len() <= 3, "never asked again");
        let values = quoted(&error.hint());
        for name in ["tdx.quote.body.mr_td", "tdx.mr_td", "mr_td"] {
            assert_eq!(values[name], json!(["a1".repeat(48)]), "{name}");
        }
        assert_eq!(values["tdx.xfam"], json!(["e702060000000000"]));
        assert_eq!(values["rtmr_1"], json!(["c1".repeat(48)]));
        assert_eq!(values["measurement.kernel.0"], json!(["b0".repeat(48)]));
        assert!(error.hint().ends_with("; GPU NVIDIA H20 GPU-1 driver 550.1 VBIOS 96.2"), "{}", error.hint());
        let (KbsError::Denied { claims, .. } | KbsError::AttestationRefused { claims, .. }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(claims.tdx.as_ref().unwrap().rtmrs[3], "c3".repeat(48));
    }
}

#[tokio::test]
async fn reference_values_in_a_hint_stay_whole_json_of_bounded_length() {
    let scenes = vec![auth_ok(), attest_ok(&Key::default()), refusal(403, "PolicyDeny", "no")];
    let (error, _) = failed(Arc::new(Td { boot: 500 }), Protocol::Auto, scenes).await;
    let hint = error.hint();
    let values = quoted(&hint);
    assert_eq!(values["mr_td"], json!(["a1".repeat(48)]), "the quote's own values are the last to go");
    let left =
        500 - values.as_object().unwrap().keys().filter(|name| name.starts_with("measurement")).count();
    assert!(hint.contains(&format!("(and {left} more: cai attest --reference-values)")), "{hint}");
    assert!((100..500).contains(&left) && hint.len() < 5000, "{left} {}", hint.len());
}

#[tokio::test]
async fn verifiers_words_decide_code_class_and_hint_of_refused_evidence() {
    use ErrorClass::{Denied, Transient};
    let rows = [
        ("REPORT_DATA is different from that in TDX Quote", "kbs.report-data", Denied, "is bound to "),
        (
            "RTMR 0, 1, 2 values from TD quote is not equal with the values from EventLog",
            "kbs.event-log",
            Denied,
            "attest.event_log",
        ),
        ("AA eventlog does not pass check", "kbs.agent-event-log", Denied, "RTMR3"),
        ("at least one line should be included in AAEL", "kbs.agent-event-log", Denied, "RTMR3"),
        ("tee_verify_quote failed: 0xe022", "kbs.collateral", Denied, "register the platform"),
        ("tee_verify_quote failed: 0xe062", "kbs.collateral", Denied, "register the platform"),
        ("tee_verify_quote failed: 0xe065", "kbs.pccs-untrusted", Denied, "use_secure_cert"),
        ("TEE `nvidia` verifier is not implemented.", "kbs.gpu-form", Denied, "trustee.gpu_evidence"),
        ("feature `tdx-verifier` is not enabled", "kbs.no-verifier", Denied, "without a verifier"),
        ("tee_verify_quote failed: 0xe019", "kbs.pccs-unreachable", Transient, "cannot reach its PCCS"),
        ("words of a future release", "kbs.attestation-refused", Denied, "reason is in the message"),
    ];
    for (words, code, class, hint) in rows {
        // A cause that may pass is presented again, three times in all; the others are final at once.
        let times = if matches!(code, "kbs.pccs-unreachable" | "kbs.attestation-refused") { 3 } else { 1 };
        let scenes = (0..times).flat_map(|_| [auth_ok(), refusal(401, "AttestationFailed", words)]);
        let (error, requests) = failed_release(Protocol::Auto, scenes.collect()).await;
        assert_eq!((error.code(), error.class(), requests.len()), (code, class, 2 * times), "{words}");
        assert!(error.hint().contains(hint), "{}", error.hint());
        assert!(
            error.to_string().contains(&format!("attest: HTTP 401 AttestationFailed `{words}` at 2")),
            "{error}"
        );
        let KbsError::AttestationRefused { cause, claims, .. } = &error else { panic!("{error:?}") };
        if *cause == Cause::ReportData {
            assert!(error.hint().contains(&claims.report_data) && claims.report_data.len() == 96);
        }
    }
}

#[tokio::test]
async fn session_lost_during_the_quote_says_so() {
    let scenes = (0..3).flat_map(|_| [auth_ok(), refusal(401, "ExpiredCookie", "The cookie is expired")]);
    let (error, requests) = failed_release(Protocol::Auto, scenes.collect()).await;
    assert_eq!((error.code(), error.class(), requests.len()), ("kbs.session-lost", ErrorClass::Transient, 6));
    assert!(error.hint().contains("gone before the evidence was ready"), "{}", error.hint());
}

#[tokio::test]
async fn request_that_is_too_long_for_what_stands_before_the_broker_says_so() {
    let nginx = answer(Answer::new(413, "<html>413 Request Entity Too Large</html>"));
    let (error, requests) = failed_release(Protocol::Auto, vec![auth_ok(), nginx]).await;
    assert_eq!((error.code(), error.class()), ("kbs.request-too-large", ErrorClass::Config));
    assert!(error.hint().contains("client_max_body_size"), "{}", error.hint());
    assert_eq!(lines(&requests), [AUTH, ATTEST]);
}

#[tokio::test]
async fn dialect_mismatch_names_the_version_that_was_spoken() {
    let plain = answer(Answer::new(400, "Json deserialize error: missing field `tee-pubkey`"));
    let (error, _) = failed_release(Protocol::Auto, vec![auth_ok(), plain]).await;
    assert_eq!((error.code(), error.class()), ("kbs.bad-request", ErrorClass::Config));
    assert!(error.hint().starts_with("protocol 0.4.0 was spoken"), "{}", error.hint());
}

#[tokio::test]
async fn final_refusals_of_a_resource_are_asked_for_once() {
    let rows = [
        (401, "PolicyReject", "Resource not permitted.", "kbs.denied", ErrorClass::Denied),
        (403, "PolicyDeny", "Access denied by policy", "kbs.denied", ErrorClass::Denied),
        (401, "PluginInternalError", "Plugin internal error", "kbs.not-found", ErrorClass::Transient),
        (500, "PluginInternalError", "Plugin internal error", "kbs.not-found", ErrorClass::Transient),
        (404, "ReadSecretFailed", "read secret failed", "kbs.not-found", ErrorClass::Transient),
        (404, "PluginNotFound", "no plugin", "kbs.bad-request", ErrorClass::Config),
        (401, "PolicyEngineFailed", "policy engine", "kbs.server-fault", ErrorClass::Transient),
        (400, "JweError", "JWE failed", "kbs.key-refused", ErrorClass::Config),
        (401, "JWEFailed", "JWE failed", "kbs.key-refused", ErrorClass::Config),
    ];
    for (status, kind, detail, code, class) in rows {
        let key = Key::default();
        let scenes = vec![auth_ok(), attest_ok(&key), refusal(status, kind, detail)];
        let (error, requests) = failed_release(Protocol::Auto, scenes).await;
        assert_eq!(lines(&requests), [AUTH, ATTEST, GET], "{kind}");
        assert_eq!((error.code(), error.class()), (code, class), "{kind}");
        let text = error.to_string();
        assert!(text.contains(&format!("resource: HTTP {status} {kind} `{detail}` at 2")), "{text}");
    }
}

#[tokio::test]
async fn denial_tells_the_operator_that_attestation_succeeded() {
    let scenes =
        vec![auth_ok(), attest_ok(&Key::default()), refusal(403, "PolicyDeny", "Access denied by policy")];
    let (error, _) = failed_release(Protocol::Auto, scenes).await;
    assert!(
        error.to_string().starts_with(&format!("the key broker's policy denies {RESOURCE} (")),
        "{error}"
    );
    assert!(error.hint().starts_with("attestation succeeded, authorization did not: "), "{}", error.hint());
    assert!(error.hint().contains("see the KBS log at 2"), "{}", error.hint());
}

#[tokio::test]
async fn answers_that_are_not_a_brokers_say_what_the_base_url_looks_like() {
    let html =
        || answer(Answer::new(404, "<html>\u{1b}[31mNot Found</html>").header("content-type", "text/html"));
    let (error, _) = failed_release(Protocol::Auto, vec![html()]).await;
    assert_eq!((error.code(), error.class()), ("kbs.not-a-broker", ErrorClass::Config));
    assert!(error.to_string().contains("auth: HTTP 404 `<html> [31mNot Found</html>` at 2"), "{error}");
    assert!(error.hint().contains("http://gateway:8081/api"), "{}", error.hint());

    let gateway = answer(Answer::new(401, json!({ "error": "missing api key" }).to_string()));
    let (error, _) = failed_release(Protocol::Auto, vec![gateway]).await;
    assert!(error.to_string().contains("auth: HTTP 401 `missing api key` at 2"), "{error}");

    let balancer = answer(Answer::new(502, "<html>Bad Gateway</html>"));
    let (error, requests) = failed_release(Protocol::Auto, vec![balancer]).await;
    assert_eq!((error.code(), error.class(), requests.len()), ("kbs.server-fault", ErrorClass::Transient, 1));

    let plain = answer(Answer::new(400, "Json deserialize error: invalid type: map"));
    let (error, _) = failed_release(Protocol::Auto, vec![plain]).await;
    assert_eq!((error.code(), error.class()), ("kbs.bad-request", ErrorClass::Config));
}

#[tokio::test]
async fn refused_evidence_is_presented_three_times_and_then_final() {
    let scenes = (0..3).flat_map(|_| {
        [auth_ok(), refusal(502, "AttestationError", "Attestation error: RCAR handshake Attest failed")]
    });
    let (error, requests) = failed_release(Protocol::V0_4_0, scenes.collect()).await;
    assert_eq!(lines(&requests), [AUTH, ATTEST, AUTH, ATTEST, AUTH, ATTEST]);
    assert_eq!((error.code(), error.class()), ("kbs.attestation-refused", ErrorClass::Denied));
    assert!(
        error.hint().starts_with("this release of the KBS hides the reason: see the KBS and AS logs at 2")
    );
}
