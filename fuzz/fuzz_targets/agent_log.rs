//! The agents' event log (AAEL), text or binary, which any privileged process of the guest can write.
//!
//! Holds: no input panics; binary events behind an empty boot log read back from what is sent; text replays line by line,
//! each line changing the register; with `auto`, a log that does not replay to the quote never goes out, and its fate is
//! told.
#![no_main]

use cai::attest::Verifier;
use cai::attest::eventlog::EventLog;
use cai::attest::logs::{Logs, replay_text, select};
use cai::attest::quote::Quote;
use cai::config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    let mut binary = EventLog::empty();
    if binary.append(log).is_ok() {
        let sent = binary.trimmed();
        let again = EventLog::parse(&sent).expect("what is sent can be read");
        assert_eq!(again.events(), binary.events());
        assert_eq!(again.replay(), binary.replay());
    }
    if let Ok(text) = std::str::from_utf8(log)
        && let Some(state) = replay_text(text)
    {
        let longer = format!("{}\ndomain operation content", text.trim_end_matches('\n'));
        assert_ne!(replay_text(&longer), Some(state));
    }
    let logs = Logs { ccel: None, aael: Some(log.to_vec()) };
    for verifier in [Verifier::Legacy, Verifier::Current] {
        // Registers that nothing replays to.
        let chosen = select(&logs, &quote([[0x5a; 48]; 4]), verifier, config::EventLog::Auto);
        assert!(chosen.cc.is_none() && chosen.aa.is_none() && !chosen.notices.is_empty());
        let never = select(&logs, &quote([[0; 48]; 4]), verifier, config::EventLog::Never);
        assert!(never.cc.is_none() && never.aa.is_none());
    }
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
