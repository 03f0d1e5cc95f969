//! Claim: stock TNG clients, the oldest and the newest there are, reach the inference service through the service port: both
//! transports, attested and not, requests and raw bytes, large bodies both ways, half-close, server-sent events.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
mod common;
#[path = "common/port.rs"]
mod port;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/tng.rs"]
mod tng;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use backend::{Backend, pattern, sha256, until};
use cai::attest::{AttestError, Attester, Digest, Evidence, Tee, Verifier};
use cai::config::CertificateRule::{self, Auto, Current, Legacy};
use cai::config::Entrance;
use cai::gateway::Gateway;
use cai::ratls::identity::{Identity, Recipe};
use common::free;
use port::serve;
use sandbox::{Builder, Sandbox};
use serde_json::{Value, json};
use tng::{NEWEST, Tng, VERSIONS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Semaphore;

/// Large enough to fill every window on the way many times.
const LEN: usize = 12 << 20;

/// What the client does with our certificate: nothing, or ask a verifier of its own that accepts any sound sample evidence
/// which binds the certificate's key (tng.md 12.2, 12.3).
fn trusting(attested: bool) -> Value {
    match attested {
        false => json!({"no_ra": true}),
        true => json!({"verify": {"as_type": "builtin", "attestation_policy": {"type": "trust_all"}}}),
    }
}

/// A client: an HTTP proxy at the first address, and a mapping from the second to `port`.
fn client(
    version: &str,
    multiplex: bool,
    trust: &Value,
    port: SocketAddr,
) -> Option<(Tng, SocketAddr, SocketAddr)> {
    let binary = tng::binary(version)?;
    let (proxy, mapped) = (free(), free());
    let address = |at: SocketAddr| json!({"host": at.ip().to_string(), "port": at.port()});
    let entrance = |kind: &str, place: Value| {
        let mut entrance = json!({kind: place, "rats_tls": {"multiplex": multiplex}});
        entrance.as_object_mut().unwrap().extend(trust.as_object().unwrap().clone());
        entrance
    };
    let config = json!({"add_ingress": [
        entrance("http_proxy", json!({"proxy_listen": address(proxy)})),
        entrance("mapping", json!({"in": address(mapped), "out": address(port)})),
    ]});
    let tng = tokio::task::block_in_place(|| Tng::launch(&binary, &config, mapped));
    Some((tng, proxy, mapped))
}

async fn curl(proxy: SocketAddr, arguments: &[&str]) -> Vec<u8> {
    let proxy = format!("http://{proxy}");
    let output = Command::new("curl")
        .args(["-sS", "-m", "60", "--noproxy", "", "-x", &proxy])
        .args(arguments)
        .output()
        .await;
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Everything a client can do.
async fn exercise(version: &str, multiplex: bool, attested: bool) {
    let what = format!("tng {version}, multiplex {multiplex}, attested {attested}");
    let ticks = Arc::new(Semaphore::new(0));
    let http = Backend::http(ticks.clone()).await;
    let (gateway, at) = serve(Auto, http.at, &[]).await;
    let Some((_tng, proxy, mapped)) = client(version, multiplex, &trusting(attested), at) else { return };
    let url = |path: &str| format!("http://{at}{path}");
    assert_eq!(curl(proxy, &[&url("/v1/models")]).await, b"/v1/models", "{what}");
    let body = curl(proxy, &[&url(&format!("/big/{LEN}"))]).await;
    assert_eq!(sha256(&body), sha256(&pattern(LEN)), "{what}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pattern(LEN)).unwrap();
    let upload = format!("@{}", file.path().display());
    let digest = curl(proxy, &["--data-binary", &upload, &url("/hash")]).await;
    assert_eq!(String::from_utf8(digest).unwrap(), sha256(&pattern(LEN)), "{what}");

    // An event is there before the next one is made.
    let mut stream = TcpStream::connect(mapped).await.unwrap();
    stream.write_all(b"GET /events/3 HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut seen = String::new();
    for event in 0..3 {
        ticks.add_permits(1);
        while !seen.contains(&format!("data: {event}\n\n")) {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            assert_ne!(read, 0, "{what}: ended after {seen:?}");
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        assert!(!seen.contains(&format!("data: {}\n\n", event + 1)), "{what}");
    }
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "{what}: the end did not follow the last event");
    let snapshot = gateway.snapshot();
    assert!(snapshot.streams_total >= 4, "{what}: {snapshot:?}");
    if multiplex {
        assert!(snapshot.handshakes_done <= 2, "{what}: one tunnel for each way in, {snapshot:?}");
    } else {
        assert_eq!(snapshot.handshakes_done, snapshot.streams_total, "{what}");
    }
    half_close(version, multiplex, attested, &what).await;
}

/// The client ends, and the answer comes after that.
async fn half_close(version: &str, multiplex: bool, attested: bool, what: &str) {
    let digest = Backend::digest().await;
    let (_gateway, at) = serve(Auto, digest.at, &[]).await;
    let Some((_tng, _, mapped)) = client(version, multiplex, &trusting(attested), at) else { return };
    let mut stream = TcpStream::connect(mapped).await.unwrap();
    stream.write_all(&pattern(1 << 20)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, sha256(&pattern(1 << 20)), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_client_attests_us_in_both_transports() {
    exercise(NEWEST, true, true).await;
    exercise(NEWEST, false, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_attest_nobody_get_through_in_both_transports() {
    for version in VERSIONS {
        exercise(version, true, false).await;
    }
    exercise(VERSIONS[0], false, false).await;
}

/// The application gets nothing, and neither does the backend.
async fn is_refused(rule: CertificateRule) {
    let echo = Backend::echo().await;
    let (gateway, at) = serve(rule, echo.at, &[]).await;
    let Some((tng, _, mapped)) = client(NEWEST, true, &trusting(true), at) else { return };
    let mut stream = TcpStream::connect(mapped).await.unwrap();
    let _ = stream.write_all(b"a secret prompt").await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");
    until("tng to say why", || tng.log().contains("untime")).await;
    assert_eq!((echo.connections(), gateway.snapshot().streams_total), (0, 0));
    until("the refusal to be counted", || gateway.snapshot().refused >= 1).await;
}

/// Sample evidence as long as that of a TD with a long event log and eight GPUs.
struct Long(Arc<dyn Attester>);

impl Attester for Long {
    fn tee(&self) -> Tee {
        self.0.tee()
    }

    fn device_evidence(&self, digest: &Digest) -> Result<String, AttestError> {
        self.0.device_evidence(digest)
    }

    fn evidence(&self, digest: &Digest, verifier: Verifier) -> Result<Evidence, AttestError> {
        let Evidence { object, claims } = self.0.evidence(digest, verifier)?;
        let mut object: Value = serde_json::from_str(object.get()).unwrap();
        object["padding"] = "x".repeat(400_000).into();
        Ok(Evidence { object: serde_json::value::to_raw_value(&object).unwrap(), claims })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn evidence_of_400_kb_is_taken_by_the_newest_client() {
    let digest = Backend::digest().await;
    let recipe = port::recipe(Auto);
    let recipe = Recipe { attester: Arc::new(Long(recipe.attester.clone())), ..recipe };
    let identity = Identity::start(recipe, Duration::from_secs(600)).await.unwrap();
    let entrance = Entrance::Mapping { listen: "127.0.0.1:0".parse().unwrap(), backend: digest.at };
    let gateway = Gateway::start(&port::settings(Auto, &[]), &entrance, identity.fresh()).unwrap();
    for multiplex in [true, false] {
        let Some((_tng, _, mapped)) = client(NEWEST, multiplex, &trusting(true), gateway.listening()[0])
        else {
            return;
        };
        let mut stream = TcpStream::connect(mapped).await.unwrap();
        stream.write_all(b"prompt").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, sha256(b"prompt"), "multiplex {multiplex}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn newest_client_refuses_the_legacy_certificate() {
    is_refused(Legacy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_gets_through_by_the_verdict_of_an_attestation_service() {
    // Which TNG fetches from the service, and then holds its verdicts against.
    let directory = tempfile::tempdir().unwrap();
    let signer = directory.path().join("signer.pem");
    let sandbox = Sandbox::start(Builder::default().with(&["--token-cert-out", signer.to_str().unwrap()]));
    let verify = json!({"verify": {"as_addr": format!("{}/as/", sandbox.kbs), "policy_ids": ["default"]}});
    for version in VERSIONS {
        // Neither says by its TLS which of the two certificates it takes in a multiplexed tunnel.
        for (multiplex, rule) in [(true, Current), (false, Auto)] {
            let digest = Backend::digest().await;
            let (_gateway, at) = serve(rule, digest.at, &[]).await;
            let Some((tng, _, mapped)) = client(version, multiplex, &verify, at) else { return };
            let mut stream = TcpStream::connect(mapped).await.unwrap();
            stream.write_all(b"prompt").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer).await;
            assert_eq!(answer, sha256(b"prompt"), "{version}, multiplex {multiplex}: {}", tng.log());
        }
    }
}
