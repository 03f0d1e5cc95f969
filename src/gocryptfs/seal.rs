//! Sealing one file: header, then every block under a fresh random nonce.
//!
//! Blocks are independent, so a large file is cut into segments that threads take from a common counter. Threads live
//! only inside [`seal_file`]; their number is the machine's, or fewer for a file that would not keep them busy.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{Builder, ScopedJoinHandle, available_parallelism, scope};

use super::content::{BadBlock, FileId, seal_block};
use super::keys::Keys;
use super::layout::{BLOCK, FILE_ID, NONCE, SEALED_BLOCK, cipher_offset};

/// Blocks sealed between two reads: 512 KiB, so that plaintext and ciphertext both stay in a core's second-level cache.
const SEGMENT_BLOCKS: usize = 128;
const SEGMENT: usize = SEGMENT_BLOCKS * BLOCK;
/// Segments that make another thread worth starting: 4 MiB, some milliseconds of work.
const SEGMENTS_PER_THREAD: u64 = 8;

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
    /// No thread could be started.
    Thread(std::io::Error),
}

/// Seal all of `source` into the empty file `target`, calling `advanced` with the bytes of each piece done.
pub(super) fn seal_file(
    keys: &Keys,
    source: &File,
    target: &File,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<(), SealError> {
    let before = source.metadata().map_err(SealError::Read)?;
    if before.len() > 0 {
        let id = random_id()?;
        target.write_all_at(&id.to_header(), 0).map_err(SealError::Write)?;
        let job = Job { keys, id, source, target, len: before.len(), advanced, next: AtomicU64::new(0) };
        job.run()?;
    }
    let after = source.metadata().map_err(SealError::Read)?;
    let same = |m: &std::fs::Metadata| (m.len(), m.mtime(), m.mtime_nsec());
    if same(&before) == same(&after) { Ok(()) } else { Err(SealError::Changed) }
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

struct Job<'a> {
    keys: &'a Keys,
    id: FileId,
    source: &'a File,
    target: &'a File,
    len: u64,
    advanced: &'a (dyn Fn(u64) + Sync),
    /// Next segment nobody has taken.
    next: AtomicU64,
}

impl Job<'_> {
    fn segments(&self) -> u64 {
        self.len.div_ceil(SEGMENT as u64)
    }

    fn run(&self) -> Result<(), SealError> {
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        let useful = usize::try_from(self.segments() / SEGMENTS_PER_THREAD).unwrap_or(usize::MAX);
        let threads = cores.min(useful).max(1);
        if threads == 1 {
            return self.work();
        }
        scope(|scope| {
            let start = |number| {
                let builder = Builder::new().name(format!("cai-seal-{number}"));
                builder.spawn_scoped(scope, || self.work()).map_err(SealError::Thread)
            };
            let workers: Vec<_> = (0..threads).map(start).collect();
            workers.into_iter().try_for_each(|worker| worker.and_then(join))
        })
    }

    /// Seal segments until none is left; on failure nobody takes another.
    fn work(&self) -> Result<(), SealError> {
        let size = usize::try_from(self.len).map_or(SEGMENT, |len| len.min(SEGMENT));
        let mut buffers = Buffers {
            plain: vec![0; size],
            sealed: vec![0; size.div_ceil(BLOCK) * SEALED_BLOCK],
            nonces: vec![0; size.div_ceil(BLOCK) * NONCE],
        };
        loop {
            let segment = self.next.fetch_add(1, Ordering::Relaxed);
            if segment >= self.segments() {
                return Ok(());
            }
            if let Err(error) = self.segment(segment, &mut buffers) {
                self.next.store(self.segments(), Ordering::Relaxed);
                return Err(error);
            }
        }
    }

    fn segment(&self, segment: u64, buffers: &mut Buffers) -> Result<(), SealError> {
        let offset = segment * SEGMENT as u64;
        let first = segment * SEGMENT_BLOCKS as u64;
        let left = self.len.saturating_sub(offset);
        let count = usize::try_from(left).map_or(SEGMENT, |left| left.min(SEGMENT));
        // `work` made room for a whole segment, or for the whole file where that is less.
        let count = count.min(buffers.plain.len());
        let (plain, _) = buffers.plain.split_at_mut(count);
        self.source.read_exact_at(plain, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => SealError::Changed,
            _ => SealError::Read(error),
        })?;
        getrandom::fill(&mut buffers.nonces).map_err(SealError::Random)?;

        let mut used = 0;
        let (nonces, _) = buffers.nonces.as_chunks::<NONCE>();
        let pieces = plain.chunks(BLOCK).zip(nonces).zip(buffers.sealed.chunks_mut(SEALED_BLOCK));
        for (block, ((plain, nonce), sealed)) in (first..).zip(pieces) {
            let (sealed, _) = sealed.split_at_mut(plain.len() + SEALED_BLOCK - BLOCK);
            seal_block(self.keys, self.id, block, nonce, plain, sealed).map_err(SealError::Block)?;
            used += sealed.len();
        }
        let (sealed, _) = buffers.sealed.split_at(used);
        self.target.write_all_at(sealed, cipher_offset(first)).map_err(SealError::Write)?;
        (self.advanced)(u64::try_from(count).unwrap_or(0));
        Ok(())
    }
}

/// One thread's memory, reused for every segment.
struct Buffers {
    plain: Vec<u8>,
    sealed: Vec<u8>,
    nonces: Vec<u8>,
}

/// A worker's result; its panic goes on in the caller.
fn join(worker: ScopedJoinHandle<'_, Result<(), SealError>>) -> Result<(), SealError> {
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
