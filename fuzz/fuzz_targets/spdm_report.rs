//! A GPU's attestation report, which passes through the driver of a machine that is not trusted yet.
//!
//! Holds: no input panics; the report is the start of the input and only zeros follow it; nonce and measurements stand
//! where the layout has them and fill the record; a report is signed by no key that nobody has.
#![no_main]

use std::sync::LazyLock;

use cai::attest::spdm::{REPORT_LIMIT, Report};
use cai::pki::PublicKey;
use libfuzzer_sys::fuzz_target;

/// A key made now, whose private half is gone.
static NOBODY: LazyLock<PublicKey> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    PublicKey::from_spki(rcgen::PublicKeyData::subject_public_key_info(&key))
});

/// Request, header of the response; header of a measurement.
const RECORD_AT: usize = 37 + 8;
const MEASUREMENT_HEADER: usize = 7;

fuzz_target!(|bytes: &[u8]| {
    let Ok(report) = Report::parse(bytes) else { return };
    assert!(bytes.len() <= REPORT_LIMIT);
    let (whole, padding) = bytes.split_at(report.bytes().len());
    assert!(whole == report.bytes() && padding.iter().all(|byte| *byte == 0));
    assert_eq!(Report::parse(whole).as_ref(), Ok(&report));
    assert_eq!(whole[4..36], report.nonce);

    let record_len =
        report.measurements.iter().map(|one| MEASUREMENT_HEADER + one.value.len()).sum::<usize>();
    let [low, middle, high] = whole[RECORD_AT - 3..RECORD_AT].try_into().unwrap();
    assert_eq!(usize::try_from(u32::from_le_bytes([low, middle, high, 0])).unwrap(), record_len);
    let mut at = RECORD_AT;
    for measurement in &report.measurements {
        at += MEASUREMENT_HEADER;
        assert_eq!(&whole[at..][..measurement.value.len()], measurement.value);
        at += measurement.value.len();
    }
    let _ = (report.driver_version(), report.vbios_version(), report.firmware_id());
    assert!(report.verify(&NOBODY).is_err());
});
