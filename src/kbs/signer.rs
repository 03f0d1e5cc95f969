//! Whether a token is signed by whom the operator trusts.
//!
//! The key in a token proves nothing by itself. With `trustee.token_cert` set, the token's certificate chain must lead up to
//! one of the certificates configured (which may be the signer's own), or, where the token brings none, one of theirs must
//! be the key that signed it. Only the certificate's key is ever used; what a `jwk` says of a key is not looked at.
//!
//! Source: kbs.md section 9.1; RFC 7515 section 4.1.6, RFC 7517 section 4.7.

use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use serde_json::Value;

use super::error::{KbsError, printable};
use super::token::TokenError;
use super::wire::decode_base64;
use crate::pki::{self, Algorithm, PublicKey};

/// Where the brokers put the chain: in the header's `jwk` (EAR tokens, and simple ones from Alibaba v1.1.3 on), in the
/// payload's (simple tokens before), or where RFC 7515 has it.
const CHAINS: [(Part, &str); 3] =
    [(Part::Header, "/jwk/x5c"), (Part::Header, "/x5c"), (Part::Claims, "/jwk/x5c")];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Header,
    Claims,
}

/// A token, taken apart.
pub(super) struct Signed<'a> {
    /// First segment, decoded.
    pub(super) header: &'a Value,
    /// Second segment, decoded.
    pub(super) claims: &'a Value,
    /// What is signed: both segments as text, with the dot between them.
    pub(super) message: &'a str,
    /// Third segment, base64url.
    pub(super) signature: &'a str,
}

/// The certificates of `trustee.token_cert`.
pub struct Signers {
    certificates: Vec<CertificateDer<'static>>,
}

impl Signers {
    /// Read them from a PEM file.
    ///
    /// # Errors
    /// [`KbsError::SignerFile`], [`KbsError::SignerContent`].
    pub fn load(path: &Path) -> Result<Self, KbsError> {
        let pem =
            std::fs::read(path).map_err(|source| KbsError::SignerFile { path: path.to_owned(), source })?;
        let certificates = pki::certificates(&pem).ok();
        let certificates = certificates.filter(|all| all.iter().all(|one| pki::public_key(one).is_ok()));
        let unusable = || KbsError::SignerContent { path: path.to_owned() };
        Ok(Signers { certificates: certificates.ok_or_else(unusable)? })
    }

    /// Check the signature of a token that arrived `at`.
    ///
    /// # Errors
    /// [`TokenError::Algorithm`], [`TokenError::Chain`], [`TokenError::Untrusted`], [`TokenError::Signature`].
    pub(super) fn check(&self, token: &Signed<'_>, at: SystemTime) -> Result<(), TokenError> {
        let algorithm = algorithm(token.header)?;
        let signature = decode_base64(token.signature).ok_or(TokenError::Malformed)?;
        let signed = |key: &PublicKey| key.verify(algorithm, token.message.as_bytes(), &signature).is_ok();
        let Some(chain) = chain(token)? else {
            return self.keys(at).any(|key| signed(&key)).then_some(()).ok_or(TokenError::Untrusted);
        };
        let leaf = pki::verify_chain(&chain, &self.certificates, at)?;
        signed(&leaf).then_some(()).ok_or(TokenError::Signature)
    }

    /// Keys of the certificates that are valid `at` that time.
    fn keys(&self, at: SystemTime) -> impl Iterator<Item = PublicKey> + '_ {
        self.certificates
            .iter()
            .filter_map(move |own| pki::verify_chain(std::slice::from_ref(own), &self.certificates, at).ok())
    }
}

/// The signature algorithm, if it is one with a public key that cai knows.
fn algorithm(header: &Value) -> Result<Algorithm, TokenError> {
    let name = header.get("alg").and_then(Value::as_str).ok_or(TokenError::Malformed)?;
    Algorithm::of_jose(name).ok_or_else(|| TokenError::Algorithm { alg: printable(name, 32) })
}

/// The certificates a token brings, leaf first; `None` when it brings none.
fn chain(token: &Signed<'_>) -> Result<Option<Vec<CertificateDer<'static>>>, TokenError> {
    let found = CHAINS.iter().find_map(|(part, pointer)| match part {
        Part::Header => token.header.pointer(pointer),
        Part::Claims => token.claims.pointer(pointer),
    });
    let Some(entries) = found.filter(|entries| !entries.is_null()) else { return Ok(None) };
    let entries = entries.as_array().ok_or(TokenError::Malformed)?;
    // Upstream writes the entries as RFC 7515 says, in base64; Alibaba in base64url.
    let decode = |entry: &Value| entry.as_str().and_then(decode_base64).map(CertificateDer::from);
    let chain: Option<Vec<_>> = entries.iter().map(decode).collect();
    chain.map(Some).ok_or(TokenError::Malformed)
}
