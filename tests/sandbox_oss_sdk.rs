//! Claim: the stand-in OSS is one that Alibaba's own SDKs can use and that refuses what OSS refuses.
//!
//! The SDK tests need `.tools/venv/bin/python` with `tests/peers/requirements.txt`
//! (`CAI_TEST_REQUIRE=oss-sdk`); the faults and the strictness that no SDK would provoke are tested with raw
//! HTTP on an anonymous bucket.
#![cfg(feature = "sandbox")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm::Crc64Xz;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
use sandbox::{ACCESS_KEY_ID, ACCESS_KEY_SECRET, BUCKET, Builder, SESSION_TOKEN, Sandbox};

// ---- the official SDKs ----

fn python() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/python");
    let present = python.exists();
    common::available("oss-sdk", present, "no .tools/venv with tests/peers/requirements.txt")
        .then_some(python)
}

/// The verdict lines of `oss_sdk_check.py` against `sandbox`.
fn sdk_cells(python: &Path, sandbox: &Sandbox, token: Option<&str>, anonymous: bool) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, ACCESS_KEY_SECRET).unwrap();
    let mut command = std::process::Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/oss_sdk_check.py"));
    command.args(["--port", sandbox.oss.rsplit(':').next().unwrap()]);
    command.args(["--access-key-id", ACCESS_KEY_ID]).arg("--secret-file").arg(&secret);
    if let Some(token) = token {
        let file = dir.path().join("token");
        std::fs::write(&file, token).unwrap();
        command.arg("--token-file").arg(file);
    }
    if anonymous {
        command.arg("--anonymous");
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    eprintln!("{errors}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn sdks_with_a_lasting_key_work_in_every_cell() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::start(Builder::default());
    let expected = [
        "oss2 v1 path ok",
        "oss2 v1 virtual ok",
        "oss2 v4 path ok",
        "oss2 v4 virtual ok",
        "oss-v2 v1 path ok",
        "oss-v2 v1 virtual ok",
        "oss-v2 v4 path ok",
        "oss-v2 v4 virtual ok",
    ];
    assert_eq!(sdk_cells(&python, &sandbox, None, false), expected);
}

#[test]
fn sdks_with_a_temporary_key_work_but_for_the_known_bug() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::start(Builder::default().with_session_token());
    // alibabacloud-oss-v2 sends the token of version 1 in `security-token`, which OSS does not read: so the
    // temporary key comes without a token. That is the SDK's bug; the server is not to be loosened for it.
    let expected = [
        "oss2 v1 path ok",
        "oss2 v1 virtual ok",
        "oss2 v4 path ok",
        "oss2 v4 virtual ok",
        "oss-v2 v1 path failed InvalidAccessKeyId",
        "oss-v2 v1 virtual failed InvalidAccessKeyId",
        "oss-v2 v4 path ok",
        "oss-v2 v4 virtual ok",
    ];
    assert_eq!(sdk_cells(&python, &sandbox, Some(SESSION_TOKEN), false), expected);
}

#[test]
fn sdks_without_a_key_may_read_an_anonymous_bucket() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::start(Builder::default().anonymous_read());
    let expected = [
        "oss2 anonymous path ok",
        "oss2 anonymous virtual ok",
        "oss-v2 anonymous path ok",
        "oss-v2 anonymous virtual ok",
    ];
    assert_eq!(sdk_cells(&python, &sandbox, None, true), expected);
}

// ---- raw HTTP ----------------------------------------------------------------------------------------------------------

fn client() -> Client {
    Client::builder().no_proxy().build().unwrap()
}

fn url(sandbox: &Sandbox, rest: &str) -> String {
    format!("{}/{BUCKET}/{rest}", sandbox.oss)
}

/// Signs with version 1, for the writes that set a test up.
fn signed(sandbox: &Sandbox, method: &str, key: &str) -> RequestBuilder {
    let date = httpdate(std::time::SystemTime::now());
    let text = format!("{method}\n\n\n{date}\n/{BUCKET}/{key}");
    let secret = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, ACCESS_KEY_SECRET.as_bytes());
    let signature = STANDARD.encode(hmac::sign(&secret, text.as_bytes()));
    client()
        .request(method.parse().unwrap(), url(sandbox, key))
        .header("date", date)
        .header("authorization", format!("OSS {ACCESS_KEY_ID}:{signature}"))
}

/// The date as GNU date writes it: the server's own formatting is not to be trusted here.
fn httpdate(at: std::time::SystemTime) -> String {
    let secs = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let output = std::process::Command::new("date")
        .args(["-u", "-d", &format!("@{secs}"), "+%a, %d %b %Y %H:%M:%S GMT"])
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn put(sandbox: &Sandbox, key: &str, bytes: &[u8]) {
    let answer = signed(sandbox, "PUT", key).body(bytes.to_vec()).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

async fn get(sandbox: &Sandbox, key: &str) -> Response {
    client().get(url(sandbox, key)).send().await.unwrap()
}

fn open_bucket() -> Sandbox {
    Sandbox::start(Builder::default().anonymous_read())
}

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name).map(|value| value.to_str().unwrap())
}

async fn code(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let code = text.split("<Code>").nth(1).and_then(|rest| rest.split("</Code>").next());
    (status, code.unwrap_or_default().to_owned())
}

/// The whole answer to `GET key` as bytes, read from the socket until its end.
async fn raw_get(sandbox: &Sandbox, key: &str) -> (Vec<u8>, std::io::Result<usize>) {
    let mut stream = TcpStream::connect(sandbox.oss.strip_prefix("http://").unwrap()).await.unwrap();
    let request = format!("GET /{BUCKET}/{key} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes).await;
    (bytes, end)
}

fn body_of(raw: &[u8]) -> &[u8] {
    let at = raw.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    &raw[at + 4..]
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn get_of_a_large_object_gives_its_bytes_and_crc() {
    let sandbox = open_bucket();
    let data = pattern(3 * 1024 * 1024 + 17); // several frames and a rest
    put(&sandbox, "big", &data).await;
    let answer = get(&sandbox, "big").await;
    assert_eq!(header(&answer, "content-length"), Some(data.len().to_string().as_str()));
    let crc = crc_fast::checksum(Crc64Xz, &data).to_string();
    assert_eq!(header(&answer, "x-oss-hash-crc64ecma"), Some(crc.as_str()));
    assert_eq!(header(&answer, "x-oss-request-id").map(str::len), Some(24));
    assert_eq!(answer.bytes().await.unwrap(), data);
    let answer =
        client().get(url(&sandbox, "big")).header("range", "bytes=524280-1048600").send().await.unwrap();
    assert_eq!(answer.status(), 206);
    assert_eq!(
        header(&answer, "content-range"),
        Some(format!("bytes 524280-1048600/{}", data.len()).as_str())
    );
    assert_eq!(header(&answer, "x-oss-hash-crc64ecma"), Some(crc.as_str()), "of the whole object");
    assert_eq!(answer.bytes().await.unwrap(), data[524_280..=1_048_600]);
}

#[tokio::test]
async fn conditions_that_do_not_hold_are_304_and_412() {
    let sandbox = open_bucket();
    put(&sandbox, "k", b"v").await;
    let etag = header(&get(&sandbox, "k").await, "etag").unwrap().to_owned();
    let with = |name: &'static str, value: &str| client().get(url(&sandbox, "k")).header(name, value).send();
    assert_eq!(with("if-match", &etag).await.unwrap().status(), 200);
    assert_eq!(code(with("if-match", "\"00\"").await.unwrap()).await, (412, "PreconditionFailed".into()));
    assert_eq!(with("if-none-match", &etag).await.unwrap().status(), 304);
    assert_eq!(with("if-none-match", "\"00\"").await.unwrap().status(), 200);
    let long_ago = "Thu, 01 Jan 1970 00:00:00 GMT";
    assert_eq!(with("if-unmodified-since", long_ago).await.unwrap().status(), 412);
    assert_eq!(with("if-modified-since", long_ago).await.unwrap().status(), 200);
}

#[tokio::test]
async fn put_with_wrong_digest_or_without_length_is_refused() {
    let sandbox = open_bucket();
    let md5 = STANDARD.encode([0; 16]);
    let answer = client().put(url(&sandbox, "k")).body("v").send().await.unwrap();
    assert_eq!(code(answer).await, (403, "AccessDenied".into()), "unsigned");
    // Content-MD5 is part of the signature, so this signs it too.
    let date = httpdate(std::time::SystemTime::now());
    let text = format!("PUT\n{md5}\n\n{date}\n/{BUCKET}/k");
    let secret = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, ACCESS_KEY_SECRET.as_bytes());
    let signature = STANDARD.encode(hmac::sign(&secret, text.as_bytes()));
    let authorization = format!("OSS {ACCESS_KEY_ID}:{signature}");
    let request = client().put(url(&sandbox, "k")).header("date", date).header("content-md5", md5);
    let answer = request.header("authorization", authorization).body("v").send().await.unwrap();
    assert_eq!(code(answer).await, (400, "InvalidDigest".into()));
    assert_eq!(get(&sandbox, "k").await.status(), 404);
}

#[tokio::test]
async fn signature_of_another_time_is_refused() {
    let sandbox = open_bucket();
    for (age, expected) in [(14 * 60, (404, "NoSuchKey")), (16 * 60, (403, "RequestTimeTooSkewed"))] {
        let date = httpdate(std::time::SystemTime::now() - Duration::from_secs(age));
        let text = format!("GET\n\n\n{date}\n/{BUCKET}/k");
        let secret = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, ACCESS_KEY_SECRET.as_bytes());
        let signature = STANDARD.encode(hmac::sign(&secret, text.as_bytes()));
        let request = client().get(url(&sandbox, "k")).header("date", date);
        let answer =
            request.header("authorization", format!("OSS {ACCESS_KEY_ID}:{signature}")).send().await.unwrap();
        assert_eq!(code(answer).await, (expected.0, expected.1.to_owned()));
    }
}

#[tokio::test]
async fn signature_mismatch_shows_what_was_signed() {
    let sandbox = open_bucket();
    let date = httpdate(std::time::SystemTime::now());
    let request = client().get(url(&sandbox, "k")).header("date", &date);
    let answer = request.header("authorization", format!("OSS {ACCESS_KEY_ID}:AAAA")).send().await.unwrap();
    assert_eq!(header(&answer, "x-oss-ec"), Some("0002-00000040"));
    let text = answer.text().await.unwrap();
    assert!(text.contains(&format!("<StringToSign>GET\n\n\n{date}\n/{BUCKET}/k</StringToSign>")), "{text}");
    assert!(text.contains("<Code>SignatureDoesNotMatch</Code>") && text.contains("<RequestId>"), "{text}");
}

#[tokio::test]
async fn objects_outlive_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::start(Builder::default().anonymous_read().state_dir(dir.path()));
    put(&sandbox, "dir/k", b"kept").await;
    let etag = header(&get(&sandbox, "dir/k").await, "etag").unwrap().to_owned();
    drop(sandbox);
    let sandbox = Sandbox::start(Builder::default().anonymous_read().state_dir(dir.path()));
    let answer = get(&sandbox, "dir/k").await;
    assert_eq!(header(&answer, "etag"), Some(etag.as_str()));
    assert_eq!(answer.bytes().await.unwrap(), "kept");
    assert_eq!(signed(&sandbox, "DELETE", "dir/k").send().await.unwrap().status(), 204);
    assert_eq!(std::fs::read_dir(dir.path().join("data")).unwrap().count(), 0, "no bytes are left behind");
}

// ---- faults ----

#[tokio::test]
async fn cut_body_sends_exactly_that_many_bytes_that_many_times() {
    let sandbox = open_bucket();
    let data = pattern(2 * 1024 * 1024);
    put(&sandbox, "shard-1", &data).await;
    for after in [0, 1, 524_289, 2 * 1024 * 1024 - 1] {
        sandbox
            .faults(json!([{"do": {"oss_cut_body": {"after": after}}, "match": "shard", "times": 1}]))
            .await;
        let (raw, end) = raw_get(&sandbox, "shard-1").await;
        assert!(end.is_ok(), "closed, not reset");
        assert_eq!(body_of(&raw), &data[..after]);
        assert_eq!(get(&sandbox, "shard-1").await.bytes().await.unwrap(), data);
        assert_eq!(sandbox.fired().await, [1]);
    }
    sandbox.faults(json!([{"do": {"oss_cut_body": {"after": data.len()}}, "times": 1}])).await;
    assert_eq!(get(&sandbox, "shard-1").await.bytes().await.unwrap(), data);
    assert_eq!(sandbox.fired().await, [0], "a cut after the end cuts nothing");
}

#[tokio::test]
async fn reset_with_and_without_an_answer_is_a_reset() {
    let sandbox = open_bucket();
    put(&sandbox, "k", &pattern(100_000)).await;
    for fault in [json!("oss_reset"), json!({"oss_reset_body": {"after": 1000}})] {
        sandbox.faults(json!([{"do": fault, "times": 1}])).await;
        let (_, end) = raw_get(&sandbox, "k").await;
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    sandbox.faults(json!([{"do": "oss_drop", "times": 1}])).await;
    let (raw, end) = raw_get(&sandbox, "k").await;
    assert_eq!((raw.len(), end.is_ok()), (0, true));
}

#[tokio::test]
async fn stalled_body_stays_open_in_silence() {
    let sandbox = open_bucket();
    put(&sandbox, "k", &pattern(1000)).await;
    sandbox.faults(json!([{"do": {"oss_stall_body": {"after": 10}}, "times": 1}])).await;
    let mut answer = get(&sandbox, "k").await;
    assert_eq!(answer.chunk().await.unwrap().unwrap(), pattern(10));
    let more = tokio::time::timeout(Duration::from_millis(300), answer.chunk()).await;
    assert!(more.is_err(), "neither bytes nor an end");
}

#[tokio::test]
async fn slow_body_takes_its_time() {
    let sandbox = open_bucket();
    put(&sandbox, "k", &pattern(50_000)).await;
    sandbox.faults(json!([{"do": {"oss_slow_body": {"bytes_per_sec": 100_000}}, "times": 1}])).await;
    let started = Instant::now();
    assert_eq!(get(&sandbox, "k").await.bytes().await.unwrap(), pattern(50_000));
    let slow = started.elapsed();
    assert!(slow > Duration::from_millis(400), "{slow:?} for half a second's bytes");
}

#[tokio::test]
async fn errors_asked_for_come_that_many_times_on_that_operation() {
    let sandbox = open_bucket();
    put(&sandbox, "k", b"v").await;
    sandbox
        .faults(json!([
            {"do": {"oss_error": {"status": 503, "code": "TotalQpsLimitExceeded", "ec": "0048-00000001"}}, "on": ["get"], "times": 2},
            {"do": {"oss_error": {"status": 429, "code": "QpsLimitExceeded"}}, "on": ["head"], "times": 1},
            {"do": {"oss_error": {"status": 403, "code": "AccessDenied"}}, "on": ["list"]},
        ]))
        .await;
    for _ in 0..2 {
        assert_eq!(code(get(&sandbox, "k").await).await, (503, "TotalQpsLimitExceeded".into()));
    }
    assert_eq!(get(&sandbox, "k").await.status(), 200);
    let head = client().head(url(&sandbox, "k")).send().await.unwrap();
    assert_eq!(head.status(), 429);
    let error = String::from_utf8(STANDARD.decode(header(&head, "x-oss-err").unwrap()).unwrap()).unwrap();
    assert!(error.contains("<Code>QpsLimitExceeded</Code>"), "{error}");
    assert_eq!(client().head(url(&sandbox, "k")).send().await.unwrap().status(), 200);
    for _ in 0..2 {
        assert_eq!(code(get(&sandbox, "?list-type=2").await).await, (403, "AccessDenied".into()));
    }
    assert_eq!(sandbox.fired().await, [2, 1, 2]);
}

#[tokio::test]
async fn headers_can_lie() {
    let sandbox = open_bucket();
    put(&sandbox, "k", b"0123456789").await;
    let crc = crc_fast::checksum(Crc64Xz, b"0123456789").to_string();
    sandbox
        .faults(json!([
            {"do": "oss_wrong_crc", "times": 1},
            {"do": "oss_no_crc", "times": 1},
            {"do": "oss_ignore_range", "times": 1},
            {"do": {"oss_qos_delay": {"millis": 12}}, "times": 1},
            {"do": {"oss_flip_byte": {"at": 4}}, "times": 1},
        ]))
        .await;
    let ranged = || client().get(url(&sandbox, "k")).header("range", "bytes=2-7").send();
    let first = ranged().await.unwrap();
    assert_eq!(first.status(), 200);
    assert!(header(&first, "x-oss-hash-crc64ecma").is_some_and(|other| other != crc));
    assert_eq!(header(&first, "x-oss-qos-delay-time"), Some("12"));
    assert_eq!(first.bytes().await.unwrap(), b"0123\xcb56789"[..]);
    let second = ranged().await.unwrap();
    assert_eq!((second.status().as_u16(), header(&second, "x-oss-hash-crc64ecma")), (206, None));
    assert_eq!(second.bytes().await.unwrap(), "234567");
    let third = ranged().await.unwrap();
    assert_eq!(header(&third, "x-oss-hash-crc64ecma"), Some(crc.as_str()));
    assert_eq!(header(&third, "x-oss-qos-delay-time"), None);
    assert_eq!(sandbox.fired().await, [1, 1, 1, 1, 1]);
}

#[tokio::test]
async fn objects_can_change_between_two_reads() {
    let sandbox = open_bucket();
    put(&sandbox, "k", b"0123456789").await;
    let etag = header(&get(&sandbox, "k").await, "etag").unwrap().to_owned();
    let same = || client().get(url(&sandbox, "k")).header("if-match", &etag).send();

    sandbox.faults(json!([{"do": "oss_replace", "skip": 1, "times": 1}])).await;
    assert_eq!(same().await.unwrap().status(), 200, "skipped");
    assert_eq!(code(same().await.unwrap()).await, (412, "PreconditionFailed".into()));
    let replaced: Vec<u8> = b"0123456789".iter().map(|byte| !byte).collect();
    let answer = get(&sandbox, "k").await;
    let crc = crc_fast::checksum(Crc64Xz, &replaced).to_string();
    assert_eq!(header(&answer, "x-oss-hash-crc64ecma"), Some(crc.as_str()));
    assert_eq!(answer.bytes().await.unwrap(), replaced);

    sandbox.faults(json!([{"do": {"oss_truncate": {"len": 4}}, "times": 1}])).await;
    let tail = client()
        .get(url(&sandbox, "k"))
        .header("range", "bytes=6-9")
        .header("x-oss-range-behavior", "standard");
    assert_eq!(code(tail.send().await.unwrap()).await, (416, "InvalidRange".into()));
    assert_eq!(get(&sandbox, "k").await.bytes().await.unwrap(), replaced[..4]);

    sandbox.faults(json!([{"do": "oss_remove", "times": 1}])).await;
    assert_eq!(code(get(&sandbox, "k").await).await, (404, "NoSuchKey".into()));
    let log: Value = sandbox.log().await;
    assert_eq!(log["counts"]["oss.put"], 1);
    assert_eq!(log["requests"].as_array().unwrap().last().unwrap()["subject"], "k");
}
