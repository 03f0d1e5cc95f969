//! PutObject, DeleteObject and the multipart operations.
//!
//! Owns the checks on uploads: length, `Content-MD5`, part numbers, the list of parts. Bodies stream to disk; file operations
//! run on tokio's blocking pool. Tested in `tests/sandbox_oss_sdk.rs`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;

use crate::oss_error::OssError;
use crate::oss_list::{Xml, parts, uploads};
use crate::oss_read::put;
use crate::oss_request::{Action, Asked};
use crate::oss_store::{About, Kind, Received, Store};
use crate::oss_uploads::MAX_PART_NUMBER;
use crate::wire::{Reply, collect, header, reply};

/// Largest body of a put or a part, in bytes: 5 GiB.
const MAX_PUT_LEN: u64 = 5 << 30;
/// 10,000 parts of some 100 bytes of XML each.
const MAX_LIST_LEN: usize = 2 << 20;

#[derive(Deserialize)]
struct PartList {
    #[serde(rename = "Part", default)]
    parts: Vec<ListedPart>,
}

#[derive(Deserialize)]
struct ListedPart {
    #[serde(rename = "PartNumber")]
    number: u32,
    #[serde(rename = "ETag")]
    etag: String,
}

/// Runs `work` where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, OssError> + Send + 'static,
) -> Result<T, OssError> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|error| OssError::internal(&std::io::Error::other(error)))?
}

fn about(headers: &HeaderMap) -> About {
    let content_type = header(headers, "content-type").unwrap_or("application/octet-stream").to_owned();
    let meta = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-oss-meta-"));
    let meta = meta.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())));
    About { content_type, meta: meta.collect() }
}

async fn receive(store: &Store, headers: &HeaderMap, body: Incoming) -> Result<Received, OssError> {
    match header(headers, "content-length").map(str::parse::<u64>) {
        None if header(headers, "transfer-encoding").is_none() => {
            return Err(OssError::new(
                411,
                "MissingContentLength",
                "",
                "You must provide the Content-Length HTTP header.",
            ));
        }
        Some(Ok(len)) if len > MAX_PUT_LEN => {
            return Err(OssError::new(
                400,
                "EntityTooLarge",
                "",
                "Your proposed upload exceeds the maximum allowed size.",
            ));
        }
        _ => {}
    }
    let incomplete =
        |_| OssError::new(400, "RequestTimeout", "", "The body ended before its announced length.");
    let received = store.receive(body).await.map_err(incomplete)?;
    let claimed = header(headers, "content-md5");
    if claimed.is_some_and(|claimed| claimed != STANDARD.encode(received.md5)) {
        return Err(OssError::new(400, "InvalidDigest", "", "The Content-MD5 you specified was invalid."));
    }
    Ok(received)
}

fn stored(etag: &str, crc64: u64) -> Reply {
    let mut answer = reply(StatusCode::OK, None, "");
    put(answer.headers_mut(), "etag", &format!("\"{etag}\""));
    put(answer.headers_mut(), "x-oss-hash-crc64ecma", &crc64.to_string());
    answer
}

fn document(xml: String) -> Reply {
    reply(StatusCode::OK, Some("application/xml"), xml)
}

async fn put_object(
    store: Arc<Store>,
    key: String,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Reply, OssError> {
    let forbid_overwrite = header(headers, "x-oss-forbid-overwrite") == Some("true");
    if forbid_overwrite && store.contains(&key) {
        let message = "The object you specified already exists and can not be overwritten.";
        return Err(OssError::new(409, "FileAlreadyExists", "", message));
    }
    let received = receive(&store, headers, body).await?;
    let about = about(headers);
    let md5 = STANDARD.encode(received.md5);
    blocking(move || {
        let etag = received.md5_hex();
        let object = store.commit(&key, &received, Kind::Normal, &etag, about);
        let object = object.map_err(|error| OssError::internal(&error))?;
        let mut answer = stored(&object.etag, object.crc64);
        put(answer.headers_mut(), "content-md5", &md5);
        Ok(answer)
    })
    .await
}

async fn put_part(
    store: Arc<Store>,
    asked: Asked,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Reply, OssError> {
    let number = asked.query.get("partNumber").and_then(|text| text.parse().ok());
    let number = number.filter(|number| (1..=MAX_PART_NUMBER).contains(number)).ok_or_else(|| {
        OssError::invalid_argument("", "Part number must be an integer between 1 and 10000.")
    })?;
    let id = asked.query.get("uploadId").unwrap_or_default().to_owned();
    store.upload(&asked.key, &id)?;
    let received = receive(&store, headers, body).await?;
    blocking(move || {
        let part = store.put_part(&id, number, &received)?;
        Ok(stored(&part.etag, part.crc64))
    })
    .await
}

async fn complete(
    store: Arc<Store>,
    asked: Asked,
    bucket: String,
    body: Incoming,
) -> Result<Reply, OssError> {
    let malformed = || OssError::new(400, "MalformedXML", "", "The XML you provided was not well-formed.");
    let list = collect(body, MAX_LIST_LEN).await.ok_or_else(malformed)?;
    let list: PartList = quick_xml::de::from_reader(list.as_ref()).map_err(|_| malformed())?;
    let chosen: Vec<(u32, String)> = list.parts.into_iter().map(|part| (part.number, part.etag)).collect();
    blocking(move || {
        let id = asked.query.get("uploadId").unwrap_or_default();
        let object = store.complete(&asked.key, id, &chosen)?;
        let mut xml = Xml::new("CompleteMultipartUploadResult", &asked.query)?;
        if asked.query.get("encoding-type") == Some("url") {
            xml.put("EncodingType", "url");
        }
        xml.put_name("Location", &format!("/{bucket}/{}", asked.key));
        xml.put("Bucket", &bucket);
        xml.put_name("Key", &asked.key);
        xml.put("ETag", format!("\"{}\"", object.etag));
        let mut answer = document(xml.finish("CompleteMultipartUploadResult"));
        put(answer.headers_mut(), "etag", &format!("\"{}\"", object.etag));
        put(answer.headers_mut(), "x-oss-hash-crc64ecma", &object.crc64.to_string());
        Ok(answer)
    })
    .await
}

fn without_body(store: &Store, asked: &Asked, bucket: &str, about: About) -> Result<Reply, OssError> {
    let id = asked.query.get("uploadId").unwrap_or_default();
    match asked.action {
        Action::Delete => {
            store.remove(&asked.key).map_err(|error| OssError::internal(&error))?;
            Ok(reply(StatusCode::NO_CONTENT, None, ""))
        }
        Action::Abort => {
            store.abort(&asked.key, id)?;
            Ok(reply(StatusCode::NO_CONTENT, None, ""))
        }
        Action::Initiate => {
            let mut xml = Xml::new("InitiateMultipartUploadResult", &asked.query)?;
            if asked.query.get("encoding-type") == Some("url") {
                xml.put("EncodingType", "url");
            }
            xml.put("Bucket", bucket);
            xml.put_name("Key", &asked.key);
            xml.put("UploadId", store.initiate(&asked.key, about)?);
            Ok(document(xml.finish("InitiateMultipartUploadResult")))
        }
        Action::ListParts => {
            let upload = store.upload(&asked.key, id)?;
            Ok(document(parts(bucket, &upload, &store.parts(id)?, &asked.query)?))
        }
        Action::ListUploads => Ok(document(uploads(bucket, &store.uploads()?, &asked.query)?)),
        other => Err(OssError::not_implemented(&format!("{other:?} here"))),
    }
}

/// Answers every action that is not a read of objects.
pub(crate) async fn answer(
    store: Arc<Store>,
    asked: Asked,
    bucket: String,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Reply, OssError> {
    match asked.action {
        Action::Put => put_object(store, asked.key, headers, body).await,
        Action::PutPart => put_part(store, asked, headers, body).await,
        Action::Complete => complete(store, asked, bucket, body).await,
        _ => {
            let about = about(headers);
            blocking(move || without_body(&store, &asked, &bucket, about)).await
        }
    }
}
