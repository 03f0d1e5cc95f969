//! The RAM role of this ECS instance, through the instance metadata service (oss.md 1.9).
//!
//! Hardened mode: a `PUT` gives a session token, which every `GET` carries; a request that was tricked out of another process
//! cannot do that. Without it only where the operator allows it and the service refuses the `PUT`.

use std::time::{Duration, SystemTime};

use reqwest::{Method, Request};
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use super::cloud::{Cloud, Issued};
use super::credential::Credential;
use super::credential_error::CredentialError;
use super::metadata_address;
use crate::config::{EcsRamRole, Metadata};

/// The service answers on the host itself, in a millisecond. Source: Alibaba's Go library takes 1 s for each half.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Life of a session token, in seconds: the requests of one renewal, whatever the load. Source: ossfs2.
const TOKEN_SECS: &str = "180";
const TOKEN_TTL: &str = "x-aliyun-ecs-metadata-token-ttl-seconds";
const TOKEN: &str = "x-aliyun-ecs-metadata-token";
const TOKEN_PATH: &str = "/latest/api/token";
const ROLES_PATH: &str = "/latest/meta-data/ram/security-credentials/";

/// The service, and which role it is asked for.
pub(super) struct MetadataService {
    cloud: Cloud,
    base: String,
    role: Option<String>,
    mode: Metadata,
}

/// The part of the answer that says whether it is one.
#[derive(Deserialize)]
struct Verdict {
    #[serde(rename = "Code")]
    code: String,
}

impl MetadataService {
    /// Set up; nothing is asked yet.
    pub fn new(config: &EcsRamRole, tls: rustls::ClientConfig) -> Result<Self, CredentialError> {
        Ok(MetadataService {
            cloud: Cloud::new(tls, TIMEOUT)?,
            base: metadata_address::base(&config.root),
            role: config.name.clone(),
            mode: config.metadata,
        })
    }

    /// The key that the service has now.
    pub async fn fetch(&self, now: SystemTime) -> Result<Credential, CredentialError> {
        let token = match self.ask(Method::PUT, TOKEN_PATH, (TOKEN_TTL, TOKEN_SECS)).await {
            Ok(token) => Some(token),
            // Refused, not unreachable: an instance without hardened mode.
            Err(CredentialError::Refused { status: 400..=499, .. }) if self.mode == Metadata::Normal => None,
            Err(error) => return Err(error),
        };
        let token = match &token {
            Some(token) => std::str::from_utf8(token).map_err(|_| self.wrong(TOKEN_PATH, "session token"))?,
            None => "",
        };
        let role = match &self.role {
            Some(role) => role.clone(),
            None => self.role(token).await?,
        };
        let path = format!("{ROLES_PATH}{role}");
        let body = self.ask(Method::GET, &path, (TOKEN, token)).await?;
        let verdict: Verdict = serde_json::from_slice(&body).map_err(|_| self.wrong(&path, "document"))?;
        if verdict.code != "Success" {
            return Err(self.wrong(&path, "code"));
        }
        let issued: Issued<'_> = serde_json::from_slice(&body).map_err(|_| self.wrong(&path, "document"))?;
        issued.credential(&format!("{}{path}", self.base), now)
    }

    /// The instance's only role.
    async fn role(&self, token: &str) -> Result<String, CredentialError> {
        let list = self.ask(Method::GET, ROLES_PATH, (TOKEN, token)).await?;
        let role =
            std::str::from_utf8(&list).ok().and_then(|text| text.lines().next()).unwrap_or_default().trim();
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if role.is_empty() || role.starts_with('.') || role.len() > 64 || !role.chars().all(allowed) {
            return Err(self.wrong(ROLES_PATH, "role name"));
        }
        Ok(role.to_owned())
    }

    fn wrong(&self, path: &str, what: &'static str) -> CredentialError {
        CredentialError::BadAnswer { url: format!("{}{path}", self.base), what }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        (name, value): (&'static str, &str),
    ) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
        let text = format!("{}{path}", self.base);
        let url: Url = text.parse().map_err(|_| self.wrong(path, "address"))?;
        let mut request = Request::new(method, url);
        if !value.is_empty() {
            let mut value = reqwest::header::HeaderValue::from_str(value.trim())
                .map_err(|_| self.wrong(TOKEN_PATH, "session token"))?;
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
        self.cloud.send(request, &text).await
    }
}
