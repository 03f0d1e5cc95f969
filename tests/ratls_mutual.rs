//! Claim: two peers attest each other over one connection, with evidence of any size, before either can send a byte; a peer
//! without a certificate, with another key than its certificate's, or whom the service does not affirm is refused, whichever
//! end it is.
#![cfg(feature = "sandbox")]

#[path = "common/egress.rs"]
mod egress;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use cai::attest::sample_attester;
use cai::error::{Fault as _, chain};
use cai::ratls::identity::{Fresh, Identity, Recipe};
use cai::ratls::{Client, Demands, Format, Server, TlsError, Unattested, Verifier, VerifierOptions};
use egress::{Evidence, mismatched_key};
use openssl::pkey::{PKey, Private};
use openssl::ssl::{Ssl, SslContext, SslMethod};
use openssl::x509::X509;
use sandbox::{Builder, Sandbox};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::watch;
use tokio_openssl::SslStream;

/// A protocol of the peers' own.
const ALPN: &[&str] = &["peers/1"];

type Shaken = Result<Unattested<DuplexStream>, TlsError>;

/// A machine with evidence of more than 64 KiB.
async fn machine() -> (Identity, watch::Receiver<Fresh>) {
    let members = BTreeMap::from([("padding".to_owned(), "x".repeat(65_400))]);
    let recipe = Recipe { attester: sample_attester().unwrap(), formats: vec![Format::Current], members };
    let identity = Identity::start(recipe, Duration::from_secs(600)).await.unwrap();
    let fresh = identity.fresh();
    (identity, fresh)
}

struct World {
    sandbox: Sandbox,
    verifier: Verifier,
    client: Client,
    server: Server,
    _identities: [Identity; 2],
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let signer = dir.path().join("signer.pem");
        let sandbox =
            Sandbox::start(Builder::default().with(&["--token-cert-out", signer.to_str().unwrap()]));
        let url = format!("{}/as", sandbox.kbs).parse().unwrap();
        let signers = std::fs::read(signer).unwrap();
        let demands = Demands { policies: vec!["default".into()], members: BTreeMap::new() };
        let verifier = Verifier::new(VerifierOptions {
            url: &url,
            ca: None,
            signers: Some(&signers),
            unauthenticated: false,
            demands,
        });
        let ((one, ours), (other, theirs)) = tokio::join!(machine(), machine());
        let client = Client::new(ALPN).unwrap().showing(ours);
        let server = Server::new(ALPN, theirs).unwrap();
        let verifier = verifier.unwrap();
        World { sandbox, verifier, client, server, _identities: [one, other], _dir: dir }
    }

    /// Both ends of a handshake.
    async fn shaken(&self, client: &Client) -> (Shaken, Shaken) {
        let (ours, theirs) = duplex(1 << 20);
        tokio::join!(client.connect(ours, None), self.server.accept(theirs))
    }
}

#[tokio::test]
async fn peers_attest_each_other_with_large_evidence_and_talk() {
    let world = World::new().await;
    let (client, server) = world.shaken(&world.client).await;
    let (client, server) =
        tokio::join!(client.unwrap().attest(&world.verifier), server.unwrap().attest(&world.verifier));
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    for end in [&client, &server] {
        assert_eq!(
            (end.peer.tee.as_str(), end.peer.format, end.protocol),
            ("sample", Format::Current, "peers/1")
        );
        assert!(end.certificate.len() > 65_536);
    }
    assert_ne!(client.certificate, server.certificate);
    client.stream.write_all(b"ping").await.unwrap();
    let mut word = [0; 4];
    server.stream.read_exact(&mut word).await.unwrap();
    server.stream.write_all(b"pong").await.unwrap();
    client.stream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"pong");
    assert_eq!(world.sandbox.count("kbs.evaluate").await, 2);
    // No ticket with which the next connection could be without evidence.
    assert!(!client.stream.ssl().session_reused() && !server.stream.ssl().session_reused());
    assert!(client.stream.ssl().session().is_none_or(|session| session.max_early_data() == 0));
}

#[tokio::test]
async fn peer_that_is_not_affirmed_is_refused_at_either_end_with_the_claim() {
    let world = World::new().await;
    world.sandbox.faults(json!([{"do": "as_contraindicate"}])).await;
    let (client, server) = world.shaken(&world.client).await;
    for end in [client, server] {
        let error = end.unwrap().attest(&world.verifier).await.unwrap_err();
        assert_eq!(error.code(), "verify.claim");
        assert_eq!(
            chain(&error),
            "the verdict on the peer is not accepted: claim submods.cpu0.ear.status: expected affirming, the token says \
             \"contraindicated\""
        );
    }
}

#[tokio::test]
async fn peer_without_evidence_or_with_none_that_is_fresh_gets_no_connection() {
    let world = World::new().await;
    let (_, server) = world.shaken(&Client::new(ALPN).unwrap()).await;
    let error = server.unwrap_err();
    assert_eq!(error.code(), "tls.handshake");
    assert!(chain(&error).contains("peer did not return a certificate"), "{}", chain(&error));
    let none = watch::channel(Fresh::default()).1;
    let (client, server) = world.shaken(&Client::new(ALPN).unwrap().showing(none.clone())).await;
    assert_eq!((client.unwrap_err().code(), server.unwrap_err().code()), ("tls.stale", "tls.handshake"));
    let (_ours, theirs) = duplex(1 << 20);
    assert_eq!(Server::new(ALPN, none).unwrap().accept(theirs).await.unwrap_err().code(), "tls.stale");
    // And one that speaks another protocol.
    let (client, server) = world.shaken(&Client::new(&["h2"]).unwrap()).await;
    assert_eq!((client.unwrap_err().code(), server.unwrap_err().code()), ("tls.handshake", "tls.handshake"));
}

/// What becomes of an OpenSSL of somebody else at the other end, which shows this with that key: as the client, as the server.
async fn stranger(world: &World, certificate: &[u8], key: &PKey<Private>) -> (Shaken, Shaken) {
    let context = |method| {
        let mut builder = SslContext::builder(method).unwrap();
        builder.set_certificate(&X509::from_der(certificate).unwrap()).unwrap();
        builder.set_private_key(key).unwrap();
        builder.set_alpn_protos(b"\x07peers/1").unwrap();
        builder.set_alpn_select_callback(|_, _| Ok(b"peers/1"));
        builder.build()
    };
    let (ours, theirs) = duplex(1 << 20);
    let mut client = SslStream::new(Ssl::new(&context(SslMethod::tls_client())).unwrap(), theirs).unwrap();
    let (at_server, _) = tokio::join!(world.server.accept(ours), Pin::new(&mut client).connect());
    let (ours, theirs) = duplex(1 << 20);
    let mut server = SslStream::new(Ssl::new(&context(SslMethod::tls_server())).unwrap(), theirs).unwrap();
    let (at_client, _) = tokio::join!(world.client.connect(ours, None), Pin::new(&mut server).accept());
    (at_server, at_client)
}

#[tokio::test]
async fn evidence_that_is_not_the_peers_own_is_of_no_use_to_it() {
    let world = World::new().await;
    // It works with one's own.
    let own = Evidence::default().identity();
    let (at_server, at_client) = stranger(&world, &own.certificate, &own.key).await;
    for end in [at_server, at_client] {
        assert_eq!(end.unwrap().attest(&world.verifier).await.unwrap().peer.tee, "sample");
    }
    // Somebody else's certificate, without its key.
    let mut stolen = Evidence::default().identity();
    stolen.key = own.key.clone();
    let (at_server, at_client) = stranger(&world, &stolen.certificate, &mismatched_key(&stolen)).await;
    for end in [at_server, at_client] {
        assert_eq!(end.unwrap_err().code(), "tls.handshake");
    }
    // Somebody else's evidence, in a certificate of one's own.
    let bound_to = Some(stolen.key.public_key_to_der().unwrap());
    let copied = Evidence { bound_to, ..Evidence::default() }.identity();
    let (at_server, at_client) = stranger(&world, &copied.certificate, &copied.key).await;
    for end in [at_server, at_client] {
        assert_eq!(end.unwrap().attest(&world.verifier).await.unwrap_err().code(), "evidence.unbound");
    }
    assert_eq!(world.sandbox.count("kbs.evaluate").await, 1);
}
