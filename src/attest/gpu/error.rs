//! Why a GPU is not believed.

use std::path::PathBuf;

use crate::attest::spdm::SpdmError;
use crate::error::{ErrorClass, Fault};
use crate::helper::HelperError;
use crate::pki::PkiError;

/// How a host's operator switches the mode: it is not in the guest's power.
const SWITCH: &str = "with the GPU in no VM, `nvidia_gpu_tools.py --devices gpus --set-cc-mode=on \
                      --reset-after-cc-mode-switch` (NVIDIA's gpu-admin-tools); in the guest \
                      `nvidia-smi conf-compute -f` shows the mode";

/// GPU evidence could not be had, or is not sound. Identifiers are the GPUs' own, `GPU-…`.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The PCI bus could not be looked at.
    #[error("looking for GPUs at {}", path.display())]
    Pci {
        /// File or directory below `/sys/bus/pci/devices`.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `attest.require_gpu = true`, and no GPU.
    #[error("no NVIDIA GPU on the PCI bus, and attest.require_gpu = true")]
    None,
    /// The helper could not read them.
    #[error("reading the GPUs' evidence")]
    Helper(#[from] HelperError),
    /// What the helper gave is not what its protocol says.
    #[error("the helper's answer about the GPUs cannot be read")]
    Reply(#[source] serde_json::Error),
    /// Memory and bus of the GPUs are not protected.
    #[error("the GPUs are not in confidential mode")]
    CcOff,
    /// Debuggers and profilers can look into the GPUs.
    #[error("the GPUs are in confidential mode with developer tools, which can look into them")]
    DevTools,
    /// A simulated environment.
    #[error("the GPUs are not in the production environment")]
    NotProduction,
    /// GPUs reach each other over switches that nobody attests here.
    #[error(
        "the GPUs are in protected PCIe mode, in which their traffic passes NVSwitches that cai does not attest"
    )]
    ProtectedPcie,
    /// Not one report for each GPU.
    #[error("the PCI bus shows {pci} NVIDIA GPUs, the driver gave evidence of {evidence}")]
    Count {
        /// GPUs on the PCI bus.
        pci: usize,
        /// GPUs with evidence.
        evidence: usize,
    },
    /// The same device twice.
    #[error("{first} and {second} gave evidence of the same GPU")]
    Twice {
        /// Identifier of one.
        first: String,
        /// Identifier of the other, the same or not.
        second: String,
    },
    /// The report is not base64.
    #[error("the report of {uuid} is not base64")]
    Encoding {
        /// The GPU.
        uuid: String,
        /// What the decoder said.
        #[source]
        source: base64::DecodeError,
    },
    /// The report is not one.
    #[error("the report of {uuid} cannot be read")]
    Report {
        /// The GPU.
        uuid: String,
        /// What is wrong with it.
        #[source]
        source: SpdmError,
    },
    /// The chain does not end in NVIDIA's device root.
    #[error(
        "the certificate chain of {uuid} does not end in NVIDIA's device root: the last certificate's SHA-256 is {found}"
    )]
    Root {
        /// The GPU.
        uuid: String,
        /// SHA-256 of the last certificate, hex.
        found: String,
    },
    /// The chain is not one.
    #[error("the certificate chain of {uuid} does not hold")]
    Chain {
        /// The GPU.
        uuid: String,
        /// Which certificate, and why.
        #[source]
        source: PkiError,
    },
    /// Not signed by the leaf of the chain.
    #[error("the report of {uuid} is not signed by its certificate's key")]
    Signature {
        /// The GPU.
        uuid: String,
        /// What the verifier said.
        #[source]
        source: PkiError,
    },
    /// Report and leaf certificate name different firmware.
    #[error("the report of {uuid} comes from another firmware than its certificate was issued to")]
    Firmware {
        /// The GPU.
        uuid: String,
    },
    /// Bound to nothing.
    #[error("the report of {uuid} is bound to a nonce of zeros")]
    NonceZero {
        /// The GPU.
        uuid: String,
    },
    /// Bound to something else: an old report.
    #[error("the report of {uuid} is bound to nonce {found}, expected {expected}")]
    Nonce {
        /// The GPU.
        uuid: String,
        /// In the report, hex.
        found: String,
        /// Asked for, hex.
        expected: String,
    },
    /// The driver says another version than the GPU signed.
    #[error("{uuid} signed that its {what} is {signed:?}, the driver says {said:?}")]
    Version {
        /// The GPU.
        uuid: String,
        /// `driver` or `VBIOS`.
        what: &'static str,
        /// In the report.
        signed: Option<String>,
        /// By the driver.
        said: String,
    },
}

impl Fault for GpuError {
    fn class(&self) -> ErrorClass {
        match self {
            GpuError::Pci { .. }
            | GpuError::None
            | GpuError::CcOff
            | GpuError::DevTools
            | GpuError::NotProduction
            | GpuError::ProtectedPcie
            | GpuError::Count { .. } => ErrorClass::Config,
            GpuError::Helper(source) => source.class(),
            GpuError::Reply(_) => ErrorClass::Internal,
            GpuError::Twice { .. }
            | GpuError::Encoding { .. }
            | GpuError::Report { .. }
            | GpuError::Root { .. }
            | GpuError::Chain { .. }
            | GpuError::Signature { .. }
            | GpuError::Firmware { .. }
            | GpuError::NonceZero { .. }
            | GpuError::Nonce { .. }
            | GpuError::Version { .. } => ErrorClass::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            GpuError::Pci { .. } => "gpu.pci",
            GpuError::None => "gpu.none",
            GpuError::Helper(source) => source.code(),
            GpuError::Reply(_) => "gpu.reply",
            GpuError::CcOff => "gpu.cc-off",
            GpuError::DevTools => "gpu.dev-tools",
            GpuError::NotProduction => "gpu.not-production",
            GpuError::ProtectedPcie => "gpu.protected-pcie",
            GpuError::Count { .. } => "gpu.count",
            GpuError::Twice { .. } => "gpu.twice",
            GpuError::Encoding { .. } => "gpu.encoding",
            GpuError::Report { .. } => "gpu.report",
            GpuError::Root { .. } => "gpu.root",
            GpuError::Chain { .. } => "gpu.chain",
            GpuError::Signature { .. } => "gpu.signature",
            GpuError::Firmware { .. } => "gpu.firmware",
            GpuError::NonceZero { .. } => "gpu.nonce-zero",
            GpuError::Nonce { .. } => "gpu.nonce",
            GpuError::Version { .. } => "gpu.version",
        }
    }

    fn hint(&self) -> String {
        match self {
            GpuError::Pci { .. } => "mount sysfs at /sys, and let the daemon read it".into(),
            GpuError::None => {
                "give the VM a GPU, or leave attest.require_gpu out: it is then required where there is one".into()
            }
            GpuError::Helper(source) => source.hint(),
            GpuError::Reply(_) => "install cai and cai-helper of one version".into(),
            GpuError::CcOff => format!("confidential mode is switched on by the host: {SWITCH}"),
            GpuError::DevTools => format!("the host switches from devtools to on: {SWITCH}"),
            GpuError::NotProduction => "use GPUs and firmware in production state, not engineering samples".into(),
            GpuError::ProtectedPcie => {
                "use single GPUs in confidential mode, or GPUs that encrypt their NVLinks; attest.require_gpu = false \
                 serves without GPU attestation, and says so in the status"
                    .into()
            }
            GpuError::Count { .. } => {
                "compare `nvidia-smi -L` with `lspci -d 10de:`, and read `dmesg` for the GPU the driver left out".into()
            }
            GpuError::Encoding { .. }
            | GpuError::Report { .. }
            | GpuError::NonceZero { .. }
            | GpuError::Version { .. } => {
                "the driver does not pass on what the GPU signs: update driver and firmware".into()
            }
            GpuError::Twice { .. }
            | GpuError::Root { .. }
            | GpuError::Chain { .. }
            | GpuError::Signature { .. }
            | GpuError::Firmware { .. }
            | GpuError::Nonce { .. } => {
                "do not trust this GPU: what it or its driver presents is not a genuine, fresh report of NVIDIA \
                 hardware; first check the clock and that libnvidia-ml.so.1 is the driver's own"
                    .into()
            }
        }
    }
}
