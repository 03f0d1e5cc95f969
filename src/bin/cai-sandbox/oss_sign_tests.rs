//! Signatures made by the official SDK (PyPI alibabacloud-oss-v2 1.4.1, `SignerV4` and `SignerV1`), and
//! requests bent from them.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

/// 2026-11-22T09:56:24Z, when the vectors were signed.
const SIGNED_AT: u64 = 1_795_341_384;
const V4_SCOPE: &str = "OSS4-HMAC-SHA256 Credential=LTAI-vector/20261122/cn-beijing/oss/aliyun_v4_request";
const V4_LIST: &str = "fa92e450d1926aeb1b04bd5feffe8ae81e165d056b7fc16530b00642d6d51d54";
const V4_PART: &str = "82099c0ac2fab4eed646db85cf4d0d318b3cf6d3eb881e4126e06e8e2a0405bd";
const V4_HOST: &str = "a9a1de90093233a482f2850be2b4ea1ff1fb39727f498e62dd58edaba65ef1ec";
const LIST: [(&str, &str); 4] =
    [("list-type", "2"), ("prefix", "a b/é"), ("continuation-token", ""), ("max-keys", "3")];
const PART: [(&str, &str); 2] = [("partNumber", "2"), ("uploadId", "AB")];
const PART_KEY: &str = "dir/a b+c~'!.bin";
const V4_HEADERS: [(&str, &str); 2] =
    [("x-oss-date", "20261122T095624Z"), ("x-oss-content-sha256", "UNSIGNED-PAYLOAD")];
const PART_HEADERS: [(&str, &str); 4] = [
    ("content-type", "text/plain"),
    ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
    ("x-oss-meta-b", "two"),
    ("x-oss-meta-a", "1"),
];
const TOKEN: (&str, &str) = ("x-oss-security-token", "CAIS+t/o==");
const DATE: (&str, &str) = ("date", "Sun, 22 Nov 2026 09:56:24 GMT");

struct Case {
    method: &'static str,
    key: &'static str,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    authorization: String,
    token: Option<&'static str>,
    region: &'static str,
    now: u64,
}

impl Case {
    fn new(
        method: &'static str,
        key: &'static str,
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
        authorization: &str,
    ) -> Case {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Case {
            method,
            key,
            query: query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            headers: map,
            authorization: authorization.to_owned(),
            token: None,
            region: "cn-beijing",
            now: SIGNED_AT,
        }
    }

    fn list() -> Case {
        Case::new("GET", "", &LIST, &V4_HEADERS, &format!("{V4_SCOPE},Signature={V4_LIST}"))
    }

    fn with_host() -> Case {
        let mut headers = V4_HEADERS.to_vec();
        headers.extend([("host", "conf-ai.oss-cn-beijing.aliyuncs.com"), ("range", "bytes=0-9")]);
        let authorization = format!("{V4_SCOPE},AdditionalHeaders=host;range,Signature={V4_HOST}");
        Case::new("GET", "k", &[], &headers, &authorization)
    }

    fn part() -> Case {
        let headers: Vec<_> = V4_HEADERS.into_iter().chain(PART_HEADERS).chain([TOKEN]).collect();
        let authorization = format!("{V4_SCOPE}, Signature={V4_PART}"); // a space after the comma is allowed
        let mut case = Case::new("PUT", PART_KEY, &PART, &headers, &authorization);
        case.token = Some(TOKEN.1);
        case
    }

    fn list_v1() -> Case {
        Case::new("GET", "", &LIST, &[DATE], "OSS LTAI-vector:B5aYeYpb5cbPVtcZRMri9lPiVs4=")
    }

    fn verify(&self) -> Result<(), OssError> {
        let who = Credentials {
            access_key_id: "LTAI-vector".to_owned(),
            access_key_secret: "vector-secret".to_owned(),
            session_token: self.token.map(str::to_owned),
        };
        let request = Presented {
            method: self.method,
            bucket: "conf-ai",
            key: self.key,
            query: &self.query,
            headers: &self.headers,
        };
        verify(&who, self.region, self.now, &request, &self.authorization)
    }

    fn code(&self) -> String {
        self.verify().map_or_else(|error| error.code, |()| "none".to_owned())
    }
}

#[test]
fn verify_of_signatures_by_the_official_sdk_accepts_them() {
    for case in [Case::list(), Case::with_host(), Case::part(), Case::list_v1()] {
        assert_eq!(case.verify(), Ok(()));
    }
}

#[test]
fn verify_v1_of_subresources_and_own_headers_is_strict_on_them() {
    let headers: Vec<_> = PART_HEADERS.into_iter().chain([DATE]).collect();
    let mut case =
        Case::new("PUT", PART_KEY, &PART, &headers, "OSS LTAI-vector:Jm2TObJ1WtwjMhBEL5lGJHhNiCA=");
    assert_eq!(case.verify(), Ok(()));
    case.query[1].1 = "AC".to_owned();
    assert_eq!(case.code(), "SignatureDoesNotMatch");
}

#[test]
fn verify_of_anything_signed_that_changed_is_a_mismatch() {
    type Bend = fn(&mut Case);
    let bends: [Bend; 6] = [
        |case| case.method = "HEAD",
        |case| case.key = "other",
        |case| case.query.push(("x".to_owned(), "1".to_owned())),
        |case| drop(case.headers.insert("x-oss-range-behavior", HeaderValue::from_static("standard"))),
        |case| drop(case.headers.insert("content-type", HeaderValue::from_static("text/plain"))),
        |case| case.authorization = case.authorization.replace("Signature=a", "Signature=b"),
    ];
    for bend in bends {
        let mut case = Case::with_host();
        bend(&mut case);
        assert_eq!(case.code(), "SignatureDoesNotMatch");
    }
    let mut case = Case::with_host();
    case.headers.insert("range", HeaderValue::from_static("bytes=0-10"));
    assert_eq!(case.code(), "SignatureDoesNotMatch", "listed in AdditionalHeaders");
    let mut case = Case::with_host();
    case.headers.insert("user-agent", HeaderValue::from_static("x"));
    assert_eq!(case.code(), "none", "not listed");
}

#[test]
fn verify_v4_of_a_malformed_request_is_invalid() {
    for (from, to, ec) in [
        ("AdditionalHeaders=host;range", "AdditionalHeaders=", "0002-00000209"),
        ("host;range", "host;", "0002-00000210"),
        ("host;range", "range;host", "0002-00000210"),
        ("host;range", "Host;range", "0002-00000210"),
        ("aliyun_v4_request", "aws4_request", "0002-00000213"),
        ("/oss/", "/s3/", "0002-00000213"),
        ("cn-beijing", "cn-hangzhou", "0002-00000228"),
        ("/20261122/", "/20261121/", "0002-00000212"),
        (",Signature=", ",Sig=", ""),
        (",Signature=", ",AdditionalHeaders=host,Signature=", ""),
        ("OSS4-HMAC-SHA256", "AWS4-HMAC-SHA256", ""),
    ] {
        let mut case = Case::with_host();
        case.authorization = case.authorization.replace(from, to);
        let error = case.verify().unwrap_err();
        assert_eq!((error.code.as_str(), error.ec()), ("InvalidArgument", ec), "{from} -> {to}");
    }
    for name in ["x-oss-content-sha256", "x-oss-date"] {
        let mut case = Case::list();
        case.headers.remove(name);
        assert_eq!(case.code(), "InvalidArgument", "without {name}");
    }
    let mut case = Case::list();
    case.headers.insert("x-oss-content-sha256", HeaderValue::from_static("e3b0c442"));
    assert_eq!(case.code(), "InvalidArgument");
}

#[test]
fn verify_of_a_clock_fifteen_minutes_off_is_the_limit() {
    for (now, code) in [
        (SIGNED_AT + 900, "none"),
        (SIGNED_AT - 900, "none"),
        (SIGNED_AT + 901, "RequestTimeTooSkewed"),
        (SIGNED_AT - 901, "RequestTimeTooSkewed"),
    ] {
        for mut case in [Case::list(), Case::list_v1()] {
            case.now = now;
            assert_eq!(case.code(), code, "{now}");
        }
    }
}

#[test]
fn verify_of_the_wrong_identity_names_what_is_wrong() {
    let mut case = Case::part();
    case.headers.remove(TOKEN.0);
    assert_eq!(case.code(), "InvalidAccessKeyId", "a temporary key without its token");
    case.headers.insert(TOKEN.0, HeaderValue::from_static("CAIS-other"));
    assert_eq!(case.code(), "InvalidSecurityToken");
    let mut case = Case::list();
    case.headers.insert(TOKEN.0, HeaderValue::from_static("CAIS-any"));
    assert_eq!(case.code(), "InvalidSecurityToken", "a lasting key with a token");
    let mut case = Case::list();
    case.authorization = case.authorization.replace("LTAI-vector", "LTAI-other");
    assert_eq!(case.code(), "InvalidAccessKeyId");
}
