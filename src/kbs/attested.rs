//! What a completed attestation leaves: the credentials a secret is asked with, and what the status says about it.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use reqwest::header::HeaderValue;
use url::Url;
use zeroize::Zeroizing;

use super::key::TeeKey;
use super::session::Jar;
use super::token::Policy;
use super::wire::Dialect;
use crate::attest::{Claims, Tee};
use crate::keyring::Secret;

/// Longest `Authorization` line sent, in bytes: nginx, the usual thing in front of a broker, takes a header line of 8 KiB
/// by default and answers a longer one with an error of its own. A token with a whole event log in it is longer.
const BEARER_LINE: usize = 8 << 10;

/// Proof of a completed attestation: the session and private key that a secret can be asked with.
///
/// Made by [`super::Client::attest`] only. Its key pair, cookies and token belong to this one handshake.
pub struct Attested {
    pub(super) jar: Jar,
    pub(super) key: Arc<TeeKey>,
    pub(super) token: Secret,
    pub(super) facts: Facts,
}

/// What the status says about an attestation. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Protocol version spoken.
    pub dialect: Dialect,
    /// Whether that is older than the newest because the broker, or somebody answering in its place, asked for it, and
    /// `trustee.protocol` does not say that it is right.
    pub downgraded: bool,
    /// JWE name of the algorithm that secrets are encrypted to this machine with.
    pub algorithm: &'static str,
    /// TEE attested.
    pub tee: Tee,
    /// What the evidence says.
    pub claims: Claims,
    /// When the broker accepted the evidence.
    pub attested_at: SystemTime,
    /// When the token expires, and with it the session in practice.
    pub expires: Option<SystemTime>,
    /// Whether the broker proved who it is (https).
    pub server_authenticated: bool,
    /// Whether the token is signed by what `trustee.token_cert` names; without that its signature proves nothing.
    pub token_verified: bool,
    /// What the token can be named by without giving it away: its `jti`, or `sha256:` and the hash of its text where it has none.
    pub token_id: String,
    /// The policies that the token names; worth something where the token is verified, or the server authenticated.
    pub policy: Policy,
}

impl Attested {
    /// What the status says about it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The token as `Authorization` header for a broker at `base`: another replica than the one that knows the session
    /// takes it in the session's place. `None` for another origin, once it has expired, and when it is too long for the
    /// servers in between.
    pub(super) fn bearer(&self, base: &Url) -> Option<HeaderValue> {
        let alive = self.facts.expires.is_none_or(|expires| expires > SystemTime::now());
        if !alive || !self.jar.is_of(base) {
            return None;
        }
        self.token.with(|token| {
            // The HTTP library copies the line into memory of its own, which is not locked: as for every cookie.
            let line = Zeroizing::new([b"Bearer ", token].concat());
            let fits = "authorization: \r\n".len().saturating_add(line.len()) <= BEARER_LINE;
            let mut value = HeaderValue::from_bytes(&line).ok().filter(|_| fits)?;
            value.set_sensitive(true);
            Some(value)
        })
    }
}

impl fmt::Debug for Attested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attested").field("facts", &self.facts).finish_non_exhaustive()
    }
}
