//! Claim: with `oss.proxy` every request to the object store goes to that proxy and to nobody else, whole or through a tunnel, so that
//! a proxy that caches ranges spares the origin; what goes wrong there is said of it; the environment is not looked at.
#![cfg(feature = "sandbox")]

#[path = "common/bucket.rs"]
mod bucket;
mod common;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bucket::{Ran, Scene};
use bytes::Bytes;
use cai::config::Oss;
use cai::error::{ErrorClass, Fault, chain};
use cai::oss::{Client, OssError};
use rustls::pki_types::PrivateKeyDer;
use sandbox::{Builder, Sandbox};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// How the proxy behaves.
#[derive(Clone, Copy)]
enum Manner {
    Serves,
    /// Out of the whole object, which it asks for once with whatever signature came first, as Dragonfly does in pieces.
    Slices,
    /// With this status and nothing else, whatever is asked.
    Answers(&'static str),
    /// So many bytes into each answer.
    Cuts(usize),
}

/// A proxy that keeps the answers to requests for ranges. Ends with the test's runtime.
struct Proxy {
    address: SocketAddr,
    /// First lines of the requests.
    asked: Mutex<Vec<String>>,
    kept: tokio::sync::Mutex<HashMap<String, Vec<u8>>>,
    manner: Manner,
}

impl Proxy {
    async fn start(manner: Manner) -> Arc<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let proxy = Arc::new(Proxy { address, asked: Mutex::default(), kept: Default::default(), manner });
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let proxy = serving.clone();
                // A client may hang up.
                tokio::spawn(async move { drop(proxy.serve(connection).await) });
            }
        });
        proxy
    }

    async fn serve(&self, connection: TcpStream) -> std::io::Result<()> {
        let mut connection = BufReader::new(connection);
        let (mut first, mut headers, mut range, mut len) = (String::new(), String::new(), String::new(), 0);
        connection.read_line(&mut first).await?;
        loop {
            let mut line = String::new();
            connection.read_line(&mut line).await?;
            let (name, value) = line.split_once(':').unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "" => break,
                "range" => {
                    range = value.trim().to_owned();
                    continue;
                }
                "content-length" => len = value.trim().parse().unwrap(),
                _ => {}
            }
            headers += &line;
        }
        let mut body = vec![0; len];
        connection.read_exact(&mut body).await?;
        self.asked.lock().unwrap().push(first.trim().to_owned());
        if let Manner::Answers(status) = self.manner {
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return connection.write_all(answer.as_bytes()).await;
        }
        let words: Vec<&str> = first.split(' ').collect();
        let [method, target, version] = words[..] else { panic!("{first}") };
        if method == "CONNECT" {
            let mut origin = TcpStream::connect(target).await?;
            connection.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            return copy_bidirectional(&mut connection, &mut origin).await.map(drop);
        }
        let key =
            if let Manner::Slices = self.manner { target.to_owned() } else { format!("{target} {range}") };
        // The second waits for the first.
        let mut kept = self.kept.lock().await;
        if !kept.contains_key(&key) || range.is_empty() {
            let (host, path) = target.strip_prefix("http://").unwrap().split_once('/').unwrap();
            let wanted = match (self.manner, range.as_str()) {
                (_, "") => String::new(),
                (Manner::Slices, _) => format!("range: bytes=0-{}\r\n", LEN - 1),
                (_, range) => format!("range: {range}\r\n"),
            };
            let request = format!("{method} /{path} {version}{headers}{wanted}connection: close\r\n\r\n");
            let mut origin = TcpStream::connect(host).await?;
            origin.write_all(&[request.as_bytes(), &body].concat()).await?;
            let mut answer = Vec::new();
            origin.read_to_end(&mut answer).await?;
            kept.insert(key.clone(), answer);
        }
        let end = if let Manner::Cuts(after) = self.manner { after } else { usize::MAX };
        let answer = match self.manner {
            Manner::Slices => slice(&kept[&key], &range),
            _ => kept[&key].clone(),
        };
        connection.write_all(&answer[..end.min(answer.len())]).await?;
        connection.shutdown().await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn config(&self, sandbox: &Sandbox) -> Oss {
        Oss { proxy: Some(self.url().parse().unwrap()), ..sandbox.oss_config() }
    }

    fn client(&self, sandbox: &Sandbox) -> Client {
        Client::new(&self.config(sandbox)).unwrap()
    }
}

/// What is asked for, out of an answer with the whole object.
fn slice(whole: &[u8], range: &str) -> Vec<u8> {
    let end = whole.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(whole[..end].to_vec()).unwrap();
    assert!(head.starts_with("HTTP/1.1 206 "), "{head}");
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    let is_other = |line: &&str| {
        !["content-length", "content-range"].iter().any(|name| line.to_lowercase().starts_with(name))
    };
    let lines: Vec<&str> = head.lines().filter(is_other).collect();
    let len = to + 1 - from;
    let head = format!(
        "{}\r\ncontent-length: {len}\r\ncontent-range: bytes {from}-{to}/{LEN}\r\n\r\n",
        lines.join("\r\n")
    );
    [head.as_bytes(), &whole[end + 4..][from..=to]].concat()
}

const LEN: u64 = 3_000_000;

fn content() -> Vec<u8> {
    bucket::bytes(7, LEN as usize)
}

/// A bucket with `model/x` in it, and its tag.
async fn scene() -> (Sandbox, String) {
    let sandbox = Sandbox::start(Builder::default());
    let client = Client::new(&sandbox.oss_config()).unwrap();
    client.put("model/x", Bytes::from(content())).await.unwrap();
    let etag = client.head("model/x").await.unwrap().etag.unwrap();
    (sandbox, etag)
}

/// The object in three ranges.
async fn read(client: &Client, etag: &str) -> Result<Vec<u8>, OssError> {
    let mut bytes = Vec::new();
    for start in [0, LEN / 3, LEN * 2 / 3] {
        let part = client.get_range("model/x", etag, start..start + LEN / 3, LEN).await?;
        bytes.extend_from_slice(&part.frames.concat());
    }
    Ok(bytes)
}

#[tokio::test]
async fn nodes_behind_a_proxy_that_caches_ranges_cost_the_origin_each_range_once() {
    let (sandbox, etag) = scene().await;
    let proxy = Proxy::start(Manner::Serves).await;
    let nodes = [(); 3].map(|()| proxy.client(&sandbox));
    let (one, two, three) =
        tokio::join!(read(&nodes[0], &etag), read(&nodes[1], &etag), read(&nodes[2], &etag));
    for got in [one, two, three] {
        assert!(got.unwrap() == content());
    }
    assert_eq!(sandbox.count("oss.get").await, 3);
    let listed = nodes[0].list("model/").await.unwrap();
    assert_eq!(listed.len(), 1);
    let asked = proxy.asked();
    assert_eq!(asked.len(), 10);
    let whole = format!("GET {}/conf-ai/model/x HTTP/1.1", sandbox.oss);
    assert!(asked[..9].iter().all(|line| *line == whole), "{asked:?}");
    assert_eq!(nodes[0].access().borrow().proxy, Some(proxy.url()));
}

#[tokio::test]
async fn proxy_may_ask_for_other_ranges_with_our_signature() {
    let (sandbox, etag) = scene().await;
    let proxy = Proxy::start(Manner::Slices).await;
    let nodes = [(); 2].map(|()| proxy.client(&sandbox));
    for node in &nodes {
        assert!(read(node, &etag).await.unwrap() == content());
    }
    assert_eq!(sandbox.count("oss.get").await, 1);
    let log = sandbox.log().await;
    let get = log["requests"].as_array().unwrap().iter().find(|request| request["op"] == "get").unwrap();
    assert_eq!((get["status"].as_u64(), get["range"].as_str()), (Some(206), Some("bytes=0-2999999")));
}

/// Takes TLS in front of `origin`; the authority to trust, as a file.
async fn tls(origin: SocketAddr, ca: &std::path::Path) -> SocketAddr {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(ca, certified.cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config =
        builder.unwrap().with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key);
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(config.unwrap())), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(connection).await.unwrap();
                let mut server = TcpStream::connect(origin).await.unwrap();
                drop(copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    address
}

#[tokio::test]
async fn https_goes_through_a_tunnel_in_which_the_proxy_reads_nothing() {
    let (sandbox, etag) = scene().await;
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let behind = tls(sandbox.oss.strip_prefix("http://").unwrap().parse().unwrap(), &ca).await;
    let proxy = Proxy::start(Manner::Serves).await;
    let endpoint = format!("https://{behind}").parse().unwrap();
    let config = Oss { endpoint, ca_file: Some(ca), ..proxy.config(&sandbox) };
    assert!(read(&Client::new(&config).unwrap(), &etag).await.unwrap() == content());
    // One connection for all.
    assert_eq!(proxy.asked(), [format!("CONNECT {behind} HTTP/1.1")]);
    // The endpoint's certificate is still the endpoint's.
    let error = read(&Client::new(&Oss { ca_file: None, ..config }).unwrap(), &etag).await.unwrap_err();
    assert_eq!((error.code(), error.class()), ("oss.unreachable", ErrorClass::Transient));
    assert!(chain(&error).contains("invalid peer certificate"), "{}", chain(&error));
}

#[tokio::test]
async fn what_goes_wrong_is_said_of_the_proxy() {
    let (sandbox, etag) = scene().await;
    let down = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (manner, secret, code, class, said) in [
        (None, false, "oss.unreachable", ErrorClass::Transient, "Connection refused"),
        (None, true, "oss.unreachable", ErrorClass::Transient, "Connection refused"),
        (
            Some(Manner::Answers("407 Proxy Authentication Required")),
            false,
            "oss.proxy-login",
            ErrorClass::Config,
            "answered 407",
        ),
        (
            Some(Manner::Answers("407 Proxy Authentication Required")),
            true,
            "oss.unreachable",
            ErrorClass::Transient,
            "tunnel error: proxy authorization required",
        ),
        (
            Some(Manner::Answers("502 Bad Gateway")),
            false,
            "oss.server-fault",
            ErrorClass::Transient,
            "answered 502",
        ),
        (
            Some(Manner::Answers("502 Bad Gateway")),
            true,
            "oss.unreachable",
            ErrorClass::Transient,
            "tunnel error: unsuccessful",
        ),
        (Some(Manner::Cuts(50)), false, "oss.unreachable", ErrorClass::Transient, "connection closed"),
        (
            Some(Manner::Cuts(100_000)),
            false,
            "oss.body",
            ErrorClass::Transient,
            "end of file before message length reached",
        ),
    ] {
        let (url, config) = match manner {
            None => {
                let url = format!("http://{down}");
                (url.clone(), Oss { proxy: Some(url.parse().unwrap()), ..sandbox.oss_config() })
            }
            Some(manner) => {
                let proxy = Proxy::start(manner).await;
                (proxy.url(), proxy.config(&sandbox))
            }
        };
        let endpoint = if secret { "https://127.0.0.1:1".parse().unwrap() } else { config.endpoint.clone() };
        let client = Client::new(&Oss { endpoint, ..config }).unwrap();
        let error = read(&client, &etag).await.unwrap_err();
        assert_eq!((error.code(), error.class()), (code, class), "{}", chain(&error));
        let text = chain(&error);
        assert!(
            text.contains(&format!("/conf-ai/model/x (through the proxy {url})")) && text.contains(said),
            "{text}"
        );
        assert!(error.hint().contains("oss.proxy") || code != "oss.proxy-login" && code != "oss.unreachable");
    }
    assert_eq!(sandbox.count("oss.get").await, 2, "those of the proxies that cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_go_there_too_and_the_environment_does_not_matter() {
    let scene = Scene::new();
    let mut command = scene.command(&[]);
    for name in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(name, "http://127.0.0.1:1");
    }
    assert_eq!(Ran::of(command.output().unwrap()).code, 0);
    let proxy = Proxy::start(Manner::Serves).await;
    let toml = scene.temp.path().join("root/etc/cai/cai.toml");
    std::fs::create_dir_all(toml.parent().unwrap()).unwrap();
    std::fs::write(&toml, format!("[oss]\nproxy = \"{}\"\n", proxy.url())).unwrap();
    let elsewhere = scene.temp.path().join("downloaded");
    let download = scene.publish("download", &elsewhere, &[]);
    let ran = tokio::task::spawn_blocking(move || Ran::of({ download }.output().unwrap())).await.unwrap();
    assert_eq!(ran.code, 0, "{}", ran.err);
    for (name, content) in &scene.files {
        assert!(std::fs::read(elsewhere.join(name)).unwrap() == *content, "{name}");
    }
    assert!(proxy.asked().iter().all(|line| line.contains(&format!(" {}/conf-ai/", scene.sandbox.oss))));
}

#[test]
fn address_of_a_proxy_is_checked_and_shown() {
    let temp = tempfile::tempdir().unwrap();
    let check = |proxy: &str| {
        let toml = format!("[oss]\nproxy = \"{proxy}\"\n");
        common::write_config(
            temp.path(),
            "https://trustee.example/",
            "https://oss.example",
            "MODEL_OSS_REGION=cn-beijing\n",
            &toml,
        );
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cai"));
        Ran::of(command.arg("--root").arg(temp.path()).args(["check-config", "--json"]).output().unwrap())
    };
    for (proxy, why) in [
        ("http://user:s3cr3t@127.0.0.1:4001", "holds a user name or password"),
        ("https://127.0.0.1:4001", "is not http"),
        ("http://127.0.0.1:4001/d7y", "has a path"),
        ("127.0.0.1:4001", "does not begin with http:// or https://"),
    ] {
        let ran = check(proxy);
        assert_eq!(ran.code, 78, "{}", ran.out);
        let all = ran.out + &ran.err;
        assert!(all.contains(&format!("oss.proxy {why}")), "{all}");
        assert!(!all.contains("s3cr3t"), "{all}");
    }
    let report: serde_json::Value =
        serde_json::from_str(&check("http://127.0.0.1:4001").succeeded().out).unwrap();
    assert_eq!(report["effective"]["oss.proxy"], "http://127.0.0.1:4001/");
}
