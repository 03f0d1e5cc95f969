//! An in-memory ciphertext directory, and small things sealed with fixed keys and nonces.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::SystemTime;

use cai::ciphertext::{Attributes, Ciphertext, Entry, EntryId, EntryKind, ReadError};
use cai::gocryptfs::content::{FileId, seal_block};
use cai::gocryptfs::names::{DirIv, Names};
use cai::gocryptfs::{Cipher, Features, Keys};
use cai::keyring::Secret;

/// IV of [`Memory`]'s root directory.
pub fn root_iv() -> DirIv {
    DirIv::new([7; 16]).unwrap()
}

pub fn keys() -> Keys {
    keys_with(Features::default())
}

pub fn keys_with(features: Features) -> Keys {
    Keys::from_master(&Secret::copy_of(&[42; 32]).unwrap(), features).unwrap()
}

/// The default features with another content cipher.
pub fn features_of(cipher: Cipher) -> Features {
    Features { cipher, ..Features::default() }
}

pub fn names() -> Names {
    keys().names()
}

/// Stored form of a short name in the root.
pub fn text(name: &str) -> String {
    names().encrypt(&root_iv(), OsStr::new(name)).unwrap().object
}

/// Ciphertext of a file; `id` tells files apart.
pub fn seal(plain: &[u8], id: u8) -> Vec<u8> {
    seal_with(&keys(), plain, id)
}

pub fn seal_with(keys: &Keys, plain: &[u8], id: u8) -> Vec<u8> {
    let (layout, id) = (keys.layout(), FileId::new([id; 16]).unwrap());
    let mut sealed = if plain.is_empty() { Vec::new() } else { id.to_header().to_vec() };
    for (block, plain) in (0_u64..).zip(plain.chunks(4096)) {
        let mut nonce = vec![0x11; layout.nonce()];
        nonce[..8].copy_from_slice(&block.to_le_bytes());
        let mut piece = vec![0; plain.len() + layout.overhead()];
        seal_block(keys, id, block, &nonce, plain, &mut piece).unwrap();
        sealed.extend_from_slice(&piece);
    }
    sealed
}

/// A ciphertext tree in memory that remembers what was read of it.
pub struct Memory {
    entries: Vec<Entry>,
    contents: Vec<Vec<u8>>,
    xattrs: BTreeMap<PathBuf, BTreeMap<OsString, Vec<u8>>>,
    reads: Mutex<Vec<(u64, u64)>>,
    failing: bool,
}

impl Memory {
    /// With a `gocryptfs.diriv` in the root.
    pub fn new() -> Self {
        Memory::bare().file("gocryptfs.diriv", root_iv().as_bytes().to_vec())
    }

    pub fn bare() -> Self {
        Memory {
            entries: Vec::new(),
            contents: Vec::new(),
            xattrs: BTreeMap::new(),
            reads: Mutex::default(),
            failing: false,
        }
    }

    pub fn file(self, path: &str, content: Vec<u8>) -> Self {
        self.unsorted_file(path, content).sorted()
    }

    pub fn directory(self, path: &str) -> Self {
        self.unsorted_directory(path).sorted()
    }

    pub fn symlink(mut self, path: &str, target: &[u8]) -> Self {
        self.push(path, EntryKind::Symlink { target: target.to_vec() }, Vec::new());
        self.sorted()
    }

    /// An extended attribute as stored; the empty path is the root.
    pub fn xattr(mut self, path: &str, name: &str, value: &[u8]) -> Self {
        self.set_xattr(path, name, value);
        self
    }

    pub fn set_xattr(&mut self, path: &str, name: &str, value: &[u8]) {
        self.xattrs.entry(path.into()).or_default().insert(name.into(), value.to_vec());
    }

    fn xattrs_of(&self, of: Option<EntryId>) -> Option<&BTreeMap<OsString, Vec<u8>>> {
        self.xattrs.get(&of.map(|id| self.entries[id.0 as usize].path.clone()).unwrap_or_default())
    }

    pub fn unsorted_file(mut self, path: &str, content: Vec<u8>) -> Self {
        let len = u64::try_from(content.len()).unwrap();
        self.push(path, EntryKind::File { len }, content);
        self
    }

    pub fn unsorted_directory(mut self, path: &str) -> Self {
        self.push(path, EntryKind::Directory, Vec::new());
        self
    }

    pub fn push(&mut self, path: &str, kind: EntryKind, content: Vec<u8>) {
        let mtime = SystemTime::UNIX_EPOCH;
        let attributes = Attributes { mode: 0, uid: 0, gid: 0, nlink: 1, ino: 0, blocks: 0, mtime };
        self.push_with(path, kind, content, attributes);
    }

    pub fn push_with(&mut self, path: &str, kind: EntryKind, content: Vec<u8>, attributes: Attributes) {
        self.entries.push(Entry { path: PathBuf::from(path), kind, attributes });
        self.contents.push(content);
    }

    /// In the order the trait asks for.
    pub fn sorted(mut self) -> Self {
        let mut both: Vec<_> = self.entries.into_iter().zip(self.contents).collect();
        both.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
        (self.entries, self.contents) = both.into_iter().unzip();
        self
    }

    /// From now on no read succeeds.
    pub fn failing(mut self) -> Self {
        self.failing = true;
        self
    }

    /// Offset and length of every read so far.
    pub fn reads(&self) -> Vec<(u64, u64)> {
        self.reads.lock().unwrap().clone()
    }
}

impl Ciphertext for Memory {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn xattr_names(&self, of: Option<EntryId>) -> Result<Vec<OsString>, ReadError> {
        if self.failing {
            return Err(ReadError::Gone { path: String::new() });
        }
        Ok(self.xattrs_of(of).map(|found| found.keys().cloned().collect()).unwrap_or_default())
    }

    fn xattr(&self, of: Option<EntryId>, name: &OsStr) -> Result<Option<Vec<u8>>, ReadError> {
        if self.failing {
            return Err(ReadError::Gone { path: String::new() });
        }
        Ok(self.xattrs_of(of).and_then(|found| found.get(name).cloned()))
    }

    fn read_at(&self, id: EntryId, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let path = self.entries[id.0 as usize].path.display().to_string();
        let len = u64::try_from(buf.len()).unwrap();
        if self.failing {
            return Err(ReadError::Unavailable { path, offset, waited_secs: 0 });
        }
        self.reads.lock().unwrap().push((offset, len));
        let start = usize::try_from(offset).unwrap();
        let content = &self.contents[id.0 as usize];
        match content.get(start..start + buf.len()) {
            Some(bytes) => buf.copy_from_slice(bytes),
            None => return Err(ReadError::OutOfRange { path, offset, len }),
        }
        Ok(())
    }
}
