//! Claim: `cai download` makes a directory of exactly the objects, fetches nothing twice, overwrites nothing it does not know,
//! lets nothing wrong pass, and what it makes is what the real gocryptfs and Alibaba's own SDK know.
#![cfg(feature = "sandbox")]

#[path = "common/bucket.rs"]
mod bucket;
mod common;
#[path = "common/peer.rs"]
mod peer;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bucket::{MIB, Ran, Scene, bytes};
use sandbox::{ACCESS_KEY_ID, ACCESS_KEY_SECRET};
use serde_json::json;

const PART: usize = 8 * MIB;

fn target(scene: &Scene) -> PathBuf {
    scene.temp.path().join("down")
}

fn download(scene: &Scene, options: &[&str]) -> Ran {
    Ran::of(scene.publish("download", &target(scene), options).output().unwrap())
}

/// Content by relative path.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut pending) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

#[track_caller]
fn assert_same(dir: &Path, files: &BTreeMap<String, Vec<u8>>) {
    let found = content(dir);
    assert_eq!(found.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>());
    for (name, bytes) in files {
        assert!(found[name] == *bytes, "{name} differs");
    }
}

fn uploaded() -> Scene {
    let scene = Scene::new();
    scene.upload(&[]).succeeded();
    scene
}

/// Objects of the successful GETs, in order.
async fn fetched(scene: &Scene) -> Vec<(String, String)> {
    let log = scene.sandbox.log().await;
    let gets = log["requests"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["op"] == "get" && entry["status"] == 206);
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    gets.map(|entry| (text(&entry["subject"]), text(&entry["range"]))).collect()
}

// ---- what comes ----

#[tokio::test(flavor = "multi_thread")]
async fn download_is_the_directory_conf_last_and_a_second_one_fetches_nothing() {
    let scene = uploaded();
    let ran = download(&scene, &["--dry-run"]).succeeded();
    assert!(ran.summary().contains(": 7 objects would be downloaded (34608415 bytes)"), "{}", ran.summary());
    assert!(!target(&scene).exists());
    let ran = download(&scene, &[]).succeeded();
    assert_same(&target(&scene), &scene.files);
    assert!(ran.out.contains(": 7 objects downloaded (34608415 bytes), 0 already there\n"), "{}", ran.out);
    assert!(ran.out.contains("there is no manifest"), "{}", ran.out);
    let gets = fetched(&scene).await;
    assert_eq!(gets.last().map(|(key, _)| key.as_str()), Some("model/gocryptfs.conf"));
    assert_eq!(gets.len(), 3 + 2 + 4, "one range a part, none of the empty object");
    let ran = download(&scene, &[]).succeeded();
    assert!(ran.out.contains(": 0 objects downloaded (0 bytes), 7 already there\n"), "{}", ran.out);
    assert_eq!(fetched(&scene).await.len(), gets.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_answers_are_retried() {
    let scene = uploaded();
    let faults = json!([
        {"do": {"oss_cut_body": {"after": 1_000_000}}, "on": ["get"], "match": "aaaa", "times": 2},
        {"do": "oss_reset", "on": ["get"], "match": "zzzz", "times": 1},
        {"do": {"oss_error": {"status": 503, "code": "DownloadTrafficRateLimitExceeded"}}, "on": ["get"], "match": "one", "times": 2},
        {"do": "oss_ignore_range", "on": ["get"], "match": "zzzz", "times": 1},
        {"do": {"oss_slow_body": {"bytes_per_sec": 1000}}, "on": ["get"], "match": "conf"},
    ]);
    scene.sandbox.faults(faults).await;
    download(&scene, &[]).succeeded();
    assert_eq!(scene.sandbox.fired().await, [2, 1, 2, 1, 1]);
    assert_same(&target(&scene), &scene.files);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_download_goes_on_and_fetches_no_part_twice() {
    let mut scene = Scene::new();
    scene.write("big", bytes(9, 4 * PART + 1));
    scene.upload(&[]).succeeded();
    scene.one_at_a_time();
    let fault = json!([{"do": {"oss_delay": {"millis": 600_000}}, "on": ["get"], "match": "big", "skip": 2}]);
    scene.sandbox.faults(fault).await;
    let mut child = scene.publish("download", &target(&scene), &[]).stdout(Stdio::null()).spawn().unwrap();
    scene.wait_fired(1).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!target(&scene).join("big").exists() && !target(&scene).join("gocryptfs.conf").exists());
    scene.sandbox.faults(json!([])).await;
    let ran = download(&scene, &[]).succeeded();
    assert!(ran.out.contains("; 16777216 bytes were there from an interrupted run\n"), "{}", ran.out);
    let mut ranges: Vec<String> = fetched(&scene)
        .await
        .into_iter()
        .filter(|(key, _)| key == "model/big")
        .map(|(_, range)| range)
        .collect();
    ranges.sort();
    let wanted = [
        "bytes=0-8388607",
        "bytes=16777216-25165823",
        "bytes=25165824-33554431",
        "bytes=33554432-33554432",
        "bytes=8388608-16777215",
    ];
    assert_eq!(ranges, wanted);
    assert_same(&target(&scene), &scene.files);
}

#[tokio::test(flavor = "multi_thread")]
async fn part_that_a_power_loss_took_is_fetched_again() {
    let mut scene = Scene::new();
    scene.write("big", bytes(9, 4 * PART + 1));
    scene.upload(&[]).succeeded();
    scene.one_at_a_time();
    let fault = json!([{"do": {"oss_error": {"status": 403, "code": "AccessDenied"}}, "on": ["get"], "match": "big", "skip": 2}]);
    scene.sandbox.faults(fault).await;
    let ran = download(&scene, &[]).failed(77, "oss.access-denied");
    assert!(ran.err.contains("downloading model/big: "), "{}", ran.err);
    scene.sandbox.faults(json!([])).await;
    let data = fs::read_dir(target(&scene)).unwrap().map(|entry| entry.unwrap().path());
    let data = data.into_iter().find(|path| path.to_str().unwrap().ends_with(".data.partial")).unwrap();
    // Zeros where the list says that the second part is.
    let file = fs::File::options().write(true).open(data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], PART as u64 + 8192).unwrap();
    let ran = download(&scene, &[]).succeeded();
    assert!(ran.out.contains("; 8388608 bytes were there from an interrupted run\n"), "{}", ran.out);
    assert_same(&target(&scene), &scene.files);
}

// ---- what does not pass ----

#[tokio::test(flavor = "multi_thread")]
async fn object_that_is_replaced_between_two_ranges_fails_alone_and_comes_with_the_next_run() {
    let mut scene = uploaded();
    scene.one_at_a_time();
    scene
        .sandbox
        .faults(json!([{"do": "oss_replace", "on": ["get"], "match": "zzzz", "skip": 1, "times": 1}]))
        .await;
    let ran = download(&scene, &[]).failed(69, "download.replaced");
    assert!(ran.err.contains("model/zzzz was replaced or removed while it was downloaded"), "{}", ran.err);
    let there = content(&target(&scene));
    assert_eq!(there.len(), 5, "all but this and conf, nothing on the way: {:?}", there.keys());
    download(&scene, &[]).succeeded();
    let replaced = scene.files["zzzz"].iter().map(|byte| !byte).collect();
    scene.files.insert("zzzz".to_owned(), replaced);
    assert_same(&target(&scene), &scene.files);
}

#[tokio::test(flavor = "multi_thread")]
async fn byte_that_flips_once_is_repeated_and_a_wrong_checksum_for_good_is_an_error() {
    let scene = uploaded();
    scene
        .sandbox
        .faults(json!([{"do": {"oss_flip_byte": {"at": 77}}, "on": ["get"], "match": "aaaa", "times": 1}]))
        .await;
    let ran = download(&scene, &[]).succeeded();
    assert!(
        ran.err.contains("warning: aaaa arrived with a wrong checksum, and is fetched again"),
        "{}",
        ran.err
    );
    assert_same(&target(&scene), &scene.files);

    fs::remove_dir_all(target(&scene)).unwrap();
    scene
        .sandbox
        .faults(json!([{"do": "oss_wrong_crc", "on": ["get"], "match": "aaaa"},
                                {"do": "oss_wrong_crc", "on": ["get"], "match": "diriv"}]))
        .await;
    let ran = download(&scene, &[]).failed(65, "download.checksum");
    assert_eq!(ran.err.matches("failed: ").count(), 2, "{}", ran.err);
    let there = content(&target(&scene));
    assert_eq!(there.len(), 4, "all but these two and conf: {:?}", there.keys());

    scene.sandbox.faults(json!([{"do": "oss_no_crc", "on": ["get"]}])).await;
    let ran = download(&scene, &[]).succeeded();
    assert!(ran.err.contains("warning: OSS told no checksum of 3 objects"), "{}", ran.err);
    assert_same(&target(&scene), &scene.files);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_cannot_be_files_are_refused() {
    for key in ["model/../x", "model/a//b", "model//x"] {
        let scene = uploaded();
        scene.client().put(key, bytes(1, 3).into()).await.unwrap();
        let ran = download(&scene, &[]).failed(78, "oss.key");
        assert!(ran.err.contains("cannot be a file of the model"), "{}", ran.err);
        assert!(!target(&scene).exists());
    }
    let scene = uploaded();
    scene.client().put("model/sub/empty/more", bytes(1, 3).into()).await.unwrap();
    scene.client().put("model/sub/empty", bytes(1, 3).into()).await.unwrap();
    download(&scene, &[]).failed(78, "download.conflict");
    let ran = download(&scene, &["--bucket-path", "conf-ai:/nowhere/"]).failed(78, "download.nothing");
    assert!(ran.err.contains("there is no object below \"nowhere/\""), "{}", ran.err);
    assert!(!target(&scene).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn directory_that_is_no_earlier_download_is_left_as_it_is() {
    let scene = uploaded();
    download(&scene, &[]).succeeded();
    let alien = target(&scene).join("sub/alien");
    fs::write(&alien, "mine").unwrap();
    let ran = download(&scene, &[]).failed(78, "download.foreign");
    assert!(ran.err.contains("it has 1 other entries: sub/alien ["), "{}", ran.err);
    fs::remove_file(&alien).unwrap();

    fs::remove_file(target(&scene).join("zzzz")).unwrap();
    symlink("/etc/passwd", target(&scene).join("zzzz")).unwrap();
    download(&scene, &[]).failed(78, "download.foreign");
    fs::remove_file(target(&scene).join("zzzz")).unwrap();

    for other in [bytes(99, 16), bytes(99, 17)] {
        fs::write(target(&scene).join("gocryptfs.diriv"), &other).unwrap();
        let ran = download(&scene, &[]).failed(78, "download.differs");
        assert!(
            ran.err.contains("1 files that are not the objects of their names: gocryptfs.diriv ["),
            "{}",
            ran.err
        );
        assert_eq!(fs::read(target(&scene).join("gocryptfs.diriv")).unwrap(), other);
    }
    assert!(!target(&scene).join("zzzz").exists(), "nothing was fetched");

    let open = fs::File::open(target(&scene)).unwrap();
    let _lock = nix::fcntl::Flock::lock(open, nix::fcntl::FlockArg::LockExclusive).unwrap();
    download(&scene, &[]).failed(78, "download.in-use");
}

// ---- what others say ----

#[tokio::test(flavor = "multi_thread")]
async fn alibabas_sdk_reads_what_was_uploaded_and_its_upload_is_downloaded() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/python");
    if !common::available("oss-sdk", python.exists(), "no .tools/venv with tests/peers/requirements.txt") {
        return;
    }
    let scene = uploaded();
    let secret = scene.temp.path().join("secret");
    fs::write(&secret, ACCESS_KEY_SECRET).unwrap();
    let copy = |verb: &str, prefix: &str, dir: &Path| {
        let mut command = Command::new(&python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/oss2_copy.py"));
        command.args([verb, scene.sandbox.oss.as_str(), ACCESS_KEY_ID]).arg(&secret).arg(prefix).arg(dir);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let theirs = scene.temp.path().join("theirs");
    copy("get", "model/", &theirs);
    assert_same(&theirs, &scene.files);
    copy("put", "sdk/", &scene.dir());
    download(&scene, &["--bucket-path", "conf-ai:/sdk/"]).succeeded();
    assert_same(&target(&scene), &scene.files);
    let ran = scene.upload(&["--bucket-path", "conf-ai:/sdk/"]).succeeded();
    assert!(ran.summary().ends_with(": 0 objects uploaded (0 bytes), 7 already there"), "{}", ran.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_model_comes_with_its_identity_and_opens_with_gocryptfs() {
    let scene = Scene::new();
    let scratch = peer::Scratch::new();
    fs::write(scratch.path("source").join("model.safetensors"), bytes(7, 9 * MIB + 3)).unwrap();
    fs::remove_dir(scratch.path("cipher")).unwrap();
    let path = |name: &str| scratch.path(name).to_str().unwrap().to_owned();
    let cai = |args: &[&str]| {
        Ran::of(Command::new(env!("CARGO_BIN_EXE_cai")).args(args).output().unwrap()).succeeded().out
    };
    let public = cai(&["keygen", &path("key")]).trim().to_owned();
    let said = cai(&[
        "encrypt",
        &path("source"),
        &path("cipher"),
        "--passfile",
        &path("passfile"),
        "--sign",
        &path("key"),
    ]);
    Ran::of(scene.publish("upload", &scratch.path("cipher"), &[]).output().unwrap()).succeeded();
    let out = download(&scene, &["--publisher", &public]).succeeded().out;
    let identity = said.lines().find(|line| line.starts_with("revision 1, model identity ")).unwrap();
    assert!(out.contains(&format!("{identity}, signed by {public}\n")), "{out}");
    if peer::available() {
        fs::rename(target(&scene), scratch.path("down")).unwrap();
        let mounted = scratch.mount_at("down", "plain", &["-ro"]);
        assert!(fs::read(mounted.point.join("model.safetensors")).unwrap() == bytes(7, 9 * MIB + 3));
        drop(mounted);
        fs::rename(scratch.path("down"), target(&scene)).unwrap();
    }

    // What the service holds is not what was signed.
    let victim = content(&target(&scene)).into_iter().find(|(_, bytes)| bytes.len() > MIB).unwrap().0;
    scene.client().put(&format!("model/{victim}"), bytes(8, 9 * MIB).into()).await.unwrap();
    fs::remove_dir_all(target(&scene)).unwrap();
    let ran = download(&scene, &[]).failed(65, "download.manifest");
    assert!(ran.out.contains(&format!("{victim}: has 9437184 bytes, the manifest says ")), "{}", ran.out);
    let other = cai(&["keygen", &path("other")]).trim().to_owned();
    download(&scene, &["--publisher", &other]).failed(65, "download.publisher");
}
