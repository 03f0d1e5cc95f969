//! The kernel's mount table: what is mounted at a point, what a path lies on, and whether it is ours.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, statx};

/// What asks statx(2) for an id that is not given again (include/uapi/linux/stat.h).
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

/// Where the table is, as this process sees it.
pub const PATH: &str = "/proc/self/mountinfo";

/// Source of our mounts, as `/proc/self/mountinfo` shows them.
pub const FS_SOURCE: &str = "cai";

/// Type of our FUSE mounts.
pub const FUSE_TYPE: &str = "fuse.cai";

/// Type of a published memory file system.
const MEMORY_TYPE: &str = "tmpfs";

/// Options that every published memory file system has. It is read-only as a whole before it is mounted, so `ro` is asked of
/// the file system and not of the mount.
const MEMORY_OPTIONS: [&str; 3] = ["nosuid", "nodev", "noexec"];

/// One line of `/proc/self/mountinfo`.
pub struct MountEntry {
    /// Unique while it exists.
    pub id: u64,
    /// The mount it lies on.
    pub parent: u64,
    /// `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Type of the file system.
    pub fs_type: String,
    /// What is mounted, by the name that whoever mounted it gave.
    pub source: String,
    /// Mounts below it show in the namespaces (and containers) that it is shared with.
    pub shared: bool,
    options: String,
    fs_options: String,
}

impl MountEntry {
    /// A mount of the model through FUSE.
    pub fn is_our_fuse(&self) -> bool {
        self.fs_type == FUSE_TYPE && self.source == FS_SOURCE
    }

    /// Anybody's root may call a tmpfs `cai`; nobody mounts an empty one that can never be written to.
    pub fn is_our_memory(&self) -> bool {
        let has = |options: &str, wanted: &str| options.split(',').any(|option| option == wanted);
        self.fs_type == MEMORY_TYPE
            && self.source == FS_SOURCE
            && has(&self.fs_options, "ro")
            && MEMORY_OPTIONS.iter().all(|option| has(&self.options, option))
    }
}

/// Mounts exactly at `point`, the topmost last (proc(5), mountinfo).
pub fn mounts_at(point: &Path) -> Vec<MountEntry> {
    table().into_iter().filter(|entry| entry.point == point).collect()
}

/// The mount that `path` lies on, its own included.
pub fn mount_of(path: &Path) -> Option<MountEntry> {
    topmost(table(), path)
}

/// The mount that `descriptor` is open on, if this namespace has it. Asks no file system.
pub fn mount_behind(descriptor: impl AsFd) -> Option<MountEntry> {
    by_id(id_behind(descriptor)?)
}

/// The mount with this id, if this namespace has it. The kernel gives a number again once its mount is gone.
pub fn by_id(id: u64) -> Option<MountEntry> {
    table().into_iter().find(|entry| entry.id == id)
}

/// Id of the mount that `descriptor` is open on (proc(5), fdinfo; Linux 3.15). Asks no file system.
pub fn id_behind(descriptor: impl AsFd) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(path).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// Id of the mount that `descriptor` is open on that the kernel never gives again until it boots (statx(2); Linux 6.8); `None` where
/// it has none. Asks no file system.
pub fn lasting_id_behind(descriptor: impl AsFd) -> Option<u64> {
    let wanted = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(descriptor, "", flags, wanted).ok()?;
    (found.stx_mask & STATX_MNT_ID_UNIQUE != 0).then_some(found.stx_mnt_id)
}

/// Whether another mount hides all of `entry`.
pub fn is_covered(entry: &MountEntry) -> bool {
    table().iter().any(|other| other.parent == entry.id && other.point == entry.point)
}

fn table() -> Vec<MountEntry> {
    let table = std::fs::read(PATH).unwrap_or_default();
    String::from_utf8_lossy(&table).lines().filter_map(parse_mount).collect()
}

/// Of those mounted deepest above `path`, the last: it hides the others.
fn topmost(table: Vec<MountEntry>, path: &Path) -> Option<MountEntry> {
    let above = table.into_iter().filter(|entry| path.starts_with(&entry.point));
    above.max_by_key(|entry| entry.point.components().count())
}

fn parse_mount(line: &str) -> Option<MountEntry> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ');
    let id = fields.next()?.parse().ok()?;
    let parent = fields.next()?.parse().ok()?;
    let device = fields.next()?.to_owned();
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let options = fields.next()?.to_owned();
    let shared = fields.any(|field| field.starts_with("shared:"));
    let mut fields = right.split(' ');
    let (fs_type, source) = (fields.next()?.to_owned(), fields.next()?.to_owned());
    let fs_options = fields.next()?.to_owned();
    Some(MountEntry { id, parent, device, point, fs_type, source, shared, options, fs_options })
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

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "36 35 0:57 / /tmp/a\\040model rw,nosuid shared:1 master:2 - fuse.cai cai rw,user_id=0";

    #[test]
    fn mountinfo_line_with_optional_fields_and_escapes_is_understood() {
        let entry = parse_mount(LINE).unwrap();
        assert_eq!((entry.id, entry.parent, entry.device.as_str()), (36, 35, "0:57"));
        assert_eq!((entry.point.as_path(), entry.shared), (Path::new("/tmp/a model"), true));
        assert!(entry.is_our_fuse() && !entry.is_our_memory());
        assert!(!parse_mount(&LINE.replace("shared:1 ", "")).unwrap().shared);
    }

    #[test]
    fn path_lies_on_the_deepest_mount_above_it_and_of_two_there_on_the_later() {
        let line = |id: u32, point: &str| format!("{id} 1 0:1 / {point} rw - tmpfs {id} rw\n");
        let lines =
            [line(1, "/"), line(2, "/tmp"), line(3, "/tmp/a"), line(4, "/tmp"), line(5, "/tmpx")].concat();
        let on = |path: &str| {
            let table = lines.lines().filter_map(parse_mount).collect();
            topmost(table, Path::new(path)).unwrap().id
        };
        assert_eq!((on("/tmp/b"), on("/tmp/a/c"), on("/etc"), on("/tmp")), (4, 3, 1, 4));
    }

    #[test]
    fn tmpfs_is_ours_only_with_our_name_and_sealed() {
        let ours = "36 35 0:57 / /m ro,nosuid,nodev,noexec,relatime - tmpfs cai ro,size=4k,mode=700";
        let is_ours = |line: &str| parse_mount(line).unwrap().is_our_memory();
        assert!(is_ours(ours));
        // As a helper leaves it that is killed right after mounting it.
        assert!(is_ours(&ours.replacen("ro,", "rw,", 1)));
        for other in [
            ours.replace(" cai ", " tmpfs "),
            ours.replace("tmpfs", "ramfs"),
            ours.replace(" ro,size", " rw,size"),
            ours.replace("noexec,", ""),
            ours.replace("nosuid", "nosuidx"),
        ] {
            assert!(!is_ours(&other), "{other}");
        }
    }

    #[test]
    fn mount_behind_a_descriptor_is_the_one_its_path_lies_on() {
        let process = std::fs::File::open("/proc/self").unwrap();
        let entry = mount_behind(&process).unwrap();
        assert_eq!((entry.id, entry.fs_type.as_str()), (mount_of(Path::new("/proc")).unwrap().id, "proc"));
        assert!(mount_behind(std::io::pipe().unwrap().0).is_none(), "a mount that no table shows");
    }

    #[test]
    fn lasting_id_is_one_for_a_mount_where_the_kernel_has_it() {
        let open = |path: &str| lasting_id_behind(std::fs::File::open(path).unwrap());
        assert_eq!(open("/proc/self"), open("/proc/version"));
        if let (Some(proc), Some(sys)) = (open("/proc"), open("/sys")) {
            assert_ne!(proc, sys);
        }
    }

    #[test]
    fn mountinfo_line_cut_anywhere_does_not_panic() {
        for end in 0..LINE.len() {
            let _ = parse_mount(&LINE[..end]);
        }
    }

    #[test]
    fn unescape_keeps_a_backslash_that_starts_no_octal() {
        assert_eq!(unescape("a\\9b\\"), b"a\\9b\\");
        assert_eq!(unescape("\\134"), b"\\");
    }
}
