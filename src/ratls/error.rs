//! What can go wrong between a certificate and a verdict on it, and what to do about it.

use super::certificate::CertificateError;
use super::evidence::EvidenceError;
use super::verdict::Refused;
use crate::error::{ErrorClass, Fault};
use crate::jwt::JwtError;
use crate::pki::PkiError;

/// A peer's certificate is not accepted, or its verifier cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Nobody would vouch for the service's answers.
    #[error(
        "{url} is plain http and no certificate of its token signer is given: anybody could answer in its place"
    )]
    Unauthenticated {
        /// The service.
        url: String,
    },
    /// Not a URL of an attestation service.
    #[error(
        "{url} is not the base of an attestation service: expected http(s)://HOST/PATH without user, query and fragment"
    )]
    Base {
        /// What was given, without what may be secret.
        url: String,
    },
    /// The CA bundle cannot be used.
    #[error("setting up trust in the attestation service")]
    Roots {
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The certificates of token signers cannot be used.
    #[error("reading the certificates of the token signer")]
    Signers(#[source] PkiError),
    /// The HTTP library refuses its own defaults.
    #[error("setting up the client of the attestation service")]
    Setup(#[source] reqwest::Error),
    /// The certificate is not one that carries evidence.
    #[error("reading the peer's certificate")]
    Certificate(#[source] CertificateError),
    /// The evidence in it is none, or binds another key.
    #[error("reading the evidence in the peer's certificate")]
    Evidence(#[source] EvidenceError),
    /// The evidence of devices is not a JSON object.
    #[error("the evidence of devices in the peer's certificate is not a JSON object")]
    Additional(#[source] serde_json::Error),
    /// A request cannot be written.
    #[error("writing the question to the attestation service")]
    Encode(#[source] serde_json::Error),
    /// The service does not answer.
    #[error("asking the attestation service {url}")]
    Unreachable {
        /// Where it was asked.
        url: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The service's own certificate is not trusted.
    #[error("the attestation service {url} shows a certificate that is not trusted")]
    Untrusted {
        /// Where it was asked.
        url: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// The service says no.
    #[error("the attestation service {url} refuses the evidence: HTTP {status} `{detail}`")]
    Denied {
        /// Where it was asked.
        url: String,
        /// HTTP status.
        status: u16,
        /// Its words.
        detail: String,
    },
    /// The answer is longer than any token.
    #[error("the attestation service {url} answers with more than {limit} bytes")]
    AnswerTooLong {
        /// Where it was asked.
        url: String,
        /// Most that is read, in bytes.
        limit: usize,
    },
    /// The answer is not text.
    #[error("the attestation service {url} answers with bytes that are no text")]
    NotText {
        /// Where it was asked.
        url: String,
    },
    /// The token is not accepted.
    #[error("the verdict on the peer is not accepted")]
    Verdict(#[source] Refused),
}

impl Fault for VerifyError {
    fn class(&self) -> ErrorClass {
        match self {
            VerifyError::Unauthenticated { .. }
            | VerifyError::Base { .. }
            | VerifyError::Roots { .. }
            | VerifyError::Signers(_) => ErrorClass::Config,
            VerifyError::Setup(_) | VerifyError::Encode(_) => ErrorClass::Internal,
            VerifyError::Certificate(source) => source.class(),
            VerifyError::Evidence(source) => source.class(),
            VerifyError::Additional(_) | VerifyError::AnswerTooLong { .. } | VerifyError::NotText { .. } => {
                ErrorClass::Corrupt
            }
            // Untrusted too: whoever can answer on the network must not be able to end anything for good.
            VerifyError::Unreachable { .. } | VerifyError::Untrusted { .. } => ErrorClass::Transient,
            VerifyError::Denied { status: 429 | 502..=504, .. } => ErrorClass::Transient,
            VerifyError::Denied { .. } | VerifyError::Verdict(Refused::Claim { .. }) => ErrorClass::Denied,
            VerifyError::Verdict(Refused::Token(source)) => match source {
                JwtError::Expired { .. } | JwtError::NotYetValid { .. } => ErrorClass::Transient,
                JwtError::Untrusted | JwtError::Chain(_) => ErrorClass::Config,
                JwtError::Malformed | JwtError::Algorithm { .. } | JwtError::Signature => ErrorClass::Corrupt,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            VerifyError::Unauthenticated { .. } => "verify.unauthenticated",
            VerifyError::Base { .. } => "verify.base-url",
            VerifyError::Roots { .. } => "verify.ca-file",
            VerifyError::Signers(_) => "verify.signer",
            VerifyError::Setup(_) => "verify.setup",
            VerifyError::Certificate(source) => source.code(),
            VerifyError::Evidence(source) => source.code(),
            VerifyError::Additional(_) => "verify.additional-evidence",
            VerifyError::Encode(_) => "verify.encode",
            VerifyError::Unreachable { .. } => "verify.unreachable",
            VerifyError::Untrusted { .. } => "verify.untrusted",
            VerifyError::Denied { .. } => "verify.denied",
            VerifyError::AnswerTooLong { .. } => "verify.answer-too-long",
            VerifyError::NotText { .. } => "verify.not-text",
            VerifyError::Verdict(Refused::Token(_)) => "verify.token",
            VerifyError::Verdict(Refused::Claim { .. }) => "verify.claim",
        }
    }

    fn hint(&self) -> String {
        match self {
            VerifyError::Unauthenticated { .. } => {
                "use an https address, or pin the certificate of the service's token signer (cai connect: --as-cert)".into()
            }
            VerifyError::Base { .. } => "it looks like http://TRUSTEE/as or http://GATEWAY:8081/api/as".into(),
            VerifyError::Roots { .. } | VerifyError::Signers(_) => {
                "give a PEM file with at least one certificate".into()
            }
            VerifyError::Setup(_) | VerifyError::Encode(_) => "report this as a defect in cai".into(),
            VerifyError::Certificate(source) => source.hint(),
            VerifyError::Evidence(source) => source.hint(),
            VerifyError::Additional(_) => "is the peer cai, or TNG 2.3 or newer? otherwise do not trust it".into(),
            VerifyError::Unreachable { .. } => "is the address right, and does the service run?".into(),
            VerifyError::Untrusted { .. } => {
                "give the CA of the service's certificate; if it is the right one, somebody else answers there".into()
            }
            VerifyError::Denied { status: 429 | 502..=504, .. } => {
                "the attestation service is not serving at the moment: try again, then look at its log".into()
            }
            VerifyError::Denied { .. } => {
                "compare the service's reference values and policy with the peer (there: cai attest --reference-values); a \
                 service older than Trustee 1.6 cannot judge devices beside the CPU"
                    .into()
            }
            VerifyError::AnswerTooLong { .. } | VerifyError::NotText { .. } => {
                "what answers there is no attestation service: is the address right?".into()
            }
            VerifyError::Verdict(Refused::Token(source)) => token_hint(source),
            VerifyError::Verdict(Refused::Claim { hint, .. }) => (*hint).into(),
        }
    }
}

fn token_hint(source: &JwtError) -> String {
    match source {
        JwtError::Expired { .. } | JwtError::NotYetValid { .. } => {
            "set the clocks of this machine and of the attestation service".into()
        }
        JwtError::Untrusted | JwtError::Chain(_) => {
            "is the pinned certificate that of the service's token signer, or of its CA? otherwise somebody else signed".into()
        }
        JwtError::Malformed | JwtError::Algorithm { .. } | JwtError::Signature => {
            "what answers there is no attestation service that cai knows, or somebody changed its answer".into()
        }
    }
}
