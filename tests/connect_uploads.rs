//! Claim: what an application uploads arrives whole, however slowly the server reads; and what a server answers before it has
//! read all of it reaches the application, in every mode.
#![cfg(feature = "sandbox")]

#[path = "common/attested.rs"]
mod attested;
#[path = "common/connecting.rs"]
mod connecting;
#[path = "common/egress.rs"]
mod egress;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::time::Duration;

use attested::{World, head, tunnel};
use egress::Character;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const MODES: [&str; 2] = ["multiplex", "raw"];
const TOO_LARGE: &str =
    "HTTP/1.1 413 Payload Too Large\r\ncontent-length: 8\r\nconnection: close\r\n\r\nless, ok";

/// Bytes that differ.
fn body(len: u32) -> Vec<u8> {
    (0..len / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_to_a_server_that_reads_slowly_arrives_whole() {
    let sent = body(16 << 20);
    for mode in MODES {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = World::new(Character::default(), listener.local_addr().unwrap()).await;
        let connect = world.connect(&["--mode", mode]);
        let to = world.egress.address;
        let mut application = TcpStream::connect(connect.doors[0]).await.unwrap();
        let asking = async {
            let head = format!(
                "POST http://{to}/upload HTTP/1.1\r\nHost: x\r\ncontent-length: {}\r\n\r\n",
                sent.len()
            );
            application.write_all(head.as_bytes()).await.unwrap();
            // Pieces of an odd size: what waits in the proxy grows between two tries to write it.
            for piece in sent.chunks(7001) {
                application.write_all(piece).await.unwrap();
            }
            attested::head(&mut application).await
        };
        let serving = async {
            let (mut server, _) = listener.accept().await.unwrap();
            head(&mut server).await;
            let (mut hash, mut left) = (Sha256::new(), sent.len());
            let mut part = vec![0; 64 << 10];
            let mut parts = 0;
            while left > 0 {
                let n = server.read(&mut part).await.unwrap();
                assert!(n > 0, "{left} bytes are missing");
                hash.update(&part[..n]);
                left -= n;
                parts += 1;
                // The claim is about slowness: everything on the way fills up.
                if parts % 16 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            hash.finalize()
        };
        let (answer, hash) = tokio::join!(asking, serving);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{mode}: {answer}");
        assert_eq!(hash, Sha256::digest(&sent), "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_of_a_server_that_takes_no_more_reaches_the_application() {
    let sent = body(8 << 20);
    let character = Character { early: Some(TOO_LARGE), ..Character::default() };
    for mode in MODES {
        let world = World::new(character.clone(), "127.0.0.1:9".parse().unwrap()).await;
        let connect = world.connect(&["--mode", mode]);
        let to = world.egress.address;

        let (mut read, mut write) = tunnel(connect.doors[0], to).await.into_split();
        let uploading = async {
            // To the end: what the server does not take, the tunnel does.
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut answer = String::new();
        let ((), received) = tokio::join!(uploading, read.read_to_string(&mut answer));
        received.unwrap();
        assert_eq!(answer, TOO_LARGE, "{mode}");

        let application = TcpStream::connect(connect.doors[0]).await.unwrap();
        let (mut read, mut write) = application.into_split();
        let uploading = async {
            let head =
                format!("POST http://{to}/ HTTP/1.1\r\nHost: x\r\ncontent-length: {}\r\n\r\n", sent.len());
            write.write_all(head.as_bytes()).await.unwrap();
            // May fail: the proxy has no use for more once it has answered.
            let _ = write.write_all(&sent).await;
        };
        let answering = async {
            let mut answer = Vec::new();
            while !answer.ends_with(b"less, ok") {
                answer.push(read.read_u8().await.unwrap());
            }
            String::from_utf8(answer).unwrap()
        };
        let ((), answer) = tokio::join!(uploading, answering);
        assert!(answer.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{mode}: {answer}");
    }
}
