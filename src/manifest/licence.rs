//! The licence in a manifest: what the owner allows, under the same signature.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::code::Cursor;
use super::error::{ManifestError, PolicyError};

/// Longest id, licensee and policy, in bytes.
const LONGEST_NAME: usize = 256;
/// Longest free text, in bytes.
const LONGEST_TEXT: usize = 16 << 10;
/// "not after" of a licence without an end.
const NO_END: u64 = u64::MAX;

/// What the owner allows. Times are whole seconds since 1970, ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Licence {
    /// The owner's name for it.
    pub id: String,
    /// Whom it was given to.
    pub licensee: String,
    /// Attestation policy the machine must have satisfied; empty for any.
    pub policy: String,
    /// Anything the owner wants to say.
    pub text: String,
    /// First second of validity, if it has one.
    pub not_before: Option<u64>,
    /// Last second of validity, if it has one.
    pub not_after: Option<u64>,
}

impl Licence {
    pub(super) fn encode(&self) -> Result<Vec<u8>, ManifestError> {
        let mut bytes = Vec::new();
        for text in [&self.id, &self.licensee, &self.policy, &self.text] {
            let len =
                u16::try_from(text.len()).map_err(|_| ManifestError::Licence { what: "text is too long" })?;
            bytes.extend(len.to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(self.not_before.unwrap_or(0).to_be_bytes());
        bytes.extend(self.not_after.unwrap_or(NO_END).to_be_bytes());
        Ok(bytes)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let refuse = |what| ManifestError::Licence { what };
        let mut cursor = Cursor::new(bytes);
        let mut text = || {
            let len = usize::from(cursor.u16()?);
            let text = std::str::from_utf8(cursor.take(len)?).map_err(|_| refuse("text is not UTF-8"))?;
            Ok::<_, ManifestError>(text.to_owned())
        };
        let (id, licensee, policy, text) = (text()?, text()?, text()?, text()?);
        let (not_before, not_after) = (cursor.u64()?, cursor.u64()?);
        cursor.end()?;
        let licence = Licence {
            id,
            licensee,
            policy,
            text,
            not_before: (not_before != 0).then_some(not_before),
            not_after: (not_after != NO_END).then_some(not_after),
        };
        licence.check()?;
        Ok(licence)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let refuse = |what| Err(ManifestError::Licence { what });
        if self.id.is_empty() || self.licensee.is_empty() {
            return refuse("id or licensee is empty");
        }
        let names = [&self.id, &self.licensee, &self.policy];
        if names.iter().any(|name| name.len() > LONGEST_NAME || name.chars().any(char::is_control)) {
            return refuse("id, licensee or policy is over 256 bytes or has control characters");
        }
        let breaks = |c: char| c == '\n' || c == '\t';
        if self.text.len() > LONGEST_TEXT || self.text.chars().any(|c| c.is_control() && !breaks(c)) {
            return refuse("text is over 16 KiB or has control characters");
        }
        if self.not_before.unwrap_or(0) > self.not_after.unwrap_or(NO_END) {
            return refuse("validity ends before it begins");
        }
        Ok(())
    }

    /// Whether it allows the model at `now` on a machine that satisfied `policy`. `now` must be a time that the host cannot
    /// choose; `None` when there is none.
    ///
    /// # Errors
    /// [`PolicyError::NoTime`], [`PolicyError::NotYetValid`], [`PolicyError::Expired`], [`PolicyError::OtherPolicy`].
    pub fn allows(&self, now: Option<SystemTime>, policy: &str) -> Result<(), PolicyError> {
        let id = || self.id.clone();
        if !self.policy.is_empty() && self.policy != policy {
            let (asks, has) = (self.policy.clone(), policy.to_owned());
            return Err(PolicyError::OtherPolicy { id: id(), asks, has });
        }
        if self.not_before.is_none() && self.not_after.is_none() {
            return Ok(());
        }
        let now = now.ok_or_else(|| PolicyError::NoTime { id: id() })?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        match (self.not_before, self.not_after) {
            (Some(from), _) if now < from => Err(PolicyError::NotYetValid { id: id(), from }),
            (_, Some(until)) if now > until => Err(PolicyError::Expired { id: id(), until }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::manifest) fn sample() -> Licence {
        Licence {
            id: "LD-0001".into(),
            licensee: "Example GmbH".into(),
            policy: "default".into(),
            text: "one line\nand another".into(),
            not_before: Some(1_000),
            not_after: Some(2_000),
        }
    }

    fn at(secs: u64) -> Option<SystemTime> {
        Some(UNIX_EPOCH + Duration::from_secs(secs))
    }

    #[test]
    fn licence_is_valid_from_its_first_to_its_last_second() {
        let allows = |secs| sample().allows(at(secs), "default");
        assert_eq!(allows(999), Err(PolicyError::NotYetValid { id: "LD-0001".into(), from: 1_000 }));
        assert_eq!(allows(1_000), Ok(()));
        assert_eq!(allows(2_000), Ok(()));
        assert_eq!(allows(2_001), Err(PolicyError::Expired { id: "LD-0001".into(), until: 2_000 }));
        assert_eq!(sample().allows(None, "default"), Err(PolicyError::NoTime { id: "LD-0001".into() }));
        let unlimited = Licence { not_before: None, not_after: None, ..sample() };
        assert_eq!(unlimited.allows(None, "default"), Ok(()));
    }

    #[test]
    fn licence_for_another_attestation_policy_is_refused() {
        let refused = sample().allows(at(1_500), "lax");
        assert!(
            matches!(refused, Err(PolicyError::OtherPolicy { asks, has, .. }) if asks == "default" && has == "lax")
        );
        let any = Licence { policy: String::new(), ..sample() };
        assert_eq!(any.allows(at(1_500), "lax"), Ok(()));
    }

    #[test]
    fn licence_that_could_confuse_a_reader_is_refused() {
        let long = "x".repeat(257);
        for bad in [
            Licence { id: String::new(), ..sample() },
            Licence { licensee: String::new(), ..sample() },
            Licence { id: "a\u{1b}[2J".into(), ..sample() },
            Licence { policy: long, ..sample() },
            Licence { text: "bell\u{7}".into(), ..sample() },
            Licence { text: "x".repeat(16_385), ..sample() },
            Licence { not_before: Some(2_001), ..sample() },
        ] {
            let bytes = bad.encode().unwrap();
            assert!(matches!(Licence::decode(&bytes), Err(ManifestError::Licence { .. })), "{bad:?}");
        }
        let good = sample().encode().unwrap();
        assert_eq!(Licence::decode(&good).unwrap(), sample());
        for len in 0..good.len() {
            assert!(Licence::decode(&good[..len]).is_err(), "{len} bytes");
        }
        assert!(Licence::decode(&[&good[..], &[0]].concat()).is_err());
    }
}
