//! Multipart uploads in progress.
//!
//! Owns `STATE/uploads/ID/`: `upload.json`, and per part its bytes and a sidecar. Nothing of it is in memory, so an upload
//! survives a restart of the sandbox. Everything here blocks. Tested through `tests/sandbox_oss_sdk.rs`.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crc_fast::CrcAlgorithm::Crc64Xz;
use crc_fast::checksum_combine;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};

use crate::clock::unix_millis;
use crate::oss_error::OssError;
use crate::oss_store::{About, Kind, Object, Received, Store, random_id};

/// Every part but the last must have this many bytes.
const MIN_PART_LEN: u64 = 100 * 1024;
pub(crate) const MAX_PART_NUMBER: u32 = 10_000;

#[derive(Serialize, Deserialize)]
pub(crate) struct Upload {
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) key: String,
    pub(crate) initiated_millis: u64,
    about: About,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) len: u64,
    pub(crate) etag: String,
    pub(crate) crc64: u64,
    pub(crate) modified_millis: u64,
}

fn failed(error: io::Error) -> OssError {
    OssError::internal(&error)
}

impl Store {
    fn upload_dir(&self, id: &str) -> PathBuf {
        self.root().join("uploads").join(id)
    }

    fn part_data(&self, id: &str, number: u32) -> PathBuf {
        self.upload_dir(id).join(format!("{number:05}.data"))
    }

    /// Starts an upload and returns its id.
    pub(crate) fn initiate(&self, key: &str, about: About) -> Result<String, OssError> {
        let id = random_id().map_err(failed)?.to_ascii_uppercase();
        let upload = Upload { id: id.clone(), key: key.to_owned(), initiated_millis: unix_millis(), about };
        let text = serde_json::to_vec(&upload).map_err(|error| failed(error.into()))?;
        fs::create_dir(self.upload_dir(&id)).map_err(failed)?;
        fs::write(self.upload_dir(&id).join("upload.json"), text).map_err(failed)?;
        Ok(id)
    }

    /// The upload `id` of `key`.
    pub(crate) fn upload(&self, key: &str, id: &str) -> Result<Upload, OssError> {
        // The id becomes a path: nothing but what `initiate` makes.
        if id.len() != 32 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(OssError::no_such_upload());
        }
        let text =
            fs::read(self.upload_dir(id).join("upload.json")).map_err(|_| OssError::no_such_upload())?;
        let upload: Upload = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        if upload.key == key { Ok(upload) } else { Err(OssError::no_such_upload()) }
    }

    /// All uploads, by key and then by id.
    pub(crate) fn uploads(&self) -> Result<Vec<Upload>, OssError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root().join("uploads")).map_err(failed)? {
            let path = entry.map_err(failed)?.path().join("upload.json");
            // One that ends while we look is not there any more.
            let Ok(text) = fs::read(path) else { continue };
            found.push(serde_json::from_slice::<Upload>(&text).map_err(|error| failed(error.into()))?);
        }
        found.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
        Ok(found)
    }

    /// Stores a part, in place of an earlier one with its number.
    pub(crate) fn put_part(&self, id: &str, number: u32, received: &Received) -> Result<Part, OssError> {
        let part = Part {
            number,
            len: received.len,
            etag: received.md5_hex(),
            crc64: received.crc64,
            modified_millis: unix_millis(),
        };
        let text = serde_json::to_vec(&part).map_err(|error| failed(error.into()))?;
        fs::rename(received.temp.path(), self.part_data(id, number)).map_err(failed)?;
        fs::write(self.upload_dir(id).join(format!("{number:05}.json")), text).map_err(failed)?;
        Ok(part)
    }

    /// The parts of an upload, by number.
    pub(crate) fn parts(&self, id: &str) -> Result<Vec<Part>, OssError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.upload_dir(id)).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_part = path.extension().is_some_and(|e| e == "json")
                && path.file_name().is_some_and(|name| name != "upload.json");
            if is_part {
                let text = fs::read(path).map_err(failed)?;
                found.push(serde_json::from_slice::<Part>(&text).map_err(|error| failed(error.into()))?);
            }
        }
        found.sort_by_key(|part| part.number);
        Ok(found)
    }

    /// Makes the object from the parts `chosen` (number and ETag, in the client's order).
    pub(crate) fn complete(
        &self,
        key: &str,
        id: &str,
        chosen: &[(u32, String)],
    ) -> Result<Arc<Object>, OssError> {
        let upload = self.upload(key, id)?;
        if !chosen.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(OssError::new(
                400,
                "InvalidPartOrder",
                "",
                "The list of parts was not in ascending order.",
            ));
        }
        let stored = self.parts(id)?;
        let mut parts = Vec::new();
        for (number, etag) in chosen {
            let part =
                stored.iter().find(|part| part.number == *number && part.etag == etag.trim_matches('"'));
            parts.push(part.cloned().ok_or_else(|| {
                OssError::new(
                    400,
                    "InvalidPart",
                    "",
                    "One or more of the specified parts could not be found.",
                )
            })?);
        }
        let Some((_, all_but_last)) = parts.split_last() else {
            return Err(OssError::new(400, "MalformedXML", "", "The list of parts is empty."));
        };
        if all_but_last.iter().any(|part| part.len < MIN_PART_LEN) {
            return Err(OssError::new(
                400,
                "EntityTooSmall",
                "",
                "A part is smaller than the minimum allowed size.",
            ));
        }
        let received = self.assemble(id, &parts).map_err(failed)?;
        let etag = format!("{}-{}", received.md5_hex(), parts.len());
        let object = self.commit(key, &received, Kind::Multipart, &etag, upload.about).map_err(failed)?;
        fs::remove_dir_all(self.upload_dir(id)).map_err(failed)?;
        Ok(object)
    }

    /// Joins the parts; the CRC is combined from theirs. The MD5 is of their ETags, which makes an opaque ETag.
    fn assemble(&self, id: &str, parts: &[Part]) -> io::Result<Received> {
        let temp = self.temp()?;
        let mut whole = OpenOptions::new().write(true).create_new(true).open(temp.path())?;
        let (mut len, mut crc64, mut md5) = (0, crc_fast::checksum(Crc64Xz, b""), Md5::new());
        for part in parts {
            let mut data = fs::File::open(self.part_data(id, part.number))?;
            // In the kernel (copy_file_range), so a large model costs no trip through memory.
            io::copy(&mut data, &mut whole)?;
            len += part.len;
            crc64 = checksum_combine(Crc64Xz, crc64, part.crc64, part.len);
            md5.update(part.etag.as_bytes());
        }
        Ok(Received { temp, len, md5: md5.finalize().into(), crc64 })
    }

    /// Forgets an upload and its parts.
    pub(crate) fn abort(&self, key: &str, id: &str) -> Result<(), OssError> {
        self.upload(key, id)?;
        fs::remove_dir_all(self.upload_dir(id)).map_err(failed)
    }
}
