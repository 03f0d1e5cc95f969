//! Bytes both ways between a client and the backend: order, half-close and abort are theirs, not ours.
//!
//! The backend's side is a socket; the client's is a stream of the tunnel (`http2.rs`) or the tunnel itself, here.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt::Linger};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf as BackendRead, WriteHalf as BackendWrite};
use tokio_rustls::server::TlsStream;

use super::status::{Counters, add};

/// Most bytes taken from the backend at a time: four records of TLS, so that system calls stay few.
pub(super) const CHUNK: usize = 64 << 10;

/// Buffer for what a raw client sends, in bytes: a record of TLS. Held while a connection is idle.
const UPLOAD_BUFFER: usize = 16 << 10;

/// How long a raw client may go on sending to a backend that has answered and takes no more.
const DISCARD_LIMIT: Duration = Duration::from_secs(5);

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

/// Run both directions to the end of the connection. `upload` gives the client back when it ends.
///
/// A backend that takes no more may still have an answer to give (to a request that is too large, say), so only the
/// direction from the backend, or the client, ends both. Meanwhile what the client goes on sending is discarded: many a client
/// reads nothing before it has sent everything, and in a shared tunnel unread bytes would hold up its other streams.
pub(super) async fn both<C, D: Future<Output = End>>(
    upload: impl Future<Output = (End, C)>,
    discard: impl FnOnce(C) -> D,
    download: impl Future<Output = End>,
) -> End {
    tokio::pin!(upload, download);
    let (uploaded, client) = tokio::select! {
        uploaded = &mut upload => uploaded,
        end = &mut download => return match end {
            End::Whole => upload.await.0,
            end => end,
        },
    };
    let lost = match uploaded {
        End::Client => return End::Client,
        End::Whole => return download.await,
        End::Backend(error) => error,
    };
    let downloaded = tokio::select! {
        end = &mut download => end,
        end = discard(client) => match end {
            End::Whole => download.await,
            end => end,
        },
    };
    match downloaded {
        End::Whole => End::Backend(lost),
        end => end,
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
pub(super) async fn raw(tunnel: TlsStream<TcpStream>, mut backend: TcpStream, counters: &Counters) -> End {
    let (mut from_client, mut to_client) = tokio::io::split(tunnel);
    let (from_backend, mut to_backend) = backend.split();
    let mut answered = false;
    let upload = raw_upload(&mut from_client, &mut to_backend, counters);
    let download = raw_download(&from_backend, &mut to_client, &mut answered, counters);
    let end = both(upload, raw_discard, download).await;
    match &end {
        // Where that cannot be set, the socket is dead already.
        End::Whole => drop(closing_aborts(&backend, false)),
        // The backend sees an abort.
        End::Client => {}
        // The whole answer is on its way. A socket that is closed with bytes unread aborts, which would overtake its tail.
        End::Backend(_) if answered => {
            let _ = tokio::time::timeout(DISCARD_LIMIT, raw_discard(&mut from_client)).await;
        }
        // The client sees an abort too.
        End::Backend(_) => drop(from_client.unsplit(to_client).get_ref().0.set_zero_linger()),
    }
    end
}

async fn raw_upload<'a>(
    client: &'a mut ReadHalf<TlsStream<TcpStream>>,
    backend: &mut BackendWrite<'_>,
    counters: &Counters,
) -> (End, &'a mut ReadHalf<TlsStream<TcpStream>>) {
    let mut buffer = BytesMut::with_capacity(UPLOAD_BUFFER);
    let end = loop {
        buffer.clear();
        match client.read_buf(&mut buffer).await {
            Ok(0) => break backend.shutdown().await.map_or_else(End::Backend, |()| End::Whole),
            Ok(len) => {
                add(&counters.received, len);
                if let Err(error) = backend.write_all(&buffer).await {
                    break End::Backend(error);
                }
            }
            Err(_) => break End::Client,
        }
    };
    (end, client)
}

/// Read to the client's end, for nothing.
async fn raw_discard(client: &mut ReadHalf<TlsStream<TcpStream>>) -> End {
    tokio::io::copy(client, &mut tokio::io::sink()).await.map_or(End::Client, |_| End::Whole)
}

/// `answered` becomes true with the end of the answer.
async fn raw_download(
    backend: &BackendRead<'_>,
    client: &mut WriteHalf<TlsStream<TcpStream>>,
    answered: &mut bool,
    counters: &Counters,
) -> End {
    loop {
        if let Err(error) = backend.readable().await {
            return End::Backend(error);
        }
        let passed = match take_chunk(backend) {
            Ok(None) => continue,
            // close_notify, and the end of TCP's direction with it.
            Ok(Some(chunk)) if chunk.is_empty() => {
                *answered = client.shutdown().await.is_ok();
                return if *answered { End::Whole } else { End::Client };
            }
            Ok(Some(chunk)) => {
                add(&counters.sent, chunk.len());
                client.write_all(&chunk).await
            }
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

    /// Both directions, with a client that goes on as `discard` says once the backend takes no more.
    async fn run(
        upload: impl Future<Output = End>,
        discard: impl Future<Output = End>,
        download: impl Future<Output = End>,
    ) -> End {
        both(async { (upload.await, ()) }, |()| discard, download).await
    }

    async fn late(end: End) -> End {
        tokio::task::yield_now().await;
        end
    }

    #[tokio::test]
    async fn answer_of_a_backend_that_takes_no_more_is_waited_for() {
        let whole = || late(End::Whole);
        assert!(matches!(run(ready(broken()), pending(), whole()).await, End::Backend(_)));
        assert!(matches!(run(ready(broken()), ready(End::Whole), whole()).await, End::Backend(_)));
        assert!(matches!(run(ready(End::Whole), pending(), whole()).await, End::Whole));
        assert!(matches!(run(whole(), pending(), ready(End::Whole)).await, End::Whole));
        assert!(matches!(run(late(broken()), pending(), ready(End::Whole)).await, End::Backend(_)));
    }

    #[tokio::test]
    async fn client_or_backend_that_is_gone_ends_both_directions() {
        assert!(matches!(run(ready(End::Client), pending(), pending()).await, End::Client));
        assert!(matches!(run(pending(), pending(), ready(End::Client)).await, End::Client));
        assert!(matches!(run(pending(), pending(), ready(broken())).await, End::Backend(_)));
        assert!(matches!(run(ready(broken()), ready(End::Client), pending()).await, End::Client));
    }
}
