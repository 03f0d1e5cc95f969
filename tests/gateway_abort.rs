//! Claim: a backend sees a whole end only where the client ended its side; a tunnel that breaks, in HTTP/2 or raw, and a gateway
//! that is stopped, dropped or killed are an abort. What was ended before the tunnel was gone arrives to the last byte.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
#[path = "common/port.rs"]
mod port;

use std::sync::Arc;
use std::time::Duration;

use backend::{Backend, until};
use bytes::Bytes;
use cai::config::CertificateRule::Auto;
use port::{serve, tls, tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, mpsc};

/// The part of a request that was sent, in bytes.
const PART: u64 = 10_000;

/// Reads requests that have no end until something else ends them, and counts.
async fn reader() -> Backend {
    Backend::start(|mut stream, seen| async move {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = stream.read(&mut buffer).await?;
            assert_ne!(read, 0, "a request that was cut off came to a whole end");
            seen.bytes.fetch_add(read as u64, std::sync::atomic::Ordering::SeqCst);
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tunnel_that_breaks_in_the_middle_of_uploads_is_an_abort_for_the_backend() {
    let reader = reader().await;
    let (gateway, at) = serve(Auto, reader.at, &[]).await;
    let tunnel = tunnel(at).await;
    let (mut first, mut second) = (tunnel.open().await.unwrap(), tunnel.open().await.unwrap());
    first.send(vec![1; PART as usize].into(), false).await.unwrap();
    second.send(vec![1; PART as usize].into(), false).await.unwrap();
    until("both parts", || reader.bytes() == 2 * PART).await;
    tunnel.connection.abort();
    until("both resets", || reader.resets() == 2).await;
    // Raw: TCP's end without TLS's, after bytes this time.
    let (mut raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
    raw.write_all(&[1; PART as usize]).await.unwrap();
    until("the raw part", || reader.bytes() == 3 * PART).await;
    drop(raw);
    until("the raw reset", || reader.resets() == 3).await;
    until("everything to end", || gateway.snapshot().connections == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn gateway_that_stops_or_is_dropped_aborts_what_it_cuts_off() {
    let reader = reader().await;
    for stops in [true, false] {
        let (gateway, at) = serve(Auto, reader.at, &[]).await;
        let (bytes, resets) = (reader.bytes(), reader.resets());
        let tunnel = tunnel(at).await;
        let mut stream = tunnel.open().await.unwrap();
        stream.send(vec![1; PART as usize].into(), false).await.unwrap();
        let (mut raw, _) = tls(at, &["rats-tls"], true).await.unwrap();
        raw.write_all(&[1; PART as usize]).await.unwrap();
        until("both parts", || reader.bytes() == bytes + 2 * PART).await;
        if stops {
            gateway.stop(Duration::ZERO).await;
        } else {
            drop(gateway);
        }
        until("both resets", || reader.resets() == resets + 2).await;
        // The client learns it too.
        assert!(stream.read_to_end().await.is_err());
        assert!(raw.read_to_end(&mut Vec::new()).await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_that_was_ended_arrives_whole_though_its_tunnel_is_gone() {
    let (reading, mut read) = (Arc::new(Semaphore::new(0)), mpsc::unbounded_channel());
    let (gate, sender) = (reading.clone(), read.0.clone());
    // Ends its answer first and reads late.
    let late = Backend::start(move |mut stream, _| {
        let (gate, sender) = (gate.clone(), sender.clone());
        async move {
            stream.shutdown().await?;
            gate.acquire().await.unwrap().forget();
            let mut all = Vec::new();
            let end = stream.read_to_end(&mut all).await.map_err(|error| error.kind());
            sender.send((end, all.len())).unwrap();
            Ok(())
        }
    })
    .await;
    let (_gateway, at) = serve(Auto, late.at, &[]).await;
    let tunnel = tunnel(at).await;
    let mut stream = tunnel.open().await.unwrap();
    assert_eq!(stream.read_to_end().await.unwrap(), b"");
    let mut sent = 0;
    let sending = async {
        loop {
            stream.send(vec![1; 64 << 10].into(), false).await.unwrap();
            sent += 64 << 10;
        }
    };
    // Until the gateway holds all that it may: the one thing that only time can show.
    let _ = tokio::time::timeout(Duration::from_millis(500), sending).await;
    stream.send.send_data(Bytes::new(), true).unwrap();
    drop(stream);
    drop(tunnel.send);
    assert!(tunnel.connection.await.unwrap().is_ok());
    reading.add_permits(1);
    let (end, len) = read.1.recv().await.unwrap();
    // The frame that was cut by the time-out may have been sent or not.
    assert!((sent..=sent + (64 << 10)).contains(&len), "sent {sent}, read {len}");
    assert_eq!(end, Ok(len));
}
