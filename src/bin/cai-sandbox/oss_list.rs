//! Listings: objects (version 2 and version 1), parts, uploads; and the other XML answers.
//!
//! Owns paging, the rolling up of keys into common prefixes, `encoding-type=url`, and the documents' form. Stateless.
//! Tested below and in `tests/sandbox_oss_sdk.rs`.
//!
//! Source: `oss.md` 1.2.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quick_xml::escape::escape;

use crate::clock::iso_millis;
use crate::oss_error::OssError;
use crate::oss_request::Query;
use crate::oss_store::{Object, Store};
use crate::oss_uploads::{Part, Upload};

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const DEFAULT_KEYS: usize = 100;
const MOST_KEYS: usize = 1000;
const OWNER: &str = "0022012";

/// A document being written.
pub(crate) struct Xml {
    text: String,
    url_encoded: bool,
}

impl Xml {
    pub(crate) fn new(root: &str, query: &Query) -> Result<Xml, OssError> {
        let url_encoded = match query.get("encoding-type") {
            None | Some("") => false,
            Some("url") => true,
            Some(_) => {
                return Err(OssError::invalid_argument("", "Invalid Encoding Method specified in Request."));
            }
        };
        Ok(Xml { text: format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root}>\n"), url_encoded })
    }

    fn raw(&mut self, markup: &str) {
        self.text.push_str(markup);
    }

    pub(crate) fn put(&mut self, name: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "<{name}>{}</{name}>", escape(value.to_string()));
    }

    /// A key, prefix, delimiter or marker, which `encoding-type=url` concerns.
    pub(crate) fn put_name(&mut self, name: &str, value: &str) {
        if self.url_encoded {
            self.put(name, utf8_percent_encode(value, ESCAPED));
        } else {
            self.put(name, value);
        }
    }

    pub(crate) fn finish(mut self, root: &str) -> String {
        self.text.push_str(&format!("</{root}>\n"));
        self.text
    }
}

fn count(query: &Query, name: &str, default: usize) -> Result<usize, OssError> {
    match query.get(name) {
        None | Some("") => Ok(default),
        Some(text) => text.parse().ok().filter(|n| (1..=MOST_KEYS).contains(n)).ok_or_else(|| {
            OssError::invalid_argument("", &format!("Argument {name} must be an integer from 1 to 1000."))
        }),
    }
}

enum Found {
    Object(Arc<Object>),
    Prefix,
}

/// The entries of one page in byte order, and whether there are more.
fn page(
    store: &Store,
    prefix: &str,
    delimiter: &str,
    after: &str,
    limit: usize,
) -> (BTreeMap<String, Found>, bool) {
    let mut entries = BTreeMap::new();
    let mut truncated = false;
    store.visit(after, prefix, |key, object| {
        let rest = key.get(prefix.len()..).unwrap_or_default();
        let rolled = Some(delimiter)
            .filter(|d| !d.is_empty())
            .and_then(|d| rest.find(d).map(|at| at + d.len()))
            .and_then(|len| key.get(..prefix.len() + len));
        let (name, found) = match rolled {
            // Given on the page before, of which it was the last entry.
            Some(rolled) if rolled == after => return ControlFlow::Continue(()),
            Some(rolled) => (rolled, Found::Prefix),
            None => (key, Found::Object(object.clone())),
        };
        if entries.len() == limit && !entries.contains_key(name) {
            truncated = true;
            return ControlFlow::Break(());
        }
        entries.insert(name.to_owned(), found);
        ControlFlow::Continue(())
    });
    (entries, truncated)
}

fn decode_token(token: &str) -> Result<String, OssError> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| OssError::invalid_argument("", "The continuation token is invalid."))
}

/// `GET` on the bucket.
pub(crate) fn objects(store: &Store, bucket: &str, query: &Query) -> Result<String, OssError> {
    let is_v2 = match query.get("list-type") {
        Some("2") => true,
        None => false,
        Some(_) => return Err(OssError::invalid_argument("", "Argument list-type must be 2.")),
    };
    let text = |name| query.get(name).unwrap_or_default();
    let (prefix, delimiter, token) = (text("prefix"), text("delimiter"), text("continuation-token"));
    let limit = count(query, "max-keys", DEFAULT_KEYS)?;
    let after = match (is_v2, token) {
        (true, "") => text("start-after").to_owned(),
        (true, token) => decode_token(token)?,
        (false, _) => text("marker").to_owned(),
    };
    let (entries, truncated) = page(store, prefix, delimiter, &after, limit);

    let mut xml = Xml::new("ListBucketResult", query)?;
    xml.put("Name", bucket);
    xml.put_name("Prefix", prefix);
    xml.put("MaxKeys", limit);
    xml.put_name("Delimiter", delimiter);
    if xml.url_encoded {
        xml.put("EncodingType", "url");
    }
    xml.put("IsTruncated", truncated);
    if is_v2 {
        xml.put_name("StartAfter", text("start-after"));
        xml.put("KeyCount", entries.len());
    } else {
        xml.put_name("Marker", &after);
    }
    if let Some((last, _)) = entries.last_key_value().filter(|_| truncated) {
        if is_v2 {
            xml.put_name("NextContinuationToken", &URL_SAFE_NO_PAD.encode(last));
        } else {
            xml.put_name("NextMarker", last);
        }
    }
    let with_owner = !is_v2 || query.get("fetch-owner") == Some("true");
    for (name, found) in &entries {
        match found {
            Found::Object(object) => put_object(&mut xml, name, object, with_owner),
            Found::Prefix => {
                xml.raw("<CommonPrefixes>");
                xml.put_name("Prefix", name);
                xml.raw("</CommonPrefixes>\n");
            }
        }
    }
    Ok(xml.finish("ListBucketResult"))
}

fn put_object(xml: &mut Xml, key: &str, object: &Object, with_owner: bool) {
    xml.raw("<Contents>\n");
    xml.put_name("Key", key);
    xml.put("LastModified", iso_millis(object.modified_millis));
    xml.put("ETag", format!("\"{}\"", object.etag));
    xml.put("Type", object.kind.word());
    xml.put("Size", object.len);
    xml.put("StorageClass", "Standard");
    if with_owner {
        xml.raw("<Owner>\n");
        xml.put("ID", OWNER);
        xml.put("DisplayName", OWNER);
        xml.raw("</Owner>\n");
    }
    xml.raw("</Contents>\n");
}

/// `GET ?uploadId` on an object.
pub(crate) fn parts(
    bucket: &str,
    upload: &Upload,
    parts: &[Part],
    query: &Query,
) -> Result<String, OssError> {
    let limit = count(query, "max-parts", MOST_KEYS)?;
    let after: u32 = match query.get("part-number-marker").unwrap_or_default() {
        "" => 0,
        text => text.parse().map_err(|_| OssError::invalid_argument("", "Invalid part-number-marker."))?,
    };
    let rest: Vec<&Part> = parts.iter().filter(|part| part.number > after).collect();
    let page: Vec<&Part> = rest.iter().take(limit).copied().collect();
    let mut xml = Xml::new("ListPartsResult", query)?;
    xml.put("Bucket", bucket);
    xml.put_name("Key", &upload.key);
    xml.put("UploadId", &upload.id);
    xml.put("StorageClass", "Standard");
    xml.put("PartNumberMarker", after);
    xml.put("NextPartNumberMarker", page.last().map_or(after, |part| part.number));
    xml.put("MaxParts", limit);
    xml.put("IsTruncated", rest.len() > page.len());
    for part in page {
        xml.raw("<Part>\n");
        xml.put("PartNumber", part.number);
        xml.put("LastModified", iso_millis(part.modified_millis));
        xml.put("ETag", format!("\"{}\"", part.etag));
        xml.put("HashCrc64ecma", part.crc64);
        xml.put("Size", part.len);
        xml.raw("</Part>\n");
    }
    Ok(xml.finish("ListPartsResult"))
}

/// `GET ?uploads` on the bucket. The delimiter is not implemented.
pub(crate) fn uploads(bucket: &str, uploads: &[Upload], query: &Query) -> Result<String, OssError> {
    if query.get("delimiter").is_some_and(|d| !d.is_empty()) {
        return Err(OssError::not_implemented("a delimiter for uploads"));
    }
    let text = |name| query.get(name).unwrap_or_default();
    let limit = count(query, "max-uploads", MOST_KEYS)?;
    let after = (text("key-marker"), text("upload-id-marker"));
    let is_next = |upload: &&Upload| {
        upload.key.starts_with(text("prefix"))
            && if after.1.is_empty() {
                upload.key.as_str() > after.0
            } else {
                (upload.key.as_str(), upload.id.as_str()) > after
            }
    };
    let rest: Vec<&Upload> = uploads.iter().filter(is_next).collect();
    let page: Vec<&Upload> = rest.iter().take(limit).copied().collect();
    let mut xml = Xml::new("ListMultipartUploadsResult", query)?;
    xml.put("Bucket", bucket);
    if xml.url_encoded {
        xml.put("EncodingType", "url");
    }
    xml.put_name("KeyMarker", after.0);
    xml.put("UploadIdMarker", after.1);
    xml.put_name("NextKeyMarker", page.last().map_or("", |upload| &upload.key));
    xml.put("NextUploadIdMarker", page.last().map_or("", |upload| &upload.id));
    xml.put_name("Delimiter", "");
    xml.put_name("Prefix", text("prefix"));
    xml.put("MaxUploads", limit);
    xml.put("IsTruncated", rest.len() > page.len());
    for upload in page {
        xml.raw("<Upload>\n");
        xml.put_name("Key", &upload.key);
        xml.put("UploadId", &upload.id);
        xml.put("StorageClass", "Standard");
        xml.put("Initiated", iso_millis(upload.initiated_millis));
        xml.raw("</Upload>\n");
    }
    Ok(xml.finish("ListMultipartUploadsResult"))
}
