//! `cai connect`: the client's side of the tunnel. Applications connect here; their bytes leave only through an attested
//! connection.
//!
//! Owns: the doors for applications (an HTTP proxy, SOCKS5, a fixed destination), the connections to servers and when they
//! are attested afresh. Must not know: how a peer is attested ([`crate::ratls`]), the configuration of the daemon.
//!
//! ```text
//! application ──> door (proxy.rs, socks.rs, fixed) ──Destination──> dial.rs ──Tunnel──> relay
//!                                                      pool of HTTP/2 connections, one for each host:port
//!                                                      TCP ──> ratls::tls ──Unattested──> ratls::Verifier ──Attested──> stream
//! ```
//!
//! A server cannot be reached but through `dial.rs`, and what that gives out was attested: there is no other way a byte
//! goes. A connection whose verdict has ended takes no new stream; those it has stay as long as its server passes again
//! (lease.rs), and are cut when it does not.
//!
//! Asynchronous: a task for each connection of an application, one for each HTTP/2 connection, one for each lease. Locks: the
//! pool, and one for each destination in it, held while that is dialled so that it is dialled once; the leases'. None but a
//! destination's is held across an await. Tested in `tests/connect_*.rs`.
//!
//! Source: tng.md sections 3, 6 and 7.

mod destination;
mod dial;
mod error;
mod lease;
mod proxy;
mod socks;
mod stream;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub use destination::Destination;
pub use dial::{Dialer, Mode};
pub use error::ConnectError;
pub use socks::{Request as SocksRequest, read_request as read_socks_request};
pub use tunnel::Tunnel;

use crate::error::{Fault as _, chain};
use crate::task::Tasks;

/// Most connections of applications at a time, for each door. More wait in the kernel's queue.
const CONNECTIONS: usize = 4096;

/// Read size in each direction of a relay, in bytes.
const RELAY_BUFFER: usize = 32 << 10;

/// What an application finds behind a listener.
#[derive(Debug, Clone)]
pub enum Door {
    /// An HTTP proxy: CONNECT, and requests in absolute form.
    Http,
    /// SOCKS5.
    Socks,
    /// That server.
    Fixed(Destination),
}

/// Serve applications until dropped.
pub async fn serve(listener: TcpListener, door: Door, dialer: Arc<Dialer>) {
    let mut tasks = Tasks::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accept = async {
            let place = room.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            (accepted, place) = accept => match accepted {
                Ok((stream, _)) => {
                    let (door, dialer) = (door.clone(), dialer.clone());
                    tasks.supervise("connect", async move {
                        enter(stream, door, &dialer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(event = "connect.accept", ?error, "an application's connection cannot be taken");
                    // Out of descriptors: some come back when connections end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            ended = tasks.any_ended() => {
                if ended.how != "returned" {
                    tracing::error!(event = "connect.task", %ended, "an application's connection broke off");
                }
            }
        }
    }
}

async fn enter(stream: TcpStream, door: Door, dialer: &Arc<Dialer>) {
    // Failing costs latency only.
    let _ = stream.set_nodelay(true);
    match door {
        Door::Http => proxy::serve(stream, dialer).await,
        Door::Socks => socks::serve(stream, dialer).await,
        Door::Fixed(to) => {
            // Failed: closed, which is all that can be said to an application that speaks who knows what.
            if let Ok(tunnel) = open(dialer, &to).await {
                relay(stream, &[], tunnel).await;
            }
        }
    }
}

/// A tunnel, or a line in the log that says why there is none.
async fn open(dialer: &Dialer, to: &Destination) -> Result<Tunnel, Arc<ConnectError>> {
    let opened = dialer.open(to).await;
    if let Err(error) = &opened {
        tracing::warn!(
            event = "connect.refused",
            %to,
            code = error.code(),
            hint = error.hint(),
            "{}",
            chain(&**error)
        );
    }
    opened
}

/// Bytes both ways, each direction to its own end; `early` is what the application has sent already.
async fn relay(mut application: TcpStream, early: &[u8], mut tunnel: Tunnel) {
    let copying = async {
        tunnel.write_all(early).await?;
        copy_bidirectional_with_sizes(&mut application, &mut tunnel, RELAY_BUFFER, RELAY_BUFFER).await
    };
    if let Err(error) = copying.await {
        tracing::debug!(event = "connect.broken", ?error, "a connection broke off");
        // An answer that was cut off must not look like one that is complete.
        let _ = application.set_zero_linger();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn application_that_does_not_finish_its_request_is_let_go() {
        let dialer = Arc::new(dial::tests::dialer());
        for (door, begun, limit) in [
            (Door::Http, &b"GET http://model/ HTTP/1.1\r\nHost:"[..], proxy::HEAD_LIMIT),
            (Door::Socks, &[5, 1], socks::REQUEST_LIMIT),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut application = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            application.write_all(begun).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let begin = Instant::now();
            enter(stream, door, &dialer).await;
            assert_eq!(begin.elapsed().as_secs(), limit.as_secs());
            // Closed: what comes before that is the proxy's affair.
            let _ = application.read_to_end(&mut Vec::new()).await;
        }
    }
}
