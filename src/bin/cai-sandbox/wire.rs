//! The HTTP servers' common part: accepting, answering, streaming files, and breaking connections on purpose.
//!
//! Owns the sockets. Knows nothing of Trustee or OSS: a [`Site`] does. One task per connection, in a
//! `JoinSet` that ends with the server; one thread of tokio's blocking pool per file being sent, which stops
//! when the connection goes. Tested through the integration tests; throughput by hand (`curl` of a 2 GiB
//! object).

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io::{self, IoSlice, Read, Seek, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Sleep;

use crate::faults::Op;
use crate::journal::{Entry, Journal};

/// Read size for files: large enough that the hand-over between threads costs nothing beside the copy.
const FRAME_LEN: u64 = 512 * 1024;

/// Frames read ahead of the socket: one being sent, one ready, two being read; 2 MiB per connection.
const FRAMES_AHEAD: usize = 4;

/// A paced body is sent in this many pieces a second.
const PIECES_PER_SEC: u64 = 20;

pub(crate) type Reply = Response<Payload>;

/// A request and the means to end its connection.
pub(crate) struct Call {
    pub(crate) parts: Parts,
    pub(crate) body: Incoming,
    pub(crate) ending: Ending,
}

/// What a site says about a request.
pub(crate) struct Outcome {
    pub(crate) op: Op,
    pub(crate) subject: String,
    /// `None`: the connection ends without an answer.
    pub(crate) reply: Option<Reply>,
}

/// Something that answers requests.
pub(crate) trait Site: Send + Sync + 'static {
    const NAME: &'static str;

    fn answer(&self, call: Call) -> impl Future<Output = Outcome> + Send;
}

/// How a connection is to end once all that was written has left the process.
#[derive(Clone, Default)]
pub(crate) struct Ending(Arc<AtomicU8>);

impl Ending {
    const CLOSE: u8 = 1;
    const RESET: u8 = 2;

    pub(crate) fn close(&self) {
        self.0.store(Self::CLOSE, Ordering::Release);
    }

    pub(crate) fn reset(&self) {
        self.0.store(Self::RESET, Ordering::Release);
    }

    fn asked(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// The socket under hyper. hyper flushes it only when its own buffer is empty, so failing the flush ends the
/// connection after exactly the bytes written so far.
struct Wire {
    stream: TcpStream,
    ending: Ending,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.ending.asked() == Ending::RESET {
            // Failing only turns the RST into a FIN, and the peer is being cut off either way.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ending.asked() != 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Serves `site` until dropped.
pub(crate) async fn serve<S: Site>(listener: TcpListener, site: Arc<S>, journal: Arc<Journal>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, site.clone(), journal.clone()));
                }
                Err(error) => {
                    eprintln!("{} accept: {error}", S::NAME);
                    // Out of descriptors, and one comes back when a connection ends.
                    connections.join_next().await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection<S: Site>(stream: TcpStream, site: Arc<S>, journal: Arc<Journal>) {
    // Failing costs latency only.
    let _ = stream.set_nodelay(true);
    let ending = Ending::default();
    let wire = Wire { stream, ending: ending.clone() };
    let service = service_fn(|request: http::Request<Incoming>| {
        let (parts, body) = request.into_parts();
        let method = parts.method.to_string();
        let range = header(&parts.headers, "range").map(str::to_owned);
        let call = Call { parts, body, ending: ending.clone() };
        let (site, journal) = (site.clone(), journal.clone());
        async move {
            let Outcome { op, subject, reply } = site.answer(call).await;
            let status = reply.as_ref().map_or(0, |reply| reply.status().as_u16());
            let bytes = reply.as_ref().map_or(0, |reply| reply.body().len());
            journal.record(Entry { server: S::NAME, op: op.word(), method, subject, range, status, bytes });
            reply.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted))
        }
    });
    // A connection that breaks is the client's business, or a fault asked for; the journal has the request.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(wire), service).await;
}

/// A header's value when it is text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The whole body, or `None` when it is longer than `limit` or breaks off.
pub(crate) async fn collect(body: Incoming, limit: usize) -> Option<Bytes> {
    Limited::new(body, limit).collect().await.ok().map(|whole| whole.to_bytes())
}

/// Take a request's body and forget it, up to its end or the end of the connection.
pub(crate) async fn drain(mut body: Incoming) {
    while let Some(Ok(_)) = body.frame().await {}
}

/// An answer held in memory.
pub(crate) fn reply(status: StatusCode, content_type: Option<&'static str>, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Payload::Whole(Some(body.into())));
    *reply.status_mut() = status;
    if let Some(content_type) = content_type {
        reply.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    }
    reply
}

/// The body of an answer.
pub(crate) enum Payload {
    Whole(Option<Bytes>),
    File(Box<FileBody>),
}

impl Payload {
    /// Bytes still to come.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Payload::Whole(bytes) => {
                bytes.as_ref().map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX))
            }
            Payload::File(body) => body.left,
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Payload::Whole(bytes) => {
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Payload::File(body) => body.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}

/// Where a body stops before its end.
#[derive(Clone, Copy)]
pub(crate) enum Halt {
    Close,
    Reset,
    Stall,
}

/// What a fault does to a body; the default does nothing.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shape {
    pub(crate) halt: Option<(u64, Halt)>,
    pub(crate) bytes_per_sec: Option<u64>,
    pub(crate) flip_at: Option<u64>,
}

/// A range of a file on its way to a socket.
pub(crate) struct FileBody {
    frames: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    left: u64,
    sent: u64,
    shape: Shape,
    pause: Option<Pin<Box<Sleep>>>,
    ending: Ending,
}

impl FileBody {
    /// Sends `len` bytes of `file` from `offset`. The file must be that long; if it is not, the connection
    /// breaks.
    pub(crate) fn start(file: File, offset: u64, len: u64, shape: Shape, ending: Ending) -> Payload {
        let (sender, frames) = mpsc::channel(FRAMES_AHEAD);
        // Ends by itself when the receiver goes, so its handle is not needed.
        drop(tokio::task::spawn_blocking(move || read_frames(file, offset, len, &sender)));
        let current = Bytes::new();
        Payload::File(Box::new(FileBody { frames, current, left: len, sent: 0, shape, pause: None, ending }))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        if let Some((after, halt)) = self.shape.halt
            && self.sent >= after
        {
            match halt {
                Halt::Close => self.ending.close(),
                Halt::Reset => self.ending.reset(),
                Halt::Stall => {}
            }
            // hyper flushes after a pending body, and the flush ends the connection; see `Wire`.
            return Poll::Pending;
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if self.current.is_empty() {
            match ready!(self.frames.poll_recv(cx)) {
                Some(Ok(frame)) => self.current = frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(self.next_piece()))))
    }

    fn next_piece(&mut self) -> Bytes {
        let mut limit = self.shape.halt.map_or(u64::MAX, |(after, _)| after - self.sent);
        if let Some(rate) = self.shape.bytes_per_sec {
            let piece = (rate / PIECES_PER_SEC).max(1);
            limit = limit.min(piece);
            let nanos = limit.min(self.left).saturating_mul(1_000_000_000) / rate;
            self.pause = Some(Box::pin(tokio::time::sleep(Duration::from_nanos(nanos))));
        }
        let take = usize::try_from(limit).unwrap_or(usize::MAX).min(self.current.len());
        let mut piece = self.current.split_to(take);
        let len = u64::try_from(take).unwrap_or(u64::MAX);
        if let Some(at) = self.shape.flip_at.and_then(|at| at.checked_sub(self.sent)).filter(|at| *at < len) {
            let mut copy = BytesMut::from(piece.as_ref());
            if let Some(byte) = usize::try_from(at).ok().and_then(|at| copy.get_mut(at)) {
                *byte = !*byte;
            }
            piece = copy.freeze();
        }
        self.sent += len;
        self.left -= len;
        piece
    }
}

fn read_frames(mut file: File, offset: u64, len: u64, sender: &mpsc::Sender<io::Result<Bytes>>) {
    let mut left = len;
    let mut failed = file.seek(SeekFrom::Start(offset)).err();
    while left > 0 && failed.is_none() {
        let take = left.min(FRAME_LEN);
        // Into spare capacity: zeroing half a megabyte first would cost a pass over memory.
        let frame_len = usize::try_from(take).unwrap_or_default();
        let mut frame = Vec::with_capacity(frame_len);
        match (&file).take(take).read_to_end(&mut frame) {
            Ok(_) if frame.len() < frame_len => failed = Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if sender.blocking_send(Ok(frame.into())).is_err() => return,
            Ok(_) => left -= take,
            Err(error) => failed = Some(error),
        }
    }
    if let Some(error) = failed {
        // Nobody listening is the same as done.
        let _ = sender.blocking_send(Err(error));
    }
}
