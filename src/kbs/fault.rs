//! What to do about each failure: its class for the agent, its code for tools, its hint for the operator.
//!
//! Source of the hints: kbs.md section 12.

use super::error::{KbsError, Refusal, utc};
use super::jwe::JweError;
use super::token::TokenError;
use super::wire::Dialect;
use crate::error::{ErrorClass, Fault};

impl Fault for KbsError {
    fn class(&self) -> ErrorClass {
        match self {
            KbsError::Base { .. }
            | KbsError::HttpsRequired { .. }
            | KbsError::CaFile { .. }
            | KbsError::CaContent { .. }
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
            KbsError::AttestationRefused { .. } | KbsError::Denied { .. } => ErrorClass::Denied,
            KbsError::Setup(_) | KbsError::Tls(_) | KbsError::Key(_) | KbsError::Encode(_) | KbsError::Worker(_) => {
                ErrorClass::Internal
            }
            KbsError::Evidence { source, .. } => source.class(),
            KbsError::Token { source, .. } => match source {
                TokenError::Expired { .. } | TokenError::NotYetValid { .. } => ErrorClass::Config,
                TokenError::Malformed
                | TokenError::Algorithm { .. }
                | TokenError::WrongNonce
                | TokenError::WrongKey => ErrorClass::Corrupt,
            },
            KbsError::Jwe { source, .. } => match source {
                JweError::Lock(_) => ErrorClass::Config,
                JweError::Malformed { .. }
                | JweError::Algorithm { .. }
                | JweError::Encryption { .. }
                | JweError::Legacy
                | JweError::Open => ErrorClass::Corrupt,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            KbsError::Base { .. } => "kbs.base-url",
            KbsError::HttpsRequired { .. } => "kbs.https-required",
            KbsError::CaFile { .. } | KbsError::CaContent { .. } => "kbs.ca-file",
            KbsError::Setup(_) => "kbs.setup",
            KbsError::Tls(_) => "kbs.tls",
            KbsError::Unreachable { .. } => "kbs.unreachable",
            KbsError::Untrusted { .. } => "kbs.untrusted",
            KbsError::Redirected { .. } => "kbs.redirected",
            KbsError::AnswerTooLarge { .. } => "kbs.answer-too-large",
            KbsError::Malformed { .. } => "kbs.malformed",
            KbsError::VersionMismatch { .. } => "kbs.version-mismatch",
            KbsError::AuthRefused { .. } => "kbs.auth-refused",
            KbsError::AttestationRefused { .. } => "kbs.attestation-refused",
            KbsError::SessionLost { .. } => "kbs.session-lost",
            KbsError::Denied { .. } => "kbs.denied",
            KbsError::NotFound { .. } => "kbs.not-found",
            KbsError::BadRequest { .. } => "kbs.bad-request",
            KbsError::ServerFault { .. } => "kbs.server-fault",
            KbsError::NotKbs { .. } => "kbs.not-a-broker",
            KbsError::Evidence { source, .. } => source.code(),
            KbsError::EvidenceTooLarge { .. } => "kbs.evidence-too-large",
            KbsError::Key(_) => "kbs.key",
            KbsError::Encode(_) => "kbs.encode",
            KbsError::Worker(_) => "kbs.worker",
            KbsError::Token { .. } => "kbs.token",
            KbsError::Jwe { .. } => "kbs.jwe",
        }
    }

    fn hint(&self) -> String {
        match self {
            KbsError::Base { .. } => format!("set TRUSTEE_URL to one of: {BASE_FORMS}"),
            KbsError::HttpsRequired { .. } => "use an https TRUSTEE_URL, or clear trustee.require_https".to_owned(),
            KbsError::CaFile { .. } | KbsError::CaContent { .. } => {
                "let trustee.ca_file name a readable PEM file with the certificates of the key broker's CA".to_owned()
            }
            KbsError::Unreachable { source, url, .. } => unreachable_hint(source, url),
            KbsError::Untrusted { .. } => {
                "let trustee.ca_file name the CA that signed the key broker's certificate (it replaces the public roots), \
                 and check the certificate's names and dates"
                    .to_owned()
            }
            KbsError::Redirected { .. } => {
                "set TRUSTEE_URL to the final address: cai follows no redirect with evidence in hand".to_owned()
            }
            KbsError::AnswerTooLarge { .. } | KbsError::Malformed { .. } => {
                format!("check that TRUSTEE_URL leads to a key broker; its forms are: {BASE_FORMS}")
            }
            KbsError::VersionMismatch { offered, expected, .. } => version_hint(offered, expected.as_deref()),
            KbsError::AuthRefused { refusal } => {
                format!("see the KBS log at {}; the attestation service behind it may be down", utc(refusal.at))
            }
            KbsError::AttestationRefused { refusal } => attestation_hint(refusal),
            KbsError::SessionLost { .. } => {
                "new handshakes did not help: with several KBS replicas the load balancer needs sticky sessions; \
                 otherwise see the KBS log"
                    .to_owned()
            }
            KbsError::Denied { resource, refusal } => format!(
                "attestation succeeded, authorization did not: let the resource policy of the KBS allow this machine's \
                 claims (TEE, measurements, reference values) to read {resource}; see the KBS log at {}",
                utc(refusal.at)
            ),
            KbsError::NotFound { resource, refusal } => format!(
                "store the secret as {resource} (with Aliyun KMS behind the KBS, the last segment is the name of the KMS \
                 secret and the KBS needs credentials for it); see the KBS log at {}",
                utc(refusal.at)
            ),
            KbsError::BadRequest { .. } => {
                "the server speaks another dialect than expected: check trustee.protocol, and MODEL_KEY_ID".to_owned()
            }
            KbsError::ServerFault { refusal } => {
                format!("see the log of the KBS, and of what stands before it, at {}", utc(refusal.at))
            }
            KbsError::NotKbs { .. } => {
                format!("the path of TRUSTEE_URL is probably wrong (or needs an API key); its forms are: {BASE_FORMS}")
            }
            KbsError::Evidence { source, .. } => source.hint(),
            KbsError::EvidenceTooLarge { .. } => "the event log of this machine is too large to attest".to_owned(),
            KbsError::Setup(_) | KbsError::Tls(_) | KbsError::Key(_) | KbsError::Encode(_) | KbsError::Worker(_) => {
                "report this as a defect of cai, with the log".to_owned()
            }
            KbsError::Token { source, .. } => token_hint(source),
            KbsError::Jwe { source, .. } => jwe_hint(source),
        }
    }
}

/// Base URLs seen in the field (kbs.md section 0.3).
const BASE_FORMS: &str = "http://host:8080 (KBS itself), http://load-balancer/release-name (chart), http://gateway:8081/api (gateway); \
     never with /kbs/v0 at the end";

fn unreachable_hint(source: &reqwest::Error, url: &str) -> String {
    if source.is_timeout() {
        format!(
            "{url} did not answer in time (trustee.timeout_secs): check security groups and the load balancer"
        )
    } else if source.is_dns() {
        format!("the host name in {url} does not resolve: check TRUSTEE_URL and the name servers")
    } else {
        format!(
            "nothing usable listens at {url}: check TRUSTEE_URL, the KBS, and the load balancer's listener"
        )
    }
}

fn version_hint(offered: &str, expected: Option<&str>) -> String {
    match expected {
        Some(expected) if Dialect::of_version(expected).is_some() => format!(
            "trustee.protocol pins {offered}: set it to {expected} or auto, or move the key broker to a release that \
             speaks {offered}"
        ),
        Some(expected) => format!(
            "cai speaks 0.4.0 and 0.1.0, the key broker {expected}: use Alibaba Trustee v1.6 or later, or v1.0 to v1.5"
        ),
        None => "cai speaks 0.4.0 and 0.1.0: use a Trustee release with one of them".to_owned(),
    }
}

fn attestation_hint(refusal: &Refusal) -> String {
    if refusal.kind == "AttestationFailed" {
        return "the attestation service's reason is in the message; see its log, and the reference values and policy \
                registered there"
            .to_owned();
    }
    format!(
        "this release of the KBS hides the reason: see the KBS and AS logs at {} (unreachable PCCS, evidence the \
         verifier does not know, event log that does not replay)",
        utc(refusal.at)
    )
}

fn token_hint(source: &TokenError) -> String {
    match source {
        TokenError::Expired { .. } | TokenError::NotYetValid { .. } => {
            "set the clocks of this machine and of the key broker right".to_owned()
        }
        TokenError::Malformed | TokenError::Algorithm { .. } | TokenError::WrongNonce | TokenError::WrongKey => {
            "somebody between here and the key broker may be answering in its place: use https and trustee.ca_file"
                .to_owned()
        }
    }
}

fn jwe_hint(source: &JweError) -> String {
    match source {
        JweError::Lock(_) => "raise LimitMEMLOCK of the service".to_owned(),
        JweError::Malformed { .. }
        | JweError::Algorithm { .. }
        | JweError::Encryption { .. }
        | JweError::Legacy
        | JweError::Open => {
            "the secret was damaged, or encrypted for another handshake: check proxies in between, and use https"
                .to_owned()
        }
    }
}
