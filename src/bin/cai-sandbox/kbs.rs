//! The stand-in Trustee key broker: `auth`, `attest`, `resource`.
//!
//! Owns sessions, resources and the refusals' wire form (statuses and texts of Trustee v1.8.7 for protocol 0.4.0, of v1.5.2 for
//! 0.1.0). It verifies the sample TEE only; admin operations are refused. One mutex each for sessions and resources, never
//! both, never across an await. Tested in `tests/sandbox_kbs.rs`.
//!
//! Source: `kbs-observed.md`; texts not observed there (token verifier, plugin, JWE) are our own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::json;

use crate::clock::{http_date, unix_secs};
use crate::faults::{Act, Faults, Op, Place};
use crate::kbs_evidence::{Protocol, parse_auth, verify};
use crate::kbs_jwe::{Form, TeeKey};
use crate::kbs_token::Signer;
use crate::wire::{Call, Outcome, Reply, Site, collect, header, reply};

/// Trustee's default life of a session, in seconds.
const SESSION_SECS: u64 = 300;
/// Sessions kept before expired ones are swept: enough for any test, small enough for memory.
const SESSIONS_KEPT: usize = 10_000;
/// The servers' limit on a request body, in bytes.
const BODY_LIMIT: usize = 2 << 20;
const NONCE_LEN: usize = 32;
const PREFIX: &str = "/kbs/v0/";
const COOKIE: &str = "kbs-session-id";

struct Session {
    tee: String,
    nonce: String,
    expires: u64,
    attested: Option<(String, TeeKey)>,
}

/// Named secrets by `repository/type/tag`; the control port fills it too.
#[derive(Default)]
pub(crate) struct Resources(Mutex<BTreeMap<String, Vec<u8>>>);

impl Resources {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores `bytes` under `path`; false when the path is malformed.
    pub(crate) fn put(&self, path: &str, bytes: Vec<u8>) -> bool {
        let well_formed = is_resource_path(path);
        if well_formed {
            self.all().insert(path.to_owned(), bytes);
        }
        well_formed
    }

    /// Whether there was one to remove.
    pub(crate) fn remove(&self, path: &str) -> bool {
        self.all().remove(path).is_some()
    }

    fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.all().get(path).cloned()
    }
}

fn is_resource_path(path: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let segments: Vec<&str> = path.split('/').collect();
    segments.len() == 3
        && segments.iter().all(|s| s.starts_with(word) && s.chars().all(|c| word(c) || c == '.'))
}

enum Refusal {
    Auth(String),
    Attest,
    TokenNotFound,
    TokenVerifier,
    PolicyDeny,
    PluginInternal,
    Jwe,
    Admin,
}

impl Refusal {
    fn reply(&self, protocol: Protocol) -> Reply {
        let handshake = match protocol {
            Protocol::V010 => StatusCode::INTERNAL_SERVER_ERROR,
            Protocol::V040 => StatusCode::BAD_GATEWAY,
        };
        let (status, kind, detail) = match self {
            Refusal::Auth(cause) => {
                (handshake, "AttestationError", format!("RCAR handshake Auth failed: {cause}"))
            }
            Refusal::Attest => {
                (handshake, "AttestationError", "Attestation error: RCAR handshake Attest failed".to_owned())
            }
            Refusal::TokenNotFound => {
                (StatusCode::UNAUTHORIZED, "TokenNotFound", "Attestation Token not found".to_owned())
            }
            Refusal::TokenVerifier => {
                (StatusCode::UNAUTHORIZED, "TokenVerifierError", "Token Verifier error".to_owned())
            }
            Refusal::PolicyDeny => {
                (StatusCode::FORBIDDEN, "PolicyDeny", "Access denied by policy".to_owned())
            }
            Refusal::PluginInternal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "PluginInternalError", "Plugin Internal Error".to_owned())
            }
            Refusal::Jwe => (StatusCode::BAD_REQUEST, "JweError", "JWE failed".to_owned()),
            Refusal::Admin => (StatusCode::UNAUTHORIZED, "AdminAuth", "Admin auth error".to_owned()),
        };
        let kind = format!("https://github.com/confidential-containers/kbs/errors/{kind}");
        // The real servers send no Content-Type here.
        reply(status, None, json!({"type": kind, "detail": detail}).to_string())
    }
}

/// The key broker.
pub(crate) struct Kbs {
    protocol: Protocol,
    faults: Arc<Faults>,
    resources: Arc<Resources>,
    signer: Signer,
    sessions: Mutex<HashMap<String, Session>>,
}

impl Kbs {
    pub(crate) fn new(
        protocol: Protocol,
        faults: Arc<Faults>,
        resources: Arc<Resources>,
    ) -> anyhow::Result<Kbs> {
        Ok(Kbs { protocol, faults, resources, signer: Signer::generate()?, sessions: Mutex::default() })
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, place: Place, op: Op, subject: &str) -> Option<Act> {
        self.faults.take(place, op, subject)
    }

    fn auth(&self, body: &[u8]) -> Result<Reply, Refusal> {
        let tee = parse_auth(self.protocol, body).map_err(Refusal::Auth)?;
        let random = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(|e| Refusal::Auth(e.to_string()));
        let (mut nonce, mut id) = ([0; NONCE_LEN], [0; 16]);
        random(&mut nonce)?;
        random(&mut id)?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut sent = STANDARD.encode(nonce);
        let mut kept = sent.clone();
        match self.fault(Place::Challenge, Op::Auth, "") {
            Some(Act::KbsShortNonce) => {
                sent = STANDARD.encode([7; 8]);
                kept.clone_from(&sent);
            }
            Some(_) => {
                random(&mut nonce)?;
                kept = STANDARD.encode(nonce);
            }
            None => {}
        }
        let expires = unix_secs() + SESSION_SECS;
        let mut sessions = self.sessions();
        if sessions.len() >= SESSIONS_KEPT {
            sessions.retain(|_, session| session.expires > unix_secs());
        }
        sessions.insert(id.clone(), Session { tee, nonce: kept, expires, attested: None });
        let body = json!({"nonce": sent, "extra-params": ""}).to_string();
        Ok(with_cookie(reply(StatusCode::OK, Some("application/json"), body), &id, expires))
    }

    fn attest(&self, headers: &HeaderMap, body: &[u8]) -> Result<Reply, Refusal> {
        let id = cookie(headers).ok_or(Refusal::Attest)?;
        let expire = self.fault(Place::State, Op::Attest, "").is_some();
        let mut sessions = self.sessions();
        if expire {
            sessions.remove(id);
        }
        let session = sessions.get_mut(id).filter(|s| s.expires > unix_secs()).ok_or(Refusal::Attest)?;
        let token = match &session.attested {
            // As the real servers: an attested session repeats its token without looking at the evidence.
            Some((token, _)) => token.clone(),
            None => {
                let (key, mut appraisal) = verify(self.protocol, &session.nonce, body)
                    .filter(|_| session.tee == "sample")
                    .ok_or(Refusal::Attest)?;
                match self.fault(Place::Verdict, Op::Attest, "") {
                    Some(Act::KbsRefuseEvidence) => return Err(Refusal::Attest),
                    Some(_) => {
                        let other = STANDARD.encode([9; NONCE_LEN]);
                        if let Some(claims) = appraisal.runtime_data.as_object_mut() {
                            claims.insert("nonce".to_owned(), other.into());
                        }
                    }
                    None => {}
                }
                let token = self.signer.issue(&appraisal).map_err(|_| Refusal::Attest)?;
                session.attested = Some((token.clone(), key));
                token
            }
        };
        let body = json!({"token": token}).to_string();
        Ok(with_cookie(reply(StatusCode::OK, Some("application/json"), body), id, session.expires))
    }

    fn resource(&self, headers: &HeaderMap, path: &str) -> Result<Reply, Refusal> {
        let key = self.requester(headers, path)?;
        if !is_resource_path(path) {
            return Err(Refusal::PluginInternal);
        }
        let release = self.fault(Place::Release, Op::Resource, path);
        if release == Some(Act::KbsDeny) {
            return Err(Refusal::PolicyDeny);
        }
        let secret = self.resources.get(path).ok_or(Refusal::PluginInternal)?;
        let form = match self.protocol {
            Protocol::V010 => Form::Legacy,
            Protocol::V040 => Form::Flattened,
        };
        let envelope = key.seal(form, &secret, release == Some(Act::KbsBadTag)).map_err(|_| Refusal::Jwe)?;
        let body = serde_json::to_vec(&envelope).map_err(|_| Refusal::Jwe)?;
        Ok(reply(StatusCode::OK, Some("application/json"), body))
    }

    /// The key of whoever asks: by session cookie, `Attestation` header, or bearer token, in this order.
    fn requester(&self, headers: &HeaderMap, path: &str) -> Result<TeeKey, Refusal> {
        let expire = self.fault(Place::State, Op::Resource, path).is_some();
        if let Some(id) = cookie(headers) {
            let mut sessions = self.sessions();
            if expire {
                sessions.remove(id);
            }
            let live = sessions.get(id).filter(|session| session.expires > unix_secs());
            if let Some((_, key)) = live.and_then(|session| session.attested.as_ref()) {
                return Ok(key.clone());
            }
        }
        let bearer = || header(headers, "authorization").and_then(|value| value.strip_prefix("Bearer "));
        let token = header(headers, "attestation").or_else(bearer).ok_or(Refusal::TokenNotFound)?;
        self.signer.verify(token).filter(|_| !expire).ok_or(Refusal::TokenVerifier)
    }

    async fn route(&self, op: Op, path: &str, call: Call) -> Reply {
        let Call { parts, body, .. } = call;
        let Some(body) = collect(body, BODY_LIMIT).await else {
            let text = "A payload reached size limit";
            return reply(StatusCode::PAYLOAD_TOO_LARGE, Some("text/plain; charset=utf-8"), text);
        };
        let answer = match (op, &parts.method) {
            (Op::Auth, &Method::POST) => self.auth(&body),
            (Op::Attest, &Method::POST) => self.attest(&parts.headers, &body),
            (Op::Resource, &Method::GET) => self.resource(&parts.headers, path),
            (Op::Resource, _) if !is_resource_path(path) => Err(Refusal::PluginInternal),
            (Op::Resource, _) => Err(Refusal::Admin),
            _ => return reply(StatusCode::NOT_FOUND, None, ""),
        };
        answer.unwrap_or_else(|refusal| refusal.reply(self.protocol))
    }
}

impl Site for Kbs {
    const NAME: &'static str = "kbs";

    async fn answer(&self, call: Call) -> Outcome {
        let path = call.parts.uri.path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
        let (op, subject) = match path.split_once('/') {
            None if path == "auth" => (Op::Auth, ""),
            None if path == "attest" => (Op::Attest, ""),
            Some(("resource", subject)) => (Op::Resource, subject),
            _ => (Op::Other, ""),
        };
        let subject = subject.to_owned();
        if let Some(Act::KbsDelay { millis }) = self.fault(Place::Delay, op, &subject) {
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
        let reply = match self.fault(Place::Instead, op, &subject) {
            Some(act) => instead(&act),
            None => Some(self.route(op, &subject, call).await),
        };
        Outcome { op, subject, reply }
    }
}

fn instead(act: &Act) -> Option<Reply> {
    match act {
        Act::KbsStatus { status } => {
            let status = StatusCode::from_u16(*status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            let page = format!("<html><body><h1>{status}</h1></body></html>");
            Some(reply(status, Some("text/html"), page))
        }
        Act::KbsRedirect { location } => {
            let mut answer = reply(StatusCode::FOUND, None, "");
            if let Ok(location) = HeaderValue::from_str(location) {
                answer.headers_mut().insert(http::header::LOCATION, location);
            }
            Some(answer)
        }
        Act::KbsOversize { bytes } => {
            let spaces = vec![b' '; usize::try_from(*bytes).unwrap_or(usize::MAX)];
            Some(reply(StatusCode::OK, Some("application/json"), spaces))
        }
        _ => None,
    }
}

/// The session id among the request's cookies.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let pairs = headers.get_all("cookie").iter().filter_map(|value| value.to_str().ok());
    pairs.flat_map(|line| line.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    })
}

fn with_cookie(mut reply: Reply, id: &str, expires: u64) -> Reply {
    if let Ok(value) = HeaderValue::from_str(&format!("{COOKIE}={id}; Expires={}", http_date(expires))) {
        reply.headers_mut().insert(http::header::SET_COOKIE, value);
    }
    reply
}
