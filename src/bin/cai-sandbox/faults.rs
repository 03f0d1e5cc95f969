//! The faults a test can switch on, and their exact counting.
//!
//! `PUT {control}/faults` takes a JSON array that replaces the whole set; `GET` gives it back with what is
//! left. One fault:
//!
//! ```json
//! {"do": {"oss_cut_body": {"after": 4096}}, "on": ["get"], "match": "shard-1", "skip": 1, "times": 2}
//! ```
//!
//! `do` is the act. `on` narrows it to some operations (default: all that the act has a meaning for). `match`
//! is a substring of the subject: the object key (the `prefix` for listings), or the resource path
//! `default/aliyun/NAME` (empty for the others). `skip` lets that many matching requests through first,
//! `times` ends it (default: never). A fault counts only when it took effect. Of several faults with the same
//! place in the answer the first one acts.
//!
//! | act | effect |
//! |---|---|
//! | `kbs_drop` | the connection is closed without an answer |
//! | `kbs_status {status}` | a load balancer's HTML page with that status |
//! | `kbs_redirect {location}` | 302 |
//! | `kbs_delay {millis}` | the answer comes that much later |
//! | `kbs_oversize {bytes}` | 200 with that many bytes of JSON white space |
//! | `kbs_wrong_nonce` | auth: the nonce sent is not the one of the session |
//! | `kbs_short_nonce` | auth: a nonce of 8 bytes |
//! | `kbs_token_nonce` | attest: the token carries another nonce than the session's |
//! | `kbs_token_key` | attest: the token is about another TEE key than the one attested |
//! | `kbs_token_signature` | attest, evaluate: the token's signature is not its signer's |
//! | `kbs_token_expired` | attest, evaluate: the token had expired an hour ago |
//! | `kbs_refuse_evidence` | attest, evaluate: the verifier says no |
//! | `as_contraindicate` | evaluate: the policy says no: status `contraindicated`, or no token where it has no such word |
//! | `as_other_data`, `as_other_policy` | evaluate: the token is about other runtime data, under another policy |
//! | `as_token_life {secs}` | evaluate: the token lives so long |
//! | `as_garbage` | evaluate: the answer is no token |
//! | `kbs_expire_session` | attest, resource: the session and the tokens presented count as expired |
//! | `kbs_lose_session` | attest, resource: the session is not known (another replica has it); tokens still count |
//! | `kbs_deny` | resource: the policy denies it |
//! | `kbs_bad_tag` | resource: the JWE's authentication tag is wrong |
//! | `kbs_swap_key` | resource: the JWE is to another key of the same kind (P-256 only) |
//! | `oss_drop`, `oss_reset` | the connection is closed (FIN) or reset (RST) without an answer |
//! | `oss_error {status, code, ec}` | an error answer of OSS (429 QpsLimitExceeded, 403 AccessDenied, 404 NoSuchKey, ...); `ec` may be left out |
//! | `oss_delay {millis}` | the answer comes that much later |
//! | `oss_remove` | the object is deleted before it is looked at |
//! | `oss_replace` | the object gets other content of the same length (every byte inverted), so a new ETag and CRC |
//! | `oss_truncate {len}` | the object is cut to `len` bytes, with a new ETag and CRC |
//! | `oss_cut_body {after}` | get: exactly `after` body bytes are sent, then the connection is closed |
//! | `oss_reset_body {after}` | get: the same with RST (the peer may lose bytes not yet read) |
//! | `oss_stall_body {after}` | get: the same, but the connection stays open in silence |
//! | `oss_slow_body {bytes_per_sec}` | get: the body is paced |
//! | `oss_flip_byte {at}` | get: body byte `at` is inverted, headers as if it were right |
//! | `oss_wrong_crc` | get, head, put, multipart: `x-oss-hash-crc64ecma` is wrong |
//! | `oss_no_crc` | get, head: `x-oss-hash-crc64ecma` is missing |
//! | `oss_ignore_range` | get: 200 and the whole object instead of 206 |
//! | `oss_qos_delay {millis}` | get, head, put, list: the `x-oss-qos-delay-time` header |
//! | `cloud_drop`, `cloud_status {status}` | token, role, credential (metadata service), assume (STS): no answer, that status |
//!
//! One mutex, held for a scan of the set. Tested below and in `tests/sandbox_kbs.rs`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Op {
    Auth,
    Attest,
    Resource,
    /// The attestation service, about evidence.
    Evaluate,
    List,
    Head,
    Get,
    Put,
    Delete,
    Multipart,
    Token,
    Role,
    Credential,
    Assume,
    /// Whatever is none of these; no fault applies.
    Other,
}

impl Op {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Op::Auth => "auth",
            Op::Attest => "attest",
            Op::Resource => "resource",
            Op::Evaluate => "evaluate",
            Op::List => "list",
            Op::Head => "head",
            Op::Get => "get",
            Op::Put => "put",
            Op::Delete => "delete",
            Op::Multipart => "multipart",
            Op::Token => "token",
            Op::Role => "role",
            Op::Credential => "credential",
            Op::Assume => "assume",
            Op::Other => "other",
        }
    }

    fn is_kbs(self) -> bool {
        matches!(self, Op::Auth | Op::Attest | Op::Resource | Op::Evaluate)
    }

    fn is_cloud(self) -> bool {
        matches!(self, Op::Token | Op::Role | Op::Credential | Op::Assume)
    }

    fn is_oss(self) -> bool {
        !self.is_kbs() && !self.is_cloud() && self != Op::Other
    }
}

/// What goes wrong; the table in the module header says how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Act {
    KbsDrop,
    KbsStatus {
        status: u16,
    },
    KbsRedirect {
        location: String,
    },
    KbsDelay {
        millis: u64,
    },
    KbsOversize {
        bytes: u64,
    },
    KbsWrongNonce,
    KbsShortNonce,
    KbsTokenNonce,
    KbsTokenKey,
    KbsTokenSignature,
    KbsTokenExpired,
    KbsRefuseEvidence,
    AsContraindicate,
    AsOtherData,
    AsOtherPolicy,
    AsTokenLife {
        secs: u64,
    },
    AsGarbage,
    KbsExpireSession,
    KbsLoseSession,
    KbsDeny,
    KbsBadTag,
    KbsSwapKey,
    OssDrop,
    OssReset,
    OssError {
        status: u16,
        code: String,
        #[serde(default)]
        ec: String,
    },
    OssDelay {
        millis: u64,
    },
    OssRemove,
    OssReplace,
    OssTruncate {
        len: u64,
    },
    OssCutBody {
        after: u64,
    },
    OssResetBody {
        after: u64,
    },
    OssStallBody {
        after: u64,
    },
    OssSlowBody {
        bytes_per_sec: u64,
    },
    OssFlipByte {
        at: u64,
    },
    OssWrongCrc,
    OssNoCrc,
    OssIgnoreRange,
    OssQosDelay {
        millis: u64,
    },
    CloudDrop,
    CloudStatus {
        status: u16,
    },
}

/// Where in a request's life an act takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Before anything: waiting.
    Delay,
    /// Instead of the answer.
    Instead,
    /// A change of state before the request is looked at.
    State,
    /// The nonce of a challenge.
    Challenge,
    /// The verdict on evidence, or the token.
    Verdict,
    /// The decision on, or the envelope of, a resource.
    Release,
    /// The form of a successful OSS answer's header.
    Header,
    /// The body of an object.
    Body,
}

impl Act {
    pub(crate) fn place(&self) -> Place {
        match self {
            Act::KbsDelay { .. } | Act::OssDelay { .. } => Place::Delay,
            Act::KbsDrop
            | Act::KbsStatus { .. }
            | Act::KbsRedirect { .. }
            | Act::KbsOversize { .. }
            | Act::OssDrop
            | Act::OssReset
            | Act::OssError { .. }
            | Act::CloudDrop
            | Act::CloudStatus { .. } => Place::Instead,
            Act::KbsExpireSession
            | Act::KbsLoseSession
            | Act::OssRemove
            | Act::OssReplace
            | Act::OssTruncate { .. } => Place::State,
            Act::KbsWrongNonce | Act::KbsShortNonce => Place::Challenge,
            Act::KbsTokenNonce
            | Act::KbsTokenKey
            | Act::KbsTokenSignature
            | Act::KbsTokenExpired
            | Act::KbsRefuseEvidence
            | Act::AsContraindicate
            | Act::AsOtherData
            | Act::AsOtherPolicy
            | Act::AsTokenLife { .. }
            | Act::AsGarbage => Place::Verdict,
            Act::KbsDeny | Act::KbsBadTag | Act::KbsSwapKey => Place::Release,
            Act::OssWrongCrc | Act::OssNoCrc | Act::OssIgnoreRange | Act::OssQosDelay { .. } => Place::Header,
            Act::OssCutBody { .. }
            | Act::OssResetBody { .. }
            | Act::OssStallBody { .. }
            | Act::OssSlowBody { .. }
            | Act::OssFlipByte { .. } => Place::Body,
        }
    }

    fn applies_to(&self, op: Op) -> bool {
        match self {
            Act::KbsDrop
            | Act::KbsStatus { .. }
            | Act::KbsRedirect { .. }
            | Act::KbsDelay { .. }
            | Act::KbsOversize { .. } => op.is_kbs(),
            Act::KbsWrongNonce | Act::KbsShortNonce => op == Op::Auth,
            Act::KbsTokenNonce | Act::KbsTokenKey => op == Op::Attest,
            Act::KbsTokenSignature | Act::KbsTokenExpired | Act::KbsRefuseEvidence => {
                matches!(op, Op::Attest | Op::Evaluate)
            }
            Act::AsContraindicate
            | Act::AsOtherData
            | Act::AsOtherPolicy
            | Act::AsTokenLife { .. }
            | Act::AsGarbage => op == Op::Evaluate,
            Act::KbsExpireSession | Act::KbsLoseSession => matches!(op, Op::Attest | Op::Resource),
            Act::KbsDeny | Act::KbsBadTag | Act::KbsSwapKey => op == Op::Resource,
            Act::OssDrop | Act::OssReset | Act::OssError { .. } | Act::OssDelay { .. } => op.is_oss(),
            Act::OssRemove | Act::OssReplace | Act::OssTruncate { .. } => matches!(op, Op::Get | Op::Head),
            Act::OssWrongCrc => matches!(op, Op::Get | Op::Head | Op::Put | Op::Multipart),
            Act::OssNoCrc => matches!(op, Op::Get | Op::Head),
            Act::CloudDrop | Act::CloudStatus { .. } => op.is_cloud(),
            Act::OssQosDelay { .. } => matches!(op, Op::Get | Op::Head | Op::Put | Op::List),
            Act::OssIgnoreRange
            | Act::OssCutBody { .. }
            | Act::OssResetBody { .. }
            | Act::OssStallBody { .. }
            | Act::OssSlowBody { .. }
            | Act::OssFlipByte { .. } => op == Op::Get,
        }
    }
}

/// One switched-on fault and its counters.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    #[serde(rename = "do")]
    act: Act,
    #[serde(default)]
    on: Vec<Op>,
    #[serde(default, rename = "match")]
    subject: String,
    #[serde(default)]
    skip: u64,
    #[serde(default)]
    times: Option<u64>,
    #[serde(default, skip_deserializing)]
    fired: u64,
}

/// The set of faults.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    fn set(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the set by the JSON array `text`.
    ///
    /// # Errors A sentence for the tester: not an array of faults, or a fault that could never act where it
    /// is switched on.
    pub(crate) fn replace(&self, text: &[u8]) -> Result<(), String> {
        let faults: Vec<Fault> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        for fault in &faults {
            if let Some(op) = fault.on.iter().find(|op| !fault.act.applies_to(**op)) {
                return Err(format!("{:?} never acts on {}", fault.act, op.word()));
            }
            if let Act::OssSlowBody { bytes_per_sec: 0 } = fault.act {
                return Err("bytes_per_sec is 0: use oss_stall_body".to_owned());
            }
            if let Act::KbsStatus { status } | Act::OssError { status, .. } | Act::CloudStatus { status } =
                fault.act
                && !(400..=599).contains(&status)
            {
                return Err(format!("{status} is not an error status"));
            }
        }
        *self.set() = faults;
        Ok(())
    }

    /// The set as JSON, with what is left of each fault and how often it fired.
    pub(crate) fn snapshot(&self) -> Vec<Fault> {
        self.set().clone()
    }

    /// The first fault at `place` that matches; it counts as fired.
    pub(crate) fn take(&self, place: Place, op: Op, subject: &str) -> Option<Act> {
        self.take_if(place, op, subject, |_| true)
    }

    /// As [`Faults::take`], only for an act that `can_act` says would take effect.
    pub(crate) fn take_if(
        &self,
        place: Place,
        op: Op,
        subject: &str,
        can_act: impl Fn(&Act) -> bool,
    ) -> Option<Act> {
        let mut set = self.set();
        for fault in set.iter_mut() {
            let matches = fault.act.place() == place
                && fault.act.applies_to(op)
                && (fault.on.is_empty() || fault.on.contains(&op))
                && subject.contains(&fault.subject)
                && fault.times != Some(0)
                && can_act(&fault.act);
            if !matches {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times = fault.times.map(|left| left - 1);
            fault.fired += 1;
            return Some(fault.act.clone());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Faults {
        let faults = Faults::default();
        faults.replace(text.as_bytes()).unwrap();
        faults
    }

    #[test]
    fn fault_with_skip_and_times_fires_exactly_then() {
        let faults = faults(r#"[{"do":{"oss_cut_body":{"after":7}},"match":"shard","skip":1,"times":2}]"#);
        let fired: Vec<bool> =
            (0..5).map(|_| faults.take(Place::Body, Op::Get, "a/shard-1").is_some()).collect();
        assert_eq!(fired, [false, true, true, false, false]);
        let left = serde_json::to_value(faults.snapshot()).unwrap();
        assert_eq!(left[0]["times"], 0);
        assert_eq!(left[0]["fired"], 2);
    }

    #[test]
    fn fault_for_another_subject_or_operation_does_not_count() {
        let faults = faults(r#"[{"do":"oss_reset","on":["get"],"match":"b","times":1}]"#);
        assert_eq!(faults.take(Place::Instead, Op::Get, "a"), None);
        assert_eq!(faults.take(Place::Instead, Op::Head, "b"), None);
        assert_eq!(faults.take(Place::Instead, Op::Get, "b"), Some(Act::OssReset));
        assert_eq!(faults.take(Place::Instead, Op::Get, "b"), None);
    }

    #[test]
    fn replace_with_a_fault_that_cannot_act_is_refused() {
        let faults = faults(r#"[{"do":"kbs_drop"}]"#);
        for text in [
            r#"[{"do":"kbs_deny","on":["auth"]}]"#,
            r#"[{"do":"oss_cut_body"}]"#,
            r#"[{"do":{"oss_cut_body":{"after":1,"more":2}}}]"#,
            r#"[{"do":"kbs_drop","time":1}]"#,
            r#"[{"do":"no_such_act"}]"#,
            r#"[{"do":{"oss_slow_body":{"bytes_per_sec":0}}}]"#,
            r#"[{"do":{"kbs_status":{"status":200}}}]"#,
            r#"{"do":"kbs_drop"}"#,
        ] {
            assert!(faults.replace(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(
            faults.take(Place::Instead, Op::Auth, ""),
            Some(Act::KbsDrop),
            "a refused set changes nothing"
        );
    }
}
