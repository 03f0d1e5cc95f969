use super::*;
use crate::attest::eventlog::tests::{entry, header_384};
use crate::attest::quote::Quote;
use crate::config::EventLog as Choice;

const IPL: u32 = 13;
const KERNEL: &[u8] = b"grub_linuxefi Kernel";

/// A quote whose registers are what `log` replays to.
fn quote_of(log: &[u8]) -> Quote {
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
        rtmrs: EventLog::parse(log).unwrap().replay(),
        report_data: [0; 64],
    }
}

fn ccel() -> Vec<u8> {
    [header_384(), entry(1, 4, [1; 48], b""), entry(3, IPL, [2; 48], KERNEL)].concat()
}

fn agents() -> Vec<u8> {
    entry(4, 6, [3; 48], b"LEAA\x05\0\0\0a b c")
}

fn text() -> String {
    format!("INIT sha384/{}\nexample.com load one\nexample.com load two\n", "0".repeat(96))
}

fn logs(ccel: &[u8], aael: Option<&[u8]>) -> Logs {
    Logs { ccel: Some(ccel.to_vec()), aael: aael.map(<[u8]>::to_vec) }
}

fn marked(log: &[u8]) -> Vec<u8> {
    [log, &[0xff; 8]].concat()
}

#[test]
fn boot_log_that_replays_goes_out_trimmed_without_a_notice() {
    let filled = [ccel(), vec![0xff; 4096]].concat();
    for (verifier, name) in
        [(Verifier::Legacy, "measurement.kernel.SHA384"), (Verifier::Current, "measurement.kernel.SHA-384")]
    {
        let selected = select(&logs(&filled, None), &quote_of(&ccel()), verifier, Choice::Auto);
        let boot = BTreeMap::from([(name.to_owned(), vec!["02".repeat(48)])]);
        assert_eq!(selected, Selected { cc: Some(marked(&ccel())), boot, ..Selected::default() });
    }
}

#[test]
fn boot_log_that_does_not_replay_is_left_out_naming_the_register_and_sent_on_demand() {
    let mut quote = quote_of(&ccel());
    quote.rtmrs[1] = [9; 48];
    for verifier in [Verifier::Legacy, Verifier::Current] {
        let logs = logs(&ccel(), None);
        let auto = select(&logs, &quote, verifier, Choice::Auto);
        let trouble = format!("RTMR1 replays to {}, the quote has {}", "00".repeat(48), "09".repeat(48));
        let notice =
            format!("the boot event log is left out (attest.event_log = \"always\" sends it): {trouble}");
        assert_eq!(auto, Selected { notices: vec![notice], ..Selected::default() });
        let always = select(&logs, &quote, verifier, Choice::Always);
        let notice = format!("the boot event log is sent, as attest.event_log demands, but {trouble}");
        let cc = Some(marked(&ccel()));
        assert_eq!(always, Selected { cc, notices: vec![notice], ..Selected::default() });
    }
}

#[test]
fn rtmr3_extended_without_a_log_matters_to_the_current_generation_alone() {
    let mut quote = quote_of(&ccel());
    quote.rtmrs[3] = [9; 48];
    let legacy = select(&logs(&ccel(), None), &quote, Verifier::Legacy, Choice::Auto);
    assert_eq!((legacy.cc, legacy.notices), (Some(marked(&ccel())), vec![]));
    let current = select(&logs(&ccel(), None), &quote, Verifier::Current, Choice::Auto);
    assert_eq!(current.cc, None);
    assert!(current.notices[0].contains(": RTMR3 replays to 0000"), "{:?}", current.notices);
    // What was booted is still known, and worth showing to whoever writes a policy.
    assert_eq!(current.boot.keys().collect::<Vec<_>>(), ["measurement.kernel.SHA-384"]);
}

#[test]
fn agents_binary_log_goes_behind_the_boot_log_of_the_current_generation_alone() {
    let both = [ccel(), agents()].concat();
    let quote = quote_of(&both);
    let logs = logs(&ccel(), Some(&agents()));
    let current = select(&logs, &quote, Verifier::Current, Choice::Auto);
    assert_eq!((current.cc, current.aa, current.notices), (Some(marked(&both)), None, vec![]));
    let legacy = select(&logs, &quote, Verifier::Legacy, Choice::Auto);
    assert_eq!((legacy.cc, legacy.aa), (Some(marked(&ccel())), None));
    let notice =
        "the agents' event log is left out: it is binary, which this generation of verifiers does not read";
    assert_eq!(legacy.notices, [notice]);
}

#[test]
fn agents_text_log_goes_to_the_old_generation_as_it_stands_if_it_replays() {
    let mut quote = quote_of(&ccel());
    quote.rtmrs[3] = replay_text(&text()).unwrap();
    let mut logs = logs(&ccel(), Some(text().as_bytes()));
    let legacy = select(&logs, &quote, Verifier::Legacy, Choice::Auto);
    assert_eq!((legacy.cc, legacy.aa, legacy.notices), (Some(marked(&ccel())), Some(text()), vec![]));
    let current = select(&logs, &quote, Verifier::Current, Choice::Auto);
    assert_eq!((current.cc, current.aa, current.notices.len()), (None, None, 2));
    assert!(current.notices[0].contains("it is text"), "{:?}", current.notices);
    assert!(current.notices[1].contains("RTMR3"), "{:?}", current.notices);

    quote.rtmrs[3] = [0; 48];
    let auto = select(&logs, &quote, Verifier::Legacy, Choice::Auto);
    assert_eq!((auto.cc, auto.aa), (Some(marked(&ccel())), None));
    assert!(auto.notices[0].starts_with("the agents' event log is left out"), "{:?}", auto.notices);
    assert!(auto.notices[0].contains("RTMR3 replays to"), "{:?}", auto.notices);
    assert_eq!(select(&logs, &quote, Verifier::Legacy, Choice::Always).aa, Some(text()));
    logs.aael = Some(b"INIT sha1/00\n".to_vec());
    let unreadable = select(&logs, &quote, Verifier::Legacy, Choice::Auto);
    assert!(unreadable.notices[0].ends_with("it cannot be read"), "{:?}", unreadable.notices);
}

#[test]
fn agents_log_without_a_boot_log_gets_a_header_of_its_own() {
    let only = Logs { ccel: None, aael: Some(agents()) };
    let expected = [EventLog::empty().trimmed()[..69].to_vec(), agents()].concat();
    let selected = select(&only, &quote_of(&expected), Verifier::Current, Choice::Auto);
    assert_eq!(selected.cc, Some(marked(&expected)));
    assert!(selected.notices[0].contains("no boot event log"), "{:?}", selected.notices);
    assert_eq!(EventLog::parse(&selected.cc.unwrap()).unwrap().events().len(), 1);
}

#[test]
fn machine_without_logs_sends_none_and_says_so() {
    let empty = Logs { ccel: Some(Vec::new()), aael: Some(Vec::new()) };
    for logs in [Logs::default(), empty] {
        let selected = select(&logs, &quote_of(&ccel()), Verifier::Current, Choice::Always);
        assert_eq!((selected.cc, selected.aa, selected.notices.len()), (None, None, 1));
    }
    let never = select(&logs(&ccel(), None), &quote_of(&ccel()), Verifier::Current, Choice::Never);
    let notice = "event logs are left out: attest.event_log is \"never\"".to_owned();
    assert_eq!(never, Selected { notices: vec![notice], ..Selected::default() });
}

#[test]
fn log_that_cannot_be_read_goes_out_raw_only_on_demand() {
    let cut = &ccel()[..ccel().len() - 1];
    let auto = select(&logs(cut, None), &quote_of(&ccel()), Verifier::Current, Choice::Auto);
    assert_eq!((auto.cc, auto.boot.len()), (None, 0));
    assert!(auto.notices[0].ends_with("event 1 of the event log cannot be read"), "{:?}", auto.notices);
    let always = select(&logs(cut, None), &quote_of(&ccel()), Verifier::Current, Choice::Always);
    assert_eq!((always.cc.as_deref(), always.notices.len()), (Some(cut), 1));
}

#[test]
fn remarks_between_events_stop_the_old_generation() {
    let remarked = [ccel(), entry(0, 3, [0; 48], b"firmware's remark")].concat();
    let quote = quote_of(&remarked);
    let legacy = select(&logs(&remarked, None), &quote, Verifier::Legacy, Choice::Auto);
    assert_eq!(legacy.cc, None);
    assert!(legacy.notices[0].contains("remarks"), "{:?}", legacy.notices);
    let current = select(&logs(&remarked, None), &quote, Verifier::Current, Choice::Auto);
    assert_eq!((current.cc, current.notices), (Some(marked(&remarked)), vec![]));
}

#[test]
fn text_log_replays_from_its_initial_value_line_by_line() {
    let hash = |state: [u8; 48], line: &str| extended(&state, &Sha384::digest(line).into());
    let expected = hash(hash([0; 48], "example.com load one"), "example.com load two");
    assert_eq!(replay_text(&text()), Some(expected));
    assert_eq!(replay_text(text().trim_end()), Some(expected));
    assert_eq!(replay_text(&format!("INIT sha384/{}", "ab".repeat(48))), Some([0xab; 48]));
    for none in ["", "\n", "INIT sha384/", "INIT sha256/00", "example.com load one"] {
        assert_eq!(replay_text(none), None, "{none:?}");
    }
}
