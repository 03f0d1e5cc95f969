//! Files of the memory file system that the kernel reads in place of the mount's (FUSE passthrough).
//!
//! Registering needs the FUSE device, and the kernel's leave (`CAP_SYS_ADMIN`), which the daemon does not have. A copy of the
//! device that stays open keeps the mount's connection alive: its readers would wait for a daemon that died. So it is closed
//! as soon as the line hangs up (`hangup.rs`).

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cai::host::mounts::id_behind;
use fuser::BackingId;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};

use crate::ioctl;
use crate::memory::Memory;
use crate::session::Refusal;

/// Most files registered at once: each pins one in the kernel, and no model has as many weight files.
const LIMIT: usize = 65_536;

/// The FUSE device of a mount, and what is registered with it. Dropped, everything is given back.
pub(crate) struct Backing {
    device: OwnedFd,
    registered: BTreeSet<u32>,
}

impl Backing {
    pub(crate) fn new(device: OwnedFd) -> Self {
        Backing { device, registered: BTreeSet::new() }
    }

    /// Register `file`, which must be a regular file of `memory`, open for reading alone: the kernel's number for it.
    pub(crate) fn register(&mut self, memory: &Memory, file: &OwnedFd) -> Result<u32, Refusal> {
        check(memory, file)?;
        if self.registered.len() >= LIMIT {
            let text = format!("{LIMIT} files are registered already");
            return Err(Refusal::new("memory.register", text, "unregister files that nobody has open"));
        }
        let id = BackingId::create_raw(&self.device, file).map_err(|error| {
            Refusal::new(
                "memory.register",
                format!("the kernel does not take a file of the memory file system: {error}"),
                "passthrough needs Linux 6.9 or newer with CONFIG_FUSE_PASSTHROUGH, and is agreed on when the daemon starts \
                 to serve the mount; mount.mode = \"on-demand\" needs none",
            )
        })?;
        self.registered.insert(id);
        Ok(id)
    }

    /// Take back what [`Backing::register`] gave. Handles that are open stay readable.
    pub(crate) fn unregister(&mut self, id: u32) -> Result<String, Refusal> {
        if !self.registered.remove(&id) {
            let text = format!("file {id} is not registered on this connection");
            return Err(Refusal::new("memory.register", text, "unregister what was registered here, once"));
        }
        ioctl::close_backing(&self.device, id).map_err(|error| {
            let text = format!("taking file {id} back: {error}");
            Refusal::new("memory.register", text, "see the kernel log: dmesg | tail")
        })?;
        Ok(format!("file {id} is not registered any more"))
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        for id in &self.registered {
            // The connection may be gone already, and every number with it.
            let _ = ioctl::close_backing(&self.device, *id);
        }
    }
}

/// A regular file of `memory`, open for reading alone.
fn check(memory: &Memory, file: &OwnedFd) -> Result<(), Refusal> {
    let refuse = |what: String| {
        let hint = "register files of the memory file system, opened for reading";
        Err(Refusal::new("memory.register", what, hint))
    };
    // Before it is asked for anything: a file of the FUSE mount would be the daemon's to answer for.
    if id_behind(file).is_none_or(|id| id_behind(memory.mount()) != Some(id)) {
        return refuse("the file is not in the private memory file system of this connection".into());
    }
    let (stat, flags) = match (fstat(file), fcntl(file, FcntlArg::F_GETFL)) {
        (Ok(stat), Ok(flags)) => (stat, OFlag::from_bits_retain(flags)),
        (Err(error), _) | (_, Err(error)) => return refuse(format!("looking at the file: {error}")),
    };
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return refuse(format!("the file has mode {:06o}; expected a regular file", stat.st_mode));
    }
    if flags & OFlag::O_ACCMODE != OFlag::O_RDONLY || flags.contains(OFlag::O_PATH) {
        return refuse("the file is not open for reading alone (O_RDONLY)".into());
    }
    Ok(())
}

/// The place for a [`Backing`], which is closed when the line hangs up.
#[derive(Clone, Default)]
pub(crate) struct Slot(Arc<Mutex<Place>>);

/// What is in a [`Slot`].
#[derive(Default)]
pub(crate) struct Place {
    backing: Option<Backing>,
    closed: bool,
}

impl Slot {
    /// What is in it, while nobody else can change that.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Place> {
        // What is in it is whole between any two statements, also behind a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empty it, and keep it so.
    pub(crate) fn close(&self) {
        let mut place = self.lock();
        place.closed = true;
        place.backing = None;
    }
}

impl Place {
    /// Nothing stays in a place that is closed.
    pub(crate) fn put(&mut self, backing: Backing) {
        self.backing = (!self.closed).then_some(backing);
    }

    pub(crate) fn clear(&mut self) {
        self.backing = None;
    }

    pub(crate) fn backing(&mut self) -> Option<&mut Backing> {
        self.backing.as_mut()
    }
}
