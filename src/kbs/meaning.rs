//! From a refusal to the error it means: the verdict, and, where evidence was refused, what the verifier gave as its cause.

use super::error::{KbsError, Refusal};
use super::negotiate::Offer;
use super::verdict::{Verdict, expected_version, judge};
use crate::attest::Claims;

/// Why a verifier refused evidence, from its own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The release keeps it in its log (kbs.md section 4.1).
    Hidden,
    /// Its words say it, and cai knows no more about them.
    Stated,
    /// The evidence is bound to something else than the broker computed.
    ReportData,
    /// The boot event log does not give the quote's RTMRs.
    EventLog,
    /// The agents' event log is not what the verifier replays.
    AgentEventLog,
    /// The verifier does not reach its collateral service.
    PccsUnreachable,
    /// The collateral service knows nothing of this machine's platform.
    Collateral,
    /// The verifier does not trust its collateral service.
    PccsUntrusted,
    /// The attestation policy says no.
    Policy,
    /// The verifier does not read GPU evidence in the form it was sent.
    GpuForm,
    /// The verifier was built without this TEE.
    NoVerifier,
}

/// Words of verifiers, lower case, and what they mean; first match counts. Error numbers are those of Intel's quote
/// verification library. Source: kbs.md section 12.
const WORDS: &[(&str, Cause)] = &[
    ("report_data is different", Cause::ReportData),
    ("from td quote is not equal", Cause::EventLog),
    ("aa eventlog does not pass", Cause::AgentEventLog),
    ("should be included in aael", Cause::AgentEventLog),
    ("0xe019", Cause::PccsUnreachable),
    ("0xe022", Cause::Collateral),
    ("0xe062", Cause::Collateral),
    ("0xe065", Cause::PccsUntrusted),
    ("`nvidia` verifier is not implemented", Cause::GpuForm),
    ("verifier is not implemented", Cause::NoVerifier),
    ("is not enabled", Cause::NoVerifier),
    ("policy", Cause::Policy),
];

impl Cause {
    fn of(refusal: &Refusal) -> Self {
        let detail = refusal.detail.to_lowercase();
        let known = WORDS.iter().find(|(words, _)| detail.contains(words)).map(|(_, cause)| *cause);
        let bare = detail.is_empty() || detail.ends_with("rcar handshake attest failed");
        known.unwrap_or(if bare { Cause::Hidden } else { Cause::Stated })
    }

    /// Whether the same evidence may be accepted a moment later.
    pub(super) const fn may_pass(self) -> bool {
        matches!(self, Cause::Hidden | Cause::Stated | Cause::PccsUnreachable)
    }
}

/// What was asked, for the error when the answer is no.
pub(super) struct Asked<'a> {
    pub(super) offer: Offer,
    /// Resource URI; empty when no resource was asked for.
    pub(super) resource: &'a str,
    /// What the evidence said; empty before there was any.
    pub(super) claims: &'a Claims,
}

impl Asked<'_> {
    /// The error that a refusal means.
    pub(super) fn meaning(&self, refusal: Box<Refusal>) -> KbsError {
        let protocol = self.offer.dialect.version();
        let (resource, claims) = (self.resource.to_owned(), Box::new(self.claims.clone()));
        match judge(&refusal) {
            Verdict::VersionMismatch => {
                let expected = expected_version(&refusal.detail).map(str::to_owned);
                KbsError::VersionMismatch { offered: protocol, expected, refusal }
            }
            Verdict::SessionLost => KbsError::SessionLost { refusal },
            Verdict::Denied => KbsError::Denied { resource, claims, refusal },
            Verdict::NotFound => KbsError::NotFound { resource, refusal },
            Verdict::AttestationRefused => {
                KbsError::AttestationRefused { cause: Cause::of(&refusal), claims, refusal }
            }
            Verdict::AuthRefused => KbsError::AuthRefused { refusal },
            Verdict::KeyRefused => KbsError::KeyRefused { algorithm: self.offer.algorithm.name(), refusal },
            Verdict::TooLarge => KbsError::RequestTooLarge { refusal },
            Verdict::BadRequest => KbsError::BadRequest { protocol, refusal },
            Verdict::ServerFault => KbsError::ServerFault { refusal },
            Verdict::NotKbs => KbsError::NotKbs { refusal },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kbs::error::Step;
    use std::time::UNIX_EPOCH;

    #[test]
    fn cause_of_refused_evidence_is_read_from_every_known_text() {
        let cause = |detail: &str| {
            let (step, kind, at) = (Step::Attest, "AttestationFailed".to_owned(), UNIX_EPOCH);
            Cause::of(&Refusal { step, status: 401, kind, detail: detail.to_owned(), at })
        };
        let rows = [
            ("", Cause::Hidden),
            ("Attestation error: RCAR handshake Attest failed", Cause::Hidden),
            ("Verifier evaluate failed: REPORT_DATA is different from that in TDX Quote", Cause::ReportData),
            ("RTMR 0, 1, 2 values from TD quote is not equal with the values from EventLog", Cause::EventLog),
            ("AA eventlog does not pass check. AAEL is ..", Cause::AgentEventLog),
            ("at least one line should be included in AAEL", Cause::AgentEventLog),
            ("verify failed: tee_verify_quote failed: 0xE019", Cause::PccsUnreachable),
            ("tee_verify_quote failed: 0xe022", Cause::Collateral),
            ("tee_verify_quote failed: 0xe062", Cause::Collateral),
            ("tee_get_supplemental_data: 0xe065", Cause::PccsUntrusted),
            ("TEE `nvidia` verifier is not implemented.", Cause::GpuForm),
            ("TEE `tpm` verifier is not implemented.", Cause::NoVerifier),
            ("feature `tdx-verifier` is not enabled for `verifier` crate.", Cause::NoVerifier),
            ("Reject by policy default", Cause::Policy),
            ("something new", Cause::Stated),
        ];
        for (detail, expected) in rows {
            assert_eq!(cause(detail), expected, "{detail}");
        }
    }
}
