//! The OSS client in front of answers that no OSS gives: each is refused by what is wrong with it, and nothing unbounded is
//! taken in. What the stand-in OSS can do is tested in `oss_client.rs`.

#[path = "common/raw_http.rs"]
mod raw_http;

use std::time::Duration;

use bytes::Bytes;
use cai::config::Oss;
use cai::error::{ErrorClass, Fault as _};
use cai::oss::{Client, OssError, Reason};
use cai::store::Object;
use crc_fast::{CrcAlgorithm, checksum};
use raw_http::{Script, answer};

fn config(endpoint: &str) -> Oss {
    Oss { timeout: Duration::from_secs(20), ..Oss::anonymous(endpoint.parse().unwrap(), "conf-ai") }
}

fn crc(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Xz, bytes)
}

fn reason(error: &OssError) -> Reason {
    match error {
        OssError::Refused(refusal) => refusal.reason,
        other => panic!("not refused but {other:?}"),
    }
}

#[tokio::test]
async fn unreachable_endpoint_is_transient_and_named() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let client = Client::new(&config(&format!("http://127.0.0.1:{port}"))).unwrap();
    let error = client.list("m/").await.unwrap_err();
    assert_eq!((error.code(), error.class()), ("oss.unreachable", ErrorClass::Transient));
    assert_eq!(error.to_string(), format!("sending the request for http://127.0.0.1:{port}/conf-ai/"));
}

/// What the client makes of a list answer.
async fn listed(xml: impl Into<String>) -> Result<Vec<Object>, OssError> {
    let xml = xml.into();
    let script = Script::start(move |_| answer("200 OK", &[], xml.as_bytes()));
    Client::new(&config(script.endpoint().as_str())).unwrap().list("m/").await
}

fn entry(key: &str, class: &str) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-11-22T09:56:24.123Z</LastModified><ETag>&quot;5B3C&quot;</ETag>\
         <Type>Normal</Type><Size>12</Size><StorageClass>{class}</StorageClass></Contents>"
    )
}

fn page(inner: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?><ListBucketResult><EncodingType>url</EncodingType>{inner}</ListBucketResult>"
    )
}

#[tokio::test]
async fn list_entry_is_taken_over_as_it_is() {
    let objects = listed(page(&entry("m/a%2Bb+c", "Standard"))).await.unwrap();
    let modified = std::time::UNIX_EPOCH + Duration::from_millis(1_795_341_384_123);
    assert_eq!(objects, [Object { path: "a+b+c".into(), len: 12, etag: "\"5B3C\"".into(), modified }]);
    assert_eq!(listed(page("<KeyCount>0</KeyCount>")).await.unwrap(), []);
}

#[tokio::test]
async fn hostile_list_is_refused() {
    let archived = listed(page(&entry("m/a", "ColdArchive"))).await.unwrap_err();
    assert!(matches!(&archived, OssError::Archived { key, .. } if key == "m/a"), "{archived}");
    for key in ["m/%2E%2E/etc", "other/a", "m/a//b", "m/%00"] {
        let error = listed(page(&entry(key, "Standard"))).await.unwrap_err();
        assert!(matches!(error, OssError::Key { .. }), "{key}: {error}");
    }
    let link = entry("m/a", "Standard").replace("Normal", "Symlink");
    assert!(matches!(listed(page(&link)).await.unwrap_err(), OssError::Key { .. }));
    for bad in [
        page("<IsTruncated>true</IsTruncated>"),
        page("<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"),
        page(&entry("m/%FF", "Standard")),
        page(&entry("m/a", "Standard").replace("&quot;5B3C&quot;", "")),
        page(&entry("m/a", "Standard").replace("2026-11", "yesterday")),
    ] {
        let error = listed(bad.clone()).await.unwrap_err();
        assert!(matches!(error, OssError::BadAnswer { .. }), "{bad}: {error}");
    }
    for bad in ["", "<html>", "{}", "<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>"]
    {
        assert!(matches!(listed(bad).await.unwrap_err(), OssError::Xml { .. }), "{bad}");
    }
    let huge = listed(page(&"<Name>x</Name>".repeat(400_000))).await.unwrap_err();
    assert!(matches!(huge, OssError::TooLarge { limit, .. } if limit == 4 << 20), "{huge}");
}

#[tokio::test]
async fn answer_to_another_question_is_refused() {
    let body = vec![7u8; 10];
    let right = [("etag", "\"e\""), ("content-range", "bytes 10-19/100")];
    type Case = (&'static str, [(&'static str, &'static str); 2], Vec<u8>, &'static str);
    let cases: [Case; 7] = [
        ("200 OK", right, body.clone(), "status"),
        ("204 No Content", right, vec![], "status"),
        (
            "206 Partial Content",
            [right[0], ("content-range", "bytes 0-9/100")],
            body.clone(),
            "Content-Range",
        ),
        (
            "206 Partial Content",
            [right[0], ("content-range", "bytes 10-19/101")],
            body.clone(),
            "Content-Range",
        ),
        ("206 Partial Content", [right[0], ("x", "y")], body.clone(), "Content-Range"),
        ("206 Partial Content", [("etag", "\"f\""), right[1]], body.clone(), "ETag"),
        ("206 Partial Content", right, vec![7u8; 9], "length"),
    ];
    for (status, headers, body, expected) in cases {
        let raw = answer(status, &headers, &body);
        let script = Script::start(move |_| raw.clone());
        let client = Client::new(&config(script.endpoint().as_str())).unwrap();
        match client.get_range("m/a", "\"e\"", 10..20, 100).await.unwrap_err() {
            OssError::BadAnswer { what, .. } => assert_eq!(what, expected, "{status} {headers:?}"),
            other => panic!("{status} {headers:?}: {other:?}"),
        }
    }
    let raw = answer("206 Partial Content", &right, &[7u8; 11]);
    let script = Script::start(move |_| raw.clone());
    let error = Client::new(&config(script.endpoint().as_str()))
        .unwrap()
        .get_range("m/a", "\"e\"", 10..20, 100)
        .await;
    assert!(matches!(error, Err(OssError::TooLarge { limit: 10, .. })), "{error:?}");
}

#[tokio::test]
async fn error_answer_without_end_does_not_fill_the_memory() {
    let script = Script::start(|_| {
        let mut raw =
            b"HTTP/1.1 403 Forbidden\r\nx-oss-request-id: R7\r\ncontent-length: 100000000\r\n\r\n".to_vec();
        raw.resize(raw.len() + (1 << 20), b'x');
        raw
    });
    let error = Client::new(&config(script.endpoint().as_str())).unwrap().list("m/").await.unwrap_err();
    assert_eq!(reason(&error), Reason::AccessDenied);
    assert!(error.to_string().contains("R7"), "{error}");
}

#[tokio::test]
async fn upload_that_arrived_differently_is_an_error() {
    let script =
        Script::start(|_| answer("200 OK", &[("x-oss-hash-crc64ecma", "12"), ("etag", "\"e\"")], b""));
    let client = Client::new(&config(script.endpoint().as_str())).unwrap();
    let error = client.put("m/a", Bytes::from_static(b"hello")).await.unwrap_err();
    assert!(
        matches!(&error, OssError::Checksum { ours, theirs: 12, .. } if *ours == crc(b"hello")),
        "{error}"
    );
    let script = Script::start(|_| answer("200 OK", &[("etag", "\"e\"")], b""));
    let client = Client::new(&config(script.endpoint().as_str())).unwrap();
    let error = client.put("m/a", Bytes::from_static(b"hello")).await.unwrap_err();
    assert!(matches!(error, OssError::BadAnswer { what: "checksum", .. }), "{error}");
}

fn with_key(endpoint: &str) -> Oss {
    let secret_access_key = cai::keyring::Secret::copy_of(b"secret").unwrap();
    let credentials = cai::config::Credentials::Static(cai::config::OssCredentials {
        access_key_id: "LTAI".into(),
        secret_access_key,
        session_token: None,
    });
    Oss { region: Some("cn-beijing".into()), credentials, ..config(endpoint) }
}

const SKEWED: &[u8] = b"<Error><Code>RequestTimeTooSkewed</Code></Error>";

#[tokio::test]
async fn wrong_clock_is_corrected_by_the_date_of_the_refusal_and_said() {
    let script = Script::start(|request| match request.headers["x-oss-date"].starts_with("20301231T2359") {
        true => answer("200 OK", &[("etag", "\"e\"")], b""),
        false => answer("403 Forbidden", &[("date", "Tue, 31 Dec 2030 23:59:00 GMT")], SKEWED),
    });
    let client = Client::new(&with_key(script.endpoint().as_str())).unwrap();
    // HEAD carries no code in its body, so the first request is another.
    client.put("m/a", Bytes::new()).await.unwrap_err();
    assert_eq!(script.requests().len(), 2, "signed again once");
    assert!(client.access().borrow().clock_offset > 365 * 86_400);
    // From now on the first attempt is right.
    client.head("m/a").await.unwrap();
    assert_eq!(script.requests().len(), 3);
}

#[tokio::test]
async fn refusal_of_the_clock_without_a_better_time_stands() {
    for date in ["", "yesterday"] {
        let script = Script::start(move |_| answer("403 Forbidden", &[("date", date)], SKEWED));
        let client = Client::new(&with_key(script.endpoint().as_str())).unwrap();
        let error = client.list("m/").await.unwrap_err();
        assert_eq!((error.code(), error.class()), ("oss.clock-skew", ErrorClass::Config));
        assert!(error.hint().contains("set up time synchronisation"));
        assert_eq!(script.requests().len(), 1);
    }
    // A server that is never content.
    let script =
        Script::start(|_| answer("403 Forbidden", &[("date", "Tue, 31 Dec 2030 23:59:00 GMT")], SKEWED));
    let client = Client::new(&with_key(script.endpoint().as_str())).unwrap();
    assert_eq!(client.list("m/").await.unwrap_err().code(), "oss.clock-skew");
    assert_eq!(script.requests().len(), 2);
}
