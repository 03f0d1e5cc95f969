//! A source that does not answer holds up who reads what is missing, and nobody else.

mod common;
#[path = "common/mounts.rs"]
mod mounts;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use cai::ciphertext::{self, Ciphertext, Entry, EntryId, ReadError};
use cai::gocryptfs::LocalDir;
use cai::mount::{Attributes, ModelFs, Mounted};
use common::wait_until;
use mounts::{MIB, Model, pattern};
use nix::sys::stat::{major, minor};

/// Ciphertext of which files are missing until they are let come.
struct Missing {
    inner: LocalDir,
    missing: Vec<EntryId>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    here: bool,
    /// Reads that wait.
    waiting: usize,
}

impl Missing {
    fn is_missing(&self, id: EntryId) -> bool {
        self.missing.contains(&id) && !self.state.lock().unwrap().here
    }

    fn come(&self) {
        self.state.lock().unwrap().here = true;
        self.changed.notify_all();
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting
    }
}

/// The mount has one, and the test another.
struct Shared(Arc<Missing>);

impl Ciphertext for Shared {
    fn entries(&self) -> &[Entry] {
        self.0.inner.entries()
    }

    fn root(&self) -> Option<ciphertext::Attributes> {
        self.0.inner.root()
    }

    fn read_at(&self, id: EntryId, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        if self.0.missing.contains(&id) {
            let mut state = self.0.state.lock().unwrap();
            state.waiting += 1;
            state = self.0.changed.wait_while(state, |state| !state.here).unwrap();
            state.waiting -= 1;
        }
        self.0.inner.read_at(id, offset, buf)
    }

    fn is_complete(&self, id: EntryId) -> bool {
        !self.0.is_missing(id)
    }
}

/// A mount of this process, of a model some files of which are missing.
struct Stalled {
    source: Arc<Missing>,
    mounted: Mounted,
    point: PathBuf,
    /// Where the kernel shows its connections.
    control: PathBuf,
    /// Number of this one.
    connection: String,
}

impl Stalled {
    fn mount(model: &Model, missing: &[&str], threads: usize) -> Stalled {
        let (inner, keys, tree) = model.open();
        let entry = |name: &&str| tree.lookup(tree.root(), OsStr::new(name)).unwrap().entry.unwrap();
        let missing = missing.iter().map(entry).collect();
        let source = Missing { inner, missing, state: Mutex::default(), changed: Condvar::new() };
        let source = Arc::new(source);
        let shared = Arc::new(Shared(source.clone()));
        let fs = ModelFs::new(Arc::new(tree), shared, Arc::new(keys), Attributes::AsStored);
        let (point, control) = (model.path("mnt"), model.path("control"));
        fs::create_dir(&control).unwrap();
        let mounted = Mounted::at_path(fs, &point, threads).unwrap();
        let device = fs::metadata(&point).unwrap().dev();
        let connection = minor(device).to_string();
        let stalled = Stalled { source, mounted, point, control, connection };
        // As far ahead as the helper lets the kernel read.
        let ahead = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(device), minor(device));
        fs::write(ahead, "4096").unwrap();
        let mut control = Command::new("mount");
        assert!(control.args(["-t", "fusectl", "none"]).arg(&stalled.control).status().unwrap().success());
        stalled
    }

    /// Requests that the kernel has no answer to.
    fn requests(&self) -> usize {
        let waiting = self.control.join(&self.connection).join("waiting");
        fs::read_to_string(waiting).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        // First, so that nobody waits in the mount while it is taken away.
        self.source.come();
        let _ = nix::mount::umount(&self.control);
        let _ = self.mounted.unmount();
    }
}

/// Do `work` on a thread of its own: a mount that does not answer must fail a test, not hang it.
fn soon<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Everything about the local file, which is read here for the first time.
fn assert_local_is_served(point: &Path, content: &[u8]) {
    let at = point.to_owned();
    assert_eq!(soon("listing", move || fs::read_dir(at).unwrap().count()), 3);
    let at = point.join("local");
    assert!(soon("reading", move || fs::read(at).unwrap()) == content, "local differs");
    let at = point.to_owned();
    let kind = soon("statfs", move || nix::sys::statfs::statfs(&at).unwrap().filesystem_type());
    assert_eq!(kind, nix::sys::statfs::FUSE_SUPER_MAGIC);
}

#[test]
fn readers_of_missing_bytes_one_request_each_leave_a_thread_to_the_others() {
    let (far, local) = (pattern(1, 4 * MIB), pattern(2, 12 * MIB));
    let Some(model) = Model::of(&[("far-1", &far), ("far-2", &far), ("local", &local)]) else { return };
    let stalled = Stalled::mount(&model, &["far-1", "far-2"], 4);
    let readers: Vec<_> = (0..3_u64)
        .map(|number| {
            let file = File::open(stalled.point.join("far-1")).unwrap();
            nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM)
                .unwrap();
            std::thread::spawn(move || {
                let mut piece = vec![0; 4096];
                file.read_exact_at(&mut piece, number * MIB as u64).unwrap();
                piece
            })
        })
        .collect();
    wait_until("three readers to wait", || stalled.source.waiting() == 3);
    assert_local_is_served(&stalled.point, &local);
    assert!(readers.iter().all(|reader| !reader.is_finished()), "a read was answered with missing bytes");
    stalled.source.come();
    for (number, reader) in readers.into_iter().enumerate() {
        assert!(soon("the readers' end", || reader.join().unwrap()) == far[number * MIB..][..4096]);
    }
}

#[test]
fn readers_of_missing_bytes_that_are_read_ahead_leave_a_thread_to_the_others() {
    let (far, local) = (pattern(1, 16 * MIB), pattern(2, 12 * MIB));
    let Some(model) = Model::of(&[("far-1", &far), ("far-2", &far), ("local", &local)]) else { return };
    let stalled = Stalled::mount(&model, &["far-1", "far-2"], 4);
    let readers: Vec<_> = (0..32)
        .map(|number| {
            let file = File::open(stalled.point.join(["far-1", "far-2"][number % 2])).unwrap();
            // Parts of their own, each more than one request.
            let offset = number / 2 * MIB;
            std::thread::spawn(move || {
                let mut piece = vec![0; MIB];
                file.read_exact_at(&mut piece, offset as u64).unwrap();
                (offset, piece)
            })
        })
        .collect();
    // More requests than there are threads, and more than a file system allows by default to be read ahead.
    wait_until("the readers to wait", || stalled.source.waiting() == 3 && stalled.requests() >= 64);
    assert_local_is_served(&stalled.point, &local);
    assert_eq!(stalled.source.waiting(), 3, "threads that wait");
    assert!(readers.iter().all(|reader| !reader.is_finished()), "a read was answered with missing bytes");
    stalled.source.come();
    for reader in readers {
        let (offset, piece) = soon("the readers' end", || reader.join().unwrap());
        assert!(piece == far[offset..][..MIB], "at {offset}");
    }
    assert_eq!((stalled.source.waiting(), stalled.requests()), (0, 0));
}
