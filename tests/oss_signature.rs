//! Every request is signed as OSS asks for, recomputed here from the specification (oss.md 1.7) and from nothing else.
//!
//! The client takes the time from the clock, so there are no fixed vectors for whole requests (the signer has them, in
//! `src/oss/sign.rs`); the verifier itself is held to signatures that the official Python SDK (alibabacloud-oss-v2 1.4.1) made
//! at a fixed time. The official SDKs sign every kind of request again, a thousand of them, and must come to the same.

mod common;
#[path = "common/raw_http.rs"]
mod raw_http;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{Seek, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use cai::config::{Credentials, Oss, OssCredentials, Signature};
use cai::keyring::Secret;
use cai::oss::{Client, OssError};
use raw_http::{Request, Script, answer};
use serde_json::json;
use sha2::{Digest, Sha256};

const ID: &str = "LTAI5tExample";
const SECRET: &str = "s3cr3t/with+signs=";
const BUCKET: &str = "conf-ai";
const REGION: &str = "cn-beijing";
/// Every kind of character that has been encoded wrongly by somebody.
const KEY: &str = "qwen/a b+c&d=é中%2F~'(1)!*.bin";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn hmac(key: &[u8], data: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec()
}

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let pair = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&pair).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    out
}

fn encode(bytes: &[u8], keep: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(*byte))
            }
            byte if keep.contains(byte) => text.push(char::from(*byte)),
            byte => write!(text, "%{byte:02X}").unwrap(),
        }
        text
    })
}

/// The signature `request` should have: `(scope, signature)`. `in_path` says that the bucket is in the path.
fn expected(
    request: &Request,
    additional: &[&str],
    region: &str,
    secret: &str,
    in_path: bool,
) -> (String, String) {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let path = if in_path { path.to_owned() } else { format!("/{BUCKET}{path}") };
    let uri = encode(&decode(&path), b"/");
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encode(&decode(name), b""), encode(&decode(value), b"")))
        .collect();
    pairs.sort();
    let one =
        |(name, value): (String, String)| if value.is_empty() { name } else { format!("{name}={value}") };
    let query = pairs.into_iter().map(one).collect::<Vec<_>>().join("&");
    let signed: BTreeMap<_, _> = request
        .headers
        .iter()
        .filter(|(name, _)| {
            name.starts_with("x-oss-")
                || ["content-type", "content-md5"].contains(&name.as_str())
                || additional.contains(&name.as_str())
        })
        .collect();
    let headers: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical =
        format!("{}\n{uri}\n{query}\n{headers}\n{}\nUNSIGNED-PAYLOAD", request.method, additional.join(";"));
    let time = &request.headers["x-oss-date"];
    let date = &time[..8];
    let scope = format!("{date}/{region}/oss/aliyun_v4_request");
    let to_sign = format!("OSS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
    let mut key = format!("aliyun_v4{secret}").into_bytes();
    for part in [date, region, "oss", "aliyun_v4_request"] {
        key = hmac(&key, part);
    }
    (scope, hex(&hmac(&key, &to_sign)))
}

/// Check one request; the error says what is wrong.
fn verify(request: &Request, secret: &str, in_path: bool) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{what} in {request:?}"));
    let header = |name: &str| request.headers.get(name).map(String::as_str).unwrap_or_default();
    let Some(fields) = header("authorization").strip_prefix("OSS4-HMAC-SHA256 ") else {
        return fail("algorithm");
    };
    let fields: HashMap<_, _> = fields.split(',').filter_map(|field| field.trim().split_once('=')).collect();
    if header("x-oss-content-sha256") != "UNSIGNED-PAYLOAD" {
        return fail("payload marker");
    }
    let additional = match fields.get("AdditionalHeaders") {
        None => Vec::new(),
        Some(list) => list.split(';').collect(),
    };
    // Empty names are errors 0002-00000209 and -210; the host must be bound.
    if !additional.is_sorted() || additional.contains(&"") || !additional.contains(&"host") {
        return fail("additional headers");
    }
    let standing: Vec<_> =
        ["range", "if-match"].into_iter().filter(|name| request.headers.contains_key(*name)).collect();
    if !standing.iter().all(|name| additional.contains(name)) {
        return fail("unsigned range or condition");
    }
    let (scope, signature) = expected(request, &additional, REGION, secret, in_path);
    if fields.get("Credential") != Some(&format!("{ID}/{scope}").as_str()) {
        return fail("credential");
    }
    if fields.get("Signature") != Some(&signature.as_str()) {
        return fail("signature");
    }
    let time = header("x-oss-date");
    if time.len() != 16 || !time.ends_with('Z') || time.as_bytes()[8] != b'T' {
        return fail("date");
    }
    Ok(())
}

fn config(endpoint: url::Url, token: Option<&str>) -> Oss {
    let secret = |text: &str| Secret::copy_of(text.as_bytes()).unwrap();
    Oss {
        region: Some(REGION.into()),
        credentials: Credentials::Static(OssCredentials {
            access_key_id: ID.into(),
            secret_access_key: secret(SECRET),
            session_token: token.map(secret),
        }),
        timeout: Duration::from_secs(20),
        ..Oss::anonymous(endpoint, BUCKET)
    }
}

/// Refuses everything but the start of an upload.
fn refuser() -> Script {
    Script::start(|request| match request.target.ends_with("?uploads") {
        true => {
            let xml = "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>0004B9+/=</UploadId></InitiateMultipartUploadResult>";
            answer("200 OK", &[], xml.as_bytes())
        }
        false => answer("403 Forbidden", &[], b""),
    })
}

/// Make every kind of request once.
async fn every_request(client: &Client) {
    let refused = |error: OssError| assert!(matches!(error, OssError::Refused(_)), "{error}");
    refused(client.list("qwen/x y/").await.unwrap_err());
    refused(client.head(KEY).await.unwrap_err());
    refused(client.get_range(KEY, "\"5B3C1A2E\"", 10..20, 100).await.unwrap_err());
    refused(client.put(KEY, Bytes::from_static(b"hello")).await.unwrap_err());
    let upload = client.begin_upload(KEY).await.unwrap();
    refused(upload.part(3, Bytes::from_static(b"part")).await.unwrap_err());
    refused(upload.complete(vec![]).await.unwrap_err());
    refused(upload.abort().await.unwrap_err());
}

#[test]
fn verifier_agrees_with_the_official_sdk() {
    let time = [("x-oss-date", "20261122T095624Z"), ("x-oss-content-sha256", "UNSIGNED-PAYLOAD")];
    let part = [
        ("content-type", "text/plain"),
        ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
        ("x-oss-meta-b", "two"),
        ("x-oss-meta-a", "1"),
        ("x-oss-security-token", "CAIS+t/o=="),
    ];
    let get = [("host", "conf-ai.oss-cn-beijing.aliyuncs.com"), ("range", "bytes=0-9")];
    let request = |method: &str, target: &str, headers: &[(&str, &str)]| Request {
        method: method.into(),
        target: target.into(),
        headers: time.iter().chain(headers).map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        body: Vec::new(),
    };
    let list = "/?list-type=2&prefix=a%20b/%C3%A9&continuation-token=&max-keys=3";
    let cases: [(Request, &[&str], &str); 3] = [
        (request("GET", list, &[]), &[], "fa92e450d1926aeb1b04bd5feffe8ae81e165d056b7fc16530b00642d6d51d54"),
        (
            request("GET", "/k", &get),
            &["host", "range"],
            "a9a1de90093233a482f2850be2b4ea1ff1fb39727f498e62dd58edaba65ef1ec",
        ),
        (
            request("PUT", "/dir/a%20b%2Bc~%27%21.bin?partNumber=2&uploadId=AB", &part),
            &[],
            "82099c0ac2fab4eed646db85cf4d0d318b3cf6d3eb881e4126e06e8e2a0405bd",
        ),
    ];
    for (request, additional, signature) in cases {
        let (scope, ours) = expected(&request, additional, REGION, "vector-secret", false);
        assert_eq!(scope, "20261122/cn-beijing/oss/aliyun_v4_request");
        assert_eq!(ours, signature, "{request:?}");
    }
}

#[tokio::test]
async fn every_request_in_path_style_is_signed_to_specification() {
    for token in [None, Some("CAIS+token/with=signs")] {
        let script = refuser();
        every_request(&Client::new(&config(script.endpoint(), token)).unwrap()).await;
        let requests = script.requests();
        assert_eq!(requests.len(), 8);
        for request in &requests {
            verify(request, SECRET, true).unwrap();
            assert_eq!(request.headers["host"], script.address.to_string());
            assert_eq!(request.headers.get("x-oss-security-token").map(String::as_str), token);
            assert_eq!(request.headers["accept-encoding"], "identity");
            assert!(request.target.starts_with("/conf-ai/"), "{}", request.target);
            assert!(verify(request, "another secret", true).is_err(), "the verifier accepts anything");
        }
        let get = &requests[2].headers;
        assert_eq!(
            [&get["range"], &get["if-match"], &get["x-oss-range-behavior"]],
            ["bytes=10-19", "\"5B3C1A2E\"", "standard"]
        );
    }
}

#[tokio::test]
async fn every_request_to_a_virtual_host_is_signed_to_specification() {
    let script = refuser();
    let endpoint = format!("http://oss-cn-beijing.test:{}", script.address.port());
    let host = "conf-ai.oss-cn-beijing.test";
    let hosts = HashMap::from([(host.to_owned(), script.address)]);
    let client = Client::with_hosts(&config(endpoint.parse().unwrap(), None), hosts).unwrap();
    every_request(&client).await;
    let requests = script.requests();
    assert_eq!(requests.len(), 8);
    for request in &requests {
        verify(request, SECRET, false).unwrap();
        assert_eq!(request.headers["host"], format!("{host}:{}", script.address.port()));
        assert!(!request.target.starts_with("/conf-ai/"), "{}", request.target);
    }
}

/// The signature in an `Authorization` header of either version.
fn signature_of(authorization: &str) -> &str {
    let split = authorization.split_once("Signature=").or_else(|| authorization.split_once(':'));
    split.unwrap().1
}

/// What the official SDKs need to sign `request` again, on one line.
fn case(request: &Request, signature: Signature, token: Option<&str>) -> String {
    let path = request.target.split('?').next().unwrap();
    let key = String::from_utf8(decode(path)).unwrap();
    let case = json!({
        "version": format!("{signature:?}"), "method": request.method, "headers": request.headers,
        "url": format!("http://{}{}", request.headers["host"], request.target),
        "bucket": BUCKET, "key": key.strip_prefix(&format!("/{BUCKET}/")).unwrap(), "region": REGION,
        "id": ID, "secret": SECRET, "token": token,
    });
    format!("{case}\n")
}

/// Requests of every kind for names of every kind of character: 4 x 250 of them.
async fn a_thousand_requests() -> Vec<(Request, String)> {
    let mut requests = Vec::new();
    let mut seed = 7u32;
    for signature in [Signature::V4, Signature::V1] {
        for token in [None, Some("CAIS+token/with=signs")] {
            let script = refuser();
            let client = Client::new(&Oss { signature, ..config(script.endpoint(), token) }).unwrap();
            for number in 0..250 {
                let key: String = (0..12)
                    .map(|_| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        let letters = "a/ +%é中~'&=?#*!()\"<>:;@$,|[]{}^`Ab-_.";
                        letters.chars().nth((seed >> 20) as usize % letters.chars().count()).unwrap()
                    })
                    .collect();
                // No empty or leading segment: nobody stores those, and URLs fold them.
                let key = format!("q{}z", key.replace("//", "/").replace("/./", "/").replace("/../", "/"));
                match number % 5 {
                    0 => drop(client.get_range(&key, "\"5B3C\"", 10..20, 100).await),
                    1 => drop(client.list(&format!("{key}/")).await),
                    2 => drop(client.put(&key, Bytes::from_static(b"x")).await),
                    3 => drop(client.head(&key).await),
                    _ => drop(
                        client.begin_upload(&key).await.unwrap().part(3, Bytes::from_static(b"part")).await,
                    ),
                }
                let request = script.requests().pop().unwrap();
                let case = case(&request, signature, token);
                requests.push((request, case));
            }
        }
    }
    requests
}

#[tokio::test]
async fn signatures_are_those_of_the_official_sdks() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/python");
    if !common::available("oss-sdk", python.exists(), "no .tools/venv with tests/peers/requirements.txt") {
        return;
    }
    let requests = a_thousand_requests().await;
    let mut input = tempfile::tempfile().unwrap();
    requests.iter().for_each(|(_, case)| input.write_all(case.as_bytes()).unwrap());
    input.rewind().unwrap();
    let signer = Command::new(python).arg("tests/peers/oss_sign.py").stdin(input).output().unwrap();
    assert!(signer.status.success(), "{}", String::from_utf8_lossy(&signer.stderr));
    let theirs = String::from_utf8(signer.stdout).unwrap();
    assert_eq!(theirs.lines().count(), 1000);
    for ((request, _), theirs) in requests.iter().zip(theirs.lines()) {
        assert_eq!(signature_of(&request.headers["authorization"]), theirs, "{request:?}");
    }
}

#[tokio::test]
async fn tampered_request_does_not_verify() {
    let script = refuser();
    let client = Client::new(&config(script.endpoint(), None)).unwrap();
    client.get_range(KEY, "\"5B3C\"", 10..20, 100).await.unwrap_err();
    let good = script.requests().remove(0);
    verify(&good, SECRET, true).unwrap();
    for (name, value) in [
        ("range", "bytes=0-99"),
        ("if-match", "\"other\""),
        ("host", "elsewhere"),
        ("x-oss-date", "20200101T000000Z"),
    ] {
        let mut bad = good.clone();
        bad.headers.insert(name.into(), value.into());
        assert!(verify(&bad, SECRET, true).is_err(), "{name} is not signed");
    }
    let mut bad = good.clone();
    bad.target.push('x');
    assert!(verify(&bad, SECRET, true).is_err());
    bad = good;
    bad.method = "DELETE".into();
    assert!(verify(&bad, SECRET, true).is_err());
}

#[tokio::test]
async fn anonymous_request_carries_nothing_to_identify_anybody() {
    let script = refuser();
    let mut config = config(script.endpoint(), None);
    (config.credentials, config.region) = (Credentials::Anonymous, None);
    every_request(&Client::new(&config).unwrap()).await;
    for request in script.requests() {
        let traces = ["authorization", "x-oss-date", "x-oss-security-token", "x-oss-content-sha256"];
        assert!(traces.iter().all(|name| !request.headers.contains_key(*name)), "{request:?}");
    }
}

#[test]
fn signing_without_a_region_is_refused_at_the_start() {
    let mut config = config("http://accelerate.test".parse().unwrap(), None);
    config.region = None;
    assert!(matches!(Client::new(&config), Err(OssError::NoRegion { .. })));
}
