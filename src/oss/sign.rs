//! Signatures, V4 and V1, from the specification (oss.md 1.7).
//!
//! An own signer and not `reqsign-aliyun-oss`: that one signs at the machine's time only, so that a wrong clock cannot be
//! corrected, takes a domain of the bucket's own for path style, and keeps the secret as ordinary text. It is the oracle in
//! `tests/oss_signature.rs` instead, beside the official SDK. Sign last: what is added afterwards is not what was signed. Pure.

use std::time::SystemTime;

use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HOST, HeaderName, IF_MATCH, RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use percent_encoding::utf8_percent_encode;
use zeroize::Zeroizing;

use super::address::{KEY, VALUE, plain};
use super::answer::text;
use super::credential::Credential;
use super::error::OssError;
use crate::config::{Credentials, Oss, Signature};

/// V4's name in the header and in what is signed.
const V4: &str = "OSS4-HMAC-SHA256";
/// Last part of V4's scope.
const V4_REQUEST: &str = "aliyun_v4_request";
/// What V4 signs in place of the body's hash; ciphertext is authenticated by itself.
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";
/// Headers that V4 binds where they are present: what is asked, of which object, at which bucket. Never empty, because
/// every request has a host, and `AdditionalHeaders=` is an error of its own (0002-00000209). Sorted.
const BOUND: [HeaderName; 3] = [HOST, IF_MATCH, RANGE];
/// The same where `oss.proxy` reads the requests: it asks OSS for ranges of its own (Dragonfly's pieces), with our signature.
const BOUND_FOR_PROXY: [HeaderName; 1] = [HOST];
/// Parameters that V1 signs, of those that this client can send. Source: oss.md 1.7.
const V1_PARAMETERS: [&str; 12] = [
    "acl",
    "continuation-token",
    "delete",
    "objectMeta",
    "partNumber",
    "symlink",
    "tagging",
    "uploadId",
    "uploads",
    "versionId",
    "versions",
    "x-oss-process",
];

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
const OSS_DATE: HeaderName = HeaderName::from_static("x-oss-date");
const OSS_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-oss-content-sha256");
const OSS_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-oss-security-token");

/// Signs requests for one bucket.
#[derive(Debug, Clone)]
pub struct Signer {
    bucket: String,
    version: Version,
}

#[derive(Debug, Clone)]
enum Version {
    V1,
    V4 { region: String, bound: &'static [HeaderName] },
}

impl Signer {
    /// As `config` says. Anonymous requests need no region either.
    ///
    /// # Errors
    /// `NoRegion`.
    pub fn new(config: &Oss) -> Result<Self, OssError> {
        let anonymous = matches!(config.credentials, Credentials::Anonymous);
        let is_read = config.proxy.is_some() && config.endpoint.scheme() == "http";
        let bound: &[HeaderName] = if is_read { &BOUND_FOR_PROXY } else { &BOUND };
        let version = match (config.signature, &config.region) {
            (Signature::V1, _) => Version::V1,
            (Signature::V4, Some(region)) => Version::V4 { region: region.clone(), bound },
            (Signature::V4, None) if anonymous => Version::V4 { region: String::new(), bound },
            (Signature::V4, None) => return Err(OssError::NoRegion { endpoint: plain(&config.endpoint) }),
        };
        Ok(Signer { bucket: config.bucket.clone(), version })
    }

    /// Sign a request for `key` (empty for the bucket itself) with `query`, as of `now`.
    ///
    /// # Errors
    /// `CredentialText` for an id or token that no header can carry; `Time`.
    pub fn sign(
        &self,
        parts: &mut Parts,
        key: &str,
        query: &[(&str, &str)],
        credential: &Credential,
        now: SystemTime,
    ) -> Result<(), OssError> {
        let now = jiff::Timestamp::try_from(now).map_err(|_| OssError::Time)?;
        if let Some(token) = &credential.token {
            let value = token.with(HeaderValue::from_bytes).map_err(|_| OssError::CredentialText)?;
            parts.headers.insert(OSS_SECURITY_TOKEN, hidden(value));
        }
        let resource = format!("/{}/{key}", self.bucket);
        let authorization = match &self.version {
            Version::V4 { region, bound } => {
                sign_v4(parts, &resource, query, credential, (region, bound), now)?
            }
            Version::V1 => sign_v1(parts, &resource, query, credential, now)?,
        };
        let value = HeaderValue::try_from(authorization).map_err(|_| OssError::CredentialText)?;
        parts.headers.insert(AUTHORIZATION, hidden(value));
        Ok(())
    }
}

/// Kept out of the debug output of whatever holds it.
fn hidden(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

fn date_header(text: &str) -> Result<HeaderValue, OssError> {
    HeaderValue::from_str(text).map_err(|_| OssError::Time)
}

fn sign_v4(
    parts: &mut Parts,
    resource: &str,
    query: &[(&str, &str)],
    credential: &Credential,
    (region, bound): (&str, &[HeaderName]),
    now: jiff::Timestamp,
) -> Result<String, OssError> {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let date = now.strftime("%Y%m%d").to_string();
    parts.headers.insert(OSS_DATE, date_header(&time)?);
    parts.headers.insert(OSS_CONTENT_SHA256, HeaderValue::from_static(UNSIGNED_PAYLOAD));
    let names: Vec<&str> =
        bound.iter().filter(|name| parts.headers.contains_key(*name)).map(HeaderName::as_str).collect();
    let names = names.join(";");
    let uri = utf8_percent_encode(resource, KEY);
    let canonical = format!(
        "{}\n{uri}\n{}\n{}\n{names}\n{UNSIGNED_PAYLOAD}",
        parts.method,
        v4_query(query),
        v4_headers(&parts.headers, bound)
    );
    let scope = format!("{date}/{region}/oss/{V4_REQUEST}");
    let hash = hex::encode(digest::digest(&digest::SHA256, canonical.as_bytes()));
    let to_sign = format!("{V4}\n{time}\n{scope}\n{hash}");
    let first = credential.secret.with(|secret| Zeroizing::new([b"aliyun_v4", secret].concat()));
    let mut key = hmac_of(hmac::HMAC_SHA256, &first, &date);
    for part in [region, "oss", V4_REQUEST, &to_sign] {
        key = hmac_of(hmac::HMAC_SHA256, key.as_ref(), part);
    }
    let (id, signature) = (&credential.id, hex::encode(key));
    Ok(format!("{V4} Credential={id}/{scope},AdditionalHeaders={names},Signature={signature}"))
}

/// Encoded, sorted by the encoded name, bare names for empty values.
fn v4_query(query: &[(&str, &str)]) -> String {
    let encode = |text| utf8_percent_encode(text, VALUE).to_string();
    let mut pairs: Vec<_> = query.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    pairs.sort();
    let pairs: Vec<_> = pairs.into_iter().map(|(name, value)| pair(&name, &value)).collect();
    pairs.join("&")
}

fn pair(name: &str, value: &str) -> String {
    if value.is_empty() { name.to_owned() } else { format!("{name}={value}") }
}

fn v4_headers(headers: &HeaderMap, bound: &[HeaderName]) -> String {
    let is_signed = |name: &HeaderName| {
        name.as_str().starts_with("x-oss-")
            || [CONTENT_TYPE, CONTENT_MD5].contains(name)
            || bound.contains(name)
    };
    lines(headers, is_signed)
}

/// `name:value` lines of the headers that `is_signed`, sorted by name.
fn lines(headers: &HeaderMap, is_signed: impl Fn(&HeaderName) -> bool) -> String {
    let mut names: Vec<_> = headers.keys().filter(|name| is_signed(name)).map(HeaderName::as_str).collect();
    names.sort_unstable();
    names.into_iter().map(|name| format!("{name}:{}\n", text(headers, name).trim())).collect()
}

fn sign_v1(
    parts: &mut Parts,
    resource: &str,
    query: &[(&str, &str)],
    credential: &Credential,
    now: jiff::Timestamp,
) -> Result<String, OssError> {
    let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    parts.headers.insert(DATE, date_header(&date)?);
    let mut signed: Vec<_> = query.iter().filter(|(name, _)| V1_PARAMETERS.contains(name)).collect();
    signed.sort();
    let signed: Vec<_> = signed.into_iter().map(|(name, value)| pair(name, value)).collect();
    let mark = if signed.is_empty() { "" } else { "?" };
    let header = |name: &HeaderName| text(&parts.headers, name.as_str());
    let to_sign = format!(
        "{}\n{}\n{}\n{date}\n{}{resource}{mark}{}",
        parts.method,
        header(&CONTENT_MD5),
        header(&CONTENT_TYPE),
        lines(&parts.headers, |name| name.as_str().starts_with("x-oss-")),
        signed.join("&"),
    );
    let algorithm = hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY;
    let signature = credential.secret.with(|secret| hmac_of(algorithm, secret, &to_sign));
    Ok(format!("OSS {}:{}", credential.id, STANDARD.encode(signature)))
}

fn hmac_of(algorithm: hmac::Algorithm, key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(algorithm, key), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;
    use crate::keyring::Secret;

    /// The signature's header of a request at 2026-11-22T09:56:24Z.
    fn signed(
        version: Version,
        (method, key): (&str, &str),
        query: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> String {
        let request = headers
            .iter()
            .fold(Request::builder().method(method), |request, (name, value)| request.header(*name, *value));
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let secret = Secret::copy_of(b"vector-secret").unwrap();
        let credential = Credential { id: "LTAI-vector".into(), secret, token: None, life: None };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_341_384);
        let signer = Signer { bucket: "conf-ai".into(), version };
        signer.sign(&mut parts, key, query, &credential, now).unwrap();
        assert!(parts.headers[AUTHORIZATION].is_sensitive());
        text(&parts.headers, "authorization").to_owned()
    }

    /// Signatures made by the official SDK (PyPI alibabacloud-oss-v2 1.4.1).
    #[test]
    fn signature_is_the_one_of_the_official_sdk() {
        let v4 = Version::V4 { region: "cn-beijing".into(), bound: &BOUND };
        let get =
            [("host", "conf-ai.oss-cn-beijing.aliyuncs.com"), ("range", "bytes=0-9"), ("user-agent", "x")];
        assert_eq!(
            signed(v4, ("GET", "k"), &[], &get),
            "OSS4-HMAC-SHA256 Credential=LTAI-vector/20261122/cn-beijing/oss/aliyun_v4_request,\
             AdditionalHeaders=host;range,\
             Signature=a9a1de90093233a482f2850be2b4ea1ff1fb39727f498e62dd58edaba65ef1ec"
        );
        let list = [("list-type", "2"), ("prefix", "a b/é"), ("continuation-token", ""), ("max-keys", "3")];
        let host = [("host", "conf-ai.oss-cn-beijing.aliyuncs.com"), ("range", "bytes=0-9")];
        assert_eq!(
            signed(Version::V1, ("GET", ""), &list, &host),
            "OSS LTAI-vector:B5aYeYpb5cbPVtcZRMri9lPiVs4="
        );
        let part = [
            ("content-type", "text/plain"),
            ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
            ("x-oss-meta-b", "two"),
            ("x-oss-meta-a", "1"),
        ];
        let query = [("uploadId", "AB"), ("partNumber", "2")];
        assert_eq!(
            signed(Version::V1, ("PUT", "dir/a b+c~'!.bin"), &query, &part),
            "OSS LTAI-vector:Jm2TObJ1WtwjMhBEL5lGJHhNiCA="
        );
    }
}
