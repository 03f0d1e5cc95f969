//! Claim: no client takes the whole port: its share of the connections, the handshakes and the streams is an end to it, others
//! go on, and what it gives back is there again. A client that stalls is gone in its time, wherever it stalls.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
#[path = "common/port.rs"]
mod port;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Backend, until};
use cai::config::CertificateRule::Auto;
use cai::gateway::Limits;
use h2::Reason;
use port::{Keeper, client_config, from, serve_within, tls, tls_over, tunnel, tunnel_over};
use rustls::ClientConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const OTHER: &str = "127.0.0.2";

/// For what must come and is not waited for by itself.
const LONG: Duration = Duration::from_secs(30);

/// Whether it is closed by the other side, rather than open.
async fn closed(stream: &mut TcpStream) -> bool {
    matches!(timeout(LONG, stream.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
}

/// The first flight of a client.
fn client_hello() -> Vec<u8> {
    let config = client_config(&["h2"], true, Arc::new(Keeper::default()));
    let mut client = ClientConnection::new(Arc::new(config), "tng.internal".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread")]
async fn client_with_its_share_of_connections_gets_no_more_and_others_do() {
    let echo = Backend::echo().await;
    let limits = Limits { connections: 8, ..Limits::default() };
    let (gateway, at) = serve_within(limits, Auto, echo.at, &[]).await;
    let (first, _second) = (tunnel(at).await, tunnel(at).await);
    assert!(closed(&mut TcpStream::connect(at).await.unwrap()).await);
    until("the refusal", || gateway.snapshot().refused == 1).await;
    let other = tunnel_over(from(OTHER, at).await.unwrap()).await;
    assert!(other.open().await.is_ok());
    drop(first.send);
    first.connection.await.unwrap().unwrap();
    until("the place", || gateway.snapshot().connections == 2).await;
    // Counted as closed a moment before its place is free.
    let again = async { while tls(at, &["h2"], true).await.is_err() {} };
    timeout(LONG, again).await.expect("the place was not given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_with_its_share_of_handshakes_gets_no_more_and_others_do() {
    let echo = Backend::echo().await;
    let limits = Limits { pending: 8, ..Limits::default() };
    let (gateway, at) = serve_within(limits, Auto, echo.at, &[]).await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream.write_all(&client_hello()).await.unwrap();
        // The server's flight: its place is taken.
        stream.read_exact(&mut [0]).await.unwrap();
        stalled.push(stream);
    }
    assert!(closed(&mut TcpStream::connect(at).await.unwrap()).await);
    until("the refusal", || gateway.snapshot().refused == 1).await;
    // A tunnel is no handshake: as many as one likes, one after the other.
    let mut tunnels = Vec::new();
    for _ in 0..4 {
        tunnels.push(tunnel_over(from(OTHER, at).await.unwrap()).await);
        tunnels.last().unwrap().open().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_with_its_share_of_streams_gets_no_more_and_others_do() {
    let echo = Backend::echo().await;
    let limits = Limits { streams: 8, ..Limits::default() };
    let (gateway, at) = serve_within(limits, Auto, echo.at, &[]).await;
    // In one tunnel or several, HTTP/2 or raw.
    let (one, two) = (tunnel(at).await, tunnel(at).await);
    let mut first = one.open().await.unwrap();
    let (mut raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
    until("both streams", || gateway.snapshot().streams == 2).await;
    for tunnel in [&one, &two] {
        let refusal = tunnel.open().await.err().unwrap();
        assert_eq!(refusal.reason(), Some(Reason::REFUSED_STREAM));
    }
    let (mut third, _) = tls(at, &["rats-tls"], true).await.unwrap();
    assert!(
        third.read_to_end(&mut Vec::new()).await.is_err(),
        "a raw tunnel beyond the share came to a whole end"
    );
    until("the refusals", || gateway.snapshot().refused == 3).await;
    assert_eq!(echo.connections(), 2);
    let other = tunnel_over(from(OTHER, at).await.unwrap()).await;
    let _streams = (other.open().await.unwrap(), other.open().await.unwrap());
    let (_raw, _) = tls_over(from("127.0.0.3", at).await.unwrap(), &["rats-tls"], true).await.unwrap();
    until("streams of three clients", || gateway.snapshot().streams == 5).await;
    // What has a place works, and what is given back is there again.
    raw.write_all(b"x").await.unwrap();
    raw.read_exact(&mut [0]).await.unwrap();
    first.send(bytes::Bytes::from_static(b"x"), true).await.unwrap();
    assert_eq!(first.read_to_end().await.unwrap(), b"x");
    until("the first to end", || gateway.snapshot().streams == 4).await;
    let again = async { while two.open().await.is_err() {} };
    timeout(LONG, again).await.expect("the place was not given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_that_stalls_anywhere_before_its_tunnel_is_gone_in_its_time() {
    let echo = Backend::echo().await;
    let second = Duration::from_secs(1);
    let limits = Limits { first_byte: second, hello: 2 * second, handshake: 3 * second, ..Limits::default() };
    let (gateway, at) = serve_within(limits, Auto, echo.at, &[]).await;
    let until_closed = async |at: SocketAddr, sent: Vec<u8>| {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let begin = Instant::now();
        stream.write_all(&sent).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
        begin.elapsed().as_millis()
    };
    // Its handshake done, and then not a byte of HTTP/2: what a client from TNG 2.2.5 on does while it asks its verifier.
    let undecided = async {
        let begin = Instant::now();
        let (mut tls, _) = tls(at, &["h2"], true).await.unwrap();
        let _ = tls.read_to_end(&mut Vec::new()).await;
        begin.elapsed().as_millis()
    };
    let hello = client_hello();
    let (silent, half, whole, undecided) = tokio::join!(
        until_closed(at, Vec::new()),
        until_closed(at, hello[..hello.len() / 2].to_vec()),
        until_closed(at, hello.clone()),
        undecided,
    );
    for (millis, secs) in [(silent, 1), (half, 2), (whole, 3), (undecided, 3)] {
        assert!((secs * 1_000 - 100..secs * 1_000 + 3_000).contains(&millis), "{millis} ms for {secs} s");
    }
    until("the refusals", || gateway.snapshot().refused == 4).await;
    until("all of them to end", || gateway.snapshot().connections == 0).await;
    assert_eq!(echo.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnel_without_streams_ends_after_its_idle_time_and_one_with_a_silent_stream_stays() {
    let echo = Backend::echo().await;
    let limits = Limits { idle: Duration::from_millis(500), ..Limits::default() };
    let (gateway, at) = serve_within(limits, Auto, echo.at, &[]).await;
    let (idle, busy) = (tunnel(at).await, tunnel(at).await);
    let mut silent = busy.open().await.unwrap();
    // GOAWAY, and the end once the client has answered.
    idle.connection.await.unwrap().unwrap();
    until("the idle one to end", || gateway.snapshot().connections == 1).await;
    silent.send(bytes::Bytes::from_static(b"x"), true).await.unwrap();
    assert_eq!(silent.read_to_end().await.unwrap(), b"x");
}
