//! A strict loopback HTTP/1.1 server that answers from a script, one scene per request, and records what it was asked.
//!
//! Strict: a request that a picky broker could refuse (no `Host`, a body without length, a malformed line) is a fault,
//! and so are requests beyond the script and scenes never asked for. [`Server::finish`] reports them all.

#![allow(dead_code)] // Each test binary uses its part of it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest request head or body a test has use for.
const REQUEST_LIMIT: u64 = 4 << 20;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// How the bytes of an answer travel.
pub enum Manner {
    /// With a `Content-Length`.
    Plain,
    /// In chunks of this many bytes.
    Chunked(usize),
    /// Head and `Content-Length`, then one byte per pause until the client gives up.
    Drip(Duration),
    /// Half of the body, then the connection is closed.
    Cut,
    /// Nothing at all until the client gives up.
    Silent,
}

/// What a scene answers.
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub manner: Manner,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Answer { status, headers: Vec::new(), body: body.into(), manner: Manner::Plain }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn manner(mut self, manner: Manner) -> Self {
        self.manner = manner;
        self
    }
}

/// Answers one request.
pub type Scene = Box<dyn FnOnce(&Request) -> Answer + Send>;

/// A scene that answers the same whatever it is asked.
pub fn answer(answer: Answer) -> Scene {
    Box::new(move |_| answer)
}

#[derive(Default)]
struct State {
    scenes: VecDeque<Scene>,
    requests: Vec<Request>,
    faults: Vec<String>,
    connections: Vec<TcpStream>,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    stop: Condvar,
}

impl Shared {
    /// Wait for the stop or `limit`, whichever comes first; whether it was the stop.
    fn stopped_within(&self, limit: Duration) -> bool {
        let state = self.state.lock().unwrap();
        self.stop.wait_timeout_while(state, limit, |state| !state.stopped).unwrap().0.stopped
    }

    fn fault(&self, text: impl Into<String>) {
        self.state.lock().unwrap().faults.push(text.into());
    }
}

/// The server. Dropping it closes its connections and joins its threads.
pub struct Server {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Plain HTTP on an ephemeral loopback port.
    pub fn start(scenes: Vec<Scene>) -> Self {
        Server::launch(scenes, None)
    }

    /// HTTPS with this configuration.
    pub fn start_tls(scenes: Vec<Scene>, tls: rustls::ServerConfig) -> Self {
        Server::launch(scenes, Some(Arc::new(tls)))
    }

    fn launch(scenes: Vec<Scene>, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { scenes: scenes.into(), ..State::default() };
        let shared = Arc::new(Shared { state: Mutex::new(state), stop: Condvar::new() });
        let for_acceptor = Arc::clone(&shared);
        let acceptor = named("scripted-accept", move || accept(&listener, &for_acceptor, tls.as_ref()));
        Server { address, shared, acceptor: Some(acceptor) }
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state.lock().unwrap().requests.clone()
    }

    /// Every request, after checking that there was no fault and that the script was played to its end.
    pub fn finish(self) -> Vec<Request> {
        let state = self.shared.state.lock().unwrap();
        assert_eq!(state.faults, Vec::<String>::new(), "faults of the client");
        assert_eq!(state.scenes.len(), 0, "scenes nobody asked for");
        state.requests.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        {
            let mut state = match self.shared.state.lock() {
                Ok(state) => state,
                Err(poisoned) => poisoned.into_inner(),
            };
            state.stopped = true;
            for connection in &state.connections {
                let _ = connection.shutdown(Shutdown::Both);
            }
        }
        self.shared.stop.notify_all();
        // Wakes the acceptor, which then sees the stop.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn named(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).unwrap()
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, tls: Option<&Arc<rustls::ServerConfig>>) {
    let mut workers = Vec::new();
    for connection in listener.incoming() {
        let mut state = shared.state.lock().unwrap();
        if state.stopped {
            break;
        }
        let connection = connection.unwrap();
        state.connections.push(connection.try_clone().unwrap());
        drop(state);
        let (shared, tls) = (Arc::clone(shared), tls.cloned());
        workers.push(named("scripted-serve", move || {
            let to_close = connection.try_clone().unwrap();
            match tls {
                None => serve(connection, &shared),
                Some(tls) => {
                    let session = rustls::ServerConnection::new(tls).unwrap();
                    serve(rustls::StreamOwned::new(session, connection), &shared);
                }
            }
            // Dropping is not enough: the server keeps a handle of every connection, to end them with itself.
            let _ = to_close.shutdown(Shutdown::Both);
        }));
    }
    for worker in workers {
        let _ = worker.join();
    }
}

/// Answer requests on one connection until it ends.
fn serve(stream: impl Read + Write, shared: &Shared) {
    let mut stream = BufReader::new(stream);
    loop {
        let request = match read_request(&mut stream) {
            Ok(Some(request)) => request,
            // The end of a connection between requests, or a TLS handshake the client broke off.
            Ok(None) | Err(ReadError::Io) => return,
            Err(ReadError::Fault(text)) => return shared.fault(text),
        };
        let scene = {
            let mut state = shared.state.lock().unwrap();
            state.requests.push(request.clone());
            state.scenes.pop_front()
        };
        let Some(scene) = scene else {
            return shared.fault(format!("unexpected request: {} {}", request.method, request.path));
        };
        if !write_answer(stream.get_mut(), scene(&request), shared) {
            return;
        }
    }
}

enum ReadError {
    Io,
    Fault(String),
}

impl From<std::io::Error> for ReadError {
    fn from(_: std::io::Error) -> Self {
        ReadError::Io
    }
}

fn read_request(stream: &mut impl BufRead) -> Result<Option<Request>, ReadError> {
    let fault = |text: &str| ReadError::Fault(text.to_owned());
    let Some(line) = read_line(stream)? else { return Ok(None) };
    let mut words = line.split(' ');
    let (Some(method), Some(path), Some("HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(ReadError::Fault(format!("request line {line:?}")));
    };
    let mut request =
        Request { method: method.to_owned(), path: path.to_owned(), headers: Vec::new(), body: Vec::new() };
    loop {
        let line = read_line(stream)?.ok_or_else(|| fault("connection ended inside the head"))?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| fault("header without colon"))?;
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    request.header("host").ok_or_else(|| fault("no Host"))?;
    if request.header("transfer-encoding").is_some() {
        return Err(fault("a body without length"));
    }
    let len: u64 = match (request.header("content-length"), method) {
        (Some(len), _) => len.parse().map_err(|_| fault("Content-Length"))?,
        (None, "GET") => 0,
        (None, _) => return Err(fault("no Content-Length")),
    };
    if len > REQUEST_LIMIT {
        return Err(fault("body too long"));
    }
    request.body = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut request.body)?;
    Ok(Some(request))
}

/// A line that ends in CRLF, without it; `None` at the end of the connection.
fn read_line(stream: &mut impl BufRead) -> Result<Option<String>, ReadError> {
    let mut line = String::new();
    if stream.by_ref().take(REQUEST_LIMIT).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(Some(line.to_owned())),
        None => Err(ReadError::Fault(format!("line without CRLF: {line:?}"))),
    }
}

/// Send `answer`; whether the connection can be used again. A client that has gone is no fault: it may refuse to read.
fn write_answer(stream: &mut impl Write, answer: Answer, shared: &Shared) -> bool {
    let mut head = format!("HTTP/1.1 {} Scripted\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let length = format!("content-length: {}\r\n\r\n", answer.body.len());
    let mut send = |bytes: &[u8]| stream.write_all(bytes).and_then(|()| stream.flush()).is_ok();
    match answer.manner {
        Manner::Plain => send((head + &length).as_bytes()) && send(&answer.body),
        Manner::Chunked(size) => {
            send((head + "transfer-encoding: chunked\r\n\r\n").as_bytes())
                && answer.body.chunks(size).all(|chunk| {
                    send(format!("{:x}\r\n", chunk.len()).as_bytes()) && send(chunk) && send(b"\r\n")
                })
                && send(b"0\r\n\r\n")
        }
        Manner::Drip(pause) => {
            let dripped = send((head + &length).as_bytes())
                && answer.body.iter().all(|byte| send(&[*byte]) && !shared.stopped_within(pause));
            let _ = dripped;
            false
        }
        Manner::Cut => {
            send((head + &length).as_bytes());
            send(&answer.body[..answer.body.len() / 2]);
            false
        }
        Manner::Silent => {
            shared.stopped_within(Duration::from_secs(600));
            false
        }
    }
}
