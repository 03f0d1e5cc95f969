//! ListObjectsV2: paging, decoding, and the check that each key can be a file of the model (oss.md 1.2).

use std::path::PathBuf;
use std::time::SystemTime;

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::client::{Call, Client};
use super::error::OssError;
use crate::store::Object;

/// Objects a model may have: hundreds in practice; a wrong prefix is found out before it fills the memory.
const MAX_OBJECTS: usize = 100_000;
/// Longest page in bytes: 1,000 keys of 1,023 bytes, each byte percent-encoded, and half a kilobyte around each.
const PAGE_LIMIT: u64 = 4 << 20;
/// Longest path component. Source: `NAME_MAX` of Linux, and ossfs2.
const NAME_MAX: usize = 255;

#[derive(Debug, Deserialize)]
#[serde(rename = "ListBucketResult", rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_continuation_token: Option<String>,
    #[serde(default)]
    encoding_type: Option<String>,
    #[serde(default)]
    contents: Vec<Contents>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    last_modified: String,
    #[serde(rename = "ETag")]
    etag: String,
    #[serde(rename = "Type", default)]
    kind: String,
    size: u64,
    #[serde(default)]
    storage_class: String,
}

/// One page of a list, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Listing {
    /// The objects, paths relative to the prefix.
    pub objects: Vec<Object>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
}

impl Client {
    /// Every object below `prefix` (empty, or ending in `/`), its path relative to it, in the order of the keys.
    ///
    /// # Errors
    /// Any of the transport; `Refused`; `Archived`, `Key`, `TooMany` for what cannot be a model.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Object>, OssError> {
        let mut objects = Vec::new();
        let mut token = String::new();
        // Each page brings a key or is the last: so many pages cannot be.
        for _ in 0..=MAX_OBJECTS {
            let page = self.list_page(prefix, &token).await?;
            objects.extend(page.objects);
            if objects.len() > MAX_OBJECTS {
                break;
            }
            let Some(next) = page.next else { return Ok(objects) };
            if next == token {
                return Err(bad_list(&self.url(""), "continuation token", next));
            }
            token = next;
        }
        Err(OssError::TooMany { prefix: prefix.to_owned(), limit: MAX_OBJECTS })
    }

    async fn list_page(&self, prefix: &str, token: &str) -> Result<Listing, OssError> {
        let mut query = vec![
            ("list-type", "2"),
            ("encoding-type", "url"),
            ("max-keys", "1000"),
            ("fetch-owner", "false"),
        ];
        query.extend(
            [("prefix", prefix), ("continuation-token", token)]
                .into_iter()
                .filter(|(_, value)| !value.is_empty()),
        );
        let answer = self.call(Call::get("", &query)).await?;
        let url = self.url("");
        let body = self.body(answer.into_body(), PAGE_LIMIT, &url).await?;
        read_page(&url, prefix, &body)
    }
}

/// Read the answer to a list below `prefix`; `url` is for messages. Free of I/O, so that fuzzers reach it.
///
/// # Errors
/// `Xml`, `BadAnswer` for what is no list; `Archived`, `Key` for what cannot be a model.
pub fn read_page(url: &str, prefix: &str, body: &[u8]) -> Result<Listing, OssError> {
    let text = std::str::from_utf8(body).map_err(|_| bad_list(url, "encoding", "not UTF-8".into()))?;
    let page: Page =
        quick_xml::de::from_str(text).map_err(|source| OssError::Xml { url: url.to_owned(), source })?;
    let url_encoded = page.encoding_type.as_deref() == Some("url");
    let mut objects = Vec::new();
    for contents in page.contents {
        let key = decode(url, &contents.key, url_encoded)?;
        if let Some(path) = relative(prefix, &key)? {
            objects.push(object(url, contents, key, path)?);
        }
    }
    if !page.is_truncated {
        return Ok(Listing { objects, next: None });
    }
    let next = decode(url, page.next_continuation_token.as_deref().unwrap_or_default(), url_encoded)?;
    if next.is_empty() {
        return Err(bad_list(url, "continuation token", next));
    }
    Ok(Listing { objects, next: Some(next) })
}

fn object(url: &str, contents: Contents, key: String, path: PathBuf) -> Result<Object, OssError> {
    if ["Archive", "ColdArchive", "DeepColdArchive"].contains(&contents.storage_class.as_str()) {
        return Err(OssError::Archived { key, storage_class: contents.storage_class });
    }
    if contents.kind == "Symlink" {
        return Err(OssError::Key { key, why: "it is an OSS symbolic link" });
    }
    if contents.etag.is_empty() {
        return Err(bad_list(url, "entity tag", key));
    }
    let modified: jiff::Timestamp = contents
        .last_modified
        .parse()
        .map_err(|_| bad_list(url, "modification time", contents.last_modified))?;
    let modified = SystemTime::UNIX_EPOCH.max(modified.into());
    Ok(Object { path, len: contents.size, etag: contents.etag, modified })
}

/// Text of a list that asked for `encoding-type=url`: percent-encoded once, `+` means itself.
fn decode(url: &str, text: &str, url_encoded: bool) -> Result<String, OssError> {
    if !url_encoded {
        return Ok(text.to_owned());
    }
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(String::from).map_err(|_| bad_list(url, "key encoding", text.to_owned()))
}

fn bad_list(url: &str, what: &'static str, got: String) -> OssError {
    OssError::BadAnswer { url: url.to_owned(), what, got }
}

/// Path of `key` below `prefix`; `None` for the markers that some tools leave for directories.
fn relative(prefix: &str, key: &str) -> Result<Option<PathBuf>, OssError> {
    let refuse = |why| Err(OssError::Key { key: key.to_owned(), why });
    let Some(path) = key.strip_prefix(prefix) else {
        return refuse("it is not below the prefix that was asked for");
    };
    if key.ends_with('/') || path.is_empty() {
        return Ok(None);
    }
    for component in path.split('/') {
        match component {
            "" => return refuse("it has an empty component"),
            "." | ".." => return refuse("it has a component that leads elsewhere"),
            name if name.len() > NAME_MAX => return refuse("it has a component longer than 255 bytes"),
            name if name.contains('\0') => return refuse("it contains a zero byte"),
            _ => {}
        }
    }
    Ok(Some(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_markers_are_passed_over() {
        for key in ["m/", "m/sub/", "m/a//"] {
            assert_eq!(relative("m/", key).unwrap(), None, "{key}");
        }
        assert_eq!(relative("m/", "m/sub/x").unwrap(), Some("sub/x".into()));
        assert_eq!(relative("", "x").unwrap(), Some("x".into()));
    }

    #[test]
    fn hostile_keys_are_refused() {
        let long = format!("m/{}", "é".repeat(128));
        for key in ["other/x", "m/../x", "m/a//b", "m//a", "m/./a", "m/..", "m/a\0b", long.as_str()] {
            assert!(matches!(relative("m/", key), Err(OssError::Key { .. })), "{key:?}");
        }
    }
}
