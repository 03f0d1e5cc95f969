//! Verification of OSS signatures, version 4 and version 1, in the `Authorization` header.
//!
//! Owns the canonical forms, written from Alibaba's documentation (`oss.md` 1.7), and is strict where it is:
//! scope, region, marker of the payload hash, additional headers, 15 minutes of skew, token. Signatures in
//! the query are not supported. Stateless. Tested in `oss_sign_tests.rs` against signatures of the official
//! Python SDK, and by the SDKs live in `tests/sandbox_oss_sdk.rs`.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::clock::{parse_http_date, parse_iso_basic};
use crate::oss_error::OssError;
use crate::wire::header;

const V4: &str = "OSS4-HMAC-SHA256";
/// Allowed difference between the client's clock and ours, in seconds.
const SKEW_SECS: u64 = 15 * 60;
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// Query names that version 1 signs. Those of operations that the sandbox lacks are here too, so that asking
/// for one gets "not implemented" and not a wrong answer.
#[rustfmt::skip] // one name a line would be fifty lines
pub(crate) const SUBRESOURCES: [&str; 47] = [
    "acl", "append", "asyncFetch", "bucketInfo", "comp", "continuation-token", "cors", "delete",
    "encryption", "endTime", "inventory", "lifecycle", "live", "location", "logging", "objectMeta",
    "partNumber", "policy", "position", "qos", "referer", "replication", "requestPayment",
    "response-cache-control", "response-content-disposition", "response-content-encoding",
    "response-content-language", "response-content-type", "response-expires", "restore", "security-token",
    "sequential", "startTime", "stat", "status", "symlink", "tagging", "transferAcceleration", "uploadId",
    "uploads", "versionId", "versioning", "versions", "website", "worm", "x-oss-process",
    "x-oss-traffic-limit",
];

/// An identity the sandbox knows.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) access_key_secret: String,
    pub(crate) session_token: Option<String>,
}

/// What a signature covers.
pub(crate) struct Presented<'a> {
    pub(crate) method: &'a str,
    pub(crate) bucket: &'a str,
    /// Decoded; empty for an operation on the bucket.
    pub(crate) key: &'a str,
    /// Decoded names and values.
    pub(crate) query: &'a [(String, String)],
    pub(crate) headers: &'a HeaderMap,
}

/// Checks the `Authorization` header `authorization` of a request at Unix time `now`.
///
/// # Errors
/// The refusal OSS documents for the first thing that is wrong.
pub(crate) fn verify(
    who: &Credentials,
    region: &str,
    now: u64,
    request: &Presented<'_>,
    authorization: &str,
) -> Result<(), OssError> {
    if let Some(fields) = authorization.strip_prefix(V4).and_then(|rest| rest.strip_prefix(' ')) {
        verify_v4(who, region, now, request, fields)
    } else if let Some(fields) = authorization.strip_prefix("OSS ") {
        verify_v1(who, now, request, fields)
    } else {
        Err(OssError::invalid_argument("", "The Authorization header is invalid."))
    }
}

/// Whose signature `authorization` says that it is.
pub(crate) fn access_key_id(authorization: &str) -> Option<&str> {
    match authorization.strip_prefix("OSS ") {
        Some(v1) => v1.split_once(':').map(|(id, _)| id),
        None => authorization.split_once("Credential=")?.1.split_once('/').map(|(id, _)| id),
    }
}

struct V4Fields<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    additional: Vec<&'a str>,
    signature: &'a str,
}

fn parse_v4(fields: &str) -> Result<V4Fields<'_>, OssError> {
    let bad_credential =
        || OssError::invalid_argument("0002-00000213", "Invalid Credential in Authorization header.");
    let (mut credential, mut additional, mut signature) = (None, None, None);
    for field in fields.split(',') {
        let slot = match field.trim().split_once('=') {
            Some(("Credential", value)) => credential.replace(value),
            Some(("AdditionalHeaders", value)) => additional.replace(value),
            Some(("Signature", value)) => signature.replace(value),
            _ => return Err(OssError::invalid_argument("", "Invalid field in Authorization header.")),
        };
        if slot.is_some() {
            return Err(OssError::invalid_argument("", "Repeated field in Authorization header."));
        }
    }
    let parts: Vec<&str> = credential.ok_or_else(bad_credential)?.split('/').collect();
    let [access_key_id, date, region, "oss", "aliyun_v4_request"] = parts.as_slice() else {
        return Err(bad_credential());
    };
    let additional: Vec<&str> = match additional {
        None => Vec::new(),
        Some("") => return Err(OssError::invalid_argument("0002-00000209", "AdditionalHeaders is empty.")),
        Some(list) => list.split(';').collect(),
    };
    let lower = |name: &&str| {
        !name.is_empty() && !name.contains(|c: char| c.is_ascii_uppercase() || c.is_whitespace())
    };
    if !additional.iter().all(lower) || !additional.is_sorted() {
        return Err(OssError::invalid_argument(
            "0002-00000210",
            "AdditionalHeaders is not a sorted list of lower-case names.",
        ));
    }
    let signature =
        signature.ok_or_else(|| OssError::invalid_argument("", "No Signature in Authorization header."))?;
    Ok(V4Fields { access_key_id, date, region, additional, signature })
}

fn verify_v4(
    who: &Credentials,
    region: &str,
    now: u64,
    request: &Presented<'_>,
    fields: &str,
) -> Result<(), OssError> {
    let V4Fields { access_key_id, date, region: scope_region, additional, signature } = parse_v4(fields)?;
    if header(request.headers, "x-oss-content-sha256") != Some("UNSIGNED-PAYLOAD") {
        return Err(OssError::invalid_argument("", "x-oss-content-sha256 must be UNSIGNED-PAYLOAD."));
    }
    let stamp = header(request.headers, "x-oss-date").unwrap_or_default();
    let signed_at = parse_iso_basic(stamp)
        .ok_or_else(|| OssError::invalid_argument("0002-00000211", "x-oss-date is missing or malformed."))?;
    if stamp.split('T').next() != Some(date) {
        return Err(OssError::invalid_argument(
            "0002-00000212",
            "Invalid signing date in Authorization header.",
        ));
    }
    if scope_region != region {
        return Err(OssError::invalid_argument(
            "0002-00000228",
            "Invalid signing region in Authorization header.",
        ));
    }
    check_skew(now, signed_at)?;
    check_identity(who, access_key_id, request.headers)?;

    let canonical = canonical_request(request, &additional);
    let hash = hex(digest(&SHA256, canonical.as_bytes()).as_ref());
    let to_sign = format!("{V4}\n{stamp}\n{date}/{region}/oss/aliyun_v4_request\n{hash}");
    let mut key = format!("aliyun_v4{}", who.access_key_secret).into_bytes();
    for part in [date, region, "oss", "aliyun_v4_request", &to_sign] {
        key = mac(hmac::HMAC_SHA256, &key, part.as_bytes());
    }
    if hex(&key) == signature {
        return Ok(());
    }
    Err(mismatch(access_key_id, signature, to_sign).with("CanonicalRequest", canonical))
}

fn canonical_request(request: &Presented<'_>, additional: &[&str]) -> String {
    let path = format!("/{}/{}", request.bucket, request.key);
    let path = utf8_percent_encode(&path, PATH);
    let mut query: Vec<(String, String)> =
        request.query.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    query.sort();
    let query: Vec<String> = query
        .into_iter()
        .map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") })
        .collect();
    let mut headers: Vec<(&str, String)> = request
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| {
            name.starts_with("x-oss-")
                || ["content-type", "content-md5"].contains(name)
                || additional.contains(name)
        })
        .map(|name| (name, joined(request.headers, name)))
        .collect();
    headers.sort();
    let headers: String = headers.into_iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let (query, additional) = (query.join("&"), additional.join(";"));
    format!("{}\n{path}\n{query}\n{headers}\n{additional}\nUNSIGNED-PAYLOAD", request.method)
}

fn verify_v1(who: &Credentials, now: u64, request: &Presented<'_>, fields: &str) -> Result<(), OssError> {
    let (access_key_id, signature) = fields
        .split_once(':')
        .ok_or_else(|| OssError::invalid_argument("", "The Authorization header is invalid."))?;
    let date =
        header(request.headers, "x-oss-date").or_else(|| header(request.headers, "date")).unwrap_or_default();
    let signed_at = parse_http_date(date).or_else(|| parse_iso_basic(date)).ok_or_else(|| {
        OssError::new(403, "AccessDenied", "0002-00000501", "The Date header is missing or malformed.")
    })?;
    check_skew(now, signed_at)?;
    check_identity(who, access_key_id, request.headers)?;

    let own: Vec<&str> = request
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .filter(|name| name.starts_with("x-oss-"))
        .collect();
    let mut own: Vec<String> =
        own.into_iter().map(|name| format!("{name}:{}\n", joined(request.headers, name))).collect();
    own.sort();
    let mut signed: Vec<&(String, String)> =
        request.query.iter().filter(|(name, _)| SUBRESOURCES.contains(&name.as_str())).collect();
    signed.sort();
    let signed: Vec<String> = signed
        .into_iter()
        .map(|(name, value)| if value.is_empty() { name.clone() } else { format!("{name}={value}") })
        .collect();
    let mut resource = format!("/{}/{}", request.bucket, request.key);
    if !signed.is_empty() {
        resource.push('?');
        resource.push_str(&signed.join("&"));
    }
    let to_sign = format!(
        "{}\n{}\n{}\n{date}\n{}{resource}",
        request.method,
        header(request.headers, "content-md5").unwrap_or_default(),
        header(request.headers, "content-type").unwrap_or_default(),
        own.concat(),
    );
    let expected =
        mac(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, who.access_key_secret.as_bytes(), to_sign.as_bytes());
    if STANDARD.encode(expected) == signature {
        return Ok(());
    }
    Err(mismatch(access_key_id, signature, to_sign))
}

fn check_skew(now: u64, signed_at: u64) -> Result<(), OssError> {
    if now.abs_diff(signed_at) <= SKEW_SECS {
        return Ok(());
    }
    let message = "The difference between the request time and the current time is too large.";
    Err(OssError::new(403, "RequestTimeTooSkewed", "0002-00000504", message))
}

fn check_identity(who: &Credentials, access_key_id: &str, headers: &HeaderMap) -> Result<(), OssError> {
    let token = header(headers, "x-oss-security-token");
    // A temporary key does not exist without its token, and that is how OSS puts it.
    if access_key_id != who.access_key_id || (token.is_none() && who.session_token.is_some()) {
        let message = "The OSS Access Key Id you provided does not exist in our records.";
        let error = OssError::new(403, "InvalidAccessKeyId", "0002-00000902", message);
        return Err(error.with("OSSAccessKeyId", access_key_id.to_owned()));
    }
    if token != who.session_token.as_deref() {
        let message = "The security token you provided is invalid.";
        return Err(OssError::new(403, "InvalidSecurityToken", "0002-00000802", message));
    }
    Ok(())
}

fn mismatch(access_key_id: &str, signature: &str, to_sign: String) -> OssError {
    let message = "The request signature we calculated does not match the signature you provided. Check your key and signing method.";
    OssError::new(403, "SignatureDoesNotMatch", "0002-00000040", message)
        .with("OSSAccessKeyId", access_key_id.to_owned())
        .with("SignatureProvided", signature.to_owned())
        .with("StringToSign", to_sign)
}

fn joined(headers: &HeaderMap, name: &str) -> String {
    let values: Vec<String> = headers
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
        .collect();
    values.join(",")
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, UNRESERVED).to_string()
}

fn mac(algorithm: hmac::Algorithm, key: &[u8], text: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(algorithm, key), text).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "oss_sign_tests.rs"]
mod tests;
