//! Claim: a group of machines takes a model from the origin about once, whatever happens to some of them, and each of them serves
//! exactly the model. Real agents, one network namespace each, links of a known rate. Asserted on bytes, never on time.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/link.rs"]
mod link;
#[path = "common/nodes.rs"]
mod nodes;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::fs::OpenOptions;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{available, wait_until};
use nodes::Nodes;
use serde_json::json;
use world::files_below;

macro_rules! nodes {
    ($count:expr, $mib:expr, $rate:expr) => {
        match Nodes::new($count, $mib, $rate).await {
            Some(nodes) => nodes,
            None => return,
        }
    };
}

/// As few requests at once as make a small model look like a large one: what is on its way when another node comes is fetched twice.
const FEW: &str = "[oss]\nconcurrency = 2\n";

#[tokio::test(flavor = "multi_thread")]
async fn eight_nodes_take_the_model_from_the_origin_about_once_and_one_that_comes_late_not_at_all() {
    let mut group = nodes!(8, 64, "200mbit");
    group.nodes.iter_mut().for_each(|node| node.toml = FEW.to_owned());
    (0..7).for_each(|number| group.start(number));
    (0..7).for_each(|number| group.wait_complete(number));
    let together = group.origin_bytes().await;
    println!("origin: {:.3} of the model for seven", together as f64 / group.total as f64);
    group.start(7);
    group.wait_complete(7);
    let late = group.origin_bytes().await - together;
    println!("origin: {:.3} of the model for the last", late as f64 / group.total as f64);
    for number in 0..8 {
        group.assert_model_is_readable(number);
    }
    assert!(together <= group.total * 3 / 2, "{together} of {}", group.total);
    assert!(late <= group.total / 20, "{late} of {}", group.total);
    let status = group.nodes[7].status().unwrap();
    let peers = status["Peers"].as_array().unwrap();
    assert_eq!(peers.len(), 8);
    let received: u64 = peers.iter().map(|peer| peer["BytesReceived"].as_u64().unwrap()).sum();
    assert!(received >= group.total * 95 / 100, "{status}");
    assert!(peers.iter().all(|peer| peer["State"] == "connected" || peer["State"] == "itself"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_nodes_of_which_one_is_killed_and_one_cut_off_need_little_more_and_fetch_nothing_again() {
    let mut group = nodes!(4, 64, "100mbit");
    group.nodes.iter_mut().for_each(|node| node.toml = format!("{FEW}timeout_secs = 1\n"));
    (0..4).for_each(|number| group.start(number));
    let mut had = 0;
    wait_until("a third of the model at node 0", || {
        had = group.nodes[0].done();
        had >= group.total / 3
    });
    // What has arrived is marked every two seconds, once it is on the disk.
    let looked = std::time::SystemTime::now();
    wait_until("that to be durable", || group.nodes[0].saved_since(looked));
    group.nodes[0].kill();
    group.connected(1, false);
    let before = group.received(0);
    group.start(0);
    wait_until("node 1 to notice", || {
        group.nodes[1].status().is_some_and(|status| status["State"] == "Degraded")
    });
    assert!(group.nodes[1].done() < group.total, "it had everything before it was cut off");
    group.connected(1, true);
    (0..4).for_each(|number| group.wait_complete(number));
    let (again, origin) = (group.received(0) - before, group.sent_by_origin());
    println!(
        "origin: {:.3} of the model; {:.3} of what was missing came after the kill",
        origin as f64 / group.total as f64,
        again as f64 / (group.total - had) as f64
    );
    for number in 0..4 {
        group.assert_model_is_readable(number);
    }
    // Tokens, acknowledgements and heads of packets are in these, and a chunk whose object was next to be marked.
    assert!(again <= (group.total - had) * 11 / 10 + (9 << 20), "{again} after {had} of {}", group.total);
    // Besides once the model, what was on its way to the two, and what was on its way to the second, which others took over.
    assert!(origin <= group.total * 2, "{origin} of {}", group.total);
}

/// Invert bytes of every chunk of the files below `directory` that have `shortest` bytes.
fn spoil(directory: &Path, shortest: u64) {
    for path in files_below(directory) {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        for at in (100..len).step_by(1 << 20).filter(|_| len >= shortest) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[!byte[0]], at).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_sends_wrong_bytes_is_named_and_does_no_harm() {
    let mut group = nodes!(2, 24, "400mbit");
    group.start(0);
    group.wait_complete(0);
    let alone = group.origin_bytes().await;
    assert!(alone <= group.total * 21 / 20, "a node alone needs the model once: {alone} of {}", group.total);
    spoil(&group.nodes[0].cache(), 1 << 20);
    group.start(1);
    group.wait_complete(1);
    group.assert_model_is_readable(1);
    let liar = group.peer(1, 0);
    assert!(liar["WrongChunks"].as_u64() >= Some(1) && liar["Distrusted"] == true, "{liar}");
    // But for the configuration, which was left as it was.
    assert!(liar["BytesReceived"].as_u64() < Some(1000), "{liar}");
    let log = group.nodes[1].log();
    assert!(log.contains(&format!("peer {} sent bytes that are not the model's", group.address(0))), "{log}");
    let more = group.origin_bytes().await - alone;
    assert!(more <= group.total * 21 / 20, "{more} of {}", group.total);
}

#[tokio::test(flavor = "multi_thread")]
async fn model_in_a_vendors_format_is_shared_where_it_is_signed_and_only_there() {
    if !common::adapters_run() {
        return;
    }
    let mut group = nodes!(2, 24, "400mbit");
    for node in &mut group.nodes {
        node.env += "MODEL_ENCRYPTION_METHOD=sam\n";
        node.toml = "[sam]\nkey_id = \"LD_Demo_0001\"\n[peer]\nattestation = \"network\"\n".into();
        let adapter = node.root().join("usr/libexec/cai/decryptor.d/sam");
        common::install_program(&adapter, include_str!("../packaging/examples/decryptor-gocryptfs"));
    }
    group.start(0);
    group.wait_complete(0);
    let status = group.nodes[0].status().unwrap();
    assert!(status["Notices"].to_string().contains("sam and no signed manifest"), "{status}");
    assert_eq!(status["Peers"], json!([]));
    group.nodes[0].agent.take().unwrap().stop();
    group.sign().await;
    (0..2).for_each(|number| {
        group.start(number);
        group.wait_complete(number);
    });
    group.assert_model_is_readable(1);
    let client = cai::oss::Client::new(&group.sandbox.oss_config()).unwrap();
    let objects = client.list("model/").await.unwrap();
    let large: u64 = objects.iter().map(|object| object.len).filter(|len| *len >= 1 << 20).sum();
    wait_until("all of the large files, and nothing else, to have come from the other", || {
        group.peer(1, 0)["BytesReceived"] == large
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_of_one_node_is_its_own_business_and_strangers_get_nothing() {
    let mut group = nodes!(2, 40, "400mbit");
    for node in &mut group.nodes {
        node.toml = "[peer]\nattestation = \"network\"\n".to_owned();
    }
    group.nodes[1].toml += "[cache]\nreserve_bytes = 0\n";
    let disk = group.nodes[1].disk("64m");
    group.start(0);
    group.wait_complete(0);
    group.start(1);
    wait_until("the first chunks", || group.nodes[1].done() > 8 << 20);
    disk.fill();
    group.assert_model_is_readable(1);
    group.assert_model_is_readable(0);
    let status = group.nodes[1].status().unwrap();
    let notices = status["Notices"].to_string();
    assert!(notices.contains("peer.attestation is network"), "{notices}");
    assert_eq!(
        (&status["State"], &status["LastError"]["Code"]),
        (&json!("Degraded"), &json!("store.caching-off"))
    );
    for (number, of) in [(0, 1), (1, 0)] {
        wait_until("the nodes to know each other", || group.peer(number, of)["State"] == "connected");
        assert_eq!(group.peer(number, of)["WrongChunks"], 0);
    }
    assert_eq!(group.nodes[0].status().unwrap()["State"], "Serving");

    // This test is on the same network, and in nobody's list.
    let mut stranger = TcpStream::connect(group.address(0)).unwrap();
    let mut nothing = Vec::new();
    stranger.read_to_end(&mut nothing).unwrap();
    assert_eq!(nothing, b"");
    wait_until("the log to say so", || {
        group.nodes[0].log().contains("is not in MODEL_SHARING_PEER: refused")
    });
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_the_trustee_does_not_affirm_are_refused_with_the_claim_and_the_origin_serves() {
    let mut group = nodes!(2, 24, "400mbit");
    group.sandbox.faults(json!([{"do": "as_contraindicate"}])).await;
    (0..2).for_each(|number| group.start(number));
    (0..2).for_each(|number| group.wait_complete(number));
    for (number, of) in [(0, 1), (1, 0)] {
        group.assert_model_is_readable(number);
        let peer = group.peer(number, of);
        assert_eq!((&peer["State"], &peer["Code"]), (&json!("failed"), &json!("verify.claim")), "{peer}");
        let claim = "claim submods.cpu0.ear.status: expected affirming, the token says \"contraindicated\"";
        assert!(peer["Detail"].as_str().unwrap().contains(claim), "{peer}");
        assert_eq!((&peer["BytesReceived"], &peer["BytesSent"]), (&json!(0), &json!(0)), "{peer}");
    }
    // A verdict under another policy than TRUSTEE_POLICY is none.
    group.sandbox.faults(json!([{"do": "as_other_policy"}])).await;
    wait_until("the other reason", || {
        group.peer(0, 1)["Detail"].as_str().is_some_and(|detail| detail.contains("policy"))
    });
    group.sandbox.faults(json!([])).await;
    for (number, of) in [(0, 1), (1, 0)] {
        wait_until("the peer to be let in", || group.peer(number, of)["State"] == "connected");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_whose_clock_is_most_of_a_minute_wrong_takes_part() {
    // What a namespace cannot give it, a library in front of the C library's clock can. Monotonic clocks are left alone.
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    if !available("faketime", Path::new(library).exists(), "no libfaketime") {
        return;
    }
    let mut group = nodes!(2, 24, "400mbit");
    let wrapper =
        ["env", &format!("LD_PRELOAD={library}"), "FAKETIME=-50s", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
    group.nodes[1].wrapper = wrapper.map(str::to_owned).to_vec();
    group.start(0);
    group.wait_complete(0);
    let alone = group.origin_bytes().await;
    group.start(1);
    group.wait_complete(1);
    group.assert_model_is_readable(1);
    let late = group.origin_bytes().await - alone;
    assert!(late <= group.total / 20, "{late} of {}", group.total);
    for (number, of) in [(0, 1), (1, 0)] {
        wait_until("the nodes to know each other", || group.peer(number, of)["State"] == "connected");
    }
    // It is the clock that is wrong, not the test.
    let attested = |number: usize| group.nodes[number].status().unwrap()["AttestedAt"].as_u64().unwrap();
    assert!(attested(0) > attested(1) + 30, "{} {}", attested(0), attested(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_moves_the_whole_group_and_the_origin_sends_the_new_revision_about_once() {
    let mut group = nodes!(3, 24, "400mbit");
    group.nodes.iter_mut().for_each(|node| node.toml = FEW.to_owned());
    (0..3).for_each(|number| group.start(number));
    (0..3).for_each(|number| group.wait_complete(number));
    let before = group.origin_bytes().await;
    let mut model = group.model.clone();
    model.values_mut().for_each(|content| content.iter_mut().for_each(|byte| *byte = !*byte));
    group.replace(model).await;
    std::thread::scope(|scope| {
        for node in &group.nodes {
            scope.spawn(|| {
                let output = node.cai(&["rotate", "--wait"]);
                assert_eq!(output.status.code(), Some(0), "{output:?}");
            });
        }
    });
    let rotated = group.origin_bytes().await - before;
    println!("origin: {:.3} of the new revision for three", rotated as f64 / group.total as f64);
    let mut revisions = Vec::new();
    for (number, node) in group.nodes.iter().enumerate() {
        group.assert_model_is_readable(number);
        let status = node.status().unwrap();
        assert_eq!(status["Rotation"]["Phase"], "replaced");
        revisions.push(status["ModelRevision"].clone());
        for of in 0..3 {
            wait_until("the nodes to know each other", || {
                ["connected", "itself"].iter().any(|state| group.peer(number, of)["State"] == *state)
            });
        }
    }
    revisions.dedup();
    assert_eq!(revisions.len(), 1, "{revisions:?}");
    assert!(rotated <= group.total * 3 / 2, "{rotated} of {}", group.total);
}
