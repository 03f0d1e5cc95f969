//! Claim: a verdict ends with its token. New connections are attested afresh; an open one stays as long as its server keeps
//! passing, without another handshake, and is cut when it does not, in every mode, with a line in the log that says why.
//!
//! A service that cannot be reached is tried again for a minute: `src/gateway/connect/lease.rs` holds that, on a clock of its
//! own.
#![cfg(feature = "sandbox")]

#[path = "common/attested.rs"]
mod attested;
#[path = "common/connecting.rs"]
mod connecting;
#[path = "common/egress.rs"]
mod egress;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use attested::{World, echo, tunnel};
use egress::Character;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const MODES: [&str; 2] = ["multiplex", "raw"];
const LIMIT: Duration = Duration::from_secs(20);

async fn word(stream: &mut TcpStream) {
    stream.write_all(b"still here").await.unwrap();
    let mut back = [0; 10];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here");
}

/// Wait until the service was asked `times`.
async fn asked(world: &World, times: u64) {
    let begin = Instant::now();
    while world.sandbox.count("kbs.evaluate").await < times {
        assert!(begin.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Wait until the server has seen the end of so many connections.
async fn ended(world: &World, connections: usize) {
    let begin = Instant::now();
    while world.egress.seen.ended() < connections {
        assert!(begin.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connection_stays_as_long_as_its_server_passes() {
    let backend = echo().await;
    for mode in MODES {
        let world = World::new(Character::default(), backend).await;
        let connect = world.connect(&["--mode", mode]);
        world.sandbox.faults(json!([{"do": {"as_token_life": {"secs": 1}}, "times": 3}])).await;
        let mut open = tunnel(connect.doors[0], world.egress.address).await;
        word(&mut open).await;
        asked(&world, 4).await;
        word(&mut open).await;
        assert_eq!(world.egress.seen.connections(), 1, "{mode}");
        // The last verdict is one for new streams of that connection too.
        if mode == "multiplex" {
            word(&mut tunnel(connect.doors[0], world.egress.address).await).await;
            assert_eq!((world.egress.seen.connections(), world.sandbox.count("kbs.evaluate").await), (1, 4));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_connections_are_cut_when_their_server_does_not_pass_again() {
    for mode in MODES {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = World::new(Character::default(), listener.local_addr().unwrap()).await;
        let connect = world.connect(&["--mode", mode]);
        let to = world.egress.address;
        world.sandbox.faults(json!([{"do": {"as_token_life": {"secs": 2}}}])).await;
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut application = tunnel(connect.doors[0], to).await;
            application.write_all(b"?").await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.read_u8().await.unwrap();
            open.push((application, server));
        }
        world.sandbox.faults(json!([{"do": "as_contraindicate"}])).await;
        for (application, server) in &mut open {
            let end = tokio::time::timeout(LIMIT, application.read(&mut [0])).await.expect("an end");
            assert_eq!(end.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset), "{mode}");
            // The end, in whichever way the other end of the tunnel says it.
            let end = tokio::time::timeout(LIMIT, server.read(&mut [0])).await.expect("an end");
            assert_eq!(end.unwrap_or(0), 0, "{mode}");
        }
        // The server's end has the end of one direction; the backend's is that of the other.
        drop(open);
        let connections = if mode == "raw" { 2 } else { 1 };
        assert_eq!(world.egress.seen.connections(), connections);
        ended(&world, connections).await;
        let log = connect.log();
        let line = format!(
            "the verdict on {to} has ended and there is no new one, its connections are cut: the verdict on the peer is not \
             accepted: claim submods.cpu0.ear.status: expected affirming, the token says \"contraindicated\""
        );
        assert_eq!(log.matches(&line).count(), 1, "{mode}: {log}");
        assert!(log.contains("code=\"verify.claim\""), "{log}");
        // Nor is there a new one.
        let mut stream = TcpStream::connect(connect.doors[0]).await.unwrap();
        stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes()).await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 502", "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_a_cut_ends_does_not_look_complete() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new(Character::default(), listener.local_addr().unwrap()).await;
    let connect = world.connect(&[]);
    let to = world.egress.address;
    world.sandbox.faults(json!([{"do": {"as_token_life": {"secs": 1}}}])).await;
    let client =
        reqwest::Client::builder().proxy(reqwest::Proxy::http(connect.proxy()).unwrap()).build().unwrap();
    let asking = client.get(format!("http://{to}/v1/models")).send();
    let serving = async {
        let (mut server, _) = listener.accept().await.unwrap();
        attested::head(&mut server).await;
        server
            .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nwords\r\n")
            .await
            .unwrap();
        server
    };
    let (answer, _server) = tokio::join!(asking, serving);
    let mut answer = answer.unwrap();
    world.sandbox.faults(json!([{"do": "kbs_refuse_evidence"}])).await;
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "words");
    assert!(tokio::time::timeout(LIMIT, answer.chunk()).await.expect("an end").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_nobody_uses_ends_with_its_verdict_and_nobody_is_asked() {
    let world = World::new(Character::default(), echo().await).await;
    let connect = world.connect(&["--mode", "multiplex"]);
    world.sandbox.faults(json!([{"do": {"as_token_life": {"secs": 1}}, "times": 1}])).await;
    word(&mut tunnel(connect.doors[0], world.egress.address).await).await;
    ended(&world, 1).await;
    assert_eq!(world.sandbox.count("kbs.evaluate").await, 1);
    word(&mut tunnel(connect.doors[0], world.egress.address).await).await;
    assert_eq!((world.egress.seen.connections(), world.sandbox.count("kbs.evaluate").await), (2, 2));
    let log = connect.log();
    assert!(log.contains("the verdict has ended: new streams need a new one"), "{log}");
}
