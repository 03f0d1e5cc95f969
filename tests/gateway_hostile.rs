//! Claim: who is no client of TNG's ends at the service port in bounded time and memory, with one line that says why, and the
//! inference service never sees a byte of it; listed health checks pass in plaintext, and nothing beside them.

#![cfg(feature = "sandbox")]

#[path = "common/backend.rs"]
mod backend;
#[path = "common/log.rs"]
mod log;
#[path = "common/port.rs"]
mod port;

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backend::{Backend, until};
use cai::config::CertificateRule::{Auto, Current, Legacy};
use cai::ratls::Format;
use cai::ratls::certificate::parse;
use cai::ratls::evidence::TaggedEvidence;
use log::Log;
use port::{serve, tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Semaphore;

/// What came back before the other side closed; an abort counts as a close.
async fn answer_to(at: std::net::SocketAddr, sent: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let mut answer = Vec::new();
    // It may be closed before everything is sent.
    let _ = stream.write_all(sent).await;
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

async fn s_client(at: std::net::SocketAddr, options: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &at.to_string()]).args(options).stdin(Stdio::null());
    let output = command.output().await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_old_tls_and_other_protocols_end_at_the_port() {
    let echo = Backend::echo().await;
    let (gateway, at) = serve(Auto, echo.at, &[]).await;
    for plaintext in [
        &b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"[..],
        b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x2e\x01\x00\x02",
        b"\0",
    ] {
        assert_eq!(answer_to(at, plaintext).await, b"", "{plaintext:?}");
    }
    assert_eq!(gateway.snapshot().refused, 6);
    // A handshake record that is none; and one longer than TLS has.
    let alert = answer_to(at, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00").await;
    assert_eq!(alert[..3], [0x15, 3, 3], "a TLS alert was expected");
    let mut oversized = vec![0x16, 3, 1, 0xff, 0xff];
    oversized.resize(70_000, 0);
    answer_to(at, &oversized).await;
    // A ClientHello of 16 MB in records of 16 KB.
    let mut endless = Vec::new();
    for n in 0..1024 {
        endless.extend([0x16, 3, 1, 0x40, 0]);
        let start = endless.len();
        endless.resize(start + 0x4000, 0);
        if n == 0 {
            endless[start..start + 4].copy_from_slice(&[1, 0xff, 0xff, 0xff]);
        }
    }
    answer_to(at, &endless).await;

    let text = s_client(at, &["-tls1_2"]).await;
    assert!(text.contains("alert protocol version"), "{text}");
    let text = s_client(at, &["-tls1_3", "-alpn", "http/1.1"]).await;
    assert!(text.contains("no application protocol"), "{text}");
    // Without ALPN the handshake is done (tng.md 3.1), and what follows must be HTTP/2.
    let text = s_client(at, &["-tls1_3", "-sess_out", "/dev/null"]).await;
    assert!(text.contains("TLSv1.3, Cipher is"), "{text}");
    assert!(!text.contains("New Session Ticket") && text.contains("CN = TNG"), "{text}");
    let (mut tls, _) = tls(at, &["h2"], true).await.unwrap();
    tls.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let _ = tls.read_to_end(&mut Vec::new()).await;
    until("every connection to end", || gateway.snapshot().connections == 0).await;
    assert_eq!((echo.connections(), echo.bytes()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn port_shows_each_generation_its_certificate_and_the_operators_choice_overrules() {
    let echo = Backend::echo().await;
    let format = |der: &[u8]| {
        let read = parse(der).unwrap();
        let tagged = TaggedEvidence::decode(&read.blob).unwrap();
        tagged.bound(read.key.spki()).unwrap();
        tagged.format()
    };
    for (rule, expected) in [
        (Auto, [Format::Legacy, Format::Current, Format::Current]),
        (Legacy, [Format::Legacy; 3]),
        (Current, [Format::Current; 3]),
    ] {
        let (_gateway, at) = serve(rule, echo.at, &[]).await;
        for ((alpn, new), expected) in
            [(&["h2"], false), (&["h2"], true), (&["rats-tls"], false)].into_iter().zip(expected)
        {
            let (_, der) = tls(at, alpn, new).await.unwrap();
            assert_eq!(format(&der), expected, "{rule:?} {alpn:?} {new}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_slow_clients_are_closed_in_their_time() {
    let echo = Backend::echo().await;
    let (gateway, at) = serve(Auto, echo.at, &["/health"]).await;
    let seconds = async |sent: &'static [u8]| {
        let begin = Instant::now();
        answer_to(at, sent).await;
        begin.elapsed().as_secs()
    };
    let (silent, slow_hello, slow_check) = tokio::join!(
        seconds(b""),
        // Half a ClientHello, and half a health check.
        seconds(b"\x16\x03\x01\x02\x00\x01"),
        seconds(b"GET /health HTTP/1.1\r\n"),
    );
    assert!((4..=7).contains(&silent), "{silent}");
    assert!((9..=12).contains(&slow_hello), "{slow_hello}");
    assert!((9..=12).contains(&slow_check), "{slow_check}");
    assert_eq!(gateway.snapshot().refused, 3);
    assert_eq!(echo.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_health_checks_pass_in_plaintext() {
    let http = Backend::http(Arc::new(Semaphore::new(0))).await;
    let (gateway, at) = serve(Auto, http.at, &["/health"]).await;
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "-m", "10", "--noproxy", "*", "-o", "-", "-w", " %{http_code}"]).args(arguments);
        async move { String::from_utf8(command.output().await.unwrap().stdout).unwrap() }
    };
    let url = |path: &str| format!("http://{at}{path}");
    assert_eq!(curl(&[&url("/health")]).await, "/health 200");
    assert!(curl(&["-I", &url("/health")]).await.ends_with(" 200"));
    assert_eq!((http.connections(), gateway.snapshot().plaintext_checks), (2, 2));
    for refused in [
        &[url("/v1/models")][..],
        &[url("/health?x")],
        &[url("/health/")],
        &["-X".into(), "POST".into(), url("/health")],
        &["-X".into(), "GET".into(), "-d".into(), "body".into(), url("/health")],
    ] {
        let arguments: Vec<&str> = refused.iter().map(String::as_str).collect();
        assert_eq!(curl(&arguments).await, " 000", "{refused:?}");
    }
    // A second request behind the first.
    let two = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(answer_to(at, two).await, b"");
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("\r\n\r\n/health"), "{answer}");
    assert_eq!(http.connections(), 3, "what was refused reached nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_a_tunnels_share_wait_and_floods_of_resets_end_it() {
    let echo = Backend::echo().await;
    let (gateway, at) = serve(Auto, echo.at, &[]).await;
    let tunnel = port::tunnel(at).await;
    let mut open = Vec::new();
    for _ in 0..200 {
        open.push(tunnel.open().await.unwrap());
    }
    let waiting = tokio::time::timeout(Duration::from_millis(300), tunnel.open());
    assert!(waiting.await.is_err(), "stream 201 was open beside 200 others");
    drop(open);
    tunnel.open().await.unwrap();
    // Rapid reset: requests that are taken back before they are looked at.
    let flooding = port::tunnel(at).await;
    for _ in 0..5_000 {
        let Ok(mut send) = flooding.send.clone().ready().await else { break };
        let request = http::Request::connect("tng.internal").body(()).unwrap();
        let Ok((_, mut stream)) = send.send_request(request, false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
    }
    until("the flood to end", || gateway.snapshot().streams <= 201).await;
}

#[test]
fn refusals_are_told_once_for_each_kind_and_say_what_to_do() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let echo = Backend::echo().await;
            let (_gateway, at) = serve(Auto, echo.at, &[]).await;
            for _ in 0..5 {
                answer_to(at, b"GET / HTTP/1.1\r\n\r\n").await;
            }
            s_client(at, &["-tls1_2"]).await;
        });
    });
    let log = log.text();
    let lines = |code: &str| log.lines().filter(|line| line.contains(code)).count();
    assert_eq!((lines("gateway.plaintext"), lines("gateway.tls")), (1, 1), "{log}");
    assert!(log.contains("spoke plaintext: nothing may pass in plaintext"), "{log}");
    assert!(log.contains("clients reach the service through `cai connect` or TNG"), "{log}");
}
