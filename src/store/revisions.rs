//! Which directory below the cache directory holds which revision of the model.
//!
//! One for each: two of them lie side by side while the agent goes from one to the next. What a new revision has in common
//! with the one before it is not fetched again: at a start the old directory becomes the new one, and the store keeps what
//! still fits; beside a living one, whole objects are linked ([`super::Store::open_beside`]). Blocking. Tested here and in
//! `tests/store_revisions.rs`.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::OFlag;

use super::disk::LOCK;
use super::error::StoreError;

/// How the directories' names begin; the first digits of the revision follow, in hexadecimal.
const PREFIX: &str = "revision-";
/// Bytes of the revision's hash in a name: collisions are no danger, every object is compared by itself.
const NAME_BYTES: usize = 16;

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

/// The directory for the model whose data is `revision`, below `cache`, at a start: the one that has its name, or else the newest
/// of the others under a new name. What is left over of others is removed.
///
/// # Errors
/// `InUse` when any of them is another agent's; `Io`.
pub fn take_over(cache: &Path, revision: &[u8; 32]) -> Result<PathBuf, StoreError> {
    make_room(cache)?;
    let wanted = directory(cache, revision);
    let mut others = Vec::new();
    for other in others_than(cache, &[&wanted])? {
        let held = hold(&other)?.ok_or_else(|| StoreError::InUse { dir: cache.to_owned() })?;
        let changed =
            fs::metadata(&other).and_then(|found| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        others.push((changed, other, held));
    }
    others.sort_by_key(|(changed, ..)| *changed);
    if !wanted.exists()
        && let Some((_, newest, _held)) = others.pop()
    {
        fs::rename(&newest, &wanted).map_err(failed("renaming", &newest))?;
    }
    others.iter().try_for_each(|(_, other, _)| remove(other))?;
    Ok(wanted)
}

/// The directory for a new `revision` beside the one in `living`, which is in use. What earlier attempts at others have left is
/// removed.
///
/// # Errors
/// `Io`.
pub fn beside(cache: &Path, revision: &[u8; 32], living: &Path) -> Result<PathBuf, StoreError> {
    make_room(cache)?;
    let wanted = directory(cache, revision);
    for other in others_than(cache, &[&wanted, living])? {
        // One that is still being read stays until its readers leave.
        if hold(&other)?.is_some() {
            remove(&other)?;
        }
    }
    Ok(wanted)
}

/// Remove a revision that nobody uses any more.
///
/// # Errors
/// `Io`.
pub fn remove(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", directory)(error)),
        _ => Ok(()),
    }
}

/// Where `revision` lies below `cache`, if it does.
pub fn directory(cache: &Path, revision: &[u8; 32]) -> PathBuf {
    let name = hex::encode(revision.iter().take(NAME_BYTES).copied().collect::<Vec<u8>>());
    cache.join(format!("{PREFIX}{name}"))
}

fn make_room(cache: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(cache).map_err(failed("creating", cache))
}

/// Directories of ours below `cache`, but for `kept`.
fn others_than(cache: &Path, kept: &[&Path]) -> Result<Vec<PathBuf>, StoreError> {
    let mut others = Vec::new();
    for entry in fs::read_dir(cache).map_err(failed("listing", cache))? {
        let entry = entry.map_err(failed("listing", cache))?;
        // Not through a link: `file_type` is the entry's own.
        let is_directory = entry.file_type().map_err(failed("listing", cache))?.is_dir();
        let ours =
            entry.file_name().to_str().and_then(|name| name.strip_prefix(PREFIX)).is_some_and(|digits| {
                digits.len() == NAME_BYTES * 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
        let path = entry.path();
        if is_directory && ours && !kept.contains(&path.as_path()) {
            others.push(path);
        }
    }
    Ok(others)
}

/// Its lock, unless somebody has it.
fn hold(directory: &Path) -> Result<Option<File>, StoreError> {
    let path = directory.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits());
    let lock = options.open(&path).map_err(failed("opening", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(failed("locking", &path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(cache: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(cache)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn named(number: u8) -> String {
        format!("revision-{}", hex::encode([number; NAME_BYTES]))
    }

    #[test]
    fn start_goes_on_with_what_is_there_and_leaves_nothing_else() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        let first = take_over(cache, &[1; 32]).unwrap();
        assert_eq!((&first, first.exists()), (&cache.join(named(1)), false));
        fs::create_dir(&first).unwrap();
        fs::write(first.join("kept"), "by a model that changed a little").unwrap();
        // Not of our making.
        fs::create_dir(cache.join("revision-of-somebody")).unwrap();
        let second = take_over(cache, &[2; 32]).unwrap();
        assert_eq!(fs::read(second.join("kept")).unwrap(), b"by a model that changed a little");
        assert_eq!(names(cache), [named(2), "revision-of-somebody".into()]);
        // A rotation that was killed: the wanted one is there, and goes on.
        fs::create_dir(cache.join(named(3))).unwrap();
        assert_eq!(take_over(cache, &[3; 32]).unwrap(), cache.join(named(3)));
        assert_eq!(names(cache), [named(3), "revision-of-somebody".into()]);
    }

    #[test]
    fn revision_in_use_is_nobodys_to_take_or_to_remove() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        for number in [1, 2, 3] {
            fs::create_dir(cache.join(named(number))).unwrap();
        }
        let held = hold(&cache.join(named(1))).unwrap();
        assert!(held.is_some());
        assert!(matches!(take_over(cache, &[9; 32]), Err(StoreError::InUse { dir }) if dir == cache));
        assert_eq!(names(cache), [1, 2, 3].map(named));
        let living = cache.join(named(2));
        assert_eq!(beside(cache, &[9; 32], &living).unwrap(), cache.join(named(9)));
        assert_eq!(names(cache), [1, 2].map(named), "what is in use, and the living one");
        remove(&living).unwrap();
        remove(&living).unwrap();
        assert_eq!(names(cache), [named(1)]);
    }
}
