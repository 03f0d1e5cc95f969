use std::collections::BTreeMap;

use serde_json::json;
use serde_json::value::to_raw_value;

use super::*;
use crate::attest::{Evidence, reference_values};
use crate::helper::protocol::EventLogs;

/// A TD with a GPU, every value a repeated digit pair.
fn collected() -> Collected {
    let hex = |pair: &str, len: usize| pair.repeat(len);
    let tdx = TdxClaims {
        mrtd: hex("a0", 48),
        rtmrs: ["b0", "b1", "b2", "b3"].map(|pair| hex(pair, 48)),
        mr_seam: hex("c0", 48),
        xfam: "e702060000000000".into(),
        td_attributes: "0100001000000000".into(),
        tee_tcb_svn: hex("05", 16),
        boot: BTreeMap::from([("measurement.kernel.SHA-384".into(), vec![hex("d0", 48)])]),
        ..TdxClaims::default()
    };
    let gpu = GpuClaims {
        uuid: "GPU-6f1c1d5e-1111-2222-3333-444455556666".into(),
        name: "NVIDIA H20".into(),
        arch: "HOPPER".into(),
        driver_version: "550.127.08".into(),
        vbios_version: "96.00.A5.00.01".into(),
        confidential: true,
    };
    let claims = Claims {
        provider: "configfs-tsm",
        report_data: hex("ee", 64),
        tdx: Some(tdx),
        gpus: vec![gpu],
        evidence_sha256: hex("5e", 32),
        notices: vec![
            "the boot event log is left out: RTMR2 does not replay, so that verifiers would refuse it".into(),
        ],
    };
    let object = to_raw_value(&json!({ "quote": "AAEC", "aa_eventlog": "INIT x\n" })).unwrap();
    Collected {
        tee: Tee::Tdx,
        nonce: Digest([0xee; 48]),
        verifier: Verifier::Legacy,
        evidence: Evidence { object, claims },
        additional: String::new(),
        logs: EventLogs::default(),
    }
}

#[test]
fn text_fits_80_columns_and_says_what_matters() {
    let collected = collected();
    let values = reference_values(&collected.evidence.claims);
    let text = Report::new(&collected, &values).unwrap().text();
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let half = |pair: &str| pair.repeat(24);
    for expected in [
        "TEE           tdx\n".to_owned(),
        "quote from    configfs-tsm\n".to_owned(),
        "for verifier  legacy generation\n".to_owned(),
        format!("MRTD          {0}\n              {0}\n", half("a0")),
        format!("RTMR3         {0}\n              {0}\n", half("b3")),
        "XFAM          e702060000000000\n".to_owned(),
        "attributes    0100001000000000 DEBUG: THE HOST CAN READ THIS MACHINE\n".to_owned(),
        format!("TCB SVN       {}\n", "05".repeat(16)),
        "event log     not sent\n".to_owned(),
        "agents' log   sent, 7 bytes\n".to_owned(),
        "GPU           NVIDIA H20 GPU-6f1c1d5e-1111-2222-3333-444455556666\n".to_owned(),
        "              HOPPER, driver 550.127.08, VBIOS 96.00.A5.00.01, confidential\n".to_owned(),
        "notice        the boot event log is left out: RTMR2 does not replay, so that\n".to_owned(),
        "policy        can match tee tdx, and by reference value:\n".to_owned(),
        "tdx.quote.body.mr_td".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected}\n---\n{text}");
    }
}

#[test]
fn json_has_exactly_the_documented_names() {
    let collected = collected();
    let values = reference_values(&collected.evidence.claims);
    let report = serde_json::to_value(Report::new(&collected, &values).unwrap()).unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let documented = |prefix: &str| {
        let mut names: Vec<String> = JSON_HELP
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.strip_prefix(prefix)?.split_whitespace().next())
            .filter(|name| !prefix.is_empty() || !name.contains('.'))
            .filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    let mut top = names(&report);
    top.retain(|name| name != "claims");
    assert_eq!(top, documented(""));
    assert_eq!(names(&report["claims"]), documented("claims."));
    for name in names(&report["claims"]["tdx"]).iter().chain(&names(&report["claims"]["gpus"][0])) {
        assert!(JSON_HELP.contains(name.as_str()), "{name}");
    }
    assert_eq!(report["debug"], true);
    assert_eq!((&report["event_log_bytes"], &report["agent_log_bytes"]), (&Value::Null, &json!(7)));
    assert_eq!(report["reference_values"]["tdx.quote.body.mr_td"], json!(["a0".repeat(48)]));
}

#[test]
fn debug_is_bit_0_of_the_first_byte() {
    let of =
        |attributes: &str| debug(&TdxClaims { td_attributes: attributes.into(), ..TdxClaims::default() });
    assert_eq!(of("0000001000000000"), Some(false));
    assert_eq!(of("0100000000000000"), Some(true));
    assert_eq!(of("0000000000000001"), Some(false));
    assert_eq!(of(""), None);
}
