//! A RAM role assumed with an OIDC token: `AssumeRoleWithOIDC` of the Security Token Service (oss.md 1.9).
//!
//! The call is not signed: the token is the proof. It is read again for each renewal, because whoever issued it rotates it.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::cloud::{Cloud, Issued};
use super::credential::Credential;
use super::credential_error::CredentialError;
use crate::config::Oidc;

/// A call to a service of the region, signatures included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest token, in bytes; real ones have about 1 KiB.
const TOKEN_LIMIT: u64 = 20_000;
/// Name of the session in the account's audit log.
const SESSION: &str = "cai";
/// Version of the STS interface.
const VERSION: &str = "2015-04-01";

/// STS, and which role is asked of it.
pub(super) struct Sts {
    cloud: Cloud,
    config: Oidc,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Assumed<'a> {
    #[serde(borrow)]
    credentials: Issued<'a>,
}

impl Sts {
    /// Set up; nothing is asked yet.
    pub fn new(config: &Oidc, tls: rustls::ClientConfig) -> Result<Self, CredentialError> {
        Ok(Sts { cloud: Cloud::new(tls, TIMEOUT)?, config: config.clone() })
    }

    /// A new key of the role.
    pub async fn fetch(&self, now: SystemTime) -> Result<Credential, CredentialError> {
        let path = self.config.token_file.clone();
        let read = tokio::task::spawn_blocking(move || token(&path)).await;
        let token = read.unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
        let token = token
            .map_err(|source| CredentialError::TokenFile { path: self.config.token_file.clone(), source })?;
        let url = self.config.sts_endpoint.as_str();
        let wrong = |what| CredentialError::BadAnswer { url: url.to_owned(), what };
        let stamp = jiff::Timestamp::try_from(now).map_err(|_| wrong("time"))?;
        let stamp = stamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut target = self.config.sts_endpoint.clone();
        target
            .query_pairs_mut()
            .extend_pairs([("Action", "AssumeRoleWithOIDC"), ("Version", VERSION), ("Format", "JSON")])
            .append_pair("Timestamp", &stamp);
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("RoleArn", &self.config.role_arn)
            .append_pair("OIDCProviderArn", &self.config.provider_arn)
            .append_pair("OIDCToken", &token)
            .append_pair("RoleSessionName", SESSION)
            .finish();
        let request = self
            .cloud
            .http()
            .post(target)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
            .header(ACCEPT, HeaderValue::from_static("application/json"))
            .body(form)
            .build()
            .map_err(CredentialError::Setup)?;
        let body = self.cloud.send(request, url).await?;
        let assumed: Assumed<'_> = serde_json::from_slice(&body).map_err(|_| wrong("document"))?;
        assumed.credentials.credential(url, now)
    }
}

/// The token in `path`: one printable word.
fn token(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(path)?.take(TOKEN_LIMIT + 1).read_to_string(&mut text)?;
    let word = text.trim();
    if word.is_empty() || text.len() as u64 > TOKEN_LIMIT || !word.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(std::io::Error::other("it does not hold one printable word of at most 20,000 bytes"));
    }
    Ok(Zeroizing::new(word.to_owned()))
}
