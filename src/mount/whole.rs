//! Whole files, on all cores.

use std::io;

use rayon::iter::{ParallelBridge, ParallelIterator};

use super::fs::{FsError, ModelFs};
use super::memory::{Buffer, UNIT, populate};

/// Why a file is not in memory.
#[derive(Debug, thiserror::Error)]
pub(super) enum FillError {
    /// The memory, or the helper, refused.
    #[error("{0}")]
    Memory(#[from] io::Error),
    /// It cannot be decrypted; the log says which block.
    #[error("{0}")]
    Read(#[from] FsError),
}

/// The threads that decrypt whole files: one per core.
pub(super) struct Decryptor(rayon::ThreadPool);

impl Decryptor {
    /// # Errors
    /// The threads could not be started.
    pub(super) fn new() -> io::Result<Self> {
        let builder = rayon::ThreadPoolBuilder::new().thread_name(|number| format!("cai-load-{number}"));
        builder.build().map(Decryptor).map_err(io::Error::other)
    }

    /// Decrypt the whole file `inode` into `buffer`. Every block is verified.
    ///
    /// # Errors
    /// [`FillError`]; `buffer` then holds nothing of meaning.
    pub(super) fn fill(&self, fs: &ModelFs, inode: u64, buffer: &mut Buffer) -> Result<(), FillError> {
        let len = fs.file_len(inode).ok_or(FsError::NotAFile)?;
        buffer.write(len, |out| self.decrypt(fs, inode, out))
    }

    fn decrypt(&self, fs: &ModelFs, inode: u64, out: &mut [u8]) -> Result<(), FillError> {
        // Handed out in order, so that the ciphertext is read in order.
        let units = (0u64..).step_by(UNIT).zip(out.chunks_mut(UNIT));
        let decrypt = |scratch: &mut Vec<u8>, (offset, unit): (u64, &mut [u8])| {
            let wanted = unit.len();
            populate(unit)?;
            match fs.read_into(inode, offset, unit, scratch)? {
                read if read == wanted => Ok(()),
                _ => Err(FsError::Unreadable.into()),
            }
        };
        self.0.install(|| units.par_bridge().try_for_each_init(Vec::new, decrypt))
    }
}
