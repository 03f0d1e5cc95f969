//! Claim: `cai connect` and the gateway of the daemon are two ends of one tunnel: multiplexed, raw, in both certificate
//! formats; and the identity of the model that the gateway binds is the one that `--expect-model` finds.
#![cfg(feature = "sandbox")]

#[path = "common/connecting.rs"]
mod connecting;
#[path = "common/raw_http.rs"]
mod raw_http;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cai::attest::sample_attester;
use cai::config::{self, CertificateRule, Entrance};
use cai::gateway::Gateway;
use cai::ratls::MODEL_IDENTITY;
use cai::ratls::identity::{Identity, Recipe};
use connecting::Connect;
use raw_http::{Script, answer};
use sandbox::{Builder, Sandbox};

const MODEL: &str = "abababababababababababababababababababababababababababababababab";

/// The gateway, and what keeps its certificates.
struct Server {
    gateway: Gateway,
    _identity: Identity,
}

impl Server {
    async fn start(certificate: CertificateRule, backend: SocketAddr) -> Server {
        let members = [(MODEL_IDENTITY.to_owned(), MODEL.to_owned())].into();
        let recipe =
            Recipe { attester: sample_attester().unwrap(), formats: Gateway::formats(certificate), members };
        let identity = Identity::start(recipe, Duration::from_secs(600)).await.unwrap();
        let entrance = Entrance::Mapping { listen: "127.0.0.1:0".parse().unwrap(), backend };
        let settings = config::Gateway {
            entrance: Some(entrance),
            capture_port: 0,
            certificate,
            refresh: Duration::from_secs(600),
            plaintext_paths: Vec::new(),
            drain: Duration::from_secs(1),
        };
        let gateway = Gateway::start(&settings, &entrance, identity.fresh()).unwrap();
        Server { gateway, _identity: identity }
    }

    fn address(&self) -> SocketAddr {
        self.gateway.listening()[0]
    }
}

struct World {
    sandbox: Sandbox,
    backend: Script,
    signer: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(builder: Builder) -> World {
        let dir = tempfile::tempdir().unwrap();
        let signer = dir.path().join("signer.pem");
        let sandbox = Sandbox::start(builder.with(&["--token-cert-out", signer.to_str().unwrap()]));
        let backend = Script::start(|request| answer("200 OK", &[], request.target.as_bytes()));
        World { sandbox, backend, signer, _dir: dir }
    }

    /// What an application gets for a request to `to` through `cai connect` with these arguments; and its log.
    async fn get(&self, to: SocketAddr, more: &[&str]) -> (u16, String, String) {
        let url = format!("{}/as", self.sandbox.kbs);
        let arguments = ["--as-url", &url, "--as-cert", self.signer.to_str().unwrap()];
        let connect = Connect::start(&[&arguments[..], more].concat());
        let client =
            reqwest::Client::builder().proxy(reqwest::Proxy::http(connect.proxy()).unwrap()).build().unwrap();
        let answer = client.get(format!("http://{to}/v1/models")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap(), connect.log())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_finds_a_certificate_of_the_right_format() {
    let world = World::new(Builder::default());
    for (rule, mode, format) in [
        (CertificateRule::Auto, "auto", "current"),
        (CertificateRule::Auto, "raw", "current"),
        // What TNG up to 2.2.6 offers, so what it needs is shown.
        (CertificateRule::Auto, "multiplex", "legacy"),
        (CertificateRule::Legacy, "auto", "legacy"),
        (CertificateRule::Current, "multiplex", "current"),
    ] {
        let server = Server::start(rule, world.backend.address).await;
        let (status, text, log) = world.get(server.address(), &["--mode", mode]).await;
        assert_eq!((status, text.as_str()), (200, "/v1/models"), "{rule:?} {mode}: {log}");
        assert!(log.contains(&format!("format=\"{format}\"")), "{rule:?} {mode}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_service_judges_both_formats() {
    for builder in
        [Builder::default().protocol("0.1.0"), Builder::default().protocol("0.1.0").with(&["--kbs-oldest"])]
    {
        let world = World::new(builder);
        let server = Server::start(CertificateRule::Auto, world.backend.address).await;
        for mode in ["auto", "multiplex"] {
            let (status, text, _) = world.get(server.address(), &["--mode", mode]).await;
            assert_eq!((status, text.as_str()), (200, "/v1/models"), "{mode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_is_the_expected_one_or_there_is_no_tunnel() {
    let world = World::new(Builder::default());
    let server = Server::start(CertificateRule::Auto, world.backend.address).await;
    let (status, text, _) = world.get(server.address(), &["--expect-model", MODEL]).await;
    assert_eq!((status, text.as_str()), (200, "/v1/models"));
    let other = "cd".repeat(32);
    let (status, text, _) = world.get(server.address(), &["--expect-model", &other]).await;
    assert_eq!(status, 502);
    assert!(
        text.contains(&format!("claim model-identity: expected \"{other}\", the token says \"{MODEL}\"")),
        "{text}"
    );
    let (status, text, _) =
        world.get(server.address(), &["--expect-model", MODEL, "--mode", "multiplex"]).await;
    assert_eq!(status, 502);
    assert!(text.contains("a certificate in the legacy format (TNG up to 2.2.6) cannot carry it"), "{text}");
    assert_eq!(world.backend.requests().len(), 1);
}
