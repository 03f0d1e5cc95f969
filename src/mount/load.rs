//! Load mode: a large file is decrypted as a whole when it is opened, into memory that the kernel then reads by itself.
//!
//! Every tag is verified before the first byte is seen. Only files whose ciphertext is local are loaded: an `open` must not
//! wait for a network. While a file is loaded who opens it waits; nobody else does. The next file of the directory is loaded
//! ahead, since weights are read shard after shard.
//!
//! Threads: FUSE threads ask the ledger; one thread, `cai-load`, loads one file after the other, on all cores; no lock is
//! held over a read, a decryption or a call to the helper. What cannot be loaded is read on demand.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fuser::{FileHandle, FopenFlags, ReplyOpen};

use super::backing::open_through;
use super::fs::{FsError, ModelFs};
use super::ledger::{Answer, Ledger, Left};
use super::memory::{Buffer, Memory, taken};
use super::revisions::Revisions;
use super::whole::{Decryptor, FillError};

/// Smallest file that is loaded, bytes: below, the page cache costs less than a registration.
pub(super) const SMALLEST: u64 = 16 << 20;

/// Handle of a file that the ledger knows, and of one that it does not.
const TRACKED: FileHandle = FileHandle(1);
const UNTRACKED: FileHandle = FileHandle(0);

/// Who can register a file with the kernel in place of one of the mount's: a privileged process.
pub trait Registrar: Send + Sync + 'static {
    /// Register `file`, which is open for reading only; the kernel's number for it.
    ///
    /// # Errors
    /// What the registrar says.
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<u32>;

    /// Give the number back. A failure is the registrar's to report.
    fn unregister(&self, id: u32);
}

/// What load mode works with.
pub struct LoadOptions {
    /// Where files are decrypted to; its size bounds them.
    pub memory: Memory,
    /// Who registers them.
    pub registrar: Arc<dyn Registrar>,
    /// How long a file stays that nobody has open.
    pub idle: Duration,
}

/// What is held, and what is on its way out.
struct Book {
    ledger: Ledger<ReplyOpen, Buffer>,
    /// Files that left while a mapping of them lived on.
    lingering: Vec<(Buffer, u64)>,
    closed: bool,
}

/// Opens and closes of the mount's large files.
pub(super) struct Loader {
    revisions: Arc<Revisions>,
    book: Mutex<Book>,
    /// Something was queued, or the mount ended.
    changed: Condvar,
    options: OnceLock<LoadOptions>,
}

impl Loader {
    /// Counts opens; loads nothing before [`Loader::start`].
    pub(super) fn new(revisions: Arc<Revisions>) -> Self {
        let book = Book { ledger: Ledger::new(), lingering: Vec::new(), closed: false };
        Loader { revisions, book: Mutex::new(book), changed: Condvar::new(), options: OnceLock::new() }
    }

    /// Load files from now on.
    ///
    /// # Errors
    /// What the system says about the thread; `AlreadyExists` the second time.
    pub(super) fn start(self: &Arc<Self>, options: LoadOptions) -> io::Result<()> {
        let (size, decryptor) = (options.memory.size(), Decryptor::new()?);
        self.options.set(options).map_err(|_| io::Error::from(io::ErrorKind::AlreadyExists))?;
        let loader = self.clone();
        std::thread::Builder::new().name("cai-load".into()).spawn(move || loader.work(&decryptor))?;
        self.lock().ledger.set_limit(size);
        Ok(())
    }

    /// The mount is gone.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Answer the `open` of a regular file of `fs`.
    pub(super) fn open(&self, fs: &ModelFs, inode: u64, reply: ReplyOpen) {
        let Some(len) = fs.file_len(inode).filter(|len| *len >= SMALLEST) else {
            return on_demand(reply, UNTRACKED);
        };
        let fit = self.options.get().is_some() && fs.is_complete(inode);
        if fit {
            // There may be room since a moment ago.
            self.forget_unmapped();
        }
        let answer = self.lock().ledger.open(inode, taken(len), fit, reply, Instant::now());
        match answer {
            Answer::OnDemand(reply) => on_demand(reply, TRACKED),
            Answer::Through(reply, id) => open_through(reply, TRACKED, id),
            Answer::Later => self.changed.notify_all(),
        }
        if fit {
            self.ahead(fs, inode);
        }
    }

    /// A handle was closed.
    pub(super) fn release(&self, inode: u64, handle: FileHandle) {
        if handle == TRACKED {
            self.lock().ledger.close(inode, Instant::now());
        }
    }

    /// Queue the file that is probably opened next.
    fn ahead(&self, fs: &ModelFs, inode: u64) {
        let Some(next) = fs.next_file(inode) else { return };
        let Some(len) = fs.file_len(next).filter(|len| *len >= SMALLEST) else { return };
        if fs.is_complete(next) && self.lock().ledger.ahead(next, taken(len)) {
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        // Each change of the book is complete in itself.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The loading thread.
    fn work(&self, decryptor: &Decryptor) {
        let _end = End(self);
        let Some(options) = self.options.get() else { return };
        let tick = (options.idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(10));
        loop {
            let mut book = self.lock();
            if book.closed {
                return;
            }
            match book.ledger.next() {
                Some(inode) => {
                    drop(book);
                    self.load(options, decryptor, inode);
                }
                None => drop(self.changed.wait_timeout(book, tick)),
            }
            self.expire(options);
        }
    }

    /// Decrypt one file, register it, and answer who waited for it.
    fn load(&self, options: &LoadOptions, decryptor: &Decryptor, inode: u64) {
        let begun = Instant::now();
        let (waited, id) = match self.make_room(options) {
            false => (self.lock().ledger.not_loaded(inode, true), None),
            true => match self.fill(options, decryptor, inode) {
                Ok((buffer, id)) => (self.lock().ledger.loaded(inode, buffer, id, Instant::now()), Some(id)),
                Err(error) => {
                    let file = self.path(inode);
                    tracing::warn!(event = "load.failed", file = %file.display(), "{} is read on demand: {error}", file.display());
                    let again = !matches!(error, FillError::Read(FsError::Damaged));
                    (self.lock().ledger.not_loaded(inode, again), None)
                }
            },
        };
        let readers = waited.len();
        match id {
            Some(id) => waited.into_iter().for_each(|reply| open_through(reply, TRACKED, id)),
            None => waited.into_iter().for_each(|reply| on_demand(reply, TRACKED)),
        }
        if id.is_some() {
            let (file, seconds) = (self.path(inode), begun.elapsed().as_secs_f64());
            tracing::debug!(event = "load.done", file = %file.display(), seconds, readers);
        }
    }

    fn path(&self, inode: u64) -> PathBuf {
        self.revisions.of(inode).map(|fs| fs.path(inode)).unwrap_or_default()
    }

    /// Let idle files leave until what is promised fits. `false`: too little is idle.
    fn make_room(&self, options: &LoadOptions) -> bool {
        loop {
            self.forget_unmapped();
            let left = {
                let mut book = self.lock();
                if !book.ledger.over() {
                    return true;
                }
                book.ledger.evict()
            };
            let Some(Left { buffer, id, bytes }) = left else { return false };
            options.registrar.unregister(id);
            self.lock().lingering.push((buffer, bytes));
        }
    }

    /// Into memory of its own. Pages are never used again by ourselves, only given back: a pipe or a socket may still refer
    /// to those of a file that nobody has open or mapped any more (splice(2), sendfile(2)).
    fn fill(
        &self,
        options: &LoadOptions,
        decryptor: &Decryptor,
        inode: u64,
    ) -> Result<(Buffer, u32), FillError> {
        let mut buffer = options.memory.buffer()?;
        decryptor.fill(self.revisions.of(inode)?.as_ref(), inode, &mut buffer)?;
        let id = options.registrar.register(buffer.read_only()?.as_fd())?;
        Ok((buffer, id))
    }

    /// Let files leave that nobody has had open for long.
    fn expire(&self, options: &LoadOptions) {
        loop {
            let Some(Left { buffer, id, bytes }) = self.lock().ledger.expire(options.idle, Instant::now())
            else {
                break;
            };
            options.registrar.unregister(id);
            self.lock().lingering.push((buffer, bytes));
        }
        self.forget_unmapped();
    }

    /// Give back the memory of files that left and that nobody maps any more.
    fn forget_unmapped(&self) {
        let mut book = self.lock();
        let (gone, lingering): (Vec<_>, Vec<_>) =
            book.lingering.drain(..).partition(|(buffer, _)| buffer.unused());
        book.lingering = lingering;
        drop(book);
        // The memory first: what the book says is free must be there. And without the lock: there may be much of it.
        let bytes = gone.iter().map(|(_, bytes)| *bytes).fold(0, u64::saturating_add);
        drop(gone);
        self.lock().ledger.freed(bytes);
    }
}

/// The loading thread ends, also in a panic: nobody may wait for it any longer.
struct End<'a>(&'a Loader);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let (left, waited) = self.0.lock().ledger.end();
        waited.into_iter().for_each(|reply| on_demand(reply, TRACKED));
        // The helper gives the numbers back with the mount.
        drop(left);
    }
}

fn on_demand(reply: ReplyOpen, handle: FileHandle) {
    // The content behind an inode never changes: what the page cache holds stays right across opens.
    reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE);
}
