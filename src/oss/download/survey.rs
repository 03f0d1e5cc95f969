//! What is in the directory before anything is fetched, and every reason not to touch it. Everything here blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;

use super::error::DownloadError;
use super::partial;
use crate::store::Object;

/// Unit of `st_blocks`, in bytes. Source: stat(2).
const BLOCK: u64 = 512;

/// What is there. Holds the directory's lock.
pub(super) struct Survey {
    /// Files with the name and length of an object.
    pub files: BTreeSet<PathBuf>,
    /// Files of an unfinished download, with the bytes they take.
    partials: Vec<(PathBuf, u64)>,
    _lock: Option<Flock<File>>,
}

fn local(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DownloadError {
    let path = path.to_owned();
    move |source| DownloadError::Local { doing, path, source }
}

impl Survey {
    /// Look at `dir`, which is made if it is missing, unless this is to be a `dry_run`.
    ///
    /// # Errors
    /// `Conflict`, `Foreign`, `Differs`, `InUse`, `Local`.
    pub(super) fn of(dir: &Path, objects: &[Object], dry_run: bool) -> Result<Self, DownloadError> {
        let wanted: BTreeMap<&Path, u64> =
            objects.iter().map(|object| (object.path.as_path(), object.len)).collect();
        let mut above = BTreeSet::new();
        for path in wanted.keys() {
            for parent in path.ancestors().skip(1).filter(|parent| *parent != Path::new("")) {
                if wanted.contains_key(parent) {
                    return Err(DownloadError::Conflict { file: parent.to_owned() });
                }
                above.insert(parent);
            }
        }
        let mut survey = Survey { files: BTreeSet::new(), partials: Vec::new(), _lock: None };
        if !dry_run {
            survey._lock = Some(make(dir)?);
        } else if !dir.try_exists().map_err(local("looking at", dir))? {
            return Ok(survey);
        }
        let (mut foreign, mut differing, mut pending) = (Vec::new(), Vec::new(), vec![PathBuf::new()]);
        while let Some(below) = pending.pop() {
            let directory = dir.join(&below);
            for entry in fs::read_dir(&directory).map_err(local("listing", &directory))? {
                let entry = entry.map_err(local("listing", &directory))?;
                let path = below.join(entry.file_name());
                // Of the entry itself: a symlink is not followed.
                let metadata = entry.metadata().map_err(local("looking at", &entry.path()))?;
                if metadata.is_dir() && above.contains(path.as_path()) {
                    pending.push(path);
                } else if metadata.is_file() && partial::is_partial(&entry.file_name()) {
                    survey.partials.push((path, metadata.blocks().saturating_mul(BLOCK)));
                } else if !metadata.is_file() {
                    foreign.push(path);
                } else {
                    match wanted.get(path.as_path()) {
                        Some(len) if *len == metadata.len() => drop(survey.files.insert(path)),
                        Some(_) => differing.push(path),
                        None => foreign.push(path),
                    }
                }
            }
        }
        if !foreign.is_empty() {
            return Err(DownloadError::foreign(dir, foreign));
        }
        if !differing.is_empty() {
            return Err(DownloadError::differs(dir, differing));
        }
        Ok(survey)
    }

    /// Whether what is `missing` fits.
    ///
    /// # Errors
    /// `NoSpace`, `Local`.
    pub(super) fn check_space(&self, dir: &Path, missing: &[Object]) -> Result<(), DownloadError> {
        let space = statvfs(dir).map_err(io::Error::from).map_err(local("measuring", dir))?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        let free = self.partials.iter().fold(free, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let missing = missing.iter().fold(0u64, |sum, object| sum.saturating_add(object.len));
        if missing > free {
            return Err(DownloadError::NoSpace { dir: dir.to_owned(), free, missing });
        }
        Ok(())
    }

    /// Remove what earlier runs left of objects that are not there any more.
    pub(super) fn remove_partials(&self, dir: &Path) {
        for (path, _) in &self.partials {
            // Most have become files; one that stays takes room and does no harm.
            let _ = fs::remove_file(dir.join(path));
        }
    }
}

/// The directory, made if it is missing, and locked.
fn make(dir: &Path) -> Result<Flock<File>, DownloadError> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(local("making", dir)(error));
        }
        _ => {}
    }
    let open = File::open(dir).map_err(local("opening", dir))?;
    Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => DownloadError::InUse { dir: dir.to_owned() },
        error => local("locking", dir)(error.into()),
    })
}
