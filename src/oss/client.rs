//! The client: one method per operation, each one request, one attempt.
//!
//! Retry belongs to the callers, who know what waits. Tested through `tests/oss_client.rs` and `tests/oss_signature.rs`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HOST, HeaderName, IF_MATCH,
    RANGE, USER_AGENT,
};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::{Access, AccessCell};
use super::address::Address;
use super::answer::{self, Head};
use super::clock::Clock;
use super::credential::Credential;
use super::credentials::Credentials;
use super::error::{OssError, Reason, Refusal};
use super::sign::Signer;
use super::throttle::{Permit, Throttle};
use super::transport::{Frames, Payload, Transport};
use crate::config::Oss;
use crate::store::{AT_ONCE, Urgency};

/// Longest error body that is looked at: real ones have about 500 bytes, with the canonical request a few thousand.
const ERROR_LIMIT: u64 = 64 << 10;
/// Milliseconds that OSS has held an answer back because of a rate limit.
const QOS_DELAY: &str = "x-oss-qos-delay-time";
/// How we introduce ourselves in the bucket's access log.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("cai/", env!("CARGO_PKG_VERSION")));

/// One bucket. Cheap to share, safe to use from many tasks.
pub struct Client {
    address: Address,
    signer: Signer,
    credentials: Credentials,
    clock: Arc<Clock>,
    transport: Transport,
    throttle: Throttle,
    access: Arc<AccessCell>,
    /// For messages: what is between us and the endpoint.
    through: String,
}

/// One request, before addressing and signing.
pub(super) struct Call<'a> {
    pub method: Method,
    /// Empty for the bucket itself.
    pub key: &'a str,
    pub query: &'a [(&'a str, &'a str)],
    pub headers: Vec<(HeaderName, String)>,
    pub body: Bytes,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, key: &'a str, query: &'a [(&'a str, &'a str)]) -> Self {
        Call { method, key, query, headers: Vec::new(), body: Bytes::new() }
    }

    pub fn get(key: &'a str, query: &'a [(&'a str, &'a str)]) -> Self {
        Call::new(Method::GET, key, query)
    }
}

/// Bytes of a range that are arriving. Holds the right to have a request in flight.
pub struct Ranged<'a> {
    /// CRC-64/XZ of the whole object, where the service told it.
    pub object_crc64: Option<u64>,
    frames: Frames<'a>,
    url: String,
    _permit: Permit<'a>,
}

impl Ranged<'_> {
    /// The next of them, or `None` after the last.
    ///
    /// # Errors
    /// Any of the transport; `BadAnswer` when there are fewer than were announced.
    pub async fn next(&mut self) -> Result<Option<Bytes>, OssError> {
        let frame = self.frames.next().await?;
        if frame.is_none() && self.frames.left() > 0 {
            let got = format!("{} bytes fewer", self.frames.left());
            return Err(OssError::BadAnswer { url: self.url.clone(), what: "length", got });
        }
        Ok(frame)
    }
}

/// Bytes of a range, all of them.
#[derive(Debug)]
pub struct Part {
    /// CRC-64/XZ of the whole object, where the service told it.
    pub object_crc64: Option<u64>,
    /// In the frames they arrived in.
    pub frames: Vec<Bytes>,
}

impl Client {
    /// A client for the bucket of `config`. Nothing is connected yet.
    ///
    /// # Errors
    /// `Endpoint`, `NoRegion`, `CredentialMemory`, `Credentials`, `CaFile`, `NoCa`, `Tls`.
    pub fn new(config: &Oss) -> Result<Self, OssError> {
        Client::with_hosts(config, HashMap::new())
    }

    /// The same, with addresses for names that shall not be looked up.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_hosts(config: &Oss, hosts: HashMap<String, SocketAddr>) -> Result<Self, OssError> {
        let (throttle, clock) = (Throttle::new(config.concurrency), Arc::new(Clock::default()));
        let proxy = config.proxy.as_ref().map(|proxy| proxy.origin().ascii_serialization());
        let access = Arc::new(AccessCell::new(throttle.counts().1, proxy.clone()));
        Ok(Client {
            address: Address::new(&config.endpoint, &config.bucket, config.addressing)?,
            signer: Signer::new(config)?,
            credentials: Credentials::new(config, clock.clone(), access.clone())?,
            clock,
            transport: Transport::new(config, hosts)?,
            throttle,
            access,
            through: proxy.map(|proxy| format!(" (through the proxy {proxy})")).unwrap_or_default(),
        })
    }

    /// Read the key of the configuration again, where it comes from a file.
    pub async fn renew_key(&self) {
        self.credentials.read_again().await;
    }

    /// How the object store is used, whenever that changes.
    pub fn access(&self) -> watch::Receiver<Access> {
        self.access.watch()
    }

    /// What the server knows about `key`.
    ///
    /// # Errors
    /// Any of the transport; `Refused`.
    pub async fn head(&self, key: &str) -> Result<Head, OssError> {
        let answer = self.call(Call::new(Method::HEAD, key, &[])).await?;
        Ok(Head::of(answer.headers()))
    }

    /// Bytes `range` (not empty) of `key`, which must still be the `total` bytes long object with tag `etag`.
    ///
    /// # Errors
    /// Any of the transport; `Refused`, with reason `Changed` for another object; `BadAnswer` for anything but exactly
    /// this range.
    pub async fn open_range<'a>(
        &'a self,
        key: &str,
        etag: &str,
        range: Range<u64>,
        total: u64,
        urgency: &'a Urgency,
    ) -> Result<Ranged<'a>, OssError> {
        let mut call = Call::get(key, &[]);
        call.headers = vec![
            (RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
            (IF_MATCH, etag.to_owned()),
            // Without it OSS answers a range that it finds wrong with the whole object (oss.md 1.3).
            (HeaderName::from_static("x-oss-range-behavior"), "standard".into()),
        ];
        let permit = self.throttle.acquire(urgency).await;
        let answer = self.exchange(call).await?;
        let url = self.url(key);
        let bad = |what, got: &str| OssError::BadAnswer {
            url: url.clone(),
            what,
            got: got.chars().take(100).collect(),
        };
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(bad("status", answer.status().as_str()));
        }
        let headers = answer.headers();
        let (got_range, encoding) =
            (answer::text(headers, CONTENT_RANGE.as_str()), answer::text(headers, CONTENT_ENCODING.as_str()));
        if answer::content_range(got_range) != Some((range.clone(), total)) {
            return Err(bad("Content-Range", got_range));
        }
        if !["", "identity"].contains(&encoding) {
            return Err(bad("Content-Encoding", encoding));
        }
        let got_etag = answer::text(headers, ETAG.as_str());
        if got_etag != etag {
            return Err(bad("ETag", got_etag));
        }
        let object_crc64 = answer::crc64(headers);
        let len = range.end.saturating_sub(range.start);
        let frames = self.transport.frames(answer.into_body(), len, url.clone(), urgency);
        Ok(Ranged { object_crc64, frames, url, _permit: permit })
    }

    /// The same, once all of it is in memory.
    ///
    /// # Errors
    /// As [`Client::open_range`], or of the bytes on their way.
    pub async fn get_range(
        &self,
        key: &str,
        etag: &str,
        range: Range<u64>,
        total: u64,
    ) -> Result<Part, OssError> {
        let mut ranged = self.open_range(key, etag, range, total, &AT_ONCE).await?;
        let (object_crc64, mut frames) = (ranged.object_crc64, Vec::new());
        while let Some(frame) = ranged.next().await? {
            frames.push(frame);
        }
        Ok(Part { object_crc64, frames })
    }

    /// URL of `key` without query, for errors.
    pub(super) fn url(&self, key: &str) -> String {
        self.address.url(key) + &self.through
    }

    /// Send one request; an answer that is not a success becomes `Refused`.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Response<Incoming>, OssError> {
        let _permit = self.throttle.acquire(&AT_ONCE).await;
        self.exchange(call).await
    }

    /// The same, by somebody who holds a permit. What a refusal says about our clock or our credential is put right once.
    async fn exchange(&self, call: Call<'_>) -> Result<Response<Incoming>, OssError> {
        let url = self.url(call.key);
        let mut credential = self.credentials.current().await?;
        let (mut clock_set, mut renewed) = (false, false);
        loop {
            let sent = Instant::now();
            let mut refusal = match self.attempt(&call, credential.as_deref(), &url).await? {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            match (refusal.reason, &credential) {
                (Reason::ClockSkew, Some(_)) if !clock_set && self.clock.learn(&refusal.date) => {
                    clock_set = true;
                    self.clock_is_wrong(&refusal.date);
                }
                (Reason::Credentials, Some(used)) if !renewed => {
                    renewed = true;
                    match self.credentials.refused(used, sent).await {
                        Some(better) => credential = Some(better),
                        None => return Err(OssError::Refused(refusal)),
                    }
                }
                (Reason::Throttled, _) => {
                    let pause = self.slow_down(&refusal.code);
                    refusal.retry_after = Some(refusal.retry_after.unwrap_or_default().max(pause));
                    return Err(OssError::Refused(refusal));
                }
                _ => return Err(OssError::Refused(refusal)),
            }
        }
    }

    /// Sign and send once.
    async fn attempt(
        &self,
        call: &Call<'_>,
        credential: Option<&Credential>,
        url: &str,
    ) -> Result<Result<Response<Incoming>, Box<Refusal>>, OssError> {
        let has_body = [Method::PUT, Method::POST].contains(&call.method);
        let fail = |source| OssError::Request { url: url.to_owned(), source };
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(self.address.uri(call.key, call.query)?)
            .header(HOST, self.address.authority())
            .header(USER_AGENT, AGENT)
            // A transparently compressed range would be a corrupt range.
            .header(ACCEPT_ENCODING, "identity");
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        let (mut parts, body) = request.body(Payload::from(call.body.clone())).map_err(fail)?.into_parts();
        // Last: what is added behind the signer's back is not what was signed.
        if let Some(credential) = credential {
            self.signer.sign(&mut parts, call.key, call.query, credential, self.clock.now())?;
        }
        if has_body {
            // hyper leaves it out for an empty body, and then OSS answers 411. No part of a signature.
            parts.headers.insert(CONTENT_LENGTH, call.body.len().into());
        }
        let answer = self.transport.send(Request::from_parts(parts, body), url).await?;
        if answer.status().is_success() {
            // Served, and held back for that many milliseconds: the next would be refused.
            match answer::text(answer.headers(), QOS_DELAY).parse::<u64>() {
                Ok(millis) if millis > 0 => drop(self.slow_down(QOS_DELAY)),
                Ok(_) | Err(_) => self.went_well(),
            }
            return Ok(Ok(answer));
        }
        let (parts, body) = answer.into_parts();
        // The status is news enough where its explanation does not arrive.
        let body = self.body(body, ERROR_LIMIT, url).await.unwrap_or_default();
        Ok(Err(Box::new(answer::refusal(url.to_owned(), parts.status.as_u16(), &parts.headers, &body))))
    }

    fn went_well(&self) {
        self.throttle.succeeded();
        let (throttled, concurrency) = self.throttle.counts();
        self.access.counts(throttled, concurrency);
    }

    /// OSS asked for less. Gives the time to wait before the same is asked again.
    fn slow_down(&self, code: &str) -> Duration {
        let pause = self.throttle.throttled();
        let (throttled, concurrency) = self.throttle.counts();
        self.access.counts(throttled, concurrency);
        tracing::info!(
            event = "oss.throttled",
            code,
            throttled,
            concurrency,
            "OSS throttles: {concurrency} requests at once"
        );
        pause
    }

    fn clock_is_wrong(&self, date: &str) {
        let offset = self.clock.offset();
        self.access.clock(offset);
        tracing::warn!(
            event = "oss.clock-skew",
            offset,
            "this machine's clock is {offset} s behind OSS (which says {date}): requests are signed for its time"
        );
    }

    /// A small body in one piece.
    pub(super) async fn body(&self, body: Incoming, limit: u64, url: &str) -> Result<Vec<u8>, OssError> {
        self.transport.frames(body, limit, url.to_owned(), &AT_ONCE).all().await
    }
}
