//! HTTP to the broker: one origin, no redirects, no proxy, bounded answers.
//!
//! Trust comes from the configuration alone: the public roots are compiled in, a CA bundle replaces them, and neither
//! proxy nor root variables of the environment are read.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Response};
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use super::error::{KbsError, Refusal, Step};
use super::session::Jar;
use crate::config::Trustee;
use crate::https::{self, RootsError, is_certificate_error, read_bounded};
use crate::text::{printable, seconds_behind};

/// Bound of the answer to each step, in bytes (kbs.md section 13, item 2).
const fn answer_limit(step: Step) -> usize {
    match step {
        Step::Auth => 16 << 10,
        Step::Evidence | Step::Attest | Step::Resource => 1 << 20,
    }
}

/// How much of a refusal is read, in bytes.
const REFUSAL_LIMIT: usize = 64 << 10;

/// How much of the broker's `detail` is kept, in characters: the first generation sends its verifier's whole chain.
const DETAIL_LEN: usize = 2048;

/// How much of a text that is not the broker's is kept, in characters.
const FOREIGN_LEN: usize = 200;

/// What a broker said: the body of a success (a token may be in it, so it is wiped), or its refusal.
pub(super) type Reply = Result<Zeroizing<Vec<u8>>, Box<Refusal>>;

/// What a request proves the session with.
#[derive(Clone, Copy)]
pub(super) enum Credential<'a> {
    /// The cookies of the handshake, which take what the answer sets.
    Cookies(&'a Jar),
    /// The attestation token in their place.
    Bearer(&'a HeaderValue),
}

/// The HTTP client of one broker.
pub(super) struct Transport {
    http: reqwest::Client,
    base: Url,
    /// Seconds that this machine's clock is behind the broker's, by the last answer with a date.
    clock_behind: Mutex<Option<i64>>,
}

impl Transport {
    /// Set up TLS and HTTP as configured; no connection is made.
    pub(super) fn new(config: &Trustee) -> Result<Self, KbsError> {
        let base = checked_base(&config.url)?;
        if config.require_https && base.scheme() != "https" {
            return Err(KbsError::HttpsRequired { url: base.into() });
        }
        let http = reqwest::Client::builder()
            .user_agent(concat!("cai/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls_config(config)?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // A request may have been acted on even when its answer is lost; only a handshake as a whole is repeated.
            .retry(reqwest::retry::never())
            .timeout(config.timeout)
            .build()
            .map_err(KbsError::Setup)?;
        Ok(Transport { http, base, clock_behind: Mutex::default() })
    }

    /// Whether the server proves who it is.
    pub(super) fn server_authenticated(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Seconds that this machine's clock is behind the broker's; `None` before an answer with a date.
    pub(super) fn clock_behind(&self) -> Option<i64> {
        *self.clock_behind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Base URL, without trailing slash in its path except for the root.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// `POST {base}/kbs/v0/{step}` with a JSON body.
    pub(super) async fn post(&self, step: Step, jar: &Jar, body: Vec<u8>) -> Result<Reply, KbsError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.exchange(step, Method::POST, &step.to_string(), headers, Credential::Cookies(jar), body).await
    }

    /// `GET {base}/kbs/v0/resource/{path}`.
    pub(super) async fn get_resource(
        &self,
        credential: Credential<'_>,
        path: &str,
    ) -> Result<Reply, KbsError> {
        let path = format!("resource/{path}");
        self.exchange(Step::Resource, Method::GET, &path, HeaderMap::new(), credential, Vec::new()).await
    }

    async fn exchange(
        &self,
        step: Step,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        credential: Credential<'_>,
        body: Vec<u8>,
    ) -> Result<Reply, KbsError> {
        let text = format!("{}/kbs/v0/{path}", self.base.as_str().trim_end_matches('/'));
        let url = Url::parse(&text).map_err(|_| KbsError::Base { url: text })?;
        match credential {
            Credential::Cookies(jar) => jar.apply(&url, &mut headers),
            Credential::Bearer(token) => drop(headers.insert(AUTHORIZATION, token.clone())),
        }
        let request = self.http.request(method, url.clone()).headers(headers);
        let request = if body.is_empty() { request } else { request.body(body) };
        let mut response = request.send().await.map_err(|source| no_answer(step, &url, source))?;
        if let Credential::Cookies(jar) = credential {
            jar.store(&url, response.headers());
        }
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok()).unwrap_or_default();
        if let Some(behind) = seconds_behind(date, SystemTime::now()) {
            *self.clock_behind.lock().unwrap_or_else(PoisonError::into_inner) = Some(behind);
        }
        let status = response.status();
        if status.is_redirection() {
            return Err(redirected(step, &response));
        }
        let limit = if status.is_success() { answer_limit(step) } else { REFUSAL_LIMIT };
        let (body, whole) =
            read_bounded(&mut response, limit).await.map_err(|source| no_answer(step, &url, source))?;
        match (status.is_success(), whole) {
            (true, true) => Ok(Ok(body)),
            (true, false) => Err(KbsError::AnswerTooLarge { step, limit, at: SystemTime::now() }),
            (false, _) => Ok(Err(Box::new(Refusal::read(step, status.as_u16(), &body)))),
        }
    }
}

/// The base as it is used, or an error: http(s), no credentials, no query, not an endpoint of the broker.
fn checked_base(url: &Url) -> Result<Url, KbsError> {
    let mut base = url.clone();
    base.set_query(None);
    base.set_fragment(None);
    let anonymous = base.username().is_empty() && base.password().is_none();
    let usable = matches!(base.scheme(), "http" | "https") && base.has_host() && anonymous;
    let path = base.path().trim_end_matches('/');
    if usable && url.query().is_none() && url.fragment().is_none() && !path.contains("/kbs/v0") {
        let path = path.to_owned();
        base.set_path(&path);
        return Ok(base);
    }
    // Neither setter can fail to take the credentials out of what is shown: where they do not apply there are none.
    let _ = base.set_username("").and(base.set_password(None));
    Err(KbsError::Base { url: base.into() })
}

fn tls_config(config: &Trustee) -> Result<rustls::ClientConfig, KbsError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| KbsError::CaFile { path: path.clone(), source })
    };
    let roots = config.ca_file.as_ref().map(read).transpose()?;
    https::client_config(roots.as_deref()).map_err(|error| match (error, &config.ca_file) {
        (RootsError::Content, Some(path)) => KbsError::CaContent { path: path.clone() },
        (RootsError::Content, None) => KbsError::Tls(rustls::Error::General("no roots are built in".into())),
        (RootsError::Tls(source), _) => KbsError::Tls(source),
    })
}

fn no_answer(step: Step, url: &Url, source: reqwest::Error) -> KbsError {
    let (url, at, source) = (url.to_string(), SystemTime::now(), source.without_url());
    if is_certificate_error(&source) {
        KbsError::Untrusted { step, url, at, source }
    } else {
        KbsError::Unreachable { step, url, at, source }
    }
}

fn redirected(step: Step, response: &Response) -> KbsError {
    let location =
        response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or("(nowhere)");
    let location = location.split(['?', '#']).next().unwrap_or_default();
    KbsError::Redirected {
        step,
        status: response.status().as_u16(),
        location: printable(location, FOREIGN_LEN),
        at: SystemTime::now(),
    }
}

impl Refusal {
    /// The broker's `type` and `detail`, else a gateway's `error`, else the text. The content type is never right.
    pub fn read(step: Step, status: u16, body: &[u8]) -> Self {
        #[derive(Deserialize, Default)]
        struct Body {
            #[serde(rename = "type")]
            kind: Option<String>,
            detail: Option<String>,
            error: Option<String>,
        }
        let at = SystemTime::now();
        let parsed: Option<Body> = serde_json::from_slice(body).ok();
        let Body { kind, detail, error } = parsed.unwrap_or_default();
        let kind = kind.as_deref().and_then(|kind| kind.rsplit('/').next());
        let kind = kind.map(|kind| printable(kind, 64)).unwrap_or_default();
        let detail = match detail.or(error) {
            Some(text) => printable(&text, DETAIL_LEN),
            None if kind.is_empty() => printable(&String::from_utf8_lossy(body), FOREIGN_LEN),
            None => String::new(),
        };
        Refusal { step, status, kind, detail, at }
    }
}
