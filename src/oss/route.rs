//! Where a connection goes: to the endpoint, or to the proxy that the operator chose (`oss.proxy`).
//!
//! A request to an http endpoint is sent to the proxy whole, in absolute form (RFC 9112 3.2.2): it sees it, and may answer from what
//! it has. One to an https endpoint goes through a tunnel (CONNECT): TLS is with the endpoint, and the proxy sees who is dialled.
//! No variable of the environment is read. Tested in `tests/oss_proxy.rs`.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use http::uri::Scheme;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

/// What a connector says that could not connect.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connects by `direct`, through the proxy where there is one.
#[derive(Clone)]
pub(super) struct Route<C> {
    pub(super) direct: C,
    pub(super) proxy: Option<Uri>,
}

impl<C> Service<Uri> for Route<C>
where
    C: Service<Uri, Response = TokioIo<TcpStream>> + Clone + Send + 'static,
    C::Error: Into<BoxError>,
    C::Future: Send,
{
    type Response = Way;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Way, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Route { mut direct, proxy } = self.clone();
        Box::pin(async move {
            let is_secret = to.scheme() == Some(&Scheme::HTTPS);
            let (stream, is_proxied) = match proxy {
                None => (direct.call(to).await.map_err(Into::into)?, false),
                Some(proxy) if is_secret => (Tunnel::new(proxy, direct).call(to).await?, false),
                Some(proxy) => (direct.call(proxy).await.map_err(Into::into)?, true),
            };
            Ok(Way { stream, is_proxied })
        })
    }
}

/// A connection, and whether requests on it are the proxy's to read.
pub(super) struct Way {
    stream: TokioIo<TcpStream>,
    is_proxied: bool,
}

impl Connection for Way {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_proxied)
    }
}

impl Read for Way {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Way {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }
}
