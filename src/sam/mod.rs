//! Models in a vendor's closed format (SAM), decrypted by the vendor's runtime behind a small contract: `cai-decryptor(7)`.
//!
//! Owns: which program may be the adapter ([`adapter`]), what is said with the process that keeps it ([`keeper`]), and what can
//! go wrong with it ([`SamError`]). Must not know: the format, which nobody outside the vendor knows; how the process is
//! confined (`bin/cai-helper/decryptor.rs`, `bin/cai-helper/keeper.rs`). One thread for each [`keeper::Keeper`], which
//! waits for what it is told. Tested in `tests/sam.rs`.

pub mod adapter;
pub mod keeper;

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::error::{ErrorClass, Fault};
use keeper::End;

/// Who the adapter runs as; made by the package (sysusers).
pub const USER: &str = "cai-decryptor";

/// Lengths in bytes that the vendor's packager takes for a key.
pub const KEY_BYTES: RangeInclusive<usize> = 4..=128;

/// The adapter did not do what it is for.
#[derive(Debug, thiserror::Error)]
pub enum SamError {
    /// The broker released something that is no key of the format.
    #[error("the released key has {len} bytes, expected {} to {}", KEY_BYTES.start(), KEY_BYTES.end())]
    KeyLength {
        /// Its length in bytes.
        len: usize,
    },
    /// It is still not ready.
    #[error("the adapter was not ready within {} s", after.as_secs())]
    NotReady {
        /// The operator's limit.
        after: Duration,
    },
    /// It ended instead of becoming ready.
    #[error("the adapter ended before it was ready: {end}")]
    Exited {
        /// How.
        end: End,
    },
    /// It ended while the model was served.
    #[error("the adapter ended while the model was served: {end}")]
    Crashed {
        /// How.
        end: End,
    },
    /// It ended, and others that it had started went on holding the mount.
    #[error("the adapter ended ({end}) and left {count} processes behind that could hold its mount")]
    Leaked {
        /// How it ended.
        end: End,
        /// How many; they were killed.
        count: u32,
    },
    /// The line to its keeper could not be had.
    #[error("talking to the process that keeps the adapter")]
    Line(#[source] std::io::Error),
}

impl SamError {
    /// What an adapter's end means that came before it was ready.
    pub fn exited(end: End) -> Self {
        match end.left_behind() {
            0 => SamError::Exited { end },
            count => SamError::Leaked { end, count },
        }
    }

    /// What an adapter's end means while the model is served.
    pub fn crashed(end: End) -> Self {
        match end.left_behind() {
            0 => SamError::Crashed { end },
            count => SamError::Leaked { end, count },
        }
    }
}

impl Fault for SamError {
    fn class(&self) -> ErrorClass {
        match self {
            SamError::KeyLength { .. } | SamError::Leaked { .. } => ErrorClass::Config,
            SamError::NotReady { .. } => ErrorClass::Transient,
            SamError::Exited { end } | SamError::Crashed { end } => end.class(),
            SamError::Line(_) => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            SamError::KeyLength { .. } => "sam.key-length",
            SamError::NotReady { .. } => "sam.not-ready",
            SamError::Exited { .. } => "sam.adapter-exited",
            SamError::Crashed { .. } => "sam.adapter-crashed",
            SamError::Leaked { .. } => "sam.leaked",
            SamError::Line(_) => "sam.line",
        }
    }

    fn hint(&self) -> String {
        match self {
            SamError::KeyLength { .. } => {
                "store in the Trustee (KMS) exactly the key that the model was packaged with; a newline at its end counts"
            }
            SamError::NotReady { .. } => {
                "see what it waits for: journalctl -u 'cai-decryptor@*'; or raise sam.ready_timeout_secs"
            }
            SamError::Exited { .. } | SamError::Crashed { .. } => {
                "see what it said: journalctl -u 'cai-decryptor@*'; exit statuses are in cai-decryptor(7)"
            }
            SamError::Leaked { .. } => "an adapter must stay in the foreground and wait for what it starts: cai-decryptor(7)",
            SamError::Line(_) => "see the journal for cai-helper and cai-decryptor",
        }
        .into()
    }
}
