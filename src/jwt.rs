//! JSON Web Tokens of verifiers: taken apart, held against the clock, and against the certificates that a reader trusts.
//!
//! Owns: what makes a token's signature count. The key in a token proves nothing by itself: its certificate chain must lead
//! up to a certificate that was named (which may be the signer's own), or, where the token brings none, one of the named
//! must be the key that signed it. Only certificates' keys are ever used; what a `jwk` says of a key is not looked at.
//!
//! Must not know: what the claims mean, whose token it is, files, clocks (time is an argument). Pure, no threads, no locks.
//! Tested through its users: `tests/kbs_token.rs`, `tests/ratls_verdict.rs`.
//!
//! Source: RFC 7515 section 4.1.6, RFC 7517 section 4.7, RFC 7519; kbs.md section 9.1.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::pki::{self, Algorithm, PkiError, PublicKey};
use crate::text::{decode_base64, printable};

/// Where the services put the chain: in the header's `jwk` (EAR tokens, and simple ones from Alibaba v1.1.3 on), in the
/// payload's (simple tokens before), or where RFC 7515 has it.
const CHAINS: [(Part, &str); 3] =
    [(Part::Header, "/jwk/x5c"), (Part::Header, "/x5c"), (Part::Claims, "/jwk/x5c")];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Header,
    Claims,
}

/// A token is not one, not now, or not from whom it should be.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// Not three base64url segments of which two are JSON.
    #[error("it is not a JSON Web Token")]
    Malformed,
    /// Unsigned, signed with a shared secret, or in a way that cai does not know.
    #[error("it claims the signature algorithm {alg}")]
    Algorithm {
        /// The algorithm.
        alg: String,
    },
    /// The named signers did not sign it.
    #[error("none of the named certificates signed it")]
    Untrusted,
    /// Its certificates do not lead up to the named ones.
    #[error("its certificates do not lead up to the named ones")]
    Chain(#[source] PkiError),
    /// Its certificate is right, its signature is not.
    #[error("its signature does not verify")]
    Signature,
    /// Past its `exp`.
    #[error("it expired {secs} s ago")]
    Expired {
        /// By how much, in seconds.
        secs: u64,
    },
    /// Before its `nbf`.
    #[error("it is not valid for another {secs} s")]
    NotYetValid {
        /// By how much, in seconds.
        secs: u64,
    },
}

/// A token, taken apart. Nothing is verified yet, except that it is signed in a way that has a public key.
#[derive(Debug)]
pub struct Jwt<'a> {
    header: Value,
    claims: Value,
    /// What is signed: both segments as text, with the dot between them.
    message: &'a str,
    /// base64url.
    signature: &'a str,
}

impl<'a> Jwt<'a> {
    /// Take `token` apart.
    ///
    /// # Errors
    /// [`JwtError::Malformed`]; [`JwtError::Algorithm`] for `none` and shared secrets, which can sign for anybody.
    pub fn parse(token: &'a str) -> Result<Self, JwtError> {
        let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(JwtError::Malformed)?;
        let jwt = Jwt { header: segment(header)?, claims: segment(claims)?, message, signature };
        let alg = jwt.alg()?;
        if alg.eq_ignore_ascii_case("none") || alg.to_ascii_uppercase().starts_with("HS") {
            return Err(JwtError::Algorithm { alg: printable(alg, 32) });
        }
        Ok(jwt)
    }

    /// The second segment.
    pub fn claims(&self) -> &Value {
        &self.claims
    }

    /// `exp`; a date of RFC 7519 may have a fraction.
    pub fn expires(&self) -> Option<SystemTime> {
        self.date("exp")
    }

    /// Whether `now` lies between `nbf` and `exp`, where the token has them, with `skew` between its clock and ours.
    ///
    /// # Errors
    /// [`JwtError::Expired`], [`JwtError::NotYetValid`].
    pub fn check_time(&self, now: SystemTime, skew: Duration) -> Result<(), JwtError> {
        if let Some(expires) = self.expires()
            && let Ok(late) = now.duration_since(expires)
            && late > skew
        {
            return Err(JwtError::Expired { secs: late.as_secs() });
        }
        if let Some(start) = self.date("nbf")
            && let Ok(early) = start.duration_since(now)
            && early > skew
        {
            return Err(JwtError::NotYetValid { secs: early.as_secs() });
        }
        Ok(())
    }

    fn date(&self, name: &str) -> Option<SystemTime> {
        let since = Duration::try_from_secs_f64(self.claims.get(name)?.as_f64()?).ok()?;
        UNIX_EPOCH.checked_add(since)
    }

    fn alg(&self) -> Result<&str, JwtError> {
        self.header.get("alg").and_then(Value::as_str).ok_or(JwtError::Malformed)
    }

    /// The certificates a token brings, leaf first; `None` when it brings none.
    fn chain(&self) -> Result<Option<Vec<CertificateDer<'static>>>, JwtError> {
        let found = CHAINS.iter().find_map(|(part, pointer)| match part {
            Part::Header => self.header.pointer(pointer),
            Part::Claims => self.claims.pointer(pointer),
        });
        let Some(entries) = found.filter(|entries| !entries.is_null()) else { return Ok(None) };
        let entries = entries.as_array().ok_or(JwtError::Malformed)?;
        // Upstream writes the entries as RFC 7515 says, in base64; Alibaba in base64url.
        let decode = |entry: &Value| entry.as_str().and_then(decode_base64).map(CertificateDer::from);
        let chain: Option<Vec<_>> = entries.iter().map(decode).collect();
        chain.map(Some).ok_or(JwtError::Malformed)
    }
}

fn segment(text: &str) -> Result<Value, JwtError> {
    let json = decode_base64(text).ok_or(JwtError::Malformed)?;
    serde_json::from_slice(&json).map_err(|_| JwtError::Malformed)
}

/// The certificates that tokens must be signed under.
#[derive(Debug)]
pub struct Signers(Vec<CertificateDer<'static>>);

impl Signers {
    /// The certificates of a PEM bundle.
    ///
    /// # Errors
    /// [`PkiError::Pem`], [`PkiError::Empty`], [`PkiError::Unreadable`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let certificates = pki::certificates(pem)?;
        certificates.iter().try_for_each(|one| pki::public_key(one).map(drop))?;
        Ok(Signers(certificates))
    }

    /// Check the signature of a token that arrived `at`.
    ///
    /// # Errors
    /// [`JwtError::Algorithm`], [`JwtError::Chain`], [`JwtError::Untrusted`], [`JwtError::Signature`],
    /// [`JwtError::Malformed`].
    pub fn check(&self, token: &Jwt<'_>, at: SystemTime) -> Result<(), JwtError> {
        let name = token.alg()?;
        let algorithm =
            Algorithm::of_jose(name).ok_or_else(|| JwtError::Algorithm { alg: printable(name, 32) })?;
        let signature = decode_base64(token.signature).ok_or(JwtError::Malformed)?;
        let signed = |key: &PublicKey| key.verify(algorithm, token.message.as_bytes(), &signature).is_ok();
        let Some(chain) = token.chain()? else {
            return self.keys(at).any(|key| signed(&key)).then_some(()).ok_or(JwtError::Untrusted);
        };
        let leaf = pki::verify_chain(&chain, &self.0, at).map_err(JwtError::Chain)?;
        signed(&leaf).then_some(()).ok_or(JwtError::Signature)
    }

    /// Keys of the certificates that are valid `at` that time.
    fn keys(&self, at: SystemTime) -> impl Iterator<Item = PublicKey> + '_ {
        self.0.iter().filter_map(move |own| pki::verify_chain(std::slice::from_ref(own), &self.0, at).ok())
    }
}
