//! Claim: the OSS client gets exactly the objects and bytes it asks for, and an error that says why otherwise.
#![cfg(feature = "sandbox")]

#[path = "common/sandbox.rs"]
mod sandbox;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cai::config::{Addressing, Credentials, Oss, OssCredentials, Signature};
use cai::error::{ErrorClass, Fault};
use cai::keyring::Secret;
use cai::oss::{Client, OssError, Reason};
use futures_util::{StreamExt, stream};
use sandbox::{ACCESS_KEY_ID, ACCESS_KEY_SECRET, BUCKET, Builder, REGION, SESSION_TOKEN, Sandbox};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn key(secret: &str, token: Option<&str>) -> Credentials {
    let secret_of = |text: &str| Secret::copy_of(text.as_bytes()).unwrap();
    Credentials::Static(OssCredentials {
        access_key_id: ACCESS_KEY_ID.to_owned(),
        secret_access_key: secret_of(secret),
        session_token: token.map(secret_of),
    })
}

fn config(endpoint: &str, credentials: Credentials) -> Oss {
    Oss {
        region: Some(REGION.to_owned()),
        credentials,
        timeout: Duration::from_secs(10),
        ..Oss::anonymous(endpoint.parse().unwrap(), BUCKET)
    }
}

/// A bucket and somebody who may use it.
fn scene() -> (Sandbox, Client) {
    let sandbox = Sandbox::start(Builder::default());
    let client = Client::new(&config(&sandbox.oss, key(ACCESS_KEY_SECRET, None))).unwrap();
    (sandbox, client)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

async fn put(client: &Client, key: &str, content: &[u8]) {
    client.put(key, Bytes::copy_from_slice(content)).await.unwrap();
}

/// An object below `m/` that holds its own path.
async fn put_path(client: &Client, path: &str) {
    put(client, &format!("m/{path}"), path.as_bytes()).await;
}

/// Puts `content` as `m/x` and gives its tag.
async fn put_x(client: &Client, content: &[u8]) -> String {
    put(client, "m/x", content).await;
    client.head("m/x").await.unwrap().etag.unwrap()
}

async fn paths(client: &Client, prefix: &str) -> Vec<String> {
    let objects = client.list(prefix).await.unwrap();
    objects.into_iter().map(|object| object.path.to_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, OssError>, status: u16, reason: Reason) -> OssError {
    match result {
        Err(OssError::Refused(refusal)) => {
            assert_eq!((refusal.status, refusal.reason), (status, reason), "{refusal}");
            OssError::Refused(refusal)
        }
        other => panic!("{status} expected, got {other:?}"),
    }
}

// ---- listing ----

#[tokio::test]
async fn list_of_more_than_a_page_is_whole_and_in_order() {
    let (sandbox, client) = scene();
    let expected: Vec<String> =
        (0..1003).map(|number| format!("d{}/file {number:04}", number / 500)).collect();
    stream::iter(&expected).for_each_concurrent(16, |path| put_path(&client, path)).await;
    assert_eq!(paths(&client, "m/").await, expected);
    assert_eq!(sandbox.count("oss.list").await, 2);
}

#[tokio::test]
async fn list_gives_lengths_and_tags_and_hostile_names_as_they_are() {
    let (_sandbox, client) = scene();
    let names = ["100%", "a b+c&d=é中%2F.bin", "a+b", "a b", "deep/er/#?;:@.json", "'\"<>&amp;", "~tilde_-."];
    for name in names {
        put_path(&client, name).await;
    }
    let objects = client.list("m/").await.unwrap();
    assert_eq!(objects.len(), names.len());
    for name in names {
        let object = objects.iter().find(|object| object.path == Path::new(name)).expect(name);
        assert_eq!(object.len, name.len() as u64);
        let key = format!("m/{name}");
        let head = client.head(&key).await.unwrap();
        assert_eq!((head.len, head.etag.as_deref()), (Some(object.len), Some(object.etag.as_str())));
        assert_eq!(head.crc64, Some(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, name.as_bytes())));
        let got = client.get_range(&key, &object.etag, 0..object.len, object.len).await.unwrap();
        assert_eq!((got.frames.concat(), got.object_crc64), (name.as_bytes().to_vec(), head.crc64));
        assert!(object.modified.elapsed().unwrap() < Duration::from_secs(600), "{:?}", object.modified);
    }
}

#[tokio::test]
async fn list_passes_over_markers_and_does_not_see_siblings() {
    let (_sandbox, client) = scene();
    for key in ["m/", "m/sub/", "m/sub/x", "m/y", "m2/z", "model/z", "l/z"] {
        put(&client, key, b"").await;
    }
    assert_eq!(paths(&client, "m/").await, ["sub/x", "y"]);
    assert_eq!(paths(&client, "m2/").await, ["z"]);
    assert_eq!(paths(&client, "nothing/").await, [""; 0]);
    assert_eq!(paths(&client, "").await, ["l/z", "m/sub/x", "m/y", "m2/z", "model/z"]);
}

#[tokio::test]
async fn list_with_a_key_that_leads_elsewhere_is_refused() {
    let (_sandbox, client) = scene();
    put(&client, "m/a//b", b"x").await;
    let error = client.list("m/").await.unwrap_err();
    assert!(matches!(&error, OssError::Key { key, .. } if key == "m/a//b"), "{error}");
    assert_eq!(error.class(), ErrorClass::Config);
}

#[tokio::test]
async fn list_that_never_ends_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut sent = 0u64;
        while stream.write_all(&[b' '; 65536]).await.is_ok() {
            sent += 65536;
        }
        sent
    };
    let client = Client::new(&config(&endpoint, Credentials::Anonymous)).unwrap();
    let (result, sent) = tokio::join!(client.list("m/"), server);
    let error = result.unwrap_err();
    assert!(matches!(error, OssError::TooLarge { limit: 4_194_304, .. }), "{error}");
    // What the sockets between us hold comes on top.
    assert!(sent < 64 << 20, "{sent}");
}

// ---- ranges ----

#[tokio::test]
async fn ranges_at_the_borders_are_exact() {
    let (sandbox, client) = scene();
    let content = pattern(1_000_003);
    let etag = put_x(&client, &content).await;
    for range in [0..1, 0..1_000_003, 1..2, 999_999..1_000_003, 1_000_002..1_000_003, 65_535..65_537] {
        let got = client.get_range("m/x", &etag, range.clone(), 1_000_003).await.unwrap();
        let (start, end) = (range.start as usize, range.end as usize);
        assert!(got.frames.concat() == content[start..end], "{range:?}");
    }
    assert_eq!(sandbox.count("oss.get").await, 6);
}

#[tokio::test]
async fn object_that_is_not_the_one_asked_for_is_changed() {
    let (sandbox, client) = scene();
    let etag = put_x(&client, &pattern(100)).await;
    let get = async |etag: &str, range, total| client.get_range("m/x", etag, range, total).await;
    let error = refused(get("\"0123\"", 0..10, 100).await, 412, Reason::Changed);
    assert_eq!((error.class(), error.code()), (ErrorClass::Corrupt, "oss.changed"));
    refused(get(&etag, 100..110, 110).await, 416, Reason::Changed);
    // Clipped by the server: shorter than what was asked for is not what was asked for.
    let error = get(&etag, 90..110, 110).await.unwrap_err();
    assert!(matches!(error, OssError::BadAnswer { what: "Content-Range", .. }), "{error}");
    let error = get(&etag, 0..10, 101).await.unwrap_err();
    assert!(matches!(error, OssError::BadAnswer { what: "Content-Range", .. }), "{error}");
    sandbox.faults(json!([{"do": "oss_replace", "on": ["get"], "times": 1}])).await;
    refused(get(&etag, 0..10, 100).await, 412, Reason::Changed);
}

#[tokio::test]
async fn whole_object_instead_of_the_range_is_refused() {
    let (sandbox, client) = scene();
    let etag = put_x(&client, &pattern(100)).await;
    sandbox.faults(json!([{"do": "oss_ignore_range", "times": 1}])).await;
    let error = client.get_range("m/x", &etag, 0..10, 100).await.unwrap_err();
    assert!(matches!(&error, OssError::BadAnswer { what: "status", got, .. } if got == "200"), "{error}");
    assert_eq!((error.class(), error.code()), (ErrorClass::Transient, "oss.bad-answer"));
}

#[tokio::test]
async fn body_that_breaks_off_is_an_error_and_no_short_answer() {
    let (sandbox, client) = scene();
    let etag = put_x(&client, &pattern(100_000)).await;
    for act in [json!({"oss_cut_body": {"after": 50_000}}), json!({"oss_reset_body": {"after": 50_000}})] {
        sandbox.faults(json!([{"do": act, "times": 1}])).await;
        let error = client.get_range("m/x", &etag, 0..100_000, 100_000).await.unwrap_err();
        assert!(matches!(error, OssError::Body { .. }), "{error}");
        assert_eq!((error.class(), error.code()), (ErrorClass::Transient, "oss.body"));
    }
    sandbox.faults(json!([{"do": "oss_reset", "times": 1}])).await;
    let error = client.head("m/x").await.unwrap_err();
    assert!(matches!(error, OssError::Send { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Transient);
}

#[tokio::test]
async fn silence_ends_after_the_timeout_and_slowness_does_not() {
    let sandbox = Sandbox::start(Builder::default());
    let timeout = Duration::from_millis(500);
    let client = Client::new(&Oss { timeout, ..config(&sandbox.oss, key(ACCESS_KEY_SECRET, None)) }).unwrap();
    let etag = put_x(&client, &pattern(100_000)).await;
    sandbox.faults(json!([{"do": {"oss_stall_body": {"after": 10}}, "times": 1}])).await;
    let began = Instant::now();
    let error = client.get_range("m/x", &etag, 0..100_000, 100_000).await.unwrap_err();
    assert!(matches!(error, OssError::Stalled { .. }), "{error}");
    assert_eq!((error.class(), error.code()), (ErrorClass::Transient, "oss.stalled"));
    assert!(began.elapsed() >= timeout);
    // Twice the timeout in all, but something moves all the time.
    sandbox.faults(json!([{"do": {"oss_slow_body": {"bytes_per_sec": 100_000}}, "times": 1}])).await;
    let began = Instant::now();
    let got = client.get_range("m/x", &etag, 0..100_000, 100_000).await.unwrap();
    assert_eq!(got.frames.concat(), pattern(100_000));
    assert!(began.elapsed() > timeout, "the body was not slow: {:?}", began.elapsed());
}

#[tokio::test]
async fn missing_checksum_is_none() {
    let (sandbox, client) = scene();
    let etag = put_x(&client, b"x").await;
    sandbox.faults(json!([{"do": "oss_no_crc", "times": 2}])).await;
    assert_eq!(client.head("m/x").await.unwrap().crc64, None);
    assert_eq!(client.get_range("m/x", &etag, 0..1, 1).await.unwrap().object_crc64, None);
}

// ---- who may ----

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let (sandbox, client) = scene();
    let error = refused(client.head("m/none").await, 404, Reason::NoSuchKey);
    assert_eq!(error.code(), "oss.no-such-key");
    refused(client.get_range("m/none", "\"x\"", 0..1, 1).await, 404, Reason::NoSuchKey);
    let other = Oss { bucket: "other".to_owned(), ..config(&sandbox.oss, key(ACCESS_KEY_SECRET, None)) };
    let other = Client::new(&other).unwrap();
    let error = refused(other.list("m/").await, 404, Reason::NoSuchBucket);
    assert_eq!((error.class(), error.code()), (ErrorClass::Config, "oss.no-such-bucket"));
    refused(other.head("m/x").await, 404, Reason::NoSuchBucket);
}

#[tokio::test]
async fn wrong_secret_or_region_is_a_signature_error_without_the_secret() {
    let sandbox = Sandbox::start(Builder::default());
    let wrong_region =
        Oss { region: Some("cn-shanghai".into()), ..config(&sandbox.oss, key(ACCESS_KEY_SECRET, None)) };
    for config in [config(&sandbox.oss, key("wr0ng-secret", None)), wrong_region] {
        let client = Client::new(&config).unwrap();
        let OssError::Refused(refusal) = client.list("m/").await.unwrap_err() else { panic!("no refusal") };
        assert_eq!(refusal.reason, Reason::Signature, "{refusal}");
        let error = OssError::Refused(refusal);
        assert_eq!((error.class(), error.code()), (ErrorClass::Denied, "oss.signature"));
        assert!(
            error.hint().contains("MODEL_OSS_SECRET_ACCESS_KEY") && error.hint().contains("MODEL_OSS_REGION")
        );
        let text = format!("{error} {error:?}");
        assert!(!text.contains("wr0ng-secret") && !text.contains(ACCESS_KEY_SECRET), "{text}");
    }
}

#[tokio::test]
async fn anonymous_client_reads_an_open_bucket_and_nothing_else() {
    let sandbox = Sandbox::start(Builder::default().anonymous_read());
    let owner = Client::new(&config(&sandbox.oss, key(ACCESS_KEY_SECRET, None))).unwrap();
    let etag = put_x(&owner, b"public").await;
    let anonymous =
        Client::new(&Oss { region: None, ..config(&sandbox.oss, Credentials::Anonymous) }).unwrap();
    assert_eq!(paths(&anonymous, "m/").await, ["x"]);
    let got = anonymous.get_range("m/x", &etag, 2..6, 6).await.unwrap();
    assert_eq!(got.frames.concat(), b"blic");
    let error = refused(anonymous.put("m/y", Bytes::from("y")).await, 403, Reason::AccessDenied);
    assert_eq!(error.class(), ErrorClass::Denied);

    let (closed, _) = scene();
    let anonymous = Client::new(&config(&closed.oss, Credentials::Anonymous)).unwrap();
    refused(anonymous.list("m/").await, 403, Reason::AccessDenied);
}

#[tokio::test]
async fn temporary_key_needs_its_token() {
    let sandbox = Sandbox::start(Builder::default().with_session_token());
    let client = Client::new(&config(&sandbox.oss, key(ACCESS_KEY_SECRET, Some(SESSION_TOKEN)))).unwrap();
    let etag = put_x(&client, b"content").await;
    let got = client.get_range("m/x", &etag, 0..7, 7).await.unwrap();
    assert_eq!(got.frames.concat(), b"content");
    assert_eq!(paths(&client, "m/").await, ["x"]);
    for token in [None, Some("another")] {
        let client = Client::new(&config(&sandbox.oss, key(ACCESS_KEY_SECRET, token))).unwrap();
        let error = client.list("m/").await.unwrap_err();
        assert!(matches!(&error, OssError::Refused(refusal) if refusal.status == 403), "{error}");
        assert_eq!(error.class(), ErrorClass::Denied);
    }
}

#[tokio::test]
async fn endpoint_with_a_name_is_virtual_hosted() {
    let sandbox = Sandbox::start(Builder::default());
    let address: SocketAddr = sandbox.oss.strip_prefix("http://").unwrap().parse().unwrap();
    let endpoint = format!("http://oss-cn-beijing.sandbox.test:{}", address.port());
    let hosts = HashMap::from([("conf-ai.oss-cn-beijing.sandbox.test".to_owned(), address)]);
    let client = Client::with_hosts(&config(&endpoint, key(ACCESS_KEY_SECRET, None)), hosts).unwrap();
    let etag = put_x(&client, b"virtual").await;
    assert_eq!(paths(&client, "m/").await, ["x"]);
    let got = client.get_range("m/x", &etag, 0..7, 7).await.unwrap();
    assert_eq!(got.frames.concat(), b"virtual");
    let error = client.head("m/none").await.unwrap_err();
    assert!(error.to_string().starts_with(&endpoint.replace("//", "//conf-ai.")), "{error}");
}

#[tokio::test]
async fn every_signature_works_with_every_addressing() {
    let sandbox = Sandbox::start(
        Builder::default().with(&["--cname", "models.test", "--path-host", "vpce.test"]).with_session_token(),
    );
    let address: SocketAddr = sandbox.oss.strip_prefix("http://").unwrap().parse().unwrap();
    let port = address.port();
    let hosts = ["models.test", "vpce.test", "conf-ai.oss-cn-beijing.test"];
    let hosts = HashMap::from(hosts.map(|name| (name.to_owned(), address)));
    for signature in [Signature::V4, Signature::V1] {
        for (name, addressing) in [
            ("models.test", Addressing::Cname),
            ("vpce.test", Addressing::Path),
            ("oss-cn-beijing.test", Addressing::Auto),
            ("127.0.0.1", Addressing::Auto),
        ] {
            let region = (signature == Signature::V4).then(|| REGION.to_owned());
            let endpoint = format!("http://{name}:{port}");
            let key = key(ACCESS_KEY_SECRET, Some(SESSION_TOKEN));
            let config = Oss { signature, addressing, region, ..config(&endpoint, key) };
            let client = Client::with_hosts(&config, hosts.clone()).unwrap();
            let key = "m/a b+c&d=é中%2F~'(1)!*.bin";
            put(&client, key, b"content").await;
            let etag = client.head(key).await.unwrap().etag.unwrap();
            let got = client.get_range(key, &etag, 2..7, 7).await.unwrap();
            assert_eq!(got.frames.concat(), b"ntent", "{signature:?} {name}");
            assert_eq!(paths(&client, "m/").await, [&key[2..]], "{signature:?} {name}");
            let upload = client.begin_upload(key).await.unwrap();
            let part = upload.part(1, Bytes::from("parts")).await.unwrap();
            upload.complete(vec![part]).await.unwrap();
        }
    }
    let wrong = Oss {
        addressing: Addressing::Path,
        ..config(&format!("http://oss-cn-beijing.test:{port}"), key(ACCESS_KEY_SECRET, Some(SESSION_TOKEN)))
    };
    let hosts = HashMap::from([("oss-cn-beijing.test".to_owned(), address)]);
    let error =
        refused(Client::with_hosts(&wrong, hosts).unwrap().list("m/").await, 403, Reason::SecondLevelDomain);
    assert_eq!((error.class(), error.code()), (ErrorClass::Config, "oss.second-level-domain"));
}

// ---- writing ----

#[tokio::test]
async fn upload_in_parts_sent_out_of_order_and_twice_is_whole() {
    let (_sandbox, client) = scene();
    let content = pattern(300_000);
    let part = |range: std::ops::Range<usize>| Bytes::copy_from_slice(&content[range]);
    let upload = client.begin_upload("m/p %+é").await.unwrap();
    let third = upload.part(3, part(240_000..300_000)).await.unwrap();
    upload.part(1, part(1..120_001)).await.unwrap();
    let first = upload.part(1, part(0..120_000)).await.unwrap();
    let second = upload.part(2, part(120_000..240_000)).await.unwrap();
    let crc = upload.complete(vec![third, first, second]).await.unwrap();
    assert_eq!(crc, crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &content));
    let head = client.head("m/p %+é").await.unwrap();
    assert_eq!((head.len, head.crc64), (Some(300_000), Some(crc)));
    let got = client.get_range("m/p %+é", &head.etag.unwrap(), 0..300_000, 300_000).await.unwrap();
    assert!(got.frames.concat() == content);
}

#[tokio::test]
async fn aborted_upload_is_gone() {
    let (_sandbox, client) = scene();
    let upload = client.begin_upload("m/x").await.unwrap();
    let part = upload.part(1, Bytes::from("x")).await.unwrap();
    upload.abort().await.unwrap();
    refused(upload.complete(vec![part]).await, 404, Reason::NoSuchKey);
    refused(upload.abort().await, 404, Reason::NoSuchKey);
    refused(client.head("m/x").await, 404, Reason::NoSuchKey);
}

#[tokio::test]
async fn server_faults_are_transient_and_throttling_says_so() {
    let (sandbox, client) = scene();
    for (status, code, reason) in [
        (503, "ServiceUnavailable", Reason::Passing),
        (500, "InternalError", Reason::Passing),
        (429, "QpsLimitExceeded", Reason::Throttled),
        (503, "DownloadTrafficRateLimitExceeded", Reason::Throttled),
    ] {
        let fault: Value = json!([{"do": {"oss_error": {"status": status, "code": code}}, "times": 1}]);
        sandbox.faults(fault).await;
        let error = refused(client.list("m/").await, status, reason);
        assert_eq!(error.class(), ErrorClass::Transient, "{code}");
    }
}

/// Every row of the table of errors that the stand-in can be told to answer (oss.md 1.5): what the caller is told, and what
/// the store makes of it.
#[tokio::test]
async fn every_error_answer_has_its_class_and_code() {
    let (sandbox, client) = scene();
    let etag = put_x(&client, b"content").await;
    use ErrorClass::{Config, Corrupt, Denied, Transient};
    for (status, code, ec, class, dotted) in [
        (500, "InternalError", "", Transient, "oss.server-fault"),
        (502, "", "", Transient, "oss.server-fault"),
        (503, "ServiceUnavailable", "", Transient, "oss.server-fault"),
        (408, "RequestTimeout", "", Transient, "oss.server-fault"),
        (408, "", "", Transient, "oss.server-fault"),
        (401, "Unauthorized", "", Transient, "oss.server-fault"),
        (400, "BadRequest", "", Transient, "oss.server-fault"),
        (503, "DownloadTrafficRateLimitExceeded", "", Transient, "oss.throttled"),
        (503, "TotalQpsLimitExceeded", "", Transient, "oss.throttled"),
        (503, "ActiveRequestLimitExceeded", "", Transient, "oss.throttled"),
        (503, "CpuLimitExceeded", "", Transient, "oss.throttled"),
        (503, "MetaOperationQpsLimitExceeded", "", Transient, "oss.throttled"),
        (503, "PartitionQpsLimitted", "", Transient, "oss.throttled"),
        (429, "QpsLimitExceeded", "", Transient, "oss.throttled"),
        (403, "InvalidAccessKeyId", "0002-00000902", Denied, "oss.credentials"),
        (403, "InvalidSecurityToken", "0002-00000802", Denied, "oss.credentials"),
        (403, "SecurityTokenExpired", "", Denied, "oss.credentials"),
        (403, "AccessKeyIdAndSecurityTokenNotMatch", "", Denied, "oss.credentials"),
        (403, "AccessDenied", "0003-00000001", Denied, "oss.access-denied"),
        (403, "SignatureDoesNotMatch", "", Denied, "oss.signature"),
        (400, "InvalidArgument", "0002-00000228", Denied, "oss.signature"),
        (403, "SecondLevelDomainForbidden", "", Config, "oss.second-level-domain"),
        (404, "NoSuchKey", "", Config, "oss.no-such-key"),
        (404, "NoSuchBucket", "", Config, "oss.no-such-bucket"),
        (412, "PreconditionFailed", "", Corrupt, "oss.changed"),
        (416, "InvalidRange", "", Corrupt, "oss.changed"),
        (403, "InvalidObjectState", "", Config, "oss.archived"),
    ] {
        let act = json!({"oss_error": {"status": status, "code": code, "ec": ec}});
        sandbox.faults(json!([{"do": act, "on": ["get"], "times": 1}])).await;
        let error = client.get_range("m/x", &etag, 0..7, 7).await.unwrap_err();
        assert_eq!((error.class(), error.code()), (class, dotted), "{status} {code}");
        assert_eq!(sandbox.fired().await, [1], "{code} was asked again without anything better");
        assert!(!error.hint().is_empty());
    }
}

#[tokio::test]
async fn throttling_halves_what_is_in_flight_and_is_counted() {
    let sandbox = Sandbox::start(Builder::default());
    let client =
        Client::new(&Oss { concurrency: 8, ..config(&sandbox.oss, key(ACCESS_KEY_SECRET, None)) }).unwrap();
    let etag = put_x(&client, b"content").await;
    let counts = || {
        let access = client.access().borrow().clone();
        (access.throttled, access.concurrency)
    };
    assert_eq!(counts(), (0, 8));
    let act = json!({"oss_error": {"status": 429, "code": "QpsLimitExceeded"}});
    sandbox.faults(json!([{"do": act, "on": ["get"], "times": 1}])).await;
    let OssError::Refused(refusal) = client.get_range("m/x", &etag, 0..7, 7).await.unwrap_err() else {
        panic!()
    };
    assert_eq!(refusal.retry_after, Some(Duration::from_secs(1)));
    assert_eq!(counts(), (1, 4));
    // Served, but held back: the same, once the round is over.
    sandbox.faults(json!([{"do": {"oss_qos_delay": {"millis": 300}}, "on": ["get"]}])).await;
    while counts().1 == 4 {
        assert_eq!(client.get_range("m/x", &etag, 0..7, 7).await.unwrap().frames.concat(), b"content");
    }
    let held_back = sandbox.fired().await[0];
    assert_eq!(counts(), (1 + held_back, 2));
    sandbox.faults(json!([])).await;
    // Many at once succeed: it grows back, and no further than allowed.
    while counts().1 < 8 {
        let reads = (0..64).map(|_| client.get_range("m/x", &etag, 0..7, 7));
        futures_util::future::join_all(reads).await.into_iter().for_each(|read| drop(read.unwrap()));
    }
    assert_eq!(counts(), (1 + held_back, 8));
}
