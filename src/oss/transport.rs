//! Connections: TLS trust, name resolution, and the rule that a request must move bytes.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::error::OssError;
use super::route::Route;
use crate::bandwidth::Bandwidth;
use crate::config::Oss;
use crate::store::Urgency;

/// A connection that is not there after this time will not come: internal endpoints answer in milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections are closed before the server does it (OSS closes after about a minute).
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Pieces an upload is handed over in, so that its progress can be seen.
const UPLOAD_PIECE: usize = 256 << 10;

type Connector = HttpsConnector<Route<HttpConnector<Resolver>>>;
type HttpClient = hyper_util::client::legacy::Client<Connector, Payload>;

/// The connections to one endpoint.
#[derive(Clone)]
pub struct Transport {
    client: HttpClient,
    /// Longest time without a byte, in either direction.
    stall: Duration,
    bandwidth: Option<Arc<Bandwidth>>,
}

impl Transport {
    /// Set up; nothing is connected yet. Names in `hosts` are not looked up but taken from there.
    ///
    /// # Errors
    /// `CaFile`, `NoCa`, `Tls`, `Request`.
    pub fn new(config: &Oss, hosts: HashMap<String, SocketAddr>) -> Result<Self, OssError> {
        let mut http =
            HttpConnector::new_with_resolver(Resolver { hosts: Arc::new(hosts), turn: Arc::default() });
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT.min(config.timeout)));
        let address = |proxy: &Url| {
            let uri = Uri::try_from(proxy.as_str());
            uri.map_err(|source| OssError::Request { url: proxy.to_string(), source: source.into() })
        };
        let proxy = config.proxy.as_ref().map(address).transpose()?;
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Route { direct: http, proxy });
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(config.concurrency)
            .build(https);
        let bandwidth = Bandwidth::new(config.bandwidth_limit).map(Arc::new);
        Ok(Transport { client, stall: config.timeout, bandwidth })
    }

    /// Send `request` and wait for the head of the answer, as long as bytes of the request move.
    ///
    /// # Errors
    /// `Send`, `Stalled`.
    pub async fn send(&self, request: Request<Payload>, url: &str) -> Result<Response<Incoming>, OssError> {
        let sent = request.body().sent.clone();
        let mut answer = self.client.request(request);
        let mut before = 0;
        loop {
            match tokio::time::timeout(self.stall, &mut answer).await {
                Ok(answer) => return answer.map_err(|source| OssError::Send { url: url.to_owned(), source }),
                Err(_) if sent.load(Ordering::Relaxed) == before => return Err(self.stalled(url)),
                Err(_) => before = sent.load(Ordering::Relaxed),
            }
        }
    }

    /// The body of an answer, `limit` bytes of it at most.
    pub fn frames<'a>(&'a self, body: Incoming, limit: u64, url: String, urgency: &'a Urgency) -> Frames<'a> {
        Frames { transport: self, body, limit, left: limit, url, urgency, slow: false }
    }

    fn stalled(&self, url: &str) -> OssError {
        OssError::Stalled { url: url.to_owned(), secs: self.stall.as_secs() }
    }
}

/// Frames below this length mean that the line is slower than we are: then every packet would wake us.
const SHORT_FRAME: usize = 64 << 10;
/// How long more is left to gather, where nobody waits: a connection's share of a slow line is some 10 KB in that time, and the
/// kernel takes in megabytes.
const GATHER: Duration = Duration::from_millis(10);

/// The body of an answer in the frames it arrives in.
pub struct Frames<'a> {
    transport: &'a Transport,
    body: Incoming,
    limit: u64,
    left: u64,
    url: String,
    urgency: &'a Urgency,
    /// The last frame was short.
    slow: bool,
}

impl Frames<'_> {
    /// The next one, or `None` at the end.
    ///
    /// # Errors
    /// `Body`, `Stalled`, `TooLarge`.
    pub async fn next(&mut self) -> Result<Option<Bytes>, OssError> {
        if self.slow && self.left > 0 {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = self.urgency.raised() => {}
            }
        }
        loop {
            let frame = tokio::time::timeout(self.transport.stall, self.body.frame()).await;
            let Some(frame) = frame.map_err(|_| self.transport.stalled(&self.url))? else { return Ok(None) };
            let frame = frame.map_err(|source| OssError::Body { url: self.url.clone(), source })?;
            let Ok(data) = frame.into_data() else { continue };
            let too_large = || OssError::TooLarge { url: self.url.clone(), limit: self.limit };
            self.left = self.left.checked_sub(data.len() as u64).ok_or_else(too_large)?;
            if let Some(bandwidth) = &self.transport.bandwidth {
                bandwidth.take(data.len(), self.urgency).await;
            }
            self.slow = data.len() < SHORT_FRAME;
            return Ok(Some(data));
        }
    }

    /// Bytes of the limit that have not arrived.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Everything.
    ///
    /// # Errors
    /// As [`Frames::next`].
    pub async fn all(mut self) -> Result<Vec<u8>, OssError> {
        let mut bytes = Vec::new();
        while let Some(frame) = self.next().await? {
            bytes.extend_from_slice(&frame);
        }
        Ok(bytes)
    }
}

/// Trust in the public roots, or in `ca_file` alone.
pub(super) fn tls(config: &Oss) -> Result<ClientConfig, OssError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(OssError::Tls)?;
    let Some(path) = &config.ca_file else { return Ok(builder.with_webpki_roots().with_no_client_auth()) };
    let fail = |source| OssError::CaFile { path: path.clone(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(fail)? {
        roots.add(certificate.map_err(fail)?).map_err(OssError::Tls)?;
    }
    if roots.is_empty() {
        return Err(OssError::NoCa { path: path.clone() });
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Looks a name up for every new connection and begins at another address each time: OSS moves its addresses, and many
/// connections to one of them leave the others idle (oss.md 1.1).
#[derive(Clone)]
struct Resolver {
    hosts: Arc<HashMap<String, SocketAddr>>,
    turn: Arc<AtomicUsize>,
}

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.clone();
        Box::pin(async move {
            if let Some(address) = resolver.hosts.get(name.as_str()) {
                return Ok(vec![*address].into_iter());
            }
            // The port is the connector's business.
            let mut addresses: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let first = resolver.turn.fetch_add(1, Ordering::Relaxed) % addresses.len().max(1);
            addresses.rotate_left(first);
            Ok(addresses.into_iter())
        })
    }
}

/// A request's body, handed over piece by piece, and how much of it has been.
#[derive(Debug, Default)]
pub struct Payload {
    left: Bytes,
    sent: Arc<AtomicU64>,
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Payload { left: bytes, sent: Arc::default() }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.left.len().min(UPLOAD_PIECE);
        let piece = self.left.split_to(len);
        self.sent.fetch_add(len as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
