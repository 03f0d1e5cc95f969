//! Claim: whatever answers in the broker's place, the client gives a bounded, typed error in bounded time, trusts nobody
//! it was not told to trust, and shows no secret in logs, errors or `Debug`.

#![cfg(feature = "sandbox")]

#[path = "common/kbs_scenes.rs"]
mod kbs_scenes;
#[path = "common/log.rs"]
mod log;
#[path = "common/scripted.rs"]
mod scripted;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use cai::attest::{Attester, sample_attester};
use cai::config::{Protocol, Trustee};
use cai::error::{ErrorClass, Fault, chain};
use cai::kbs::{Client, KbsError, ResourceUri, Step};
use kbs_scenes::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use scripted::{Answer, Manner, Request, Scene, Server, answer};
use serde_json::{Value, json};
use tracing_subscriber::util::SubscriberInitExt as _;

fn sample() -> Arc<dyn Attester> {
    sample_attester().unwrap()
}

fn uri() -> ResourceUri {
    ResourceUri::parse(RESOURCE).unwrap()
}

async fn released(config: &Trustee) -> Result<(), KbsError> {
    Client::new(config)?.release(sample(), &uri(), |_| {}).await.map(|_| ())
}

async fn failed_release(protocol: Protocol, scenes: Vec<Scene>) -> (KbsError, Vec<Request>) {
    let server = Server::start(scenes);
    let error = released(&trustee_of(&server, protocol, None)).await.unwrap_err();
    (error, server.finish())
}

#[tokio::test]
async fn envelope_with_a_bad_tag_is_corrupt_and_not_asked_for_again() {
    let key = Key::default();
    let damaged = envelope_of(&key, SECRET, |jwe| jwe["tag"] = json!("AAAAAAAAAAAAAAAAAAAAAA"));
    let (error, requests) = failed_release(Protocol::Auto, vec![auth_ok(), attest_ok(&key), damaged]).await;
    assert_eq!(lines(&requests), [AUTH, ATTEST, GET]);
    assert_eq!((error.code(), error.class()), ("kbs.jwe", ErrorClass::Corrupt));
    assert!(
        chain(&error).ends_with(": the JWE does not open with the key pair offered"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn rsa1_5_padding_failure_looks_like_any_other_damage() {
    let damages: [fn(&mut Value); 3] = [
        |jwe| jwe["encrypted_key"] = json!(URL_SAFE_NO_PAD.encode([0x11; 256])),
        |jwe| jwe["encrypted_key"] = json!(URL_SAFE_NO_PAD.encode([0x11; 7])),
        |jwe| jwe["iv"] = json!("AAAAAAAAAAAAAAAA"),
    ];
    for damage in damages {
        let key = Key::default();
        let scenes = vec![auth_ok(), attest_ok(&key), envelope_of(&key, SECRET, damage)];
        let (error, _) = failed_release(Protocol::V0_1_0, scenes).await;
        assert_eq!(error.class(), ErrorClass::Corrupt);
        assert!(
            chain(&error).ends_with(": the JWE does not open with the key pair offered"),
            "{}",
            chain(&error)
        );
    }
}

#[tokio::test]
async fn legacy_envelope_after_a_0_4_0_handshake_is_refused() {
    let key = Key::default();
    let legacy = envelope_of(&key, SECRET, |jwe| {
        jwe["protected"] = json!(r#"{"alg":"RSA1_5","enc":"A256GCM"}"#);
        jwe["tag"] = json!("");
    });
    let (error, _) = failed_release(Protocol::Auto, vec![auth_ok(), attest_ok(&key), legacy]).await;
    assert!(chain(&error).ends_with(": the JWE is in the legacy form, which protocol 0.4.0 does not have"));
}

#[tokio::test]
async fn token_about_another_handshake_ends_it_before_the_secret_is_asked_for() {
    type Forge = fn(&Value) -> String;
    let tokens: [(Forge, &str); 4] = [
        (
            |jwk| token("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", jwk),
            "about another nonce than this handshake's",
        ),
        (
            |_| token(NONCE, &json!({ "kty": "EC", "x": "eA", "y": "eQ" })),
            "about another TEE key than this handshake's",
        ),
        (|_| token(NONCE, &Value::Null), "about another TEE key than this handshake's"),
        (|_| "not.a.token".to_owned(), "is not a JSON Web Token"),
    ];
    for (token, text) in tokens {
        let lying: Scene =
            Box::new(move |request| token_answer(&token(&request.json()["runtime-data"]["tee-pubkey"])));
        let (error, requests) = failed_release(Protocol::Auto, vec![auth_ok(), lying]).await;
        assert_eq!(lines(&requests), [AUTH, ATTEST]);
        assert_eq!((error.code(), error.class()), ("kbs.token", ErrorClass::Corrupt));
        assert!(chain(&error).ends_with(text), "{}", chain(&error));
    }
}

#[tokio::test]
async fn answers_longer_than_their_bound_are_refused_however_they_are_framed() {
    let long = |limit: usize, manner: Manner| answer(Answer::new(200, vec![b' '; limit + 1]).manner(manner));
    for chunked in [false, true] {
        let manner = || if chunked { Manner::Chunked(5000) } else { Manner::Plain };
        for (before, limit, step) in
            [(0, 16 << 10, Step::Auth), (1, 1 << 20, Step::Attest), (2, 1 << 20, Step::Resource)]
        {
            let key = Key::default();
            let mut scenes: Vec<Scene> = vec![auth_ok(), attest_ok(&key)];
            scenes.truncate(before);
            scenes.push(long(limit, manner()));
            let (error, _) = failed_release(Protocol::Auto, scenes).await;
            let expected = (step, limit);
            assert!(
                matches!(&error, KbsError::AnswerTooLarge { step, limit, .. } if (*step, *limit) == expected),
                "{error:?}"
            );
        }
    }
}

#[tokio::test]
async fn answer_of_exactly_its_bound_is_read() {
    let mut body = json!({ "nonce": NONCE, "extra-params": "" }).to_string().into_bytes();
    body.resize(16 << 10, b' ');
    let key = Key::default();
    let scenes = vec![
        answer(Answer::new(200, body).manner(Manner::Chunked(4096))),
        attest_ok(&key),
        resource_ok(&key, SECRET),
    ];
    let server = Server::start(scenes);
    released(&trustee_of(&server, Protocol::Auto, None)).await.unwrap();
    server.finish();
}

#[tokio::test]
async fn refusal_of_any_length_is_cut_to_what_an_operator_reads() {
    let (error, _) =
        failed_release(Protocol::Auto, vec![answer(Answer::new(500, vec![b'x'; 1 << 20]))]).await;
    let KbsError::ServerFault { refusal: cut } = &error else { panic!("{error:?}") };
    assert_eq!(cut.detail.chars().count(), 201);
    let detail = "y".repeat(60_000);
    let (error, _) = failed_release(Protocol::V0_4_0, vec![refusal(500, "HTTPFailed", &detail)]).await;
    let KbsError::ServerFault { refusal: cut } = &error else { panic!("{error:?}") };
    assert_eq!((cut.kind.as_str(), cut.detail.chars().count()), ("HTTPFailed", 2049));
}

#[tokio::test]
async fn malformed_answers_name_their_step_and_quote_nothing() {
    let key = Key::default();
    let planted = json!("eyJwbGFudGVk.token.text").to_string();
    let rows: [(Vec<Scene>, &str); 3] = [
        (vec![answer(Answer::new(200, "<html>login</html>"))], "auth: malformed answer at 2"),
        (vec![answer(Answer::new(200, r#"{"nonce":"AA=="}"#))], "auth: malformed answer at 2"),
        (vec![auth_ok(), answer(Answer::new(200, planted))], "attest: malformed answer at 2"),
    ];
    for (scenes, text) in rows {
        let (error, _) = failed_release(Protocol::Auto, scenes).await;
        assert_eq!((error.code(), error.class()), ("kbs.malformed", ErrorClass::Transient));
        assert!(error.to_string().starts_with(text), "{error}");
        assert!(!format!("{} {error:?}", chain(&error)).contains("eyJwbGFudGVk"), "{error:?}");
    }
    let html = answer(Answer::new(200, "<html>login</html>"));
    let (error, _) = failed_release(Protocol::Auto, vec![auth_ok(), attest_ok(&key), html]).await;
    assert!(chain(&error).ends_with(": the member `(whole)` of the JWE is malformed"), "{}", chain(&error));
}

#[tokio::test]
async fn redirect_is_refused_and_its_target_never_contacted() {
    let target = Server::start(vec![]);
    for status in [301, 302, 303, 307, 308] {
        let location = format!("http://{}/kbs/v0/auth?token=planted", target.address);
        let scene = answer(Answer::new(status, "").header("location", location));
        let (error, requests) = failed_release(Protocol::Auto, vec![scene]).await;
        assert_eq!(lines(&requests), [AUTH]);
        assert_eq!((error.code(), error.class()), ("kbs.redirected", ErrorClass::Config));
        let text = format!("auth: HTTP {status} redirects to http://{}/kbs/v0/auth, at 2", target.address);
        assert!(error.to_string().starts_with(&text), "{error}");
    }
    assert_eq!(target.finish().len(), 0);
}

#[tokio::test]
async fn slow_answers_end_at_the_configured_time() {
    let slow: [fn() -> Scene; 2] = [
        || answer(Answer::new(200, "").manner(Manner::Silent)),
        || answer(Answer::new(200, vec![b' '; 10_000]).manner(Manner::Drip(Duration::from_millis(20)))),
    ];
    for scene in slow {
        let server = Server::start(vec![scene()]);
        let config =
            Trustee { timeout: Duration::from_millis(400), ..trustee_of(&server, Protocol::Auto, None) };
        let start = Instant::now();
        let error = released(&config).await.unwrap_err();
        let waited = start.elapsed();
        assert!((Duration::from_millis(350)..Duration::from_secs(10)).contains(&waited), "{waited:?}");
        assert_eq!((error.code(), error.class()), ("kbs.unreachable", ErrorClass::Transient));
        assert!(error.hint().contains("did not answer in time (trustee.timeout_secs)"), "{}", error.hint());
        server.finish();
    }
}

#[tokio::test]
async fn connection_refused_or_cut_is_transient_and_names_the_url() {
    let (_held, address) = deaf();
    let error = released(&trustee(&format!("http://{address}/base"), Protocol::Auto)).await.unwrap_err();
    assert_eq!((error.code(), error.class()), ("kbs.unreachable", ErrorClass::Transient));
    assert!(
        error
            .to_string()
            .starts_with(&format!("auth: no answer from http://{address}/base/kbs/v0/auth at 2"))
    );
    assert!(
        error.hint().starts_with(&format!("nothing usable listens at http://{address}/")),
        "{}",
        error.hint()
    );
    assert!(chain(&error).to_lowercase().contains("connection refused"), "{}", chain(&error));

    let cut = answer(Answer::new(200, vec![b' '; 100]).manner(Manner::Cut));
    let (error, _) = failed_release(Protocol::Auto, vec![cut]).await;
    assert_eq!((error.code(), error.class()), ("kbs.unreachable", ErrorClass::Transient));
    assert!(!error.hint().contains("in time"), "{}", chain(&error));
}

/// An address that refuses connections as long as the connection is held: its port is taken, but nobody listens there.
fn deaf() -> ((TcpListener, TcpStream), SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let address = stream.local_addr().unwrap();
    ((listener, stream), address)
}

/// A certificate authority and what it signed for `localhost` addresses.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn server(&self, name: &str) -> rustls::ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }

    fn bundle(&self, dir: &Path) -> PathBuf {
        let path = dir.join("ca.pem");
        std::fs::write(&path, self.issuer.pem()).unwrap();
        path
    }
}

#[tokio::test]
async fn https_is_trusted_by_the_ca_bundle_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let bundle = ours.bundle(dir.path());

    let key = Key::default();
    let server = Server::start_tls(
        vec![auth_ok(), attest_ok(&key), resource_ok(&key, SECRET)],
        ours.server("127.0.0.1"),
    );
    let config = Trustee { require_https: true, ..trustee_of(&server, Protocol::Auto, Some(bundle.clone())) };
    let client = Client::new(&config).unwrap();
    assert!(client.server_authenticated());
    let (attested, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(attested.facts().server_authenticated && secret.with(|bytes| bytes == SECRET));
    assert_eq!(lines(&server.finish()), [AUTH, ATTEST, GET]);

    // Another authority's server, and ours under another name: no request gets through to either.
    for tls in [Authority::new().server("127.0.0.1"), ours.server("kbs.example")] {
        let server = Server::start_tls(vec![], tls);
        let error = released(&trustee_of(&server, Protocol::Auto, Some(bundle.clone()))).await.unwrap_err();
        assert_eq!((error.code(), error.class()), ("kbs.untrusted", ErrorClass::Transient));
        assert!(error.hint().contains("trustee.ca_file"), "{}", error.hint());
        assert_eq!(server.finish().len(), 0);
    }

    // Without a bundle the public roots count, and a private authority is none of them.
    let server = Server::start_tls(vec![], ours.server("127.0.0.1"));
    let config = Trustee { ca_file: None, ..trustee_of(&server, Protocol::Auto, Some(bundle)) };
    assert_eq!(released(&config).await.unwrap_err().code(), "kbs.untrusted");
}

#[test]
fn configuration_that_cannot_be_trusted_is_refused_before_any_connection() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        Some(path)
    };
    let https = trustee("https://kbs.example", Protocol::Auto);
    let with_ca = |ca_file| Trustee { ca_file, ..https.clone() };
    let with_url = |url: &str| trustee(url, Protocol::Auto);
    let broken = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let rows = [
        (Trustee { require_https: true, ..with_url("http://kbs.example") }, "kbs.https-required"),
        (with_ca(Some(dir.path().join("absent.pem"))), "kbs.ca-file"),
        (with_ca(file("empty.pem", "")), "kbs.ca-file"),
        (with_ca(file("text.pem", "not a certificate")), "kbs.ca-file"),
        (with_ca(file("broken.pem", broken)), "kbs.ca-file"),
        (with_url("ftp://kbs.example"), "kbs.base-url"),
        (with_url("http://kbs.example/kbs/v0"), "kbs.base-url"),
        (with_url("http://kbs.example/x?y"), "kbs.base-url"),
        (with_url("http://kbs.example/x#y"), "kbs.base-url"),
        (with_url("http://user:planted@kbs.example"), "kbs.base-url"),
    ];
    for (config, code) in rows {
        let error = Client::new(&config).err().unwrap();
        assert_eq!((error.code(), error.class()), (code, ErrorClass::Config), "{}", config.url);
        assert!(!format!("{error} {error:?}").contains("planted"), "{error:?}");
    }
    assert!(!Client::new(&with_url("http://kbs.example")).unwrap().server_authenticated());
}

/// Environment variables are read when a process starts using them, so the handshake runs in a child with them set.
#[test]
fn proxy_and_trust_variables_of_the_environment_are_not_used() {
    let (_held, address) = deaf();
    let nobody = format!("http://{address}");
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "https_is_trusted_by_the_ca_bundle_alone", "--nocapture"])
        .envs(
            ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
                .map(|name| (name, &nobody)),
        )
        .env("SSL_CERT_FILE", "/nonexistent")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
async fn nothing_secret_is_in_the_log_or_in_debug_of_anything_public() {
    let log = log::Log::default();
    let writer = log.clone();
    // The whole process's log at its most talkative, that of the libraries included.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish()
        .init();

    let key = Key::default();
    let server = Server::start(vec![
        auth_ok(),
        attest_ok(&key),
        resource_ok(&key, b"planted-plaintext"),
        refusal(403, "PolicyDeny", "Access denied by policy"),
        refusal(401, "TokenNotFound", "Attestation Token not found"),
        // Asked once more, with the token as a header.
        refusal(401, "TokenVerifierError", "Token Verifier error"),
    ]);
    let config = trustee_of(&server, Protocol::Auto, None);
    let client = Client::new(&config).unwrap();
    let (attested, secret) = client.release(sample(), &uri(), |_| {}).await.unwrap();
    assert!(secret.with(|bytes| bytes == b"planted-plaintext"));
    let mut shown = format!("{client:?} {attested:?} {:?} {:?}", attested.facts(), uri());
    for _ in 0..2 {
        let error = client.secret(&attested, &uri()).await.err().unwrap();
        tracing::error!(error = ?error, "the agent logs errors in this form");
        shown.push_str(&format!("{error:?} {} {}", chain(&error), error.hint()));
    }
    let requests = server.finish();
    let body = requests[1].json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let report_data = text(&body["tee-evidence"]["primary_evidence"]["report_data"]);
    let token = token(NONCE, &key.jwk());
    let planted = [
        ("secret", "planted-plaintext".to_owned()),
        ("secret in base64", STANDARD.encode("planted-plaintext")),
        ("cookie", COOKIE.split_once('=').unwrap().1.to_owned()),
        ("evidence", report_data),
        ("token claims", token.split('.').nth(1).unwrap()[64..].to_owned()),
        ("token signature", "c2lnbmF0dXJl".to_owned()),
    ];
    shown.push_str(&log.text());
    assert!(shown.contains("kbs.attested") && shown.contains("PolicyDeny"), "the log was not captured");
    for (what, needle) in planted {
        assert!(!shown.contains(&needle), "{what} is shown");
    }
    // As bytes in Rust's debug notation, too.
    assert!(!shown.contains(&format!("{:?}", b"planted-plaintext").trim_matches(['[', ']']).to_owned()));
}
