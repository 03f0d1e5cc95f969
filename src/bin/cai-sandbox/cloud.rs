//! What gives temporary keys away: a stand-in instance metadata service and a stand-in STS, on one port.
//!
//! Owns the keys issued and their ends, which the stand-in OSS asks for. `PUT {control}/cloud` sets the [`Rules`], `POST
//! {control}/cloud/expire` ends every key issued so far, `POST {control}/cloud/issue` issues one for a test to write into a
//! configuration. One mutex, held for a look. Written from `oss.md` 1.9. Tested in `tests/oss_credentials.rs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::clock::{iso_date, unix_secs};
use crate::faults::{Act, Faults, Op, Place};
use crate::oss_error::OssError;
use crate::oss_sign::Credentials;
use crate::oss_store::random_id;
use crate::wire::{Call, Outcome, Reply, Site, collect, header, reply};

const TOKEN_PATH: &str = "/latest/api/token";
const ROLES_PATH: &str = "/latest/meta-data/ram/security-credentials/";
/// Longest life of a session token, in seconds.
const MAX_TTL: u64 = 21_600;
const BODY_LIMIT: usize = 64 * 1024;

/// How the services behave.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rules {
    /// Whether session tokens exist, and whether they are needed.
    mode: Mode,
    /// The instance's role.
    role: String,
    /// Life of a key, in seconds.
    life_secs: u64,
    /// The OIDC token that STS takes.
    oidc_token: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Session tokens are needed.
    Hardened,
    /// They can be used.
    Both,
    /// There are none.
    Normal,
}

impl Default for Rules {
    fn default() -> Self {
        let (role, oidc_token) = ("cai-reader".to_owned(), "sandbox.oidc.token".to_owned());
        Rules { mode: Mode::Hardened, role, life_secs: 3600, oidc_token }
    }
}

/// A key and when it ends, seconds since 1970; 0 once it was ended.
struct Issued {
    credentials: Credentials,
    start: u64,
    end: u64,
}

#[derive(Default)]
struct State {
    rules: Rules,
    /// By AccessKey ID.
    issued: HashMap<String, Issued>,
    /// What the metadata service shows.
    shown: Option<String>,
    /// Session tokens and their ends.
    sessions: HashMap<String, u64>,
}

/// The keys issued, and the rules.
#[derive(Default)]
pub(crate) struct Issuer(Mutex<State>);

impl Issuer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_rules(&self, text: &[u8]) -> Result<(), String> {
        self.state().rules = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// End every key issued so far.
    pub(crate) fn expire(&self) {
        self.state().issued.values_mut().for_each(|issued| issued.end = 0);
    }

    /// A new key, as its services write one.
    pub(crate) fn issue(&self) -> std::io::Result<serde_json::Value> {
        let mut state = self.state();
        let id = state.issue()?;
        Ok(state.document(&id))
    }

    /// Whose key `id` is, if it is one of these.
    ///
    /// # Errors
    /// What OSS says once it has ended. A key that was withdrawn is one that it does not know.
    pub(crate) fn find(&self, id: &str) -> Option<Result<Credentials, OssError>> {
        let state = self.state();
        let issued = state.issued.get(id)?;
        Some(match issued.end {
            0 => {
                let message = "The OSS Access Key Id you provided does not exist in our records.";
                Err(OssError::new(403, "InvalidAccessKeyId", "0002-00000902", message))
            }
            end if end <= unix_secs() => {
                let message = "The security token you provided has expired.";
                Err(OssError::new(403, "SecurityTokenExpired", "", message))
            }
            _ => Ok(issued.credentials.clone()),
        })
    }
}

impl State {
    fn issue(&mut self) -> std::io::Result<String> {
        let id = format!("STS.{}", random_id()?);
        let credentials = Credentials {
            access_key_id: id.clone(),
            access_key_secret: random_id()?,
            session_token: Some(format!("CAIS+{}==", random_id()?)),
        };
        let start = unix_secs();
        self.issued.insert(id.clone(), Issued { credentials, start, end: start + self.rules.life_secs });
        Ok(id)
    }

    /// The key that the metadata service shows: the same until half of its life has passed.
    fn current(&mut self) -> std::io::Result<String> {
        let now = unix_secs();
        let fresh = |issued: &Issued| {
            issued.end > now && now - issued.start < (issued.end - issued.start).div_ceil(2)
        };
        match &self.shown {
            Some(id) if self.issued.get(id).is_some_and(fresh) => Ok(id.clone()),
            _ => {
                let id = self.issue()?;
                self.shown = Some(id.clone());
                Ok(id)
            }
        }
    }

    fn document(&self, id: &str) -> serde_json::Value {
        let Some(Issued { credentials, start, end }) = self.issued.get(id) else { return json!({}) };
        json!({
            "AccessKeyId": credentials.access_key_id,
            "AccessKeySecret": credentials.access_key_secret,
            "SecurityToken": credentials.session_token,
            "Expiration": iso_date(*end).replace(".000Z", "Z"),
            "LastUpdated": iso_date(*start).replace(".000Z", "Z"),
            "Code": "Success",
        })
    }
}

/// The two services.
pub(crate) struct Cloud {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) faults: Arc<Faults>,
}

fn refuse(status: u16) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply(status, Some("text/html"), format!("<html><body>{status}</body></html>"))
}

fn text(body: String) -> Reply {
    reply(StatusCode::OK, Some("text/plain"), body)
}

impl Cloud {
    fn session(&self, headers: &HeaderMap) -> Result<Reply, u16> {
        let mut state = self.issuer.state();
        if state.rules.mode == Mode::Normal {
            return Err(404);
        }
        let ttl = header(headers, "x-aliyun-ecs-metadata-token-ttl-seconds")
            .and_then(|ttl| ttl.parse::<u64>().ok());
        let ttl = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)).ok_or(400u16)?;
        let token = random_id().map_err(|_| 500u16)?;
        state.sessions.insert(token.clone(), unix_secs() + ttl);
        Ok(text(token))
    }

    fn metadata(&self, path: &str, headers: &HeaderMap) -> Result<Reply, u16> {
        let mut state = self.issuer.state();
        match (state.rules.mode, header(headers, "x-aliyun-ecs-metadata-token")) {
            (Mode::Hardened, None) => return Err(403),
            (Mode::Both | Mode::Normal, None) => {}
            (_, Some(token)) if state.sessions.get(token).is_some_and(|end| *end > unix_secs()) => {}
            (_, Some(_)) => return Err(401),
        }
        match path.strip_prefix(ROLES_PATH) {
            Some("") => Ok(text(state.rules.role.clone())),
            Some(role) if role == state.rules.role => {
                let id = state.current().map_err(|_| 500u16)?;
                Ok(text(state.document(&id).to_string()))
            }
            _ => Err(404),
        }
    }

    fn assume(&self, query: &str, headers: &HeaderMap, body: &[u8]) -> Reply {
        let pairs = |bytes: &[u8]| -> HashMap<String, String> {
            url::form_urlencoded::parse(bytes).into_owned().collect()
        };
        let (query, form) = (pairs(query.as_bytes()), pairs(body));
        let get = |map: &HashMap<String, String>, name: &str| map.get(name).cloned().unwrap_or_default();
        let mut state = self.issuer.state();
        let arn = |name: &str, kind: &str| {
            let value = get(&form, name);
            value.starts_with("acs:ram::") && value.contains(kind)
        };
        let fixed = [("Action", "AssumeRoleWithOIDC"), ("Version", "2015-04-01"), ("Format", "JSON")];
        let code = if fixed.iter().any(|(name, value)| get(&query, name) != *value) {
            "InvalidAction.NotFound"
        } else if get(&query, "Timestamp").len() != "2026-11-22T09:56:24Z".len() {
            "InvalidTimeStamp.Format"
        } else if header(headers, "content-type") != Some("application/x-www-form-urlencoded") {
            "UnsupportedHTTPMethod"
        } else if !arn("RoleArn", ":role/") {
            "EntityNotExist.Role"
        } else if !arn("OIDCProviderArn", ":oidc-provider/") {
            "EntityNotExist.OIDCProvider"
        } else if !(2..=64).contains(&get(&form, "RoleSessionName").len()) {
            "InvalidParameter.RoleSessionName"
        } else if get(&form, "OIDCToken") != state.rules.oidc_token {
            "AuthenticationFail.OIDCToken.Invalid"
        } else {
            ""
        };
        let answer = |status, document: serde_json::Value| {
            reply(status, Some("application/json"), document.to_string())
        };
        if !code.is_empty() {
            let document =
                json!({"RequestId": "STS-REQUEST", "Code": code, "Message": "refused by the sandbox"});
            return answer(StatusCode::BAD_REQUEST, document);
        }
        match state.issue() {
            Ok(id) => answer(
                StatusCode::OK,
                json!({"RequestId": "STS-REQUEST", "Credentials": state.document(&id), "AssumedRoleUser": {}}),
            ),
            Err(_) => refuse(500),
        }
    }
}

impl Site for Cloud {
    const NAME: &'static str = "cloud";

    async fn answer(&self, call: Call) -> Outcome {
        let Call { parts, body, .. } = call;
        let path = parts.uri.path().to_owned();
        let op = match (parts.method.as_str(), path.as_str()) {
            ("PUT", TOKEN_PATH) => Op::Token,
            ("GET", ROLES_PATH) => Op::Role,
            ("GET", path) if path.starts_with(ROLES_PATH) => Op::Credential,
            ("POST", "/") => Op::Assume,
            _ => Op::Other,
        };
        let fault = self.faults.take(Place::Instead, op, &path);
        let body = collect(body, BODY_LIMIT).await.unwrap_or_default();
        let forwarded = parts.headers.contains_key("x-forwarded-for");
        let reply = match (fault, op) {
            (Some(Act::CloudStatus { status }), _) => Some(refuse(status)),
            (Some(_), _) => None,
            (None, Op::Assume) => {
                Some(self.assume(parts.uri.query().unwrap_or_default(), &parts.headers, &body))
            }
            (None, _) if forwarded => Some(refuse(403)),
            (None, Op::Token) => Some(self.session(&parts.headers).unwrap_or_else(refuse)),
            (None, Op::Role | Op::Credential) => {
                Some(self.metadata(&path, &parts.headers).unwrap_or_else(refuse))
            }
            (None, _) => Some(refuse(404)),
        };
        Outcome { op, subject: path, reply }
    }
}
