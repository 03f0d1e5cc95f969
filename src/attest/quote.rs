//! TDX quotes: what a TD's quote says, read out of its bytes.
//!
//! The signature is the verifier's to check: cai reads its own quote to see that it is bound to what was asked, that the TD
//! cannot be debugged, and to tell people the measurements. Source of every offset: kbs.md section 7.1.4.

use super::TdxClaims;
use super::cursor::Cursor;

/// Longest quote that is looked at, in bytes: real ones have 5 KiB, Intel's own buffer is 16 KiB.
pub const QUOTE_LIMIT: usize = 64 << 10;

/// Length of a TDREPORT, in bytes.
pub const TD_REPORT_LEN: usize = 1024;

/// Where a TDREPORT repeats the report data.
const TD_REPORT_DATA: std::ops::Range<usize> = 128..192;

/// `tee_type` of a TD in a quote's header.
const TEE_TDX: u32 = 0x81;

/// Rest of the header after version, key type and TEE type: reserved, vendor, user data.
const HEADER_REST: usize = 40;

/// Length of a TD report's body, in bytes: TDX 1.0. Later bodies begin with it.
const BODY_10: usize = 584;

/// Body types of a version 5 quote, with their lengths: TDX 1.0, 1.5, and 1.5 extended.
const BODIES: [(u16, usize); 3] = [(2, BODY_10), (3, 648), (4, 885)];

/// Bit 0 of the TD's attributes: its memory can be read from outside.
const DEBUG: u8 = 1;

/// Bytes that are no quote of a TD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuoteError {
    /// Nothing at all.
    #[error("the quote is empty")]
    Empty,
    /// More than [`QUOTE_LIMIT`].
    #[error("the quote has {len} bytes, more than {QUOTE_LIMIT}")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Cut within a field.
    #[error("the quote ends within its {field}")]
    Cut {
        /// Which field.
        field: &'static str,
    },
    /// Not version 4 or 5.
    #[error("the quote has version {version}, expected 4 or 5")]
    Version {
        /// Its version.
        version: u16,
    },
    /// Of another TEE.
    #[error("the quote is of TEE type {tee_type:#x}, expected {TEE_TDX:#x}")]
    TeeType {
        /// Its TEE.
        tee_type: u32,
    },
    /// A version 5 quote whose body is no TD report, or not as long as its type.
    #[error("the quote has a body of type {body_type} and {len} bytes, which is no TD report")]
    Body {
        /// Its type.
        body_type: u16,
        /// Its length.
        len: u32,
    },
    /// No signature.
    #[error("the quote is not signed")]
    Unsigned,
}

/// What a TD's quote says. Byte strings as they stand in the quote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// 4 or 5.
    pub version: u16,
    /// Security version numbers of the platform.
    pub tee_tcb_svn: [u8; 16],
    /// The TDX module.
    pub mr_seam: [u8; 48],
    /// Attributes of the TD; bit 0 is DEBUG.
    pub td_attributes: [u8; 8],
    /// Extended features of the TD.
    pub xfam: [u8; 8],
    /// Initial contents of the TD.
    pub mrtd: [u8; 48],
    /// Set by the host at launch.
    pub mr_config_id: [u8; 48],
    /// Set by the host at launch.
    pub mr_owner: [u8; 48],
    /// Set by the host at launch.
    pub mr_owner_config: [u8; 48],
    /// RTMR0 to RTMR3.
    pub rtmrs: [[u8; 48]; 4],
    /// What the quote is bound to.
    pub report_data: [u8; 64],
}

impl Quote {
    /// Read a quote, version 4 or 5. The signature is measured, not checked; what follows it is padding.
    ///
    /// # Errors
    /// [`QuoteError`] with the field that is wrong or missing.
    pub fn parse(bytes: &[u8]) -> Result<Self, QuoteError> {
        match bytes.len() {
            0 => return Err(QuoteError::Empty),
            len if len > QUOTE_LIMIT => return Err(QuoteError::TooLong { len }),
            _ => {}
        }
        let mut rest = Cursor(bytes);
        let version = header(&mut rest)?;
        let body_len = if version == 5 { body_5(&mut rest)? } else { BODY_10 };
        let body = rest.take(body_len).ok_or(QuoteError::Cut { field: "TD report" })?;
        let signature = rest.sized().ok_or(QuoteError::Cut { field: "signature" })?;
        if signature.is_empty() {
            return Err(QuoteError::Unsigned);
        }
        Self::from_body(version, Cursor(body)).ok_or(QuoteError::Cut { field: "TD report" })
    }

    fn from_body(version: u16, mut body: Cursor<'_>) -> Option<Self> {
        let tee_tcb_svn = body.array()?;
        let mr_seam = body.array()?;
        let _mr_signer_seam_and_seam_attributes = body.take(48 + 8)?;
        Some(Quote {
            version,
            tee_tcb_svn,
            mr_seam,
            td_attributes: body.array()?,
            xfam: body.array()?,
            mrtd: body.array()?,
            mr_config_id: body.array()?,
            mr_owner: body.array()?,
            mr_owner_config: body.array()?,
            rtmrs: [body.array()?, body.array()?, body.array()?, body.array()?],
            report_data: body.array()?,
        })
    }

    /// Whether the host can look into the TD.
    pub fn debug(&self) -> bool {
        let [first, ..] = self.td_attributes;
        first & DEBUG != 0
    }

    /// The same for people; [`TdxClaims::boot`] is the event log's to fill.
    pub fn claims(&self) -> TdxClaims {
        TdxClaims {
            mrtd: hex::encode(self.mrtd),
            rtmrs: self.rtmrs.map(hex::encode),
            mr_config_id: hex::encode(self.mr_config_id),
            mr_owner: hex::encode(self.mr_owner),
            mr_owner_config: hex::encode(self.mr_owner_config),
            xfam: hex::encode(self.xfam),
            td_attributes: hex::encode(self.td_attributes),
            tee_tcb_svn: hex::encode(self.tee_tcb_svn),
            mr_seam: hex::encode(self.mr_seam),
            boot: Default::default(),
        }
    }
}

/// The header's version, once the header is a TD's.
fn header(rest: &mut Cursor<'_>) -> Result<u16, QuoteError> {
    let cut = QuoteError::Cut { field: "header" };
    let version = rest.u16().ok_or(cut)?;
    if !matches!(version, 4 | 5) {
        return Err(QuoteError::Version { version });
    }
    let _key_type = rest.u16().ok_or(cut)?;
    let tee_type = rest.u32().ok_or(cut)?;
    if tee_type != TEE_TDX {
        return Err(QuoteError::TeeType { tee_type });
    }
    rest.take(HEADER_REST).ok_or(cut)?;
    Ok(version)
}

/// Length of a version 5 quote's body.
fn body_5(rest: &mut Cursor<'_>) -> Result<usize, QuoteError> {
    let cut = QuoteError::Cut { field: "body header" };
    let (body_type, len) = rest.u16().zip(rest.u32()).ok_or(cut)?;
    BODIES
        .into_iter()
        .find(|(known, known_len)| *known == body_type && u32::try_from(*known_len) == Ok(len))
        .map(|(_, len)| len)
        .ok_or(QuoteError::Body { body_type, len })
}

/// The report data of a TDREPORT; `None` where these are not the bytes of one.
pub fn td_report_data(report: &[u8]) -> Option<[u8; 64]> {
    (report.len() == TD_REPORT_LEN).then(|| report.get(TD_REPORT_DATA)?.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A version 4 quote whose bytes at and after the header count up.
    fn version_4() -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..48 + BODY_10).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
        bytes[..8].copy_from_slice(&[4, 0, 2, 0, 0x81, 0, 0, 0]);
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(b"sig");
        bytes
    }

    fn version_5(body_type: u16, len: usize) -> Vec<u8> {
        let mut bytes = version_4();
        bytes.truncate(48 + BODY_10);
        bytes.resize(48 + len, 0);
        bytes.splice(
            48..48,
            [&body_type.to_le_bytes()[..], &u32::try_from(len).unwrap().to_le_bytes()].concat(),
        );
        bytes[0] = 5;
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(b"sig");
        bytes
    }

    #[test]
    fn fields_are_read_at_the_offsets_of_the_layout() {
        let bytes = version_4();
        let quote = Quote::parse(&bytes).unwrap();
        assert_eq!(quote.mrtd, bytes[184..232]);
        assert_eq!(quote.rtmrs.concat(), bytes[376..568]);
        assert_eq!(quote.report_data, bytes[568..632]);
        assert_eq!(quote.td_attributes, bytes[168..176]);
    }

    #[test]
    fn version_5_bodies_read_like_version_4_whatever_follows_the_common_part() {
        let expected = Quote { version: 5, ..Quote::parse(&version_4()).unwrap() };
        for (body_type, len) in BODIES {
            assert_eq!(Quote::parse(&version_5(body_type, len)).unwrap(), expected, "type {body_type}");
        }
    }

    #[test]
    fn version_5_body_of_another_kind_or_length_is_refused() {
        for (body_type, len) in [(1, 384), (2, 648), (3, 584), (5, 584)] {
            assert_eq!(
                Quote::parse(&version_5(body_type, len)).unwrap_err(),
                QuoteError::Body { body_type, len: u32::try_from(len).unwrap() }
            );
        }
    }

    #[test]
    fn quote_cut_anywhere_is_refused_naming_the_field() {
        let bytes = version_4();
        for end in 0..bytes.len() {
            let field = match end {
                0 => {
                    assert_eq!(Quote::parse(&[]).unwrap_err(), QuoteError::Empty);
                    continue;
                }
                1..48 => "header",
                48..632 => "TD report",
                _ => "signature",
            };
            assert_eq!(Quote::parse(&bytes[..end]).unwrap_err(), QuoteError::Cut { field }, "at {end}");
        }
    }

    #[test]
    fn quote_of_another_version_or_tee_or_without_signature_is_refused() {
        let change = |at: usize, byte: u8| {
            let mut bytes = version_4();
            bytes[at] = byte;
            Quote::parse(&bytes).unwrap_err()
        };
        assert_eq!(change(0, 3), QuoteError::Version { version: 3 });
        assert_eq!(change(4, 0), QuoteError::TeeType { tee_type: 0 });
        assert_eq!(change(632, 0), QuoteError::Unsigned);
        let long = vec![4; QUOTE_LIMIT + 1];
        assert_eq!(Quote::parse(&long).unwrap_err(), QuoteError::TooLong { len: QUOTE_LIMIT + 1 });
    }

    #[test]
    fn debug_is_bit_0_of_the_attributes_alone() {
        let mut bytes = version_4();
        bytes[168..176].fill(0xff);
        bytes[168] = 0xfe;
        assert!(!Quote::parse(&bytes).unwrap().debug());
        bytes[168..176].fill(0);
        bytes[168] = 1;
        assert!(Quote::parse(&bytes).unwrap().debug());
    }

    #[test]
    fn td_report_of_another_length_has_no_report_data() {
        let report: Vec<u8> =
            (0..TD_REPORT_LEN).map(|at| u8::try_from(at % 251).unwrap_or_default()).collect();
        assert_eq!(td_report_data(&report).unwrap(), report[128..192]);
        assert_eq!(td_report_data(&report[..1023]), None);
        assert_eq!(td_report_data(&[report, vec![0]].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048), kind in 0..3usize) {
            let mut bytes = bytes;
            let start = [&[][..], &[4, 0, 2, 0, 0x81, 0, 0, 0], &[5, 0, 2, 0, 0x81, 0, 0, 0]][kind];
            bytes.splice(..start.len().min(bytes.len()), start.iter().copied());
            if let Ok(quote) = Quote::parse(&bytes) {
                prop_assert!(bytes.windows(64).any(|window| window == quote.report_data));
            }
            let _ = td_report_data(&bytes);
        }
    }
}
