//! The mount: made at the configured point, read-ahead set, detached. Nothing else of the machine is touched.
//!
//! `/tmp/model` has a world-writable parent, so the point is opened without following links, its owner checked, and it is
//! mounted over by descriptor. What was mounted is known by its id and device: it is found by them, and detached only by a descriptor
//! that is on it, wherever it has come to lie. Both are given again at once when somebody else has unmounted it, so the id that lasts
//! is compared where the kernel has one (Linux 6.8). It is not kept open: then nobody else could unmount it, and the daemon would not
//! learn of it.
//!
//! What a crash left there is detached first, and nothing else ([`is_stale`]): a FUSE mount of ours whose device nobody holds,
//! and a published memory file system of ours behind which no session lives.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use cai::error::chain;
use cai::host;
use cai::host::directory::{Directory, DirectoryError, open_or_create};
use cai::host::mounts::{
    FS_SOURCE, MountEntry, by_id, id_behind, is_covered, lasting_id_behind, mount_behind,
};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statfs::fstatfs;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::backing::{Backing, Slot};
use crate::fuse;
use crate::memory::{Memory, is_left_behind};
use crate::session::Refusal;
use crate::terms::Terms;

/// How often a mount is looked for that goes away meanwhile.
const LOOKS: usize = 8;

/// The mount of one connection.
#[derive(Default)]
pub(crate) struct MountPoint {
    mounted: Option<OurMount>,
    /// The device of a FUSE mount, while the daemon lives.
    backing: Slot,
}

impl MountPoint {
    /// Where files are registered with the FUSE mount: empty without one, and once the daemon is gone.
    pub(crate) fn backing(&self) -> &Slot {
        &self.backing
    }

    /// Open `/dev/fuse`, mount it at the configured point, and give the descriptor.
    pub(crate) fn mount(&mut self, terms: &Terms) -> Result<(String, OwnedFd), Refusal> {
        self.check_free()?;
        let (mut text, directory) = prepare(terms)?;
        let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|error| {
            Refusal::new(
                "fuse.device",
                format!("/dev/fuse cannot be opened: {error}"),
                "load the fuse kernel module: modprobe fuse",
            )
        })?;
        let copy = device.try_clone().map_err(|error| {
            let text = format!("keeping /dev/fuse: {error}");
            Refusal::new("fuse.device", text, "see whether descriptors are exhausted")
        })?;
        let mount = fuse::mount(terms, &device, &directory)?;
        let point = self.adopt(terms, &mount)?;
        self.backing.lock().put(Backing::new(copy));
        let _ = write!(text, "mounted at {}", point.display());
        Ok((text, device))
    }

    /// Seal the memory file system and mount it at the configured point. The point is looked at first, and the file system is
    /// read-only as a whole before anybody sees it.
    pub(crate) fn publish(&mut self, terms: &Terms, memory: &mut Memory) -> Result<String, Refusal> {
        if memory.is_published() {
            let text = "the memory file system of this connection has been published already";
            return Err(Refusal::new(
                "memory.publish",
                text,
                "open a new line to the helper for another one",
            ));
        }
        self.check_free()?;
        let (mut text, directory) = prepare(terms)?;
        let entries = memory.seal(terms)?;
        let failed = |doing: &str, error: std::io::Error| {
            let text = format!("{doing} at {}: {error}", terms.point.display());
            Refusal::new("memory.publish", text, "see the kernel log: dmesg | tail")
        };
        hang(memory.mount(), &directory).map_err(|error| failed("mounting memory", error.into()))?;
        memory.set_published();
        let point = self.adopt(terms, memory.mount())?;
        // The file system is read-only already; this makes the mount show it, too. Not with the mount call that does it in
        // one step (mount_setattr): that came with Linux 5.12.
        let flags = MsFlags::MS_REMOUNT
            | MsFlags::MS_BIND
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC;
        let none = None::<&str>;
        if let Err(error) = mount(none, link(memory.mount()).as_str(), none, flags, none) {
            let _ = self.detach();
            return Err(failed("setting the mount's options", error.into()));
        }
        let _ = write!(text, "{entries} entries in memory, mounted at {}", point.display());
        Ok(text)
    }

    /// Put a FUSE mount that is mounted nowhere yet at the configured point.
    pub(crate) fn attach(&mut self, terms: &Terms, detached: &OwnedFd) -> Result<String, Refusal> {
        self.check_free()?;
        let (mut text, directory) = prepare(terms)?;
        hang(detached, &directory).map_err(|error| fuse::failed(terms, error))?;
        let point = self.adopt(terms, detached)?;
        let _ = write!(text, "mounted at {}", point.display());
        Ok(text)
    }

    /// At once, and without asking the mount, which may wait for whoever asks: one mount at a time.
    fn check_free(&mut self) -> Result<(), Refusal> {
        let Some(entry) = self.mounted.as_ref().and_then(OurMount::entry) else {
            // None, or somebody else detached it.
            self.forget();
            return Ok(());
        };
        let text = format!("this connection has a mount at {} already", entry.point.display());
        Err(Refusal::new("mount-point.busy", text, "unmount it first"))
    }

    /// Take `descriptor`, the root of what was just mounted, for ours: where it is, as the kernel spells it.
    fn adopt(&mut self, terms: &Terms, descriptor: &OwnedFd) -> Result<PathBuf, Refusal> {
        let Some(MountEntry { id, point, device, .. }) = mount_behind(descriptor) else {
            let _ = umount2(link(descriptor).as_str(), MntFlags::MNT_DETACH);
            return Err(Refusal::new(
                "mount-point.busy",
                format!("what was mounted at {} is not in the mount table", terms.point.display()),
                "see whether something else unmounts there at the same time: findmnt; and whether /proc is mounted",
            ));
        };
        self.mounted = Some(OurMount { id, device, lasting: lasting_id_behind(descriptor) });
        Ok(point)
    }

    /// The kernel caps what FUSE itself may ask for at 128 KiB; only the backing device's setting goes beyond.
    pub(crate) fn readahead(&self, kib: u32) -> Result<String, Refusal> {
        let device = self.mounted.as_ref().map(|mounted| &mounted.device).ok_or_else(|| {
            Refusal::new("readahead.failed", "nothing is mounted on this connection", "mount first")
        })?;
        let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
        std::fs::write(&file, kib.to_string()).map_err(|error| {
            Refusal::new(
                "readahead.failed",
                format!("writing {file}: {error}"),
                "reads work, with less read-ahead",
            )
        })?;
        Ok(format!("read-ahead of the mount is {kib} KiB"))
    }

    /// Detach what this connection mounted, and only that. It stays ours until it is gone.
    pub(crate) fn detach(&mut self) -> Result<String, Refusal> {
        let Some(mounted) = &self.mounted else { return Ok("nothing was mounted".into()) };
        let Some(entry) = mounted.entry() else {
            return Ok(self.gone_already());
        };
        let point = entry.point.display();
        let refuse = |text: String| {
            let hint = format!("look at: findmnt {point}; then: umount -l it");
            Err(Refusal::new("mount-point.busy", text, hint))
        };
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = open(&entry.point, flags, Mode::empty()).ok();
        let root = root.filter(|root| id_behind(root) == Some(entry.id));
        if root.as_ref().is_some_and(|root| lasting_id_behind(root) != mounted.lasting) {
            return Ok(self.gone_already());
        }
        // The kernel would take away what lies on top.
        let Some(root) = root.filter(|_| !is_covered(&entry)) else {
            return refuse(format!("something else is mounted over the model at {point}"));
        };
        match umount2(link(&root).as_str(), MntFlags::MNT_DETACH) {
            Ok(()) => {
                self.forget();
                Ok(format!("detached {point}"))
            }
            Err(error) => refuse(format!("detaching {point}: {error}")),
        }
    }

    fn gone_already(&mut self) -> String {
        self.forget();
        "the mount was detached already".into()
    }

    /// It is gone, and what was registered with it is nobody's.
    fn forget(&mut self) {
        self.mounted = None;
        self.backing.lock().clear();
    }
}

/// A mount this connection made.
struct OurMount {
    /// Its mount id: unique while it exists.
    id: u64,
    /// Its device, `major:minor`.
    device: String,
    /// Its id that no other mount gets, if the kernel has such.
    lasting: Option<u64>,
}

impl OurMount {
    /// What the mount table says of it, while it exists. Another one that has got its id is not it.
    fn entry(&self) -> Option<MountEntry> {
        by_id(self.id).filter(|entry| entry.device == self.device && entry.source == FS_SOURCE)
    }
}

/// The path of what `descriptor` is open on, for calls that take no descriptor.
pub(crate) fn link(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Put `mount`, which hangs nowhere yet, over `directory`.
pub(crate) fn hang(mount: &OwnedFd, directory: &OwnedFd) -> Result<(), rustix::io::Errno> {
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", directory, "", empty)
}

/// Make the mount point fit to be mounted over: words for what was in the way, and the point.
fn prepare(terms: &Terms) -> Result<(String, OwnedFd), Refusal> {
    let detached = detach_stale(terms)?;
    let text = if detached { "detached a dead mount left by a crash; " } else { "" };
    Ok((text.into(), open_mount_point(terms)?))
}

/// Detach stale mounts of ours at the point. A living one, or anybody else's mount, is refused. The directory above is looked at
/// first, and what is found in it is detached by descriptor: the owner of the point may exchange it meanwhile.
fn detach_stale(terms: &Terms) -> Result<bool, Refusal> {
    let point = &terms.point;
    let (Some(parent), Some(name)) = (point.parent(), point.file_name()) else { return Ok(false) };
    let parent = open_or_create(parent, &[]).map_err(|error| unfit(terms, &error))?.descriptor;
    let busy = |text: String, hint: String| Refusal::new("mount-point.busy", text, hint);
    let mut detached = false;
    while let Some((root, top)) = topmost(terms, &parent, name)? {
        if !is_stale(&root, &top) {
            return Err(busy(
                format!("{} already has a {} mount of {}", point.display(), top.fs_type, top.source),
                format!("stop the other user of it, or: umount {}", point.display()),
            ));
        }
        match umount2(link(&root).as_str(), MntFlags::MNT_DETACH) {
            Ok(()) => detached = true,
            // Its own helper was faster.
            Err(_) if mount_behind(&root).is_none() => {}
            Err(error) => {
                let hint = format!("umount -l {}", point.display());
                return Err(busy(format!("detaching the dead mount: {error}"), hint));
            }
        }
    }
    Ok(detached)
}

/// The topmost mount at `name` in `parent`, and its root (`O_PATH`).
fn topmost(terms: &Terms, parent: &OwnedFd, name: &OsStr) -> Result<Option<(OwnedFd, MountEntry)>, Refusal> {
    let io = |error: Errno| {
        let Terms { point, point_setting: setting, .. } = terms;
        let text = format!("opening {}: {error}", point.display());
        Refusal::new("mount-point.io", text, format!("check the path {setting}"))
    };
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    for _ in 0..LOOKS {
        let root = match openat(parent, name, flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::ENOENT) => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        if id_behind(&root) == id_behind(parent) {
            return Ok(None);
        }
        // One that is in no table was detached in this moment.
        if let Some(entry) = mount_behind(&root) {
            return Ok(Some((root, entry)));
        }
    }
    Err(io(Errno::ESTALE))
}

/// Whether `top`, the topmost mount at the point, is ours and nobody lives behind it. A FUSE mount says so itself, when it is asked
/// what the kernel never answers for it: attributes of a dead one are still known. (One that another line has and nobody serves
/// answers when that line hangs up.) A tmpfs never dies: it is stale when it is named and sealed as ours is, and its root directory
/// is not locked.
fn is_stale(root: &OwnedFd, top: &MountEntry) -> bool {
    if top.is_our_fuse() {
        return matches!(fstatfs(root), Err(Errno::ENOTCONN));
    }
    top.is_our_memory() && is_left_behind(root)
}

/// Open the mount point, creating what is missing as root. `/tmp/model` has a world-writable parent: whoever may create a
/// name there must not choose what we mount over, nor exchange it afterwards.
fn open_mount_point(terms: &Terms) -> Result<OwnedFd, Refusal> {
    let directory = open_or_create(&terms.point, &[]).map_err(|error| unfit(terms, &error))?;
    check_owner(terms, &directory)?;
    check_empty(terms, &directory.descriptor)?;
    Ok(directory.descriptor)
}

/// What is wrong with the point, or above it.
fn unfit(terms: &Terms, error: &DirectoryError) -> Refusal {
    let setting = terms.point_setting;
    let (code, hint) = match error {
        DirectoryError::Symlink { .. } => {
            ("mount-point.symlink", format!("give {setting} without symbolic links"))
        }
        DirectoryError::NotADirectory { .. } => {
            ("mount-point.not-a-directory", format!("remove it, or choose another {setting}"))
        }
        DirectoryError::Parent { .. } => {
            ("mount-point.parent", format!("choose a {setting} whose parents belong to root"))
        }
        DirectoryError::Io { .. } => ("mount-point.io", format!("check the path {setting}")),
    };
    Refusal::new(code, chain(error), hint)
}

/// Root's, or the daemon's where the daemon cannot exchange it.
fn check_owner(terms: &Terms, directory: &Directory) -> Result<(), Refusal> {
    let (uid, daemon) = (directory.stat.st_uid, terms.daemon.uid.as_raw());
    if uid == 0 || (uid == daemon && !directory.shared_parent) {
        return Ok(());
    }
    let point = terms.point.display();
    let text = if uid == daemon {
        format!("{point} belongs to {}, which could exchange it in the directory above", host::DAEMON_USER)
    } else if daemon == 0 {
        format!("{point} belongs to uid {uid}, expected root")
    } else {
        format!("{point} belongs to uid {uid}, expected root or {}", host::DAEMON_USER)
    };
    Err(Refusal::new("mount-point.owner", text, format!("chown root: {point}, after looking at who made it")))
}

fn check_empty(terms: &Terms, directory: &OwnedFd) -> Result<(), Refusal> {
    let Terms { point, point_setting: setting, .. } = terms;
    let first = std::fs::read_dir(link(directory)).map_err(|error| {
        Refusal::new(
            "mount-point.io",
            format!("listing {}: {error}", point.display()),
            format!("check the path {setting}"),
        )
    })?;
    match first.into_iter().next() {
        None => Ok(()),
        Some(entry) => {
            let name = entry.map(|entry| entry.file_name()).unwrap_or_default();
            Err(Refusal::new(
                "mount-point.not-empty",
                format!("{} is not empty: it holds {}", point.display(), name.display()),
                format!("empty it, or choose another {setting}"),
            ))
        }
    }
}
