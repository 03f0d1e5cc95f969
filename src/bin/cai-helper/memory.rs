//! The private memory file system of a session: a tmpfs of huge pages that is mounted nowhere until it is published.
//!
//! Plaintext lies in it, so no page of it may be swapped: `noswap` where the kernel knows it (Linux 6.4), no active swap
//! elsewhere. It goes away with the last descriptor into it.
//!
//! A lock (`flock`) on its root directory, held by the helper that made it, says that a session lives behind it; the kernel
//! releases it with the helper, however that ends. So one that is still mounted and not locked was left by a helper that was
//! killed ([`is_left_behind`]). Who may read a published model may hold such a lock, too: then it is taken for a living
//! one, and the refusal tells how to detach it by hand.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cai::host::mounts::FS_SOURCE;
use cai::meminfo::{self, MemInfo};
use nix::sys::stat::{fstat, major, minor};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, fsconfig_create, fsconfig_reconfigure,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick,
};

use crate::seal::seal;
use crate::session::Refusal;
use crate::terms::Terms;

/// Smallest size in bytes, and its unit: a page. A tmpfs of size 0 would have no limit.
const PAGE: u64 = 4096;

/// How a directory of it is opened.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The memory file system of one connection.
pub(crate) struct Memory {
    /// The mount (`O_PATH`), detached until it is published.
    mount: OwnedFd,
    /// Its root directory, locked for as long as the session lives.
    _lock: OwnedFd,
    /// Its device number.
    device: u64,
    /// It was made with `noswap`.
    noswap: bool,
    stage: Stage,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The daemon's to fill.
    Private,
    /// Nobody's to write, with so many entries.
    Sealed(u64),
    /// Mounted at the mount point, for the only time.
    Published,
}

impl Memory {
    /// Make it: what it is like, and its root directory for the daemon.
    pub(crate) fn create(terms: &Terms) -> Result<(Self, String, OwnedFd), Refusal> {
        let memory = MemInfo::read().map_err(|error| unreadable(meminfo::PATH, &error))?;
        let size = size(terms, &memory);
        let context = context()?;
        let noswap = without_swap(&context)?;
        let options = [
            ("source", FS_SOURCE.to_owned()),
            ("size", size.to_string()),
            // No limit: by default a tmpfs has room for half as many files as the machine has pages, whatever its size.
            ("nr_inodes", "0".to_owned()),
            ("mode", "0700".to_owned()),
            ("uid", terms.daemon.uid.to_string()),
            ("gid", terms.daemon.gid.to_string()),
        ];
        for (option, value) in options {
            let set = fsconfig_set_string(&context, option, value.as_str());
            set.map_err(|error| failed(&format!("setting {option}={value}"), error))?;
        }
        // Not `always`, which gives the smallest file a huge page, and counts it.
        let huge = match fsconfig_set_string(&context, "huge", "within_size") {
            Ok(()) => true,
            // A kernel without transparent huge pages.
            Err(Errno::INVAL) => false,
            Err(error) => return Err(failed("setting huge=within_size", error)),
        };
        fsconfig_create(&context).map_err(|error| failed("making it", error))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| failed("mounting it", error))?;
        let root = || openat(&mount, ".", DIRECTORY, Mode::empty());
        // Two of them: the lock must end with this process, not with the daemon's copy.
        let (lock, root) = (root(), root());
        let lock = lock.map_err(|error| failed("opening it", error))?;
        let root = root.map_err(|error| failed("opening it", error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed("locking it", error))?;
        let device = fstat(&lock).map_err(|error| failed("looking at it", from_nix(error)))?.st_dev;
        let text = format!(
            "a private memory file system of {size} bytes, {}, {}",
            if huge { "of huge pages" } else { "of ordinary pages: this kernel refuses huge=within_size" },
            if noswap { "noswap" } else { "without noswap, which this kernel lacks: no swap is active" },
        );
        Ok((Memory { mount, _lock: lock, device, noswap, stage: Stage::Private }, text, root))
    }

    /// Its device number, as `fstat` gives it for every file in it.
    pub(crate) const fn device(&self) -> u64 {
        self.device
    }

    /// Its device as the mount table spells it: `major:minor`.
    pub(crate) fn device_text(&self) -> String {
        spell(self.device)
    }

    /// The mount.
    pub(crate) fn mount(&self) -> &OwnedFd {
        &self.mount
    }

    /// Whether it has been mounted at the mount point: that can be done once.
    pub(crate) fn is_published(&self) -> bool {
        self.stage == Stage::Published
    }

    /// It has been mounted at the mount point.
    pub(crate) fn set_published(&mut self) {
        self.stage = Stage::Published;
    }

    /// Give everything in it the owner and permissions of `terms`, and let nobody write to it any more: how many entries
    /// there are. Done already, it is not done again: it could not be.
    pub(crate) fn seal(&mut self, terms: &Terms) -> Result<u64, Refusal> {
        if let Stage::Sealed(entries) = self.stage {
            return Ok(entries);
        }
        let entries = seal(&self.mount, terms)?;
        self.make_read_only()?;
        self.stage = Stage::Sealed(entries);
        Ok(entries)
    }

    /// Let nobody write to it any more, root included.
    fn make_read_only(&self) -> Result<(), Refusal> {
        let reconfigure = || {
            let context =
                fspick(&self.mount, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
            if self.noswap {
                // From 6.4 until a fix of late 2025, Linux took its absence for the wish to swap again and refused that.
                fsconfig_set_flag(&context, "noswap")?;
            }
            fsconfig_set_flag(&context, "ro")?;
            fsconfig_reconfigure(&context)
        };
        reconfigure().map_err(|error| match error {
            Errno::BUSY => Refusal::new(
                "memory.publish",
                "a file in memory is still open or mapped for writing, or open without a name",
                "close every file in the memory file system, then publish again; restarting cai does that",
            ),
            error => Refusal::new(
                "memory.publish",
                format!("making the memory file system read-only: {error}"),
                "set mount.mode = \"load\" or \"on-demand\"",
            ),
        })
    }
}

/// Whether the tmpfs of ours that is mounted at `point`, with `device` as the mount table spells it, belongs to no living
/// session.
pub(crate) fn is_left_behind(point: &Path, device: &str) -> bool {
    let Ok(root) = open(point, DIRECTORY | OFlags::NONBLOCK, Mode::empty()) else { return false };
    let same = fstat(&root).is_ok_and(|stat| spell(stat.st_dev) == device);
    // Shared: others who ask in the same moment are no session. Released on return.
    same && flock(root.as_fd(), FlockOperation::NonBlockingLockShared).is_ok()
}

fn spell(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// A new file system context of type tmpfs.
fn context() -> Result<OwnedFd, Refusal> {
    fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| match error {
        Errno::NOSYS => Refusal::new(
            "memory.kernel",
            "this kernel cannot make a file system that is mounted nowhere (no fsopen)",
            "it needs Linux 5.2 or newer; set mount.mode = \"on-demand\" on this one",
        ),
        error => failed("opening tmpfs", error),
    })
}

/// See to it that no page is swapped; whether by `noswap`.
fn without_swap(context: &OwnedFd) -> Result<bool, Refusal> {
    match fsconfig_set_flag(context, "noswap") {
        Ok(()) => return Ok(true),
        Err(Errno::INVAL) => {}
        Err(error) => return Err(failed("setting noswap", error)),
    }
    let table = match std::fs::read_to_string("/proc/swaps") {
        Ok(table) => table,
        // A kernel without swap.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(unreadable("/proc/swaps", &error)),
    };
    let swaps = swaps(&table);
    if swaps.is_empty() {
        return Ok(false);
    }
    Err(Refusal::new(
        "memory.swap",
        format!("the decrypted model could be written to swap: {}", swaps.join(", ")),
        "swapoff -a, and remove swap from /etc/fstab; or Linux 6.4 or newer, whose tmpfs knows noswap; or \
         mount.mode = \"on-demand\"",
    ))
}

/// What is swapped to: the first column of `/proc/swaps`, below its head line.
fn swaps(table: &str) -> Vec<&str> {
    table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect()
}

/// Size of the file system in bytes: whole pages, never 0. A tmpfs reserves nothing, so for files that are given back and
/// loaded again it is held to what is available now; a whole model must fit once, and what is cached today makes room.
fn size(terms: &Terms, memory: &MemInfo) -> u64 {
    let bytes = match (terms.whole_model, terms.memory_bytes) {
        (true, 0) => memory.total - memory.total / 16,
        (true, bytes) => bytes,
        (false, 0) => memory.available / 2,
        (false, bytes) => bytes.min(memory.available),
    };
    (bytes - bytes % PAGE).max(PAGE)
}

fn failed(doing: &str, error: Errno) -> Refusal {
    Refusal::new(
        "memory.failed",
        format!("the private memory file system: {doing}: {error}"),
        "see the kernel log: dmesg | tail; mount.mode = \"on-demand\" needs none",
    )
}

fn unreadable(path: &str, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new("memory.failed", format!("reading {path}: {error}"), "cai-helper needs /proc mounted")
}

fn from_nix(error: nix::Error) -> Errno {
    Errno::from_raw_os_error(error as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn size_is_the_configured_one_or_derived_and_never_unlimited() {
        let machine = || MemInfo { total: 64 * GIB, available: 40 * GIB };
        let size = |whole_model, memory_bytes, memory: MemInfo| {
            let terms = Terms { whole_model, ..Terms::for_owner("/m".into(), memory_bytes, 0) };
            super::size(&terms, &memory)
        };
        assert_eq!(size(true, 0, machine()), 60 * GIB);
        assert_eq!(size(true, 50 * GIB, machine()), 50 * GIB, "the page cache makes room");
        assert_eq!(size(false, 0, machine()), 20 * GIB);
        assert_eq!(size(false, 30 * GIB + 1, machine()), 30 * GIB);
        assert_eq!(size(false, 50 * GIB, machine()), 40 * GIB);
        for bytes in [0, 1] {
            assert_eq!(size(false, bytes, MemInfo { total: 0, available: 0 }), PAGE);
        }
    }

    #[test]
    fn swaps_are_named_and_the_head_line_is_none() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert_eq!(swaps(head), [""; 0]);
        let table = format!("{head}/dev/vda2   partition\t1048572\t\t0\t\t-2\n/swap\\040file file 8 0 -3\n");
        assert_eq!(swaps(&table), ["/dev/vda2", "/swap\\040file"]);
    }
}
