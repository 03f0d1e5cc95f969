//! Whether a model is acceptable. Pure: what is pinned, what was seen, what is there, and what time it is come in; a
//! decision and what to remember come out.
//!
//! | configured | manifest | before | decision |
//! |---|---|---|---|
//! | a pin | none | | refused |
//! | a pin | other key or identity | | refused |
//! | a pin | as pinned | | accepted, authenticated |
//! | no pin | none | none seen | accepted, *not authenticated* |
//! | no pin | none | seen | refused: once there, it stays |
//! | no pin | any | other key seen | refused |
//! | no pin | any | the same or nothing | accepted, *not authenticated* |
//! | | as above | revision decreases, or stays with another identity | refused |
//!
//! A publisher key that is pinned anew replaces the one that was seen, and its revisions count from then on.

use std::path::Path;
use std::time::SystemTime;

use super::code::{Identity, Manifest};
use super::error::PolicyError;
use super::key::PublicKey;

/// What the operator wrote down about the model's origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pin {
    /// `model.publisher_key`.
    pub publisher: Option<PublicKey>,
    /// `model.manifest_sha256`.
    pub identity: Option<Identity>,
}

/// The last manifest that was accepted for a model key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Who signed it.
    pub publisher: PublicKey,
    /// Its revision.
    pub revision: u64,
    /// Its identity.
    pub identity: Identity,
}

/// What a model is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// What the operator wrote down.
    pub pin: Pin,
    /// What was accepted before.
    pub seen: Option<Seen>,
    /// The attestation token's time: the host controls the clock of its machines.
    pub now: Option<SystemTime>,
    /// The attestation policy of this machine.
    pub attestation_policy: &'a str,
}

/// Where an accepted model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// To be remembered; `None` without a manifest.
    pub seen: Option<Seen>,
    /// What the operator should know: that nobody vouches for the model.
    pub notice: Option<String>,
}

impl Policy<'_> {
    /// Judge a model by its manifest, or by having none.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn judge(&self, manifest: Option<&Manifest>) -> Result<Origin, PolicyError> {
        let Some(manifest) = manifest else { return self.without() };
        let found = Seen {
            publisher: manifest.publisher(),
            revision: manifest.contents().revision,
            identity: manifest.identity(),
        };
        let known = self.pin.publisher.or(self.seen.map(|seen| seen.publisher));
        if let Some(wanted) = known.filter(|key| *key != found.publisher) {
            return Err(PolicyError::OtherPublisher { wanted, found: found.publisher });
        }
        if let Some(wanted) = self.pin.identity.filter(|identity| *identity != found.identity) {
            return Err(PolicyError::OtherIdentity { wanted, found: found.identity });
        }
        if let Some(seen) = self.seen.filter(|seen| seen.publisher == found.publisher) {
            if found.revision < seen.revision {
                return Err(PolicyError::RolledBack { seen: seen.revision, found: found.revision });
            }
            if found.revision == seen.revision && found.identity != seen.identity {
                let revision = found.revision;
                return Err(PolicyError::Replaced { revision, seen: seen.identity, found: found.identity });
            }
        }
        if let Some(licence) = &manifest.contents().licence {
            licence.allows(self.now, self.attestation_policy)?;
        }
        let notice = (self.pin == Pin::default()).then(|| {
            format!("model origin not authenticated: it is signed by {}, which nothing pins", found.publisher)
        });
        Ok(Origin { seen: Some(found), notice })
    }

    fn without(&self) -> Result<Origin, PolicyError> {
        if self.pin != Pin::default() {
            return Err(PolicyError::Required);
        }
        match self.seen {
            Some(seen) => Err(PolicyError::Gone { revision: seen.revision }),
            None => Ok(Origin {
                seen: None,
                notice: Some("model origin not authenticated: it has no signed manifest".into()),
            }),
        }
    }
}

impl Manifest {
    /// Hold a list of objects against the manifest: every one it names must be there with its length. Others may be there;
    /// what is not named is no part of the model.
    ///
    /// # Errors
    /// [`PolicyError::Objects`].
    pub fn check_list<'a>(&self, objects: impl Iterator<Item = (&'a Path, u64)>) -> Result<(), PolicyError> {
        let found: std::collections::HashMap<&Path, u64> = objects.collect();
        let (mut count, mut first) = (0, None);
        for object in &self.contents().objects {
            let problem = match found.get(object.path.as_path()) {
                Some(&len) if len == object.len => continue,
                Some(len) => format!("{} with {len} bytes instead of {}", object.path.display(), object.len),
                None => format!("{}, which is missing", object.path.display()),
            };
            count += 1;
            first.get_or_insert(problem);
        }
        match first {
            Some(first) => Err(PolicyError::Objects { count, first }),
            None => Ok(()),
        }
    }
}
