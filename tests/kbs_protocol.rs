//! Claim: the client does the handshake as the brokers of both generations want it, follows their refusals as the
//! specification says, and never loops on a final "no".
//!
//! Against a scripted server (`common/scripted.rs`). An exchange recorded with a running Trustee is in `kbs_recorded.rs`,
//! hostile answers and networks in `kbs_hostile.rs`.

#![cfg(feature = "sandbox")]

#[path = "common/kbs_scenes.rs"]
mod kbs_scenes;
#[path = "common/scripted.rs"]
mod scripted;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cai::attest::{AttestError, Attester, Claims, Digest, Evidence, Tee, Verifier, sample_attester};
use cai::config::Protocol;
use cai::error::{ErrorClass, Fault};
use cai::kbs::wire::Dialect;
use cai::kbs::{Client, KbsError, ResourceUri};
use kbs_scenes::*;
use scripted::{Answer, Request, Scene, Server, answer};
use serde_json::{Value, json};

const OLD_MISMATCH: &str =
    "KBS Client Protocol Version Mismatch: expected version: <=0.1.0, requested version: 0.4.0";
const NEW_MISMATCH: &str = "RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect =0.1.0 while the request is 0.4.0";

fn sample() -> Arc<dyn Attester> {
    sample_attester().unwrap()
}

fn uri() -> ResourceUri {
    ResourceUri::parse(RESOURCE).unwrap()
}

fn client(server: &Server, protocol: Protocol) -> Client {
    Client::new(&trustee_of(server, protocol, None)).unwrap()
}

/// The error of `release` against a script, and the requests it made.
async fn failed_release(protocol: Protocol, scenes: Vec<Scene>) -> (KbsError, Vec<Request>) {
    let server = Server::start(scenes);
    let error = client(&server, protocol).release(sample(), &uri(), |_| {}).await.err().unwrap();
    (error, server.finish())
}

#[tokio::test]
async fn handshake_of_0_4_0_sends_what_the_broker_verifies_and_opens_its_secret() {
    let key = Key::default();
    let server = Server::start(vec![auth_ok(), attest_ok(&key), resource_ok(&key, SECRET)]);
    let client = client(&server, Protocol::Auto);
    let before = SystemTime::now();
    let (attested, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(secret.with(|bytes| bytes == SECRET), "the trailing newline stays");
    let facts = attested.facts();
    assert_eq!((facts.dialect, facts.tee, facts.claims.provider), (Dialect::V0_4_0, Tee::Sample, "sample"));
    assert_eq!((facts.server_authenticated, facts.token_id.as_deref()), (false, Some("token-1")));
    assert!(facts.attested_at >= before && facts.attested_at <= SystemTime::now());
    let left = facts.expires.unwrap().duration_since(before).unwrap();
    assert!((Duration::from_secs(298)..=Duration::from_secs(302)).contains(&left), "{left:?}");

    let requests = server.finish();
    assert_eq!(lines(&requests), [AUTH, ATTEST, GET]);
    assert_eq!(requests[0].body, br#"{"version":"0.4.0","tee":"sample","extra-params":""}"#);
    assert_eq!(requests[0].header("cookie"), None);
    for request in &requests[..2] {
        assert_eq!(request.header("content-type"), Some("application/json"));
    }
    for request in &requests[1..] {
        assert_eq!(request.header("cookie"), Some(COOKIE));
    }
    assert_eq!(requests[2].header("content-type"), None);
    assert_eq!(requests[2].body, b"");
    let user_agent = format!("cai/{}", env!("CARGO_PKG_VERSION"));
    assert!(requests.iter().all(|request| request.header("user-agent") == Some(user_agent.as_str())));
}

#[tokio::test]
async fn handshake_of_0_1_0_uses_rsa_and_opens_the_legacy_envelope() {
    let key = Key::default();
    let server = Server::start(vec![auth_ok(), attest_ok(&key), resource_ok(&key, SECRET)]);
    let (attested, secret) =
        client(&server, Protocol::V0_1_0).release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(secret.with(|bytes| bytes == SECRET));
    assert_eq!(attested.facts().dialect, Dialect::V0_1_0);
    let requests = server.finish();
    assert_eq!(requests[0].body, br#"{"version":"0.1.0","tee":"sample","extra-params":""}"#);
    let body = requests[1].json();
    let mut members: Vec<&String> = body.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["tee-evidence", "tee-pubkey"]);
    assert_eq!((&body["tee-pubkey"]["alg"], &body["tee-pubkey"]["e"]), (&json!("RSA1_5"), &json!("AQAB")));
    assert!(body["tee-evidence"].is_string());
}

#[tokio::test]
async fn auto_follows_every_text_of_a_version_mismatch_and_remembers_the_dialect() {
    let cases = [
        (401, "ProtocolVersion", OLD_MISMATCH),
        (401, "AttestationError", NEW_MISMATCH),
        (500, "AttestationError", NEW_MISMATCH),
        (502, "AttestationError", NEW_MISMATCH),
    ];
    for (status, kind, detail) in cases {
        let key = Key::default();
        let scenes =
            vec![refusal(status, kind, detail), auth_ok(), attest_ok(&key), auth_ok(), attest_ok(&key)];
        let server = Server::start(scenes);
        let client = client(&server, Protocol::Auto);
        for _ in 0..2 {
            let attested = client.attest(sample()).await.unwrap();
            assert_eq!(attested.facts().dialect, Dialect::V0_1_0);
        }
        let requests = server.finish();
        let versions: Vec<Value> = requests
            .iter()
            .filter(|r| r.path.ends_with("/auth"))
            .map(|r| r.json()["version"].clone())
            .collect();
        assert_eq!(versions, ["0.4.0", "0.1.0", "0.1.0"], "{status} {kind}");
    }
}

#[tokio::test]
async fn auto_climbs_again_when_the_broker_has_been_upgraded() {
    let upgraded = NEW_MISMATCH.replace("=0.1.0", "=0.4.0").replace("is 0.4.0", "is 0.1.0");
    let key = Key::default();
    let server = Server::start(vec![
        refusal(502, "AttestationError", NEW_MISMATCH),
        auth_ok(),
        attest_ok(&key),
        refusal(502, "AttestationError", &upgraded),
        auth_ok(),
        attest_ok(&key),
    ]);
    let client = client(&server, Protocol::Auto);
    assert_eq!(client.attest(sample()).await.unwrap().facts().dialect, Dialect::V0_1_0);
    assert_eq!(client.attest(sample()).await.unwrap().facts().dialect, Dialect::V0_4_0);
    server.finish();
}

#[tokio::test]
async fn pinned_protocol_is_never_left() {
    let (error, requests) =
        failed_release(Protocol::V0_4_0, vec![refusal(401, "ProtocolVersion", OLD_MISMATCH)]).await;
    assert_eq!(lines(&requests), [AUTH]);
    assert_eq!((error.code(), error.class()), ("kbs.version-mismatch", ErrorClass::Config));
    let KbsError::VersionMismatch { offered, expected, refusal } = &error else { panic!("{error:?}") };
    assert_eq!((*offered, expected.as_deref()), ("0.4.0", Some("0.1.0")));
    assert_eq!(
        (refusal.status, refusal.kind.as_str(), refusal.detail.as_str()),
        (401, "ProtocolVersion", OLD_MISMATCH)
    );
    assert!(
        error
            .to_string()
            .starts_with("the key broker speaks protocol 0.1.0, cai offered 0.4.0 (auth: HTTP 401 ")
    );
    assert!(
        error.hint().starts_with("trustee.protocol pins 0.4.0: set it to 0.1.0 or auto"),
        "{}",
        error.hint()
    );
}

#[tokio::test]
async fn version_that_cai_does_not_speak_is_an_error_that_names_both() {
    let detail = NEW_MISMATCH.replace("=0.1.0", "=0.3.0");
    let (error, requests) =
        failed_release(Protocol::Auto, vec![refusal(401, "AttestationError", &detail)]).await;
    assert_eq!(lines(&requests), [AUTH]);
    assert_eq!(
        error.hint(),
        "cai speaks 0.4.0 and 0.1.0, the key broker 0.3.0: use Alibaba Trustee v1.6 or later, or v1.0 to v1.5"
    );
}

#[tokio::test]
async fn refusal_that_hides_its_cause_is_tried_once_in_the_old_dialect() {
    let hidden = "Attestation error: RCAR handshake Auth failed";
    let key = Key::default();
    let server = Server::start(vec![refusal(401, "AttestationError", hidden), auth_ok(), attest_ok(&key)]);
    assert_eq!(
        client(&server, Protocol::Auto).attest(sample()).await.unwrap().facts().dialect,
        Dialect::V0_1_0
    );
    server.finish();

    let upgraded = NEW_MISMATCH.replace("=0.1.0", "=0.4.0");
    let scenes = vec![refusal(502, "AttestationError", hidden), refusal(502, "AttestationError", &upgraded)];
    let (error, requests) = failed_release(Protocol::Auto, scenes).await;
    assert_eq!(lines(&requests), [AUTH, AUTH]);
    assert_eq!((error.code(), error.class()), ("kbs.auth-refused", ErrorClass::Transient));
    assert!(error.to_string().contains(hidden), "the first refusal is the one that says something: {error}");
}

#[tokio::test]
async fn cookies_of_others_are_echoed_within_one_handshake_and_dropped_after_it() {
    let sticky = |scene: Scene, value: &'static str| -> Scene {
        Box::new(move |request| {
            scene(request).header("set-cookie", format!("acw_tc={value}; path=/; HttpOnly"))
        })
    };
    let key = Key::default();
    let server = Server::start(vec![
        sticky(auth_ok(), "one"),
        sticky(attest_ok(&key), "two"),
        resource_ok(&key, SECRET),
        auth_ok(),
        attest_ok(&key),
    ]);
    let client = client(&server, Protocol::Auto);
    client.release(sample(), &uri(), |_| {}).await.unwrap();
    client.attest(sample()).await.unwrap();
    let requests = server.finish();
    let cookies: Vec<Option<&str>> = requests.iter().map(|request| request.header("cookie")).collect();
    let (one, two) = (format!("{COOKIE}; acw_tc=one"), format!("{COOKIE}; acw_tc=two"));
    assert_eq!(cookies, [None, Some(one.as_str()), Some(two.as_str()), None, Some(COOKIE)]);
    assert_ne!(
        requests[1].json()["runtime-data"]["tee-pubkey"],
        requests[4].json()["runtime-data"]["tee-pubkey"]
    );
}

#[tokio::test]
async fn cookies_of_one_broker_are_never_sent_to_another() {
    let key = Key::default();
    let ours = Server::start(vec![auth_ok(), attest_ok(&key)]);
    let other = Server::start(vec![refusal(401, "TokenNotFound", "Attestation Token not found")]);
    let attested = client(&ours, Protocol::Auto).attest(sample()).await.unwrap();
    let error = client(&other, Protocol::Auto).secret(&attested, &uri()).await.err().unwrap();
    assert_eq!(error.code(), "kbs.session-lost");
    assert_eq!(other.finish()[0].header("cookie"), None);
}

#[tokio::test]
async fn base_path_and_query_of_the_resource_reach_the_broker_unchanged() {
    let key = Key::default();
    let server = Server::start(vec![auth_ok(), attest_ok(&key), resource_ok(&key, b"")]);
    let config = trustee(&format!("http://{}/release//", server.address), Protocol::Auto);
    let uri = ResourceUri::parse("kbs://ignored.example:1/a/b/c.d?version=1&x=%20").unwrap();
    let (_, secret) = Client::new(&config).unwrap().release(sample(), &uri, |_| {}).await.unwrap();
    assert!(secret.is_empty(), "a resource of no bytes is one");
    let expected =
        ["/auth", "/attest", "/resource/a/b/c.d?version=1&x=%20"].map(|end| format!("/release/kbs/v0{end}"));
    assert_eq!(server.finish().into_iter().map(|request| request.path).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn lost_session_leads_to_one_new_handshake_with_a_new_key() {
    let lost = [
        (401, "InvalidRequest", "parse Authorization header failed: Header"),
        (401, "ExpiredCookie", "The cookie is expired"),
        (401, "TokenNotFound", "Attestation Token not found"),
    ];
    for (status, kind, detail) in lost {
        let key = Key::default();
        let server = Server::start(vec![
            auth_ok(),
            attest_ok(&key),
            refusal(status, kind, detail),
            auth_ok(),
            attest_ok(&key),
            resource_ok(&key, SECRET),
        ]);
        let (_, secret) = client(&server, Protocol::Auto).release(sample(), &uri(), |_| {}).await.unwrap();
        assert!(secret.with(|bytes| bytes == SECRET));
        let requests = server.finish();
        assert_eq!(lines(&requests), [AUTH, ATTEST, GET, AUTH, ATTEST, GET], "{kind}");
        assert_eq!(requests[3].header("cookie"), None);
        assert_ne!(requests[1].json()["runtime-data"], requests[4].json()["runtime-data"]);
    }
}

#[tokio::test]
async fn session_that_is_lost_every_time_ends_after_three_handshakes() {
    let mut scenes = Vec::new();
    for _ in 0..3 {
        let key = Key::default();
        scenes.extend([
            auth_ok(),
            attest_ok(&key),
            refusal(401, "TokenNotFound", "Attestation Token not found"),
        ]);
    }
    let (error, requests) = failed_release(Protocol::Auto, scenes).await;
    assert_eq!(requests.len(), 9);
    assert_eq!((error.code(), error.class()), ("kbs.session-lost", ErrorClass::Transient));
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

#[tokio::test]
async fn refused_evidence_that_is_accepted_next_time_releases_the_secret() {
    let key = Key::default();
    let reason = "verify TEE evidence failed: tee_verify_quote 0xe019";
    let server = Server::start(vec![
        auth_ok(),
        refusal(401, "AttestationFailed", reason),
        auth_ok(),
        attest_ok(&key),
        resource_ok(&key, SECRET),
    ]);
    let (_, secret) = client(&server, Protocol::Auto).release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(secret.with(|bytes| bytes == SECRET));
    server.finish();
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

struct Broken;

impl Attester for Broken {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn device_evidence(&self, _: &Digest) -> Result<String, AttestError> {
        Ok(String::new())
    }

    fn evidence(&self, _: &Digest, _: Verifier) -> Result<Evidence, AttestError> {
        Err(AttestError::NoTee { looked_for: "a quote" })
    }
}

struct Panicking;

impl Attester for Panicking {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn device_evidence(&self, _: &Digest) -> Result<String, AttestError> {
        Ok(String::new())
    }

    fn evidence(&self, _: &Digest, _: Verifier) -> Result<Evidence, AttestError> {
        panic!("a defect in an attester")
    }
}

struct Enormous;

impl Attester for Enormous {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn device_evidence(&self, _: &Digest) -> Result<String, AttestError> {
        Ok(String::new())
    }

    fn evidence(&self, _: &Digest, _: Verifier) -> Result<Evidence, AttestError> {
        let object = serde_json::value::to_raw_value(&"x".repeat(2 << 20))?;
        Ok(Evidence { object, claims: Claims::default() })
    }
}

#[tokio::test]
async fn evidence_that_cannot_be_had_ends_the_handshake_before_attest() {
    let rows: [(Arc<dyn Attester>, &str, ErrorClass); 3] = [
        (Arc::new(Broken), "attest.no-tee", ErrorClass::Config),
        (Arc::new(Panicking), "kbs.worker", ErrorClass::Internal),
        (Arc::new(Enormous), "kbs.evidence-too-large", ErrorClass::Config),
    ];
    for (attester, code, class) in rows {
        let server = Server::start(vec![auth_ok()]);
        let error = client(&server, Protocol::Auto).attest(attester).await.err().unwrap();
        assert_eq!((error.code(), error.class()), (code, class));
        let requests = server.finish();
        assert_eq!(lines(&requests), [AUTH]);
        assert_eq!(requests[0].json()["tee"], "tdx");
    }
}
