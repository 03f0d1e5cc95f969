//! Which protocol version to speak, and with which key algorithm: no broker negotiates, each only rejects.
//!
//! The version that a broker has been found to speak is kept for the life of the client, so that the next handshake starts
//! there. Nobody has signed a rejection: over plain http anybody on the way can send one and choose the oldest version.
//! `trustee.protocol` pins the version against that; without a pin a version older than the newest is reported as a
//! downgrade, here and in [`super::Facts`].
//!
//! Source: kbs.md section 2.5.

use std::sync::{Mutex, PoisonError};

use super::error::KbsError;
use super::key::KeyAlg;
use super::wire::Dialect;
use crate::config::{KeyAlgorithm, Protocol, Trustee};

/// One version, with the key algorithm that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) dialect: Dialect,
    pub(super) algorithm: KeyAlg,
}

/// What the operator allows, and what the broker has been found to speak.
pub(super) struct Negotiation {
    pinned: Option<Dialect>,
    algorithm: KeyAlgorithm,
    found: Mutex<Option<Dialect>>,
}

impl Negotiation {
    /// As configured.
    ///
    /// # Errors
    /// [`KbsError::KeyAlgorithm`] when no version that is allowed has the chosen algorithm.
    pub(super) fn new(config: &Trustee) -> Result<Self, KbsError> {
        let pinned = match config.protocol {
            Protocol::Auto => None,
            Protocol::V0_1_0 => Some(Dialect::V0_1_0),
            Protocol::V0_1_1 => Some(Dialect::V0_1_1),
            Protocol::V0_2_0 => Some(Dialect::V0_2_0),
            Protocol::V0_4_0 => Some(Dialect::V0_4_0),
        };
        let negotiation = Negotiation { pinned, algorithm: config.key_algorithm, found: Mutex::default() };
        negotiation.offer(negotiation.first_dialect())?;
        Ok(negotiation)
    }

    /// What to offer first.
    pub(super) fn first(&self) -> Result<Offer, KbsError> {
        self.offer(self.first_dialect())
    }

    /// What to offer after `first` was refused: the version the refusal names, or, where it may be about the version
    /// without saying so (some releases hide the cause), the oldest. `None` when there is nothing left to try.
    ///
    /// # Errors
    /// [`KbsError::KeyAlgorithm`] when the version asked for does not have the operator's algorithm.
    pub(super) fn second(&self, first: Offer, refused: &KbsError) -> Result<Option<Offer>, KbsError> {
        if self.pinned.is_some() {
            return Ok(None);
        }
        match refused {
            KbsError::VersionMismatch { expected, .. } => {
                let expected = expected.as_deref().and_then(Dialect::of_version);
                expected
                    .filter(|second| *second != first.dialect)
                    .map(|second| self.offer(second))
                    .transpose()
            }
            // A guess: where the algorithm rules it out, the refusal says more than the configuration error would.
            KbsError::AuthRefused { .. } if first.dialect == Dialect::NEWEST => {
                Ok(self.offer(Dialect::V0_1_0).ok())
            }
            // A broker that spoke an old version may have been upgraded.
            KbsError::AuthRefused { .. } => Ok(self.offer(Dialect::NEWEST).ok()),
            _ => Ok(None),
        }
    }

    /// Start there next time.
    pub(super) fn remember(&self, dialect: Dialect) {
        let known = self.found.lock().unwrap_or_else(PoisonError::into_inner).replace(dialect);
        if known != Some(dialect) && self.is_downgrade(dialect) {
            tracing::warn!(
                event = "kbs.downgraded",
                dialect = dialect.version(),
                newest = Dialect::NEWEST.version(),
                "whoever answers as the key broker asked for an old protocol version; pin it with trustee.protocol if that \
                 is right, upgrade the key broker if it can be"
            );
        }
    }

    /// Whether `dialect` is older than cai offered of its own accord, with no pin to say that this is wanted.
    pub(super) fn is_downgrade(&self, dialect: Dialect) -> bool {
        self.pinned.is_none() && dialect != Dialect::NEWEST
    }

    fn first_dialect(&self) -> Dialect {
        let found = || *self.found.lock().unwrap_or_else(PoisonError::into_inner);
        self.pinned.or_else(found).unwrap_or(Dialect::NEWEST)
    }

    fn offer(&self, dialect: Dialect) -> Result<Offer, KbsError> {
        let algorithm = KeyAlg::chosen(self.algorithm, dialect);
        let unknown = || KbsError::KeyAlgorithm { chosen: name(self.algorithm), protocol: dialect.version() };
        Ok(Offer { dialect, algorithm: algorithm.ok_or_else(unknown)? })
    }
}

/// What the operator wrote.
fn name(choice: KeyAlgorithm) -> &'static str {
    KeyAlg::chosen(choice, Dialect::NEWEST).map_or("auto", KeyAlg::name)
}
