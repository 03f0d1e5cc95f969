//! Tunnels to servers: TCP, TLS, attestation, and the streams that share a connection.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::destination::Destination;
use super::error::ConnectError;
use super::lease::{Lease, Leases, Place};
use super::stream::Stream;
use super::tunnel::Tunnel;
use crate::ratls::{Attested, Client, Peer, TlsStream, Verifier};
use crate::task::Tasks;

/// ALPN of HTTP/2 with a stream for each connection of an application: every TNG up to 2.6, and later with `multiplex`.
const MULTIPLEX: &str = "h2";
/// ALPN of one TLS connection for each: TNG from 2.7 on.
const RAW: &str = "rats-tls";

/// SNI, and authority of CONNECT, in multiplex mode: the same for all.
const TNG_NAME: &str = "tng.internal";

/// How long a TCP connection may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the answer to CONNECT may take. Servers give it before they dial anybody.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that is silent for that long, and then does not answer probes, is gone; TNG's own numbers (tng.md 2).
const KEEPALIVE_IDLE_SECS: u32 = 30;
const KEEPALIVE_INTERVAL_SECS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 5;
/// As long for bytes that were sent and are not acknowledged.
const UNACKNOWLEDGED_MS: u32 = 80_000;

/// Bytes a server may send ahead of a reader, for a stream and for all of a connection: 2 MiB as TNG, and four times that,
/// so that one slow reader does not hold up the others.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Destinations remembered before those without a connection are forgotten.
const POOL_LIMIT: usize = 256;

/// What is offered to servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Whichever the server takes.
    Auto,
    /// Streams in one connection.
    Multiplex,
    /// A connection each.
    Raw,
}

/// Opens tunnels.
pub struct Dialer {
    client: Client,
    leases: Leases,
    mode: Mode,
    pool: Mutex<HashMap<Destination, Arc<Slot>>>,
    tasks: Mutex<Tasks>,
}

/// One destination.
#[derive(Default)]
struct Slot {
    /// Held while it is dialled.
    known: tokio::sync::Mutex<Known>,
    /// How often dialling has failed.
    failures: AtomicUsize,
}

/// What is known of a destination.
#[derive(Default)]
enum Known {
    #[default]
    Nothing,
    /// It takes a connection each.
    Raw,
    Multiplexed(Live),
    /// It could not be dialled the last time.
    Failed(Arc<ConnectError>),
}

/// A connection that takes streams.
#[derive(Clone)]
struct Live {
    requests: SendRequest<Bytes>,
    lease: Arc<Lease>,
    /// Which connection it is, by the address of this.
    id: Arc<()>,
}

enum Dialed {
    Raw(Tunnel),
    Multiplexed(Live),
}

impl Dialer {
    /// Nothing is connected yet.
    ///
    /// # Errors
    /// [`ConnectError::Setup`].
    pub fn new(verifier: Verifier, mode: Mode) -> Result<Self, ConnectError> {
        let offered: &[&str] = match mode {
            Mode::Auto => &[MULTIPLEX, RAW],
            Mode::Multiplex => &[MULTIPLEX],
            Mode::Raw => &[RAW],
        };
        let client = Client::new(offered).map_err(ConnectError::Setup)?;
        let leases = Leases::new(verifier);
        Ok(Dialer { client, leases, mode, pool: Mutex::default(), tasks: Mutex::default() })
    }

    /// A tunnel to a server that was attested: over a connection that is there, if its verdict holds, else over a new one.
    ///
    /// # Errors
    /// [`ConnectError`], shared by all who waited for one connection; not a byte of an application has gone anywhere then.
    pub async fn open(&self, to: &Destination) -> Result<Tunnel, Arc<ConnectError>> {
        let slot = self.slot(to);
        let mut dead: Option<Arc<()>> = None;
        loop {
            let (live, place, pooled) = match self.shared(&slot, to, dead.as_ref()).await? {
                Shared::Raw(Some(tunnel)) => return Ok(tunnel),
                Shared::Raw(None) => match self.dial(to).await? {
                    Dialed::Raw(tunnel) => return Ok(tunnel),
                    Dialed::Multiplexed(live) => {
                        *slot.known.lock().await = Known::Multiplexed(live.clone());
                        let place = live.lease.enter();
                        (live, place, false)
                    }
                },
                Shared::Multiplexed(live, place, pooled) => (live, place, pooled),
            };
            match live.stream(to).await {
                Ok(stream) => return Ok(Tunnel::new(stream, place)),
                // It had died unnoticed, or is full; no byte of the application was in it.
                Err(ConnectError::Stream { .. } | ConnectError::Silent { .. }) if pooled => {
                    dead = Some(live.id);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The connection to share, dialled if there is none; whoever comes meanwhile waits for it, or for the reason why
    /// there is none: a server that does not answer holds nobody up for longer than one dial. Servers that share none are
    /// dialled outside, by each for himself.
    async fn shared(
        &self,
        slot: &Slot,
        to: &Destination,
        dead: Option<&Arc<()>>,
    ) -> Result<Shared, Arc<ConnectError>> {
        let failures = slot.failures.load(Ordering::SeqCst);
        let mut known = slot.known.lock().await;
        match &*known {
            Known::Failed(error) if slot.failures.load(Ordering::SeqCst) != failures => {
                return Err(error.clone());
            }
            Known::Raw => return Ok(Shared::Raw(None)),
            Known::Multiplexed(live) if dead.is_none_or(|dead| !Arc::ptr_eq(dead, &live.id)) => {
                let place = live.lease.enter();
                if live.lease.holds() {
                    return Ok(Shared::Multiplexed(live.clone(), place, true));
                }
                tracing::info!(event = "connect.reattest", %to, "the verdict has ended: new streams need a new one");
            }
            Known::Multiplexed(_) | Known::Failed(_) | Known::Nothing => {}
        }
        match self.dial(to).await {
            Err(error) => {
                let error = Arc::new(error);
                *known = Known::Failed(error.clone());
                slot.failures.fetch_add(1, Ordering::SeqCst);
                Err(error)
            }
            Ok(Dialed::Raw(tunnel)) => {
                *known = Known::Raw;
                Ok(Shared::Raw(Some(tunnel)))
            }
            Ok(Dialed::Multiplexed(live)) => {
                *known = Known::Multiplexed(live.clone());
                let place = live.lease.enter();
                Ok(Shared::Multiplexed(live, place, false))
            }
        }
    }

    fn slot(&self, to: &Destination) -> Arc<Slot> {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.len() >= POOL_LIMIT {
            pool.retain(|_, slot| {
                let known = slot.known.try_lock();
                known.is_err()
                    || known
                        .is_ok_and(|known| matches!(&*known, Known::Multiplexed(live) if live.lease.holds()))
            });
        }
        pool.entry(to.clone()).or_default().clone()
    }

    /// A new connection to an attested server.
    async fn dial(&self, to: &Destination) -> Result<Dialed, ConnectError> {
        let dialling = timeout(DIAL_TIMEOUT, TcpStream::connect(to.parts())).await;
        let stream = dialling.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|source| ConnectError::Dial { to: to.clone(), source })?;
        keep_alive(&stream);
        let name = if self.mode == Mode::Raw { to.name() } else { Some(TNG_NAME) };
        let connected = self.client.connect(stream, name).await;
        let connected = connected.map_err(|source| ConnectError::Tls { to: to.clone(), source })?;
        let attested = connected.attest(self.leases.verifier()).await;
        let Attested { stream, protocol, peer, certificate } = attested
            .map_err(|source| ConnectError::Attestation { to: to.clone(), source: Box::new(source) })?;
        tell(to, &peer);
        let lease = self.leases.grant(to, certificate, peer.term);
        if protocol == RAW {
            return Ok(Dialed::Raw(Tunnel::new(stream, lease.enter())));
        }
        let requests = self.multiplex(stream, lease.clone()).await;
        let requests = requests.map_err(|source| ConnectError::Stream { to: to.clone(), source })?;
        Ok(Dialed::Multiplexed(Live { requests, lease, id: Arc::default() }))
    }

    async fn multiplex(
        &self,
        stream: TlsStream<TcpStream>,
        lease: Arc<Lease>,
    ) -> Result<SendRequest<Bytes>, h2::Error> {
        let mut builder = h2::client::Builder::new();
        builder.enable_push(false).initial_window_size(STREAM_WINDOW);
        builder.initial_connection_window_size(CONNECTION_WINDOW);
        let (requests, connection) = builder.handshake(stream).await?;
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.reap();
        // Ends by itself once nobody holds a stream of it, or a place to open one; cut, whoever does.
        tasks.supervise("connect-h2", async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(event = "connect.lost", ?error, "a connection to a server ended");
                },
                () = lease.cut() => {}
            }
        });
        Ok(requests)
    }
}

/// What [`Dialer::shared`] finds.
enum Shared {
    /// The server takes a connection each; the first comes with the discovery.
    Raw(Option<Tunnel>),
    /// A connection for streams, a place for one, and whether it was there before.
    Multiplexed(Live, Place, bool),
}

/// A line in the log about a server that was attested.
fn tell(to: &Destination, peer: &Peer) {
    let (tee, format, until) = (&peer.tee, peer.format.name(), utc(peer.term.expires()));
    if peer.authenticated {
        tracing::info!(event = "connect.attested", %to, tee, format, until, "attested {to} ({tee}) until {until}");
    } else {
        tracing::warn!(
            event = "connect.attested-by-anybody",
            %to,
            tee,
            format,
            until,
            "attested {to} ({tee}) until {until}, by an attestation service that anybody can answer for \
             (--as-unauthenticated)"
        );
    }
}

impl Live {
    async fn stream(&self, to: &Destination) -> Result<Stream, ConnectError> {
        let failed = |source| ConnectError::Stream { to: to.clone(), source };
        let opening = async {
            let mut requests = self.requests.clone().ready().await.map_err(failed)?;
            let mut request = Request::new(());
            *request.method_mut() = Method::CONNECT;
            *request.uri_mut() = Uri::from_static(TNG_NAME);
            let (answer, send) = requests.send_request(request, false).map_err(failed)?;
            let answer = answer.await.map_err(failed)?;
            if answer.status() != StatusCode::OK {
                return Err(ConnectError::Refused { to: to.clone(), status: answer.status().as_u16() });
            }
            Ok(Stream::new(send, answer.into_body()))
        };
        let slow = |_| ConnectError::Silent { to: to.clone(), secs: ANSWER_TIMEOUT.as_secs() };
        timeout(ANSWER_TIMEOUT, opening).await.map_err(slow)?
    }
}

fn keep_alive(stream: &TcpStream) {
    // Failing means that a dead peer is noticed later.
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECS);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECS);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &UNACKNOWLEDGED_MS);
}

fn utc(at: SystemTime) -> String {
    crate::error::utc(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs())
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::ratls::{Demands, VerifierOptions};

    /// One whose attestation service is nowhere.
    pub(in super::super) fn dialer() -> Dialer {
        let url = "http://127.0.0.1:9/as".parse().unwrap();
        let demands = Demands::default();
        let options = VerifierOptions { url: &url, ca: None, signers: None, unauthenticated: true, demands };
        Dialer::new(Verifier::new(options).unwrap(), Mode::Auto).unwrap()
    }

    #[tokio::test]
    async fn whoever_waits_for_a_connection_shares_its_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = Destination::parse(&listener.local_addr().unwrap().to_string(), None).unwrap();
        let dialer = dialer();
        // A server that hears the beginning of a handshake, and goes.
        let serve = async || {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
        };
        let failure = |opened: Result<Tunnel, Arc<ConnectError>>| opened.err().unwrap();
        let (first, second, third, ()) =
            tokio::join!(dialer.open(&to), dialer.open(&to), dialer.open(&to), serve());
        let first = failure(first);
        assert!(matches!(*first, ConnectError::Tls { .. }), "{first:?}");
        assert!([second, third].into_iter().all(|opened| Arc::ptr_eq(&failure(opened), &first)));
        // Whoever comes later finds out for himself.
        let (fourth, ()) = tokio::join!(dialer.open(&to), serve());
        assert!(!Arc::ptr_eq(&failure(fourth), &first));
    }
}
