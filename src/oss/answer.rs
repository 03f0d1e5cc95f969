//! What an answer says: headers read strictly, error bodies read with suspicion.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{DATE, ETAG, RETRY_AFTER};
use serde::Deserialize;

use super::error::{Reason, Refusal};
use crate::text::seconds_behind;

/// CRC-64 of the whole object, decimal.
const CRC64: &str = "x-oss-hash-crc64ecma";
/// Identity of the request at the server.
const REQUEST_ID: &str = "x-oss-request-id";
/// Detail code of an error without body.
const EC: &str = "x-oss-ec";
/// Error body of a HEAD, base64.
const ERR: &str = "x-oss-err";
/// Storage class.
const STORAGE_CLASS: &str = "x-oss-storage-class";
/// Characters of a server's message that are kept: it ends up in logs and on the bus.
const MESSAGE_LIMIT: usize = 400;

/// What the headers say about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Length of the whole object in bytes, where the answer has it.
    pub len: Option<u64>,
    /// Entity tag with its quotes.
    pub etag: Option<String>,
    /// CRC-64/XZ of the whole object.
    pub crc64: Option<u64>,
    /// Storage class.
    pub storage_class: Option<String>,
    /// Seconds that this machine's clock is behind the server's, where the answer has a date.
    pub clock_behind: Option<i64>,
}

/// A header as text; empty when it is missing or not ASCII.
pub fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// CRC-64 of the object, where the answer has it.
pub fn crc64(headers: &HeaderMap) -> Option<u64> {
    text(headers, CRC64).parse().ok()
}

impl Head {
    /// From the headers of a HEAD.
    pub fn of(headers: &HeaderMap) -> Self {
        let some = |name: &str| Some(text(headers, name).to_owned()).filter(|value| !value.is_empty());
        Head {
            len: text(headers, "content-length").parse().ok(),
            etag: some(ETAG.as_str()),
            crc64: crc64(headers),
            storage_class: some(STORAGE_CLASS),
            clock_behind: seconds_behind(text(headers, DATE.as_str()), SystemTime::now()),
        }
    }
}

/// `bytes a-b/total` as `(a..b + 1, total)`.
pub fn content_range(value: &str) -> Option<(Range<u64>, u64)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let range = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
    Some((range, total.parse().ok()?)).filter(|(range, total)| range.start < range.end && range.end <= *total)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ErrorBody {
    code: String,
    message: String,
    request_id: String,
    #[serde(rename = "EC")]
    ec: String,
    string_to_sign: String,
    canonical_request: String,
}

/// Make an error answer of `url` understandable. `body` may be anything, or nothing as for HEAD.
pub fn refusal(url: String, status: u16, headers: &HeaderMap, body: &[u8]) -> Refusal {
    let from_header = || STANDARD.decode(text(headers, ERR)).unwrap_or_default();
    let body = if body.is_empty() { from_header() } else { body.to_vec() };
    let body = String::from_utf8_lossy(&body);
    let error: ErrorBody = quick_xml::de::from_str(&body).unwrap_or_default();
    if !error.string_to_sign.is_empty() {
        // Settles every signing bug, and holds no secret.
        let (ours, canonical) = (tame(&error.string_to_sign), tame(&error.canonical_request));
        tracing::warn!(event = "oss.signature", string_to_sign = ours, canonical_request = canonical);
    }
    let or_header =
        |value: String, name| if value.is_empty() { text(headers, name).to_owned() } else { value };
    let (ec, request_id) = (or_header(error.ec, EC), or_header(error.request_id, REQUEST_ID));
    Refusal {
        url,
        status,
        reason: Reason::of(status, &error.code, &ec),
        code: tame(&error.code),
        ec: tame(&ec),
        message: tame(&error.message),
        request_id: tame(&request_id),
        date: tame(text(headers, DATE.as_str())),
        retry_after: text(headers, RETRY_AFTER.as_str()).parse().ok().map(Duration::from_secs),
    }
}

/// A server's text, short and without control characters.
fn tame(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(MESSAGE_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_is_read_exactly() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, 100)));
        assert_eq!(content_range("bytes 99-99/100"), Some((99..100, 100)));
        for bad in [
            "",
            "bytes */100",
            "bytes 5-4/100",
            "bytes 0-100/100",
            "bytes 0-9/*",
            "bytes 0-18446744073709551615/1",
            "0-9/100",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn refusal_of_a_head_is_read_from_its_headers() {
        let mut headers = HeaderMap::new();
        let xml = "<?xml version=\"1.0\"?><Error><Code>NoSuchBucket</Code><Message>none</Message><RequestId>R1</RequestId>\
                   <HostId>h</HostId><BucketName>b</BucketName><EC>0015-00000101</EC></Error>";
        headers.insert("x-oss-err", STANDARD.encode(xml).parse().unwrap());
        headers.insert("retry-after", "7".parse().unwrap());
        let refusal = refusal("http://h/b".into(), 404, &headers, b"");
        assert_eq!((refusal.reason, refusal.code.as_str()), (Reason::NoSuchBucket, "NoSuchBucket"));
        assert_eq!((refusal.ec.as_str(), refusal.request_id.as_str()), ("0015-00000101", "R1"));
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn refusal_with_a_hostile_body_is_tamed() {
        let message = format!("a\u{1b}[2J{}", "x".repeat(100_000));
        let body = format!("<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>");
        let tamed = refusal("u".into(), 403, &HeaderMap::new(), body.as_bytes());
        assert_eq!(tamed.message.chars().count(), MESSAGE_LIMIT);
        assert!(tamed.message.starts_with("a [2J"));
        let garbage = refusal("u".into(), 403, &HeaderMap::new(), b"\xff<html>no");
        assert_eq!((garbage.reason, garbage.code.as_str()), (Reason::AccessDenied, ""));
    }
}
