//! GPU evidence as the two kinds of broker read it (kbs.md 7.2.2, 7.2.3). Both are made of verified evidence only.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use x509_cert::der::DateTime;

use super::verify::Verified;
use crate::helper::protocol::GpuReport;

/// Upstream: the text of `additional_evidence`. Its verifier knows the architectures `HOPPER`, `BLACKWELL` and `LS10`
/// (an NVSwitch), and refuses the whole evidence for any other.
pub(super) fn upstream(verified: &Verified) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Additional<'a> {
        nvidia: List<'a>,
    }
    #[derive(Serialize)]
    struct List<'a> {
        device_evidence_list: Vec<Device<'a>>,
    }
    #[derive(Serialize)]
    struct Device<'a> {
        arch: &'a str,
        uuid: &'a str,
        evidence: &'a str,
        certificate: String,
    }
    fn device(gpu: &GpuReport) -> Device<'_> {
        Device {
            arch: &gpu.arch,
            uuid: &gpu.uuid,
            evidence: &gpu.report,
            certificate: STANDARD.encode(&gpu.attestation_chain),
        }
    }
    let device_evidence_list = verified.reports().gpus.iter().map(device).collect();
    serde_json::to_string(&Additional { nvidia: List { device_evidence_list } })
}

/// Alibaba: the value of `gpu_evidence` inside the TDX evidence, collected `at` that time. `certificate` is the device's
/// chain, as the reference client sends it; the verifier does not look at it.
pub(super) fn alibaba(verified: &Verified, at: SystemTime) -> serde_json::Result<Box<RawValue>> {
    #[derive(Serialize)]
    struct Evidence<'a> {
        evidence_list: Vec<Gpu<'a>>,
        collection_time: String,
    }
    #[derive(Serialize)]
    struct Gpu<'a> {
        index: usize,
        uuid: &'a str,
        name: &'a str,
        driver_version: &'a str,
        vbios_version: &'a str,
        attestation_report: &'a str,
        certificate: String,
        cc_enabled: bool,
    }
    let reports = verified.reports();
    let gpus = reports.gpus.iter().enumerate().map(|(index, gpu)| Gpu {
        index,
        uuid: &gpu.uuid,
        name: &gpu.name,
        driver_version: &reports.driver_version,
        vbios_version: &gpu.vbios_version,
        attestation_report: &gpu.report,
        certificate: STANDARD.encode(&gpu.device_chain),
        cc_enabled: reports.cc_enabled,
    });
    let evidence_list = gpus.collect();
    // RFC 3339 in UTC; a clock before 1970 or after 9999 is left to the broker to complain about.
    let collection_time = DateTime::from_system_time(at).map(|time| time.to_string()).unwrap_or_default();
    to_raw_value(&Evidence { evidence_list, collection_time })
}
