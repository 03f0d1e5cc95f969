//! Prove who we are: evidence from the TEE, bound to one challenge.
//!
//! Owns: detection of the platform and collection of evidence. Must not know: the key broker's wire format beyond the
//! evidence object itself, any socket to a network.

use serde_json::value::RawValue;

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

/// Evidence could not be produced.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// No supported TEE here. Never answered by falling back to the sample attester.
    #[error("this machine is not a TEE cai knows (looked for: {looked_for})")]
    NoTee {
        /// What was looked for.
        looked_for: &'static str,
    },
    /// The evidence object could not be serialised.
    #[error("building the evidence object")]
    Encode(#[from] serde_json::Error),
}
