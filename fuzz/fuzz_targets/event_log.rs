//! The boot event log (ACPI table CCEL) and the choice whether it goes out.
//!
//! Holds: no input panics or takes more memory than a small multiple of itself; the log that is sent reads as the same
//! events and replays to the same registers; with `auto`, a log goes out exactly when it replays to the quote.
#![no_main]

use cai::attest::Verifier;
use cai::attest::eventlog::EventLog;
use cai::attest::logs::{Logs, select};
use cai::attest::quote::Quote;
use cai::config;
use libfuzzer_sys::fuzz_target;

/// Least length of an event: register, kind, number of digests, length of its data.
const EVENT_MIN: usize = 16;

fuzz_target!(|log: &[u8]| {
    let Ok(parsed) = EventLog::parse(log) else { return };
    assert!(parsed.events().len() <= log.len() / EVENT_MIN);
    let sent = parsed.trimmed();
    assert!(sent.len() <= log.len() + 8);
    let again = EventLog::parse(&sent).expect("what is sent can be read");
    assert_eq!(again.events(), parsed.events());
    assert_eq!(again.replay(), parsed.replay());
    assert_eq!(again.trimmed(), sent);

    let logs = Logs { ccel: Some(log.to_vec()), aael: None };
    let mut quote = quote(parsed.replay());
    let fitting = select(&logs, &quote, Verifier::Current, config::EventLog::Auto);
    assert_eq!(fitting.cc, Some(sent.clone()), "{:?}", fitting.notices);
    quote.rtmrs[3][0] ^= 1;
    let other = select(&logs, &quote, Verifier::Current, config::EventLog::Auto);
    assert!(other.cc.is_none() && !other.notices.is_empty());
    let forced = select(&logs, &quote, Verifier::Current, config::EventLog::Always);
    assert!(forced.cc == Some(sent) && !forced.notices.is_empty());
});

fn quote(rtmrs: [[u8; 48]; 4]) -> Quote {
    Quote {
        version: 4,
        tee_tcb_svn: [0; 16],
        mr_seam: [0; 48],
        td_attributes: [0; 8],
        xfam: [0; 8],
        mrtd: [0; 48],
        mr_config_id: [0; 48],
        mr_owner: [0; 48],
        mr_owner_config: [0; 48],
        rtmrs,
        report_data: [0; 64],
    }
}
