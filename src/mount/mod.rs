//! The plaintext, read-only, in the file system.
//!
//! Three ways to the plaintext, all over one [`ModelFs`]:
//! - **on demand** (`fuse`): the kernel asks for ranges, and its page cache keeps what it got;
//! - **load** (`load`, `ledger`): a large file is decrypted as a whole when it is opened, and the kernel reads that memory
//!   by itself (FUSE passthrough); everything else is on demand;
//! - **ram** (`ram`): the whole model lies decrypted in a memory file system, which is itself the mount.
//!
//! Owns also: `fs` (the model as files, no kernel types), `revisions` (which of them is shown), `info` (what `stat` shows of one), `counts` (what is measured), `memory` (the memory that whole
//! files are decrypted into), `whole` (all cores on one file), `far` (who waits for the network), `backing` (one kernel
//! call). Must not know: where the ciphertext comes from beyond [`crate::ciphertext::Ciphertext`]. Threads: FUSE workers, some
//! of which may block with the ciphertext's deadline, and those of `load`; no lock is held over a read. Tested in
//! `tests/mount_model.rs`, `tests/mount_kernel.rs`, `tests/mount_modes.rs`, `tests/mount_load.rs`, `tests/mount_limits.rs`,
//! `tests/mount_stall.rs`, `tests/mount_fire.rs` and, beside the real gocryptfs, in `tests/gocryptfs_options.rs`.

mod backing;
mod counts;
mod far;
mod fs;
mod fuse;
mod info;
mod ledger;
mod load;
mod memory;
mod ram;
mod revisions;
mod whole;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use nix::mount::{MntFlags, umount2};
use tokio::sync::watch;

pub use counts::{Counts, READ_BOUNDS, Reads, counts};
pub use fs::{FsError, ModelFs, ReadBuffers};
use fuse::KernelFs;
pub use info::{Attributes, Kind, NodeInfo};
use load::Loader;
pub use load::{LoadOptions, Registrar};
pub use memory::Memory;
pub use ram::{RamError, fill, memory_needed};
use revisions::Revisions;

use crate::error::{ErrorClass, Fault};

/// Threads on a machine with few cores: one that waits for the network must not keep the others' reads of local data waiting.
const FEWEST_THREADS: usize = 16;
/// Threads on a machine with many: each that reads takes buffers, of 1.2 MiB at most (3.2 MiB while it reads what is not local), of
/// which as many are kept as there are cores. They are what readers borrow memory from, however many there are.
const MOST_THREADS: usize = 64;

/// The mount could not be put in place or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel did not begin the FUSE conversation.
    #[error("starting the FUSE session")]
    Session(#[source] io::Error),
    /// Mounting at a path failed.
    #[error("mounting at {}", point.display())]
    Mount {
        /// Where.
        point: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The thread for the session could not be started.
    #[error("starting the FUSE threads")]
    Thread(#[source] io::Error),
    /// Unmounting failed.
    #[error("unmounting")]
    Unmount(#[source] io::Error),
}

impl Fault for MountError {
    fn class(&self) -> ErrorClass {
        match self {
            MountError::Session(_) | MountError::Thread(_) | MountError::Unmount(_) => ErrorClass::Transient,
            MountError::Mount { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            MountError::Session(_) => "mount.session",
            MountError::Mount { .. } => "mount.failed",
            MountError::Thread(_) => "mount.thread",
            MountError::Unmount(_) => "mount.unmount",
        }
    }

    fn hint(&self) -> String {
        match self {
            MountError::Session(_) | MountError::Thread(_) => "see the kernel log: dmesg | tail".into(),
            MountError::Mount { point, .. } => {
                format!(
                    "{} must be an empty directory, and /dev/fuse must exist (modprobe fuse)",
                    point.display()
                )
            }
            MountError::Unmount(_) => "something uses the mount: lsof, then fusermount3 -u".into(),
        }
    }
}

/// A mounted model. The kernel's requests are answered until the mount is gone.
pub struct Mounted {
    unmounter: SessionUnmounter,
    revisions: Arc<Revisions>,
    loader: Arc<Loader>,
    can_pass_through: bool,
    /// Where [`Mounted::at_path`] mounted.
    point: Option<PathBuf>,
    ended: watch::Receiver<bool>,
}

impl Mounted {
    /// Serve a `/dev/fuse` descriptor that is mounted already. `threads` 0 = one per core, but 16 to 64. Blocks until the kernel's
    /// first request is answered.
    ///
    /// # Errors
    /// [`MountError::Session`], [`MountError::Thread`].
    pub fn from_device(fs: ModelFs, device: OwnedFd, threads: usize) -> Result<Self, MountError> {
        // Who may read is decided by owner, group and mode, checked by the kernel (`default_permissions`).
        let config = config(threads, SessionACL::All);
        let parts = Parts::new(fs);
        let kernel = parts.kernel(&config);
        let session =
            Session::from_fd(kernel, device, SessionACL::All, config).map_err(MountError::Session)?;
        Self::run(session, None, parts)
    }

    /// Mount at `point` and serve; for its owner only.
    ///
    /// # Errors
    /// [`MountError::Mount`], [`MountError::Thread`].
    pub fn at_path(fs: ModelFs, point: &Path, threads: usize) -> Result<Self, MountError> {
        let mut config = config(threads, SessionACL::Owner);
        config.mount_options = vec![
            MountOption::RO,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::DefaultPermissions,
            MountOption::FSName("cai".into()),
            MountOption::Subtype("cai".into()),
        ];
        let parts = Parts::new(fs);
        let session = Session::new(parts.kernel(&config), point, &config)
            .map_err(|source| MountError::Mount { point: point.to_path_buf(), source })?;
        Self::run(session, Some(point.to_path_buf()), parts)
    }

    fn run(mut session: Session<KernelFs>, point: Option<PathBuf>, parts: Parts) -> Result<Self, MountError> {
        let loader = parts.loader.clone();
        let unmounter = session.unmount_callable();
        let (sender, ended) = watch::channel(false);
        let serve = move || {
            if let Err(error) = session.run() {
                tracing::warn!(event = "mount.ended", error = ?error, "the FUSE session ended with an error");
            }
            loader.close();
            let _ = sender.send(true);
        };
        std::thread::Builder::new().name("cai-fuse".into()).spawn(serve).map_err(MountError::Thread)?;
        let Parts { revisions, loader, can_pass_through } = parts;
        let can_pass_through = can_pass_through.get().copied().unwrap_or(false);
        Ok(Mounted { unmounter, revisions, loader, can_pass_through, point, ended })
    }

    /// Whether the kernel can read registered files by itself (FUSE passthrough, Linux 6.9), which load mode needs.
    pub fn can_pass_through(&self) -> bool {
        self.can_pass_through
    }

    /// Decrypt large files as a whole when they are opened, from now on.
    ///
    /// # Errors
    /// [`MountError::Thread`].
    pub fn load(&self, options: LoadOptions) -> Result<(), MountError> {
        self.loader.start(options).map_err(MountError::Thread)
    }

    /// Show `fs` from now on, inside the same mount: who opens a path gets it, who has a file or a directory open stays with
    /// what it was opened in. Gives the number of the revision that was shown until now, for [`Mounted::leave`].
    pub fn switch(&self, fs: ModelFs) -> u32 {
        self.revisions.switch(fs)
    }

    /// Wait until nothing of a replaced `revision` is open, and forget it.
    pub async fn leave(&self, revision: u32) {
        self.revisions.leave(revision).await;
    }

    /// Open files and directories of replaced revisions.
    pub fn left_open(&self) -> u64 {
        self.revisions.left_open()
    }

    /// Unmount what [`Mounted::at_path`] mounted. While files are open it is detached instead: nobody finds it any more, and
    /// who has a file open gets an error once this process is gone.
    ///
    /// # Errors
    /// [`MountError::Unmount`].
    pub fn unmount(&mut self) -> Result<(), MountError> {
        let busy = match (self.unmounter.unmount(), &self.point) {
            (Ok(()), _) => return Ok(()),
            (Err(error), None) => return Err(MountError::Unmount(error)),
            (Err(_), Some(point)) => point,
        };
        if nix::unistd::geteuid().is_root() {
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            return umount2(busy, flags).map_err(|error| MountError::Unmount(error.into()));
        }
        let status = Command::new("fusermount3").args(["-u", "-z", "--"]).arg(busy).status();
        match status.map_err(MountError::Unmount)? {
            status if status.success() => Ok(()),
            status => Err(MountError::Unmount(io::Error::other(format!("fusermount3: {status}")))),
        }
    }

    /// Wait until the mount is gone and the last request is answered.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // A dropped sender means the thread is gone, which is an end too.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

/// What a session is made of.
struct Parts {
    revisions: Arc<Revisions>,
    loader: Arc<Loader>,
    can_pass_through: Arc<OnceLock<bool>>,
}

impl Parts {
    fn new(fs: ModelFs) -> Self {
        let revisions = Arc::new(Revisions::new(fs));
        let loader = Arc::new(Loader::new(revisions.clone()));
        Parts { revisions, loader, can_pass_through: Arc::default() }
    }

    fn kernel(&self, config: &Config) -> KernelFs {
        let threads = config.n_threads.unwrap_or(1);
        KernelFs::new(self.revisions.clone(), self.loader.clone(), self.can_pass_through.clone(), threads)
    }
}

fn config(threads: usize, acl: SessionACL) -> Config {
    // A thread that waits for bytes from the network answers nobody else: more of them than cores.
    let cores =
        || std::thread::available_parallelism().map_or(1, usize::from).clamp(FEWEST_THREADS, MOST_THREADS);
    let mut config = Config::default();
    config.n_threads = Some(if threads == 0 { cores() } else { threads });
    config.acl = acl;
    config
}
