//! Uploads in parts that were begun and not ended, by whomever: what an interrupted run of ours goes on with.
//!
//! Nothing is kept on the publisher's machine for it: the service knows the parts, and says length and CRC-64 of each.
//! Source: OSS, ListMultipartUploads and ListParts.

use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::client::{Call, Client};
use super::error::OssError;
use super::upload::{MultipartUpload, UploadedPart};

/// Longest page in bytes: 1,000 uploads with keys of 1,023 bytes, percent-encoded; 1,000 parts are far less.
const PAGE_LIMIT: u64 = 4 << 20;
/// Pages that are followed: 100,000 entries, ten times what one upload can have, and more than a publisher leaves behind.
const MAX_PAGES: usize = 100;

/// An upload that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// Key of the object it would become.
    pub key: String,
    /// What the service calls it.
    pub id: String,
    /// When it was begun, as the service writes it: ISO 8601 in UTC, so that text order is time order.
    pub initiated: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Uploads {
    is_truncated: bool,
    #[serde(default)]
    encoding_type: Option<String>,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
    #[serde(default, rename = "Upload")]
    uploads: Vec<Upload>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Parts {
    is_truncated: bool,
    #[serde(default)]
    next_part_number_marker: u32,
    #[serde(default, rename = "Part")]
    parts: Vec<Part>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Part {
    part_number: u32,
    #[serde(rename = "ETag")]
    etag: String,
    #[serde(default)]
    hash_crc64ecma: Option<u64>,
    size: u64,
}

impl Client {
    /// Every upload in parts to a key below `prefix` that was begun and neither completed nor aborted.
    ///
    /// # Errors
    /// Any of the transport; `Refused`; `Xml`, `BadAnswer`.
    pub async fn unfinished_uploads(&self, prefix: &str) -> Result<Vec<Unfinished>, OssError> {
        let (mut found, mut after) = (Vec::new(), (String::new(), String::new()));
        for _ in 0..MAX_PAGES {
            let mut query = vec![("uploads", ""), ("encoding-type", "url"), ("max-uploads", "1000")];
            query.extend(
                [("prefix", prefix), ("key-marker", &after.0), ("upload-id-marker", &after.1)]
                    .into_iter()
                    .filter(|(_, value)| !value.is_empty()),
            );
            let page: Uploads = self.ask("", &query).await?;
            let encoded = page.encoding_type.as_deref() == Some("url");
            for upload in page.uploads {
                let key = self.decode(&upload.key, encoded)?;
                found.push(Unfinished { key, id: upload.upload_id, initiated: upload.initiated });
            }
            let next = (self.decode(&page.next_key_marker, encoded)?, page.next_upload_id_marker);
            if !page.is_truncated {
                return Ok(found);
            }
            if next == after {
                break;
            }
            after = next;
        }
        Err(OssError::BadAnswer { url: self.url(""), what: "end of the list of uploads", got: "none".into() })
    }

    async fn ask<T: for<'de> Deserialize<'de>>(
        &self,
        key: &str,
        query: &[(&str, &str)],
    ) -> Result<T, OssError> {
        let answer = self.call(Call::get(key, query)).await?;
        let url = self.url(key);
        let body = self.body(answer.into_body(), PAGE_LIMIT, &url).await?;
        quick_xml::de::from_str(&String::from_utf8_lossy(&body))
            .map_err(|source| OssError::Xml { url, source })
    }

    /// Text of a list that asked for `encoding-type=url`: percent-encoded once, `+` means itself.
    fn decode(&self, text: &str, encoded: bool) -> Result<String, OssError> {
        if !encoded {
            return Ok(text.to_owned());
        }
        let bad = |_| OssError::BadAnswer { url: self.url(""), what: "key encoding", got: text.to_owned() };
        percent_decode_str(text).decode_utf8().map(String::from).map_err(bad)
    }
}

impl MultipartUpload<'_> {
    /// The parts that are there, by number. Those whose CRC-64 the service does not tell are not among them: nothing else
    /// would prove what they hold.
    ///
    /// # Errors
    /// Any of the transport; `Refused`, with reason `NoSuchKey` when the upload has ended; `Xml`, `BadAnswer`.
    pub async fn parts(&self) -> Result<Vec<UploadedPart>, OssError> {
        let (mut found, mut after) = (Vec::new(), 0);
        for _ in 0..MAX_PAGES {
            let marker = after.to_string();
            let query =
                [("uploadId", self.id.as_str()), ("max-parts", "1000"), ("part-number-marker", &marker)];
            let page: Parts = self.client.ask(self.key, &query).await?;
            found.extend(page.parts.into_iter().filter_map(|part| {
                let Part { part_number: number, etag, hash_crc64ecma, size: len } = part;
                hash_crc64ecma.map(|crc64| UploadedPart { number, len, crc64, etag })
            }));
            if !page.is_truncated {
                return Ok(found);
            }
            if page.next_part_number_marker <= after {
                break;
            }
            after = page.next_part_number_marker;
        }
        let url = self.client.url(self.key);
        Err(OssError::BadAnswer { url, what: "end of the list of parts", got: "none".into() })
    }
}
