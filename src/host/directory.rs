//! Directories that root opens where others could have prepared a trap.
//!
//! A path is walked component by component from `/`, following no symbolic link. Every directory on the way must belong to
//! somebody trusted and must not be writable by others, unless it is sticky (as `/tmp` is): else whoever may rename there
//! could put another directory in its place afterwards.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::Uid;

/// Why a directory was not opened.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A symbolic link on the way, or at its end.
    #[error("{} is a symbolic link", path.display())]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// Something else than a directory.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// What is there.
        path: PathBuf,
    },
    /// Somebody who is not trusted could exchange what is below.
    #[error("{} has uid {uid} and mode {mode:04o}: others could exchange what is in it", path.display())]
    Parent {
        /// The directory on the way.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The system refused.
    #[error("opening {}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A directory that was opened (`O_PATH`).
#[derive(Debug)]
pub struct Directory {
    /// The descriptor.
    pub descriptor: OwnedFd,
    /// Its attributes when it was opened.
    pub stat: FileStat,
    /// Whether it was made just now.
    pub created: bool,
    /// Others than its owner may make names in the directory above: whoever owns this one can exchange it there.
    pub shared_parent: bool,
}

/// Open the absolute `path`, making what is missing (0755). Directories on the way must belong to root or to one of `trusted`.
///
/// # Errors
/// [`DirectoryError`]. Directories that were made stay.
pub fn open_or_create(path: &Path, trusted: &[Uid]) -> Result<Directory, DirectoryError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = PathBuf::from("/");
    let fail =
        |path: &Path, error: Errno| DirectoryError::Io { path: path.to_path_buf(), source: error.into() };
    let descriptor = open(&at, flags, Mode::empty()).map_err(|error| fail(&at, error))?;
    let stat = nix::sys::stat::fstat(&descriptor).map_err(|error| fail(&at, error))?;
    let mut here = Directory { descriptor, stat, created: false, shared_parent: false };
    for component in path.components() {
        let name = match component {
            Component::RootDir => continue,
            Component::Normal(name) => name,
            Component::Prefix(_) | Component::CurDir | Component::ParentDir => {
                return Err(fail(path, Errno::EINVAL));
            }
        };
        check_parent(&at, &here.stat, trusted)?;
        at.push(name);
        let created = match mkdirat(&here.descriptor, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(error) => return Err(fail(&at, error)),
        };
        let found = fstatat(&here.descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|error| fail(&at, error))?;
        check_kind(&at, &found)?;
        let descriptor =
            openat(&here.descriptor, name, flags, Mode::empty()).map_err(|error| fail(&at, error))?;
        let stat = nix::sys::stat::fstat(&descriptor).map_err(|error| fail(&at, error))?;
        let shared_parent = is_writable_by_others(&here.stat);
        here = Directory { descriptor, stat, created, shared_parent };
    }
    Ok(here)
}

fn check_parent(path: &Path, stat: &FileStat, trusted: &[Uid]) -> Result<(), DirectoryError> {
    let owner_is_trusted = stat.st_uid == 0 || trusted.iter().any(|uid| uid.as_raw() == stat.st_uid);
    let sticky = Mode::from_bits_truncate(stat.st_mode).contains(Mode::S_ISVTX);
    let writable = is_writable_by_others(stat) && !sticky;
    if owner_is_trusted && !writable {
        return Ok(());
    }
    Err(DirectoryError::Parent { path: path.to_path_buf(), uid: stat.st_uid, mode: stat.st_mode & 0o7777 })
}

fn is_writable_by_others(stat: &FileStat) -> bool {
    Mode::from_bits_truncate(stat.st_mode).intersects(Mode::S_IWGRP | Mode::S_IWOTH)
}

fn check_kind(path: &Path, stat: &FileStat) -> Result<(), DirectoryError> {
    let path = path.to_path_buf();
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Ok(()),
        SFlag::S_IFLNK => Err(DirectoryError::Symlink { path }),
        _ => Err(DirectoryError::NotADirectory { path }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn me() -> Uid {
        nix::unistd::geteuid()
    }

    #[test]
    fn missing_directories_are_made_and_an_existing_one_is_not_called_new() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().canonicalize().unwrap().join("a/b");
        assert!(open_or_create(&path, &[me()]).unwrap().created);
        let again = open_or_create(&path, &[me()]).unwrap();
        assert!(!again.created);
        assert_eq!(again.stat.st_ino, std::fs::metadata(&path).unwrap().ino());
    }

    #[test]
    fn symlink_anywhere_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("link")).unwrap();
        for path in [root.join("link"), root.join("link/below")] {
            let error = open_or_create(&path, &[me()]).unwrap_err();
            assert!(
                matches!(&error, DirectoryError::Symlink { path } if *path == root.join("link")),
                "{error}"
            );
        }
        assert_eq!(std::fs::read_dir(root.join("real")).unwrap().count(), 0);
    }

    #[test]
    fn parent_that_others_may_write_is_refused_unless_it_is_sticky() {
        let root = tempfile::tempdir().unwrap();
        let parent = root.path().canonicalize().unwrap().join("parent");
        std::fs::create_dir(&parent).unwrap();
        for (mode, refused) in [(0o777, true), (0o770, true), (0o1777, false), (0o755, false)] {
            std::fs::set_permissions(&parent, std::fs::Permissions::from_mode(mode)).unwrap();
            let outcome = open_or_create(&parent.join("child"), &[me()]);
            assert_eq!(matches!(outcome, Err(DirectoryError::Parent { .. })), refused, "{mode:o}");
            if let Ok(directory) = outcome {
                assert_eq!(directory.shared_parent, mode == 0o1777, "{mode:o}");
            }
        }
    }

    #[test]
    fn file_and_relative_step_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        assert!(matches!(
            open_or_create(&root.join("file"), &[me()]),
            Err(DirectoryError::NotADirectory { .. })
        ));
        assert!(matches!(open_or_create(&root.join("a/../b"), &[me()]), Err(DirectoryError::Io { .. })));
    }
}
