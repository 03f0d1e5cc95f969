//! Trustee and OSS at the other end of a cable that is slow, drops packets, delays them, or is pulled out.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/link.rs"]
mod link;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs;

use common::{available, wait_until};
use link::Link;
use sandbox::Builder;
use world::{World, pattern};

const SHARD: &str = "model-00001-of-00001.safetensors";

/// A model at the other end of `link`, and short time-outs.
async fn world(link: &Link, mib: usize) -> Option<World> {
    let mut world = World::new(Builder::default().in_namespace(&link.name, &link.far.to_string()))?;
    world.upload(BTreeMap::from([(SHARD.to_owned(), pattern(1, (mib << 20) + 5))])).await;
    world.toml += "[oss]\ntimeout_secs = 1\n";
    Some(world)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_is_right_over_lines_that_are_slow_and_lose_packets() {
    let Some(link) = Link::new() else { return };
    // A bucket so small that it drops packets all the time; and, where the kernel has it, delay, loss and a limit at once.
    for (queue, needs) in [
        ("tbf rate 150mbit burst 8kb limit 20kb", "netns"),
        ("netem delay 20ms 5ms loss 1% rate 200mbit", "netem"),
    ] {
        let Some(world) = world(&link, 9).await else { return };
        let shaped = link.shape(queue);
        if !available(needs, shaped.is_ok(), shaped.as_ref().err().map_or("", String::as_str)) {
            continue;
        }
        let mut agent = world.agent();
        world.wait_state(&mut agent, "Serving");
        world.assert_model_is_readable();
        assert_eq!(agent.stop().code(), Some(0));
        link.shape("pfifo").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_waits_while_the_cable_is_out_and_the_pull_goes_on_where_it_was() {
    let Some(link) = Link::new() else { return };
    let Some(world) = world(&link, 20).await else { return };
    // Ten seconds for all of it: the cable is out long before that.
    let client = cai::oss::Client::new(&world.sandbox.oss_config()).unwrap();
    let objects = client.list("model/").await.unwrap();
    let object = objects.iter().max_by_key(|object| object.len).unwrap();
    link.shape("tbf rate 16mbit burst 64kb latency 20ms").unwrap();
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let path = world.mount_point().join(SHARD);
    let reader = std::thread::spawn(move || fs::read(path));
    wait_until("the first bytes", || {
        world.status().unwrap()["Progress"]["BytesDone"].as_u64() > Some(1 << 20)
    });
    link.connected(false);
    let status = world.wait_state(&mut agent, "Degraded");
    assert!(status["LastError"]["Code"].as_str().unwrap().starts_with("store."), "{status}");
    assert!(!reader.is_finished(), "the reader was told something");
    let file = &status["Progress"]["Fetching"][0];
    assert_eq!((&file["Path"], &file["BytesTotal"]), (&object.path.to_str().into(), &object.len.into()));
    link.shape("tbf rate 100mbit burst 64kb latency 20ms").unwrap();
    link.connected(true);
    assert!(reader.join().unwrap().unwrap() == world.model[SHARD]);
    world.wait_state(&mut agent, "Serving");
    world.wait_local();
    assert_eq!(agent.stop().code(), Some(0));
}
