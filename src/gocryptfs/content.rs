//! File content: reading any range of a ciphertext file, opening and sealing single blocks, symlink targets and
//! extended attribute values.
//!
//! Each block is bound to its file and position by its associated data (block number, file id), so a swapped, moved or
//! changed block is refused. Three things the format itself lets pass: a file cut at a block border, an older state of the
//! same block of the same file, and a full block of zeros, which is a hole.
//!
//! Threads: a [`FileReader`] is shared by all readers of a file; its only state is the header, set once.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;

use super::keys::Keys;
use super::layout::{BLOCK, FILE_ID, HEADER, VERSION, block_of, offset_in_block};
use super::names::base64;
use super::tree::{Kind, NodeId, Tree};
use crate::ciphertext::{Ciphertext, EntryId, ReadError};
use crate::error::{ErrorClass, Fault};

/// Symlink targets and attribute values are sealed as block 0 of no file: the block number is all the associated data.
const NO_FILE: &[u8; 8] = &[0; 8];
/// Longest plaintext target: what gocryptfs takes, since `PATH_MAX` bounds the stored form.
pub const LONGEST_TARGET: usize = 3039;

/// Plaintext bytes that are read and opened at a time, a whole number of blocks: ciphertext and plaintext of it fit into a
/// core's second-level cache (512 KiB and more) together.
const PIECE: usize = 32 * BLOCK;

/// What is wrong with a piece of ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file header names a version that does not exist.
    #[error("file header has version {found}")]
    HeaderVersion {
        /// Version found.
        found: u16,
    },
    /// The file header has no id.
    #[error("file header has an all-zero id")]
    ZeroFileId,
    /// The block has no nonce and is not a hole.
    #[error("block has an all-zero nonce")]
    ZeroNonce,
    /// The last block is too short to hold a byte.
    #[error("block is too short")]
    TooShort,
    /// The tag does not match: changed, swapped, moved, cut, or another key.
    #[error("block does not authenticate")]
    Tag,
    /// A symlink target that is not canonical base64url, padded or unpadded as the directory has it.
    #[error("symlink target is not base64url")]
    NotBase64,
    /// A symlink target that no file system would hold.
    #[error("symlink target is empty, too long, or has a NUL in it")]
    IllegalTarget,
}

/// Why plaintext could not be read. There is never less plaintext than asked for without one of these, but at the end.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The ciphertext could not be read.
    #[error("reading ciphertext")]
    Read(#[from] ReadError),
    /// The ciphertext is not what was encrypted.
    #[error("block {block} is corrupt")]
    Corrupt {
        /// Block number, from 0; damage in the file header is counted to block 0.
        block: u64,
        /// What is wrong with it.
        #[source]
        what: Damage,
    },
}

impl Fault for ContentError {
    fn class(&self) -> ErrorClass {
        match self {
            ContentError::Read(source) => read_class(source),
            ContentError::Corrupt { .. } => ErrorClass::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ContentError::Read(_) => "content.read",
            ContentError::Corrupt { .. } => "content.corrupt",
        }
    }

    fn hint(&self) -> String {
        match self {
            ContentError::Read(_) => "check that the ciphertext can be reached and has not been replaced",
            ContentError::Corrupt { .. } => {
                "the ciphertext was changed or damaged: upload the encrypted model again"
            }
        }
        .to_owned()
    }
}

/// The class of a failed ciphertext read.
pub(super) fn read_class(error: &ReadError) -> ErrorClass {
    match error {
        ReadError::Changed { .. } | ReadError::Gone { .. } => ErrorClass::Corrupt,
        ReadError::Unavailable { .. } | ReadError::Io { .. } => ErrorClass::Transient,
        ReadError::OutOfRange { .. } => ErrorClass::Internal,
    }
}

/// Random identity of one file's content, never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId([u8; FILE_ID]);

impl FileId {
    /// The id in these bytes; `None` when all are zero.
    pub fn new(bytes: [u8; FILE_ID]) -> Option<FileId> {
        (bytes != [0; FILE_ID]).then_some(FileId(bytes))
    }

    /// The file header with this id.
    pub fn to_header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let bytes = VERSION.to_be_bytes().into_iter().chain(self.0);
        header.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        header
    }

    /// The id in a file header.
    ///
    /// # Errors
    /// [`Damage::HeaderVersion`], [`Damage::ZeroFileId`].
    pub fn from_header(header: &[u8; HEADER]) -> Result<FileId, Damage> {
        let [high, low, id @ ..] = *header;
        let found = u16::from_be_bytes([high, low]);
        if found != VERSION {
            return Err(Damage::HeaderVersion { found });
        }
        FileId::new(id).ok_or(Damage::ZeroFileId)
    }

    /// Associated data of block `block`: its number, then the id.
    fn associated(self, block: u64) -> [u8; 8 + FILE_ID] {
        let mut data = [0; 8 + FILE_ID];
        let (number, id) = data.split_at_mut(8);
        number.copy_from_slice(&block.to_be_bytes());
        id.copy_from_slice(&self.0);
        data
    }
}

/// Open block `block` of file `id` straight into `out`, which is [`Layout::overhead`](super::layout::Layout::overhead)
/// shorter than `sealed`.
///
/// # Errors
/// [`Damage`]; `out` then holds no plaintext.
pub fn open_block(keys: &Keys, id: FileId, block: u64, sealed: &[u8], out: &mut [u8]) -> Result<(), Damage> {
    let layout = keys.layout();
    if sealed.len() <= layout.overhead() {
        return Err(Damage::TooShort);
    }
    if sealed.iter().take(layout.nonce()).all(|&byte| byte == 0) {
        if sealed.len() != layout.sealed_block() || sealed.iter().any(|&byte| byte != 0) {
            return Err(Damage::ZeroNonce);
        }
        out.fill(0);
        return Ok(());
    }
    keys.content().open(&id.associated(block), sealed, out)
}

/// The plaintext has not 1 to 4096 bytes, the buffer for its ciphertext is not longer by the
/// cipher's overhead, or the nonce has not the cipher's length.
#[derive(Debug, thiserror::Error)]
#[error("a block of {plain} bytes does not seal into {sealed}")]
pub struct BadBlock {
    /// Bytes of plaintext.
    pub plain: usize,
    /// Bytes of the buffer.
    pub sealed: usize,
}

/// Seal `plain` (1 to 4096 bytes) as block `block` of file `id` into `sealed`. The nonce must be fresh and random.
///
/// # Errors
/// [`BadBlock`] when the lengths do not fit.
pub fn seal_block(
    keys: &Keys,
    id: FileId,
    block: u64,
    nonce: &[u8],
    plain: &[u8],
    sealed: &mut [u8],
) -> Result<(), BadBlock> {
    let bad = BadBlock { plain: plain.len(), sealed: sealed.len() };
    if !(1..=BLOCK).contains(&plain.len()) {
        return Err(bad);
    }
    keys.content().seal(nonce, &id.associated(block), plain, sealed).ok_or(bad)
}

/// Seal a symlink target of 1 to 3039 bytes. The nonce must be fresh and random.
///
/// # Errors
/// [`Damage::IllegalTarget`].
pub fn seal_target(keys: &Keys, nonce: &[u8], target: &OsStr) -> Result<String, Damage> {
    let plain = target.as_bytes();
    if !(1..=LONGEST_TARGET).contains(&plain.len()) || plain.contains(&0) {
        return Err(Damage::IllegalTarget);
    }
    let mut sealed = vec![0; plain.len() + keys.layout().overhead()];
    keys.content().seal(nonce, NO_FILE, plain, &mut sealed).ok_or(Damage::IllegalTarget)?;
    Ok(base64(&keys.features()).encode(sealed))
}

/// Open a stored symlink target.
///
/// # Errors
/// [`Damage`].
pub fn open_target(keys: &Keys, stored: &[u8]) -> Result<OsString, Damage> {
    let sealed = base64(&keys.features()).decode(stored).map_err(|_| Damage::NotBase64)?;
    let target = open_piece(keys, &sealed)?;
    if !(1..=LONGEST_TARGET).contains(&target.len()) || target.contains(&0) {
        return Err(Damage::IllegalTarget);
    }
    Ok(OsString::from_vec(target))
}

/// Open the stored value of an extended attribute. An empty one is stored as it is, and early versions stored base64.
///
/// # Errors
/// [`Damage`].
pub fn open_value(keys: &Keys, stored: &[u8]) -> Result<Vec<u8>, Damage> {
    if stored.is_empty() {
        return Ok(Vec::new());
    }
    open_piece(keys, stored).or_else(|damage| {
        let sealed = base64(&keys.features()).decode(stored).map_err(|_| damage)?;
        open_piece(keys, &sealed)
    })
}

/// Open what is sealed outside of any file.
fn open_piece(keys: &Keys, sealed: &[u8]) -> Result<Vec<u8>, Damage> {
    let len = sealed.len().checked_sub(keys.layout().overhead()).ok_or(Damage::TooShort)?;
    let mut plain = vec![0; len];
    keys.content().open(NO_FILE, sealed, &mut plain)?;
    Ok(plain)
}

/// Plaintext bytes that readers of this process have opened, and how long that took, nanoseconds.
static OPENED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Once for a piece: two looks at the clock for 128 KiB.
fn note_opened(bytes: usize, took: Duration) {
    let [count, nanos] = &OPENED;
    count.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Plaintext bytes that readers of this process have opened since it began, and how long that took, of all threads together.
pub fn opened() -> (u64, Duration) {
    let [count, nanos] = OPENED.each_ref().map(|counter| counter.load(Ordering::Relaxed));
    (count, Duration::from_nanos(nanos))
}

/// Reads the plaintext of one file; shared by everyone who has it open.
pub struct FileReader {
    entry: EntryId,
    cipher_len: u64,
    plain_len: u64,
    id: OnceLock<FileId>,
}

impl FileReader {
    /// A reader of `node`; `None` when that is not a regular file.
    pub fn new(tree: &Tree, node: NodeId) -> Option<FileReader> {
        let node = tree.node(node)?;
        let Kind::File { plain_len, cipher_len } = node.kind else { return None };
        Some(FileReader { entry: node.entry?, cipher_len, plain_len, id: OnceLock::new() })
    }

    /// The ciphertext entry read from, for hints such as [`Ciphertext::will_need`].
    pub fn entry(&self) -> EntryId {
        self.entry
    }

    /// Read plaintext from `offset` into `out`; the count is short only at the end of the file, 0 behind it.
    ///
    /// Ciphertext is read and opened in pieces of 128 KiB, so that both sides of a piece stay in a core's own cache; whole
    /// blocks are opened straight into `out`. Where a source has to wait for bytes it is asked for all of them at once. The
    /// file's first read needs one more for the header. `scratch` holds the ciphertext of a piece: keep it between reads, it keeps
    /// at most 134 KiB.
    ///
    /// # Errors
    /// [`ContentError`]; `out` then holds nothing of meaning.
    pub fn read(
        &self,
        source: &dyn Ciphertext,
        keys: &Keys,
        offset: u64,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<usize, ContentError> {
        let left = self.plain_len.saturating_sub(offset);
        let count = usize::try_from(left).map_or(out.len(), |left| left.min(out.len()));
        let (mut out, _) = out.split_at_mut(count);
        if count == 0 {
            return Ok(0);
        }
        let id = self.id(source)?;
        if !source.is_complete(self.entry) {
            let read = self.read_piece(source, keys, id, offset, out, scratch);
            scratch.truncate(keys.layout().sealed_block() * PIECE / BLOCK);
            scratch.shrink_to_fit();
            return read.map(|()| count);
        }
        let mut offset = offset;
        while !out.is_empty() {
            // The first piece ends at a block border, so that all others begin at one.
            let len = (PIECE - offset_in_block(offset)).min(out.len());
            let (piece, rest) = out.split_at_mut(len);
            self.read_piece(source, keys, id, offset, piece, scratch)?;
            offset = offset.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
            out = rest;
        }
        Ok(count)
    }

    /// One piece of a read: not empty, inside the file.
    fn read_piece(
        &self,
        source: &dyn Ciphertext,
        keys: &Keys,
        id: FileId,
        offset: u64,
        mut out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), ContentError> {
        let layout = keys.layout();
        let first = block_of(offset);
        let last = block_of(offset.saturating_add(u64::try_from(out.len()).unwrap_or(u64::MAX) - 1));
        let end = layout.cipher_offset(last.saturating_add(1)).min(self.cipher_len);
        let sealed = self.read_into(source, layout.cipher_offset(first), end, scratch)?;
        let begun = Instant::now();
        let whole = out.len();
        let mut skip = offset_in_block(offset);
        for (block, sealed) in (first..).zip(sealed.chunks(layout.sealed_block())) {
            let len = sealed.len().saturating_sub(layout.overhead());
            let (target, rest) = out.split_at_mut(out.len().min(len.saturating_sub(skip)));
            let opened = if target.len() == len {
                open_block(keys, id, block, sealed, target)
            } else {
                open_part(keys, id, block, sealed, skip, target)
            };
            opened.map_err(|what| ContentError::Corrupt { block, what })?;
            (out, skip) = (rest, 0);
        }
        note_opened(whole, begun.elapsed());
        Ok(())
    }

    /// The file's id, from its header.
    fn id(&self, source: &dyn Ciphertext) -> Result<FileId, ContentError> {
        if let Some(&id) = self.id.get() {
            return Ok(id);
        }
        let corrupt = |what| ContentError::Corrupt { block: 0, what };
        let mut header = [0; HEADER];
        if self.cipher_len < HEADER as u64 {
            return Err(corrupt(Damage::TooShort));
        }
        source.read_at(self.entry, 0, &mut header)?;
        let id = FileId::from_header(&header).map_err(corrupt)?;
        // Two first readers store the same id; the loser's is dropped.
        Ok(*self.id.get_or_init(|| id))
    }

    fn read_into<'a>(
        &self,
        source: &dyn Ciphertext,
        start: u64,
        end: u64,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], ContentError> {
        let len = end.saturating_sub(start);
        let outside =
            || ReadError::OutOfRange { path: format!("entry {}", self.entry.0), offset: start, len };
        let count = usize::try_from(len).map_err(|_| outside())?;
        if scratch.len() < count {
            scratch.resize(count, 0);
        }
        let buffer = scratch.get_mut(..count).ok_or_else(outside)?;
        source.read_at(self.entry, start, buffer)?;
        Ok(buffer)
    }
}

/// The ragged edges of a read: open the whole block aside, then copy the part that was asked for.
fn open_part(
    keys: &Keys,
    id: FileId,
    block: u64,
    sealed: &[u8],
    skip: usize,
    target: &mut [u8],
) -> Result<(), Damage> {
    let mut plain = [0; BLOCK];
    let len = sealed.len().saturating_sub(keys.layout().overhead());
    let plain = plain.get_mut(..len).ok_or(Damage::TooShort)?;
    open_block(keys, id, block, sealed, plain)?;
    let part = plain.get(skip..).and_then(|plain| plain.get(..target.len())).ok_or(Damage::TooShort)?;
    target.copy_from_slice(part);
    Ok(())
}
