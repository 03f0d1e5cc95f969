//! Reading local files, which must stay what they were when the directory was walked. Everything here blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use bytes::Bytes;
use nix::fcntl::OFlag;

use super::error::UploadError;
use super::plan::LocalFile;
use crate::store::crc64;

/// Piece that a checksum is computed in: long enough that combining the pieces' checksums costs nothing beside reading.
const PIECE: usize = 4 << 20;

/// Bytes `range` of `file`.
///
/// # Errors
/// `Local`, `Changed`.
pub fn read(file: &LocalFile, range: Range<u64>) -> Result<Bytes, UploadError> {
    let open = open(file)?;
    // At most a part, which fits into any address space cai runs in.
    let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len];
    fill(file, &open, &mut bytes, range.start)?;
    check(file, &open)?;
    Ok(bytes.into())
}

/// CRC-64 of all of `file`.
///
/// # Errors
/// `Local`, `Changed`.
pub fn checksum(file: &LocalFile) -> Result<u64, UploadError> {
    let open = open(file)?;
    let (mut pieces, mut buffer, mut offset) = (Vec::new(), vec![0; PIECE], 0u64);
    while offset < file.len {
        let left = usize::try_from(file.len.saturating_sub(offset)).unwrap_or(PIECE).min(PIECE);
        let (piece, _) = buffer.split_at_mut(left);
        fill(file, &open, piece, offset)?;
        pieces.push((crc64::of(piece), left as u64));
        offset = offset.saturating_add(left as u64);
    }
    check(file, &open)?;
    Ok(crc64::combine(pieces))
}

fn open(file: &LocalFile) -> Result<File, UploadError> {
    // A symlink that took the file's place would lead out of the directory.
    let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&file.path);
    opened.map_err(|source| UploadError::Local { path: file.path.clone(), source })
}

fn fill(file: &LocalFile, open: &File, buffer: &mut [u8], offset: u64) -> Result<(), UploadError> {
    open.read_exact_at(buffer, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => UploadError::Changed { path: file.path.clone() },
        _ => UploadError::Local { path: file.path.clone(), source },
    })
}

/// After the reading, so that what was read is what was walked.
fn check(file: &LocalFile, open: &File) -> Result<(), UploadError> {
    let fail = |source| UploadError::Local { path: file.path.clone(), source };
    let metadata = open.metadata().map_err(fail)?;
    if (metadata.len(), metadata.modified().map_err(fail)?) == (file.len, file.modified) {
        return Ok(());
    }
    Err(UploadError::Changed { path: file.path.clone() })
}
