//! Claim: `cai upload` makes the bucket hold exactly the directory, sends nothing twice, makes `gocryptfs.conf` the last
//! thing that arrives, refuses what cannot be a model before it sends anything, and says what it did without any secret.
#![cfg(feature = "sandbox")]

#[path = "common/bucket.rs"]
mod bucket;
mod common;
#[path = "common/sandbox.rs"]
mod sandbox;

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use bucket::{HOSTILE_NAME, MIB, Ran, Scene, bytes};
use common::wait_until;
use serde_json::json;

// ---- what arrives ----

#[tokio::test(flavor = "multi_thread")]
async fn upload_of_a_directory_makes_the_bucket_equal_to_it() {
    let scene = Scene::new();
    let ran = scene.upload(&[]).succeeded();
    scene.assert_bucket_is_the_directory().await;
    let total: usize = scene.files.values().map(Vec::len).sum();
    assert_eq!(
        ran.summary(),
        format!("conf-ai:/model/: 7 objects uploaded ({total} bytes), 0 already there")
    );
    let mut lines: Vec<&str> = ran.out.lines().collect();
    lines.pop();
    assert_eq!(lines.last(), Some(&"uploaded model/gocryptfs.conf (385 bytes)"));
    assert!(lines.contains(&format!("uploaded model/{HOSTILE_NAME} (5000 bytes)").as_str()), "{lines:?}");
    assert_eq!(lines.len(), 7);
    // 3 + 2 parts, each upload begun and completed; what fits into one part is put.
    // And one look for unfinished uploads.
    assert_eq!(scene.sandbox.count("oss.multipart").await, 3 + 2 + 2 * 2 + 1);
    assert_eq!(scene.sandbox.count("oss.put").await, 5);
    assert_eq!(scene.open_uploads(), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn conf_is_stored_after_everything_else() {
    let scene = Scene::new();
    scene.upload(&[]).succeeded();
    let stored = scene.stored().await;
    assert_eq!(stored.len(), 14);
    assert_eq!(stored.last(), Some(&("put".to_owned(), "model/gocryptfs.conf".to_owned())));
    assert_eq!(stored.iter().filter(|(_, key)| key.ends_with("gocryptfs.conf")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_upload_sends_nothing() {
    let scene = Scene::new();
    scene.upload(&[]).succeeded();
    let before = scene.sent().await;
    let ran = scene.upload(&[]).succeeded();
    assert_eq!(scene.sent().await, before);
    assert_eq!(ran.summary(), "conf-ai:/model/: 0 objects uploaded (0 bytes), 7 already there");
    assert!(ran.out.contains("already there model/aaaa\n"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_after_a_change_of_one_byte_sends_that_file_only() {
    let mut scene = Scene::new();
    scene.upload(&[]).succeeded();
    let mut changed = scene.files["zzzz"].clone();
    changed[4_000_000] ^= 1;
    scene.write("zzzz", changed);
    let ran = scene.upload(&[]).succeeded();
    assert_eq!(ran.summary(), "conf-ai:/model/: 1 objects uploaded (8388609 bytes), 6 already there");
    scene.assert_bucket_is_the_directory().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_with_one_request_at_a_time_works() {
    let scene = Scene::new();
    scene.one_at_a_time();
    scene.upload(&[]).succeeded();
    scene.assert_bucket_is_the_directory().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_win_over_the_file() {
    let scene = Scene::new();
    let ran = scene.upload(&["--bucket-path", "conf-ai:/other/place/"]).succeeded();
    assert!(ran.summary().starts_with("conf-ai:/other/place/: 7 objects uploaded"), "{}", ran.summary());
    assert_eq!(scene.objects("other/place/").await.len(), 7);
    assert_eq!(scene.objects("model/").await.len(), 0);
    // The region is part of the signature.
    let ran = scene.upload(&["--region", "cn-shanghai"]).failed(77, "oss.signature");
    assert!(ran.err.contains("MODEL_OSS_REGION"), "{}", ran.err);
    scene.upload(&["--endpoint", "ftp://127.0.0.1"]).failed(78, "config.invalid");
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_sends_nothing_and_says_what_it_would() {
    let mut scene = Scene::new();
    let total: usize = scene.files.values().map(Vec::len).sum();
    let ran = scene.upload(&["--dry-run"]).succeeded();
    assert_eq!(
        ran.summary(),
        format!("conf-ai:/model/: 7 objects would be uploaded ({total} bytes), 0 already there")
    );
    assert!(ran.out.contains("would upload model/aaaa (17825797 bytes)\n"), "{}", ran.out);
    assert_eq!(scene.sent().await, 0);
    scene.upload(&[]).succeeded();
    let before = scene.sent().await;
    scene.write("gocryptfs.diriv", bytes(7, 16));
    let ran = scene.upload(&["--dry-run"]).succeeded();
    assert_eq!(ran.summary(), "conf-ai:/model/: 1 objects would be uploaded (16 bytes), 6 already there");
    assert_eq!(scene.sent().await, before);
}

// ---- what is refused before anything is sent ----

#[tokio::test(flavor = "multi_thread")]
async fn directory_without_conf_is_refused_unless_plaintext_is_meant() {
    let mut scene = Scene::new();
    fs::remove_file(scene.dir().join("gocryptfs.conf")).unwrap();
    scene.files.remove("gocryptfs.conf");
    let ran = scene.upload(&[]).failed(78, "upload.not-encrypted");
    assert!(ran.err.contains("has no gocryptfs.conf, so this would upload plaintext"), "{}", ran.err);
    assert!(ran.err.contains("--allow-plaintext"), "{}", ran.err);
    assert_eq!(scene.sandbox.log().await["requests"], json!([]));
    scene.upload(&["--allow-plaintext"]).succeeded();
    scene.assert_bucket_is_the_directory().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn symlinks_are_refused_and_ten_of_them_listed() {
    let scene = Scene::new();
    for number in 0..12 {
        symlink("../aaaa", scene.dir().join(format!("sub/link-{number:02}"))).unwrap();
    }
    let ran = scene.upload(&[]).failed(78, "upload.symlinks");
    assert!(ran.err.contains("has 12 symbolic links: "), "{}", ran.err);
    assert_eq!(ran.err.matches("/sub/link-").count(), 10, "{}", ran.err);
    assert!(ran.err.contains("/sub/link-09, and 2 more ["), "{}", ran.err);
    assert!(ran.err.contains("cai encrypt --dereference"), "{}", ran.err);
    assert_eq!(scene.sandbox.log().await["requests"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_become_an_object_is_refused_by_name() {
    let scene = Scene::new();
    let fifo = scene.dir().join("sub/pipe");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(scene.upload(&[]).failed(78, "upload.special-files").err.contains("/sub/pipe ["));
    fs::remove_file(fifo).unwrap();

    let name = scene.dir().join(OsStr::from_bytes(b"caf\xe9"));
    fs::write(&name, "x").unwrap();
    let ran = scene.upload(&[]).failed(78, "upload.name");
    assert!(ran.err.contains(r#"caf\xE9" is not valid UTF-8"#), "{}", ran.err);
    fs::remove_file(name).unwrap();

    let empty = scene.temp.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let run = |dir: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
        command.arg("upload").arg(dir).arg("--allow-plaintext");
        Ran::of(command.arg("--config").arg(scene.temp.path().join("owner.env")).output().unwrap())
    };
    run(&empty).failed(78, "upload.empty");
    let ran = run(&scene.temp.path().join("nowhere")).failed(78, "upload.local");
    assert!(ran.err.contains("nowhere: No such file"), "{}", ran.err);
    run(&scene.dir().join("aaaa")).failed(78, "upload.local");
    assert_eq!(scene.sandbox.log().await["requests"], json!([]));
}

#[test]
fn configuration_that_is_missing_is_reported_before_the_directory_is_read() {
    let scene = Scene::new();
    fs::remove_file(scene.temp.path().join("owner.env")).unwrap();
    let ran = scene.upload(&[]).failed(78, "config.invalid");
    assert!(ran.err.contains("owner.env"), "{}", ran.err);
}

#[test]
fn help_has_no_option_for_a_secret() {
    let output = Command::new(env!("CARGO_BIN_EXE_cai")).args(["upload", "--help"]).output().unwrap();
    let help = Ran::of(output).succeeded().out;
    let options: Vec<&str> = help
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
        .map(|word| word.trim_end_matches([',', '.', ')']))
        .collect();
    for option in [
        "--bucket-path",
        "--endpoint",
        "--region",
        "--config",
        "--allow-plaintext",
        "--delete",
        "--dry-run",
        "--root",
        "--help",
    ] {
        assert!(options.contains(&option), "{option}: {help}");
    }
    assert!(
        options
            .iter()
            .all(|option| !["key", "secret", "token", "pass"].iter().any(|word| option.contains(word)))
    );
}

// ---- what fails on the way ----

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secret_is_denied_and_nothing_is_stored() {
    let scene = Scene::new();
    scene.write_env("not-the-secret");
    let ran = scene.upload(&[]).failed(77, "oss.signature");
    assert!(ran.err.contains("check MODEL_OSS_SECRET_ACCESS_KEY"), "{}", ran.err);
    assert!(!ran.err.contains("not-the-secret") && !ran.out.contains("not-the-secret"));
    assert_eq!(scene.objects("").await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn transient_failures_of_every_request_are_retried() {
    let scene = Scene::new();
    let fault = |op: &str, key: &str, skip: u64| {
        json!({"do": {"oss_error": {"status": 503, "code": "ServiceUnavailable"}}, "on": [op], "match": key,
               "skip": skip, "times": 2})
    };
    // Begin, one of the parts, the completion (after begin, three parts and the failures before it), puts, the list.
    let faults = json!([
        fault("list", "model/", 0),
        fault("put", "gocryptfs.diriv", 0),
        fault("put", "gocryptfs.conf", 0),
        fault("multipart", "aaaa", 0),
        fault("multipart", "aaaa", 1),
        fault("multipart", "aaaa", 3),
        {"do": "oss_reset", "on": ["multipart"], "match": "zzzz", "skip": 2, "times": 1},
    ]);
    scene.sandbox.faults(faults).await;
    scene.upload(&[]).succeeded();
    assert_eq!(scene.sandbox.fired().await, [2, 2, 2, 2, 2, 2, 1]);
    scene.assert_bucket_is_the_directory().await;
    assert_eq!(scene.open_uploads(), [] as [&str; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_part_aborts_the_upload_and_keeps_conf_back() {
    let scene = Scene::new();
    let fault = json!([{"do": {"oss_error": {"status": 403, "code": "AccessDenied"}}, "on": ["multipart"],
                        "match": "aaaa", "skip": 2, "times": 1}]);
    scene.sandbox.faults(fault).await;
    let ran = scene.upload(&[]).failed(77, "oss.access-denied");
    assert!(ran.err.contains("uploading model/aaaa: "), "{}", ran.err);
    assert!(ran.err.contains("oss:PutObject"), "{}", ran.err);
    // The other one may have been begun, and stays for the next run.
    assert!(!scene.open_uploads().contains(&"model/aaaa".to_owned()));
    assert!(!scene.objects("model/").await.contains_key("gocryptfs.conf"));
    // What was kept back comes with the next run.
    scene.upload(&[]).succeeded();
    scene.assert_bucket_is_the_directory().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upload_that_cannot_be_aborted_is_named() {
    let scene = Scene::new();
    // Everything behind the beginning is refused, the abort too.
    let fault = json!([{"do": {"oss_error": {"status": 403, "code": "AccessDenied"}}, "on": ["multipart"],
                        "match": "aaaa", "skip": 1}]);
    scene.sandbox.faults(fault).await;
    let ran = scene.upload(&[]).failed(77, "oss.access-denied");
    assert!(
        ran.err.contains("warning: the unfinished upload of model/aaaa could not be aborted"),
        "{}",
        ran.err
    );
    assert!(scene.open_uploads().contains(&"model/aaaa".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_changes_before_it_is_read_is_an_error_that_names_it() {
    let scene = Scene::new();
    for (name, len) in [("aaaa", 12 * MIB as u64), ("gocryptfs.diriv", 17)] {
        // The walk is over once the list is asked for, and no file is read before it was answered.
        let fault =
            json!([{"do": {"oss_error": {"status": 503, "code": "ServiceUnavailable"}}, "on": ["list"]}]);
        scene.sandbox.faults(fault).await;
        let child = scene.start();
        scene.wait_fired(1).await;
        fs::File::options().write(true).open(scene.dir().join(name)).unwrap().set_len(len).unwrap();
        scene.sandbox.faults(json!([])).await;
        let ran = Ran::of(child.wait_with_output().unwrap()).failed(69, "upload.file-changed");
        assert!(ran.err.contains(&format!("/{name} changed while it was uploaded")), "{}", ran.err);
        assert_eq!(scene.open_uploads(), [] as [&str; 0]);
        assert!(!scene.objects("model/").await.contains_key("gocryptfs.conf"));
        fs::write(scene.dir().join(name), &scene.files[name]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_that_closes_the_pipe_does_not_end_the_upload() {
    let scene = Scene::new();
    let mut child = scene.start();
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let mut status = None;
    wait_until("the upload to end", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success(), "{err}");
    scene.assert_bucket_is_the_directory().await;
}
