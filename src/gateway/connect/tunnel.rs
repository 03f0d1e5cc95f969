//! Bytes to and from an attested server, as long as it is attested.
//!
//! Owns: two rules. A tunnel whose server is not attested any more breaks off, in both directions and never as if it had come
//! to its end. And a server that takes no more may still have an answer to give (413, say): what is written after that goes
//! nowhere, and the tunnel ends as its reading side does. No locks: a tunnel is used by one task. Tested in
//! `tests/connect_reattest.rs` and `tests/connect_uploads.rs`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::lease::Place;

/// Both directions.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Bytes to and from an attested server.
pub struct Tunnel {
    stream: Box<dyn Duplex>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The server takes no more.
    refused: bool,
    _place: Place,
}

impl Tunnel {
    pub(super) fn new(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, place: Place) -> Self {
        Tunnel { stream: Box::new(stream), cut: Box::pin(place.cut()), refused: false, _place: place }
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is no longer attested"))
            }
            Poll::Pending => Ok(()),
        }
    }

    /// Write with `write`; once that fails, to nowhere.
    fn poll_upload<T>(
        &mut self,
        cx: &mut Context<'_>,
        nowhere: T,
        write: impl FnOnce(Pin<&mut dyn Duplex>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.check(cx)?;
        if self.refused {
            return Poll::Ready(Ok(nowhere));
        }
        match ready!(write(Pin::new(&mut *self.stream), cx)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(error) => {
                tracing::debug!(event = "connect.refused-upload", ?error, "a server takes no more");
                self.refused = true;
                Poll::Ready(Ok(nowhere))
            }
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut *self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_upload(cx, bytes.len(), |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_upload(cx, (), |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_upload(cx, (), |stream, cx| stream.poll_shutdown(cx))
    }
}
