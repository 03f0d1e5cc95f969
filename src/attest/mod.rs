//! Prove who we are: evidence from the TEE, bound to one challenge.
//!
//! Owns: detection of the platform and collection of evidence. Must not know: the key broker's wire format beyond the
//! evidence object itself, any socket to a network. No threads and no locks of its own; collection blocks its caller.
//! Tested beside the code and, with a broker at the other end, in `tests/kbs_protocol.rs`.

use std::sync::Arc;

use serde_json::value::RawValue;

use crate::config::TeeChoice;
use crate::error::{ErrorClass, Fault};

#[cfg(feature = "sandbox")]
mod sample;
#[cfg(not(feature = "sandbox"))]
#[path = "no_sample.rs"]
mod sample;

/// Trusted execution environment, by the name Trustee uses for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tee {
    /// Intel Trust Domain Extensions.
    Tdx,
    /// Trustee's stand-in for tests; proves nothing. Exists only with feature `sandbox`.
    Sample,
}

impl Tee {
    /// Name on the wire (kbs.md section 2.1).
    pub const fn name(self) -> &'static str {
        match self {
            Tee::Tdx => "tdx",
            Tee::Sample => "sample",
        }
    }
}

/// SHA-384 that binds evidence to a challenge (kbs.md section 3); TDX pads it with zeros to its 64 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 48]);

/// Something that can produce evidence about this machine.
///
/// Blocking: quote generation is system calls and a slow quoting enclave. Call from `spawn_blocking`.
pub trait Attester: Send + Sync + 'static {
    /// Which TEE this is.
    fn tee(&self) -> Tee;

    /// Where the evidence comes from, for the status: `configfs-tsm`, `sample`.
    fn provider(&self) -> &'static str;

    /// Primary evidence object bound to `digest`, as the JSON object Trustee's verifier reads (kbs.md 7.1, 8).
    ///
    /// # Errors
    /// [`AttestError`] with the path or call that failed.
    fn evidence(&self, digest: &Digest) -> Result<Box<RawValue>, AttestError>;
}

/// The attester of this machine, as the operator chose it.
///
/// The sample attester is returned for [`TeeChoice::Sample`] only: a machine whose TEE is missing or broken is an
/// error, never a machine with sample evidence.
///
/// # Errors
/// [`AttestError::NoTee`] when detection finds nothing, [`AttestError::NotBuilt`] when the choice is not in this build.
pub fn detect(choice: TeeChoice) -> Result<Arc<dyn Attester>, AttestError> {
    match choice {
        TeeChoice::Auto => {
            Err(AttestError::NoTee { looked_for: "nothing: this build has no hardware attester" })
        }
        TeeChoice::Tdx => Err(AttestError::NotBuilt { tee: Tee::Tdx.name() }),
        TeeChoice::Sample => sample::attester(),
    }
}

/// Evidence could not be produced.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// No supported TEE here. Never answered by falling back to the sample attester.
    #[error("no trusted execution environment found (looked for {looked_for})")]
    NoTee {
        /// What was looked for.
        looked_for: &'static str,
    },
    /// The chosen attester is not part of this build.
    #[error("this build of cai has no attester for {tee}")]
    NotBuilt {
        /// Name of the TEE.
        tee: &'static str,
    },
    /// The evidence object could not be serialised.
    #[error("building the evidence object")]
    Encode(#[from] serde_json::Error),
}

impl Fault for AttestError {
    fn class(&self) -> ErrorClass {
        match self {
            AttestError::NoTee { .. } | AttestError::NotBuilt { .. } => ErrorClass::Config,
            AttestError::Encode(_) => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            AttestError::NoTee { .. } => "attest.no-tee",
            AttestError::NotBuilt { .. } => "attest.not-built",
            AttestError::Encode(_) => "attest.encode",
        }
    }

    fn hint(&self) -> String {
        match self {
            AttestError::NoTee { .. } => {
                "run cai in a confidential VM of a kind this build supports; it never attests without one"
                    .to_owned()
            }
            AttestError::NotBuilt { tee } => {
                format!("set attest.tee to an attester this build has, or install a build with {tee}")
            }
            AttestError::Encode(_) => "report this as a defect of cai".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detect_without_a_tee_is_an_error_and_never_the_sample_attester() {
        let auto = detect(TeeChoice::Auto).err().unwrap();
        assert_eq!((auto.code(), auto.class()), ("attest.no-tee", ErrorClass::Config));
        let tdx = detect(TeeChoice::Tdx).err().unwrap();
        assert_eq!((tdx.code(), tdx.class()), ("attest.not-built", ErrorClass::Config));
        assert_eq!(tdx.to_string(), "this build of cai has no attester for tdx");
    }
}
