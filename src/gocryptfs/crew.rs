//! The threads that seal: one per core, on many small files and on the pieces of large ones side by side.
//!
//! The walk of the source hands in files; a thread that has none takes a piece of a file somebody opened, else opens the
//! next one. Locks: one mutex around the plan, taken once per 512 KiB and never held across a system call. Threads live only
//! inside [`Crew::run`].

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, available_parallelism, panicking, scope};

use nix::sys::stat::FileStat;

use super::encrypt_error::EncryptError;
use super::keys::Keys;
use super::seal::{Buffers, Sealing};
use super::writer::{Progress, keep_attributes};

/// Files handed in and not opened by a thread yet; each holds two descriptors, and default limits allow 1024.
const WAITING: usize = 64;

/// A file to be sealed, both sides open.
pub(super) struct Job {
    /// Below the source's root.
    pub(super) path: PathBuf,
    pub(super) source: File,
    pub(super) target: File,
    /// What the target's attributes are to be.
    pub(super) stat: FileStat,
}

/// A file some of whose pieces nobody has taken.
struct Open {
    sealing: Arc<Sealing>,
    stat: FileStat,
    next: u64,
}

#[derive(Default)]
struct Plan {
    waiting: VecDeque<Job>,
    open: VecDeque<Open>,
    /// Threads that are opening a file, which may bring pieces for others.
    opening: usize,
    /// No more files will be handed in.
    closed: bool,
    failed: Option<EncryptError>,
    /// Something failed, also once the failure was taken away.
    over: bool,
}

enum Task {
    Open(Job),
    Piece(Arc<Sealing>, FileStat, u64),
}

/// What seals.
pub(super) struct Crew<'a> {
    keys: &'a Keys,
    progress: Option<&'a (dyn Fn(Progress) + Sync)>,
    /// Where the source is, for messages.
    root: PathBuf,
    total: u64,
    done: AtomicU64,
    kept: AtomicU64,
    plan: Mutex<Plan>,
    changed: Condvar,
}

impl<'a> Crew<'a> {
    pub(super) fn new(
        keys: &'a Keys,
        progress: Option<&'a (dyn Fn(Progress) + Sync)>,
        root: PathBuf,
        total: u64,
    ) -> Self {
        let (done, kept) = (AtomicU64::new(0), AtomicU64::new(0));
        Crew { keys, progress, root, total, done, kept, plan: Mutex::default(), changed: Condvar::new() }
    }

    /// Seal what `walk` hands in through [`Crew::add`]; the plaintext bytes that were there already.
    ///
    /// # Errors
    /// The first failure of the walk or of any thread, once all have stopped.
    pub(super) fn run(&self, walk: impl FnOnce() -> Result<(), EncryptError>) -> Result<u64, EncryptError> {
        scope(|scope| {
            for number in 0..available_parallelism().map_or(1, |cores| cores.get()) {
                let builder = Builder::new().name(format!("cai-seal-{number}"));
                if let Err(source) = builder.spawn_scoped(scope, || self.work()) {
                    self.fail(EncryptError::Thread(source));
                }
            }
            if let Err(error) = walk() {
                self.fail(error);
            }
            self.lock().closed = true;
            self.changed.notify_all();
        });
        match self.lock().failed.take() {
            Some(error) => Err(error),
            None => Ok(self.kept.load(Ordering::Relaxed)),
        }
    }

    /// Hand in a file; waits while many are waiting. False: something failed, and nothing more is wanted.
    pub(super) fn add(&self, job: Job) -> bool {
        let mut plan = self.lock();
        while plan.waiting.len() >= WAITING && !plan.over {
            plan = self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner);
        }
        let wanted = !plan.over;
        if wanted {
            plan.waiting.push_back(job);
        }
        drop(plan);
        self.changed.notify_all();
        wanted
    }

    fn lock(&self) -> MutexGuard<'_, Plan> {
        // Each change of the plan is complete in itself.
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: EncryptError) {
        let mut plan = self.lock();
        plan.over = true;
        plan.failed.get_or_insert(error);
        drop(plan);
        self.changed.notify_all();
    }

    fn work(&self) {
        let _stop = StopOnPanic(self);
        let mut buffers = Buffers::new();
        while let Some(task) = self.next() {
            let done = match task {
                Task::Open(job) => self.open(job),
                Task::Piece(sealing, stat, piece) => self.piece(&sealing, &stat, piece, &mut buffers),
            };
            if let Err(error) = done {
                self.fail(error);
            }
        }
    }

    /// A piece of an open file, or else the next file; `None` when there is nothing left, or no point in it.
    fn next(&self) -> Option<Task> {
        let mut plan = self.lock();
        loop {
            if plan.over {
                return None;
            }
            if let Some(open) = plan.open.front_mut() {
                let (sealing, stat, piece) = (Arc::clone(&open.sealing), open.stat, open.next);
                open.next += 1;
                if open.next == sealing.pieces() {
                    plan.open.pop_front();
                }
                return Some(Task::Piece(sealing, stat, piece));
            }
            if let Some(job) = plan.waiting.pop_front() {
                plan.opening += 1;
                drop(plan);
                self.changed.notify_all();
                return Some(Task::Open(job));
            }
            if plan.closed && plan.opening == 0 {
                return None;
            }
            plan = self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self, job: Job) -> Result<(), EncryptError> {
        let Job { path, source, target, stat } = job;
        let begun = Sealing::begin(path.clone(), source, target);
        let mut plan = self.lock();
        plan.opening -= 1;
        let sealing = match begun {
            Ok(sealing) => Arc::new(sealing),
            Err(error) => {
                drop(plan);
                self.changed.notify_all();
                return Err(EncryptError::from_seal(error, self.root.join(path)));
            }
        };
        let empty = sealing.pieces() == 0;
        if !empty {
            plan.open.push_back(Open { sealing: Arc::clone(&sealing), stat, next: 0 });
        }
        drop(plan);
        self.changed.notify_all();
        if empty { self.finish(&sealing, &stat) } else { Ok(()) }
    }

    fn piece(
        &self,
        sealing: &Sealing,
        stat: &FileStat,
        piece: u64,
        buffers: &mut Buffers,
    ) -> Result<(), EncryptError> {
        let sealed = sealing
            .piece(self.keys, piece, buffers)
            .map_err(|error| EncryptError::from_seal(error, self.root.join(&sealing.path)))?;
        self.kept.fetch_add(sealed.kept, Ordering::Relaxed);
        self.advance(sealed.bytes);
        if sealing.count_down() { self.finish(sealing, stat) } else { Ok(()) }
    }

    fn finish(&self, sealing: &Sealing, stat: &FileStat) -> Result<(), EncryptError> {
        let target = sealing
            .finish()
            .map_err(|error| EncryptError::from_seal(error, self.root.join(&sealing.path)))?;
        keep_attributes(target, stat)
            .map_err(|error| EncryptError::Target { path: sealing.path.clone(), source: error.into() })?;
        self.advance(0);
        Ok(())
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(progress) = self.progress {
            progress(Progress { done, total: self.total });
        }
    }
}

/// A thread that panics must not leave the walk and the others waiting for it; its panic goes on when all have stopped.
struct StopOnPanic<'a, 'b>(&'a Crew<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if panicking() {
            self.0.lock().over = true;
            self.0.changed.notify_all();
        }
    }
}
