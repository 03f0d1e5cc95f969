//! Objects on disk.
//!
//! Owns `STATE/data/ID` (an object's bytes, written once) and `STATE/objects/HASH.json` (key, ETag, CRC-64, type, time, and
//! which data file is the object's). Renaming that sidecar is the commit. The index of all sidecars is in memory, behind one
//! mutex that is held across the few file-system calls of a commit, never across an await or a copy. Everything but
//! [`Store::receive`] blocks. Tested through `tests/sandbox_oss_sdk.rs`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use crc_fast::CrcAlgorithm::Crc64Xz;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::clock::unix_millis;

/// Body pieces between socket and disk: hyper's are at most some 400 KiB, so this stays near 3 MiB per upload.
const PIECES_AHEAD: usize = 8;
/// Copy buffer, in bytes.
const COPY_LEN: usize = 1 << 20;

/// What OSS calls the object's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Normal,
    Multipart,
}

impl Kind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Normal => "Normal",
            Kind::Multipart => "Multipart",
        }
    }
}

/// What the uploader said about the content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) content_type: String,
    /// `x-oss-meta-*`, with the full header name.
    pub(crate) meta: BTreeMap<String, String>,
}

/// One object's sidecar.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Object {
    key: String,
    data: String,
    pub(crate) len: u64,
    /// Without quotes.
    pub(crate) etag: String,
    pub(crate) crc64: u64,
    pub(crate) kind: Kind,
    pub(crate) modified_millis: u64,
    pub(crate) about: About,
}

/// A file that is removed unless it was given a place.
pub(crate) struct Temp {
    path: PathBuf,
    id: String,
}

impl Temp {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        // Absent after a commit; else nothing better can be done about a file that stays.
        let _ = fs::remove_file(&self.path);
    }
}

/// Bytes on disk that are not an object yet.
pub(crate) struct Received {
    pub(crate) temp: Temp,
    pub(crate) len: u64,
    pub(crate) md5: [u8; 16],
    pub(crate) crc64: u64,
}

impl Received {
    /// The MD5 as OSS writes it in ETags.
    pub(crate) fn md5_hex(&self) -> String {
        self.md5.iter().map(|byte| format!("{byte:02X}")).collect()
    }
}

/// How a fault changes an object.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    Invert,
    Truncate(u64),
}

/// The objects of the bucket.
pub(crate) struct Store {
    root: PathBuf,
    index: Mutex<BTreeMap<String, Arc<Object>>>,
}

impl Store {
    /// Opens the store under `root`, creating it when missing; unfinished writes of an earlier run are removed.
    pub(crate) fn open(root: &Path) -> io::Result<Store> {
        let temp = root.join("temp");
        if temp.exists() {
            fs::remove_dir_all(&temp)?;
        }
        for dir in ["data", "objects", "temp", "uploads"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let mut index = BTreeMap::new();
        for entry in fs::read_dir(root.join("objects"))? {
            let object: Object = serde_json::from_slice(&fs::read(entry?.path())?)?;
            index.insert(object.key.clone(), Arc::new(object));
        }
        Ok(Store { root: root.to_owned(), index: Mutex::new(index) })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Object>>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sidecar(&self, key: &str) -> PathBuf {
        let hash: String =
            digest(&SHA256, key.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        self.root.join("objects").join(format!("{hash}.json"))
    }

    /// A new temporary file's name.
    pub(crate) fn temp(&self) -> io::Result<Temp> {
        let id = random_id()?;
        Ok(Temp { path: self.root.join("temp").join(&id), id })
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.index().contains_key(key)
    }

    /// The object and its open data: a later replacement does not touch what is being read.
    pub(crate) fn read(&self, key: &str) -> io::Result<Option<(Arc<Object>, File)>> {
        let index = self.index();
        let Some(object) = index.get(key) else { return Ok(None) };
        let file = File::open(self.root.join("data").join(&object.data))?;
        Ok(Some((object.clone(), file)))
    }

    /// Shows objects with keys after `after` that begin with `prefix`, in byte order, until `visit` breaks.
    pub(crate) fn visit(
        &self,
        after: &str,
        prefix: &str,
        mut visit: impl FnMut(&str, &Arc<Object>) -> ControlFlow<()>,
    ) {
        let index = self.index();
        let start = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let found = index.range::<str, _>((start, Bound::Unbounded));
        for (key, object) in found.take_while(|(key, _)| key.starts_with(prefix)) {
            if visit(key, object).is_break() {
                return;
            }
        }
    }

    /// Makes `received` the object `key`, in place of what was there.
    pub(crate) fn commit(
        &self,
        key: &str,
        received: &Received,
        kind: Kind,
        etag: &str,
        about: About,
    ) -> io::Result<Arc<Object>> {
        let object = Arc::new(Object {
            key: key.to_owned(),
            data: received.temp.id.clone(),
            len: received.len,
            etag: etag.to_owned(),
            crc64: received.crc64,
            kind,
            modified_millis: unix_millis(),
            about,
        });
        let staged = self.temp()?;
        fs::write(staged.path(), serde_json::to_vec(&*object)?)?;
        let mut index = self.index();
        fs::rename(received.temp.path(), self.root.join("data").join(&object.data))?;
        fs::rename(staged.path(), self.sidecar(key))?;
        if let Some(old) = index.insert(key.to_owned(), object.clone()) {
            fs::remove_file(self.root.join("data").join(&old.data))?;
        }
        Ok(object)
    }

    /// Deletes the object, if there is one.
    pub(crate) fn remove(&self, key: &str) -> io::Result<()> {
        let mut index = self.index();
        if let Some(old) = index.remove(key) {
            fs::remove_file(self.sidecar(key))?;
            fs::remove_file(self.root.join("data").join(&old.data))?;
        }
        Ok(())
    }

    /// Replaces the object, if there is one, by a changed copy with its own ETag and CRC.
    pub(crate) fn change(&self, key: &str, change: Change) -> io::Result<()> {
        let Some((object, mut file)) = self.read(key)? else { return Ok(()) };
        let mut writer = Writer::create(self.temp()?)?;
        let mut buffer = vec![0; COPY_LEN];
        let mut left = match change {
            Change::Invert => object.len,
            Change::Truncate(len) => len.min(object.len),
        };
        while left > 0 {
            let take = usize::try_from(left).unwrap_or(COPY_LEN).min(COPY_LEN);
            buffer.resize(take, 0);
            file.read_exact(&mut buffer)?;
            if let Change::Invert = change {
                buffer.iter_mut().for_each(|byte| *byte = !*byte);
            }
            writer.write(&buffer)?;
            left -= u64::try_from(take).unwrap_or(left);
        }
        let received = writer.finish();
        let etag = received.md5_hex();
        self.commit(key, &received, object.kind, &etag, object.about.clone())?;
        Ok(())
    }

    /// Writes a request's body to a temporary file.
    ///
    /// # Errors
    /// The body broke off, or the disk failed.
    pub(crate) async fn receive(&self, mut body: Incoming) -> io::Result<Received> {
        let mut writer = Writer::create(self.temp()?)?;
        let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES_AHEAD);
        let writing = tokio::task::spawn_blocking(move || {
            while let Some(piece) = pieces.blocking_recv() {
                writer.write(&piece)?;
            }
            Ok::<_, io::Error>(writer.finish())
        });
        let mut whole = Ok(());
        while let Some(frame) = body.frame().await {
            let piece = match frame {
                Ok(frame) => frame.into_data(),
                Err(error) => {
                    whole = Err(io::Error::other(error));
                    break;
                }
            };
            // Anything else is a trailer. A writer that is gone has failed and says why below.
            if let Ok(piece) = piece
                && sender.send(piece).await.is_err()
            {
                break;
            }
        }
        drop(sender);
        let received = writing.await.map_err(io::Error::other)??;
        whole.map(|()| received)
    }
}

/// Writes a temporary file and sums it up.
struct Writer {
    file: File,
    temp: Temp,
    len: u64,
    md5: Md5,
    crc64: crc_fast::Digest,
}

impl Writer {
    fn create(temp: Temp) -> io::Result<Writer> {
        let file = File::create_new(temp.path())?;
        Ok(Writer { file, temp, len: 0, md5: Md5::new(), crc64: crc_fast::Digest::new(Crc64Xz) })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.md5.update(bytes);
        self.crc64.update(bytes);
        self.len += u64::try_from(bytes.len()).map_err(io::Error::other)?;
        Ok(())
    }

    fn finish(self) -> Received {
        Received {
            temp: self.temp,
            len: self.len,
            md5: self.md5.finalize().into(),
            crc64: self.crc64.finalize(),
        }
    }
}

/// 32 hexadecimal digits.
pub(crate) fn random_id() -> io::Result<String> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}
