//! Claim: what idle clients cost is little, bounded, and the same for each: tunnels in HTTP/2 and raw as many as one client may
//! have, and ten thousand bare connections, which leave room for everybody else.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
mod common;
#[path = "common/port.rs"]
mod port;

use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use backend::{Backend, until};
use cai::config::CertificateRule::Auto;
use cai::gateway::Limits;
use common::available;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use port::{from, serve, serve_within, tls, tunnel, tunnel_over};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

const TUNNELS: usize = 1_000;

/// Whether this is the process of `test` alone, whose memory is its own; if not, such a one is run to its end.
async fn by_itself(test: &str) -> bool {
    const ALONE: &str = "CAI_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let status = command.args(["--exact", test, "--nocapture"]).env(ALONE, "").status().await.unwrap();
    assert!(status.success(), "{test}: {status}");
    false
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Whether this process may have so many descriptors.
fn descriptors(wanted: u64) -> bool {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let raised = setrlimit(Resource::RLIMIT_NOFILE, hard.max(wanted), hard.max(wanted)).is_ok();
    available("descriptors", raised, "this process may not have that many connections")
}

async fn answers(at: SocketAddr) {
    let mut stream = tunnel_over(from("127.0.0.2", at).await.unwrap()).await.open().await.unwrap();
    stream.send(bytes::Bytes::from_static(b"x"), true).await.unwrap();
    assert_eq!(stream.read_to_end().await.unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_tunnels_cost_little_each() {
    if !by_itself("idle_tunnels_cost_little_each").await || !descriptors(3_000) {
        return;
    }
    let echo = Backend::echo().await;
    let (gateway, at) = serve(Auto, echo.at, &[]).await;
    let before = resident_kib();
    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS / 50 {
        let some = (0..50).map(|_| tunnel(at));
        tunnels.extend(futures_util::future::join_all(some).await);
    }
    assert_eq!(gateway.snapshot().connections, TUNNELS as u64);
    // Both ends are in this process.
    let each = (resident_kib() - before) / TUNNELS;
    println!("{each} KiB per idle tunnel, both ends");
    assert!(each < 200, "{each} KiB per idle tunnel");
    let mut stream = tunnels[TUNNELS / 2].open().await.unwrap();
    stream.send(bytes::Bytes::from_static(b"x"), true).await.unwrap();
    assert_eq!(stream.read_to_end().await.unwrap(), b"x");
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_raw_tunnels_cost_little_each_and_their_share_is_an_end_to_them() {
    if !by_itself("idle_raw_tunnels_cost_little_each_and_their_share_is_an_end_to_them").await
        || !descriptors(6_000)
    {
        return;
    }
    let echo = Backend::start(|mut stream, _| async move {
        // No buffer while it is idle: what is weighed is the gateway.
        while let Ok(byte) = stream.read_u8().await {
            stream.write_u8(byte).await?;
        }
        Ok(())
    })
    .await;
    let limits = Limits { streams: 4 * TUNNELS, ..Limits::default() };
    let (gateway, at) = serve_within(limits, Auto, echo.at, &[]).await;
    let before = resident_kib();
    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS / 50 {
        let some = (0..50).map(|_| async { tls(at, &["rats-tls"], true).await.unwrap().0 });
        tunnels.extend(futures_util::future::join_all(some).await);
    }
    until("all of them", || gateway.snapshot().streams == TUNNELS as u64).await;
    // Both ends and the backend are in this process.
    let each = (resident_kib() - before) / TUNNELS;
    println!("{each} KiB per idle raw tunnel, both ends");
    assert!(each < 200, "{each} KiB per idle raw tunnel");
    let (mut over, _) = tls(at, &["rats-tls"], true).await.unwrap();
    assert!(over.read_to_end(&mut Vec::new()).await.is_err());
    until("the refusal", || gateway.snapshot().refused == 1).await;
    let middle = &mut tunnels[TUNNELS / 2];
    middle.write_all(b"x").await.unwrap();
    assert_eq!(middle.read_u8().await.unwrap(), b'x');
    answers(at).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_bare_connections_cost_little_and_leave_room_for_others() {
    const BARE: usize = 10_000;
    if !by_itself("ten_thousand_bare_connections_cost_little_and_leave_room_for_others").await
        || !descriptors(BARE as u64 + 1_500)
    {
        return;
    }
    let echo = Backend::echo().await;
    let (gateway, at) = serve(Auto, echo.at, &[]).await;
    let (before, begin) = (resident_kib(), Instant::now());
    let connecting = move || (0..BARE).map(|_| TcpStream::connect(at).unwrap()).collect::<Vec<_>>();
    let bare = tokio::task::spawn_blocking(connecting).await.unwrap();
    // All the while, and whatever is still open of them, another client is served.
    answers(at).await;
    until("each to be seen", || {
        let now = gateway.snapshot();
        now.refused + now.connections >= BARE as u64
    })
    .await;
    let open = gateway.snapshot().connections;
    // A quarter of the handshakes, and the other client.
    assert!(open <= 256 + 1, "{open} of one client are open");
    let grown = resident_kib().saturating_sub(before);
    println!("{grown} KiB for {BARE} bare connections in {:?}", begin.elapsed());
    assert!(grown < 20 << 10, "{grown} KiB for {BARE} bare connections");
    until("all of them to end", || gateway.snapshot().connections == 0).await;
    assert_eq!(gateway.snapshot().refused, BARE as u64);
    assert_eq!(echo.connections(), 1);
    drop(bare);
}
