//! Claim: no byte of an application goes to a server that is not attested, and the application is told why, through every
//! door; large evidence is taken, up to a bound.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/connecting.rs"]
mod connecting;
#[path = "common/egress.rs"]
mod egress;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::net::SocketAddr;
use std::path::PathBuf;

use connecting::{Connect, refused};
use egress::{Character, Egress, Evidence, Identity, certified};
use openssl::ssl::SslVersion;
use sandbox::{Builder, Sandbox};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const NOBODY: &str = "127.0.0.1:9";

struct World {
    sandbox: Sandbox,
    signer: PathBuf,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let signer = dir.path().join("signer.pem");
        let sandbox =
            Sandbox::start(Builder::default().with(&["--token-cert-out", signer.to_str().unwrap()]));
        World { sandbox, signer, _dir: dir }
    }

    fn connect(&self, more: &[&str]) -> Connect {
        let url = format!("{}/as", self.sandbox.kbs);
        let arguments = ["--as-url", &url, "--as-cert", self.signer.to_str().unwrap()];
        Connect::start(&[&arguments[..], more].concat())
    }
}

async fn server(identity: Identity, character: Character) -> Egress {
    Egress::start(identity, character, NOBODY.parse().unwrap()).await
}

/// Status and text of the proxy's answer to a CONNECT.
async fn asked(door: SocketAddr, to: SocketAddr) -> (String, String) {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream
        .write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_server_that_is_not_as_it_should_be_is_refused_with_the_reason() {
    let world = World::new();
    let connect = world.connect(&[]);
    let good = || Evidence::default().identity();
    let other = good().key.public_key_to_der().unwrap();
    let of_another_key = Evidence { bound_to: Some(other), ..Evidence::default() }.identity();
    let too_long = Evidence { event_log: 5 << 20, ..Evidence::default() }.identity();
    let alpn = |alpn| Character { alpn, ..Character::default() };
    let old_tls = Character { newest: SslVersion::TLS1_2, ..Character::default() };
    for (identity, character, reason) in [
        (good(), old_tls, "no attested connection to SERVER: TLS handshake: "),
        (
            good(),
            alpn(&[]),
            "no attested connection to SERVER: the peer chose the protocol (none), expected one of h2, rats-tls [tls.protocol]",
        ),
        (good(), alpn(&["http/1.1"]), "no attested connection to SERVER: TLS handshake: "),
        (
            certified(|_| None),
            Character::default(),
            "attestation of SERVER failed: reading the peer's certificate: the certificate carries no evidence (extension \
             2.23.133.5.4.9) [certificate.shape]",
        ),
        (
            certified(|_| Some(vec![0xa1])),
            Character::default(),
            "attestation of SERVER failed: reading the evidence in the peer's certificate: reading the evidence: expected a \
             tag at byte 0 [evidence.form]",
        ),
        (
            of_another_key,
            Character::default(),
            "attestation of SERVER failed: reading the evidence in the peer's certificate: the runtime data does not bind the \
             certificate's key [evidence.unbound]",
        ),
        (too_long, Character::default(), "no attested connection to SERVER: TLS handshake: "),
    ] {
        let server = server(identity, character).await;
        let (status, text) = asked(connect.doors[0], server.address).await;
        assert_eq!(status, "HTTP/1.1 502 Bad Gateway");
        let reason = format!("cai connect: {}", reason.replace("SERVER", &server.address.to_string()));
        assert!(text.starts_with(&reason), "{text} is not {reason}");
        assert!(text.contains("\nhint: "), "{text}");
        assert_eq!((server.seen.streams(), server.seen.bytes()), (0, 0));
    }
    assert_eq!(world.sandbox.count("kbs.evaluate").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_is_not_the_certificates_ends_the_handshake() {
    // The certificate of an attested machine, shown by somebody who does not have its key: OpenSSL does not even send that,
    // so the certificate is changed under its hands.
    let world = World::new();
    let connect = world.connect(&[]);
    let mut stolen = Evidence::default().identity();
    let own = Evidence::default().identity();
    stolen.key = own.key;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let context = egress::mismatched(&stolen);
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        egress::handshake(stream, context).await
    };
    let (shaken, (status, text)) = tokio::join!(serving, asked(connect.doors[0], address));
    assert!(!shaken);
    assert_eq!(status, "HTTP/1.1 502 Bad Gateway");
    assert!(
        text.starts_with(&format!("cai connect: no attested connection to {address}: TLS handshake: ")),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_server_gets_a_handshake_and_nothing_else() {
    let world = World::new();
    let connect = world.connect(&[]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let serving = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = vec![0; 4096];
        let n = stream.read(&mut first).await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        (first[..n].to_vec(), rest)
    };
    let ((first, rest), (status, _)) = tokio::join!(serving, asked(connect.doors[0], to));
    assert_eq!(status, "HTTP/1.1 502 Bad Gateway");
    // A ClientHello, then at most an alert.
    assert_eq!((first[0], first[5]), (22, 1));
    assert!(rest.is_empty() || rest[0] == 21, "{rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_says_in_its_way_that_there_is_no_tunnel_and_the_log_says_why() {
    let world = World::new();
    let server = server(Evidence::default().identity(), Character::default()).await;
    let to = server.address;
    let connect = world.connect(&["--socks", "127.0.0.1:0"]);
    world.sandbox.faults(json!([{"do": "as_contraindicate"}])).await;

    let client =
        reqwest::Client::builder().proxy(reqwest::Proxy::http(connect.proxy()).unwrap()).build().unwrap();
    let answer =
        client.post(format!("http://{to}/v1/completions")).body("secret words").send().await.unwrap();
    assert_eq!(answer.status(), 502);
    let reason = format!(
        "attestation of {to} failed: the verdict on the peer is not accepted: claim submods.cpu0.ear.status: expected \
         affirming, the token says \"contraindicated\""
    );
    let hint = "do not use this peer, unless the policy asked for is the wrong one";
    assert_eq!(answer.text().await.unwrap(), format!("cai connect: {reason} [verify.claim]\nhint: {hint}\n"));

    let socks = async |to: SocketAddr| {
        let mut stream = TcpStream::connect(connect.doors[1]).await.unwrap();
        let mut request = b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01".to_vec();
        request.extend(to.port().to_be_bytes());
        stream.write_all(&request).await.unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await.unwrap();
        reply[3]
    };
    assert_eq!(socks(to).await, 2);
    // Nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(socks(free).await, 5);

    let fixed = world.connect(&["--to", &to.to_string()]);
    let mut stream = TcpStream::connect(fixed.doors[0]).await.unwrap();
    // May fail: the door may be shut before.
    let _ = stream.write_all(b"secret words").await;
    let mut got = Vec::new();
    let _ = stream.read_to_end(&mut got).await;
    assert_eq!(got, b"");

    assert_eq!((server.seen.streams(), server.seen.bytes()), (0, 0));
    for log in [connect.log(), fixed.log()] {
        assert!(log.contains(&reason) && log.contains("code=\"verify.claim\""), "{log}");
        assert!(!log.contains("secret"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_evidence_is_taken() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new();
    let connect = world.connect(&[]);
    // As of a TDX quote with its event log; with devices; and as much as the service takes (2 MiB, in base64).
    for event_log in [94_000, 400_000, 1_300_000] {
        let identity = Evidence { event_log, ..Evidence::default() }.identity();
        let server = Egress::start(identity, Character::default(), backend.local_addr().unwrap()).await;
        let mut stream = TcpStream::connect(connect.doors[0]).await.unwrap();
        let to = server.address;
        stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200", "{event_log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_that_the_other_end_refuses_is_no_tunnel() {
    let world = World::new();
    let connect = world.connect(&[]);
    // 2xx too: only 200 is a tunnel.
    for status in [503, 204] {
        let server =
            server(Evidence::default().identity(), Character { status, ..Character::default() }).await;
        let to = server.address;
        let (found, text) = asked(connect.doors[0], to).await;
        assert_eq!(found, "HTTP/1.1 502 Bad Gateway");
        let reason =
            format!("cai connect: {to} answers CONNECT with HTTP {status}, expected 200 [connect.refused]\n");
        assert!(text.starts_with(&reason), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verdict_by_anybody_is_said_at_the_start_and_on_each_connection() {
    let world = World::new();
    let url = format!("{}/as", world.sandbox.kbs);
    let (status, text) = refused(&["--as-url", &url]);
    assert_eq!(status, Some(78));
    let error = format!(
        "cai: {url}/attestation is plain http and no certificate of its token signer is given: anybody could answer in its \
         place [verify.unauthenticated]\n"
    );
    assert!(text.starts_with(&error), "{text}");

    let connect = Connect::start(&["--as-url", &url, "--as-unauthenticated", "--mode", "raw"]);
    let server = server(Evidence::default().identity(), Character::default()).await;
    let to = server.address;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(connect.doors[0]).await.unwrap();
        stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        open.push(stream);
    }
    let log = connect.log();
    assert!(
        log.contains(&format!("--as-unauthenticated: whoever answers in place of {url} decides")),
        "{log}"
    );
    let each = "by an attestation service that anybody can answer for (--as-unauthenticated)";
    assert_eq!(log.matches(each).count(), 2, "{log}");
}

#[test]
fn arguments_that_cannot_be_meant_are_refused() {
    let url = ["--as-url", "https://trustee.example/as"];
    let with = |more: &[&str]| refused(&[&url[..], more].concat());
    for (more, status, text) in [
        (
            &["--as-cert", "/nonexistent"][..],
            78,
            "cai: reading /nonexistent: No such file or directory (os error 2) [connect.file]",
        ),
        (
            &["--ca-file", "/dev/null"],
            78,
            "cai: setting up trust in the attestation service: there is no certificate in it that can be a root [verify.ca-file]",
        ),
        (
            &["--as-cert", "/dev/null"],
            78,
            "cai: reading the certificates of the token signer: there is no certificate [verify.signer]",
        ),
        (
            &["--as-cert", "x", "--as-unauthenticated"],
            2,
            "error: the argument '--as-cert <FILE>' cannot be used with '--as-unauthenticated'",
        ),
        (
            &["--to", "host"],
            2,
            "error: invalid value 'host' for '--to <HOST:PORT>': expected HOST:PORT, got \"host\"",
        ),
        (
            &["--expect-model", "aa"],
            2,
            "error: invalid value 'aa' for '--expect-model <ID>': expected 64 hexadecimal digits",
        ),
        (
            &["--listen", "192.0.2.1:1"],
            78,
            "cai: listening on 192.0.2.1:1: Cannot assign requested address (os error 99) [connect.listen]",
        ),
    ] {
        let (found, error) = with(more);
        assert_eq!((found, error.lines().next()), (Some(status), Some(text)));
    }
}
