//! The certificate that a peer shows, before anything is known of the peer.
//!
//! Holds: no input panics; a certificate that is taken contains its key and its evidence, and loses its signature with any
//! changed bit at its end.
#![no_main]

use cai::ratls::certificate::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|der: &[u8]| {
    let Ok(read) = parse(der) else { return };
    let holds = |part: &[u8]| part.is_empty() || der.windows(part.len()).any(|window| window == part);
    assert!(holds(&read.blob) && holds(read.key.spki()));
    let mut changed = der.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert!(parse(&changed).is_err());
});
