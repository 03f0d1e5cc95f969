//! An HTTP server that answers as a closure says, byte for byte, and remembers what it was asked.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// One request as it came over the wire.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path and query, undecoded.
    pub target: String,
    /// Lower-case names, trimmed values.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

type Answer = dyn Fn(&Request) -> Vec<u8> + Send + Sync;

/// The server; ends with the test.
pub struct Script {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    ended: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Script {
    /// Answer every request with the raw bytes that `answer` gives; one request a connection.
    pub fn start(answer: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, ended) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let (seen, stop, answer): (_, _, Arc<Answer>) = (requests.clone(), ended.clone(), Arc::new(answer));
        let acceptor = named("raw-http-accept", move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (seen, answer): (Arc<Mutex<Vec<Request>>>, _) = (Arc::clone(&seen), answer.clone());
                // Ends with its one answer, or when the client hangs up.
                drop(named("raw-http-serve", move || serve(connection.unwrap(), &seen, &*answer)));
            }
        });
        Script { address, requests, ended, acceptor: Some(acceptor) }
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn endpoint(&self) -> url::Url {
        format!("http://{}", self.address).parse().unwrap()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which is waiting for a connection.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.join().unwrap();
        }
    }
}

fn named(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).unwrap()
}

fn serve(mut connection: TcpStream, seen: &Mutex<Vec<Request>>, answer: &Answer) {
    let Some(request) = receive(&connection) else { return };
    seen.lock().unwrap().push(request.clone());
    // The client may have hung up, which is its right.
    let _ = connection.write_all(&answer(&request));
}

fn receive(connection: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(connection);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
    let mut body = vec![0; len];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, target, headers, body })
}

/// An answer with `Content-Length` and the given further header lines.
pub fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}
