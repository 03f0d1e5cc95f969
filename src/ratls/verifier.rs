//! What a relying party does with a peer's certificate: read it, ask the attestation service, judge the token.
//!
//! Both TLS roles use it alike. Verdicts are kept by certificate, no longer than the token lives. One lock, the cache's,
//! never held across an await. Tested in `tests/ratls_verifier.rs`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use url::Url;

use super::Format;
use super::certificate;
use super::error::VerifyError;
use super::evidence::TaggedEvidence;
use super::service::{self, Service};
use super::term::Term;
use super::verdict::{Bound, Demands, Verdict, judge};
use crate::jwt::Signers;
use crate::text::printable;

/// Most verdicts kept. A peer has a new certificate every ten minutes or so, and a token lives five.
const CACHE_LIMIT: usize = 1024;

/// How much of a name that a peer wrote is shown, in characters.
const SHOWN: usize = 32;

/// Who says that a token is the attestation service's.
#[derive(Debug)]
pub enum Trust {
    /// Its signature, under one of these certificates.
    Signers(Signers),
    /// TLS to the service.
    Tls,
    /// Nobody: the operator wrote that this is wanted.
    Nobody,
}

/// A peer that was attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Name of its TEE, `tdx`, as it may be shown: the peer wrote it, and a service that anybody answers for affirms all.
    pub tee: String,
    /// Format of its certificate.
    pub format: Format,
    /// How long that holds.
    pub term: Term,
    /// Whether the token is known to be the service's.
    pub authenticated: bool,
}

/// Attests peers by their certificates.
#[derive(Debug)]
pub struct Verifier {
    service: Service,
    trust: Trust,
    demands: Demands,
    /// By SHA-256 of the certificate.
    verdicts: Mutex<HashMap<[u8; 32], Peer>>,
}

/// How a verifier is set up.
#[derive(Debug)]
pub struct Options<'a> {
    /// Base of the attestation service, such as `http://TRUSTEE/as`.
    pub url: &'a Url,
    /// Roots of its TLS certificate, PEM; the web's without.
    pub ca: Option<&'a [u8]>,
    /// Certificates its tokens must be signed under, PEM.
    pub signers: Option<&'a [u8]>,
    /// Take tokens that anybody could have made.
    pub unauthenticated: bool,
    /// What the tokens must say.
    pub demands: Demands,
}

impl Verifier {
    /// Set up; nothing is connected yet.
    ///
    /// # Errors
    /// [`VerifyError::Unauthenticated`] where neither signature nor TLS says whose the tokens are, and that is not wanted;
    /// [`VerifyError::Base`], [`VerifyError::Roots`], [`VerifyError::Signers`], [`VerifyError::Setup`].
    pub fn new(options: Options<'_>) -> Result<Self, VerifyError> {
        let service = Service::new(options.url, options.ca)?;
        let trust = match options.signers {
            Some(pem) => Trust::Signers(Signers::from_pem(pem).map_err(VerifyError::Signers)?),
            None if service.is_authenticated() => Trust::Tls,
            None if options.unauthenticated => Trust::Nobody,
            None => return Err(VerifyError::Unauthenticated { url: service.url() }),
        };
        Ok(Verifier { service, trust, demands: options.demands, verdicts: Mutex::default() })
    }

    /// Whether tokens are known to be the service's.
    pub fn is_authenticated(&self) -> bool {
        !matches!(self.trust, Trust::Nobody)
    }

    /// Attest the peer that proved, in TLS, to hold the key of this certificate (DER).
    ///
    /// # Errors
    /// [`VerifyError`]; nothing may then be sent to the peer.
    pub async fn verify(&self, der: &[u8]) -> Result<Peer, VerifyError> {
        let digest: [u8; 32] = Sha256::digest(der).into();
        if let Some(peer) = self.known(&digest) {
            return Ok(peer);
        }
        let read = certificate::parse(der).map_err(VerifyError::Certificate)?;
        let evidence = TaggedEvidence::decode(&read.blob).map_err(VerifyError::Evidence)?;
        let runtime_data = evidence.bound(read.key.spki()).map_err(VerifyError::Evidence)?;
        let devices = service::devices(&evidence)?;
        let token = self.service.evaluate(&evidence, &devices, &runtime_data, &self.demands.policies).await?;
        let bound = Bound { format: evidence.format(), runtime_data, devices: devices.len() };
        let signers = match &self.trust {
            Trust::Signers(signers) => Some(signers),
            Trust::Tls | Trust::Nobody => None,
        };
        let Verdict { expires } =
            judge(&token, &bound, &self.demands, signers, SystemTime::now()).map_err(VerifyError::Verdict)?;
        let authenticated = self.is_authenticated();
        let term = Term::until(expires);
        let peer = Peer { tee: printable(&evidence.tee, SHOWN), format: bound.format, term, authenticated };
        self.keep(digest, peer.clone());
        Ok(peer)
    }

    fn known(&self, digest: &[u8; 32]) -> Option<Peer> {
        let verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        verdicts.get(digest).filter(|peer| peer.term.holds()).cloned()
    }

    fn keep(&self, digest: [u8; 32], peer: Peer) {
        let mut verdicts = self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if verdicts.len() >= CACHE_LIMIT {
            verdicts.retain(|_, peer| peer.term.holds());
        }
        // Still full: the next connections ask again, which is right if slow.
        if verdicts.len() < CACHE_LIMIT {
            verdicts.insert(digest, peer);
        }
    }
}
