//! A GPU's attestation report: the GET_MEASUREMENTS request and the MEASUREMENTS response of an SPDM 1.1 exchange, one
//! after the other, signed by the GPU.
//!
//! Owns: the layout and its bounds. Must not know: certificates, what a measurement should be, how a report is had. Pure.
//! Source: DMTF DSP0274 1.1.1 sections 10.11.1 and 10.11.2; opaque data as NVIDIA's verifiers read it. Tested below and,
//! with real reports, in `tests/attest_gpu.rs`.

use crate::error::{ErrorClass, Fault};
use crate::pki::{Algorithm, PkiError, PublicKey};

/// Longest report, in bytes: NVML's buffer, `NVML_CC_GPU_ATTESTATION_REPORT_SIZE`.
pub const REPORT_LIMIT: usize = 0x2000;

/// SPDM 1.1, in the first byte of both messages.
const VERSION: u8 = 0x11;
/// GET_MEASUREMENTS.
const REQUEST: u8 = 0xe0;
/// MEASUREMENTS.
const RESPONSE: u8 = 0x60;
/// `Param1` of the request, bit 0: the response is to be signed.
const SIGNED: u8 = 1;
/// `Param2` of the request: every measurement is asked for.
const ALL_MEASUREMENTS: u8 = 0xff;
/// `MeasurementSpecification`: the block has the DMTF's layout.
const DMTF: u8 = 1;
/// Raw ECDSA P-384: `r` and `s`.
const SIGNATURE_LEN: usize = 96;

/// A field of NVIDIA's opaque data: `u16` type, `u16` length, value; little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Field {
    /// Text, ends with a zero byte.
    DriverVersion = 3,
    /// 8 bytes: the first half backwards and one byte more are the version, `96.00.74.00.1a`.
    VbiosVersion = 6,
    /// 48 bytes: identity of the firmware that signs, also in the leaf certificate.
    FirmwareId = 20,
}

/// Not a report, or not one that all of is signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpdmError {
    /// It ends within a field.
    #[error("the report ends within its {field}")]
    Short {
        /// The field.
        field: &'static str,
    },
    /// Longer than any real report.
    #[error("the report has {len} bytes, at most {REPORT_LIMIT} are accepted")]
    Long {
        /// Its length, in bytes.
        len: usize,
    },
    /// A field that must have one value has another.
    #[error("{field} of the report is {found:#04x}, expected {expected:#04x}")]
    Value {
        /// The field.
        field: &'static str,
        /// Value in the report.
        found: u8,
        /// The only one that is understood.
        expected: u8,
    },
    /// The measurement record does not hold what its header announces.
    #[error("the measurement record of the report is not the {blocks} blocks it announces")]
    Record {
        /// Announced number of blocks.
        blocks: u8,
    },
    /// The opaque data is not a sequence of fields, or has a field twice.
    #[error("the opaque data of the report is not a sequence of distinct fields")]
    Opaque,
    /// Something after the signature, which therefore is not signed.
    #[error("the report goes on after its signature")]
    Trailing,
}

impl Fault for SpdmError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Corrupt
    }

    fn code(&self) -> &'static str {
        match self {
            SpdmError::Short { .. } => "spdm.short",
            SpdmError::Long { .. } => "spdm.long",
            SpdmError::Value { .. } => "spdm.value",
            SpdmError::Record { .. } => "spdm.record",
            SpdmError::Opaque => "spdm.opaque",
            SpdmError::Trailing => "spdm.trailing",
        }
    }

    fn hint(&self) -> String {
        "the GPU's driver gave something that is no attestation report: update the driver".into()
    }
}

/// One measurement of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement<'a> {
    /// From 1.
    pub index: u8,
    /// DMTFSpecMeasurementValueType: bit 7 is set for a raw value, else it is a digest.
    pub kind: u8,
    /// The digest (48 bytes, SHA-384) or the raw value.
    pub value: &'a [u8],
}

/// A report, taken apart. Nothing of it is to be believed before [`Report::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report<'a> {
    /// Nonce of the request: what the report is bound to.
    pub nonce: [u8; 32],
    /// In the order of the report.
    pub measurements: Vec<Measurement<'a>>,
    opaque: Vec<(u16, &'a [u8])>,
    /// All of the report, without padding after the signature.
    bytes: &'a [u8],
}

impl<'a> Report<'a> {
    /// Take a report apart. Zero bytes after the signature are padding: real drivers count some as part of the report.
    ///
    /// # Errors
    /// [`SpdmError`] for anything else.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SpdmError> {
        if bytes.len() > REPORT_LIMIT {
            return Err(SpdmError::Long { len: bytes.len() });
        }
        let (&request, response) = first::<37>(bytes, "request")?;
        let nonce = nonce_of(&request)?;
        let (header, rest) = first::<8>(response, "response header")?;
        let [version, code, _, _, blocks, record_len @ ..] = *header;
        expect("SPDM version of the response", version, VERSION)?;
        expect("code of the response", code, RESPONSE)?;
        let [low, middle, high] = record_len;
        let record_len = usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16;
        let (record, rest) = split(rest, record_len, "measurement record")?;
        let measurements = blocks_of(record, blocks)?;
        let (_, rest) = first::<32>(rest, "response nonce")?;
        let (opaque_len, rest) = first(rest, "opaque data")?;
        let (opaque, rest) = split(rest, u16::from_le_bytes(*opaque_len).into(), "opaque data")?;
        let opaque = fields_of(opaque)?;
        let (_, padding) = first::<SIGNATURE_LEN>(rest, "signature")?;
        if padding.iter().any(|byte| *byte != 0) {
            return Err(SpdmError::Trailing);
        }
        let (bytes, _) = split(bytes, bytes.len() - padding.len(), "signature")?;
        Ok(Report { nonce, measurements, opaque, bytes })
    }

    /// The report without padding: what a verifier that expects the signature at the end is to get.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Check that `key` signed everything before the signature.
    ///
    /// # Errors
    /// [`PkiError::Signature`].
    pub fn verify(&self, key: &PublicKey) -> Result<(), PkiError> {
        let (message, signature) = self.bytes.split_at(self.bytes.len().saturating_sub(SIGNATURE_LEN));
        key.verify(Algorithm::Es384, message, signature)
    }

    /// Version of the driver, such as `550.90.07`.
    pub fn driver_version(&self) -> Option<String> {
        let text = std::str::from_utf8(self.field(Field::DriverVersion)?).ok()?;
        Some(text.trim_end_matches('\0').to_owned())
    }

    /// Version of the VBIOS, such as `96.00.9f.00.01`.
    pub fn vbios_version(&self) -> Option<String> {
        let [d, c, b, a, e, ..] = *self.field(Field::VbiosVersion)? else { return None };
        Some(format!("{a:02x}.{b:02x}.{c:02x}.{d:02x}.{e:02x}"))
    }

    /// Identity of the firmware that signed, 48 bytes.
    pub fn firmware_id(&self) -> Option<&'a [u8]> {
        self.field(Field::FirmwareId)
    }

    fn field(&self, field: Field) -> Option<&'a [u8]> {
        self.opaque.iter().find(|(kind, _)| *kind == field as u16).map(|(_, value)| *value)
    }
}

/// Nonce of a request for all measurements, signed.
fn nonce_of(request: &[u8; 37]) -> Result<[u8; 32], SpdmError> {
    let [version, code, attributes, operation, nonce @ .., _slot] = *request;
    expect("SPDM version of the request", version, VERSION)?;
    expect("code of the request", code, REQUEST)?;
    expect("attributes of the request", attributes, SIGNED)?;
    expect("operation of the request", operation, ALL_MEASUREMENTS)?;
    Ok(nonce)
}

/// Every block of a measurement record: `u8` index, `u8` specification, `u16` length; then, in the DMTF's layout, `u8`
/// type, `u16` length, value.
fn blocks_of(mut record: &[u8], blocks: u8) -> Result<Vec<Measurement<'_>>, SpdmError> {
    let wrong = SpdmError::Record { blocks };
    let mut found: Vec<Measurement<'_>> = Vec::new();
    while let Some((header, rest)) = record.split_first_chunk::<7>() {
        let [index, specification, block_low, block_high, kind, low, high] = *header;
        expect("specification of a measurement", specification, DMTF)?;
        let len = u16::from_le_bytes([low, high]);
        let fits = u32::from(u16::from_le_bytes([block_low, block_high])) == u32::from(len) + 3;
        let again = found.iter().any(|other| other.index == index);
        let (value, rest) = rest.split_at_checked(len.into()).ok_or_else(|| wrong.clone())?;
        if !fits || again {
            return Err(wrong);
        }
        found.push(Measurement { index, kind, value });
        record = rest;
    }
    if record.is_empty() && found.len() == usize::from(blocks) { Ok(found) } else { Err(wrong) }
}

/// Every field of the opaque data.
fn fields_of(mut opaque: &[u8]) -> Result<Vec<(u16, &[u8])>, SpdmError> {
    let mut found: Vec<(u16, &[u8])> = Vec::new();
    while let Some((header, rest)) = opaque.split_first_chunk::<4>() {
        let [kind_low, kind_high, low, high] = *header;
        let kind = u16::from_le_bytes([kind_low, kind_high]);
        let len = u16::from_le_bytes([low, high]);
        let (value, rest) = rest.split_at_checked(len.into()).ok_or(SpdmError::Opaque)?;
        if found.iter().any(|(other, _)| *other == kind) {
            return Err(SpdmError::Opaque);
        }
        found.push((kind, value));
        opaque = rest;
    }
    if opaque.is_empty() { Ok(found) } else { Err(SpdmError::Opaque) }
}

fn first<'a, const LEN: usize>(
    bytes: &'a [u8],
    field: &'static str,
) -> Result<(&'a [u8; LEN], &'a [u8]), SpdmError> {
    bytes.split_first_chunk().ok_or(SpdmError::Short { field })
}

fn split<'a>(bytes: &'a [u8], len: usize, field: &'static str) -> Result<(&'a [u8], &'a [u8]), SpdmError> {
    bytes.split_at_checked(len).ok_or(SpdmError::Short { field })
}

fn expect(field: &'static str, found: u8, expected: u8) -> Result<(), SpdmError> {
    if found == expected { Ok(()) } else { Err(SpdmError::Value { field, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(bytes: &[u8]) -> u16 {
        bytes.len().try_into().unwrap()
    }

    /// A report with one measurement and every field that is read, signed by nobody.
    fn report() -> Vec<u8> {
        let mut bytes = vec![0x11, 0xe0, 1, 0xff];
        bytes.extend([7; 32]);
        bytes.push(0);
        bytes.extend([0x11, 0x60, 0, 0, 1, 55, 0, 0]);
        bytes.extend([1, 1, 51, 0, 1, 48, 0]);
        bytes.extend([0xaa; 48]);
        bytes.extend([9; 32]);
        let fields: [(u16, &[u8]); 3] =
            [(6, &[0, 0x74, 0, 0x96, 0x1a, 0, 0, 0]), (3, b"580.95.05\0"), (20, &[0xf1; 48])];
        let opaque: Vec<u8> = fields
            .iter()
            .flat_map(|(kind, value)| [&kind.to_le_bytes()[..], &length(value).to_le_bytes(), value].concat())
            .collect();
        bytes.extend(length(&opaque).to_le_bytes());
        bytes.extend(opaque);
        bytes.extend([0x55; 96]);
        bytes
    }

    /// Where things are in [`report`].
    const RECORD: usize = 45;
    const OPAQUE: usize = RECORD + 55 + 32;

    #[test]
    fn report_gives_what_it_says() {
        let bytes = report();
        let report = Report::parse(&bytes).unwrap();
        assert_eq!(report.nonce, [7; 32]);
        assert_eq!(report.measurements, [Measurement { index: 1, kind: 1, value: &[0xaa; 48] }]);
        assert_eq!(report.driver_version().as_deref(), Some("580.95.05"));
        assert_eq!(report.vbios_version().as_deref(), Some("96.00.74.00.1a"));
        assert_eq!(report.firmware_id(), Some(&[0xf1; 48][..]));
        assert_eq!(report.bytes(), bytes);
    }

    #[test]
    fn zeros_after_the_signature_are_left_out_and_anything_else_is_refused() {
        let whole = report();
        let mut padded = [whole.clone(), vec![0; 3]].concat();
        assert_eq!(Report::parse(&padded).unwrap().bytes(), whole);
        padded[whole.len() + 1] = 1;
        assert_eq!(Report::parse(&padded), Err(SpdmError::Trailing));
        assert_eq!(Report::parse(&vec![0; 8193]), Err(SpdmError::Long { len: 8193 }));
    }

    #[test]
    fn every_cut_is_an_error() {
        let bytes = report();
        for len in 0..bytes.len() {
            let error = Report::parse(&bytes[..len]).unwrap_err();
            assert!(matches!(error, SpdmError::Short { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn changed_header_or_layout_is_named() {
        let value = |field, found, expected| SpdmError::Value { field, found, expected };
        for (at, with, expected) in [
            (0, 0x12, value("SPDM version of the request", 0x12, 0x11)),
            (1, 0x60, value("code of the request", 0x60, 0xe0)),
            (2, 0, value("attributes of the request", 0, 1)),
            (3, 1, value("operation of the request", 1, 0xff)),
            (37, 0x10, value("SPDM version of the response", 0x10, 0x11)),
            (38, 0x7f, value("code of the response", 0x7f, 0x60)),
            (41, 2, SpdmError::Record { blocks: 2 }),
            (RECORD + 1, 2, value("specification of a measurement", 2, 1)),
            (RECORD + 2, 50, SpdmError::Record { blocks: 1 }),
            (RECORD + 5, 49, SpdmError::Record { blocks: 1 }),
            (OPAQUE + 2, 3, SpdmError::Opaque),
            (OPAQUE + 14, 6, SpdmError::Opaque),
        ] {
            let mut bytes = report();
            bytes[at] = with;
            assert_eq!(Report::parse(&bytes), Err(expected), "byte {at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_change_of_a_report_is_parsed_or_refused(at in 0_usize..400, with in proptest::prelude::any::<u8>()) {
            let mut bytes = report();
            let at = at % bytes.len();
            bytes[at] = with;
            if let Ok(report) = Report::parse(&bytes) {
                let _ = (report.driver_version(), report.vbios_version(), report.firmware_id());
                proptest::prop_assert!(report.bytes().len() >= 37 + 8 + 34 + SIGNATURE_LEN);
            }
        }

        #[test]
        fn any_bytes_are_a_report_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            let _ = Report::parse(&[&report()[..37], &bytes].concat());
            let _ = Report::parse(&bytes);
        }
    }
}
