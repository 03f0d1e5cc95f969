//! Directories by descriptor: no path is resolved twice, no symlink is followed, no path length limits the depth.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Deepest nesting of directories that is walked; each level holds descriptors open, and default limits allow 1024.
pub(super) const DEEPEST: usize = 200;

/// Open the directory `name` in `parent`; a symlink is refused.
pub(super) fn open_dir(parent: impl AsFd, name: &OsStr) -> nix::Result<Dir> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Dir::openat(parent, name, flags, Mode::empty())
}

/// Names in `dir` without `.` and `..`, sorted bytewise.
pub(super) fn names(dir: &mut Dir) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The file type of `name` in `parent`, itself and not what it points to; `None` when there is none.
pub(super) fn kind_of(parent: impl AsFd, name: &OsStr) -> nix::Result<Option<SFlag>> {
    match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(kind(&stat))),
        Err(nix::Error::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Let the owner do everything with the file or directory `name`, which is no symlink.
pub(super) fn unlock(parent: impl AsFd, name: &OsStr) -> nix::Result<()> {
    fchmodat(parent, name, Mode::S_IRWXU, FchmodatFlags::FollowSymlink)
}

/// Remove `name` and, if it is a directory, everything in it. One that is not there is removed.
pub(super) fn remove(parent: impl AsFd, name: &OsStr) -> nix::Result<()> {
    match kind_of(&parent, name)? {
        None => Ok(()),
        Some(SFlag::S_IFDIR) => {
            unlock(&parent, name)?;
            let mut dir = open_dir(&parent, name)?;
            for inside in names(&mut dir)? {
                remove(&dir, &inside)?;
            }
            unlinkat(&parent, name, UnlinkatFlags::RemoveDir)
        }
        Some(_) => unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir),
    }
}

/// The file type of `stat`.
pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Modification time, also before 1970.
pub(super) fn mtime(stat: &FileStat) -> SystemTime {
    let nanos = Duration::from_nanos(u64::try_from(stat.st_mtime_nsec).unwrap_or(0));
    let seconds = Duration::from_secs(stat.st_mtime.unsigned_abs());
    let whole = if stat.st_mtime < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(seconds)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
}
