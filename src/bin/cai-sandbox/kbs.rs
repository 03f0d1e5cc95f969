//! The stand-in Trustee: its key broker (`auth`, `attest`, `resource`), and the way to its attestation service.
//!
//! Owns sessions and resources; which Trustee it is, and the refusals' wire form, are in `kbs_server.rs`. It verifies the
//! sample TEE and stand-in TD quotes; admin operations are refused. One mutex each for sessions and resources, never both,
//! never across an await. Tested in `tests/sandbox_kbs.rs`, `sandbox_tdx.rs` and `sandbox_trustees.rs`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde_json::json;

use crate::attestation::Service;
use crate::clock::{http_date, unix_secs};
use crate::faults::{Act, Faults, Op, Place};
use crate::kbs_evidence::{parse_auth, verify};
use crate::kbs_jwe::{Form, TeeKey};
use crate::kbs_server::{Character, Refusal};
use crate::kbs_token::{Appraisal, Challenger, Holder, Signer, Spoiled};
use crate::wire::{Call, Outcome, Reply, Site, collect, header, reply};

/// Trustee's default life of a session, in seconds.
const SESSION_SECS: u64 = 300;
/// Sessions kept before expired ones are swept: enough for any test, small enough for memory.
const SESSIONS_KEPT: usize = 10_000;
/// The servers' limit on a request body, in bytes.
const BODY_LIMIT: usize = 2 << 20;
const NONCE_LEN: usize = 32;
const PREFIX: &str = "/kbs/v0/";
const SERVICE_PREFIX: &str = "/as/";
const COOKIE: &str = "kbs-session-id";

struct Session {
    tee: String,
    nonce: String,
    expires: u64,
    attested: Option<(String, Holder)>,
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

/// The key broker.
pub(crate) struct Kbs {
    server: Character,
    faults: Arc<Faults>,
    resources: Arc<Resources>,
    signer: Arc<Signer>,
    service: Service,
    sessions: Mutex<HashMap<String, Session>>,
}

impl Kbs {
    /// With `authority`, tokens carry a certificate, and the authority's own goes to that file.
    pub(crate) fn new(
        server: Character,
        authority: Option<&Path>,
        faults: Arc<Faults>,
        resources: Arc<Resources>,
    ) -> anyhow::Result<Kbs> {
        let signer = Arc::new(Signer::generate(&server, authority)?);
        let service = Service {
            server: server.clone(),
            faults: faults.clone(),
            signer: signer.clone(),
            challenger: Challenger::default(),
        };
        Ok(Kbs { server, faults, resources, signer, service, sessions: Mutex::default() })
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, place: Place, op: Op, subject: &str) -> Option<Act> {
        self.faults.take(place, op, subject)
    }

    fn auth(&self, body: &[u8]) -> Result<Reply, Refusal> {
        let tee = parse_auth(&self.server, body)?;
        let random = |bytes: &mut [u8]| getrandom::fill(bytes).map_err(|_| Refusal::NoRandom);
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
        let id = cookie(headers).ok_or(Refusal::NoCookie)?;
        let lost = self.fault(Place::State, Op::Attest, "").is_some();
        let mut sessions = self.sessions();
        if lost {
            sessions.remove(id);
        }
        let session = sessions.get_mut(id).filter(|s| s.expires > unix_secs()).ok_or(Refusal::LostCookie)?;
        let token = match &session.attested {
            // As the real servers: an attested session repeats its token without looking at the evidence.
            Some((token, _)) => token.clone(),
            None => {
                let (key, appraisal) =
                    verify(&self.server, &session.tee, &session.nonce, body).map_err(Refusal::Evidence)?;
                let mrtd = appraisal.verified.claims.pointer("/quote/body/mr_td");
                let mrtd = mrtd.and_then(|value| value.as_str()).map(str::to_owned);
                let token = self.token(appraisal)?;
                session.attested = Some((token.clone(), Holder { key, mrtd }));
                token
            }
        };
        let body = json!({"token": token}).to_string();
        Ok(with_cookie(reply(StatusCode::OK, Some("application/json"), body), id, session.expires))
    }

    /// A token for evidence that was verified, or what a fault makes of it.
    fn token(&self, mut appraisal: Appraisal) -> Result<String, Refusal> {
        let broken = |what: &str| Refusal::Evidence(what.to_owned());
        let mut spoiled = Spoiled::default();
        let mut tell = |name: &str, value: serde_json::Value| {
            if let Some(claims) = appraisal.runtime_data.as_object_mut() {
                claims.insert(name.to_owned(), value);
            }
        };
        match self.fault(Place::Verdict, Op::Attest, "") {
            Some(Act::KbsRefuseEvidence) => return Err(broken("refused by a fault")),
            Some(Act::KbsTokenNonce) => tell("nonce", STANDARD.encode([9; NONCE_LEN]).into()),
            Some(Act::KbsTokenKey) => {
                let key = TeeKey::nobodys().map_err(|_| broken("no other key"))?;
                tell("tee-pubkey", json!(key.canonical()));
            }
            Some(Act::KbsTokenSignature) => spoiled.signature = true,
            Some(Act::KbsTokenExpired) => spoiled.expired = true,
            _ => {}
        }
        self.signer.issue(&appraisal, spoiled).map_err(|_| broken("token broker"))
    }

    fn resource(&self, headers: &HeaderMap, path: &str) -> Result<Reply, Refusal> {
        let Holder { key, mrtd } = self.requester(headers, path)?;
        if !is_resource_path(path) {
            return Err(Refusal::Path);
        }
        let release = self.fault(Place::Release, Op::Resource, path);
        let permitted = self.server.mrtd.is_none() || self.server.mrtd == mrtd;
        if !permitted || release == Some(Act::KbsDeny) {
            return Err(Refusal::PolicyDeny);
        }
        let secret = self.resources.get(path).ok_or(Refusal::NoResource)?;
        let form = if self.server.protocol.is_legacy() { Form::Legacy } else { Form::Flattened };
        let key = match release {
            Some(Act::KbsSwapKey) => TeeKey::nobodys().map_err(|_| Refusal::Jwe)?,
            _ => key,
        };
        let envelope = key.seal(form, &secret, release == Some(Act::KbsBadTag)).map_err(|_| Refusal::Jwe)?;
        let body = serde_json::to_vec(&envelope).map_err(|_| Refusal::Jwe)?;
        Ok(reply(StatusCode::OK, Some("application/json"), body))
    }

    /// Whoever asks: by session cookie, `Attestation` header, or bearer token, in this order.
    fn requester(&self, headers: &HeaderMap, path: &str) -> Result<Holder, Refusal> {
        let fault = self.fault(Place::State, Op::Resource, path);
        if let Some(id) = cookie(headers) {
            let mut sessions = self.sessions();
            if fault.is_some() {
                sessions.remove(id);
            }
            let live = sessions.get(id).filter(|session| session.expires > unix_secs());
            if let Some((_, holder)) = live.and_then(|session| session.attested.as_ref()) {
                return Ok(holder.clone());
            }
        }
        let bearer = || header(headers, "authorization").and_then(|value| value.strip_prefix("Bearer "));
        let token = header(headers, "attestation").or_else(bearer).ok_or(Refusal::TokenNotFound)?;
        let expired = fault == Some(Act::KbsExpireSession);
        self.signer.verify(token).filter(|_| !expired).ok_or(Refusal::TokenVerifier)
    }

    async fn route(&self, op: Op, path: &str, call: Call, to_service: bool) -> Reply {
        let Call { parts, body, .. } = call;
        let Some(body) = collect(body, BODY_LIMIT).await else {
            let text = "A payload reached size limit";
            return reply(StatusCode::PAYLOAD_TOO_LARGE, Some("text/plain; charset=utf-8"), text);
        };
        if to_service {
            return self.service.route(path, &parts.method, &body);
        }
        let answer = match (op, &parts.method) {
            (Op::Auth, &Method::POST) => self.auth(&body),
            (Op::Attest, &Method::POST) => self.attest(&parts.headers, &body),
            (Op::Resource, &Method::GET) => self.resource(&parts.headers, path),
            (Op::Resource, _) if !is_resource_path(path) => Err(Refusal::Path),
            (Op::Resource, _) => Err(Refusal::Admin),
            _ => return reply(StatusCode::NOT_FOUND, None, ""),
        };
        answer.unwrap_or_else(|refusal| refusal.reply(&self.server))
    }
}

impl Site for Kbs {
    const NAME: &'static str = "kbs";

    async fn answer(&self, call: Call) -> Outcome {
        let path = call.parts.uri.path();
        let service = path.strip_prefix(SERVICE_PREFIX);
        let path = service.or_else(|| path.strip_prefix(PREFIX)).unwrap_or_default().to_owned();
        let to_service = service.is_some();
        let (op, subject) = match path.split_once('/') {
            _ if to_service => (Service::op(&path), path.as_str()),
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
            None => Some(self.route(op, &subject, call, to_service).await),
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
