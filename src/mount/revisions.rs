//! Which revision of the model is shown: the one that new opens get, and older ones that somebody still has open.
//!
//! Every revision has inodes of its own, but for the root, which is always the newest one's. The kernel asks for names in the
//! root anew each time (`fuse` says so), so that a switch is one assignment here: who opens a path afterwards gets the new
//! revision, who has a file or a directory open stays with the old one. One lock, held for a lookup at most.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use fuser::FileHandle;
use tokio::sync::watch;

use super::fs::{self, FsError, ModelFs};

/// What is shown.
pub(super) struct Revisions {
    book: RwLock<Book>,
    /// Open files and directories of each revision that is shown, by its number.
    opens: watch::Sender<BTreeMap<u32, u64>>,
}

struct Book {
    newest: Arc<ModelFs>,
    older: Vec<Arc<ModelFs>>,
}

impl Revisions {
    /// With this one.
    pub(super) fn new(fs: ModelFs) -> Self {
        let opens = watch::Sender::new(BTreeMap::from([(fs.revision(), 0)]));
        Revisions { book: RwLock::new(Book { newest: Arc::new(fs), older: Vec::new() }), opens }
    }

    /// The newest one.
    pub(super) fn newest(&self) -> Arc<ModelFs> {
        self.read().newest.clone()
    }

    /// The one that `inode` belongs to.
    ///
    /// # Errors
    /// [`FsError::Stale`]: it has been replaced, and nobody had it open any more.
    pub(super) fn of(&self, inode: u64) -> Result<Arc<ModelFs>, FsError> {
        let book = self.read();
        if inode == fs::ROOT {
            return Ok(book.newest.clone());
        }
        book.numbered(fs::revision_of(inode))
    }

    /// The one that a directory was opened in.
    ///
    /// # Errors
    /// As [`Revisions::of`].
    pub(super) fn opened(&self, handle: FileHandle) -> Result<Arc<ModelFs>, FsError> {
        self.read().numbered(u32::try_from(handle.0).map_err(|_| FsError::Stale)?)
    }

    /// Something of the revision that `inode` belongs to is being opened: it stays until [`Revisions::closed`].
    ///
    /// # Errors
    /// As [`Revisions::of`].
    pub(super) fn open(&self, inode: u64) -> Result<Arc<ModelFs>, FsError> {
        // Counted under the lock: nobody can let it go in between.
        let book = self.read();
        let fs = match inode {
            fs::ROOT => book.newest.clone(),
            inode => book.numbered(fs::revision_of(inode))?,
        };
        self.count(fs.revision(), |opens| opens.saturating_add(1));
        Ok(fs)
    }

    /// It was closed, or not opened after all.
    pub(super) fn closed(&self, revision: u32) {
        self.count(revision, |opens| opens.saturating_sub(1));
    }

    /// Show `fs` from now on; gives the number of the one that was shown until now.
    pub(super) fn switch(&self, fs: ModelFs) -> u32 {
        let mut book = self.write();
        let old = book.newest.revision();
        let fs = Arc::new(fs.numbered(old.wrapping_add(1)));
        self.opens.send_modify(|opens| {
            opens.insert(fs.revision(), 0);
        });
        let old_fs = std::mem::replace(&mut book.newest, fs);
        book.older.push(old_fs);
        old
    }

    /// Wait until nothing of the older `revision` is open, and forget it.
    pub(super) async fn leave(&self, revision: u32) {
        let mut opens = self.opens.subscribe();
        loop {
            // The sender lives as long as this does.
            let _ = opens.wait_for(|opens| opens.get(&revision).is_none_or(|opens| *opens == 0)).await;
            let mut book = self.write();
            if self.opens.borrow().get(&revision).is_none_or(|opens| *opens == 0) {
                book.older.retain(|fs| fs.revision() != revision);
                self.opens.send_modify(|opens| {
                    opens.remove(&revision);
                });
                return;
            }
        }
    }

    /// Open files and directories of the older revisions together.
    pub(super) fn left_open(&self) -> u64 {
        let newest = self.read().newest.revision();
        self.opens.borrow().iter().filter(|(revision, _)| **revision != newest).map(|(_, opens)| opens).sum()
    }

    fn count(&self, revision: u32, change: impl FnOnce(u64) -> u64) {
        self.opens.send_if_modified(|opens| {
            let Some(open) = opens.get_mut(&revision) else { return false };
            *open = change(*open);
            // Nobody waits for anything but the last one.
            *open == 0
        });
    }

    fn read(&self) -> RwLockReadGuard<'_, Book> {
        // Each change of the book is complete in itself.
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Book> {
        self.book.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn numbered(&self, revision: u32) -> Result<Arc<ModelFs>, FsError> {
        let all = std::iter::once(&self.newest).chain(&self.older);
        all.into_iter().find(|fs| fs.revision() == revision).cloned().ok_or(FsError::Stale)
    }
}
