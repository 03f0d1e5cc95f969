//! GetObject, HeadObject, GetObjectMeta.
//!
//! Owns preconditions, the range rules with and without `x-oss-range-behavior: standard`, and the faults on bodies. Blocks (a
//! file is opened). Tested below and in `tests/sandbox_oss_sdk.rs`.
//!
//! Source: `oss.md` 1.3, 1.4.

use std::fs::File;

use http::{HeaderMap, HeaderValue, StatusCode};

use crate::clock::{http_date, parse_http_date};
use crate::faults::{Act, Faults, Op, Place};
use crate::oss_error::OssError;
use crate::oss_request::Action;
use crate::oss_store::Object;
use crate::wire::{Ending, FileBody, Halt, Reply, Shape, header, reply};

/// A read about to be answered.
pub(crate) struct Reading<'a> {
    pub(crate) action: Action,
    pub(crate) key: &'a str,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) faults: &'a Faults,
}

/// What a `Range` header means for an object.
#[derive(Debug, PartialEq, Eq)]
enum Span {
    Whole,
    /// First byte and length.
    Part(u64, u64),
    Unsatisfiable,
}

/// The first of the ranges asked for, as OSS reads it.
fn span(range: Option<&str>, standard: bool, len: u64) -> Span {
    let Some(first) = range.and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split(',').next()) else {
        return Span::Whole;
    };
    let Some((from, to)) = first.trim().split_once('-') else { return Span::Whole };
    let number =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let outside = if standard { Span::Unsatisfiable } else { Span::Whole };
    match (from, to) {
        ("", suffix) => match number(suffix) {
            None => Span::Whole,
            Some(0) => outside,
            Some(_) if len == 0 => outside,
            Some(n) if n > len && !standard => Span::Whole,
            Some(n) => Span::Part(len - n.min(len), n.min(len)),
        },
        (from, to) => match (number(from), number(to), to.is_empty()) {
            (Some(from), _, true) if from < len => Span::Part(from, len - from),
            (Some(from), Some(to), _) if from <= to && to < len => Span::Part(from, to - from + 1),
            (Some(from), Some(to), _) if from <= to && from < len && standard => Span::Part(from, len - from),
            (Some(from), to, open) if from >= len && (open || to.is_some_and(|to| from <= to)) => outside,
            _ => Span::Whole,
        },
    }
}

fn names_etag(value: &str, etag: &str) -> bool {
    value == "*" || value.trim_matches('"') == etag
}

fn check_preconditions(headers: &HeaderMap, object: &Object) -> Result<(), OssError> {
    let modified = object.modified_millis / 1000;
    if header(headers, "if-match").is_some_and(|value| !names_etag(value, &object.etag)) {
        return Err(OssError::precondition("If-Match"));
    }
    if header(headers, "if-unmodified-since").and_then(parse_http_date).is_some_and(|since| modified > since)
    {
        return Err(OssError::precondition("If-Unmodified-Since"));
    }
    if header(headers, "if-none-match").is_some_and(|value| names_etag(value, &object.etag)) {
        return Err(OssError::not_modified());
    }
    if header(headers, "if-modified-since").and_then(parse_http_date).is_some_and(|since| modified <= since) {
        return Err(OssError::not_modified());
    }
    Ok(())
}

impl Reading<'_> {
    /// The answer for `object`, whose data is `file`.
    pub(crate) fn answer(&self, object: &Object, file: File, ending: &Ending) -> Result<Reply, OssError> {
        check_preconditions(self.headers, object)?;
        let mut answer = match self.action {
            Action::Get => self.body(object, file, ending)?,
            _ => self.without_body(object),
        };
        self.describe(object, answer.headers_mut());
        Ok(answer)
    }

    fn without_body(&self, object: &Object) -> Reply {
        let mut answer = reply(StatusCode::OK, None, "");
        answer.headers_mut().insert("content-length", HeaderValue::from(object.len));
        answer
    }

    fn body(&self, object: &Object, file: File, ending: &Ending) -> Result<Reply, OssError> {
        let standard = header(self.headers, "x-oss-range-behavior") == Some("standard");
        let mut span = span(header(self.headers, "range"), standard, object.len);
        let ignore = |act: &Act| *act == Act::OssIgnoreRange;
        if span != Span::Whole && self.faults.take_if(Place::Header, Op::Get, self.key, ignore).is_some() {
            span = Span::Whole;
        }
        let (offset, len) = match span {
            Span::Whole => (0, object.len),
            Span::Part(offset, len) => (offset, len),
            Span::Unsatisfiable => {
                let error = OssError::new(
                    416,
                    "InvalidRange",
                    "0017-00000208",
                    "The requested range cannot be satisfied",
                );
                return Err(error
                    .with("ActualObjectSize", object.len.to_string())
                    .with("RangeRequested", header(self.headers, "range").unwrap_or_default().to_owned()));
            }
        };
        let mut answer = Reply::new(FileBody::start(file, offset, len, self.shape(len), ending.clone()));
        if span != Span::Whole {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            let range = format!("bytes {offset}-{}/{}", offset + len - 1, object.len);
            put(answer.headers_mut(), "content-range", &range);
        }
        Ok(answer)
    }

    /// The faults that act on a body of `len` bytes.
    fn shape(&self, len: u64) -> Shape {
        let take =
            |can_act: &dyn Fn(&Act) -> bool| self.faults.take_if(Place::Body, Op::Get, self.key, can_act);
        let mut shape = Shape::default();
        let halts = |act: &Act| matches!(act, Act::OssCutBody { after } | Act::OssResetBody { after } | Act::OssStallBody { after } if *after < len);
        shape.halt = match take(&halts) {
            Some(Act::OssCutBody { after }) => Some((after, Halt::Close)),
            Some(Act::OssResetBody { after }) => Some((after, Halt::Reset)),
            Some(Act::OssStallBody { after }) => Some((after, Halt::Stall)),
            _ => None,
        };
        if let Some(Act::OssSlowBody { bytes_per_sec }) =
            take(&|act| matches!(act, Act::OssSlowBody { .. }) && len > 0)
        {
            shape.bytes_per_sec = Some(bytes_per_sec);
        }
        if let Some(Act::OssFlipByte { at }) =
            take(&|act| matches!(act, Act::OssFlipByte { at } if *at < len))
        {
            shape.flip_at = Some(at);
        }
        shape
    }

    fn describe(&self, object: &Object, headers: &mut HeaderMap) {
        put(headers, "etag", &format!("\"{}\"", object.etag));
        put(headers, "last-modified", &http_date(object.modified_millis / 1000));
        if self.action == Action::Meta {
            return;
        }
        put(headers, "accept-ranges", "bytes");
        put(headers, "content-type", &object.about.content_type);
        put(headers, "x-oss-object-type", object.kind.word());
        put(headers, "x-oss-storage-class", "Standard");
        for (name, value) in &object.about.meta {
            if let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        let crc = |act: &Act| matches!(act, Act::OssWrongCrc | Act::OssNoCrc);
        match self.faults.take_if(Place::Header, self.action.op(), self.key, crc) {
            Some(Act::OssNoCrc) => {}
            Some(_) => put(headers, "x-oss-hash-crc64ecma", &(!object.crc64).to_string()),
            None => put(headers, "x-oss-hash-crc64ecma", &object.crc64.to_string()),
        }
    }
}

/// Sets a header whose value is known to be one, or was one in a request.
pub(crate) fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn span_with_standard_behaviour_clips_or_refuses() {
        for (range, expected) in [
            ("bytes=0-9", Span::Part(0, 10)),
            ("bytes=9-9", Span::Part(9, 1)),
            ("bytes=5-99", Span::Part(5, 5)),
            ("bytes=5-", Span::Part(5, 5)),
            ("bytes=10-", Span::Unsatisfiable),
            ("bytes=10-12", Span::Unsatisfiable),
            ("bytes=-3", Span::Part(7, 3)),
            ("bytes=-30", Span::Part(0, 10)),
            ("bytes=-0", Span::Unsatisfiable),
            ("bytes=0-1,4-5", Span::Part(0, 2)),
            ("bytes=5-4", Span::Whole),
            ("bytes=12-11", Span::Whole),
            ("bytes=a-b", Span::Whole),
            ("bytes=+1-2", Span::Whole),
            ("bytes=-", Span::Whole),
            ("items=0-1", Span::Whole),
        ] {
            assert_eq!(span(Some(range), true, 10), expected, "{range}");
        }
        assert_eq!(span(Some("bytes=0-"), true, 0), Span::Unsatisfiable);
        assert_eq!(span(None, true, 10), Span::Whole);
    }

    #[test]
    fn span_without_standard_behaviour_ignores_what_is_not_inside() {
        for (range, expected) in [
            ("bytes=0-9", Span::Part(0, 10)),
            ("bytes=5-", Span::Part(5, 5)),
            ("bytes=5-10", Span::Whole),
            ("bytes=10-", Span::Whole),
            ("bytes=-10", Span::Part(0, 10)),
            ("bytes=-11", Span::Whole),
        ] {
            assert_eq!(span(Some(range), false, 10), expected, "{range}");
        }
    }
}
