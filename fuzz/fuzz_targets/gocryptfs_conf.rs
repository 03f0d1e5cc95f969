//! `gocryptfs.conf`, which comes from the same bucket as the ciphertext.
//!
//! Holds: no input panics or takes much memory; a conf that is taken is written as one that says the same, and writing
//! it again changes nothing.
#![no_main]

use cai::gocryptfs::Conf;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(conf) = Conf::parse(json) else { return };
    let written = conf.to_json().unwrap();
    let again = Conf::parse(&written).expect("what cai writes, it reads");
    assert_eq!(again.creator, conf.creator);
    assert_eq!(again.to_json().unwrap(), written);
});
