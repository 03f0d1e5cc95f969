//! Claim: a stream of the tunnel is a connection to the backend, byte for byte: order, half-close, abort, back-pressure and the
//! moment of every byte; in HTTP/2 and raw; across a renewal of the certificate, and to its own end when the gateway stops.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
#[path = "common/port.rs"]
mod port;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backend::{Backend, pattern, sha256, until};
use bytes::Bytes;
use cai::config::CertificateRule::Auto;
use cai::config::Entrance;
use cai::gateway::Gateway;
use cai::ratls::identity::Identity;
use h2::Reason;
use port::{serve, settings, tls, tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const LEN: usize = 5 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn stream_carries_both_directions_and_their_ends() {
    let digest = Backend::digest().await;
    let (_gateway, at) = serve(Auto, digest.at, &[]).await;
    let tunnel = tunnel(at).await;
    // The answer comes only after the client's end was passed on.
    let mut stream = tunnel.open().await.unwrap();
    stream.send(pattern(LEN).into(), true).await.unwrap();
    assert_eq!(stream.read_to_end().await.unwrap(), sha256(&pattern(LEN)).as_bytes());
    // Many at a time do not mix.
    let streams = (0..50).map(|n| {
        let tunnel = &tunnel;
        async move {
            let data = pattern(100_000 + n);
            let mut stream = tunnel.open().await.unwrap();
            stream.send(data.clone().into(), true).await.unwrap();
            assert_eq!(stream.read_to_end().await.unwrap(), sha256(&data).as_bytes());
        }
    });
    futures_util::future::join_all(streams).await;
    assert_eq!(digest.connections(), 51, "one connection per stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_tunnel_carries_both_directions_and_their_ends() {
    let digest = Backend::digest().await;
    let (_gateway, at) = serve(Auto, digest.at, &[]).await;
    let (mut tls, _) = tls(at, &["rats-tls"], false).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"rats-tls"[..]));
    tls.write_all(&pattern(LEN)).await.unwrap();
    tls.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // An end without close_notify would be an error here.
    tls.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, sha256(&pattern(LEN)).as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_is_passed_on_when_it_comes() {
    let echo = Backend::echo().await;
    let (_gateway, at) = serve(Auto, echo.at, &[]).await;
    let mut stream = tunnel(at).await.open().await.unwrap();
    let (mut raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
    for n in 0..100_u8 {
        stream.send(Bytes::copy_from_slice(&[n; 3]), false).await.unwrap();
        assert_eq!(stream.body.data().await.unwrap().unwrap(), [n; 3].as_slice());
        raw.write_all(&[n; 3]).await.unwrap();
        let mut back = [0; 3];
        raw.read_exact(&mut back).await.unwrap();
        assert_eq!(back, [n; 3]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn abort_of_the_client_is_an_abort_for_the_backend() {
    let echo = Backend::echo().await;
    let (_gateway, at) = serve(Auto, echo.at, &[]).await;
    let tunnel = tunnel(at).await;
    let mut stream = tunnel.open().await.unwrap();
    stream.send(Bytes::from_static(b"x"), false).await.unwrap();
    assert_eq!(stream.body.data().await.unwrap().unwrap(), "x");
    stream.send.send_reset(Reason::CANCEL);
    until("the reset at the backend", || echo.resets() == 1).await;
    // After the client's end too: who cancels a long answer has sent its request long ago.
    let slow = Backend::start(|mut stream, _| async move {
        stream.read_to_end(&mut Vec::new()).await?;
        loop {
            stream.write_all(b"token").await?;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let (_gateway, at) = serve(Auto, slow.at, &[]).await;
    let mut stream = port::tunnel(at).await.open().await.unwrap();
    stream.send(Bytes::from_static(b"request"), true).await.unwrap();
    stream.body.data().await.unwrap().unwrap();
    stream.send.send_reset(Reason::CANCEL);
    until("the reset at the backend", || slow.resets() == 1).await;
    // Raw: TCP's end without TLS's.
    let (raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
    until("the backend", || slow.connections() == 2).await;
    drop(raw);
    until("the raw reset at the backend", || slow.resets() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_that_breaks_or_is_not_there_resets_the_stream_only() {
    let breaking = Backend::start(|mut stream, _| async move {
        stream.read_exact(&mut [0]).await?;
        stream.set_zero_linger()
    })
    .await;
    let (gateway, at) = serve(Auto, breaking.at, &[]).await;
    let tunnel = tunnel(at).await;
    let mut stream = tunnel.open().await.unwrap();
    stream.send(Bytes::from_static(b"x"), false).await.unwrap();
    let error = stream.read_to_end().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
    // 200 came first (tng.md 6), and the tunnel lives on.
    let gone = breaking.at;
    drop(breaking);
    until("nobody to listen there", || std::net::TcpStream::connect(gone).is_err()).await;
    let error = tunnel.open().await.unwrap().read_to_end().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
    until("the streams to end", || gateway.snapshot().streams == 0).await;
    assert_eq!(gateway.snapshot().streams_total, 2);
    assert_eq!(gateway.snapshot().refused, 1, "the dial that failed is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_answer_arrives_though_the_backend_stopped_reading() {
    // As much as TCP has under way at once: what is still queued when a socket with unread bytes is closed is lost in its kernel.
    const ANSWER: usize = 10_000;
    let hasty = Backend::start(|mut stream, _| async move {
        stream.read_exact(&mut [0]).await?;
        stream.write_all(&pattern(ANSWER)).await?;
        stream.shutdown().await
        // Dropped with the request unread, which resets the connection.
    })
    .await;
    let (_gateway, at) = serve(Auto, hasty.at, &[]).await;
    let mut stream = tunnel(at).await.open().await.unwrap();
    // It may be told to stop before it is done.
    let _ = stream.send(vec![7; 500_000].into(), false).await;
    assert_eq!(sha256(&stream.read_to_end().await.unwrap()), sha256(&pattern(ANSWER)));
}

#[tokio::test(flavor = "multi_thread")]
async fn client_is_held_back_by_a_backend_that_does_not_read() {
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_gateway, at) = serve(Auto, deaf.local_addr().unwrap(), &[]).await;
    let mut stream = tunnel(at).await.open().await.unwrap();
    let (mut held, _) = deaf.accept().await.unwrap();
    // More than the window, the sockets' buffers and everything between them.
    let len = 64 << 20;
    let mut sent = 0;
    let sending = async {
        loop {
            stream.send(vec![1; 64 << 10].into(), false).await.unwrap();
            sent += 64 << 10;
            assert!(sent < len, "nothing held the client back");
        }
    };
    // Nothing moves any more: the one thing that only time can show.
    let _ = tokio::time::timeout(Duration::from_millis(700), sending).await;
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        held.read_to_end(&mut all).await.unwrap();
        all.len()
    });
    stream.send(Bytes::new(), true).await.unwrap();
    // The frame that was cut by the time-out may have been sent or not.
    let read = reading.await.unwrap();
    assert!((sent..=sent + (64 << 10)).contains(&read), "sent {sent}, read {read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_is_held_back_by_a_client_that_does_not_read() {
    let wrote = Arc::new(AtomicUsize::new(0));
    let counter = wrote.clone();
    let endless = Backend::start(move |mut stream, _| {
        let counter = counter.clone();
        async move {
            loop {
                stream.write_all(&[1; 64 << 10]).await?;
                counter.fetch_add(64 << 10, Ordering::SeqCst);
            }
        }
    })
    .await;
    let (_gateway, at) = serve(Auto, endless.at, &[]).await;
    let tunnel = tunnel(at).await;
    let _stream = tunnel.open().await.unwrap();
    let (_raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
    until("both to begin", || endless.connections() == 2).await;
    let mut last = usize::MAX;
    until("the backend to be held back", || {
        let now = wrote.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(200));
        std::mem::replace(&mut last, now) == now
    })
    .await;
    assert!(last < 64 << 20, "{last} bytes went to clients that read nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_other_than_connect_are_answered_with_400_and_reach_nobody() {
    let echo = Backend::echo().await;
    let (_gateway, at) = serve(Auto, echo.at, &[]).await;
    let mut send = tunnel(at).await.send.ready().await.unwrap();
    let request = http::Request::get("https://tng.internal/v1/models").body(()).unwrap();
    let (response, _) = send.send_request(request, true).unwrap();
    let (head, mut body) = response.await.unwrap().into_parts();
    assert_eq!(head.status, 400);
    let text = body.data().await.unwrap().unwrap();
    assert_eq!(text, "Protocol Error: the method should be CONNECT, but got GET");
    assert_eq!(echo.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let echo = Backend::echo().await;
    let identity = Identity::start(port::recipe(Auto), Duration::from_millis(200)).await.unwrap();
    let mut fresh = identity.fresh();
    let entrance = Entrance::Mapping { listen: "127.0.0.1:0".parse().unwrap(), backend: echo.at };
    let gateway = Gateway::start(&settings(Auto, &[]), &entrance, identity.fresh()).unwrap();
    let at = gateway.listening()[0];
    let (first, before) = tls(at, &["rats-tls"], true).await.unwrap();
    let (_, again) = tls(at, &["rats-tls"], true).await.unwrap();
    assert_eq!(before, again, "one certificate until it is renewed");
    let mut stream = first;
    fresh.mark_unchanged();
    let renewing = tokio::spawn(async move { identity.keep_fresh().await });
    // Both formats at once.
    fresh.changed().await.unwrap();
    renewing.abort();
    let (_, after) = tls(at, &["rats-tls"], true).await.unwrap();
    assert_ne!(before, after);
    stream.write_all(b"still here").await.unwrap();
    let mut back = [0; 10];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_shuts_the_port_lets_streams_end_and_then_cuts_them_off() {
    let echo = Backend::echo().await;
    let (gateway, at) = serve(Auto, echo.at, &[]).await;
    let tunnel = tunnel(at).await;
    let mut stream = tunnel.open().await.unwrap();
    let stopping = tokio::spawn(gateway.stop(Duration::from_secs(20)));
    // GOAWAY: no new stream, and no new connection.
    let mut refused = false;
    for _ in 0..1000 {
        refused = tunnel.open().await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused, "new streams were taken after the stop");
    assert!(tls(at, &["h2"], true).await.is_err());
    stream.send(Bytes::from_static(b"last words"), true).await.unwrap();
    assert_eq!(stream.read_to_end().await.unwrap(), b"last words");
    tokio::time::timeout(Duration::from_secs(10), stopping).await.unwrap().unwrap();
    assert!(tunnel.connection.await.unwrap().is_ok());

    let (gateway, at) = serve(Auto, echo.at, &[]).await;
    let tunnel = port::tunnel(at).await;
    let mut stream = tunnel.open().await.unwrap();
    gateway.stop(Duration::ZERO).await;
    assert!(stream.read_to_end().await.is_err());
}
