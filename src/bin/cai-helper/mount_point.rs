//! The mount: made at the configured point, read-ahead set, detached. Nothing else of the machine is touched.
//!
//! `/tmp/model` has a world-writable parent, so the point is opened without following links, its owner checked, and it is
//! mounted over by descriptor.

use std::fmt::Write as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cai::config;
use cai::error::chain;
use cai::host;
use cai::host::directory::{DirectoryError, open_or_create};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::Uid;

use crate::session::Refusal;

/// Source and subtype of our mounts, as `/proc/self/mountinfo` shows them.
const FS_SOURCE: &str = "cai";
const FS_TYPE: &str = "fuse.cai";

/// The mount of one connection.
#[derive(Default)]
pub(crate) struct MountPoint {
    mounted: Option<OurMount>,
}

impl MountPoint {
    /// Open `/dev/fuse`, mount it at the configured point, and give the descriptor.
    pub(crate) fn mount(
        &mut self,
        settings: &config::Mount,
        daemon: &host::User,
    ) -> Result<(String, OwnedFd), Refusal> {
        let point = settings.point.clone();
        let mut text = String::new();
        if detach_stale(&point)? {
            let _ = write!(text, "detached a dead mount left by a crash; ");
        }
        let directory = open_mount_point(&point, daemon.uid)?;
        let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).map_err(|error| {
            Refusal::new(
                "fuse.device",
                format!("/dev/fuse cannot be opened: {error}"),
                "load the fuse kernel module: modprobe fuse",
            )
        })?;
        let options = format!(
            "fd={},rootmode=40000,user_id={},group_id={},default_permissions,allow_other",
            device.as_raw_fd(),
            daemon.uid,
            daemon.gid
        );
        let target = format!("/proc/self/fd/{}", directory.as_raw_fd());
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(FS_SOURCE), target.as_str(), Some(FS_TYPE), flags, Some(options.as_str())).map_err(
            |error| {
                Refusal::new(
                    "fuse.mount",
                    format!("mounting at {}: {error}", point.display()),
                    "see the kernel log: dmesg | tail",
                )
            },
        )?;
        let point = std::fs::read_link(&target).unwrap_or(point);
        let top = mounts_at(&point).pop().filter(MountEntry::is_ours);
        self.mounted = top.map(|MountEntry { id, device, .. }| OurMount { point: point.clone(), id, device });
        let _ = write!(text, "mounted at {}", point.display());
        Ok((text, device))
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
            self.mounted = None;
            return Ok(format!("{} was detached already", point.display()));
        }
        if entries.last().is_some_and(|top| top.id != mounted.id) {
            return refuse(format!("something else is mounted over the model at {}", point.display()));
        }
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {
                self.mounted = None;
                Ok(format!("detached {}", point.display()))
            }
            Err(error) => refuse(format!("detaching {}: {error}", point.display())),
        }
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

/// One line of `/proc/self/mountinfo`.
struct MountEntry {
    id: u64,
    device: String,
    fs_type: String,
    source: String,
}

impl MountEntry {
    fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE && self.source == FS_SOURCE
    }
}

/// Mounts exactly at `point`, the topmost last (proc(5), mountinfo).
fn mounts_at(point: &Path) -> Vec<MountEntry> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    String::from_utf8_lossy(&table).lines().filter_map(|line| parse_mount(line, point)).collect()
}

fn parse_mount(line: &str, point: &Path) -> Option<MountEntry> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_owned();
    let at = unescape(fields.nth(1)?);
    let mut fields = right.split(' ');
    let (fs_type, source) = (fields.next()?.to_owned(), fields.next()?.to_owned());
    (at == point.as_os_str().as_bytes()).then_some(MountEntry { id, device, fs_type, source })
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = (byte == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                bytes.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

/// Detach dead mounts of ours at `point`. A living one, or anybody else's mount, is refused.
fn detach_stale(point: &Path) -> Result<bool, Refusal> {
    let mut detached = false;
    while let Some(top) = mounts_at(point).pop() {
        let dead = matches!(nix::sys::stat::lstat(point), Err(Errno::ENOTCONN));
        if !(top.is_ours() && dead) {
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

/// Open the mount point, creating what is missing as root. `/tmp/model` has a world-writable parent: whoever may create a
/// name there must not choose what we mount over, nor exchange it afterwards.
fn open_mount_point(point: &Path, daemon: Uid) -> Result<OwnedFd, Refusal> {
    let directory = open_or_create(point, &[]).map_err(|error| {
        let (code, hint) = match &error {
            DirectoryError::Symlink { .. } => {
                ("mount-point.symlink", "give MODEL_MOUNT_POINT without symbolic links")
            }
            DirectoryError::NotADirectory { .. } => {
                ("mount-point.not-a-directory", "remove it, or choose another MODEL_MOUNT_POINT")
            }
            DirectoryError::Parent { .. } => {
                ("mount-point.parent", "choose a MODEL_MOUNT_POINT whose parents belong to root")
            }
            DirectoryError::Io { .. } => ("mount-point.io", "check the path MODEL_MOUNT_POINT"),
        };
        Refusal::new(code, chain(&error), hint)
    })?;
    check_owner(point, directory.stat.st_uid, daemon)?;
    check_empty(point, &directory.descriptor)?;
    Ok(directory.descriptor)
}

fn check_owner(point: &Path, uid: u32, daemon: Uid) -> Result<(), Refusal> {
    if uid == 0 || uid == daemon.as_raw() {
        return Ok(());
    }
    Err(Refusal::new(
        "mount-point.owner",
        format!("{} belongs to uid {uid}, expected root or {}", point.display(), host::DAEMON_USER),
        format!("chown root: {0}, after looking at who made it", point.display()),
    ))
}

fn check_empty(point: &Path, directory: &OwnedFd) -> Result<(), Refusal> {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let first = std::fs::read_dir(path).map_err(|error| {
        Refusal::new(
            "mount-point.io",
            format!("listing {}: {error}", point.display()),
            "check the path MODEL_MOUNT_POINT",
        )
    })?;
    match first.into_iter().next() {
        None => Ok(()),
        Some(entry) => {
            let name = entry.map(|entry| entry.file_name()).unwrap_or_default();
            Err(Refusal::new(
                "mount-point.not-empty",
                format!("{} is not empty: it holds {}", point.display(), name.display()),
                "empty it, or choose another MODEL_MOUNT_POINT",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "36 35 0:57 / /tmp/a\\040model rw,nosuid shared:1 master:2 - fuse.cai cai rw,user_id=0";

    #[test]
    fn mountinfo_line_with_optional_fields_and_escapes_is_understood() {
        let entry = parse_mount(LINE, Path::new("/tmp/a model")).unwrap();
        assert_eq!((entry.id, entry.device.as_str()), (36, "0:57"));
        assert!(entry.is_ours());
    }

    #[test]
    fn mountinfo_line_of_another_point_is_not_taken() {
        assert!(parse_mount(LINE, Path::new("/tmp/a")).is_none());
    }

    #[test]
    fn mountinfo_line_cut_anywhere_does_not_panic() {
        for end in 0..LINE.len() {
            let _ = parse_mount(&LINE[..end], Path::new("/tmp/a model"));
        }
    }

    #[test]
    fn unescape_keeps_a_backslash_that_starts_no_octal() {
        assert_eq!(unescape("a\\9b\\"), b"a\\9b\\");
        assert_eq!(unescape("\\134"), b"\\");
    }
}
