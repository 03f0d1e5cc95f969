//! An answer that says no, from a broker, a gateway, or whatever sits in between.
//!
//! Holds: no input panics; what is kept of it is bounded, shows no control character to a terminal, and is one line.
#![no_main]

use cai::kbs::{Refusal, Step};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Some((status, body)) = body.split_first_chunk() else { return };
    let status = u16::from_le_bytes(*status);
    for step in [Step::Auth, Step::Attest, Step::Resource] {
        let refusal = Refusal::read(step, status, body);
        assert!(refusal.kind.chars().count() <= 65 && refusal.detail.chars().count() <= 2049);
        assert_eq!((refusal.step, refusal.status), (step, status));
        let shown = refusal.to_string();
        assert!(!shown.contains(|c: char| c.is_control() || c == '\u{202e}'), "{shown:?}");
    }
});
