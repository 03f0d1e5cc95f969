//! Where the plaintext of a connection goes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use nix::sys::socket::sockopt::{Ip6tOriginalDst, OriginalDst};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, getsockopt};
use tokio::net::TcpStream;

use super::refusal::Refusal;
use crate::config::Entrance;

/// How long the backend may take to accept a connection. It is on this machine or next to it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The backend of every connection, by how it came here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Route {
    /// One backend for all.
    Fixed(SocketAddr),
    /// The address that was dialled before the redirect, if it has this port.
    Original(u16),
}

impl Route {
    pub(super) fn new(entrance: &Entrance) -> Self {
        match entrance {
            Entrance::Mapping { backend, .. } => Route::Fixed(*backend),
            Entrance::Capture { service_port, .. } => Route::Original(*service_port),
        }
    }

    /// The backend of this connection.
    ///
    /// # Errors
    /// [`Refusal::Destination`] for one that the redirect did not bring: served, it would be passed on to whatever port it
    /// named, or to this listener again.
    pub(super) fn backend_of(self, stream: &TcpStream) -> Result<SocketAddr, Refusal> {
        let expected = match self {
            Route::Fixed(backend) => return Ok(backend),
            Route::Original(port) => port,
        };
        match original_destination(stream) {
            Ok(found) if found.port() == expected => Ok(found),
            Ok(found) => Err(Refusal::Destination { expected, found: found.to_string() }),
            Err(_) => Err(Refusal::Destination { expected, found: "this listener".into() }),
        }
    }

    /// Connect to the backend. A redirected connection whose own address refuses is tried on loopback, where a backend may
    /// listen that only the gateway is to reach.
    ///
    /// # Errors
    /// What the system says; a time-out after ten seconds.
    pub(super) async fn dial(self, backend: SocketAddr) -> io::Result<TcpStream> {
        let refused = match connect(backend).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => error,
            other => return other,
        };
        let loopback = SocketAddr::new(loopback_of(backend.ip()), backend.port());
        match self {
            Route::Original(_) if loopback != backend => connect(loopback).await,
            Route::Original(_) | Route::Fixed(_) => Err(refused),
        }
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(to)).await??;
    // What arrives goes on at once: answers are streamed a few bytes at a time.
    stream.set_nodelay(true)?;
    Ok(stream)
}

const fn loopback_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// What the connection's destination was before netfilter redirected it here; an error where it did not.
fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    Ok(match stream.local_addr()? {
        SocketAddr::V4(_) => {
            let address: SockaddrIn = getsockopt(stream, OriginalDst)?.into();
            SocketAddrV4::from(address).into()
        }
        SocketAddr::V6(_) => {
            let address: SockaddrIn6 = getsockopt(stream, Ip6tOriginalDst)?.into();
            SocketAddrV6::from(address).into()
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(listen: &str) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn connection_that_was_not_redirected_has_no_backend() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (_client, server) = pair(listen).await;
            let refusal = Route::Original(8080).backend_of(&server).unwrap_err();
            let text = refusal.to_string();
            assert!(text.starts_with("was not redirected here from port 8080: "), "{text}");
            let backend = "192.0.2.1:80".parse().unwrap();
            assert_eq!(Route::Fixed(backend).backend_of(&server).unwrap(), backend);
        }
    }

    #[tokio::test]
    async fn captured_connection_is_tried_on_loopback_when_its_own_address_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // Another address of this machine, where nobody listens on that port.
        let elsewhere = SocketAddr::new([127, 0, 0, 2].into(), listener.local_addr().unwrap().port());
        let reached = Route::Original(elsewhere.port()).dial(elsewhere).await.unwrap();
        assert_eq!(reached.peer_addr().unwrap(), listener.local_addr().unwrap());
        let refused = Route::Fixed(elsewhere).dial(elsewhere).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
