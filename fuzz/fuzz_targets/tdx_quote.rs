//! A TDX quote, as a host's quoting service gives it.
//!
//! Holds: no input panics; what is read stands in the quote at the place the layout gives it; the quote ends where its
//! signature says, so that one byte less is refused and more is ignored.
#![no_main]

use cai::attest::quote::{QUOTE_LIMIT, Quote, TD_REPORT_LEN, td_report_data};
use libfuzzer_sys::fuzz_target;

/// Length of the header, and of what version 5 has between it and the body.
const HEADER: usize = 48;
const BODY_HEADER: usize = 6;

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(td_report_data(bytes).is_some(), bytes.len() == TD_REPORT_LEN);
    let Ok(quote) = Quote::parse(bytes) else { return };
    assert!(bytes.len() <= QUOTE_LIMIT);
    let (start, body_len) = match quote.version {
        4 => (HEADER, 584),
        5 => {
            let len = u32::from_le_bytes(bytes[HEADER + 2..HEADER + 6].try_into().unwrap());
            (HEADER + BODY_HEADER, usize::try_from(len).unwrap())
        }
        other => panic!("version {other}"),
    };
    let body = &bytes[start..];
    assert_eq!(body[..16], quote.tee_tcb_svn);
    assert_eq!(body[120..128], quote.td_attributes);
    assert_eq!(body[128..136], quote.xfam);
    assert_eq!(body[136..184], quote.mrtd);
    for (index, rtmr) in quote.rtmrs.iter().enumerate() {
        assert_eq!(&body[328 + 48 * index..][..48], rtmr);
    }
    assert_eq!(body[520..584], quote.report_data);
    assert_eq!(quote.debug(), body[120] & 1 == 1);
    assert_eq!(quote.claims().mrtd, hex::encode(quote.mrtd));

    let signature_len = u32::from_le_bytes(body[body_len..body_len + 4].try_into().unwrap());
    let end = start + body_len + 4 + usize::try_from(signature_len).unwrap();
    assert_eq!(Quote::parse(&bytes[..end]).as_ref(), Ok(&quote));
    assert!(Quote::parse(&bytes[..end - 1]).is_err());
});
