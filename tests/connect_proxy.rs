//! Claim: an application reaches the server behind an attested tunnel through every door as if it were connected to it,
//! with the requests of a proxy rewritten as they should be, whether streams share a connection or not.
#![cfg(feature = "sandbox")]

#[path = "common/attested.rs"]
mod attested;
#[path = "common/connecting.rs"]
mod connecting;
#[path = "common/egress.rs"]
mod egress;
#[path = "common/raw_http.rs"]
mod raw_http;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::time::Duration;

use attested::{World, echo, head, tunnel};
use egress::{Character, Egress, Evidence};
use raw_http::{Script, answer};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Megabytes both ways at once, and the end of one direction before the other.
async fn exchange(stream: TcpStream) {
    let sent: Vec<u8> = (0..800_000_u32).flat_map(u32::to_le_bytes).collect();
    let (mut read, mut write) = stream.into_split();
    let sending = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, result) = tokio::join!(sending, read.read_to_end(&mut received));
    result.unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_door_carries_bytes_both_ways_in_every_mode() {
    let backend = echo().await;
    for (alpn, mode, streams) in [
        (&["h2", "rats-tls"][..], "auto", 4),
        (&["rats-tls"], "auto", 0),
        (&["h2"], "multiplex", 4),
        (&["h2", "rats-tls"], "raw", 0),
    ] {
        let world = World::new(Character { alpn, ..Character::default() }, backend).await;
        let to = world.egress.address;
        let connect = world.connect(&["--mode", mode, "--socks", "127.0.0.1:0"]);
        let fixed = world.connect(&["--mode", mode, "--to", &to.to_string()]);
        exchange(tunnel(connect.doors[0], to).await).await;
        exchange(tunnel(connect.doors[0], to).await).await;
        let mut socks = TcpStream::connect(connect.doors[1]).await.unwrap();
        let mut request = b"\x05\x01\x00\x05\x01\x00\x03\x09127.0.0.1".to_vec();
        request.extend(to.port().to_be_bytes());
        socks.write_all(&request).await.unwrap();
        let mut reply = [0; 12];
        socks.read_exact(&mut reply).await.unwrap();
        assert_eq!(reply, [5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        exchange(socks).await;
        exchange(TcpStream::connect(fixed.doors[0]).await.unwrap()).await;
        let seen = &world.egress.seen;
        // The two processes have a connection each where streams share one; all of them have one verdict each.
        assert_eq!(
            (seen.streams(), seen.connections()),
            (streams, if streams > 0 { 2 } else { 4 }),
            "{mode}"
        );
        assert_eq!(seen.wrong.lock().unwrap().as_slice(), [""; 0]);
        let name = (mode != "raw").then(|| "tng.internal".to_owned());
        assert!(seen.names.lock().unwrap().iter().all(|found| *found == name), "{:?}", seen.names);
        assert_eq!(world.sandbox.count("kbs.evaluate").await, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_in_absolute_form_goes_on_in_origin_form() {
    let backend = Script::start(|request| {
        let (status, extra) = if request.target == "/hop" {
            (
                "200 OK",
                &[("Connection", "x-private"), ("X-Private", "1"), ("Keep-Alive", "5"), ("X-Own", "2")][..],
            )
        } else {
            ("404 Not Found", &[][..])
        };
        answer(status, extra, &request.body)
    });
    let world = World::new(Character::default(), backend.address).await;
    let connect = world.connect(&[]);
    let to = world.egress.address;
    let client =
        reqwest::Client::builder().proxy(reqwest::Proxy::http(connect.proxy()).unwrap()).build().unwrap();
    let request = client
        .post(format!("http://{to}/hop?q=%20"))
        .header("Connection", "x-mine, keep-alive")
        .header("X-Mine", "1")
        .header("Proxy-Authorization", "Basic eA==")
        .header("TE", "trailers")
        .header("X-Stays", "3")
        .body("body");
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.text().await.unwrap(), "body");
    let seen = backend.requests().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/hop?q=%20"));
    assert_eq!(seen.headers["host"], to.to_string());
    assert_eq!(seen.headers["x-tng-http-forward"], "true");
    assert_eq!(seen.headers["x-stays"], "3");
    for dropped in ["connection", "x-mine", "proxy-authorization", "proxy-connection", "te", "keep-alive"] {
        assert!(!seen.headers.contains_key(dropped), "{dropped}");
    }
    let answer = client.get(format!("http://{to}/hop")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["x-own"], "2");
    for dropped in ["x-private", "keep-alive"] {
        assert!(!answer.headers().contains_key(dropped), "{dropped}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_a_proxy_cannot_pass_on_is_answered_with_the_reason() {
    let world = World::new(Character::default(), "127.0.0.1:9".parse().unwrap()).await;
    let connect = world.connect(&[]);
    let to = world.egress.address;
    for (request, reason) in [
        (
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            "this is a proxy: expected a request for http://HOST:PORT/PATH, or CONNECT",
        ),
        (
            format!("GET https://{to}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
            "expected a request for http://, got https://: use CONNECT for it",
        ),
        (
            format!("GET http://user:word@{to}/ HTTP/1.1\r\nHost: x\r\n\r\n"),
            "a user in the URL is not passed on: use the header Authorization",
        ),
        (
            format!("GET http://{to}/ HTTP/1.1\r\nHost: x\r\nX-Tng-Http-Forward: true\r\n\r\n"),
            "recursion is detected: the request carries x-tng-http-forward, so it came out of a tunnel",
        ),
        ("CONNECT host HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "expected HOST:PORT, got \"host\""),
        ("GET http://ho_st:0/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "expected HOST:PORT, got \"ho_st:0\""),
    ] {
        let mut stream = TcpStream::connect(connect.doors[0]).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request}: {head}");
        let wanted = format!("cai connect: {reason}\n");
        let mut body = vec![0; wanted.len()];
        stream.read_exact(&mut body).await.unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), wanted);
    }
    assert_eq!(world.egress.seen.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_as_they_are_sent_on_a_connection_that_is_kept() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new(Character::default(), listener.local_addr().unwrap()).await;
    let connect = world.connect(&[]);
    let to = world.egress.address;
    let mut application = BufReader::new(TcpStream::connect(connect.doors[0]).await.unwrap());
    for round in 0..2 {
        let request = format!("GET http://{to}/{round} HTTP/1.1\r\nHost: x\r\n\r\n");
        application.write_all(request.as_bytes()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let asked = head(&mut server).await;
        assert!(asked.starts_with(&format!("GET /{round} HTTP/1.1\r\n")), "{asked}");
        server
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            )
            .await
            .unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            application.read_line(&mut line).await.unwrap();
        }
        // Each event is there before the next one is sent.
        for event in ["data: 1\n", "data: 2\n"] {
            server.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.unwrap();
            for expected in [format!("{:X}\r\n", event.len()), event.to_owned(), "\r\n".to_owned()] {
                line.clear();
                application.read_line(&mut line).await.unwrap();
                assert_eq!(line, expected);
            }
        }
        server.write_all(b"0\r\n\r\n").await.unwrap();
        for expected in ["0\r\n", "\r\n"] {
            line.clear();
            application.read_line(&mut line).await.unwrap();
            assert_eq!(line, expected);
        }
        // The server's connection goes, the application's stays.
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    }
    assert_eq!(world.egress.seen.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_died_is_dialled_again_without_the_application_noticing() {
    let backend = echo().await;
    let mut world = World::new(Character::default(), backend).await;
    let connect = world.connect(&["--mode", "multiplex"]);
    exchange(tunnel(connect.doors[0], world.egress.address).await).await;
    let address = world.egress.address;
    world.egress.stop().await;
    world.egress =
        Egress::restart(Evidence::default().identity(), Character::default(), backend, address).await;
    exchange(tunnel(connect.doors[0], address).await).await;
    assert_eq!(world.egress.seen.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_with_all_proxy_reaches_the_model() {
    let backend = Script::start(|request| answer("200 OK", &[], request.target.as_bytes()));
    let world = World::new(Character::default(), backend.address).await;
    let connect = world.connect(&["--socks", "127.0.0.1:0"]);
    let url = format!("http://{}/v1/models", world.egress.address);
    for (proxy, more) in [
        (connect.proxy(), &[][..]),
        (connect.proxy(), &["--proxytunnel"][..]),
        (format!("socks5h://{}", connect.doors[1]), &[][..]),
    ] {
        let mut curl = tokio::process::Command::new("curl");
        curl.env("all_proxy", &proxy).env_remove("no_proxy").env_remove("NO_PROXY");
        curl.args(["-sS", "--max-time", "20"]).args(more).arg(&url);
        let output = curl.output().await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "/v1/models", "{output:?}");
    }
}

/// An application and the server at the other end of its tunnel, which has had a byte from it.
async fn joined(mode: &str) -> (World, connecting::Connect, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::new(Character::default(), listener.local_addr().unwrap()).await;
    let connect = world.connect(&["--mode", mode]);
    let mut application = tunnel(connect.doors[0], world.egress.address).await;
    application.write_all(b"?").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_u8().await.unwrap();
    (world, connect, application, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_is_cut_off_does_not_look_complete() {
    for mode in ["multiplex", "raw"] {
        let (_world, _connect, mut application, mut server) = joined(mode).await;
        server.write_all(b"part").await.unwrap();
        let mut part = [0; 4];
        application.read_exact(&mut part).await.unwrap();
        assert_eq!(&part, b"part");
        server.set_zero_linger().unwrap();
        drop(server);
        let reading = tokio::time::timeout(Duration::from_secs(20), application.read(&mut part)).await;
        let end = reading.expect("an end").map_err(|error| error.kind());
        assert_eq!(end, Err(std::io::ErrorKind::ConnectionReset), "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn application_that_gives_up_is_seen_to_by_the_server() {
    for mode in ["multiplex", "raw"] {
        let (_world, _connect, application, mut server) = joined(mode).await;
        let mut part = [0; 4];
        application.set_zero_linger().unwrap();
        drop(application);
        // The end, in whichever way the other end of the tunnel says it.
        let reading = tokio::time::timeout(Duration::from_secs(20), server.read(&mut part)).await;
        assert_eq!(reading.expect("an end").unwrap_or(0), 0, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_sent_right_behind_connect_are_the_first_in_the_tunnel() {
    let world = World::new(Character::default(), echo().await).await;
    let connect = world.connect(&[]);
    let to = world.egress.address;
    let mut application = TcpStream::connect(connect.doors[0]).await.unwrap();
    application
        .write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\nearly").as_bytes())
        .await
        .unwrap();
    head(&mut application).await;
    let mut back = [0; 5];
    application.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"early");
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_takes_no_more_streams_gets_another_beside_it() {
    let world = World::new(Character { streams: 1, ..Character::default() }, echo().await).await;
    let connect = world.connect(&[]);
    let to = world.egress.address;
    let mut first = tunnel(connect.doors[0], to).await;
    exchange(tunnel(connect.doors[0], to).await).await;
    assert_eq!(world.egress.seen.connections(), 2);
    first.write_all(b"still here").await.unwrap();
    let mut back = [0; 10];
    first.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here");
}
