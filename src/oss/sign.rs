//! Signing, V4, by `reqsign-aliyun-oss`.
//!
//! Sign last: every header present is signed, `host` above all, without which the V4 header is malformed (oss.md 0.4).
//! Other kinds of credentials (RAM role, OIDC) are further providers for the same signer.

use http::request::Parts;
use reqsign_aliyun_oss::{Credential, RequestSigner, SigningVersion, StaticCredentialProvider};
use reqsign_core::{Context, Signer};

use super::address::plain;
use super::error::OssError;
use crate::config::{Oss, OssCredentials};
use crate::keyring::Secret;

/// Signs requests, or leaves them anonymous.
#[derive(Clone)]
pub enum Authorization {
    /// No signature at all.
    Anonymous,
    /// V4 with the credentials of this signer.
    V4(Signer<Credential>),
}

impl Authorization {
    /// As `config` says: with its credentials, else anonymous. Never with what the environment has to offer.
    ///
    /// # Errors
    /// `NoRegion`, `CredentialText`.
    pub fn new(config: &Oss) -> Result<Self, OssError> {
        let Some(credentials) = &config.credentials else { return Ok(Authorization::Anonymous) };
        let no_region = || OssError::NoRegion { endpoint: plain(&config.endpoint) };
        let region = config.region.as_deref().ok_or_else(no_region)?;
        let request_signer =
            RequestSigner::new(&config.bucket).with_region(region).with_signing_version(SigningVersion::V4);
        let provider = static_provider(credentials)?;
        Ok(Authorization::V4(Signer::new(Context::new(), provider, request_signer)))
    }

    /// Add the signature to a request that will be sent exactly as it is.
    ///
    /// # Errors
    /// `Sign`.
    pub async fn sign(&self, parts: &mut Parts, url: &str) -> Result<(), OssError> {
        match self {
            Authorization::Anonymous => Ok(()),
            Authorization::V4(signer) => signer
                .sign(parts, None)
                .await
                .map_err(|source| OssError::Sign { url: url.to_owned(), source }),
        }
    }
}

/// The signer's own type keeps the secret as an ordinary string for the life of the client: an OSS key opens ciphertext
/// only.
fn static_provider(credentials: &OssCredentials) -> Result<StaticCredentialProvider, OssError> {
    let text = |secret: &Secret| {
        secret
            .with(|bytes| std::str::from_utf8(bytes).map(str::to_owned))
            .map_err(|_| OssError::CredentialText)
    };
    let secret = zeroize::Zeroizing::new(text(&credentials.secret_access_key)?);
    let provider = StaticCredentialProvider::new(&credentials.access_key_id, &secret);
    match &credentials.session_token {
        None => Ok(provider),
        Some(token) => Ok(provider.with_security_token(&zeroize::Zeroizing::new(text(token)?))),
    }
}
