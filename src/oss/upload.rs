//! Uploading: a whole object at once, or in parts; every byte is compared by CRC-64 with what arrived (oss.md 1.6).

use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, ETAG};
use serde::{Deserialize, Serialize};

use super::answer;
use super::client::{Call, Client};
use super::error::OssError;
use crate::store::crc64;

/// Longest answer to an upload request: a few hundred bytes, and a key of 1,023 bytes percent-encoded.
const ANSWER_LIMIT: u64 = 64 << 10;
/// Ciphertext has no better type.
const TYPE: &str = "application/octet-stream";

/// An upload in parts that has begun. Complete or abort it: until then its parts are stored, and billed.
pub struct MultipartUpload<'a> {
    pub(super) client: &'a Client,
    pub(super) key: &'a str,
    pub(super) id: String,
}

/// A part that has arrived.
#[derive(Debug, Clone)]
pub struct UploadedPart {
    /// Its number, from 1.
    pub number: u32,
    /// Its length in bytes.
    pub len: u64,
    /// Its CRC-64.
    pub crc64: u64,
    pub(super) etag: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Initiated {
    upload_id: String,
}

#[derive(Serialize)]
#[serde(rename = "CompleteMultipartUpload")]
struct Complete<'a> {
    #[serde(rename = "Part")]
    parts: Vec<CompletePart<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CompletePart<'a> {
    part_number: u32,
    #[serde(rename = "ETag")]
    etag: &'a str,
}

impl Client {
    /// Store `bytes` as `key`, replacing what is there. Gives their CRC-64.
    ///
    /// # Errors
    /// Any of the transport; `Refused`; `Checksum`.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<u64, OssError> {
        let crc = crc64::of(&bytes);
        let mut call = Call::new(Method::PUT, key, &[]);
        call.headers = vec![(CONTENT_TYPE, TYPE.into())];
        call.body = bytes;
        let answer = self.call(call).await?;
        self.compare(key, crc, answer::crc64(answer.headers()))?;
        Ok(crc)
    }

    /// Begin to store `key` in parts.
    ///
    /// # Errors
    /// Any of the transport; `Refused`; `Xml`.
    pub async fn begin_upload<'a>(&'a self, key: &'a str) -> Result<MultipartUpload<'a>, OssError> {
        let mut call = Call::new(Method::POST, key, &[("uploads", "")]);
        call.headers = vec![(CONTENT_TYPE, TYPE.into())];
        let answer = self.call(call).await?;
        let url = self.url(key);
        let body = self.body(answer.into_body(), ANSWER_LIMIT, &url).await?;
        let parsed = quick_xml::de::from_str(&String::from_utf8_lossy(&body));
        let Initiated { upload_id } = parsed.map_err(|source| OssError::Xml { url, source })?;
        Ok(MultipartUpload { client: self, key, id: upload_id })
    }

    /// The upload `id` to `key` that was begun before, as [`Client::unfinished_uploads`] found it.
    pub fn resume_upload<'a>(&'a self, key: &'a str, id: &str) -> MultipartUpload<'a> {
        MultipartUpload { client: self, key, id: id.to_owned() }
    }

    /// Delete `key`; that there is no such object is a success too.
    ///
    /// # Errors
    /// Any of the transport; `Refused`.
    pub async fn delete(&self, key: &str) -> Result<(), OssError> {
        self.call(Call::new(Method::DELETE, key, &[])).await.map(drop)
    }

    fn compare(&self, key: &str, ours: u64, theirs: Option<u64>) -> Result<(), OssError> {
        let missing = || OssError::BadAnswer { url: self.url(key), what: "checksum", got: "none".into() };
        let theirs = theirs.ok_or_else(missing)?;
        if ours == theirs { Ok(()) } else { Err(OssError::Checksum { key: key.to_owned(), ours, theirs }) }
    }
}

impl MultipartUpload<'_> {
    /// Store part `number` (1..=10,000); all but the last have at least 100 KiB. A part may be sent again.
    ///
    /// # Errors
    /// Any of the transport; `Refused`; `Checksum`.
    pub async fn part(&self, number: u32, bytes: Bytes) -> Result<UploadedPart, OssError> {
        let (crc64, len) = (crc64::of(&bytes), bytes.len() as u64);
        let text = number.to_string();
        let query = [("partNumber", text.as_str()), ("uploadId", &self.id)];
        let mut call = Call::new(Method::PUT, self.key, &query);
        call.body = bytes;
        let answer = self.client.call(call).await?;
        self.client.compare(self.key, crc64, answer::crc64(answer.headers()))?;
        let etag = answer::text(answer.headers(), ETAG.as_str()).to_owned();
        Ok(UploadedPart { number, len, crc64, etag })
    }

    /// Make the object of all `parts`. Gives its CRC-64, which is the one the server has computed.
    ///
    /// # Errors
    /// Any of the transport; `Refused`; `Checksum`, when the object is there but is not what was sent.
    pub async fn complete(&self, mut parts: Vec<UploadedPart>) -> Result<u64, OssError> {
        parts.sort_by_key(|part| part.number);
        let url = self.client.url(self.key);
        let list =
            parts.iter().map(|part| CompletePart { part_number: part.number, etag: &part.etag }).collect();
        let xml = quick_xml::se::to_string(&Complete { parts: list })
            .map_err(|error| OssError::BadAnswer { url, what: "part tag", got: error.to_string() })?;
        let query = [("uploadId", self.id.as_str())];
        let mut call = Call::new(Method::POST, self.key, &query);
        call.headers = vec![(CONTENT_TYPE, "application/xml".into())];
        call.body = Bytes::from(xml);
        let answer = self.client.call(call).await?;
        let crc = crc64::combine(parts.iter().map(|part| (part.crc64, part.len)));
        self.client.compare(self.key, crc, answer::crc64(answer.headers()))?;
        Ok(crc)
    }

    /// Give up and delete the parts.
    ///
    /// # Errors
    /// Any of the transport; `Refused`.
    pub async fn abort(&self) -> Result<(), OssError> {
        let query = [("uploadId", self.id.as_str())];
        self.client.call(Call::new(Method::DELETE, self.key, &query)).await.map(drop)
    }
}
