//! What to do about each failure: its class for the agent, its code for tools. Its hint for the operator is in `hint.rs`.

use super::error::KbsError;
use super::hint;
use super::jwe::JweError;
use super::meaning::Cause;
use super::token::TokenError;
use crate::error::{ErrorClass, Fault};

impl Fault for KbsError {
    fn class(&self) -> ErrorClass {
        match self {
            KbsError::Base { .. }
            | KbsError::HttpsRequired { .. }
            | KbsError::CaFile { .. }
            | KbsError::CaContent { .. }
            | KbsError::SignerFile { .. }
            | KbsError::SignerContent { .. }
            | KbsError::KeyAlgorithm { .. }
            | KbsError::KeyRefused { .. }
            | KbsError::RequestTooLarge { .. }
            | KbsError::Lock(_)
            | KbsError::Redirected { .. }
            | KbsError::AnswerTooLarge { .. }
            | KbsError::VersionMismatch { .. }
            | KbsError::BadRequest { .. }
            | KbsError::NotKbs { .. }
            | KbsError::EvidenceTooLarge { .. } => ErrorClass::Config,
            // Untrusted too: otherwise whoever can answer on the network could end the agent for good.
            KbsError::Unreachable { .. }
            | KbsError::Untrusted { .. }
            | KbsError::Malformed { .. }
            | KbsError::AuthRefused { .. }
            | KbsError::SessionLost { .. }
            // The brokers use one answer for a missing secret and for a store that is down.
            | KbsError::NotFound { .. }
            | KbsError::ServerFault { .. } => ErrorClass::Transient,
            // The verifier's network: nobody here or there has decided anything.
            KbsError::AttestationRefused { cause: Cause::PccsUnreachable, .. } => ErrorClass::Transient,
            KbsError::AttestationRefused { .. } | KbsError::Denied { .. } => ErrorClass::Denied,
            KbsError::Setup(_) | KbsError::Tls(_) | KbsError::Key(_) | KbsError::Encode(_) | KbsError::Worker(_) => {
                ErrorClass::Internal
            }
            KbsError::Evidence { source, .. } => source.class(),
            KbsError::Token { source, .. } => match source {
                // A clock, here or there, that may be set soon.
                TokenError::Expired { .. } | TokenError::NotYetValid { .. } => ErrorClass::Transient,
                TokenError::Missing { .. }
                | TokenError::Untrusted
                | TokenError::Chain(_) => ErrorClass::Config,
                TokenError::Malformed
                | TokenError::Algorithm { .. }
                | TokenError::Signature
                | TokenError::WrongNonce
                | TokenError::WrongKey => ErrorClass::Corrupt,
            },
            KbsError::Jwe { source, .. } => match source {
                JweError::Lock(_) => ErrorClass::Config,
                JweError::Malformed { .. }
                | JweError::Algorithm { .. }
                | JweError::Encryption { .. }
                | JweError::Legacy { .. }
                | JweError::Open => ErrorClass::Corrupt,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            KbsError::Base { .. } => "kbs.base-url",
            KbsError::HttpsRequired { .. } => "kbs.https-required",
            KbsError::CaFile { .. } | KbsError::CaContent { .. } => "kbs.ca-file",
            KbsError::SignerFile { .. } | KbsError::SignerContent { .. } => "kbs.token-cert",
            KbsError::KeyAlgorithm { .. } => "kbs.key-algorithm",
            KbsError::Setup(_) => "kbs.setup",
            KbsError::Tls(_) => "kbs.tls",
            KbsError::Unreachable { .. } => "kbs.unreachable",
            KbsError::Untrusted { .. } => "kbs.untrusted",
            KbsError::Redirected { .. } => "kbs.redirected",
            KbsError::AnswerTooLarge { .. } => "kbs.answer-too-large",
            KbsError::Malformed { .. } => "kbs.malformed",
            KbsError::VersionMismatch { .. } => "kbs.version-mismatch",
            KbsError::AuthRefused { .. } => "kbs.auth-refused",
            KbsError::AttestationRefused { cause, .. } => cause_code(*cause),
            KbsError::SessionLost { .. } => "kbs.session-lost",
            KbsError::Denied { .. } => "kbs.denied",
            KbsError::NotFound { .. } => "kbs.not-found",
            KbsError::KeyRefused { .. } => "kbs.key-refused",
            KbsError::RequestTooLarge { .. } => "kbs.request-too-large",
            KbsError::BadRequest { .. } => "kbs.bad-request",
            KbsError::ServerFault { .. } => "kbs.server-fault",
            KbsError::NotKbs { .. } => "kbs.not-a-broker",
            KbsError::Evidence { source, .. } => source.code(),
            KbsError::EvidenceTooLarge { .. } => "kbs.evidence-too-large",
            KbsError::Key(_) => "kbs.key",
            KbsError::Lock(_) => "kbs.locked-memory",
            KbsError::Encode(_) => "kbs.encode",
            KbsError::Worker(_) => "kbs.worker",
            KbsError::Token { .. } => "kbs.token",
            KbsError::Jwe { .. } => "kbs.jwe",
        }
    }

    fn hint(&self) -> String {
        hint::of(self)
    }
}

const fn cause_code(cause: Cause) -> &'static str {
    match cause {
        Cause::Hidden | Cause::Stated => "kbs.attestation-refused",
        Cause::ReportData => "kbs.report-data",
        Cause::EventLog => "kbs.event-log",
        Cause::AgentEventLog => "kbs.agent-event-log",
        Cause::PccsUnreachable => "kbs.pccs-unreachable",
        Cause::Collateral => "kbs.collateral",
        Cause::PccsUntrusted => "kbs.pccs-untrusted",
        Cause::Policy => "kbs.attestation-policy",
        Cause::GpuForm => "kbs.gpu-form",
        Cause::NoVerifier => "kbs.no-verifier",
    }
}
