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
use cai::config::{KeyAlgorithm, Protocol, Trustee};
use cai::error::{ErrorClass, Fault};
use cai::kbs::wire::Dialect;
use cai::kbs::{Client, KbsError, ResourceUri};
use kbs_scenes::*;
use scripted::{Request, Scene, Server, answer};
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
    assert_eq!((facts.server_authenticated, facts.token_id.as_str()), (false, "token-1"));
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
async fn attestation_is_named_by_the_hash_of_what_was_sent_and_of_a_token_without_an_id() {
    for nothing in [json!({}), json!({ "jti": "" }), json!({ "jti": 7 })] {
        let text = unsigned_token(&nothing);
        let server = Server::start(vec![auth_ok(), answer(token_answer(&text))]);
        let attested = client(&server, Protocol::Auto).attest(sample()).await.unwrap();
        let sha256 = |text: &str| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text));
        assert_eq!(attested.facts().token_id, format!("sha256:{}", sha256(&text)));
        let body = String::from_utf8(server.finish()[1].body.clone()).unwrap();
        let sent = body.split_once("\"primary_evidence\":").unwrap().1;
        let sent = sent.split_once(",\"additional_evidence\"").unwrap().0;
        assert_eq!(attested.facts().claims.evidence_sha256, sha256(sent));
    }
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
async fn handshakes_of_0_1_1_and_0_2_0_send_evidence_as_an_object_to_the_key_of_their_version() {
    for (protocol, version, alg) in
        [(Protocol::V0_1_1, "0.1.1", "RSA1_5"), (Protocol::V0_2_0, "0.2.0", "ECDH-ES+A256KW")]
    {
        let key = Key::default();
        let server = Server::start(vec![auth_ok(), attest_ok(&key), resource_ok(&key, SECRET)]);
        let (attested, secret) = client(&server, protocol).release(sample(), &uri(), |_| {}).await.unwrap();
        assert!(secret.with(|bytes| bytes == SECRET));
        let facts = attested.facts();
        assert_eq!((facts.dialect.version(), facts.algorithm, facts.downgraded), (version, alg, false));
        let requests = server.finish();
        assert_eq!(requests[0].json()["version"], version);
        let body = requests[1].json();
        assert_eq!(body["tee-pubkey"]["alg"], alg);
        assert!(body["tee-evidence"]["svn"].is_string() && body.get("runtime-data").is_none());
    }
}

#[tokio::test]
async fn auto_follows_every_text_of_a_version_mismatch_shows_the_downgrade_and_remembers_it() {
    let new = |version: &str| NEW_MISMATCH.replace("=0.1.0", &format!("={version}"));
    let cases = [
        (401, "ProtocolVersion", OLD_MISMATCH.to_owned(), "0.1.0"),
        (401, "AttestationError", new("0.1.0"), "0.1.0"),
        (500, "AttestationError", new("0.1.0"), "0.1.0"),
        (502, "AttestationError", new("0.1.0"), "0.1.0"),
        (401, "AttestationError", new("0.1.1"), "0.1.1"),
        (401, "AttestationError", new("0.2.0"), "0.2.0"),
    ];
    for (status, kind, detail, version) in cases {
        let key = Key::default();
        let scenes =
            vec![refusal(status, kind, &detail), auth_ok(), attest_ok(&key), auth_ok(), attest_ok(&key)];
        let server = Server::start(scenes);
        let client = client(&server, Protocol::Auto);
        for _ in 0..2 {
            let attested = client.attest(sample()).await.unwrap();
            assert_eq!((attested.facts().dialect.version(), attested.facts().downgraded), (version, true));
        }
        let requests = server.finish();
        let versions: Vec<Value> = requests
            .iter()
            .filter(|r| r.path.ends_with("/auth"))
            .map(|r| r.json()["version"].clone())
            .collect();
        assert_eq!(versions, ["0.4.0", version, version], "{status} {kind}");
    }
}

#[tokio::test]
async fn key_algorithm_that_a_version_does_not_have_is_an_error_that_names_both() {
    let nobody = trustee("http://127.0.0.1:9", Protocol::V0_1_0);
    let error = Client::new(&Trustee { key_algorithm: KeyAlgorithm::RsaOaep256, ..nobody }).err().unwrap();
    assert_eq!((error.code(), error.class()), ("kbs.key-algorithm", ErrorClass::Config));
    assert_eq!(error.to_string(), "protocol 0.1.0 has no key algorithm RSA-OAEP-256");

    // The same when the broker asks for that version, in so many words or by a refusal that may mean it.
    let server = Server::start(vec![refusal(401, "ProtocolVersion", OLD_MISMATCH)]);
    let config =
        Trustee { key_algorithm: KeyAlgorithm::EcdhEsA256Kw, ..trustee_of(&server, Protocol::Auto, None) };
    let error = Client::new(&config).unwrap().attest(sample()).await.err().unwrap();
    assert_eq!(error.to_string(), "protocol 0.1.0 has no key algorithm ECDH-ES+A256KW");
    assert_eq!(lines(&server.finish()), [AUTH]);
    let server = Server::start(vec![refusal(401, "AttestationError", "Auth failed")]);
    let config =
        Trustee { key_algorithm: KeyAlgorithm::EcdhEsA256Kw, ..trustee_of(&server, Protocol::Auto, None) };
    let error = Client::new(&config).unwrap().attest(sample()).await.err().unwrap();
    assert_eq!((error.code(), lines(&server.finish())), ("kbs.auth-refused", vec![AUTH.to_owned()]));
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
        "cai speaks 0.4.0, 0.2.0, 0.1.1, 0.1.0, the key broker 0.3.0: use any release of Alibaba's Trustee, or one of \
         upstream's from v0.9 on"
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
    let requests = other.finish();
    assert_eq!(lines(&requests), [GET], "nor is the token");
    assert_eq!((requests[0].header("cookie"), requests[0].header("authorization")), (None, None));
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
async fn lost_session_is_asked_once_more_with_the_token_and_without_cookies() {
    let key = Key::default();
    let server = Server::start(vec![
        auth_ok(),
        attest_ok(&key),
        refusal(401, "TokenNotFound", "Attestation Token not found"),
        resource_ok(&key, SECRET),
    ]);
    let (_, secret) = client(&server, Protocol::Auto).release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(secret.with(|bytes| bytes == SECRET));
    let requests = server.finish();
    assert_eq!(lines(&requests), [AUTH, ATTEST, GET, GET]);
    assert_eq!((requests[2].header("cookie"), requests[2].header("authorization")), (Some(COOKIE), None));
    let bearer = requests[3].header("authorization").unwrap();
    assert_eq!(requests[3].header("cookie"), None);
    assert!(bearer.starts_with("Bearer ey") && bearer.ends_with(".c2lnbmF0dXJl"), "{bearer}");
}

#[tokio::test]
async fn token_that_is_over_or_too_long_is_never_sent() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // Expired within the clock skew that a fresh token is allowed.
    let over = json!({ "exp": now - 5 });
    let long = json!({ "exp": now + 300, "filler": "x".repeat(8000) });
    for claims in [over, long] {
        let server = Server::start(vec![
            auth_ok(),
            answer(token_answer(&unsigned_token(&claims))),
            refusal(401, "TokenNotFound", "Attestation Token not found"),
        ]);
        let client = client(&server, Protocol::Auto);
        let attested = client.attest(sample()).await.unwrap();
        assert_eq!(client.secret(&attested, &uri()).await.err().unwrap().code(), "kbs.session-lost");
        assert_eq!(lines(&server.finish()), [AUTH, ATTEST, GET]);
    }
}

#[tokio::test]
async fn lost_session_whose_token_is_refused_leads_to_one_new_handshake_with_a_new_key() {
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
            refusal(401, "TokenVerifierError", "Token Verifier error"),
            auth_ok(),
            attest_ok(&key),
            resource_ok(&key, SECRET),
        ]);
        let (_, secret) = client(&server, Protocol::Auto).release(sample(), &uri(), |_| {}).await.unwrap();
        assert!(secret.with(|bytes| bytes == SECRET));
        let requests = server.finish();
        assert_eq!(lines(&requests), [AUTH, ATTEST, GET, GET, AUTH, ATTEST, GET], "{kind}");
        assert_eq!(requests[4].header("cookie"), None);
        assert_ne!(requests[1].json()["runtime-data"], requests[5].json()["runtime-data"]);
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
            refusal(401, "TokenVerifierError", "Token Verifier error"),
        ]);
    }
    let (error, requests) = failed_release(Protocol::Auto, scenes).await;
    assert_eq!(requests.len(), 12);
    assert!(error.to_string().contains("TokenNotFound"), "what was said of the session: {error}");
    assert_eq!((error.code(), error.class()), ("kbs.session-lost", ErrorClass::Transient));
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
