//! The plaintext side of encryption: a directory to be read, surveyed before anything is written.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::dirfd;
use super::encrypt_error::EncryptError;
use super::exclude::Exclude;
use super::layout::cipher_len;

/// Bytes to be sealed, and what they will take.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) plain: u64,
    pub(super) stored: u64,
}

/// The plaintext side: how its directories are listed and its entries opened.
pub(super) struct Source<'a> {
    pub(super) path: PathBuf,
    dereference: bool,
    exclude: &'a Exclude,
}

impl<'a> Source<'a> {
    pub(super) fn open(path: &Path, dereference: bool, exclude: &'a Exclude) -> Result<Self, EncryptError> {
        let source = Source { path: path.to_owned(), dereference, exclude };
        source.root().map(|_| source)
    }

    pub(super) fn root(&self) -> Result<Dir, EncryptError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Dir::open(&self.path, flags, Mode::empty()).map_err(|error| self.failed(Path::new(""))(error))
    }

    pub(super) fn failed(&self, path: &Path) -> impl Fn(nix::Error) -> EncryptError + use<> {
        let path = self.path.join(path);
        move |error| EncryptError::Source { path: path.clone(), source: error.into() }
    }

    /// Names and attributes of what is in `dir`, at `path` below the root, without what is excluded.
    pub(super) fn list(&self, dir: &mut Dir, path: &Path) -> Result<Vec<(OsString, FileStat)>, EncryptError> {
        let follow = if self.dereference { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
        let names = dirfd::names(dir).map_err(self.failed(path))?;
        let stat = |name: OsString| match fstatat(&*dir, name.as_os_str(), follow) {
            Ok(stat) => Ok((name, stat)),
            Err(error) => Err(self.failed(&path.join(&name))(error)),
        };
        let wanted = |name: &OsString| !self.exclude.matches(&path.join(name));
        names.into_iter().filter(wanted).map(stat).collect()
    }

    pub(super) fn open_at(&self, dir: &Dir, name: &OsStr, extra: OFlag) -> nix::Result<OwnedFd> {
        let follow = if self.dereference { OFlag::empty() } else { OFlag::O_NOFOLLOW };
        openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC | follow | extra, Mode::empty())
    }

    pub(super) fn open_dir(&self, dir: &Dir, name: &OsStr) -> nix::Result<Dir> {
        Dir::from_fd(self.open_at(dir, name, OFlag::O_DIRECTORY)?)
    }

    /// Look at everything before anything is written: sizes, nesting, links that lead in circles or into `target`.
    pub(super) fn survey(&self, target: impl AsFd) -> Result<Totals, EncryptError> {
        let identity = |stat: &FileStat| (stat.st_dev, stat.st_ino);
        let root = self.root()?;
        let failed = self.failed(Path::new(""));
        let mut above =
            vec![identity(&fstat(target).map_err(&failed)?), identity(&fstat(&root).map_err(&failed)?)];
        let mut totals = Totals::default();
        self.survey_dir(root, Path::new(""), &mut above, &mut totals)?;
        Ok(totals)
    }

    /// `above` holds the identity of the target, then of every directory on the way down.
    fn survey_dir(
        &self,
        mut dir: Dir,
        path: &Path,
        above: &mut Vec<(u64, u64)>,
        totals: &mut Totals,
    ) -> Result<(), EncryptError> {
        if above.len() > dirfd::DEEPEST {
            return Err(EncryptError::TooDeep { path: self.path.join(path) });
        }
        for (name, stat) in self.list(&mut dir, path)? {
            let path = path.join(&name);
            match dirfd::kind(&stat) {
                SFlag::S_IFDIR => {
                    let identity = (stat.st_dev, stat.st_ino);
                    if above.contains(&identity) {
                        return Err(EncryptError::Circle { path: self.path.join(path) });
                    }
                    above.push(identity);
                    let child = self.open_dir(&dir, &name).map_err(self.failed(&path))?;
                    self.survey_dir(child, &path, above, totals)?;
                    above.pop();
                }
                SFlag::S_IFREG => {
                    let len = u64::try_from(stat.st_size).unwrap_or(0);
                    totals.plain = totals.plain.saturating_add(len);
                    totals.stored = totals.stored.saturating_add(cipher_len(len).unwrap_or(u64::MAX));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
