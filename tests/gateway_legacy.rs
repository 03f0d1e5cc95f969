//! Claim: a client that knows TNG's wire from its description alone finds what TNG up to 2.2.6 demands: the legacy
//! certificate, bound to its key step by step, and the tunnel behind it. No such TNG is to be had as a package.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
#[path = "common/port.rs"]
mod port;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use backend::{Backend, pattern, sha256};
use cai::config::CertificateRule::{Auto, Current, Legacy};
use port::serve;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

async fn python(at: SocketAddr, format: &str, request: &[u8]) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/tunnel_client.py");
    let mut child = Command::new("python3")
        .arg(script)
        .args([&at.ip().to_string(), &at.port().to_string(), format, "h2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended before it reads.
    let _ = stdin.write_all(request).await;
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_client_finds_the_legacy_certificate_and_its_tunnel() {
    let digest = Backend::digest().await;
    let request = pattern(60_000);
    // Python's TLS offers no post-quantum group, as the old clients' does not.
    for (rule, format) in [(Auto, "legacy"), (Legacy, "legacy"), (Current, "current")] {
        let (_gateway, at) = serve(rule, digest.at, &[]).await;
        assert_eq!(python(at, format, &request).await, Ok(sha256(&request)), "{rule:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_client_refuses_the_current_certificate() {
    let digest = Backend::digest().await;
    let (_gateway, at) = serve(Current, digest.at, &[]).await;
    let error = python(at, "legacy", b"").await.unwrap_err();
    assert_eq!(error, "tunnel_client: the claims buffer does not bind the key\n");
    assert_eq!(digest.connections(), 0);
}
