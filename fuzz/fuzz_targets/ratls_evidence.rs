//! The evidence in a certificate, which anybody who answers on the port may have written.
//!
//! Holds: no input panics; what is read is written again and reads the same; evidence binds the key of the vectors only if
//! its runtime data names the hash of that key, and never a second key too.
#![no_main]

use cai::ratls::Format;
use cai::ratls::evidence::{TaggedEvidence, legacy_runtime_data};
use libfuzzer_sys::fuzz_target;

/// The key of the vectors: SubjectPublicKeyInfo.
const SPKI: &str = "3059301306072a8648ce3d020106082a8648ce3d0301070342000441f648f9333c0ca0c05ea11237154bce9a72d43ed115\
                    278050f2e932d539197c9fc9eafbf8087beab64b8f619c90ee75747454c7bc96270617d7be575ae28ac3";

fuzz_target!(|blob: &[u8]| {
    let Ok(tagged) = TaggedEvidence::decode(blob) else { return };
    // The legacy format has no place for it.
    let again = match tagged.format() {
        Format::Legacy => TaggedEvidence { additional: None, ..tagged.clone() },
        Format::Current => tagged.clone(),
    };
    assert_eq!(TaggedEvidence::decode(&again.encode()).as_ref(), Ok(&again));
    let spki = hex::decode(SPKI).unwrap();
    if let Ok(object) = tagged.bound(&spki) {
        match tagged.format() {
            Format::Legacy => assert_eq!(tagged.runtime_data, legacy_runtime_data(&tagged.claims)),
            Format::Current => {
                assert_eq!(object["pubkey-hash"], "ggFYIKY1ik65N2mHVihkWwUz2PAYyaFsKBTtE7ml1fMis82h");
            }
        }
        assert!(tagged.bound(&spki[1..]).is_err());
    }
});
