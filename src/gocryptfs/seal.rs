//! Sealing one file, piece by piece: its header once, then any piece by any thread.
//!
//! A target file that an interrupted run left behind is taken up again: a block stays when it opens with our keys under
//! the file's id *and* its plaintext is the source's; everything else is sealed afresh under a new nonce. So nothing
//! needs to be remembered of what was done, and nothing is trusted that was not opened and compared.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::content::{BadBlock, FileId, open_block, seal_block};
use super::keys::Keys;
use super::layout::{BLOCK, FILE_ID, HEADER, NONCE, SEALED_BLOCK, cipher_len, cipher_offset};

/// Blocks sealed between two reads: 512 KiB, so that plaintext and ciphertext both stay in a core's second-level cache.
const PIECE_BLOCKS: usize = 128;
const PIECE: usize = PIECE_BLOCKS * BLOCK;

/// Why a file was not sealed.
#[derive(Debug)]
pub(super) enum SealError {
    /// The source file cannot be read.
    Read(std::io::Error),
    /// The target file cannot be written.
    Write(std::io::Error),
    /// No random bytes.
    Random(getrandom::Error),
    /// A block that is none: a defect.
    Block(BadBlock),
    /// The source file changed meanwhile.
    Changed,
}

/// One thread's memory, reused for every piece.
pub(super) struct Buffers {
    plain: Vec<u8>,
    sealed: Vec<u8>,
    nonces: Vec<u8>,
    opened: Vec<u8>,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Buffers {
            plain: vec![0; PIECE],
            sealed: vec![0; PIECE_BLOCKS * SEALED_BLOCK],
            nonces: vec![0; PIECE_BLOCKS * NONCE],
            opened: vec![0; BLOCK],
        }
    }
}

/// What became of a piece: plaintext bytes, and how many of them were there already.
pub(super) struct Sealed {
    pub(super) bytes: u64,
    pub(super) kept: u64,
}

/// A file that is being sealed.
pub(super) struct Sealing {
    /// Below the source's root.
    pub(super) path: PathBuf,
    source: File,
    target: File,
    id: FileId,
    /// Of the source, when it was opened.
    before: std::fs::Metadata,
    /// Ciphertext bytes found in the target, to be looked at.
    found: u64,
    /// Pieces not done yet.
    left: AtomicU64,
}

impl Sealing {
    /// Take up `target`, which is empty or holds what an interrupted run left of this file.
    pub(super) fn begin(path: PathBuf, source: File, target: File) -> Result<Self, SealError> {
        let before = source.metadata().map_err(SealError::Read)?;
        let len = before.len();
        let stored = target.metadata().map_err(SealError::Write)?.len();
        let wanted = cipher_len(len).unwrap_or(u64::MAX);
        let kept_id = if stored > 0 && len > 0 { read_id(&target) } else { None };
        let found = if kept_id.is_some() { stored.min(wanted) } else { 0 };
        if stored > found {
            target.set_len(found).map_err(SealError::Write)?;
        }
        let id = match kept_id {
            Some(id) => id,
            None => random_id()?,
        };
        if found == 0 && len > 0 {
            target.write_all_at(&id.to_header(), 0).map_err(SealError::Write)?;
        }
        let left = AtomicU64::new(len.div_ceil(PIECE as u64));
        Ok(Sealing { path, source, target, id, before, found, left })
    }

    /// Plaintext length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.before.len()
    }

    /// Number of pieces; none if the file is empty.
    pub(super) fn pieces(&self) -> u64 {
        self.len().div_ceil(PIECE as u64)
    }

    /// Do piece `piece`.
    pub(super) fn piece(&self, keys: &Keys, piece: u64, buffers: &mut Buffers) -> Result<Sealed, SealError> {
        let offset = piece * PIECE as u64;
        let first = piece * PIECE_BLOCKS as u64;
        let count = usize::try_from(self.len().saturating_sub(offset)).map_or(PIECE, |left| left.min(PIECE));
        let Buffers { plain, sealed, nonces, opened } = buffers;
        let (plain, _) = plain.split_at_mut(count);
        self.source.read_exact_at(plain, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => SealError::Changed,
            _ => SealError::Read(error),
        })?;
        let blocks = count.div_ceil(BLOCK);
        let (sealed, _) = sealed.split_at_mut(count + blocks * (SEALED_BLOCK - BLOCK));
        let resumed = self.found > cipher_offset(first);
        if resumed {
            self.read_found(cipher_offset(first), sealed)?;
        }
        let (nonces, _) = nonces.split_at_mut(blocks * NONCE);
        getrandom::fill(nonces).map_err(SealError::Random)?;

        let mut kept = 0;
        let (nonces, _) = nonces.as_chunks::<NONCE>();
        for (block, ((plain, nonce), sealed)) in
            (first..).zip(plain.chunks(BLOCK).zip(nonces).zip(sealed.chunks_mut(SEALED_BLOCK)))
        {
            if resumed && self.holds(keys, block, plain, sealed, opened) {
                kept += plain.len();
            } else {
                seal_block(keys, self.id, block, nonce, plain, sealed).map_err(SealError::Block)?;
            }
        }
        if kept < count {
            self.target.write_all_at(sealed, cipher_offset(first)).map_err(SealError::Write)?;
        }
        Ok(Sealed { bytes: count as u64, kept: kept as u64 })
    }

    /// Count one piece as done; true for the last one, after which [`Sealing::finish`] is due.
    pub(super) fn count_down(&self) -> bool {
        self.left.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Every piece is done: check that the source stayed what it was, and hand the target back.
    pub(super) fn finish(&self) -> Result<&File, SealError> {
        let after = self.source.metadata().map_err(SealError::Read)?;
        let same = |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec());
        if same(&self.before) == same(&after) { Ok(&self.target) } else { Err(SealError::Changed) }
    }

    /// Whether `sealed`, as found in the target, is `plain`. A hole is not: it opens, and nothing authenticates it.
    fn holds(&self, keys: &Keys, block: u64, plain: &[u8], sealed: &[u8], opened: &mut [u8]) -> bool {
        let (opened, _) = opened.split_at_mut(plain.len());
        sealed.first_chunk::<NONCE>().is_some_and(|nonce| *nonce != [0; NONCE])
            && open_block(keys, self.id, block, sealed, opened).is_ok()
            && opened == plain
    }

    /// The ciphertext found from `offset` on, zeros behind its end.
    fn read_found(&self, offset: u64, sealed: &mut [u8]) -> Result<(), SealError> {
        let there = usize::try_from(self.found.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (there, missing) = sealed.split_at_mut(there.min(sealed.len()));
        missing.fill(0);
        self.target.read_exact_at(there, offset).map_err(SealError::Write)
    }
}

/// The id in a file's header, if it is a header.
fn read_id(file: &File) -> Option<FileId> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    FileId::from_header(&header).ok()
}

fn random_id() -> Result<FileId, SealError> {
    loop {
        let mut bytes = [0; FILE_ID];
        getrandom::fill(&mut bytes).map_err(SealError::Random)?;
        if let Some(id) = FileId::new(bytes) {
            return Ok(id);
        }
    }
}
