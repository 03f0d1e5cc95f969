//! What is measured, for Prometheus: `GET /metrics` on a loopback port or a unix socket.
//!
//! Owns: the socket, and the table of metrics (`families`) with their text (`text`). Must not know: how anything it tells comes
//! about; it reads one `watch<Status>` and the mount's counters, and keeps nothing. No secret is among them, and no file's name.
//! Threads: one task, which serves `CONNECTIONS` at a time; who comes later waits in the kernel's line, and nobody is served for
//! longer than `CONNECTION_LIMIT`. No lock but the status record's, for a copy of it; the disk is not touched. Tested in
//! `tests/metrics.rs`, with a real Prometheus.

mod families;
mod text;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_util::either::Either;

use crate::agent::status::Status;
use crate::config::MetricsPlace;
use crate::error::{ErrorClass, Fault};
use crate::mount;
use families::Facts;
pub use families::{FAMILIES, Family, Kind};

/// Connections served at a time: a Prometheus has one, and a second one may look too.
const CONNECTIONS: usize = 4;

/// How long one connection is served: Prometheus' own limit for a scrape, by default.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// Pause after the system had no descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Owner and group may scrape.
const SOCKET_MODE: u32 = 0o660;

/// The metrics cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The system refused the place.
    #[error("listening at metrics.listen = \"{place}\"")]
    Listen {
        /// Where.
        place: MetricsPlace,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something else is there.
    #[error("metrics.listen = \"unix:{}\": there is {what} already", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
}

impl Fault for MetricsError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Config
    }

    fn code(&self) -> &'static str {
        match self {
            MetricsError::Listen { .. } => "metrics.listen",
            MetricsError::Occupied { .. } => "metrics.occupied",
        }
    }

    fn hint(&self) -> String {
        match self {
            MetricsError::Listen { place: MetricsPlace::Port(_), .. } => {
                "see who has the port: ss -ltnp; or set another one"
            }
            MetricsError::Listen { place: MetricsPlace::Socket(_), .. } => {
                "user cai must be able to write to the directory: with systemd, /run/cai-metrics is there for it"
            }
            MetricsError::Occupied { .. } => "name a path that nothing else uses",
        }
        .to_owned()
    }
}

/// Whoever scrapes, and what they are told.
pub struct Metrics {
    listener: Listener,
    /// Goes with them.
    _socket: Option<Socket>,
    status: watch::Receiver<Status>,
}

enum Listener {
    Port(TcpListener),
    Socket(UnixListener),
}

/// A socket's name, until dropped.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Gone already, or in a directory that is: nobody finds it either way.
        let _ = fs::remove_file(&self.0);
    }
}

impl Metrics {
    /// Listen at `place`. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub async fn listen(place: &MetricsPlace, status: watch::Receiver<Status>) -> Result<Self, MetricsError> {
        let fail = |source| MetricsError::Listen { place: place.clone(), source };
        let (listener, socket) = match place {
            MetricsPlace::Port(address) => {
                (Listener::Port(TcpListener::bind(address).await.map_err(fail)?), None)
            }
            MetricsPlace::Socket(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path).map_err(fail)?;
                let socket = Socket(path.clone());
                // Until here its owner alone may connect, or whom the umask lets: never more than read.
                fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(fail)?;
                (Listener::Socket(listener), Some(socket))
            }
        };
        tracing::info!(event = "metrics.listening", "metrics at {place}");
        Ok(Metrics { listener, _socket: socket, status })
    }

    /// Answer until dropped.
    pub async fn serve(self) {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok(stream) => connections.push(answer_one(stream, &self.status)),
                    Err(error) => {
                        tracing::warn!(event = "metrics.accept", error = ?error, "a connection could not be taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(()) = connections.next() => {}
            }
        }
    }

    async fn accept(&self) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + use<>> {
        Ok(match &self.listener {
            Listener::Port(listener) => Either::Left(listener.accept().await?.0),
            Listener::Socket(listener) => Either::Right(listener.accept().await?.0),
        })
    }
}

/// Take away a socket that a process left which did not end by itself.
fn remove_stale(path: &Path) -> Result<(), MetricsError> {
    let occupied = |what| MetricsError::Occupied { path: path.to_path_buf(), what };
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => Err(occupied("something that is no socket")),
        Ok(_) => match BlockingStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let place = MetricsPlace::Socket(path.to_path_buf());
                fs::remove_file(path).map_err(|source| MetricsError::Listen { place, source })
            }
            _ => Err(occupied("a socket that somebody uses")),
        },
    }
}

/// One connection, to its end or ours.
async fn answer_one(stream: impl AsyncRead + AsyncWrite + Unpin, status: &watch::Receiver<Status>) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answer(request.method(), request.uri().path(), status))
    });
    let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
    // Who goes away, sends nonsense or takes too long has no answer to wait for.
    let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
}

fn answer(method: &Method, path: &str, status: &watch::Receiver<Status>) -> Response<Full<Bytes>> {
    let (code, content) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            // A copy: the agent must not wait for the text.
            let status = status.borrow().clone();
            (StatusCode::OK, text::page(&Facts { status: &status, mount: mount::counts() }))
        }
        (&Method::GET | &Method::HEAD, _) => {
            (StatusCode::NOT_FOUND, "cai tells its metrics at /metrics\n".into())
        }
        _ => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(content)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(text::CONTENT_TYPE));
    if code == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
    }
    response
}
