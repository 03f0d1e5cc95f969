//! A server's end of a tunnel with the attestation service that affirms it, and applications that go there.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::connecting::Connect;
use crate::egress::{Character, Egress, Evidence};
use crate::sandbox::{Builder, Sandbox};

/// An attestation service, the certificate of its signer, and a server's end in front of `backend`.
pub struct World {
    pub sandbox: Sandbox,
    pub egress: Egress,
    signer: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    pub async fn new(character: Character, backend: SocketAddr) -> World {
        let dir = tempfile::tempdir().unwrap();
        let signer = dir.path().join("signer.pem");
        let sandbox =
            Sandbox::start(Builder::default().with(&["--token-cert-out", signer.to_str().unwrap()]));
        let egress = Egress::start(Evidence::default().identity(), character, backend).await;
        World { sandbox, egress, signer, _dir: dir }
    }

    pub fn connect(&self, more: &[&str]) -> Connect {
        let url = format!("{}/as", self.sandbox.kbs);
        let arguments = ["--as-url", &url, "--as-cert", self.signer.to_str().unwrap()];
        Connect::start(&[&arguments[..], more].concat())
    }
}

/// A backend that sends back what it gets, and ends when the other side does.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    address
}

/// Ask the proxy for a tunnel.
pub async fn tunnel(door: SocketAddr, to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
    let head = head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    stream
}

/// All of an answer's head, and no byte more.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}
