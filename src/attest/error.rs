//! What can go wrong while evidence is produced.

use super::gpu::GpuError;
use super::qgs::QgsError;
use super::quote::QuoteError;
use nix::libc;

use crate::error::{ErrorClass, Fault, chain};
use crate::helper::HelperError;

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
    Gpu(#[source] Box<GpuError>),
    /// No source gave a quote.
    #[error("no TDX quote could be had: {}", listed(attempts))]
    NoQuote {
        /// Every source that was tried, in order.
        attempts: Vec<Attempt>,
    },
    /// The host can read this TD's memory.
    #[error(
        "this TD was started in debug mode (attributes {td_attributes}): its host can read all of its memory"
    )]
    DebugTd {
        /// As the quote has them, hex.
        td_attributes: String,
    },
}

/// A source of quotes that gave none.
#[derive(Debug)]
pub struct Attempt {
    /// As in [`super::Claims::provider`].
    pub provider: &'static str,
    /// Why.
    pub error: SourceError,
}

/// Why a source of quotes gave none.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The helper did not do its part.
    #[error("asking the helper")]
    Helper(#[from] HelperError),
    /// The host's service gave none.
    #[error("asking the host")]
    Qgs(#[from] QgsError),
    /// What came is no quote.
    #[error("reading what came")]
    Quote(#[from] QuoteError),
    /// What came is no TDREPORT over what was asked.
    #[error("the TDREPORT is not over the report data that was asked for")]
    Report,
    /// A quote, but for somebody else.
    #[error("the quote is bound to {got}, asked was {asked}")]
    ReportData {
        /// Hex, 64 bytes.
        asked: String,
        /// Hex, 64 bytes.
        got: String,
    },
}

impl Fault for SourceError {
    fn class(&self) -> ErrorClass {
        match self {
            SourceError::Helper(source) => source.class(),
            // A machine without vsock stays one; a service that does not answer may be restarting.
            SourceError::Qgs(QgsError::Connect { source, .. }) => match source.raw_os_error() {
                Some(libc::ENODEV | libc::EAFNOSUPPORT) => ErrorClass::Config,
                _ => ErrorClass::Transient,
            },
            SourceError::Qgs(QgsError::NoPort { .. }) => ErrorClass::Config,
            SourceError::Qgs(QgsError::Line(_) | QgsError::Answer { .. } | QgsError::Refused { .. })
            | SourceError::Quote(_)
            | SourceError::Report
            | SourceError::ReportData { .. } => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            SourceError::Helper(source) => source.code(),
            SourceError::Qgs(QgsError::NoPort { .. }) => NO_PORT,
            SourceError::Qgs(QgsError::Connect { .. }) => "tdx.vsock",
            SourceError::Qgs(QgsError::Line(_)) => "tdx.qgs-line",
            SourceError::Qgs(QgsError::Answer { .. }) => "tdx.qgs-answer",
            SourceError::Qgs(QgsError::Refused { .. }) => "tdx.qgs-refused",
            SourceError::Quote(QuoteError::Empty) => "tdx.empty-quote",
            SourceError::Quote(_) => "tdx.bad-quote",
            SourceError::Report => "tdx.bad-report",
            SourceError::ReportData { .. } => "tdx.report-data",
        }
    }

    fn hint(&self) -> String {
        match self {
            SourceError::Helper(source) => source.hint(),
            SourceError::Qgs(QgsError::NoPort { .. }) => {
                "write port=4050, or the port your host uses, into /etc/tdx-attest.conf".to_owned()
            }
            SourceError::Qgs(QgsError::Connect { port, .. }) => format!(
                "vsock: load vmw_vsock_virtio_transport in the guest, and have the host's quote generation service \
                 listen on port {port} (the guest reaches it as CID 2; the port stands in /etc/tdx-attest.conf)"
            ),
            SourceError::Qgs(QgsError::Line(_) | QgsError::Answer { .. } | QgsError::Refused { .. })
            | SourceError::Quote(_) => "the host's quote generation service (QGS) is at fault: see its log on the \
                 host, whether the platform is registered (PCK certificates) and QGS and QEMU fit each other; nothing \
                 in the guest but the port in /etc/tdx-attest.conf can cure it"
                .to_owned(),
            SourceError::Report => "the device /dev/tdx_guest answers wrongly: see dmesg".to_owned(),
            SourceError::ReportData { .. } => {
                "the quote was made for another request: see what else on this machine asks for quotes".to_owned()
            }
        }
    }
}

/// The code of a missing port.
const NO_PORT: &str = "tdx.no-port";

/// Codes that say that a source is not there, as opposed to failing.
const ABSENT: [&str; 4] = [NO_PORT, "tdx.no-tsm", "tdx.no-device", "tdx.no-library"];

impl Attempt {
    fn is_absent(&self) -> bool {
        ABSENT.contains(&self.error.code())
    }
}

fn listed(attempts: &[Attempt]) -> String {
    let each: Vec<String> =
        attempts.iter().map(|Attempt { provider, error }| format!("{provider}: {}", chain(error))).collect();
    each.join("; ")
}

/// What to do about sources that failed; about those that are not there only if there is no other.
fn advice(attempts: &[Attempt]) -> String {
    let failed: Vec<&Attempt> = attempts.iter().filter(|attempt| !attempt.is_absent()).collect();
    let told = if failed.is_empty() { attempts.iter().collect() } else { failed };
    let each: Vec<String> =
        told.iter().map(|attempt| format!("{}: {}", attempt.provider, attempt.error.hint())).collect();
    each.join("; ")
}

impl From<GpuError> for AttestError {
    fn from(error: GpuError) -> Self {
        AttestError::Gpu(Box::new(error))
    }
}

impl Fault for AttestError {
    fn class(&self) -> ErrorClass {
        match self {
            AttestError::NoTee { .. } | AttestError::NotBuilt { .. } => ErrorClass::Config,
            AttestError::Encode(_) => ErrorClass::Internal,
            AttestError::Helper(source) => source.class(),
            AttestError::Gpu(source) => source.class(),
            AttestError::NoQuote { attempts } => {
                let transient = |attempt: &Attempt| attempt.error.class() == ErrorClass::Transient;
                if attempts.iter().any(transient) { ErrorClass::Transient } else { ErrorClass::Config }
            }
            AttestError::DebugTd { .. } => ErrorClass::Denied,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            AttestError::NoTee { .. } => "attest.no-tee",
            AttestError::NotBuilt { .. } => "attest.not-built",
            AttestError::Encode(_) => "attest.encode",
            AttestError::Helper(source) => source.code(),
            AttestError::Gpu(source) => source.code(),
            AttestError::NoQuote { .. } => "attest.no-quote",
            AttestError::DebugTd { .. } => "attest.debug-td",
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
            AttestError::NoQuote { attempts } => advice(attempts),
            AttestError::DebugTd { .. } => {
                "start the TD without the debug attribute; cai gives no key to a machine its host can look into"
                    .to_owned()
            }
        }
    }
}
