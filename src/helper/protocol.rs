//! What is said on the line: one JSON object per packet, both ways.

use serde::de::Error as _;
use serde::{Deserialize, Serialize};

/// Longest message either side accepts, in bytes. The longest real one is an error text with two paths.
pub const MESSAGE_LIMIT: usize = 16 * 1024;

/// What [`Request::Gate`] is answered with where nothing was to be done.
pub const GATE_WAS_SHUT: &str = "the gate was shut";

/// Something only root can do, asked for by the daemon. Where and how is said by the root-owned configuration; taken from
/// the daemon is only what evidence is to be bound to, and a file of its own that the kernel is to read through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Open `/dev/fuse`, mount it at the configured point, hand the descriptor over.
    Mount,
    /// Set the kernel's read-ahead of the mount to the configured value.
    Readahead,
    /// Detach the mount this connection made.
    Unmount,
    /// Make the private memory file system of this connection: huge pages, never swapped, the configured size, the daemon's
    /// alone. Its root directory in the descriptor; it is mounted nowhere.
    Memory,
    /// Let the kernel read a file of that file system in place of one of the mount's (FUSE passthrough). The file travels
    /// beside the request; the answer is [`Reply::Registered`].
    Register,
    /// Take that back: the number that [`Reply::Registered`] gave.
    Unregister {
        /// The number.
        id: u32,
    },
    /// Give every file of that file system the configured owner and permissions, make it read-only for everybody, and mount
    /// it at the configured point, once. The daemon must have closed what it wrote. Behind a refusal owners and permissions
    /// may have changed, nothing is mounted, and it can be asked for again.
    Publish,
    /// Look whether there is a program that may be the adapter, and a user to run it.
    DecryptorCheck,
    /// Mount the ciphertext where only the adapter's user can reach it; the FUSE device in the descriptor. [`Request::Unmount`]
    /// detaches it, too.
    Ciphertext,
    /// Start the adapter on it, with a FUSE mount of its own that nobody can reach yet. A pipe with the key travels beside the
    /// request; in the answer's descriptor is the line to its keeper.
    Decrypt,
    /// See that this mount answers, and put it at the configured point.
    Decrypted,
    /// Read the boot event log and the agents' event log: [`EventLogs`] in the descriptor.
    EventLogs,
    /// A TDX quote from configfs-tsm: the quote in the descriptor.
    TsmQuote {
        /// What the quote is to be bound to.
        report_data: [u8; 64],
    },
    /// A TDREPORT (1024 bytes) from `/dev/tdx_guest` in the descriptor.
    TdxReport {
        /// What the report is to be bound to.
        report_data: [u8; 64],
    },
    /// A TDX quote from `libtdx_attest.so.1`: the quote in the descriptor.
    LibraryQuote {
        /// What the quote is to be bound to.
        report_data: [u8; 64],
    },
    /// Report and certificates of every NVIDIA GPU: [`GpuReports`] in the descriptor.
    GpuEvidence {
        /// What the reports are to be bound to.
        nonce: [u8; 32],
    },
    /// Shut the gate in front of the configured service port, if it is not. It stays when the line closes. The answer's text is
    /// [`GATE_WAS_SHUT`] or other words.
    Gate,
    /// Let the GPUs accept work. Taken back when the line closes.
    GpuReady,
    /// Let the GPUs refuse work.
    GpuNotReady,
}

/// A [`Request`] on the wire: `{"verb":"mount"}`, `{"verb":"gpu-evidence","data":"<hex>"}`. A struct, so that an unknown
/// field is refused.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    verb: Verb,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verb {
    Mount,
    Readahead,
    Unmount,
    Memory,
    Register,
    Unregister,
    Publish,
    DecryptorCheck,
    Ciphertext,
    Decrypt,
    Decrypted,
    EventLogs,
    TsmQuote,
    TdxReport,
    LibraryQuote,
    GpuEvidence,
    Gate,
    GpuReady,
    GpuNotReady,
}

impl Request {
    /// Its verb, as it is spelt on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Request::Mount => "mount",
            Request::Readahead => "readahead",
            Request::Unmount => "unmount",
            Request::Memory => "memory",
            Request::Register => "register",
            Request::Unregister { .. } => "unregister",
            Request::Publish => "publish",
            Request::DecryptorCheck => "decryptor-check",
            Request::Ciphertext => "ciphertext",
            Request::Decrypt => "decrypt",
            Request::Decrypted => "decrypted",
            Request::EventLogs => "event-logs",
            Request::TsmQuote { .. } => "tsm-quote",
            Request::TdxReport { .. } => "tdx-report",
            Request::LibraryQuote { .. } => "library-quote",
            Request::GpuEvidence { .. } => "gpu-evidence",
            Request::Gate => "gate",
            Request::GpuReady => "gpu-ready",
            Request::GpuNotReady => "gpu-not-ready",
        }
    }

    /// The packet that asks for it.
    ///
    /// # Errors
    /// None in practice: what serialisation says.
    pub fn to_packet(self) -> serde_json::Result<Vec<u8>> {
        let (verb, data) = match self {
            Request::Mount => (Verb::Mount, None),
            Request::Readahead => (Verb::Readahead, None),
            Request::Unmount => (Verb::Unmount, None),
            Request::Memory => (Verb::Memory, None),
            Request::Register => (Verb::Register, None),
            Request::Unregister { id } => (Verb::Unregister, Some(hex::encode(id.to_be_bytes()))),
            Request::Publish => (Verb::Publish, None),
            Request::DecryptorCheck => (Verb::DecryptorCheck, None),
            Request::Ciphertext => (Verb::Ciphertext, None),
            Request::Decrypt => (Verb::Decrypt, None),
            Request::Decrypted => (Verb::Decrypted, None),
            Request::EventLogs => (Verb::EventLogs, None),
            Request::TsmQuote { report_data } => (Verb::TsmQuote, Some(hex::encode(report_data))),
            Request::TdxReport { report_data } => (Verb::TdxReport, Some(hex::encode(report_data))),
            Request::LibraryQuote { report_data } => (Verb::LibraryQuote, Some(hex::encode(report_data))),
            Request::GpuEvidence { nonce } => (Verb::GpuEvidence, Some(hex::encode(nonce))),
            Request::Gate => (Verb::Gate, None),
            Request::GpuReady => (Verb::GpuReady, None),
            Request::GpuNotReady => (Verb::GpuNotReady, None),
        };
        serde_json::to_vec(&Message { verb, data })
    }

    /// The request in a packet.
    ///
    /// # Errors
    /// Anything but exactly one known verb, with exactly the data it takes.
    pub fn from_packet(packet: &[u8]) -> serde_json::Result<Self> {
        let Message { verb, data } = serde_json::from_slice(packet)?;
        match verb {
            Verb::Mount => nothing(data, Request::Mount),
            Verb::Readahead => nothing(data, Request::Readahead),
            Verb::Unmount => nothing(data, Request::Unmount),
            Verb::Memory => nothing(data, Request::Memory),
            Verb::Register => nothing(data, Request::Register),
            Verb::Unregister => exactly(data).map(|id| Request::Unregister { id: u32::from_be_bytes(id) }),
            Verb::Publish => nothing(data, Request::Publish),
            Verb::DecryptorCheck => nothing(data, Request::DecryptorCheck),
            Verb::Ciphertext => nothing(data, Request::Ciphertext),
            Verb::Decrypt => nothing(data, Request::Decrypt),
            Verb::Decrypted => nothing(data, Request::Decrypted),
            Verb::EventLogs => nothing(data, Request::EventLogs),
            Verb::TsmQuote => exactly(data).map(|report_data| Request::TsmQuote { report_data }),
            Verb::TdxReport => exactly(data).map(|report_data| Request::TdxReport { report_data }),
            Verb::LibraryQuote => exactly(data).map(|report_data| Request::LibraryQuote { report_data }),
            Verb::GpuEvidence => exactly(data).map(|nonce| Request::GpuEvidence { nonce }),
            Verb::Gate => nothing(data, Request::Gate),
            Verb::GpuReady => nothing(data, Request::GpuReady),
            Verb::GpuNotReady => nothing(data, Request::GpuNotReady),
        }
    }
}

fn nothing(data: Option<String>, request: Request) -> serde_json::Result<Request> {
    match data {
        None => Ok(request),
        Some(_) => Err(serde_json::Error::custom("this verb takes no data")),
    }
}

fn exactly<const LEN: usize>(data: Option<String>) -> serde_json::Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    match data.map(|data| hex::decode_to_slice(data, &mut bytes)) {
        Some(Ok(())) => Ok(bytes),
        _ => Err(serde_json::Error::custom(format!("this verb takes {LEN} bytes in hexadecimal"))),
    }
}

/// What [`Request::EventLogs`] gives; each is `None` where the file does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLogs {
    /// The ACPI table `CCEL`'s data, base64.
    pub ccel: Option<String>,
    /// `/run/attestation-agent/eventlog`, base64.
    pub aael: Option<String>,
}

/// What [`Request::GpuEvidence`] gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReports {
    /// Version of the driver.
    pub driver_version: String,
    /// Confidential-computing feature of the system is on.
    pub cc_enabled: bool,
    /// GPUs protect PCIe only, and reach each other over NVSwitches.
    pub protected_pcie: bool,
    /// Developer tools can look into the GPUs.
    pub dev_tools: bool,
    /// Production environment, not a simulation.
    pub production: bool,
    /// Every GPU, in the driver's order; empty where the confidential-computing feature is off.
    pub gpus: Vec<GpuReport>,
}

/// One GPU of [`GpuReports`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuReport {
    /// `GPU-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// Architecture as Trustee spells it: `HOPPER`, `BLACKWELL`.
    pub arch: String,
    /// Version of the VBIOS.
    pub vbios_version: String,
    /// The SPDM report, base64.
    pub report: String,
    /// Certificate chain of the report's signer, leaf first, PEM.
    pub attestation_chain: String,
    /// Certificate chain of the device, leaf first, PEM.
    pub device_chain: String,
}

/// The helper's answer. Beside `Done` travels the FUSE device for `Mount` and `Ciphertext`, a directory for
/// `Memory`, a socket for `Decrypt`, and for the verbs that
/// give data a memory file that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// It is done.
    Done {
        /// What was done, for the journal.
        text: String,
    },
    /// The file that came beside [`Request::Register`] is registered.
    Registered {
        /// The kernel's number for it.
        id: u32,
    },
    /// It was refused or failed; nothing has been changed, but for what [`Request::Publish`] says.
    Refused {
        /// Stable dotted code, such as `mount-point.not-empty`.
        code: String,
        /// What was expected and what came.
        text: String,
        /// What to do about it.
        hint: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each.
    const REQUESTS: [Request; 19] = [
        Request::Mount,
        Request::Readahead,
        Request::Unmount,
        Request::Memory,
        Request::Register,
        Request::Unregister { id: 7 },
        Request::Publish,
        Request::DecryptorCheck,
        Request::Ciphertext,
        Request::Decrypt,
        Request::Decrypted,
        Request::EventLogs,
        Request::TsmQuote { report_data: [1; 64] },
        Request::TdxReport { report_data: [2; 64] },
        Request::LibraryQuote { report_data: [3; 64] },
        Request::GpuEvidence { nonce: [4; 32] },
        Request::Gate,
        Request::GpuReady,
        Request::GpuNotReady,
    ];

    #[test]
    fn request_on_the_wire_is_the_documented_object() {
        let unregister = Request::Unregister { id: 258 }.to_packet().unwrap();
        assert_eq!(unregister, br#"{"verb":"unregister","data":"00000102"}"#);
        assert_eq!(Request::Readahead.to_packet().unwrap(), br#"{"verb":"readahead"}"#);
        let evidence = format!(r#"{{"verb":"gpu-evidence","data":"{}"}}"#, "04".repeat(32));
        assert_eq!(Request::GpuEvidence { nonce: [4; 32] }.to_packet().unwrap(), evidence.as_bytes());
        for request in REQUESTS {
            let packet = request.to_packet().unwrap();
            assert_eq!(Request::from_packet(&packet).unwrap(), request);
            let verb = format!(r#"{{"verb":"{}""#, request.name());
            assert!(packet.starts_with(verb.as_bytes()), "{request:?}");
        }
    }

    #[test]
    fn request_with_an_argument_it_does_not_take_is_refused() {
        let refused = |packet: &str| Request::from_packet(packet.as_bytes()).is_err();
        assert!(refused(r#"{"verb":"mount","point":"/etc"}"#), "must not even parse");
        assert!(refused(r#"{"verb":"mount","data":"00"}"#));
        assert!(refused(r#"{"verb":"gpu-evidence"}"#));
        for data in ["04".repeat(31), "04".repeat(33), "0x".repeat(32)] {
            assert!(refused(&format!(r#"{{"verb":"gpu-evidence","data":"{data}"}}"#)), "{data}");
        }
    }

    #[test]
    fn request_of_another_verb_is_refused() {
        assert!(Request::from_packet(br#"{"verb":"chown"}"#).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_packet_is_a_request_or_refused(packet in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            if let Ok(request) = Request::from_packet(&packet) {
                proptest::prop_assert!(request.to_packet().is_ok());
            }
        }
    }
}
