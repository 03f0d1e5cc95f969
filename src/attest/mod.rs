//! Prove who we are: evidence from the TEE and the GPUs, bound to one challenge.
//!
//! Owns: detection of the platform and collection of evidence. Must not know: the key broker's wire format beyond the
//! evidence object itself, any socket to a network but the host's quoting service. What needs root is asked of the helper.
//! No threads; quotes are asked for one at a time under a lock of the attester's own, under which no other is taken.
//! Collection blocks its caller. Every parser of bytes from outside (quote, event logs, QGS messages) is pure and public, to
//! be fuzzed. Tested beside the code, in `tests/attest_tdx.rs` on stand-ins for the hardware and, with a broker at the other
//! end, in `tests/kbs_protocol.rs`.

use std::sync::Arc;

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::config::{AttestSettings, TeeChoice};
use crate::helper::Helper;

mod boot;
mod claims;
mod cursor;
mod error;
pub mod eventlog;
pub mod gpu;
pub mod logs;
pub mod qgs;
pub mod quote;
mod reference;
#[cfg(feature = "sandbox")]
mod sample;
#[cfg(not(feature = "sandbox"))]
#[path = "no_sample.rs"]
mod sample;
pub mod spdm;
mod tdx;

pub use claims::{Claims, GpuClaims, TdxClaims};
pub use error::{Attempt, AttestError, SourceError};
pub use reference::{ReferenceValues, reference_values};
pub use sample::attester as sample_attester;
pub use tdx::Tdx;

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

/// Which generation of verifier reads the evidence: they differ in the form of event logs (kbs.md section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verifier {
    /// Protocol 0.1.x: replays RTMR0 to RTMR2, takes the agents' event log as text of its own.
    Legacy,
    /// Protocol 0.2.0 and later: replays all four registers from one binary log.
    Current,
}

/// Evidence, and what it says.
#[derive(Debug)]
pub struct Evidence {
    /// Primary evidence as the JSON object Trustee's verifier reads (kbs.md 7.1, 8).
    pub object: Box<RawValue>,
    /// The same, for people.
    pub claims: Claims,
}

impl Evidence {
    /// `object`, and what it says.
    fn new(object: Box<RawValue>, claims: Claims) -> Self {
        let evidence_sha256 = hex::encode(Sha256::digest(object.get()));
        Evidence { object, claims: Claims { evidence_sha256, ..claims } }
    }
}

/// Something that can produce evidence about this machine.
///
/// Blocking: quote generation is system calls and a slow quoting enclave. Call from `spawn_blocking`.
pub trait Attester: Send + Sync + 'static {
    /// Which TEE this is.
    fn tee(&self) -> Tee;

    /// Evidence of the devices beside the TEE, bound to `digest`, as the text of `additional_evidence` (kbs.md 2.3, 7.2.2);
    /// empty where no device is attested that way. Asked for before [`Attester::evidence`], whose digest covers it, and on the
    /// same thread.
    ///
    /// # Errors
    /// [`AttestError`] with the device that failed.
    fn device_evidence(&self, digest: &Digest) -> Result<String, AttestError>;

    /// Primary evidence bound to `digest`, for a verifier of that generation.
    ///
    /// # Errors
    /// [`AttestError`] with the path or call that failed.
    fn evidence(&self, digest: &Digest, verifier: Verifier) -> Result<Evidence, AttestError>;
}

/// What the devices beside the TEE say, for people; beside their evidence, because it is not sent with every form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceClaims {
    /// Every GPU whose evidence was verified here.
    pub gpus: Vec<GpuClaims>,
    /// What an operator should know: a GPU that failed and was not required.
    pub notices: Vec<String>,
}

/// The devices beside the TEE whose evidence goes out with the TEE's, in the form the operator's verifier takes.
///
/// A handshake reads them once: in [`Devices::additional`] where the protocol has room for that form and it is the
/// configured one, in [`Devices::embedded`] otherwise, whether their evidence is then sent or not. Blocking, as [`Attester`].
pub trait Devices: Send + Sync {
    /// Evidence bound to `digest` as the text of `additional_evidence` (kbs.md 7.2.2), empty where nothing verified; and
    /// what it says. `None` where another form is configured.
    ///
    /// # Errors
    /// [`AttestError`] with the device that failed.
    fn additional(&self, digest: &Digest) -> Result<Option<(String, DeviceClaims)>, AttestError>;

    /// Evidence bound to `digest` as the value of `gpu_evidence` inside the TEE's own object (kbs.md 7.2.3), `None` where
    /// another form is configured or nothing verified; and what it says.
    ///
    /// # Errors
    /// [`AttestError`] with the device that failed.
    fn embedded(&self, digest: &Digest) -> Result<(Option<Box<RawValue>>, DeviceClaims), AttestError>;
}

/// The attester of this machine, as the operator chose it.
///
/// The sample attester is returned for [`TeeChoice::Sample`] only: a machine whose TEE is missing or broken is an
/// error, never a machine with sample evidence.
///
/// # Errors
/// [`AttestError::NoTee`] when detection finds nothing, [`AttestError::NotBuilt`] when the choice is not in this build. That
/// TDX does not work shows when evidence is asked for.
pub fn detect(settings: &AttestSettings, helper: &Arc<Helper>) -> Result<Arc<dyn Attester>, AttestError> {
    let tdx = || -> Arc<dyn Attester> {
        let gpus = gpu::Gpus::new(settings, helper, gpu::pin::root(&settings.root));
        Arc::new(Tdx::new(settings, Arc::clone(helper), Some(Arc::new(gpus))))
    };
    match settings.attest.tee {
        TeeChoice::Auto if tdx::is_here(&settings.root) => Ok(tdx()),
        TeeChoice::Auto => Err(AttestError::NoTee { looked_for: tdx::LOOKED_FOR }),
        TeeChoice::Tdx => Ok(tdx()),
        TeeChoice::Sample => sample::attester(),
    }
}
