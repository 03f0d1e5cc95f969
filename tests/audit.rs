//! Claim: each release of a key, each release that did not come, each mount, rotation, refused model and refused request leaves exactly
//! one record, with the fields that docs/audit.md says, and with no secret. What a real journal makes of them: tests/system.rs.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;

use sandbox::Builder;
use serde_json::json;
use world::{SECRET, World, sign, small_model};

const PAGE: &str = include_str!("../docs/audit.md");

/// A record's fields by the names that the journal has.
type Record = BTreeMap<String, String>;

/// Rows of the table of fields: the name, and for each event the mark.
fn documented() -> (Vec<String>, BTreeMap<String, Vec<String>>) {
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let mut rows = PAGE.lines().skip_while(|line| !line.starts_with("| field | says |"));
    let events = cells(rows.next().unwrap()).split_off(2);
    let rows = rows.skip(1).take_while(|line| line.starts_with('|')).map(cells);
    (events, rows.map(|mut row| (row.remove(0), row.split_off(1))).collect())
}

/// Fields of `event` that a record always has, and those that it may have.
fn fields(event: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (events, rows) = documented();
    let column =
        events.iter().position(|name| name == event).unwrap_or_else(|| panic!("{event} in {events:?}"));
    let marked = |mark: &str| {
        rows.iter().filter(|(_, marks)| marks[column] == mark).map(|(name, _)| name.clone()).collect()
    };
    (marked("x"), marked("(x)"))
}

/// `name=value` or `name="value"` of a line, behind the message.
fn parse(mut text: &str) -> Record {
    let mut record = Record::new();
    while let Some((name, rest)) = text.split_once('=') {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
        let (value, len) = match values.next() {
            Some(Ok(value)) => (value, values.byte_offset()),
            _ => (rest.split(' ').next().unwrap().to_owned(), rest.split(' ').next().unwrap().len()),
        };
        record.insert(format!("F_{}", name.trim().to_uppercase()), value);
        text = &rest[len..];
    }
    record
}

/// The records of a log, in order. Each has the fields it must have, and no other.
fn records(log: &str) -> Vec<Record> {
    let (events, _) = documented();
    let of = |line: &str| {
        let at = line.find("event=\"")?;
        let record = parse(&line[at..]);
        events.contains(&record["F_EVENT"]).then_some(record)
    };
    let found: Vec<Record> = log.lines().filter_map(of).collect();
    for record in &found {
        let (always, sometimes) = fields(&record["F_EVENT"]);
        let has: BTreeSet<String> = record.keys().filter(|name| *name != "F_EVENT").cloned().collect();
        assert!(always.is_subset(&has), "{:?} lack in {record:?}", always.difference(&has));
        let more: Vec<_> =
            has.iter().filter(|name| !always.contains(*name) && !sometimes.contains(*name)).collect();
        assert!(more.is_empty(), "docs/audit.md does not have {more:?} of {record:?}");
    }
    found
}

fn events(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record["F_EVENT"].as_str()).collect()
}

/// Lower-case digits, so many.
fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Neither the model's password nor a token: a token is JSON in base64, as `{"` begins.
fn holds_no_secret(log: &str) {
    assert!(!log.contains("eyJ") && !log.contains(std::str::from_utf8(SECRET).unwrap().trim()), "{log}");
}

/// An uploaded model with a signed manifest beside it; its identity.
async fn signed() -> Option<(World, String)> {
    let mut world = World::new(Builder::default())?;
    let cipher = world.upload(small_model()).await;
    let manifest = sign(&cipher, &world.sandbox).await;
    Some((world, manifest.identity().to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn release_mount_rotation_and_refusal_are_one_record_each_and_name_one_another() {
    let Some((world, identity)) = signed().await else { return };
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    let cai = |arguments: &[&str]| world.cai(arguments).status.code().unwrap();
    assert_eq!(cai(&["reattest"]), 0);
    assert_eq!(cai(&["rotate", "--wait"]), 0);
    world.sandbox.faults(json!([{"do": "kbs_deny"}])).await;
    assert_eq!(cai(&["rotate", "--wait"]), 77);
    // `nobody`, without polkit.
    let address = format!("--address=unix:path={}", world.path("bus").display());
    let object = ["com.alibaba.cai1", "/com/alibaba/cai1", "com.alibaba.cai1.Agent"];
    let mut call = world.on_bus("busctl");
    call.args([&address, "call"]).args(object).args(["Prefetch", "s", "."]).uid(65534);
    assert!(!call.output().unwrap().status.success());
    assert_eq!(agent.stop().code(), Some(0));

    let log = agent.log();
    holds_no_secret(&log);
    let found = records(&log);
    let expected = [
        "key.released",
        "model.mounted",
        "key.released",
        "key.released",
        "rotation.over",
        "key.not-released",
        "rotation.over",
        "bus.refused",
    ];
    assert_eq!(events(&found), expected, "{log}");
    let [released, mounted, renewed, again, rotated, denied, failed, refused] = &found[..] else { panic!() };
    for (field, value) in [
        ("F_PURPOSE", "start"),
        ("F_KEY_ID", "kbs:///default/aliyun/model-decryption-key"),
        ("F_MODEL", "conf-ai:/model/"),
        ("F_BROKER", &format!("{}/", world.sandbox.kbs)),
        ("F_BROKER_AUTHENTICATED", "false"),
        ("F_TOKEN_VERIFIED", "false"),
        ("F_TEE", "sample"),
        ("F_GPUS", ""),
        ("F_POLICY", status["Attestation"]["policy"].as_str().unwrap()),
    ] {
        assert_eq!(released[field], value, "{field}");
    }
    for release in [released, renewed, again] {
        assert!(is_hex(&release["F_EVIDENCE"], 64) && is_hex(&release["F_TOKEN"], 16), "{release:?}");
    }
    assert_eq!((&*renewed["F_PURPOSE"], &*again["F_PURPOSE"]), ("renewal", "rotation"));
    assert_ne!(released["F_EVIDENCE"], renewed["F_EVIDENCE"]);
    for field in ["F_KEY_ID", "F_MODEL", "F_TOKEN", "F_POLICY", "F_EVIDENCE"] {
        assert_eq!(mounted[field], released[field], "{field}");
        assert_eq!(rotated[field], again[field], "{field}");
    }
    for (shown, generation) in [(mounted, "1"), (rotated, "2")] {
        assert_eq!((&shown["F_IDENTITY"], &shown["F_REVISION"]), (&identity, &identity));
        assert_eq!(shown["F_GENERATION"], generation);
    }
    assert_eq!(mounted["F_MOUNT_POINT"], world.mount_point().display().to_string());
    assert_eq!((&*rotated["F_ROTATION"], &*rotated["F_OUTCOME"]), ("1", "unchanged"));
    assert_eq!((&*denied["F_PURPOSE"], &*denied["F_CODE"]), ("rotation", "kbs.denied"));
    assert_eq!((&*failed["F_OUTCOME"], &*failed["F_CODE"]), ("failed", "kbs.denied"));
    assert_eq!((&*refused["F_ACTION"], &*refused["F_CALLER"]), ("com.alibaba.cai1.prefetch", "65534"));
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_key_is_one_record_with_the_token_that_was_not_enough() {
    let Some(world) = World::with_small_model().await else { return };
    world.sandbox.faults(json!([{"do": "kbs_deny"}])).await;
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(77));
    holds_no_secret(&agent.log());
    let found = records(&agent.log());
    assert_eq!(events(&found), ["key.not-released"]);
    assert_eq!(found[0]["F_CODE"], "kbs.denied");
    assert!(is_hex(&found[0]["F_EVIDENCE"], 64) && is_hex(&found[0]["F_TOKEN"], 16), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_evidence_is_one_record_however_often_it_was_sent() {
    let Some(world) = World::with_small_model().await else { return };
    world.sandbox.faults(json!([{"do": "kbs_refuse_evidence"}])).await;
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(77));
    let found = records(&agent.log());
    assert_eq!(events(&found), ["key.not-released"]);
    assert_eq!(found[0]["F_CODE"], "kbs.attestation-refused");
    assert!(is_hex(&found[0]["F_EVIDENCE"], 64) && !found[0].contains_key("F_TOKEN"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn model_that_nobody_signed_is_refused_after_its_key_was_released() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.toml = format!("[model]\npublisher_key = \"{}\"\n", "d7".repeat(32));
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(65), "{}", agent.log());
    let found = records(&agent.log());
    assert_eq!(events(&found), ["key.released", "model.refused"]);
    assert_eq!((&*found[1]["F_CODE"], &*found[1]["F_MODEL"]), ("model.no-manifest", "conf-ai:/model/"));
}
