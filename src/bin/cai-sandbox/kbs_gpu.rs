//! NVIDIA GPU evidence in both makers' forms: whether every report is about this handshake.
//!
//! Neither signature nor measurements are verified (a stand-in has no NVIDIA root behind it): what is held is the form, and
//! the nonce in each report. That is more than Alibaba's verifier looks at, which compares measurements and warns.
//! Stateless. Tested in `tests/sandbox_tdx.rs`.
//!
//! Source: `kbs.md` 7.2.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Where the requester's nonce lies in a report, which begins with the SPDM request.
const NONCE: std::ops::Range<usize> = 4..36;

/// Alibaba's form: `gpu_evidence` in the TDX evidence.
#[derive(Deserialize)]
pub(crate) struct GpuEvidence {
    evidence_list: Vec<Embedded>,
    collection_time: String,
}

#[derive(Deserialize)]
struct Embedded {
    #[serde(rename = "index")]
    _index: u32,
    uuid: String,
    attestation_report: Option<String>,
    #[serde(rename = "certificate")]
    _certificate: Option<String>,
}

/// Upstream's form: `nvidia` in the additional evidence.
#[derive(Deserialize)]
pub(crate) struct Nvidia {
    device_evidence_list: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    arch: String,
    evidence: String,
    certificate: String,
}

/// Every report in Alibaba's form carries the start of `digest`, the one in the quote.
///
/// # Errors
/// The verifier's words.
pub(crate) fn check_embedded(evidence: &GpuEvidence, digest: &[u8]) -> Result<(), String> {
    // RFC 3339 begins with a date and a `T`; the servers' parser refuses anything else.
    if evidence.collection_time.as_bytes().get(10) != Some(&b'T') {
        return Err("GPU evidence: collection_time is not RFC 3339".to_owned());
    }
    for gpu in &evidence.evidence_list {
        let report = gpu.attestation_report.as_deref().ok_or("GPU evidence without a report")?;
        check_nonce(report, digest).map_err(|words| format!("GPU {}: {words}", gpu.uuid))?;
    }
    Ok(())
}

/// Every report in upstream's form carries the start of `digest`, the one for devices. How many there are.
///
/// # Errors
/// The verifier's words.
pub(crate) fn check_additional(evidence: &Nvidia, digest: &[u8]) -> Result<usize, String> {
    for device in &evidence.device_evidence_list {
        if !["HOPPER", "BLACKWELL", "LS10"].contains(&device.arch.as_str()) {
            return Err(format!("NVIDIA device of unknown architecture {}", device.arch));
        }
        let chain = STANDARD.decode(&device.certificate).unwrap_or_default();
        if !chain.starts_with(b"-----BEGIN CERTIFICATE-----") {
            return Err("NVIDIA certificate chain is not PEM".to_owned());
        }
        check_nonce(&device.evidence, digest)?;
    }
    Ok(evidence.device_evidence_list.len())
}

fn check_nonce(report: &str, digest: &[u8]) -> Result<(), String> {
    let report = STANDARD.decode(report).map_err(|_| "report is not base64".to_owned())?;
    let expected = digest.get(..NONCE.len());
    if expected.is_some() && report.get(NONCE) == expected {
        Ok(())
    } else {
        Err("nonce in the report is not this handshake's".to_owned())
    }
}
