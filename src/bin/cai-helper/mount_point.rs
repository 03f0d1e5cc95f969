//! The mount: made at the configured point, read-ahead set, detached. Nothing else of the machine is touched.
//!
//! `/tmp/model` has a world-writable parent, so the point is opened without following links, its owner checked, and it is
//! mounted over by descriptor.
//!
//! What a crash left there is detached first, and nothing else ([`is_stale`]): a FUSE mount of ours whose device nobody holds,
//! and a published memory file system of ours behind which no session lives.

use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cai::error::chain;
use cai::host;
use cai::host::directory::{DirectoryError, open_or_create};
use cai::host::mounts::{FS_SOURCE, FUSE_TYPE, MountEntry, mounts_at};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::sys::statfs::statfs;
use rustix::mount::{MoveMountFlags, move_mount};

use crate::backing::{Backing, Slot};
use crate::memory::{Memory, is_left_behind};
use crate::session::Refusal;
use crate::terms::Terms;

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
        let options = format!(
            "fd={},rootmode=40000,user_id={},group_id={}{}{}",
            device.as_raw_fd(),
            terms.daemon.uid,
            terms.daemon.gid,
            if terms.kernel_checks { ",default_permissions" } else { "" },
            if terms.allow_other { ",allow_other" } else { "" }
        );
        let target = link(&directory);
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(FS_SOURCE), target.as_str(), Some(FUSE_TYPE), flags, Some(options.as_str())).map_err(
            |error| {
                Refusal::new(
                    "fuse.mount",
                    format!("mounting at {}: {error}", terms.point.display()),
                    "see the kernel log: dmesg | tail",
                )
            },
        )?;
        let point = self.adopt(terms, &directory, MountEntry::is_our_fuse)?;
        *self.backing.lock() = Some(Backing::new(copy));
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
        let (mut text, directory) = prepare(terms)?;
        let entries = memory.seal(terms)?;
        let failed = |doing: &str, error: std::io::Error| {
            let text = format!("{doing} at {}: {error}", terms.point.display());
            Refusal::new("memory.publish", text, "see the kernel log: dmesg | tail")
        };
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(memory.mount(), "", &directory, "", empty)
            .map_err(|error| failed("mounting memory", error.into()))?;
        memory.set_published();
        let device = memory.device_text();
        let point = self.adopt(terms, &directory, |entry| entry.device == device).inspect_err(|_| {
            let _ = umount2(link(memory.mount()).as_str(), MntFlags::MNT_DETACH);
        })?;
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
        let (mut text, directory) = prepare(terms)?;
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(detached, "", &directory, "", empty).map_err(|error| {
            let text = format!("mounting at {}: {error}", terms.point.display());
            Refusal::new("fuse.mount", text, "see the kernel log: dmesg | tail")
        })?;
        let point = self.adopt(terms, &directory, MountEntry::is_our_fuse).inspect_err(|_| {
            let _ = umount2(link(detached).as_str(), MntFlags::MNT_DETACH);
        })?;
        let _ = write!(text, "mounted at {}", point.display());
        Ok(text)
    }

    /// Take what was just mounted over `directory` for ours: where it is, as the kernel spells it.
    fn adopt(
        &mut self,
        terms: &Terms,
        directory: &OwnedFd,
        is_ours: impl Fn(&MountEntry) -> bool,
    ) -> Result<PathBuf, Refusal> {
        let point = std::fs::read_link(link(directory)).unwrap_or_else(|_| terms.point.clone());
        let top = mounts_at(&point).pop().filter(is_ours);
        self.mounted = top.map(|MountEntry { id, device, .. }| OurMount { point: point.clone(), id, device });
        if self.mounted.is_some() {
            return Ok(point);
        }
        // What cannot be found again could not be taken away at the end. A FUSE mount is dead without its device anyway.
        Err(Refusal::new(
            "mount-point.busy",
            format!("what was mounted at {} is not what the mount table shows there", point.display()),
            "see whether something else mounts there at the same time: findmnt; and whether /proc is mounted",
        ))
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
        let point = mounted.point.clone();
        let entries = mounts_at(&point);
        let refuse = |text: String| {
            Err(Refusal::new(
                "mount-point.busy",
                text,
                format!("look at: findmnt {}; then: umount -l it", point.display()),
            ))
        };
        if !entries.iter().any(|entry| entry.id == mounted.id) {
            self.forget();
            return Ok(format!("{} was detached already", point.display()));
        }
        if entries.last().is_some_and(|top| top.id != mounted.id) {
            return refuse(format!("something else is mounted over the model at {}", point.display()));
        }
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {
                self.forget();
                Ok(format!("detached {}", point.display()))
            }
            Err(error) => refuse(format!("detaching {}: {error}", point.display())),
        }
    }

    /// It is gone, and what was registered with it is nobody's.
    fn forget(&mut self) {
        self.mounted = None;
        self.backing.lock().take();
    }
}

/// A mount this connection made.
struct OurMount {
    /// Where, as the kernel spells it.
    point: PathBuf,
    /// Its mount id: unique while it exists.
    id: u64,
    /// Its device, `major:minor`.
    device: String,
}

/// The path of what `descriptor` is open on, for calls that take no descriptor.
fn link(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// Make the mount point fit to be mounted over: words for what was in the way, and the point.
fn prepare(terms: &Terms) -> Result<(String, OwnedFd), Refusal> {
    let detached = detach_stale(&terms.point)?;
    let text = if detached { "detached a dead mount left by a crash; " } else { "" };
    Ok((text.into(), open_mount_point(terms)?))
}

/// Detach stale mounts of ours at `point`. A living one, or anybody else's mount, is refused.
fn detach_stale(point: &Path) -> Result<bool, Refusal> {
    let mut detached = false;
    while let Some(top) = mounts_at(point).pop() {
        if !is_stale(point, &top) {
            return Err(Refusal::new(
                "mount-point.busy",
                format!("{} already has a {} mount of {}", point.display(), top.fs_type, top.source),
                format!("stop the other user of it, or: umount {}", point.display()),
            ));
        }
        umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(|error| {
            Refusal::new(
                "mount-point.busy",
                format!("detaching the dead mount: {error}"),
                format!("umount -l {}", point.display()),
            )
        })?;
        detached = true;
    }
    Ok(detached)
}

/// Whether `top`, the topmost mount at `point`, is ours and nobody lives behind it. A FUSE mount says so itself, when it is asked
/// what the kernel never answers for it: attributes of a dead one are still known. A tmpfs never dies: it is stale when it is named
/// and sealed as ours is, and its root directory is not locked.
fn is_stale(point: &Path, top: &MountEntry) -> bool {
    if top.is_our_fuse() {
        return matches!(statfs(point), Err(Errno::ENOTCONN));
    }
    top.is_our_memory() && is_left_behind(point, &top.device)
}

/// Open the mount point, creating what is missing as root. `/tmp/model` has a world-writable parent: whoever may create a
/// name there must not choose what we mount over, nor exchange it afterwards.
fn open_mount_point(terms: &Terms) -> Result<OwnedFd, Refusal> {
    let Terms { point, point_setting: setting, .. } = terms;
    let directory = open_or_create(point, &[]).map_err(|error| {
        let (code, hint) = match &error {
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
        Refusal::new(code, chain(&error), hint)
    })?;
    check_owner(terms, directory.stat.st_uid)?;
    check_empty(terms, &directory.descriptor)?;
    Ok(directory.descriptor)
}

fn check_owner(terms: &Terms, uid: u32) -> Result<(), Refusal> {
    if uid == 0 || uid == terms.daemon.uid.as_raw() {
        return Ok(());
    }
    let point = terms.point.display();
    let daemon =
        if terms.daemon.uid.is_root() { String::new() } else { format!(" or {}", host::DAEMON_USER) };
    Err(Refusal::new(
        "mount-point.owner",
        format!("{point} belongs to uid {uid}, expected root{daemon}"),
        format!("chown root: {point}, after looking at who made it"),
    ))
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
