//! What an operator can do about each failure.
//!
//! Source: kbs.md section 12.

use super::error::{KbsError, Refusal, Step, utc};
use super::jwe::JweError;
use super::meaning::Cause;
use super::token::TokenError;
use super::wire::Dialect;
use crate::attest::{Claims, reference_values};
use crate::error::Fault as _;
use crate::text::printable;

/// Base URLs seen in the field (kbs.md section 0.3).
const BASE_FORMS: &str = "http://host:8080 (KBS itself), http://load-balancer/release-name (chart), http://gateway:8081/api (gateway); \
     never with /kbs/v0 at the end";

/// How much of the reference values a hint quotes, in bytes: the boot log of a distribution with a dozen kernels fits.
const REFERENCE_LEN: usize = 4096;

/// GPUs a hint names: as many as a machine has.
const GPUS: usize = 16;

/// The hint for `error`.
pub(super) fn of(error: &KbsError) -> String {
    match error {
        KbsError::AuthRefused { refusal }
        | KbsError::SessionLost { refusal }
        | KbsError::NotFound { refusal, .. }
        | KbsError::KeyRefused { refusal, .. }
        | KbsError::RequestTooLarge { refusal }
        | KbsError::ServerFault { refusal }
        | KbsError::NotKbs { refusal }
        | KbsError::BadRequest { refusal, .. }
        | KbsError::VersionMismatch { refusal, .. }
        | KbsError::AttestationRefused { refusal, .. }
        | KbsError::Denied { refusal, .. } => about_refusal(error, refusal),
        KbsError::Base { .. } => format!("set TRUSTEE_URL to one of: {BASE_FORMS}"),
        KbsError::HttpsRequired { .. } => "use an https TRUSTEE_URL, or clear trustee.require_https".to_owned(),
        KbsError::CaFile { .. } | KbsError::CaContent { .. } => {
            "let trustee.ca_file name a readable PEM file with the certificates of the key broker's CA".to_owned()
        }
        KbsError::SignerFile { .. } | KbsError::SignerContent { .. } => {
            "let trustee.token_cert name a readable PEM file with the certificate of the attestation service's token signer, \
             or of its CA"
                .to_owned()
        }
        KbsError::KeyAlgorithm { chosen, protocol } => format!(
            "trustee.key_algorithm is {chosen}, which key brokers of protocol {protocol} do not have: set it to auto, or use \
             a key broker with protocol 0.2.0 or 0.4.0"
        ),
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
        KbsError::Evidence { source, .. } => source.hint(),
        KbsError::EvidenceTooLarge { .. } => {
            "the event log of this machine is too large to attest: attest.event_log = \"never\" leaves it out".to_owned()
        }
        KbsError::Lock(_) => "raise LimitMEMLOCK of the service".to_owned(),
        KbsError::Setup(_) | KbsError::Tls(_) | KbsError::Key(_) | KbsError::Encode(_) | KbsError::Worker(_) => {
            "report this as a defect of cai, with the log".to_owned()
        }
        KbsError::Token { source, .. } => token_hint(source),
        KbsError::Jwe { source, .. } => jwe_hint(source),
    }
}

/// The hint for an error that is a broker's answer.
fn about_refusal(error: &KbsError, refusal: &Refusal) -> String {
    let at = utc(refusal.at);
    match error {
        KbsError::VersionMismatch { offered, expected, .. } => version_hint(offered, expected.as_deref()),
        KbsError::AttestationRefused { cause, claims, .. } => attestation_hint(*cause, claims, &at),
        KbsError::SessionLost { .. } if refusal.step == Step::Attest => format!(
            "the session was gone before the evidence was ready (sessions live five minutes; a quote that takes longer is the \
             host's trouble), or a load balancer led to another KBS replica: it needs sticky sessions; see the KBS log at {at}"
        ),
        KbsError::SessionLost { .. } => format!(
            "new handshakes did not help: with several KBS replicas the load balancer needs sticky sessions; otherwise see \
             the KBS log at {at}"
        ),
        KbsError::Denied { resource, claims, .. } => format!(
            "attestation succeeded, authorization did not: let the resource policy of the KBS allow this machine's claims \
             (TEE, measurements, reference values) to read {resource}; see the KBS log at {at}; {}",
            machine(claims)
        ),
        KbsError::NotFound { resource, .. } => format!(
            "store the secret as {resource} (with Aliyun KMS behind the KBS, the last segment is the name of the KMS secret \
             and the KBS needs credentials for it); see the KBS log at {at}"
        ),
        KbsError::KeyRefused { algorithm, .. } => format!(
            "set trustee.key_algorithm to another than {algorithm}, or to auto; see the KBS log at {at}"
        ),
        KbsError::RequestTooLarge { .. } => {
            "raise the limit on request bodies of the load balancer to 2 MiB (nginx: client_max_body_size), or leave the boot \
             event log out with attest.event_log = \"never\""
                .to_owned()
        }
        KbsError::BadRequest { protocol, .. } => format!(
            "protocol {protocol} was spoken and the server expects another: check trustee.protocol, MODEL_KEY_ID, and what \
             stands before the KBS"
        ),
        KbsError::NotKbs { .. } => {
            format!("the path of TRUSTEE_URL is probably wrong (or needs an API key); its forms are: {BASE_FORMS}")
        }
        KbsError::AuthRefused { .. } => {
            format!("see the KBS log at {at}; the attestation service behind it may be down")
        }
        _ => format!("see the log of the KBS, and of what stands before it, at {at}"),
    }
}

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
        Some(expected) => format!("cai speaks {}, the key broker {expected}: {RELEASES}", versions()),
        None => format!("cai speaks {}: {RELEASES}", versions()),
    }
}

/// Brokers that speak one of our versions (kbs.md section 0.2).
const RELEASES: &str = "use any release of Alibaba's Trustee, or one of upstream's from v0.9 on";

/// `0.4.0, 0.2.0, ...`.
fn versions() -> String {
    Dialect::ALL.map(Dialect::version).into_iter().rev().collect::<Vec<_>>().join(", ")
}

fn attestation_hint(cause: Cause, claims: &Claims, at: &str) -> String {
    let advice = match cause {
        Cause::Hidden => {
            return format!(
                "this release of the KBS hides the reason: see the KBS and AS logs at {at} (unreachable PCCS, evidence the \
                 verifier does not know, event log that does not replay); {}",
                machine(claims)
            );
        }
        Cause::Stated | Cause::Policy => {
            return format!(
                "the attestation service's reason is in the message; see its log at {at}, and the reference values and \
                 policy registered there; {}",
                machine(claims)
            );
        }
        Cause::ReportData => {
            return format!(
                "the quote is bound to {}, the verifier computed another digest from nonce and key: look for a proxy that \
                 changes bodies and for a quote provider that answers from a cache, and report it as a defect of cai \
                 otherwise",
                printable(&claims.report_data, 128)
            );
        }
        Cause::EventLog => {
            "the boot event log does not give the quote's RTMRs (a kexec, a log cut short, an extension that nobody logged): \
             attest.event_log = \"never\" leaves it out, and with it the boot measurements that policies may ask for"
        }
        Cause::AgentEventLog => {
            "the agents' event log (/run/attestation-agent/eventlog) does not give RTMR3: look for what extends RTMR3 \
             without logging it"
        }
        Cause::PccsUnreachable => {
            "the attestation service cannot reach its PCCS: check its network, and the address in its sgx_default_qcnl.conf"
        }
        Cause::Collateral => {
            "the PCCS of the attestation service has no collateral for this platform: register the platform there, or name \
             the PCCS of this machine's region"
        }
        Cause::PccsUntrusted => {
            "the attestation service does not trust its PCCS: give it the CA of the PCCS, or set use_secure_cert in its \
             sgx_default_qcnl.conf"
        }
        Cause::GpuForm => {
            "this Trustee does not read GPU evidence in upstream's form: set trustee.gpu_evidence = \"alibaba\""
        }
        Cause::NoVerifier => {
            "the attestation service was built without a verifier for this TEE: use a release that has it"
        }
    };
    format!("{advice}; see the AS log at {at}")
}

/// What a policy can know this machine by, ready to be registered.
fn machine(claims: &Claims) -> String {
    let mut text = match reference(claims) {
        Some(values) => format!("reference values of this machine, as the RVPS takes them: {values}"),
        None if claims.provider == "sample" => {
            "this is the sample TEE, which proves nothing and which default policies deny".to_owned()
        }
        None => "its evidence carries no measurement to register".to_owned(),
    };
    for gpu in claims.gpus.iter().take(GPUS) {
        let parts = [&gpu.name, &gpu.uuid, &gpu.driver_version, &gpu.vbios_version];
        let [name, uuid, driver, vbios] = parts.map(|part| printable(part, 64));
        text.push_str(&format!("; GPU {name} {uuid} driver {driver} VBIOS {vbios}"));
    }
    text
}

/// The reference values as one line of JSON, whole entries up to the bound; `None` when there are none.
fn reference(claims: &Claims) -> Option<String> {
    let mut values = reference_values(claims);
    if values.is_empty() {
        return None;
    }
    let mut left_out = 0;
    loop {
        let text = serde_json::to_string(&values).ok()?;
        if text.len() <= REFERENCE_LEN {
            return Some(match left_out {
                0 => text,
                _ => format!("{text} (and {left_out} more: cai attest --reference-values)"),
            });
        }
        // The boot measurements come first in the order of names, and are what there can be many of.
        values.pop_first()?;
        left_out += 1;
    }
}

fn token_hint(source: &TokenError) -> String {
    match source {
        TokenError::Expired { .. } | TokenError::NotYetValid { .. } => {
            "set the clocks of this machine and of the key broker right".to_owned()
        }
        TokenError::Missing { .. } => {
            "with trustee.token_cert a token must name this handshake's nonce and key, and its end: use a Trustee that puts \
             them in, or clear trustee.token_cert"
                .to_owned()
        }
        TokenError::Untrusted | TokenError::Chain(_) => {
            "let trustee.token_cert name the certificate of the attestation service's token signer, or of its CA (a service \
             without a configured signer makes a new key at every start); otherwise somebody may be answering in its place"
                .to_owned()
        }
        TokenError::Malformed
        | TokenError::Algorithm { .. }
        | TokenError::Signature
        | TokenError::WrongNonce
        | TokenError::WrongKey => {
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
        | JweError::Legacy { .. }
        | JweError::Open => {
            "the secret was damaged, or encrypted for another handshake: check proxies in between, and use https"
                .to_owned()
        }
    }
}
