//! Claim: an upload that was killed, interrupted or cut off goes on with the parts it had, whatever happened to the file in
//! between; what arrives wrong is never left as good; every failure is named; and what is replaced or left over is said.
#![cfg(feature = "sandbox")]

#[path = "common/bucket.rs"]
mod bucket;
mod common;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::fs;
use std::process::{Child, Command};

use bucket::{MIB, Ran, Scene, bytes};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const NONE: [&str; 0] = [];
const PART: usize = 8 * MIB;

/// A run of which the third of five parts of `big` hangs, with two arrived. One request at a time.
async fn hanging(scene: &mut Scene) -> Child {
    scene.one_at_a_time();
    for name in ["aaaa", "zzzz", "exactly-one-part"] {
        fs::remove_file(scene.dir().join(name)).unwrap();
        scene.files.remove(name);
    }
    scene.write("big", bytes(9, 4 * PART + 1));
    // Behind the beginning and two parts.
    let fault =
        json!([{"do": {"oss_delay": {"millis": 600_000}}, "on": ["multipart"], "match": "big", "skip": 3}]);
    scene.sandbox.faults(fault).await;
    let child = scene.start();
    scene.wait_fired(1).await;
    child
}

async fn killed(scene: &mut Scene) {
    let mut child = hanging(scene).await;
    child.kill().unwrap();
    child.wait().unwrap();
    scene.sandbox.faults(json!([])).await;
    assert_eq!(scene.open_uploads(), ["model/big"]);
    assert!(!scene.objects("model/").await.contains_key("gocryptfs.conf"));
}

// ---- going on ----

#[tokio::test(flavor = "multi_thread")]
async fn killed_upload_goes_on_and_sends_no_part_twice() {
    let mut scene = Scene::new();
    killed(&mut scene).await;
    let ran = scene.upload(&[]).succeeded();
    assert!(
        ran.summary().ends_with("; 16777216 bytes were there from an interrupted run"),
        "{}",
        ran.summary()
    );
    assert_eq!(scene.succeeded("PUT", "model/big").await, 5);
    // Begun once, completed once.
    assert_eq!(scene.succeeded("POST", "model/big").await, 2);
    assert_eq!(scene.open_uploads(), NONE);
    scene.assert_bucket_is_the_directory().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_upload_says_what_stays_and_goes_on() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut scene = Scene::new();
        let child = hanging(&mut scene).await;
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap()).failed(69, "upload.interrupted");
        assert!(ran.err.contains("notice: 1 unfinished uploads stay for the next run"), "{}", ran.err);
        assert!(ran.summary().ends_with("; 0 failed, 5 not finished"), "{}", ran.summary());
        assert_eq!(scene.open_uploads(), ["model/big"], "{signal}");
        scene.sandbox.faults(json!([])).await;
        scene.upload(&[]).succeeded();
        assert_eq!(scene.succeeded("PUT", "model/big").await, 5);
        scene.assert_bucket_is_the_directory().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn part_of_a_file_that_changed_in_between_is_sent_again() {
    let mut scene = Scene::new();
    killed(&mut scene).await;
    let mut changed = scene.files["big"].clone();
    changed[5] ^= 1;
    scene.write("big", changed);
    let ran = scene.upload(&[]).succeeded();
    assert!(
        ran.summary().ends_with("; 8388608 bytes were there from an interrupted run"),
        "{}",
        ran.summary()
    );
    assert_eq!(scene.succeeded("PUT", "model/big").await, 6);
    scene.assert_bucket_is_the_directory().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_of_a_file_that_was_cut_in_between_begins_anew_and_says_what_stays() {
    let mut scene = Scene::new();
    killed(&mut scene).await;
    scene.write("big", bytes(9, PART + 7));
    let ran = scene.upload(&[]).succeeded();
    assert!(
        ran.err.contains("warning: an unfinished upload to model/big that is not of this file"),
        "{}",
        ran.err
    );
    assert_eq!(scene.open_uploads(), ["model/big"]);
    scene.assert_bucket_is_the_directory().await;
}

// ---- what arrives wrong ----

#[tokio::test(flavor = "multi_thread")]
async fn object_that_arrives_wrong_is_deleted_and_sent_again() {
    let scene = Scene::new();
    // The answer to a put; the one to the completion behind three parts.
    let faults = json!([
        {"do": "oss_wrong_crc", "on": ["put"], "match": "diriv", "times": 1},
        {"do": "oss_wrong_crc", "on": ["multipart"], "match": "aaaa", "skip": 3, "times": 1},
    ]);
    scene.sandbox.faults(faults).await;
    let ran = scene.upload(&[]).succeeded();
    assert_eq!(scene.sandbox.fired().await, [1, 1]);
    for key in ["model/gocryptfs.diriv", "model/aaaa"] {
        let warning =
            format!("warning: {key} arrived with a wrong checksum; it was deleted and is sent again");
        assert!(ran.err.contains(&warning), "{}", ran.err);
        assert_eq!(scene.succeeded("DELETE", key).await, 1);
    }
    scene.assert_bucket_is_the_directory().await;
    assert_eq!(scene.open_uploads(), NONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn object_that_always_arrives_wrong_is_not_left() {
    let scene = Scene::new();
    let fault = json!([{"do": "oss_wrong_crc", "on": ["put"], "match": "diriv"}]);
    scene.sandbox.faults(fault).await;
    let ran = scene.upload(&[]).failed(69, "oss.checksum");
    assert!(ran.err.contains("hint: what arrived was deleted"), "{}", ran.err);
    assert_eq!(scene.succeeded("DELETE", "model/gocryptfs.diriv").await, 3);
    let objects = scene.objects("model/").await;
    assert!(!objects.contains_key("gocryptfs.diriv") && !objects.contains_key("gocryptfs.conf"));
    // What is right is there.
    assert_eq!(objects.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn object_that_arrives_wrong_and_cannot_be_deleted_is_named() {
    let scene = Scene::new();
    let faults = json!([
        {"do": "oss_wrong_crc", "on": ["put"], "match": "diriv"},
        {"do": {"oss_error": {"status": 403, "code": "AccessDenied"}}, "on": ["delete"]},
    ]);
    scene.sandbox.faults(faults).await;
    let ran = scene.upload(&[]).failed(65, "upload.spoiled-object");
    let text = "model/gocryptfs.diriv arrived with a wrong checksum and could not be deleted";
    assert!(ran.err.contains(text), "{}", ran.err);
    assert!(!scene.objects("model/").await.contains_key("gocryptfs.conf"));
}

// ---- what is said ----

#[tokio::test(flavor = "multi_thread")]
async fn every_object_that_failed_is_named_and_the_others_are_sent() {
    let scene = Scene::new();
    let fault = |key: &str| json!({"do": {"oss_error": {"status": 400, "code": "InvalidObjectName"}}, "on": ["put"], "match": key});
    scene.sandbox.faults(json!([fault("diriv"), fault("exactly-one-part")])).await;
    let ran = scene.upload(&[]).failed(78, "oss.refused");
    for key in ["model/gocryptfs.diriv", "model/exactly-one-part"] {
        assert!(ran.err.contains(&format!("failed: uploading {key}: ")), "{}", ran.err);
    }
    assert_eq!(ran.err.matches("failed: ").count(), 2, "{}", ran.err);
    assert!(
        ran.summary().contains(": 4 objects uploaded")
            && ran.summary().ends_with("; 2 failed, 1 not finished")
    );
    assert!(!scene.objects("model/").await.contains_key("gocryptfs.conf"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_a_model_is_said_and_what_is_left_of_it_is_named_or_deleted() {
    let mut scene = Scene::new();
    let first = scene.upload(&[]).succeeded();
    assert!(!first.err.contains("replaced"), "{}", first.err);
    fs::rename(scene.dir().join("exactly-one-part"), scene.dir().join("renamed")).unwrap();
    let content = scene.files.remove("exactly-one-part").unwrap();
    scene.files.insert("renamed".to_owned(), content);
    let ran = scene.upload(&[]).succeeded();
    assert!(ran.err.contains("warning: there is a model already, and it is replaced"), "{}", ran.err);
    let left =
        "warning: 1 objects below the prefix are not in the directory: model/exactly-one-part; --delete";
    assert!(ran.err.contains(left), "{}", ran.err);

    let ran = scene.upload(&["--delete", "--dry-run"]).succeeded();
    assert!(ran.out.contains("would delete model/exactly-one-part\n"), "{}", ran.out);
    assert!(scene.objects("model/").await.contains_key("exactly-one-part"));
    let ran = scene.upload(&["--delete"]).succeeded();
    assert!(ran.out.contains("deleted model/exactly-one-part\n"), "{}", ran.out);
    assert!(!ran.err.contains("replaced"), "{}", ran.err);
    scene.assert_bucket_is_the_directory().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_not_sent_and_the_manifest_comes_before_conf() {
    let mut scene = Scene::new();
    // What is signed must be one.
    scene.write("gocryptfs.conf", include_bytes!("vectors/gocryptfs.conf").to_vec());
    let scene = scene;
    let key = scene.temp.path().join("key");
    let cai = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
        Ran::of(command.args(args).output().unwrap()).succeeded()
    };
    cai(&["keygen", key.to_str().unwrap()]);
    let sign = || cai(&["manifest", scene.dir().to_str().unwrap(), "--sign", key.to_str().unwrap()]);
    sign();
    for name in ["gocryptfs.conf.bak", "gocryptfs.conf.new", "sub/x.partial"] {
        fs::write(scene.dir().join(name), "x").unwrap();
    }
    let ran = scene.upload(&[]).succeeded();
    for name in ["gocryptfs.conf.bak", "gocryptfs.conf.new", "sub/x.partial"] {
        assert!(ran.err.contains(&format!("notice: {name} is a leftover")), "{}", ran.err);
    }
    let stored = scene.stored().await;
    let last: Vec<&str> = stored.iter().rev().take(2).map(|(_, key)| key.as_str()).collect();
    assert_eq!(last, ["model/gocryptfs.conf", "model/gocryptfs.longname.cai-manifest.name"]);
    assert_eq!(scene.objects("model/").await.len(), 8);

    // Signed with the leftovers: nobody could use that model.
    sign();
    let ran = scene.upload(&[]).failed(78, "upload.manifest");
    assert!(ran.err.contains("gocryptfs.conf.bak is missing"), "{}", ran.err);
}
