//! Owner and permissions of everything in the memory file system, before it is published.
//!
//! By descriptor: no path is resolved twice, no symbolic link is followed. A directory gets its owner before it is listed, so
//! the daemon can add nothing to it behind the walk, and its permissions without any write bit.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{fchown, fchownat};

use crate::session::Refusal;
use crate::terms::Terms;

/// Deepest nesting of directories: each level holds a descriptor. As deep as `cai encrypt` and the mount go.
const DEEPEST: usize = 200;

/// Give everything in `root`'s file system the owner and the permissions of `terms`: how many entries there are, the root
/// not counted. A refusal leaves some of it done; doing it again is right.
pub(crate) fn seal(root: impl AsFd, terms: &Terms) -> Result<u64, Refusal> {
    let top = PathBuf::new();
    let mut walk = Walk { terms, entries: 0 };
    let root = open_directory(root, OsStr::new(".")).map_err(|error| failed(&top, error))?;
    walk.directory(root, &top, 0)?;
    Ok(walk.entries)
}

struct Walk<'terms> {
    terms: &'terms Terms,
    entries: u64,
}

impl Walk<'_> {
    /// `at` is for messages alone.
    fn directory(&mut self, mut directory: Dir, at: &Path, depth: usize) -> Result<(), Refusal> {
        if depth > DEEPEST {
            let text = format!("{} is nested deeper than {DEEPEST} directories", at.display());
            return Err(Refusal::new("memory.publish", text, "flatten the model's directories"));
        }
        self.own(&directory, self.terms.directory_mode()).map_err(|error| failed(at, error))?;
        for name in names(&mut directory).map_err(|error| failed(at, error))? {
            self.entry(&directory, &name, &at.join(&name), depth)?;
            self.entries += 1;
        }
        Ok(())
    }

    fn entry(&mut self, parent: &Dir, name: &OsStr, at: &Path, depth: usize) -> Result<(), Refusal> {
        let fail = |error| failed(at, error);
        let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(fail)?;
        match kind(&stat) {
            SFlag::S_IFDIR => {
                let directory = open_directory(parent, name).map_err(fail)?;
                self.directory(directory, at, depth + 1)
            }
            SFlag::S_IFREG => self.file(parent, name).map_err(fail),
            SFlag::S_IFLNK => {
                let (uid, gid) = (Some(self.terms.uid), Some(self.terms.gid));
                fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(fail)
            }
            other => Err(Refusal::new(
                "memory.publish",
                format!(
                    "{} has file type {:06o}; expected a directory, a regular file or a symbolic link",
                    at.display(),
                    other.bits()
                ),
                "a model has no devices, pipes or sockets: remove it from the model",
            )),
        }
    }

    fn file(&self, parent: &Dir, name: &OsStr) -> nix::Result<()> {
        // Should it have become a pipe in between, opening it must not wait for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(parent, name, flags, Mode::empty())?;
        if kind(&fstat(&file)?) != SFlag::S_IFREG {
            return Err(Errno::ESTALE);
        }
        self.own(&file, self.terms.file_mode())
    }

    /// The owner first: a change of owner may clear bits of the mode, never set any.
    fn own(&self, entry: impl AsFd, mode: Mode) -> nix::Result<()> {
        fchown(&entry, Some(self.terms.uid), Some(self.terms.gid))?;
        fchmod(&entry, mode)
    }
}

fn open_directory(parent: impl AsFd, name: &OsStr) -> nix::Result<Dir> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Dir::openat(parent, name, flags, Mode::empty())
}

/// Names in `directory` without `.` and `..`.
fn names(directory: &mut Dir) -> nix::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in directory.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn failed(at: &Path, error: Errno) -> Refusal {
    Refusal::new(
        "memory.publish",
        format!("setting owner and permissions of /{}: {error}", at.display()),
        "fill the memory file system before it is published, not meanwhile",
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// Terms under which everybody may seal what is theirs.
    fn mine() -> Terms {
        let terms = Terms::for_owner("/m".into(), 0, 0);
        Terms { uid: nix::unistd::geteuid(), gid: nix::unistd::getegid(), permissions: 0o440, ..terms }
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn everything_gets_its_mode_and_what_a_link_points_to_keeps_its_own() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::create_dir_all(at("tree/a/b")).unwrap();
        fs::write(at("tree/a/b/file"), "x").unwrap();
        fs::set_permissions(at("tree/a/b/file"), fs::Permissions::from_mode(0o6777)).unwrap();
        symlink(outside.path(), at("tree/link")).unwrap();
        let before = mode(outside.path());
        let tree = File::open(at("tree")).unwrap();
        assert_eq!(seal(&tree, &mine()).unwrap(), 4);
        let modes = ["tree", "tree/a", "tree/a/b", "tree/a/b/file"].map(|name| mode(&at(name)));
        assert_eq!(modes, [0o550, 0o550, 0o550, 0o440]);
        assert_eq!(mode(outside.path()), before);
        assert_eq!(seal(&tree, &mine()).unwrap(), 4, "it can be done again");
        for name in ["tree", "tree/a", "tree/a/b"] {
            fs::set_permissions(at(name), fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    #[test]
    fn pipe_is_refused_by_name_without_waiting() {
        let root = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&root.path().join("pipe"), Mode::S_IRWXU).unwrap();
        let refusal = seal(File::open(root.path()).unwrap(), &mine()).unwrap_err();
        assert_eq!(refusal.code, "memory.publish");
        assert!(refusal.text.starts_with("pipe has file type 010000"), "{}", refusal.text);
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_and_the_limit_itself_is_not() {
        let root = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", DEEPEST).collect();
        fs::create_dir_all(root.path().join(&deep)).unwrap();
        // Write permission is the only thing missing afterwards.
        let again = || Terms { permissions: 0o440, ..mine() };
        assert_eq!(seal(File::open(root.path()).unwrap(), &again()).unwrap(), DEEPEST as u64);
        let deepest = root.path().join(&deep);
        fs::set_permissions(&deepest, fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(deepest.join("d")).unwrap();
        let refusal = seal(File::open(root.path()).unwrap(), &again()).unwrap_err();
        assert!(refusal.text.contains("deeper than 200"), "{}", refusal.text);
        let mut at = root.path().to_owned();
        for _ in 0..=DEEPEST {
            fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
            at.push("d");
        }
    }
}
