//! The listener, and the life of a connection.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{Ipv6V6Only, KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval};
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::limits::{Limits, Place, Places};
use super::refusal::{Log, Refusal};
use super::relay::{self, End, closing_aborts};
use super::route::Route;
use super::status::{Counters, Open, Snapshot, count};
use super::{http2, plaintext, tls};
use crate::config::{self, CertificateRule, Entrance};
use crate::error::{ErrorClass, Fault, chain};
use crate::ratls::Format;
use crate::ratls::identity::Fresh;
use crate::task::{Ended, Tasks};

/// First byte of TLS: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// Idle time, interval (seconds) and count of TCP's own probes, which find peers that vanished (tng.md 2).
const KEEPALIVE: (u32, u32, u32) = (30, 10, 5);

/// Connections the kernel holds until they are accepted.
const BACKLOG: u32 = 1_024;

/// How long nothing is accepted when the system gives no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long tasks get to end after they were cut off.
const TASK_GRACE: Duration = Duration::from_secs(2);

/// The gateway cannot start, or broke.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The port cannot be had.
    #[error("listening on {at}")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The TLS library refuses the configuration.
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
    /// A task of the gateway ended.
    #[error("the gateway stopped accepting")]
    Task(#[source] Ended),
}

impl Fault for GatewayError {
    fn class(&self) -> ErrorClass {
        match self {
            GatewayError::Listen { .. } => ErrorClass::Config,
            GatewayError::Tls(_) | GatewayError::Task(_) => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            GatewayError::Listen { .. } => "gateway.listen",
            GatewayError::Tls(_) => "gateway.tls-setup",
            GatewayError::Task(_) => "gateway.task",
        }
    }

    fn hint(&self) -> String {
        match self {
            GatewayError::Listen { .. } => {
                "is the port free, is another tng or cai running, and may user cai bind it (ports below 1024 may not)?".into()
            }
            GatewayError::Tls(_) | GatewayError::Task(_) => {
                "this is a defect: please report it with the journal".into()
            }
        }
    }
}

/// What every connection shares.
pub(super) struct Shared {
    tls: Arc<ServerConfig>,
    pub(super) route: Route,
    pub(super) plaintext_paths: Vec<String>,
    pub(super) counters: Counters,
    log: Log,
    pub(super) limits: Limits,
    connections: Arc<Places>,
    /// Connections that are not tunnels yet.
    pending: Arc<Places>,
    pub(super) streams: Arc<Places>,
    closing: CancellationToken,
}

/// The other end of a connection, and where it leads.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) shared: Arc<Shared>,
    pub(super) address: SocketAddr,
    pub(super) backend: SocketAddr,
}

impl Peer {
    /// Connect to the backend, for a tunnelled connection: closed before its whole end, it is aborted.
    pub(super) async fn dial(&self) -> Result<TcpStream, Refusal> {
        let to = self.backend;
        let dialed = self.shared.route.dial(to).await;
        let guarded = dialed.and_then(|backend| closing_aborts(&backend, true).map(|()| backend));
        guarded.map_err(|source| Refusal::Backend { to, source })
    }

    pub(super) async fn closing(&self) {
        self.shared.closing.cancelled().await;
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        self.shared.refused(self.address, refusal);
    }
}

impl Shared {
    fn refused(&self, peer: SocketAddr, refusal: &Refusal) {
        count(&self.counters.refused);
        self.log.refused(peer, refusal);
    }
}

/// The running gateway. Dropped, it is gone at once.
pub struct Gateway {
    shared: Arc<Shared>,
    tasks: Tasks,
    listening: Vec<SocketAddr>,
}

impl Gateway {
    /// The certificate formats that `rule` needs kept fresh.
    pub fn formats(rule: CertificateRule) -> Vec<Format> {
        tls::formats(rule)
    }

    /// Listen at `entrance`, and serve in the background, with the certificates in `fresh` and the usual limits.
    ///
    /// # Errors
    /// [`GatewayError::Listen`], [`GatewayError::Tls`].
    pub fn start(
        settings: &config::Gateway,
        entrance: &Entrance,
        fresh: watch::Receiver<Fresh>,
    ) -> Result<Self, GatewayError> {
        Self::start_within(Limits::default(), settings, entrance, fresh)
    }

    /// The same within other limits.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub fn start_within(
        limits: Limits,
        settings: &config::Gateway,
        entrance: &Entrance,
        fresh: watch::Receiver<Fresh>,
    ) -> Result<Self, GatewayError> {
        raise_descriptor_limit();
        let listeners = listen(entrance)?;
        let shared = Arc::new(Shared {
            tls: tls::config(settings.certificate, fresh).map_err(GatewayError::Tls)?,
            route: Route::new(entrance),
            plaintext_paths: settings.plaintext_paths.clone(),
            counters: Counters::default(),
            log: Log::default(),
            limits,
            connections: Places::new("connection", limits.connections),
            pending: Places::new("handshake", limits.pending),
            streams: Places::new("stream", limits.streams),
            closing: CancellationToken::new(),
        });
        let (mut tasks, mut listening) = (Tasks::new(), Vec::new());
        for (at, listener) in listeners {
            tracing::info!(event = "gateway.listening", %at, "listening on {at}");
            listening.push(at);
            let shared = shared.clone();
            tasks.supervise("gateway", async move { match accept(listener, shared).await {} });
        }
        Ok(Gateway { shared, tasks, listening })
    }

    /// Where it listens, ports as the system gave them.
    pub fn listening(&self) -> &[SocketAddr] {
        &self.listening
    }

    /// The numbers now.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.counters.snapshot()
    }

    /// Wait until it breaks.
    pub async fn broken(&mut self) -> GatewayError {
        GatewayError::Task(self.tasks.any_ended().await)
    }

    /// Shut the port at once, let what is open end by itself for `drain`, and cut off the rest.
    pub async fn stop(self, drain: Duration) {
        self.shared.closing.cancel();
        if timeout(drain, self.shared.connections.all_free()).await.is_err() {
            let Snapshot { connections, streams, .. } = self.snapshot();
            if connections > 0 {
                tracing::warn!(
                    event = "gateway.cut-off",
                    connections,
                    streams,
                    "{connections} connections were still open and are cut off"
                );
            }
        }
        self.tasks.stop(TASK_GRACE).await;
    }
}

/// A connection is two descriptors and more; the usual soft limit of 1024 is for programs that use select(2).
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(event = "gateway.descriptors", error = ?error, "raising the limit of open files: {error}");
    }
}

/// The listeners of an entrance. Captured connections of either IP version need a socket of that version: only such a one tells
/// their original destination.
fn listen(entrance: &Entrance) -> Result<Vec<(SocketAddr, TcpListener)>, GatewayError> {
    let on = |at: SocketAddr| {
        let bound = bind(at).and_then(|listener| Ok((listener.local_addr()?, listener)));
        bound.map_err(|source| GatewayError::Listen { at, source })
    };
    match entrance {
        Entrance::Mapping { listen, .. } => Ok(vec![on(*listen)?]),
        Entrance::Capture { port, .. } => {
            let mut listeners = vec![on((Ipv4Addr::UNSPECIFIED, *port).into())?];
            match on((Ipv6Addr::UNSPECIFIED, *port).into()) {
                Ok(listener) => listeners.push(listener),
                // Without IPv6 nobody comes that way.
                Err(error) => {
                    tracing::warn!(event = "gateway.no-ipv6", error = ?error, "without IPv6: {}", chain(&error));
                }
            }
            Ok(listeners)
        }
    }
}

fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, Ipv6V6Only, &true)?;
            socket
        }
    };
    // A restart must not wait for the connections of the run before.
    socket.set_reuseaddr(true)?;
    // What is accepted inherits them.
    let (idle, interval, times) = KEEPALIVE;
    setsockopt(&socket, KeepAlive, &true)?;
    setsockopt(&socket, TcpKeepIdle, &idle)?;
    setsockopt(&socket, TcpKeepInterval, &interval)?;
    setsockopt(&socket, TcpKeepCount, &times)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// Accept until the gateway closes, then wait for what is open: the owner of the tasks decides how long.
async fn accept(listener: TcpListener, shared: Arc<Shared>) -> Infallible {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.closing.cancelled() => break,
            Some(ended) = open.join_next() => told("connection", ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => match shared.connections.take(address.ip()) {
                    Ok(place) => drop(open.spawn(connection(shared.clone(), stream, address, place))),
                    Err(too_many) => shared.refused(address, &too_many),
                },
                Err(error) => {
                    tracing::warn!(event = "gateway.accept", error = ?error, "accepting a connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while let Some(ended) = open.join_next().await {
        told("connection", ended);
    }
    std::future::pending().await
}

/// A panic in the task of a `what` is a defect.
pub(super) fn told(what: &str, ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(event = "gateway.defect", error = ?error, "a {what}'s task panicked");
    }
}

/// One connection, from its first byte to its last.
async fn connection(shared: Arc<Shared>, stream: TcpStream, address: SocketAddr, _place: Place) {
    let _open = Open::new(&shared.counters.connections);
    let served = async {
        // An answer of a few bytes goes out at once.
        stream.set_nodelay(true).map_err(Refusal::Line)?;
        let backend = shared.route.backend_of(&stream)?;
        serve(stream, &Peer { shared: shared.clone(), address, backend }).await
    };
    if let Err(refusal) = served.await {
        shared.refused(address, &refusal);
    }
}

async fn serve(stream: TcpStream, peer: &Peer) -> Result<(), Refusal> {
    let pending = peer.shared.pending.take(peer.address.ip())?;
    let limits = peer.shared.limits;
    let mut first = [0];
    let looked = tokio::select! {
        () = peer.closing() => return Ok(()),
        looked = timeout(limits.first_byte, stream.peek(&mut first)) => looked,
    };
    match looked {
        Err(_) => Err(Refusal::Silent { secs: limits.first_byte.as_secs() }),
        Ok(Err(error)) => Err(Refusal::Line(error)),
        // Opened and closed: how load balancers see whether a port is there.
        Ok(Ok(0)) => Ok(()),
        Ok(Ok(_)) if first != [TLS_HANDSHAKE] => plaintext::serve(stream, peer).await,
        Ok(Ok(_)) => {
            let deadline = Instant::now() + limits.handshake;
            let tunnel = tokio::select! {
                () = peer.closing() => return Ok(()),
                tunnel = handshake(stream, peer, deadline) => tunnel?,
            };
            count(&peer.shared.counters.handshakes_done);
            // Without ALPN it is HTTP/2, as for the real server (tng.md 3.1).
            if tunnel.get_ref().1.alpn_protocol() == Some(tls::RATS_TLS) {
                drop(pending);
                raw(tunnel, peer).await
            } else {
                http2::serve(tunnel, peer, deadline, pending).await
            }
        }
    }
}

async fn handshake(
    stream: TcpStream,
    peer: &Peer,
    deadline: Instant,
) -> Result<TlsStream<TcpStream>, Refusal> {
    let limits = peer.shared.limits;
    let hello = timeout(limits.hello, LazyConfigAcceptor::new(Acceptor::default(), stream))
        .await
        .map_err(|_| Refusal::Slow { step: "send its ClientHello", secs: limits.hello.as_secs() })?
        .map_err(Refusal::handshake)?;
    timeout_at(deadline, hello.into_stream(peer.shared.tls.clone()))
        .await
        .map_err(|_| Refusal::Slow { step: "finish its handshake", secs: limits.handshake.as_secs() })?
        .map_err(Refusal::handshake)
}

/// A tunnel whose bytes are those of the one connection in it.
///
/// The backend is dialled at once, not with the first byte: whoever waits for a greeting must get it, and a byte costs a
/// stranger nothing. What it can take is its share of the streams, as in HTTP/2.
async fn raw(tunnel: TlsStream<TcpStream>, peer: &Peer) -> Result<(), Refusal> {
    let _place = peer.shared.streams.take(peer.address.ip())?;
    let backend = peer.dial().await?;
    let counters = &peer.shared.counters;
    let _open = Open::new(&counters.streams);
    count(&counters.streams_total);
    if let End::Backend(error) = relay::raw(tunnel, backend, counters).await {
        tracing::debug!(event = "gateway.backend-lost", error = ?error, "the backend broke a connection");
    }
    Ok(())
}
