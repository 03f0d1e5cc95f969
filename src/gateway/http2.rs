//! The tunnel in HTTP/2: every CONNECT stream is one connection to the backend (tng.md 6).

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf as BackendRead, WriteHalf as BackendWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::server::TlsStream;

use super::limits::Place;
use super::refusal::Refusal;
use super::relay::{CHUNK, End, both, closing_aborts, take_chunk};
use super::server::{Peer, told};
use super::status::{Counters, Open, add, count};

/// Streams in one tunnel at a time; more wait at the client. What TNG 2.2.1 allows.
const STREAMS_PER_TUNNEL: u32 = 200;

/// Bytes a client may send ahead of what the backend took, in one stream. What TNG 2.2.1 allows, and the most that is held
/// for a stream whose backend does not read.
const WINDOW: u32 = 1 << 20;

/// The same in all streams of a tunnel: applications share it, and a few whose uploads stall must not stop the others.
const TUNNEL_WINDOW: u32 = 8 * WINDOW;

/// Bytes of an answer that one stream holds for a client that does not read, beside one chunk.
const SEND_BUFFER: usize = 128 << 10;

/// Bytes of an answer in one frame: with the 9 of its head it fills one record of TLS, where the usual 16,384 would need a
/// second record for the last nine.
const FRAME: usize = (16 << 10) - 9;

/// Bytes of headers in a request. CONNECT has a dozen.
const HEADERS_LIMIT: u32 = 16 << 10;

/// How long a client without streams may take to answer that its tunnel ends.
const GOAWAY_LIMIT: Duration = Duration::from_secs(5);

/// How long the backend may take to read what a client ended before its tunnel was gone.
const LAST_BYTES_LIMIT: Duration = Duration::from_secs(5);

/// Serve the tunnel until the client or the gateway ends it. `pending` is given back once the client has begun.
///
/// # Errors
/// [`Refusal`] of the tunnel as a whole; what becomes of a stream is told by itself.
pub(super) async fn serve(
    tunnel: TlsStream<TcpStream>,
    peer: &Peer,
    deadline: Instant,
    pending: Place,
) -> Result<(), Refusal> {
    let handshake = Builder::new()
        .max_concurrent_streams(STREAMS_PER_TUNNEL)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(TUNNEL_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADERS_LIMIT)
        .handshake::<_, Bytes>(tunnel);
    let slow = |_| Refusal::Slow { step: "begin the tunnel", secs: peer.shared.limits.handshake.as_secs() };
    let begun = timeout_at(deadline, handshake).await.map_err(slow)?;
    let mut connection = begun.map_err(|error| match error.is_io() {
        true => Refusal::Left,
        false => Refusal::Http2(error),
    })?;
    drop(pending);

    let mut streams = JoinSet::new();
    let served = accept(&mut connection, peer, &mut streams).await;
    // Streams that were not at their end learn here that the client is gone. The bytes of others may still be on their way.
    drop(connection);
    let last_bytes = async {
        while let Some(ended) = streams.join_next().await {
            told("stream", ended);
        }
    };
    // Streams beyond it are dropped, which aborts them.
    let _ = timeout(LAST_BYTES_LIMIT, last_bytes).await;
    served
}

/// Take streams until the client or the gateway ends the tunnel.
async fn accept(
    connection: &mut Connection<TlsStream<TcpStream>, Bytes>,
    peer: &Peer,
    streams: &mut JoinSet<()>,
) -> Result<(), Refusal> {
    let idle = peer.shared.limits.idle;
    let mut ending = false;
    let mut idle_until = Instant::now() + idle;
    loop {
        let end = tokio::select! {
            () = peer.closing(), if !ending => true,
            () = tokio::time::sleep_until(idle_until), if streams.is_empty() => {
                if ending {
                    return Ok(());
                }
                true
            }
            Some(ended) = streams.join_next() => {
                idle_until = Instant::now() + if ending { GOAWAY_LIMIT } else { idle };
                told("stream", ended);
                false
            }
            next = connection.accept() => match next {
                Some(Ok((request, respond))) => {
                    streams.spawn(stream(peer.clone(), request, respond));
                    false
                }
                // The client went away, which is its right.
                Some(Err(error)) if error.is_io() => return Ok(()),
                Some(Err(error)) => return Err(Refusal::Http2(error)),
                None => return Ok(()),
            },
        };
        if end {
            ending = true;
            idle_until = Instant::now() + GOAWAY_LIMIT;
            connection.graceful_shutdown();
        }
    }
}

/// One request of the tunnel.
async fn stream(peer: Peer, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    if request.method() != Method::CONNECT {
        return refuse(request.method(), respond);
    }
    let _place = match peer.shared.streams.take(peer.address.ip()) {
        Ok(place) => place,
        Err(too_many) => {
            peer.refused(&too_many);
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
    };
    // Before the backend is dialled: TNG's clients count on it.
    let Ok(send) = respond.send_response(Response::new(()), false) else { return };
    let counters = &peer.shared.counters;
    let _open = Open::new(&counters.streams);
    count(&counters.streams_total);
    tunnel_through(&peer, request.into_body(), send).await;
}

/// Relay one stream and the backend.
async fn tunnel_through(peer: &Peer, mut body: RecvStream, mut send: SendStream<Bytes>) {
    let mut backend = match peer.dial().await {
        Ok(backend) => backend,
        Err(refusal) => {
            peer.refused(&refusal);
            return send.send_reset(Reason::CONNECT_ERROR);
        }
    };
    let (from_backend, mut to_backend) = backend.split();
    let mut answered = false;
    let counters = &peer.shared.counters;
    let uploading = upload(&mut body, &mut to_backend, counters);
    let downloading = download(&from_backend, &mut send, &mut answered, counters);
    let end = both(uploading, discard, downloading).await;
    match end {
        // Where that cannot be set, the socket is dead already.
        End::Whole => drop(closing_aborts(&backend, false)),
        // The backend sees an abort.
        End::Client => {}
        // The whole answer is on its way: dropping the stream asks the client to stop sending, a reset would lose the answer.
        End::Backend(_) if answered => {}
        End::Backend(error) => {
            tracing::debug!(event = "gateway.backend-lost", error = ?error, "the backend broke a connection");
            send.send_reset(Reason::CONNECT_ERROR);
        }
    }
}

/// What is no CONNECT is told so, in TNG's words.
fn refuse(method: &Method, mut respond: SendResponse<Bytes>) {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::BAD_REQUEST;
    // A client that is gone already is not told.
    if let Ok(mut send) = respond.send_response(response, false) {
        let text = format!("Protocol Error: the method should be CONNECT, but got {method}");
        let _ = send.send_data(text.into(), true);
    }
}

async fn upload<'a>(
    body: &'a mut RecvStream,
    backend: &mut BackendWrite<'_>,
    counters: &Counters,
) -> (End, &'a mut RecvStream) {
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return (End::Client, body) };
        add(&counters.received, data.len());
        let written = backend.write_all(&data).await;
        // Only now may the client send as much again: a backend that does not read holds it back.
        if body.flow_control().release_capacity(data.len()).is_err() {
            return (End::Client, body);
        }
        if let Err(error) = written {
            return (End::Backend(error), body);
        }
    }
    (backend.shutdown().await.map_or_else(End::Backend, |()| End::Whole), body)
}

/// Read to the client's end, for nothing.
async fn discard(body: &mut RecvStream) -> End {
    while let Some(data) = body.data().await {
        let released = data.and_then(|data| body.flow_control().release_capacity(data.len()));
        if released.is_err() {
            return End::Client;
        }
    }
    End::Whole
}

/// `answered` becomes true with the end of the answer.
async fn download(
    backend: &BackendRead<'_>,
    send: &mut SendStream<Bytes>,
    answered: &mut bool,
    counters: &Counters,
) -> End {
    loop {
        tokio::select! {
            ready = backend.readable() => if let Err(error) = ready { return End::Backend(error) },
            // A client that gives up while the backend is thinking.
            _ = poll_fn(|context| send.poll_reset(context)) => return End::Client,
        }
        let chunk = match take_chunk(backend) {
            Ok(None) => continue,
            Ok(Some(chunk)) => chunk,
            Err(error) => return End::Backend(error),
        };
        let end = chunk.is_empty();
        add(&counters.sent, chunk.len());
        // A few bytes must not keep a whole chunk of memory while they wait for the client.
        let data = if chunk.len() < CHUNK / 2 { Bytes::copy_from_slice(&chunk) } else { chunk.freeze() };
        if !pass_on(data, end, send).await {
            return End::Client;
        }
        if end {
            *answered = true;
            return End::Whole;
        }
    }
}

/// Send as the client's windows allow; whether the client is still there.
async fn pass_on(mut data: Bytes, end: bool, send: &mut SendStream<Bytes>) -> bool {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        while send.capacity() == 0 {
            match poll_fn(|context| send.poll_capacity(context)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return false,
            }
        }
        let part = data.split_to(send.capacity().min(data.len()).min(FRAME));
        if send.send_data(part, false).is_err() {
            return false;
        }
    }
    !end || send.send_data(Bytes::new(), true).is_ok()
}
