//! Whether GPU evidence is sound, decided here: known brokers check little of it.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use x509_cert::der::asn1::ObjectIdentifier;

use super::error::GpuError;
use crate::attest::GpuClaims;
use crate::attest::spdm::Report;
use crate::helper::protocol::{GpuReport, GpuReports};
use crate::pki::{self, PublicKey};

/// The one certificate every chain must end in, by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Root {
    /// SHA-256 of the certificate.
    pub certificate: [u8; 32],
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub key: [u8; 32],
}

/// CN=NVIDIA Device Identity CA, ECDSA P-384, valid from 2021-11-05 without end.
///
/// Source: the certificate NVIDIA's and Trustee's verifiers carry (`nvidia_device_root.pem`).
pub const NVIDIA_ROOT: Root = Root {
    certificate: [
        0x10, 0x2b, 0xf6, 0x59, 0xd5, 0x41, 0x96, 0x14, 0xc9, 0xd8, 0xe6, 0xae, 0xce, 0xbc, 0x80, 0x45, 0x4e,
        0xb2, 0x6b, 0x1d, 0xf6, 0xa7, 0x69, 0xac, 0x72, 0x0b, 0x9a, 0x69, 0x0b, 0x16, 0x7b, 0x48,
    ],
    key: [
        0xa9, 0x0c, 0x4e, 0xb5, 0xac, 0xfd, 0x3e, 0x3d, 0x03, 0xa2, 0x5d, 0xb6, 0xa2, 0x6b, 0x84, 0xf7, 0x20,
        0xad, 0x05, 0x03, 0x19, 0x6c, 0x62, 0x7c, 0x21, 0xdd, 0xd4, 0x8d, 0xd8, 0x5b, 0x06, 0xa4,
    ],
};

/// Extension of the leaf certificate that ends in the identity of the firmware the key was derived for (TCG DICE,
/// tcg-dice-TcbInfo; NVIDIA fills it in the older CompositeDeviceID layout).
const FIRMWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.5.4.1");

/// SHA-384.
const FIRMWARE_ID_LEN: usize = 48;

/// What evidence must show.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// What every report is bound to.
    pub nonce: [u8; 32],
    /// Number of GPUs on the PCI bus.
    pub gpus: usize,
    /// Where every chain ends.
    pub root: Root,
    /// When the chains must be valid.
    pub at: SystemTime,
}

/// GPU evidence that has been verified; only [`verify`] makes one.
#[derive(Debug, Clone)]
pub struct Verified {
    reports: GpuReports,
}

impl Verified {
    /// Driver and GPUs; the reports without padding.
    pub fn reports(&self) -> &GpuReports {
        &self.reports
    }

    /// The same for people.
    pub fn claims(&self) -> Vec<GpuClaims> {
        let claims = |gpu: &GpuReport| GpuClaims {
            uuid: gpu.uuid.clone(),
            name: gpu.name.clone(),
            arch: gpu.arch.clone(),
            driver_version: self.reports.driver_version.clone(),
            vbios_version: gpu.vbios_version.clone(),
            confidential: true,
        };
        self.reports.gpus.iter().map(claims).collect()
    }
}

/// Verify: confidential mode is on, in production, without developer tools; every GPU of the PCI bus has exactly one
/// report, bound to the nonce, signed by a key that NVIDIA's root endorses for it alone.
///
/// # Errors
/// [`GpuError`] with the first thing that is not so.
pub fn verify(mut reports: GpuReports, expected: &Expected) -> Result<Verified, GpuError> {
    check_mode(&reports)?;
    let evidence = reports.gpus.len();
    if evidence != expected.gpus {
        return Err(GpuError::Count { pci: expected.gpus, evidence });
    }
    let mut seen: Vec<(String, PublicKey)> = Vec::new();
    for gpu in &mut reports.gpus {
        let (report, key) = verify_one(gpu, &reports.driver_version, expected)?;
        let twin = seen.iter().find(|(uuid, other)| *uuid == gpu.uuid || *other == key);
        if let Some((first, _)) = twin {
            return Err(GpuError::Twice { first: first.clone(), second: gpu.uuid.clone() });
        }
        gpu.report = STANDARD.encode(report);
        seen.push((gpu.uuid.clone(), key));
    }
    Ok(Verified { reports })
}

fn check_mode(reports: &GpuReports) -> Result<(), GpuError> {
    match reports {
        GpuReports { protected_pcie: true, .. } => Err(GpuError::ProtectedPcie),
        GpuReports { cc_enabled: false, .. } => Err(GpuError::CcOff),
        GpuReports { dev_tools: true, .. } => Err(GpuError::DevTools),
        GpuReports { production: false, .. } => Err(GpuError::NotProduction),
        _ => Ok(()),
    }
}

/// The report without padding, and the key that signed it.
fn verify_one(gpu: &GpuReport, driver: &str, expected: &Expected) -> Result<(Vec<u8>, PublicKey), GpuError> {
    let uuid = || gpu.uuid.clone();
    let bytes = STANDARD.decode(&gpu.report).map_err(|source| GpuError::Encoding { uuid: uuid(), source })?;
    let report = Report::parse(&bytes).map_err(|source| GpuError::Report { uuid: uuid(), source })?;
    let (key, issued_to) = verify_chain(gpu, expected)?;
    report.verify(&key).map_err(|source| GpuError::Signature { uuid: uuid(), source })?;
    if !report.firmware_id().is_some_and(|id| id.len() == FIRMWARE_ID_LEN && issued_to.ends_with(id)) {
        return Err(GpuError::Firmware { uuid: uuid() });
    }
    if report.nonce == [0; 32] {
        return Err(GpuError::NonceZero { uuid: uuid() });
    }
    if report.nonce != expected.nonce {
        let (found, expected) = (hex::encode(report.nonce), hex::encode(expected.nonce));
        return Err(GpuError::Nonce { uuid: uuid(), found, expected });
    }
    for (what, signed, said) in [
        ("driver", report.driver_version(), driver),
        ("VBIOS", report.vbios_version(), gpu.vbios_version.as_str()),
    ] {
        // The driver writes the VBIOS version's hexadecimal digits in capitals.
        if !signed.as_ref().is_some_and(|signed| signed.eq_ignore_ascii_case(said)) {
            return Err(GpuError::Version { uuid: uuid(), what, signed, said: said.to_owned() });
        }
    }
    Ok((report.bytes().to_vec(), key))
}

/// The leaf's key, if the chain leads up to the root, and what names the firmware that the leaf was issued to.
fn verify_chain(gpu: &GpuReport, expected: &Expected) -> Result<(PublicKey, Vec<u8>), GpuError> {
    let uuid = || gpu.uuid.clone();
    let wrong = |source| GpuError::Chain { uuid: uuid(), source };
    let chain = pki::certificates(gpu.attestation_chain.as_bytes()).map_err(wrong)?;
    let [leaf, .., last] = chain.as_slice() else { return Err(wrong(pki::PkiError::Empty)) };
    let certificate: [u8; 32] = Sha256::digest(last).into();
    let key: [u8; 32] = pki::public_key(last).map(|key| Sha256::digest(key.spki()).into()).map_err(wrong)?;
    if (Root { certificate, key }) != expected.root {
        return Err(GpuError::Root { uuid: uuid(), found: hex::encode(certificate) });
    }
    let key = pki::verify_chain(&chain, std::slice::from_ref(last), expected.at).map_err(wrong)?;
    Ok((key, pki::extension(leaf, FIRMWARE_ID).map_err(wrong)?.unwrap_or_default()))
}
