//! What each of the broker's refusals means, as a table.
//!
//! Told by the body's `type` and text. Status codes differ between releases for the same refusal (401, 403, 500 and 502
//! have all been a plain "no"), so they decide only where the body is not the broker's.
//!
//! Source: kbs.md section 4, kbs-observed.md.

use super::error::{Refusal, Step};

/// Meaning of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    VersionMismatch,
    SessionLost,
    Denied,
    NotFound,
    AttestationRefused,
    AuthRefused,
    KeyRefused,
    TooLarge,
    BadRequest,
    ServerFault,
    NotKbs,
}

/// A row matches when all of its conditions do; an empty list is no condition.
struct Row {
    steps: &'static [Step],
    kinds: &'static [&'static str],
    /// Lower case; found in the detail in any case.
    texts: &'static [&'static str],
    verdict: Verdict,
}

const ATTEST: &[Step] = &[Step::Attest];
const AUTH: &[Step] = &[Step::Auth];
const RESOURCE: &[Step] = &[Step::Resource];
const AFTER_AUTH: &[Step] = &[Step::Attest, Step::Resource];

/// First match counts.
const TABLE: &[Row] = &[
    Row { steps: AUTH, kinds: &["ProtocolVersion"], texts: &[], verdict: Verdict::VersionMismatch },
    Row { steps: AUTH, kinds: &[], texts: &["version mismatch"], verdict: Verdict::VersionMismatch },
    Row {
        steps: AFTER_AUTH,
        kinds: &["MissingCookie", "InvalidCookie", "ExpiredCookie", "UnAuthenticatedCookie"],
        texts: &[],
        verdict: Verdict::SessionLost,
    },
    Row {
        steps: ATTEST,
        kinds: &[],
        texts: &["no cookie found", "cookie not found", "session expired"],
        verdict: Verdict::SessionLost,
    },
    Row {
        steps: RESOURCE,
        kinds: &["TokenNotFound", "TokenVerifierError", "TokenParseFailed"],
        texts: &[],
        verdict: Verdict::SessionLost,
    },
    // The first generation falls through to the bearer header when it does not know the session.
    Row {
        steps: RESOURCE,
        kinds: &["InvalidRequest"],
        texts: &["authorization"],
        verdict: Verdict::SessionLost,
    },
    Row { steps: RESOURCE, kinds: &["PolicyReject", "PolicyDeny"], texts: &[], verdict: Verdict::Denied },
    // The second generation's answer for a resource that is not there, and also for a back end that is down.
    Row {
        steps: RESOURCE,
        kinds: &["ReadSecretFailed", "PluginInternalError"],
        texts: &[],
        verdict: Verdict::NotFound,
    },
    Row {
        steps: ATTEST,
        kinds: &["AttestationFailed", "AttestationError"],
        texts: &[],
        verdict: Verdict::AttestationRefused,
    },
    Row {
        steps: AUTH,
        kinds: &["FailedAuthentication", "AttestationError"],
        texts: &[],
        verdict: Verdict::AuthRefused,
    },
    // Asked of operators only: a gateway that wants an API key words it so.
    Row { steps: &[], kinds: &["AdminAuth"], texts: &[], verdict: Verdict::NotKbs },
    // The broker cannot encrypt to the key that was attested, or finds none in its own token.
    Row {
        steps: RESOURCE,
        kinds: &["JweError", "JWEFailed", "UserPublicKeyNotProvided", "PublicKeyGetFailed"],
        texts: &[],
        verdict: Verdict::KeyRefused,
    },
    Row {
        steps: &[],
        kinds: &["InvalidRequest", "InvalidRequestPath", "PluginNotFound", "SerdeError"],
        texts: &[],
        verdict: Verdict::BadRequest,
    },
];

impl Row {
    fn matches(&self, refusal: &Refusal) -> bool {
        let detail = refusal.detail.to_lowercase();
        (self.steps.is_empty() || self.steps.contains(&refusal.step))
            && (self.kinds.is_empty() || self.kinds.contains(&refusal.kind.as_str()))
            && (self.texts.is_empty() || self.texts.iter().any(|text| detail.contains(text)))
    }
}

/// What `refusal` means.
pub(super) fn judge(refusal: &Refusal) -> Verdict {
    if let Some(row) = TABLE.iter().find(|row| row.matches(refusal)) {
        return row.verdict;
    }
    match (refusal.status, refusal.kind.is_empty()) {
        (413, _) => Verdict::TooLarge,
        // A refusal of the broker's own that is none of the above is its fault (policy engine, token issuing, storage).
        (400, _) => Verdict::BadRequest,
        (_, false) => Verdict::ServerFault,
        (408 | 425 | 429 | 500.., true) => Verdict::ServerFault,
        (_, true) => Verdict::NotKbs,
    }
}

/// The version the broker expects, from the text of a version mismatch: the first `n.n.n` after `expect`.
///
/// Covers both texts: `expected version: <=0.1.0, requested version: 0.4.0` and `expect =0.1.0 while the request is 0.4.0`.
pub(super) fn expected_version(detail: &str) -> Option<&str> {
    let (_, rest) = detail.split_once("expect")?;
    rest.split(|c: char| !c.is_ascii_digit() && c != '.').find(|word| {
        let parts: Vec<&str> = word.split('.').collect();
        parts.len() == 3 && parts.iter().all(|part| !part.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn judged(step: Step, status: u16, kind: &str, detail: &str) -> Verdict {
        judge(&Refusal { step, status, kind: kind.into(), detail: detail.into(), at: UNIX_EPOCH })
    }

    #[test]
    fn refusals_of_every_generation_are_told_by_type_and_text() {
        use Step::{Attest, Auth, Resource};
        use Verdict::*;
        let old = "KBS Client Protocol Version Mismatch: expected version: <=0.1.0, requested version: 0.4.0";
        let new = "RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.0";
        let bearer = "parse Authorization header failed: Header";
        let hidden = "Attestation error: RCAR handshake Attest failed";
        let rows = [
            (Auth, 401, "ProtocolVersion", old, VersionMismatch),
            (Auth, 401, "AttestationError", new, VersionMismatch),
            (Auth, 500, "AttestationError", new, VersionMismatch),
            (Auth, 502, "AttestationError", new, VersionMismatch),
            (Auth, 502, "AttestationError", "RCAR handshake Auth failed: deserialize Request", AuthRefused),
            (Auth, 401, "FailedAuthentication", "session", AuthRefused),
            (Attest, 401, "MissingCookie", "", SessionLost),
            (Attest, 401, "ExpiredCookie", "", SessionLost),
            (Attest, 401, "AttestationError", "Attestation error: No cookie found", SessionLost),
            (Attest, 500, "AttestationError", "cookie not found", SessionLost),
            (Attest, 500, "AttestationError", "session expired", SessionLost),
            (
                Attest,
                401,
                "AttestationFailed",
                "REPORT_DATA is different from that in TDX Quote",
                AttestationRefused,
            ),
            (Attest, 502, "AttestationError", hidden, AttestationRefused),
            (Attest, 401, "TokenIssueFailed", "", ServerFault),
            (Resource, 401, "InvalidRequest", bearer, SessionLost),
            (Resource, 401, "InvalidRequest", "illegal path", BadRequest),
            (Resource, 401, "UnAuthenticatedCookie", "", SessionLost),
            (Resource, 401, "TokenNotFound", "Attestation Token not found", SessionLost),
            (Resource, 401, "TokenVerifierError", "", SessionLost),
            (Resource, 401, "PolicyReject", "Resource not permitted.", Denied),
            (Resource, 401, "PolicyDeny", "Access denied by policy", Denied),
            (Resource, 403, "PolicyDeny", "Access denied by policy", Denied),
            (Resource, 404, "ReadSecretFailed", "", NotFound),
            (Resource, 401, "PluginInternalError", "", NotFound),
            (Resource, 500, "PluginInternalError", "", NotFound),
            (Resource, 404, "InvalidRequestPath", "", BadRequest),
            (Resource, 404, "PluginNotFound", "", BadRequest),
            (Resource, 401, "PolicyEngineFailed", "", ServerFault),
            (Resource, 400, "JweError", "", KeyRefused),
            (Resource, 401, "JWEFailed", "", KeyRefused),
            (Resource, 401, "UserPublicKeyNotProvided", "", KeyRefused),
            (Attest, 401, "AttestationClaimsParseFailed", "", ServerFault),
            (Resource, 401, "PolicyEngine", "", ServerFault),
            (Resource, 500, "StorageBackendInitialization", "", ServerFault),
            (Auth, 500, "HTTPSFailed", "", ServerFault),
            (Auth, 400, "SerdeError", "", BadRequest),
            (Resource, 401, "TokenParseFailed", "", SessionLost),
            (Auth, 401, "AdminAuth", "Admin auth error", NotKbs),
            (Resource, 500, "SomethingNew", "", ServerFault),
        ];
        for (step, status, kind, detail, verdict) in rows {
            assert_eq!(judged(step, status, kind, detail), verdict, "{step} {status} {kind} {detail}");
        }
    }

    #[test]
    fn answers_that_are_not_the_brokers_are_told_by_status() {
        use Verdict::*;
        let rows = [
            (Step::Auth, 400, "Json deserialize error: invalid type", BadRequest),
            (Step::Auth, 404, "<html>404</html>", NotKbs),
            (Step::Auth, 401, "api key required", NotKbs),
            (Step::Resource, 403, "blocked by the firewall", NotKbs),
            (Step::Attest, 502, "<html>Bad Gateway</html>", ServerFault),
            (Step::Attest, 503, "", ServerFault),
            (Step::Auth, 429, "slow down", ServerFault),
            (Step::Attest, 413, "<html>Request Entity Too Large</html>", TooLarge),
        ];
        for (step, status, detail, verdict) in rows {
            assert_eq!(judged(step, status, "", detail), verdict, "{step} {status} {detail}");
        }
    }

    #[test]
    fn expected_version_is_read_from_both_texts() {
        let cases = [
            (
                "KBS Client Protocol Version Mismatch: expected version: <=0.1.0, requested version: 0.4.0",
                Some("0.1.0"),
            ),
            (
                "x KBS Client Protocol Version Mismatch: expect =0.1.0 while the request is 0.4.0",
                Some("0.1.0"),
            ),
            ("expect ^12.34.56", Some("12.34.56")),
            ("Version Mismatch: 0.1.0", None),
            ("expect =0.1 while ..", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(expected_version(text), expected, "{text}");
        }
    }
}
