//! What can go wrong while evidence is produced.

use crate::error::{ErrorClass, Fault};
use crate::helper::HelperError;

use super::gpu::GpuError;

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
    /// The helper did not do what was asked.
    #[error("asking the helper")]
    Helper(#[from] HelperError),
    /// GPU evidence is missing or not sound.
    #[error("attesting the GPUs")]
    Gpu(#[from] GpuError),
}

impl Fault for AttestError {
    fn class(&self) -> ErrorClass {
        match self {
            AttestError::NoTee { .. } | AttestError::NotBuilt { .. } => ErrorClass::Config,
            AttestError::Encode(_) => ErrorClass::Internal,
            AttestError::Helper(source) => source.class(),
            AttestError::Gpu(source) => source.class(),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            AttestError::NoTee { .. } => "attest.no-tee",
            AttestError::NotBuilt { .. } => "attest.not-built",
            AttestError::Encode(_) => "attest.encode",
            AttestError::Helper(source) => source.code(),
            AttestError::Gpu(source) => source.code(),
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
            AttestError::Helper(source) => source.hint(),
            AttestError::Gpu(source) => source.hint(),
        }
    }
}
