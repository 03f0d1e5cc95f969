//! The attestation service, asked about evidence.
//!
//! Owns: the two bodies of its question, bounds of its answer, and who it is (TLS). Must not know: what the token must say
//! (`verdict.rs`). Source: tng.md section 5, kbs.md section 10.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use url::Url;
use zeroize::Zeroizing;

use super::error::VerifyError;
use super::evidence::TaggedEvidence;
use crate::https::{self, is_certificate_error, read_bounded};
use crate::text::printable;

/// Longest token taken, in bytes: an EAR token repeats the event logs of evidence, which may be 4 MiB.
const ANSWER_LIMIT: usize = 8 << 20;

/// How much of a refusal is read, in bytes, and shown, in characters.
const REFUSAL_LIMIT: usize = 64 << 10;
const SHOWN: usize = 500;

/// How long an answer may take: the service may have to fetch collateral from far away.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What an old service says to the new body.
const OLD_SERVICE: &str = "missing field `tee`";

/// One attestation service.
#[derive(Debug)]
pub struct Service {
    http: reqwest::Client,
    endpoint: Url,
}

impl Service {
    /// Set up; nothing is connected yet. `ca` (PEM) replaces the web's roots.
    ///
    /// # Errors
    /// [`VerifyError::Base`], [`VerifyError::Roots`], [`VerifyError::Setup`].
    pub fn new(base: &Url, ca: Option<&[u8]>) -> Result<Self, VerifyError> {
        let endpoint = endpoint(base).ok_or_else(|| VerifyError::Base { url: shown(base) })?;
        let tls =
            https::client_config(ca).map_err(|source| VerifyError::Roots { source: Box::new(source) })?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("cai/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(VerifyError::Setup)?;
        Ok(Service { http, endpoint })
    }

    /// Whether TLS says who the service is.
    pub fn is_authenticated(&self) -> bool {
        self.endpoint.scheme() == "https"
    }

    /// Where it is asked.
    pub(super) fn url(&self) -> String {
        self.endpoint.to_string()
    }

    /// What the service says of `evidence`, bound to `runtime_data`, and of its `devices`, under `policies`: a token.
    ///
    /// # Errors
    /// [`VerifyError::Unreachable`], [`VerifyError::Untrusted`], [`VerifyError::Denied`], [`VerifyError::AnswerTooLong`],
    /// [`VerifyError::NotText`].
    pub async fn evaluate(
        &self,
        evidence: &TaggedEvidence,
        devices: &Devices<'_>,
        runtime_data: &Map<String, Value>,
        policies: &[String],
    ) -> Result<Zeroizing<String>, VerifyError> {
        let body = new_body(evidence, devices, runtime_data, policies)?;
        match self.post(body).await {
            // An old service would not look at devices, and they would pass unseen.
            Err(VerifyError::Denied { detail, .. }) if devices.is_empty() && detail.contains(OLD_SERVICE) => {
                self.post(old_body(evidence, runtime_data, policies)?).await
            }
            answer => answer,
        }
    }

    async fn post(&self, body: Vec<u8>) -> Result<Zeroizing<String>, VerifyError> {
        let url = || self.url();
        let failed = |source: reqwest::Error| {
            let (url, source) = (url(), source.without_url());
            if is_certificate_error(&source) {
                VerifyError::Untrusted { url, source }
            } else {
                VerifyError::Unreachable { url, source }
            }
        };
        let request = self.http.post(self.endpoint.clone()).body(body);
        let request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let limit = if status == 200 { ANSWER_LIMIT } else { REFUSAL_LIMIT };
        let (answer, whole) = read_bounded(&mut response, limit).await.map_err(failed)?;
        if status != 200 {
            return Err(VerifyError::Denied { url: url(), status, detail: detail(&answer) });
        }
        if !whole {
            return Err(VerifyError::AnswerTooLong { url: url(), limit });
        }
        let token = std::str::from_utf8(&answer).map_err(|_| VerifyError::NotText { url: url() })?;
        Ok(Zeroizing::new(token.trim().to_owned()))
    }
}

/// The reason in a refusal: the `detail` of newer services, else the text.
fn detail(answer: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(answer).ok();
    let detail = parsed.as_ref().and_then(|body| body.get("detail")).and_then(Value::as_str);
    match detail {
        Some(detail) => printable(detail, SHOWN),
        None => printable(&String::from_utf8_lossy(answer), SHOWN),
    }
}

/// `{base}/attestation`, for an http(s) base without credentials and query.
fn endpoint(base: &Url) -> Option<Url> {
    let anonymous = base.username().is_empty() && base.password().is_none();
    let usable = matches!(base.scheme(), "http" | "https") && base.has_host() && anonymous;
    let usable = usable && base.query().is_none() && base.fragment().is_none();
    let text = format!("{}/attestation", base.as_str().trim_end_matches('/'));
    if usable { Url::parse(&text).ok() } else { None }
}

/// A URL without what may be secret in it.
fn shown(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

/// One piece of evidence.
#[derive(Serialize)]
struct Item<'a> {
    tee: &'a str,
    /// base64url.
    evidence: String,
    runtime_data: Option<RuntimeData<'a>>,
    init_data: Option<()>,
    runtime_data_hash_algorithm: Option<&'static str>,
}

#[derive(Serialize)]
struct RuntimeData<'a> {
    structured: &'a Map<String, Value>,
}

impl<'a> Item<'a> {
    fn of(evidence: &'a TaggedEvidence, structured: &'a Map<String, Value>) -> Self {
        Item {
            // The one name in which the attestation agent and the service differ.
            tee: if evidence.tee == "sgx-dcap" { "sgx" } else { &evidence.tee },
            evidence: URL_SAFE_NO_PAD.encode(&evidence.evidence),
            runtime_data: Some(RuntimeData { structured }),
            init_data: None,
            runtime_data_hash_algorithm: Some(evidence.hash.name()),
        }
    }
}

/// Evidence of the devices beside the CPU, by their kind; it goes on as it is.
pub type Devices<'a> = BTreeMap<String, &'a RawValue>;

/// The devices in `evidence`.
///
/// # Errors
/// [`VerifyError::Additional`].
pub fn devices(evidence: &TaggedEvidence) -> Result<Devices<'_>, VerifyError> {
    match evidence.additional.as_deref().filter(|bytes| !bytes.is_empty()) {
        Some(bytes) => serde_json::from_slice(bytes).map_err(VerifyError::Additional),
        None => Ok(Devices::new()),
    }
}

/// Of Trustee 1.6 and newer.
fn new_body(
    evidence: &TaggedEvidence,
    devices: &Devices<'_>,
    runtime_data: &Map<String, Value>,
    policies: &[String],
) -> Result<Vec<u8>, VerifyError> {
    #[derive(Serialize)]
    struct Body<'a> {
        verification_requests: Vec<Item<'a>>,
        policy_ids: &'a [String],
    }
    let mut verification_requests = vec![Item::of(evidence, runtime_data)];
    for (tee, evidence) in devices {
        verification_requests.push(Item {
            tee,
            evidence: URL_SAFE_NO_PAD.encode(evidence.get()),
            runtime_data: None,
            init_data: None,
            runtime_data_hash_algorithm: None,
        });
    }
    serde_json::to_vec(&Body { verification_requests, policy_ids: policies }).map_err(VerifyError::Encode)
}

/// Of Trustee before 1.6. It has no place for evidence of devices.
fn old_body(
    evidence: &TaggedEvidence,
    runtime_data: &Map<String, Value>,
    policies: &[String],
) -> Result<Vec<u8>, VerifyError> {
    #[derive(Serialize)]
    struct Body<'a> {
        #[serde(flatten)]
        item: Item<'a>,
        init_data_hash_algorithm: Option<()>,
        policy_ids: &'a [String],
    }
    let item = Item::of(evidence, runtime_data);
    let body = Body { item, init_data_hash_algorithm: None, policy_ids: policies };
    serde_json::to_vec(&body).map_err(VerifyError::Encode)
}
