//! One access key as requests are signed with it.

use std::time::{Duration, SystemTime};

use subtle::ConstantTimeEq as _;

use super::error::OssError;
use crate::config::OssCredentials;
use crate::keyring::Secret;

/// How long before its end a temporary key is renewed. Source: ossfs 1.x and 2.x (oss.md 1.9).
const RENEW_AHEAD: Duration = Duration::from_secs(20 * 60);
/// How long before its end a temporary key is used no more: a request has to arrive while it is valid.
const USE_AHEAD: Duration = Duration::from_secs(10);

/// An access key, lasting or temporary.
pub struct Credential {
    /// AccessKey ID.
    pub id: String,
    /// AccessKey secret.
    pub secret: Secret,
    /// Session token of a temporary key.
    pub token: Option<Secret>,
    /// Its life, where that is known.
    pub life: Option<Life>,
}

/// From when to when a temporary key is valid.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// When it was received.
    pub start: SystemTime,
    /// When OSS begins to refuse it.
    pub end: SystemTime,
}

impl Life {
    /// Time left at `now` before `ahead` of the end; of a short life at most the last third, or twentieth, counts.
    fn left(&self, now: SystemTime, ahead: Duration, share: u32) -> Duration {
        let whole = self.end.duration_since(self.start).unwrap_or_default();
        let ahead = ahead.min(whole / share);
        let left = self.end.duration_since(now).unwrap_or_default();
        left.saturating_sub(ahead)
    }

    /// Time until it should be renewed.
    pub fn until_renewal(&self, now: SystemTime) -> Duration {
        self.left(now, RENEW_AHEAD, 3)
    }

    /// Time for which requests that are sent still arrive while it is valid.
    pub fn usable_for(&self, now: SystemTime) -> Duration {
        self.left(now, USE_AHEAD, 20)
    }

    /// Whether a request that is sent at `now` still arrives in time.
    pub fn is_usable(&self, now: SystemTime) -> bool {
        self.usable_for(now) > Duration::ZERO
    }
}

impl Credential {
    /// A copy of what the configuration holds.
    ///
    /// # Errors
    /// `CredentialMemory`.
    pub fn copy_of(key: &OssCredentials) -> Result<Self, OssError> {
        let copy = |secret: &Secret| {
            secret.with(Secret::copy_of).map_err(|error| OssError::CredentialMemory(Box::new(error)))
        };
        let token = key.session_token.as_ref().map(copy).transpose()?;
        Ok(Credential {
            id: key.access_key_id.clone(),
            secret: copy(&key.secret_access_key)?,
            token,
            life: None,
        })
    }

    /// Whether both are the same key with the same token.
    pub fn is_same(&self, other: &Credential) -> bool {
        let equal = |a: &Secret, b: &Secret| a.with(|a| b.with(|b| bool::from(a.ct_eq(b))));
        let tokens = match (&self.token, &other.token) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => equal(ours, theirs),
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.id == other.id && equal(&self.secret, &other.secret) && tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[test]
    fn long_life_is_renewed_twenty_minutes_before_its_end() {
        let life = Life { start: at(0), end: at(6 * 3600) };
        assert_eq!(life.until_renewal(at(3600)), Duration::from_secs(5 * 3600 - 1200));
        assert_eq!(life.until_renewal(at(6 * 3600 - 1200)), Duration::ZERO);
        assert!(life.is_usable(at(6 * 3600 - 11)));
        assert!(!life.is_usable(at(6 * 3600 - 10)));
        assert!(!life.is_usable(at(7 * 3600)));
    }

    #[test]
    fn short_life_is_used_for_its_greater_part() {
        let life = Life { start: at(0), end: at(60) };
        assert_eq!(life.until_renewal(at(0)), Duration::from_secs(40));
        assert!(life.is_usable(at(56)) && !life.is_usable(at(57)));
        let over = Life { start: at(60), end: at(0) };
        assert!(!over.is_usable(at(60)) && over.until_renewal(at(60)) == Duration::ZERO);
    }
}
