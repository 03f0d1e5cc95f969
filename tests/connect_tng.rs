//! Claim: `cai connect` reaches a service behind the real `tng` (2.6.0 and 2.12.0), multiplexed and raw, with small and
//! large evidence, if and only if it is attested.
//!
//! `tng` is the server's end (egress) with a stand-in attestation agent of the sample TEE; the attestation service is
//! cai-sandbox.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/connecting.rs"]
mod connecting;
#[path = "common/raw_http.rs"]
mod raw_http;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/tng.rs"]
mod tng;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::free;
use connecting::Connect;
use raw_http::{Script, answer};
use sandbox::{Builder, Sandbox};
use serde_json::{Value, json};
use tng::{NEWEST, Tng, VERSIONS, binary};

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended in a test that failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The stand-in attestation agent at `socket`.
fn agent(socket: &Path, log_len: usize) -> Running {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/attestation_agent.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(socket).arg(log_len.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let running = Running(child);
    assert_eq!(line, "ready\n");
    running
}

/// `tng` in front of `backend`: the process, and where it listens.
fn egress(tng: &Path, multiplex: bool, trust: Value, backend: SocketAddr) -> (Tng, SocketAddr) {
    let address = free();
    let mut egress = json!({
        "mapping": {
            "in": {"host": "127.0.0.1", "port": address.port()},
            "out": {"host": "127.0.0.1", "port": backend.port()},
        },
        "rats_tls": {"multiplex": multiplex},
    });
    egress.as_object_mut().unwrap().extend(trust.as_object().unwrap().clone());
    (Tng::launch(tng, &json!({"add_egress": [egress]}), address), address)
}

fn get(proxy: String, to: SocketAddr) -> (u16, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = reqwest::Client::builder().proxy(reqwest::Proxy::http(proxy).unwrap()).build().unwrap();
        let answer = client.get(format!("http://{to}/v1/models")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}

struct Lab {
    dir: tempfile::TempDir,
    sandbox: Sandbox,
    backend: Script,
}

impl Lab {
    fn new() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let signer = dir.path().join("signer.pem");
        let sandbox =
            Sandbox::start(Builder::default().with(&["--token-cert-out", signer.to_str().unwrap()]));
        let backend = Script::start(|request| answer("200 OK", &[], request.target.as_bytes()));
        Lab { dir, sandbox, backend }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn connect(&self, more: &[&str]) -> Connect {
        let (url, signer) = (format!("{}/as", self.sandbox.kbs), self.path("signer.pem"));
        let arguments = ["--as-url", &url, "--as-cert", signer.to_str().unwrap()];
        Connect::start(&[&arguments[..], more].concat())
    }
}

#[test]
fn attested_egress_of_each_version_is_reached_in_each_mode() {
    for version in VERSIONS {
        let Some(tng) = binary(version) else { return };
        let lab = Lab::new();
        // Evidence as of a machine with a short and with a long event log: the latter exceeds what stock TLS libraries take.
        for (log_len, multiplex) in [(0, true), (0, false), (300_000, true)] {
            let socket = lab.path("aa.sock");
            let _agent = agent(&socket, log_len);
            let trust = json!({"attest": {"aa_addr": format!("unix://{}", socket.display())}});
            let (_tng, address) = egress(&tng, multiplex, trust, lab.backend.address);
            for mode in ["auto", if multiplex { "multiplex" } else { "raw" }] {
                let connect = lab.connect(&["--mode", mode]);
                assert_eq!(
                    get(connect.proxy(), address),
                    (200, "/v1/models".to_owned()),
                    "{version} {mode} {log_len}"
                );
            }
            let connect = lab.connect(&["--mode", if multiplex { "raw" } else { "multiplex" }]);
            let (status, text) = get(connect.proxy(), address);
            assert_eq!(status, 502);
            assert!(
                text.starts_with(&format!("cai connect: no attested connection to {address}: TLS handshake")),
                "{text}"
            );
            std::fs::remove_file(&socket).unwrap_or_default();
        }
    }
}

#[test]
fn egress_without_attestation_is_refused() {
    for version in VERSIONS {
        let Some(tng) = binary(version) else { return };
        let lab = Lab::new();
        let (_tng, address) = egress(&tng, true, json!({"no_ra": true}), lab.backend.address);
        let (status, text) = get(lab.connect(&[]).proxy(), address);
        assert_eq!(status, 502);
        let reason = format!(
            "cai connect: attestation of {address} failed: reading the peer's certificate: the certificate carries no \
             evidence (extension 2.23.133.5.4.9) [certificate.shape]\n"
        );
        assert!(text.starts_with(&reason), "{text}");
        assert_eq!(lab.backend.requests().len(), 0);
    }
}

#[test]
fn egress_that_the_service_does_not_affirm_is_refused() {
    let Some(tng) = binary(NEWEST) else { return };
    let lab = Lab::new();
    let socket = lab.path("aa.sock");
    let _agent = agent(&socket, 0);
    let trust = json!({"attest": {"aa_addr": format!("unix://{}", socket.display())}});
    let (_tng, address) = egress(&tng, true, trust, lab.backend.address);
    let model = "aa".repeat(32);
    let (status, text) = get(lab.connect(&["--expect-model", &model]).proxy(), address);
    assert_eq!(status, 502);
    let claim =
        format!("claim model-identity: expected \"{model}\", the token says nothing [verify.claim]\n");
    assert!(text.contains(&claim), "{text}");
    let (status, text) = get(lab.connect(&["--policy", "strict"]).proxy(), address);
    assert_eq!((status, text.as_str()), (200, "/v1/models"));
    assert_eq!(lab.backend.requests().len(), 1);
}
