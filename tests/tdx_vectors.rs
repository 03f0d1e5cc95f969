//! Real TDX quotes and a real boot event log, each whole and with every bit flipped, against readers that cai has not
//! written: `dcap-qvl` for quotes (which verifies its own samples offline), `eventlog-rs` for logs (the parser in Trustee's
//! old generation). The data is other people's and read from `CAI_VECTORS`; without it the tests skip.

mod common;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use cai::attest::Verifier;
use cai::attest::eventlog::{END_MARK, EventLog};
use cai::attest::logs::{Logs, select};
use cai::attest::quote::{Quote, QuoteError};
use cai::config;
use common::available;
use dcap_qvl::quote::{Report, TDReport10};

/// A file of other people's data.
fn vector(name: &str) -> Option<Vec<u8>> {
    let directory = std::env::var("CAI_VECTORS").unwrap_or_else(|_| "../shared/vectors".into());
    let path = PathBuf::from(directory).join("tdx").join(name);
    available("vectors", path.exists(), "no TDX vectors: set CAI_VECTORS")
        .then(|| std::fs::read(path).unwrap())
}

/// What the other reader finds in a quote.
fn report(bytes: &[u8]) -> Option<TDReport10> {
    match dcap_qvl::quote::Quote::parse(bytes).ok()?.report {
        Report::SgxEnclave(_) => None,
        Report::TD10(report) => Some(report),
        Report::TD15(report) => Some(report.base),
        Report::TD15Ex(report) => Some(report.base.base),
    }
}

/// What ours finds, in the other's words. What ours does not keep is taken from `other`.
fn ours(quote: &Quote, other: &TDReport10) -> TDReport10 {
    let [rt_mr0, rt_mr1, rt_mr2, rt_mr3] = quote.rtmrs;
    TDReport10 {
        tee_tcb_svn: quote.tee_tcb_svn,
        mr_seam: quote.mr_seam,
        td_attributes: quote.td_attributes,
        xfam: quote.xfam,
        mr_td: quote.mrtd,
        mr_config_id: quote.mr_config_id,
        mr_owner: quote.mr_owner,
        mr_owner_config: quote.mr_owner_config,
        rt_mr0,
        rt_mr1,
        rt_mr2,
        rt_mr3,
        report_data: quote.report_data,
        ..*other
    }
}

/// What a flipped bit must do, by where it is. `body` is where the TD report starts, `end` where its signature's length is.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Refused,
    Changed,
    /// The verifier's business alone: header fields nobody reads, the TDX module's signer, the signature.
    Nothing,
}

fn effect(bytes: &[u8], at: usize, bit: u8, whole: &Quote) -> Effect {
    let mut flipped = bytes.to_vec();
    flipped[at] ^= 1 << bit;
    match Quote::parse(&flipped) {
        Err(_) => Effect::Refused,
        Ok(quote) if quote == *whole => Effect::Nothing,
        Ok(quote) => {
            if let Some(other) = report(&flipped) {
                assert_eq!(ours(&quote, &other), other, "bit {bit} of byte {at}");
            }
            Effect::Changed
        }
    }
}

/// Every bit of `bytes`, flipped: the effects that bits of each stretch have.
fn check_flips(bytes: &[u8], body: usize, len: usize) {
    let whole = Quote::parse(bytes).unwrap();
    let end = body + len;
    let stretch = |at: usize| match at {
        0..2 => "version",
        2..4 => "key type",
        4..8 => "tee type",
        8..48 => "rest of the header",
        at if at < body => "body type and size",
        at if (body + 64..body + 120).contains(&at) => "module's signer and attributes",
        at if at < body + 584 => "claims",
        at if at < end => "rest of the body",
        at if at < end + 4 => "length of the signature",
        _ => "signature",
    };
    let mut seen = BTreeSet::new();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            seen.insert((stretch(at), effect(bytes, at, bit, &whole)));
        }
    }
    let mut expected = BTreeSet::from([
        ("version", Effect::Refused),
        ("key type", Effect::Nothing),
        ("tee type", Effect::Refused),
        ("rest of the header", Effect::Nothing),
        ("module's signer and attributes", Effect::Nothing),
        ("claims", Effect::Changed),
        // Longer than what is there is refused; shorter leaves padding.
        ("length of the signature", Effect::Refused),
        ("length of the signature", Effect::Nothing),
        ("signature", Effect::Nothing),
    ]);
    if body > 48 {
        expected.insert(("body type and size", Effect::Refused));
        expected.insert(("rest of the body", Effect::Nothing));
    }
    assert_eq!(seen, expected);
}

#[test]
fn real_version_4_quote_reads_as_the_other_reader_reads_it_and_is_of_a_debug_td() {
    let Some(bytes) = vector("tdx_quote_4.dat") else { return };
    let quote = Quote::parse(&bytes).unwrap();
    let other = report(&bytes).unwrap();
    assert_eq!((quote.version, ours(&quote, &other)), (4, other));
    assert!(quote.debug());
    check_flips(&bytes, 48, 584);
}

#[test]
fn real_version_5_quote_reads_as_the_other_reader_reads_it() {
    let Some(bytes) = vector("tdx_quote_5.dat") else { return };
    let quote = Quote::parse(&bytes).unwrap();
    let other = report(&bytes).unwrap();
    assert_eq!((quote.version, ours(&quote, &other)), (5, other));
    assert!(!quote.debug());
    check_flips(&bytes, 54, 648);
    // One bit turns its body type into that of TDX 1.0, which has another length.
    let mut flipped = bytes;
    flipped[48] ^= 1;
    assert_eq!(Quote::parse(&flipped), Err(QuoteError::Body { body_type: 2, len: 648 }));
}

/// The samples in the other verifier's own package, by the place cargo has it.
fn samples() -> Option<PathBuf> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--all-features"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let packages = metadata["packages"].as_array()?;
    let package = packages.iter().find(|package| package["name"] == "dcap-qvl")?;
    let samples = PathBuf::from(package["manifest_path"].as_str()?).with_file_name("sample");
    samples.exists().then_some(samples)
}

#[test]
fn quotes_that_the_independent_verifier_verifies_read_as_it_reads_them() {
    let samples = samples();
    if !available("dcap-samples", samples.is_some(), "the source of dcap-qvl has no samples here") {
        return;
    }
    let samples = samples.unwrap();
    // Times at which the samples' collateral is valid.
    for (name, now) in [("tdx_quote", 1_751_000_000), ("tdx_quote_td15ex", 0)] {
        let bytes = std::fs::read(samples.join(name)).unwrap();
        let quote = Quote::parse(&bytes).unwrap();
        let other = report(&bytes).unwrap();
        assert_eq!(ours(&quote, &other), other, "{name}");
        if now == 0 {
            continue;
        }
        let collateral = std::fs::read(samples.join(format!("{name}_collateral.json"))).unwrap();
        let collateral = serde_json::from_slice(&collateral).unwrap();
        let verified = dcap_qvl::verify::verify(&bytes, &collateral, now).unwrap();
        assert_eq!(verified.status.to_string(), "UpToDate");
        // What we tell people of a quote, its signature covers.
        let at = bytes.windows(48).position(|window| window == quote.rtmrs[0]).unwrap();
        let mut flipped = bytes;
        flipped[at] ^= 1;
        assert!(Quote::parse(&flipped).is_ok_and(|flipped| flipped != quote));
        assert!(dcap_qvl::verify::verify(&flipped, &collateral, now).is_err());
    }
}

/// Registers of the real log, as the tests of Trustee's verifiers have them.
const RTMRS: [&str; 2] = [
    "2dc712306a963eadb894ad47dbaa17df44814151555aee11cbb843becca88950ffd079664902e6f22c66f7c8213543f4",
    "0fa3be56af61208bbd179dc7b124988eb929319154663c539d6f46445ecac2fec287075047ff7bd1922829fec28cd3cf",
];

#[test]
fn real_boot_log_replays_as_the_other_reader_replays_it_whole_and_trimmed() {
    let Some(bytes) = vector("CCEL_data") else { return };
    let log = EventLog::parse(&bytes).unwrap();
    let replayed = log.replay();
    assert_eq!([replayed[0], replayed[1]].map(hex::encode), RTMRS);
    assert_eq!(replayed[2..], [[0; 48]; 2]);
    assert_eq!((log.events().len(), log.trimmed().len()), (5, 9822 + END_MARK.len()));
    for sent in [bytes.clone(), log.trimmed()] {
        let other = eventlog_rs::Eventlog::try_from(sent).unwrap();
        assert_eq!(other.log.len(), 5);
        let registers = other.replay_measurement_registry();
        assert_eq!([&registers[&1], &registers[&2]].map(hex::encode), RTMRS);
        assert_eq!(registers.len(), 2);
    }
}

#[test]
fn real_boot_log_belongs_to_neither_real_quote_and_both_generations_are_spared_it() {
    for name in ["tdx_quote_4.dat", "tdx_quote_5.dat"] {
        let (Some(quote), Some(log)) = (vector(name), vector("CCEL_data")) else { return };
        let quote = Quote::parse(&quote).unwrap();
        let logs = Logs { ccel: Some(log), aael: None };
        for verifier in [Verifier::Legacy, Verifier::Current] {
            let selected = select(&logs, &quote, verifier, config::EventLog::Auto);
            assert_eq!((selected.cc, selected.boot.len()), (None, 0));
            let [notice] = &selected.notices[..] else { panic!("{:?}", selected.notices) };
            let told = ["RTMR0 replays", "RTMR1 replays", "RTMR2 replays", "RTMR3 replays"];
            assert_eq!(told.map(|text| notice.contains(text)), [true, true, false, false], "{name}");
        }
    }
}

#[test]
fn every_bit_of_the_real_boot_log_matters_but_the_headers_remarks() {
    let Some(bytes) = vector("CCEL_data") else { return };
    let used = &bytes[..9822];
    let whole = EventLog::parse(used).unwrap();
    // Old digest of the header; class, version and word size; the vendor's name. Its register and the signature's like.
    let ignored = |at: usize| matches!(at, 0..4 | 8..28 | 48..56 | 65..72);
    let digests: Vec<usize> = used
        .windows(48)
        .enumerate()
        .filter(|(_, window)| whole.events().iter().any(|event| event.digest.as_slice() == [*window]))
        .flat_map(|(at, _)| at..at + 48)
        .collect();
    assert_eq!(digests.len(), 5 * 48);
    let digests: BTreeSet<usize> = digests.into_iter().collect();
    let mut flipped = used.to_vec();
    for at in 0..used.len() {
        for bit in 0..8 {
            flipped[at] ^= 1 << bit;
            let read = EventLog::parse(&flipped);
            let same = read.as_ref().is_ok_and(|read| read.events() == whole.events());
            assert_eq!(same, ignored(at), "bit {bit} of byte {at}");
            if digests.contains(&at) {
                assert_ne!(read.unwrap().replay(), whole.replay(), "bit {bit} of byte {at}");
            }
            flipped[at] ^= 1 << bit;
        }
    }
}
