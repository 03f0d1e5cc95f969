//! Bytes both ways between a client and the backend: order, half-close and abort are theirs, not ours.
//!
//! The backend's side is a socket; the client's is a stream of the tunnel (`http2.rs`) or the tunnel itself, here.

use std::io;

use bytes::BytesMut;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt::Linger};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf as BackendRead, WriteHalf as BackendWrite};
use tokio_rustls::server::TlsStream;

/// Most bytes taken from the backend at a time: four records of TLS, so that system calls stay few.
pub(super) const CHUNK: usize = 64 << 10;

/// Buffer for what a raw client sends, in bytes: a record of TLS. Held while a connection is idle.
const UPLOAD_BUFFER: usize = 16 << 10;

/// How one direction, or both together, came to an end.
#[derive(Debug)]
pub(super) enum End {
    /// Everything was passed on, and the end of it too.
    Whole,
    /// The client went away or gave up.
    Client,
    /// The backend broke the connection.
    Backend(io::Error),
}

/// Whether closing the connection to the backend aborts it. It must until its whole end: a stream that was dropped, and a
/// gateway that was cut off or killed, whose sockets the kernel closes, must not look like one.
///
/// # Errors
/// What the system says: the socket is dead already.
pub(super) fn closing_aborts(backend: &TcpStream, aborts: bool) -> io::Result<()> {
    Ok(setsockopt(backend, Linger, &linger { l_onoff: aborts.into(), l_linger: 0 })?)
}

/// Run both directions to the end of the connection.
///
/// A backend that takes no more may still have an answer to give (to a request that is too large, say), so only the
/// direction from the backend, or the client, ends both.
pub(super) async fn both(upload: impl Future<Output = End>, download: impl Future<Output = End>) -> End {
    tokio::pin!(upload, download);
    let mut uploaded = None;
    loop {
        tokio::select! {
            end = &mut upload, if uploaded.is_none() => match end {
                End::Client => return End::Client,
                end => uploaded = Some(end),
            },
            end = &mut download => return match (end, uploaded) {
                (End::Whole, Some(uploaded)) => uploaded,
                (End::Whole, None) => upload.await,
                (end, _) => end,
            },
        }
    }
}

/// What the backend has to say now, as far as a chunk; `None` where that was nothing yet, empty at its end.
pub(super) fn take_chunk(backend: &BackendRead<'_>) -> io::Result<Option<BytesMut>> {
    // Made only when there is something to read: an idle connection holds no buffer.
    let mut chunk = BytesMut::with_capacity(CHUNK);
    match backend.try_read_buf(&mut chunk) {
        Ok(_) => Ok(Some(chunk)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Relay between the whole of a raw tunnel and the backend.
pub(super) async fn raw(tunnel: TlsStream<TcpStream>, mut backend: TcpStream) -> End {
    let (mut from_client, mut to_client) = tokio::io::split(tunnel);
    let (from_backend, mut to_backend) = backend.split();
    let end =
        both(raw_upload(&mut from_client, &mut to_backend), raw_download(&from_backend, &mut to_client))
            .await;
    let tunnel = from_client.unsplit(to_client);
    // An abort must look like one on the other side. Where that cannot be set, the socket is dead already.
    match &end {
        End::Whole => drop(closing_aborts(&backend, false)),
        End::Client => {}
        End::Backend(_) => drop(tunnel.get_ref().0.set_zero_linger()),
    }
    end
}

async fn raw_upload(client: &mut ReadHalf<TlsStream<TcpStream>>, backend: &mut BackendWrite<'_>) -> End {
    let mut buffer = BytesMut::with_capacity(UPLOAD_BUFFER);
    loop {
        buffer.clear();
        match client.read_buf(&mut buffer).await {
            Ok(0) => return backend.shutdown().await.map_or_else(End::Backend, |()| End::Whole),
            Ok(_) => {
                if let Err(error) = backend.write_all(&buffer).await {
                    return End::Backend(error);
                }
            }
            Err(_) => return End::Client,
        }
    }
}

async fn raw_download(backend: &BackendRead<'_>, client: &mut WriteHalf<TlsStream<TcpStream>>) -> End {
    loop {
        if let Err(error) = backend.readable().await {
            return End::Backend(error);
        }
        let passed = match take_chunk(backend) {
            Ok(None) => continue,
            // close_notify, and the end of TCP's direction with it.
            Ok(Some(chunk)) if chunk.is_empty() => {
                return client.shutdown().await.map_or(End::Client, |()| End::Whole);
            }
            Ok(Some(chunk)) => client.write_all(&chunk).await,
            Err(error) => return End::Backend(error),
        };
        // TLS takes bytes that TCP did not; they must not stay behind.
        if passed.is_err() || client.flush().await.is_err() {
            return End::Client;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn broken() -> End {
        End::Backend(io::ErrorKind::BrokenPipe.into())
    }

    #[tokio::test]
    async fn answer_of_a_backend_that_takes_no_more_is_waited_for() {
        let late = async {
            tokio::task::yield_now().await;
            End::Whole
        };
        assert!(matches!(both(ready(broken()), late).await, End::Backend(_)));
        assert!(matches!(both(ready(End::Whole), ready(End::Whole)).await, End::Whole));
    }

    #[tokio::test]
    async fn client_or_backend_that_is_gone_ends_both_directions() {
        assert!(matches!(both(ready(End::Client), pending()).await, End::Client));
        assert!(matches!(both(pending(), ready(End::Client)).await, End::Client));
        assert!(matches!(both(pending(), ready(broken())).await, End::Backend(_)));
    }
}
