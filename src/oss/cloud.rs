//! Small, bounded HTTP to the services that give credentials away: instance metadata and STS.

use std::time::Duration;

use reqwest::{Request, Response};
use rustls::ClientConfig;
use serde::Deserialize;
use std::borrow::Cow;
use zeroize::Zeroizing;

use super::credential::{Credential, Life};
use super::credential_error::CredentialError;
use crate::keyring::Secret;

/// Longest answer that is looked at: a security token is about 1 KiB.
const ANSWER_LIMIT: usize = 64 << 10;

/// A client without proxy, redirects and retries.
pub(super) struct Cloud(reqwest::Client);

impl Cloud {
    /// Connecting takes at most half of `timeout`, the whole request `timeout`.
    pub fn new(tls: ClientConfig, timeout: Duration) -> Result<Self, CredentialError> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("cai/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(timeout / 2)
            .timeout(timeout)
            .build()
            .map_err(CredentialError::Setup)?;
        Ok(Cloud(client))
    }

    pub fn http(&self) -> &reqwest::Client {
        &self.0
    }

    /// Send `request`; the body of a success. `url` is for messages.
    pub async fn send(&self, request: Request, url: &str) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
        let fail = |source: reqwest::Error| CredentialError::Send {
            url: url.to_owned(),
            source: source.without_url(),
        };
        let mut answer = self.0.execute(request).await.map_err(fail)?;
        let status = answer.status();
        let body = read(&mut answer, url, fail).await;
        if status.is_success() {
            return body;
        }
        // The status is news enough where its explanation does not arrive.
        let body = body.unwrap_or_default();
        let refused: RefusedBody = serde_json::from_slice(&body).unwrap_or_default();
        Err(CredentialError::Refused {
            url: url.to_owned(),
            status: status.as_u16(),
            code: printable(&refused.code),
            request_id: printable(&refused.request_id),
        })
    }
}

async fn read(
    answer: &mut Response,
    url: &str,
    fail: impl Fn(reqwest::Error) -> CredentialError,
) -> Result<Zeroizing<Vec<u8>>, CredentialError> {
    // Room for all of it, so that no copy of a secret is left behind by growing.
    let mut body = Zeroizing::new(Vec::with_capacity(ANSWER_LIMIT));
    while let Some(chunk) = answer.chunk().await.map_err(&fail)? {
        if body.len().saturating_add(chunk.len()) > ANSWER_LIMIT {
            return Err(CredentialError::TooLarge { url: url.to_owned(), limit: ANSWER_LIMIT });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What STS says when it refuses; the metadata service says it in HTML, of which the status is the whole meaning.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RefusedBody {
    code: String,
    request_id: String,
}

/// A code of somebody else's, fit for a log.
fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(100).collect()
}

/// A temporary key as both services write it. Borrowed from the answer, which is wiped.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Issued<'a> {
    #[serde(borrow)]
    access_key_id: Cow<'a, str>,
    #[serde(borrow)]
    access_key_secret: Cow<'a, str>,
    #[serde(borrow)]
    security_token: Cow<'a, str>,
    #[serde(borrow)]
    expiration: Cow<'a, str>,
}

impl Issued<'_> {
    /// The key, received at `now`.
    pub fn credential(&self, url: &str, now: std::time::SystemTime) -> Result<Credential, CredentialError> {
        let wrong = |what| CredentialError::BadAnswer { url: url.to_owned(), what };
        let is_text = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_text(&self.access_key_id) || !is_text(&self.access_key_secret) {
            return Err(wrong("access key"));
        }
        if !is_text(&self.security_token) {
            return Err(wrong("security token"));
        }
        let end: jiff::Timestamp = self.expiration.parse().map_err(|_| wrong("expiration"))?;
        let secret = |text: &str| {
            Secret::copy_of(text.as_bytes()).map_err(|error| CredentialError::Memory(Box::new(error)))
        };
        Ok(Credential {
            id: self.access_key_id.clone().into_owned(),
            secret: secret(&self.access_key_secret)?,
            token: Some(secret(&self.security_token)?),
            life: Some(Life { start: now, end: end.into() }),
        })
    }
}
