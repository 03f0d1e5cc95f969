//! What can go wrong with the broker. What to do about each is in `fault.rs`.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::jwe::JweError;
use super::key::KeyError;
use super::meaning::Cause;
use super::token::TokenError;
use super::wire::WireError;
use crate::attest::{AttestError, Claims};
use crate::error;
use crate::keyring::LockError;

/// Which step of the exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `POST auth`: the challenge.
    Auth,
    /// Collecting evidence on this machine.
    Evidence,
    /// `POST attest`: the broker's verdict on the evidence.
    Attest,
    /// `GET resource`: the secret.
    Resource,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::Auth => "auth",
            Step::Evidence => "evidence",
            Step::Attest => "attest",
            Step::Resource => "resource",
        })
    }
}

/// An answer that says no, with everything the broker told about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which step it answers.
    pub step: Step,
    /// HTTP status.
    pub status: u16,
    /// Last segment of the body's `type`; empty when the body is not the broker's.
    pub kind: String,
    /// The body's `detail` (a gateway's `error`, or the start of any other text): bounded, without control characters.
    pub detail: String,
    /// When the answer arrived, to find it in the broker's log.
    pub at: SystemTime,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: HTTP {}", self.step, self.status)?;
        if !self.kind.is_empty() {
            write!(f, " {}", self.kind)?;
        }
        if !self.detail.is_empty() {
            write!(f, " `{}`", self.detail)?;
        }
        write!(f, " at {}", utc(self.at))
    }
}

/// A secret could not be had from the broker.
#[derive(Debug, thiserror::Error)]
pub enum KbsError {
    /// The base URL cannot be one.
    #[error("{url} cannot be the base URL of a key broker")]
    Base {
        /// The URL, without user information and query.
        url: String,
    },
    /// Plain http although https is required.
    #[error("{url} is plain http, and trustee.require_https is set")]
    HttpsRequired {
        /// The URL.
        url: String,
    },
    /// The CA bundle cannot be read.
    #[error("reading the CA bundle {}", path.display())]
    CaFile {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The CA bundle holds no usable certificate, or one that is unusable.
    #[error("the CA bundle {} is not a list of PEM certificates", path.display())]
    CaContent {
        /// Its path.
        path: PathBuf,
    },
    /// The certificates of the token's signers cannot be read.
    #[error("reading the token signers' certificates {}", path.display())]
    SignerFile {
        /// Their path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file of token signers holds no usable certificate, or one that is unusable.
    #[error("the token signers' file {} is not a list of PEM certificates", path.display())]
    SignerContent {
        /// Its path.
        path: PathBuf,
    },
    /// The operator's key algorithm and the protocol version do not go together.
    #[error("protocol {protocol} has no key algorithm {chosen}")]
    KeyAlgorithm {
        /// The algorithm of `trustee.key_algorithm`.
        chosen: &'static str,
        /// Version of the protocol.
        protocol: &'static str,
    },
    /// The HTTP client could not be set up.
    #[error("setting up the HTTP client")]
    Setup(#[source] reqwest::Error),
    /// TLS could not be set up.
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
    /// No answer.
    #[error("{step}: no answer from {url} at {}", utc(*at))]
    Unreachable {
        /// Step.
        step: Step,
        /// URL asked.
        url: String,
        /// When.
        at: SystemTime,
        /// What the network said.
        #[source]
        source: reqwest::Error,
    },
    /// The server's certificate is not one we trust.
    #[error("{step}: the certificate of {url} is not trusted, at {}", utc(*at))]
    Untrusted {
        /// Step.
        step: Step,
        /// URL asked.
        url: String,
        /// When.
        at: SystemTime,
        /// What TLS said.
        #[source]
        source: reqwest::Error,
    },
    /// The server sent us elsewhere; redirects are not followed.
    #[error("{step}: HTTP {status} redirects to {location}, at {}", utc(*at))]
    Redirected {
        /// Step.
        step: Step,
        /// HTTP status.
        status: u16,
        /// Where to: bounded, without query and control characters.
        location: String,
        /// When.
        at: SystemTime,
    },
    /// More bytes than the step can have.
    #[error("{step}: the answer is longer than {limit} bytes, at {}", utc(*at))]
    AnswerTooLarge {
        /// Step.
        step: Step,
        /// The bound, in bytes.
        limit: usize,
        /// When.
        at: SystemTime,
    },
    /// An answer that is not what the protocol says.
    #[error("{step}: malformed answer at {}", utc(*at))]
    Malformed {
        /// Step.
        step: Step,
        /// When.
        at: SystemTime,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The broker speaks another version of the protocol.
    #[error("the key broker speaks protocol {}, cai offered {offered} ({refusal})", expected.as_deref().unwrap_or("another version"))]
    VersionMismatch {
        /// Version offered.
        offered: &'static str,
        /// Version the broker expects, where it said so.
        expected: Option<String>,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The broker gave no challenge.
    #[error("the key broker gave no challenge ({refusal})")]
    AuthRefused {
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The verifier refused the evidence.
    #[error("the key broker refused the attestation ({refusal})")]
    AttestationRefused {
        /// Why, as far as it is known.
        cause: Cause,
        /// What the evidence said.
        claims: Box<Claims>,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The broker does not know the session (any more): a new handshake is needed.
    #[error("the key broker does not know the session ({refusal})")]
    SessionLost {
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The resource policy said no.
    #[error("the key broker's policy denies {resource} ({refusal})")]
    Denied {
        /// Resource URI.
        resource: String,
        /// What the evidence said.
        claims: Box<Claims>,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// There is no such resource, or the broker could not read it.
    #[error("the key broker has no {resource} ({refusal})")]
    NotFound {
        /// Resource URI.
        resource: String,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The broker cannot encrypt to the key pair that was attested.
    #[error("the key broker cannot encrypt for {algorithm} ({refusal})")]
    KeyRefused {
        /// Algorithm of the key pair.
        algorithm: &'static str,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The broker, or what stands before it, takes no request of that length.
    #[error("the request is too long for the key broker, or for what stands before it ({refusal})")]
    RequestTooLarge {
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The broker does not understand the request.
    #[error("the key broker does not understand the request ({refusal})")]
    BadRequest {
        /// Version of the protocol spoken.
        protocol: &'static str,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The broker or what stands before it failed.
    #[error("the key broker failed ({refusal})")]
    ServerFault {
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// Something that is not a key broker answered.
    #[error("the answer is not a key broker's ({refusal})")]
    NotKbs {
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// No evidence from this machine.
    #[error("evidence: collecting evidence about this machine, at {}", utc(*at))]
    Evidence {
        /// When.
        at: SystemTime,
        /// What failed.
        #[source]
        source: AttestError,
    },
    /// Evidence larger than a broker accepts.
    #[error("evidence: {len} bytes are more than a key broker accepts ({limit})")]
    EvidenceTooLarge {
        /// Length of the request, in bytes.
        len: usize,
        /// The broker's bound, in bytes.
        limit: usize,
    },
    /// No TEE key pair.
    #[error("evidence: no key pair to attest")]
    Key(#[from] KeyError),
    /// No locked memory for the token.
    #[error("taking memory for the attestation token")]
    Lock(#[from] LockError),
    /// A message could not be serialised.
    #[error("serialising a message to the key broker")]
    Encode(#[from] serde_json::Error),
    /// The worker thread of a step died.
    #[error("the worker thread died")]
    Worker(#[from] tokio::task::JoinError),
    /// The attestation token is not one for this handshake.
    #[error("attest: unusable attestation token at {}", utc(*at))]
    Token {
        /// When.
        at: SystemTime,
        /// What is wrong with it.
        #[source]
        source: TokenError,
    },
    /// The secret's envelope does not open.
    #[error("resource: opening {resource}, received at {}", utc(*at))]
    Jwe {
        /// Resource URI.
        resource: String,
        /// When.
        at: SystemTime,
        /// What is wrong with it.
        #[source]
        source: JweError,
    },
}

impl KbsError {
    /// What the evidence said that a broker refused, or denied a resource to.
    pub fn claims(&self) -> Option<&Claims> {
        match self {
            KbsError::AttestationRefused { claims, .. } | KbsError::Denied { claims, .. } => Some(claims),
            _ => None,
        }
    }

    /// Whether a fresh handshake may help at once: the session is gone, or the verifier's own sources (its certificate
    /// cache above all) may have had a hiccup.
    pub(super) fn wants_new_handshake(&self) -> bool {
        match self {
            KbsError::SessionLost { .. } => true,
            KbsError::AttestationRefused { cause, .. } => cause.may_pass(),
            _ => false,
        }
    }
}

/// `2026-11-22T09:51:24Z`. Before 1970 is 1970.
pub(super) fn utc(at: SystemTime) -> String {
    error::utc(at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_display_names_step_status_type_detail_and_time() {
        let at = UNIX_EPOCH + Duration::from_secs(1_795_341_084);
        let refusal =
            Refusal { step: Step::Resource, status: 403, kind: "PolicyDeny".into(), detail: "no".into(), at };
        assert_eq!(refusal.to_string(), "resource: HTTP 403 PolicyDeny `no` at 2026-11-22T09:51:24Z");
        let bare = Refusal { kind: String::new(), detail: String::new(), ..refusal };
        assert_eq!(bare.to_string(), "resource: HTTP 403 at 2026-11-22T09:51:24Z");
    }
}
