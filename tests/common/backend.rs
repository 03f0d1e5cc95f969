//! An inference service for the tests of the service port: a little HTTP, and echoes. Counts what reaches it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Ends with the test.
pub struct Backend {
    pub at: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
pub struct Seen {
    pub connections: AtomicUsize,
    pub bytes: AtomicU64,
    /// Connections that the client reset.
    pub resets: AtomicUsize,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `len` bytes that differ everywhere.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut n = 0_u64;
    while bytes.len() < len {
        bytes.extend(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        n += 1;
    }
    bytes.truncate(len);
    bytes
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Backend {
    pub async fn start<F>(serve: impl Fn(TcpStream, Arc<Seen>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let counts = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counts.connections.fetch_add(1, Ordering::SeqCst);
                let (serving, counts) = (serve(stream, counts.clone()), counts.clone());
                tokio::spawn(async move {
                    // EPIPE where the client had ended its side before (Linux, tcp_reset).
                    let reset = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
                    if serving.await.is_err_and(|error| reset.contains(&error.kind())) {
                        counts.resets.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Backend { at, seen, task }
    }

    /// Answers `GET /big/N` with N bytes of [`pattern`], `POST /hash` with the SHA-256 of its body, `GET /events/N` with N
    /// events, one per permit of `ticks`, anything else with its path.
    pub async fn http(ticks: Arc<Semaphore>) -> Self {
        Self::start(move |stream, seen| http(stream, seen, ticks.clone())).await
    }

    /// Sends everything back while it comes, and ends when the client does.
    pub async fn echo() -> Self {
        Self::start(|mut stream, seen| async move {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let read = stream.read(&mut buffer).await?;
                seen.bytes.fetch_add(read as u64, Ordering::SeqCst);
                if read == 0 {
                    return stream.shutdown().await;
                }
                stream.write_all(&buffer[..read]).await?;
            }
        })
        .await
    }

    /// Reads to the client's end, then sends the SHA-256 of all of it.
    pub async fn digest() -> Self {
        Self::start(|mut stream, seen| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            seen.bytes.fetch_add(all.len() as u64, Ordering::SeqCst);
            stream.write_all(sha256(&all).as_bytes()).await
        })
        .await
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::SeqCst)
    }

    pub fn resets(&self) -> usize {
        self.seen.resets.load(Ordering::SeqCst)
    }
}

async fn http(stream: TcpStream, seen: Arc<Seen>, ticks: Arc<Semaphore>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut len) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        seen.bytes.fetch_add(line.len() as u64, Ordering::SeqCst);
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().unwrap();
        }
        // curl asks before it sends a large body.
        if line.to_ascii_lowercase().starts_with("expect: 100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        if line == "\r\n" {
            break;
        }
        head.push(line);
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await?;
    let mut words = head[0].split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|text| text.parse::<usize>().ok());
    let start = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
    if let Some(events) = number("/events/") {
        stream.write_all(format!("{start}Content-Type: text/event-stream\r\n\r\n").as_bytes()).await?;
        for event in 0..events {
            ticks.acquire().await.unwrap().forget();
            stream.write_all(format!("data: {event}\n\n").as_bytes()).await?;
        }
        return stream.shutdown().await;
    }
    let answer = match number("/big/") {
        Some(len) => pattern(len),
        None if path == "/hash" => sha256(&body).into_bytes(),
        None => path.into_bytes(),
    };
    stream.write_all(format!("{start}Content-Length: {}\r\n\r\n", answer.len()).as_bytes()).await?;
    if method != "HEAD" {
        stream.write_all(&answer).await?;
    }
    stream.shutdown().await
}

/// Wait for `condition` without blocking the runtime, at most half a minute.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited 30 s for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
