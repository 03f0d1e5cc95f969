//! What evidence says, for people: every value here is public, and most of them are what a policy can be written on.

use std::collections::BTreeMap;

use serde::Serialize;

/// What one piece of evidence claims about this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Claims {
    /// Where the quote came from: `configfs-tsm`, `qgs`, `libtdx-attest`, `sample`.
    pub provider: &'static str,
    /// What the evidence is bound to, hex.
    pub report_data: String,
    /// SHA-256 of the primary evidence as it is sent, hex: the name of this evidence in the audit trail. Through its report
    /// data it stands for the devices' evidence, too.
    pub evidence_sha256: String,
    /// The TD, where the TEE is TDX.
    pub tdx: Option<TdxClaims>,
    /// Every NVIDIA GPU that was attested, in the driver's order.
    pub gpus: Vec<GpuClaims>,
    /// What an operator should know: an event log that was left out and why, a GPU that was not required.
    pub notices: Vec<String>,
}

/// A TD, from its quote. Hex throughout.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TdxClaims {
    /// 48 bytes: the initial contents of the TD.
    pub mrtd: String,
    /// 48 bytes each: RTMR0 to RTMR3.
    pub rtmrs: [String; 4],
    /// 48 bytes, set by the host at launch.
    pub mr_config_id: String,
    /// 48 bytes, set by the host at launch.
    pub mr_owner: String,
    /// 48 bytes, set by the host at launch.
    pub mr_owner_config: String,
    /// 8 bytes: extended features of the TD.
    pub xfam: String,
    /// 8 bytes: attributes of the TD; bit 0 is DEBUG.
    pub td_attributes: String,
    /// 16 bytes: security version numbers of the platform.
    pub tee_tcb_svn: String,
    /// 48 bytes: the TDX module.
    pub mr_seam: String,
    /// What was measured while booting, from the event log: names as the RVPS takes them (`measurement.kernel.SHA-384`),
    /// digests in hex. Empty without an event log.
    pub boot: BTreeMap<String, Vec<String>>,
}

/// A GPU, from its report and the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GpuClaims {
    /// `GPU-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// `HOPPER`, `BLACKWELL`.
    pub arch: String,
    /// Version of the driver.
    pub driver_version: String,
    /// Version of the VBIOS.
    pub vbios_version: String,
    /// Confidential mode is on, in production, without developer tools.
    pub confidential: bool,
}
