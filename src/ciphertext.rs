//! The seam in the wall: what the keyed half of cai may ask of the half that touches disk and network.
//!
//! `store` implements [`Ciphertext`] over cached objects, `gocryptfs::LocalDir` over a local directory. `gocryptfs` and
//! `mount` see nothing else of where the bytes come from; the implementers never see a key or a plaintext byte.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::PathBuf;
use std::time::SystemTime;

/// Index of an [`Entry`] in [`Ciphertext::entries`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u32);

/// One object of the ciphertext tree, as it is named there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path relative to the ciphertext root, encrypted names, no leading slash, no `.` or `..`.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Attributes as stored. Object stores have none but the time; the mount decides the rest.
    pub attributes: Attributes,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory. Object stores imply them: every parent of an object is listed as one.
    Directory,
    /// A regular file of `len` ciphertext bytes.
    File {
        /// Ciphertext length in bytes.
        len: u64,
    },
    /// A symbolic link with its encrypted target.
    Symlink {
        /// Target as stored.
        target: Vec<u8>,
    },
    /// A device, fifo or socket: shown, never opened. The value is the whole `st_mode`.
    Special {
        /// Device number for device nodes, else 0.
        rdev: u64,
    },
}

/// POSIX attributes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// `st_mode`, file type bits included; 0 where the source has none.
    pub mode: u32,
    /// Owner, where the source has one.
    pub uid: u32,
    /// Group, where the source has one.
    pub gid: u32,
    /// Number of hard links; 1 where the source has none.
    pub nlink: u32,
    /// Identity shared by hard links of one file (`st_ino`); 0 where the source has none.
    pub ino: u64,
    /// 512-byte blocks allocated (`st_blocks`); 0 where the source has none.
    pub blocks: u64,
    /// Modification time.
    pub mtime: SystemTime,
}

impl Attributes {
    /// Those of an entry of which nothing is known but its time.
    pub fn unknown(mtime: SystemTime) -> Self {
        Attributes { mode: 0, uid: 0, gid: 0, nlink: 1, ino: 0, blocks: 0, mtime }
    }
}

/// Why ciphertext could not be read. Never "short": a read gives every byte asked for, or one of these.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The object is not the one that was listed (replaced or shortened since).
    #[error("object changed since it was listed: {path}")]
    Changed {
        /// Ciphertext path.
        path: String,
    },
    /// The object has been deleted.
    #[error("object deleted since it was listed: {path}")]
    Gone {
        /// Ciphertext path.
        path: String,
    },
    /// No source delivered the bytes before the deadline.
    #[error("no source delivered {path} at offset {offset} in {waited_secs} s")]
    Unavailable {
        /// Ciphertext path.
        path: String,
        /// Ciphertext offset in bytes.
        offset: u64,
        /// How long the read waited, in seconds.
        waited_secs: u64,
    },
    /// The range is not inside the object; a defect in the caller or a file that shrank.
    #[error("range {offset}+{len} is outside {path}")]
    OutOfRange {
        /// Ciphertext path.
        path: String,
        /// Ciphertext offset in bytes.
        offset: u64,
        /// Bytes asked for.
        len: u64,
    },
    /// The local copy cannot be read.
    #[error("reading the local ciphertext of {path}")]
    Io {
        /// Ciphertext path.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A ciphertext tree: listed once, read in ranges.
///
/// Reads block, with a deadline of the implementer's own: call from FUSE or worker threads, never from a tokio worker.
pub trait Ciphertext: Send + Sync + 'static {
    /// Every entry below the root, sorted by path, each directory listed before what it holds. Fixed for the life of the value.
    fn entries(&self) -> &[Entry];

    /// Attributes of the root directory; `None` where the source has none.
    fn root(&self) -> Option<Attributes> {
        None
    }

    /// Names of the extended attributes of `of` as they are stored, `None` being the root directory. A source that keeps
    /// none has none.
    ///
    /// # Errors
    /// Any [`ReadError`].
    fn xattr_names(&self, of: Option<EntryId>) -> Result<Vec<OsString>, ReadError> {
        let _ = of;
        Ok(Vec::new())
    }

    /// The stored value of one extended attribute, at most 64 KiB; `None` when there is none of that name.
    ///
    /// # Errors
    /// Any [`ReadError`].
    fn xattr(&self, of: Option<EntryId>, name: &OsStr) -> Result<Option<Vec<u8>>, ReadError> {
        let _ = (of, name);
        Ok(None)
    }

    /// Fill `buf` with the ciphertext of file `id` from `offset`, completely.
    ///
    /// # Errors
    /// Any [`ReadError`]; `buf` then holds nothing of meaning.
    fn read_at(&self, id: EntryId, offset: u64, buf: &mut [u8]) -> Result<(), ReadError>;

    /// Whether every byte of file `id` can be read without waiting for anybody.
    fn is_complete(&self, id: EntryId) -> bool {
        let _ = id;
        true
    }

    /// The file `id` has been opened and will probably be read whole soon. A hint; returns at once.
    fn will_need(&self, id: EntryId) {
        let _ = id;
    }

    /// The bytes `range` of file `id` did not authenticate. Whether reading them again may give others: a local copy is then
    /// checked, and fetched afresh where it is not what was fetched. A source without an origin behind it says no.
    fn doubt(&self, id: EntryId, range: Range<u64>) -> bool {
        let _ = (id, range);
        false
    }
}

/// What can be told of bytes that came from somebody who is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// They are the file's, all of them.
    Genuine,
    /// They are not.
    Forged,
    /// They may be, and anybody could have made them.
    Unprovable,
}

/// The other way through the wall: the half without keys asks whether bytes are a file's, and hears no more than that.
///
/// Blocking and CPU-bound: call from threads that may block.
pub trait Judge: Send + Sync + 'static {
    /// Bytes in front of a file that every judgement of it needs, [`Ciphertext`]'s own and nobody else's.
    fn head(&self) -> u64;

    /// The smallest range around `range` of a file of `len` bytes that can be judged.
    fn span(&self, len: u64, range: Range<u64>) -> Range<u64>;

    /// Judge `bytes`, which begin at `offset` of a file that begins with `head` and are what [`Judge::span`] says.
    fn judge(&self, head: &[u8], offset: u64, bytes: &[u8]) -> Judgement;
}
