//! The HTTP proxy for applications: CONNECT, and requests in absolute form, which go on in origin form.
//!
//! Each request gets a tunnel of its own, as TNG's do; connections of applications are kept. Bodies are passed on as they
//! come. Source: tng.md section 7, RFC 9110 sections 7.6.1 and 9.3.6.

use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;

use super::destination::Destination;
use super::dial::Dialer;
use super::error::ConnectError;
use super::tunnel::Tunnel;
use super::{open, relay};
use crate::error::{Fault as _, chain};

/// How long an application may take for the head of a request, and keep a connection without one.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(60);

/// Marks a request that went through a tunnel; coming in, it goes in circles.
const LOOP_MARKER: HeaderName = HeaderName::from_static("x-tng-http-forward");

/// What is between us and the application only, beside what its `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("proxy-connection"),
    http::header::TE,
    http::header::TRAILER,
    http::header::UPGRADE,
];

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// The server's end of a request.
type Connection = client::Connection<TokioIo<Tunnel>, Incoming>;

/// An application that was answered its CONNECT, and where to.
type Upgrade = Mutex<Option<(OnUpgrade, Tunnel)>>;

/// Serve one connection of an application.
pub(super) async fn serve(stream: TcpStream, dialer: &Dialer) {
    let upgrade = Arc::new(Upgrade::default());
    let service = service_fn(|request| {
        let upgrade = upgrade.clone();
        async move { Ok::<_, Infallible>(answer(request, dialer, &upgrade).await) }
    });
    let connection = server::Builder::new()
        .preserve_header_case(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(event = "connect.proxy", ?error, "an application's connection ended");
    }
    let upgraded = upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrading, tunnel)) = upgraded
        && let Ok(upgraded) = upgrading.await
        && let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>()
    {
        relay(parts.io.into_inner(), &parts.read_buf, tunnel).await;
    }
}

async fn answer(mut request: Request<Incoming>, dialer: &Dialer, upgrade: &Upgrade) -> Answer {
    if request.method() == Method::CONNECT {
        let to = match request.uri().authority().map(|to| Destination::parse(to.as_str(), None)) {
            Some(Ok(to)) => to,
            Some(Err(error)) => return text(StatusCode::BAD_REQUEST, &error),
            None => return text(StatusCode::BAD_REQUEST, "CONNECT names no HOST:PORT"),
        };
        return match open(dialer, &to).await {
            Ok(tunnel) => {
                let upgrading = hyper::upgrade::on(&mut request);
                *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrading, tunnel));
                Response::new(empty())
            }
            Err(error) => refusal(&error),
        };
    }
    let (to, request) = match origin_form(request) {
        Ok(rewritten) => rewritten,
        Err(error) => return text(StatusCode::BAD_REQUEST, &error),
    };
    match open(dialer, &to).await {
        Ok(tunnel) => forward(&to, tunnel, request).await,
        Err(error) => refusal(&error),
    }
}

/// The request as the server is to see it, and where that is.
fn origin_form(request: Request<Incoming>) -> Result<(Destination, Request<Incoming>), String> {
    let (mut head, body) = request.into_parts();
    let uri = std::mem::take(&mut head.uri).into_parts();
    let Some(authority) = uri.authority else {
        return Err("this is a proxy: expected a request for http://HOST:PORT/PATH, or CONNECT".into());
    };
    match uri.scheme.as_ref().map(http::uri::Scheme::as_str) {
        Some("http") => {}
        scheme => {
            let scheme = scheme.unwrap_or_default();
            return Err(format!("expected a request for http://, got {scheme}://: use CONNECT for it"));
        }
    }
    if authority.as_str().contains('@') {
        return Err("a user in the URL is not passed on: use the header Authorization".into());
    }
    if head.headers.contains_key(LOOP_MARKER) {
        return Err(format!(
            "recursion is detected: the request carries {LOOP_MARKER}, so it came out of a tunnel"
        ));
    }
    let to = Destination::parse(authority.as_str(), Some(80))?;
    let target = uri.path_and_query.map_or_else(|| Uri::from_static("/"), Uri::from);
    head.uri = target;
    drop_hop_by_hop(&mut head.headers);
    // RFC 9112 section 3.2.2: the target counts, not what the application wrote beside it.
    let host = HeaderValue::from_str(authority.as_str()).map_err(|error| error.to_string())?;
    head.headers.insert(HOST, host);
    head.headers.insert(LOOP_MARKER, HeaderValue::from_static("true"));
    // The server's end of the tunnel speaks HTTP/1.1 whatever the application does.
    head.version = http::Version::HTTP_11;
    Ok((to, Request::from_parts(head, body)))
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Send the request into the tunnel, and pass on what comes back.
async fn forward(to: &Destination, tunnel: Tunnel, request: Request<Incoming>) -> Answer {
    let failed = |error: hyper::Error| {
        let reason = chain(&error);
        tracing::debug!(event = "connect.forward", %to, reason, "a request got no answer");
        text(StatusCode::BAD_GATEWAY, &format!("{to} is attested, but gives no answer: {reason}"))
    };
    let shaken = client::Builder::new().preserve_header_case(true).handshake(TokioIo::new(tunnel)).await;
    let (mut sender, connection) = match shaken {
        Ok(shaken) => shaken,
        Err(error) => return failed(error),
    };
    let mut connection = Box::pin(connection);
    let mut answering = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answering => answer,
        // The end of the connection is also that of what is in it, if there is an answer at all.
        _ = &mut connection => answering.await,
    };
    let (mut head, body) = match answer {
        Ok(answer) => answer.into_parts(),
        Err(error) => return failed(error),
    };
    drop_hop_by_hop(&mut head.headers);
    Response::from_parts(head, Driven { body, connection: Some(connection) }.boxed_unsync())
}

/// The body of an answer, which drives the connection it comes in.
struct Driven {
    body: Incoming,
    connection: Option<Pin<Box<Connection>>>,
}

impl Body for Driven {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(cx).is_ready()
        {
            // How it ended, the body says.
            self.connection = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn empty() -> UnsyncBoxBody<Bytes, hyper::Error> {
    Full::default().map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Why there is no tunnel, for whoever reads the application's error.
fn refusal(error: &ConnectError) -> Answer {
    let reason = format!("{} [{}]\nhint: {}", chain(error), error.code(), error.hint());
    text(StatusCode::BAD_GATEWAY, &reason)
}

fn text(status: StatusCode, reason: &str) -> Answer {
    let body = Full::from(format!("cai connect: {reason}\n")).map_err(|never: Infallible| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    answer
}
