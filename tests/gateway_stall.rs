//! Claim: one connection's trouble stays its own: an upload that stalls stops no other stream of its tunnel, and a backend that
//! gave up on a request holds up neither its tunnel nor its own answer, in HTTP/2 and raw.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
#[path = "common/port.rs"]
mod port;

use std::sync::Arc;
use std::time::Duration;

use backend::{Backend, pattern, until};
use bytes::Bytes;
use cai::config::CertificateRule::Auto;
use port::{serve, tls, tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// More than every window and buffer on the way.
const LARGE: usize = 32 << 20;

/// Long for what must not wait for another.
const PROMPT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_stall_do_not_stop_the_other_streams_of_their_tunnel() {
    // The first byte says whether the rest is read.
    let picky = Backend::start(|mut stream, _| async move {
        if stream.read_u8().await? == b'0' {
            std::future::pending::<()>().await;
        }
        tokio::io::copy(&mut stream.split().0, &mut tokio::io::sink()).await?;
        stream.write_all(b"read").await
    })
    .await;
    let (_gateway, at) = serve(Auto, picky.at, &[]).await;
    let tunnel = tunnel(at).await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut stream = tunnel.open().await.unwrap();
        // It does not end: the one thing that only time can show.
        let sending = stream.send(vec![b'0'; LARGE].into(), false);
        assert!(timeout(Duration::from_millis(500), sending).await.is_err(), "nothing held the client back");
        stalled.push(stream);
    }
    let mut stream = tunnel.open().await.unwrap();
    let working = async {
        stream.send(vec![b'1'; 4 << 20].into(), true).await.unwrap();
        stream.read_to_end().await.unwrap()
    };
    assert_eq!(timeout(PROMPT, working).await.expect("it waited for the others"), b"read");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_is_taken_to_its_end_though_the_backend_gave_up_on_it() {
    // What the client takes before it reads (RFC 9113 section 6.9.2). The answer is longer, and so is under way to the end.
    const CLIENT_WINDOW: usize = 65_535;
    let giving_up = Arc::new(Semaphore::new(0));
    let give_up = giving_up.clone();
    let hasty = Backend::start(move |mut stream, _| {
        let give_up = give_up.clone();
        async move {
            stream.write_all(&pattern(300_000)).await?;
            give_up.acquire().await.unwrap().forget();
            stream.read_exact(&mut [0]).await.map(drop)
            // Dropped with the request unread, which resets the connection.
        }
    })
    .await;
    let (_gateway, at) = serve(Auto, hasty.at, &[]).await;
    let mut stream = tunnel(at).await.open().await.unwrap();
    until("the answer to begin", || stream.body.flow_control().used_capacity() == CLIENT_WINDOW).await;
    giving_up.add_permits(1);
    // Reads nothing before it has sent everything, as many a client does.
    timeout(PROMPT, stream.send(vec![7; LARGE].into(), true)).await.expect("it is held back").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_client_reads_the_whole_early_answer_after_its_whole_request() {
    // As much as TCP has under way at once: what is still queued when a socket with unread bytes is closed is lost in its kernel.
    const ANSWER: usize = 10_000;
    let hasty = Backend::start(|mut stream, _| async move {
        stream.read_exact(&mut [0]).await?;
        stream.write_all(&pattern(ANSWER)).await?;
        stream.shutdown().await
    })
    .await;
    let (_gateway, at) = serve(Auto, hasty.at, &[]).await;
    for _ in 0..20 {
        let (mut raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
        raw.write_all(&vec![7; 2 << 20]).await.expect("it is cut off");
        raw.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // An end without close_notify, or an abort, would be an error here.
        raw.read_to_end(&mut answer).await.unwrap();
        assert!(answer == pattern(ANSWER), "{} of {ANSWER} bytes came", answer.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backend_that_breaks_in_the_middle_of_its_answer_is_an_abort_for_a_raw_client() {
    let breaking = Backend::start(|mut stream, _| async move {
        stream.write_all(b"half an ans").await?;
        stream.read_exact(&mut [0]).await?;
        stream.set_zero_linger()
    })
    .await;
    let (_gateway, at) = serve(Auto, breaking.at, &[]).await;
    let (mut raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
    let mut begun = [0; 11];
    raw.read_exact(&mut begun).await.unwrap();
    raw.write_all(&Bytes::from_static(b"x")).await.unwrap();
    let error = raw.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
