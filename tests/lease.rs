//! How long an attestation is good for: `trustee.reattest_interval_secs`, `cai reattest`, `cai reload`, on the stand-ins.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::fs;

use common::wait_until;
use serde_json::json;
use world::World;

/// As short as they go.
const SHORT: &str = "[trustee]\nreattest_interval_secs = 1\ngrace_secs = 2\n";

impl World {
    fn attested_at(&self) -> u64 {
        self.status().unwrap()["AttestedAt"].as_u64().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attestation_is_renewed_in_time_and_degraded_while_nobody_answers() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.toml = SHORT.replace("grace_secs = 2", "grace_secs = 600");
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let first = world.attested_at();
    wait_until("a new attestation", || world.attested_at() > first);
    let keys = world.status().unwrap()["KeyGeneration"].clone();
    assert_eq!(keys, 1, "what was asked about is not a new key");
    world.sandbox.faults(json!([{"do": "kbs_drop"}])).await;
    let status = world.wait_state(&mut agent, "Degraded");
    let stage = status["Stage"].as_str().unwrap();
    assert!(stage.starts_with("the attestation could not be renewed; serving ends in "), "{stage}");
    assert_eq!(status["LastError"]["Code"], "kbs.unreachable");
    world.assert_model_is_readable();
    world.sandbox.faults(json!([])).await;
    let status = world.wait_state(&mut agent, "Serving");
    assert!(status["Stage"].as_str().unwrap().starts_with("4 files at "), "{status}");
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn grace_that_ends_without_an_answer_ends_serving() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.toml = SHORT.to_owned();
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.sandbox.faults(json!([{"do": "kbs_drop"}])).await;
    assert_eq!(agent.wait().code(), Some(69));
    let log = agent.log();
    let degraded = log.find("Serving -> Degraded").unwrap();
    assert!(log[degraded..].contains("Degraded -> Failed"), "{log}");
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn denial_ends_serving_at_once() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.toml = SHORT.replace("grace_secs = 2", "grace_secs = 600");
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.sandbox.faults(json!([{"do": "kbs_deny"}])).await;
    assert_eq!(agent.wait().code(), Some(77));
    assert!(agent.log().contains("Serving -> Failed"), "{}", agent.log());
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn attestation_on_demand_needs_no_lease_and_ends_cai_only_where_it_is_denied() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let first = world.attested_at();
    wait_until("a new attestation", || {
        let output = world.cai(&["reattest"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(output.stdout, b"attested; the key would still be released\n");
        world.attested_at() > first
    });
    world.sandbox.faults(json!([{"do": "kbs_drop"}])).await;
    let output = world.cai(&["reattest"]);
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the attestation was not renewed: ") && said.contains("[kbs.unreachable]"),
        "{said}"
    );
    assert_eq!(world.status().unwrap()["State"], "Serving");
    world.sandbox.faults(json!([{"do": "kbs_refuse_evidence"}])).await;
    let output = world.cai(&["reattest"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{said}");
    assert!(said.contains("the attestation was denied, and cai ends: "), "{said}");
    assert_eq!(agent.wait().code(), Some(77));
    world.assert_nothing_mounted();
    let output = world.cai(&["reattest"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nobody answers to com.alibaba.cai1"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_takes_what_a_running_agent_can_take_and_names_the_rest() {
    let Some(mut world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let reload = |world: &World| {
        let output = world.cai(&["reload"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(reload(&world), "in effect now: nothing\nafter a restart: nothing\n");
    let first = world.attested_at();
    world.toml = format!("{SHORT}[mount]\nmode = \"on-demand\"\n");
    world.write_config();
    assert_eq!(
        reload(&world),
        "in effect now: trustee.reattest_interval_secs, trustee.grace_secs\nafter a restart: mount.mode\n"
    );
    wait_until("the lease to be renewed", || world.attested_at() > first);
    // A mistake changes nothing.
    let good = fs::read_to_string(world.root().join("etc/cai/cai.toml")).unwrap();
    fs::write(world.root().join("etc/cai/cai.toml"), "[trustee]\nreattest_interval_sec = 0\n").unwrap();
    let output = world.cai(&["reload"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the old one stays in effect") && said.contains("reattest_interval_sec"), "{said}");
    let now = world.attested_at();
    wait_until("the lease to be renewed", || world.attested_at() > now);
    fs::write(world.root().join("etc/cai/cai.toml"), good).unwrap();

    // A new key of the bucket.
    let key = world.sandbox.issue_key().await;
    let text = |name: &str| key[name].as_str().unwrap().to_owned();
    world.env = format!(
        "MODEL_OSS_ACCESS_KEY_ID={}\nMODEL_OSS_SECRET_ACCESS_KEY={}\nMODEL_OSS_SESSION_TOKEN={}\n",
        text("AccessKeyId"),
        text("AccessKeySecret"),
        text("SecurityToken")
    );
    world.write_config();
    assert_eq!(
        reload(&world),
        "in effect now: MODEL_OSS_ACCESS_KEY_ID, MODEL_OSS_SESSION_TOKEN\nafter a restart: mount.mode\n"
    );
    wait_until("the new key to be shown", || world.status().unwrap()["ObjectStore"]["Credentials"] == "STS");
    assert_eq!(agent.stop().code(), Some(0));
}
