//! Connections between nodes: TLS in which both ends are attested, or, where the operator wrote so, plain TCP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::SndBuf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpSocket, TcpStream};

use super::error::PeerError;
use super::wire::{HELLO, Hello};
use crate::ratls::{Client, Server, Term, Verifier};

/// How long it may take to reach a peer: it is on the same network.
const CONNECT: Duration = Duration::from_secs(5);

/// What a served connection may have on its way, in bytes: what a reader waits for cannot go before that. A lane still brings 1 GB/s
/// over a round trip of half a millisecond.
const ON_ITS_WAY: usize = 512 << 10;

/// What is read at a time: OpenSSL would ask for each record by itself.
const BUFFER: usize = 128 << 10;

/// A connection, whatever it is made of.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Sync> Wire for S {}

/// A connection to a peer, and how long its attestation holds.
pub(super) struct Line {
    pub(super) stream: Box<dyn Wire>,
    term: Option<Term>,
}

impl Line {
    /// Whether it may still be used.
    pub(super) fn holds(&self) -> bool {
        self.term.is_none_or(|term| term.holds())
    }

    /// Until when, for who waits beside it.
    pub(super) fn term(&self) -> Option<Term> {
        self.term
    }
}

/// Wait until an attestation has ended; for ever where there is none.
pub(super) async fn ended(term: Option<Term>) {
    match term {
        Some(term) => term.ended().await,
        None => std::future::pending().await,
    }
}

/// Who may take part.
pub enum Security {
    /// Whose evidence is affirmed.
    Attested {
        /// For connections that we make.
        client: Client,
        /// For those that we take.
        server: Server,
        /// Who affirms.
        verifier: Arc<Verifier>,
    },
    /// Whoever has one of the addresses. Only ciphertext crosses, in the open.
    Network,
}

/// What `step` gives, if the other end does not keep it waiting for longer than `limit`.
pub(super) async fn within<T>(limit: Duration, step: impl Future<Output = T>) -> Result<T, PeerError> {
    tokio::time::timeout(limit, step).await.map_err(|_| PeerError::Silent { secs: limit.as_secs() })
}

/// Read the other end's hello.
pub(super) async fn hear_hello(stream: &mut Box<dyn Wire>) -> Result<Hello, PeerError> {
    let mut bytes = [0; HELLO];
    stream.read_exact(&mut bytes).await.map_err(PeerError::Broken)?;
    Hello::decode(&bytes).ok_or_else(|| PeerError::Protocol {
        expected: "the hello of cai's peer protocol, version 1",
        got: format!("{:02x?}", bytes.first_chunk::<8>().copied().unwrap_or_default()),
    })
}

/// Send these bytes now.
pub(super) async fn say(stream: &mut Box<dyn Wire>, bytes: &[u8]) -> Result<(), PeerError> {
    stream.write_all(bytes).await.map_err(PeerError::Broken)?;
    stream.flush().await.map_err(PeerError::Broken)
}

/// Makes and takes connections.
pub(super) struct Dialler {
    pub(super) security: Security,
    /// The address that connections are made from; the system's choice without.
    pub(super) from: Option<IpAddr>,
}

impl Dialler {
    /// Connect to the peer at `address`.
    ///
    /// # Errors
    /// `Unreachable`, `Silent`, `Tls`, `Refused`.
    pub(super) async fn dial(&self, address: SocketAddr) -> Result<Line, PeerError> {
        let tcp = within(CONNECT, self.reach(address)).await?.map_err(PeerError::Unreachable)?;
        tcp.set_nodelay(true).map_err(PeerError::Broken)?;
        match &self.security {
            Security::Attested { client, verifier, .. } => {
                let attested = client.connect(buffered(tcp), None).await?.attest(verifier).await?;
                Ok(Line { stream: Box::new(attested.stream), term: Some(attested.peer.term) })
            }
            Security::Network => Ok(Line { stream: Box::new(tcp), term: None }),
        }
    }

    async fn reach(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(from) = self.from.filter(|from| from.is_ipv4() == address.is_ipv4()) {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        socket.connect(address).await
    }

    /// Take a connection.
    ///
    /// # Errors
    /// `Tls`, `Refused`, `Broken`.
    pub(super) async fn accept(&self, tcp: TcpStream) -> Result<Line, PeerError> {
        tcp.set_nodelay(true).map_err(PeerError::Broken)?;
        setsockopt(&tcp, SndBuf, &ON_ITS_WAY).map_err(|error| PeerError::Broken(error.into()))?;
        match &self.security {
            Security::Attested { server, verifier, .. } => {
                let attested = server.accept(buffered(tcp)).await?.attest(verifier).await?;
                Ok(Line { stream: Box::new(attested.stream), term: Some(attested.peer.term) })
            }
            Security::Network => Ok(Line { stream: Box::new(tcp), term: None }),
        }
    }
}

/// Reads are gathered; writes are whole records already.
fn buffered(tcp: TcpStream) -> BufStream<TcpStream> {
    BufStream::with_capacity(BUFFER, 0, tcp)
}
