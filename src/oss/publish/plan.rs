//! What a directory would become in a bucket, and every reason why it cannot.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::UploadError;

/// Longest key in bytes. Source: OSS, PutObject.
const KEY_MAX: usize = 1023;
/// Paths of one kind that an error names.
const SHOWN: usize = 10;
/// Most parts of an upload. Source: OSS, UploadPart.
const MAX_PARTS: u64 = 10_000;
/// Usual part: the range length all fast readers and writers of object stores arrived at (oss.md 4).
const MIN_PART: u64 = 8 << 20;
/// Largest part, which bounds the memory that parts in flight take.
const MAX_PART: u64 = 64 << 20;

/// A file as it was when the directory was walked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Key of the object it becomes.
    pub key: String,
    /// Its length in bytes.
    pub len: u64,
    /// When it was modified.
    pub modified: SystemTime,
}

impl LocalFile {
    /// Length in bytes of its parts but the last: so that 10,000 of them hold it. A file that fits into one is not sent in
    /// parts.
    pub(super) fn part_len(&self) -> u64 {
        self.len.div_ceil(MAX_PARTS).max(MIN_PART)
    }
}

/// What is to be published, in the order of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What every key begins with: empty, or ending in `/`.
    pub prefix: String,
    /// Everything but `last`.
    pub files: Vec<LocalFile>,
    /// What is published when everything else is there, one after the other.
    pub last: Vec<LocalFile>,
    /// Leftovers that are not published, relative to the directory.
    pub left_out: Vec<PathBuf>,
}

/// What the names in a directory mean to whoever publishes it.
pub struct Rules<'a> {
    /// Files at the top that make a model of the others, in the order in which they are to arrive.
    pub last: &'a [&'a str],
    /// A file at the top without which nothing is published.
    pub required: Option<&'a str>,
    /// Whether a path, relative to the directory, is a leftover of some tool and no part of the model.
    pub is_leftover: &'a dyn Fn(&Path) -> bool,
}

/// What the walk met besides plain files.
#[derive(Default)]
struct Refused {
    symlinks: Vec<PathBuf>,
    special: Vec<PathBuf>,
}

impl Plan {
    /// Every file below `dir` under a key below `prefix` (empty, or ending in `/`), sorted out by `rules`. Blocking.
    /// Empty directories leave no trace: an object store has none.
    ///
    /// # Errors
    /// `Local`; `NoLast` when the required file is missing; `Symlinks`, `Special`, `Name`, `TooLarge`, `Empty` for what
    /// cannot become objects.
    pub fn of(dir: &Path, prefix: &str, rules: &Rules<'_>) -> Result<Self, UploadError> {
        if let Some(name) = rules.required
            && !has_file(dir, name)?
        {
            return Err(UploadError::NoLast { dir: dir.to_owned(), name: name.to_owned() });
        }
        let (mut plan, mut refused) =
            (Plan { prefix: prefix.to_owned(), ..Plan::default() }, Refused::default());
        let mut pending = vec![dir.to_owned()];
        while let Some(directory) = pending.pop() {
            let fail = |source| UploadError::Local { path: directory.clone(), source };
            for entry in fs::read_dir(&directory).map_err(fail)? {
                let path = entry.map_err(fail)?.path();
                let relative = path.strip_prefix(dir).unwrap_or(&path);
                if (rules.is_leftover)(relative) {
                    plan.left_out.push(relative.to_owned());
                    continue;
                }
                // Of the entry itself: a symlink is not followed.
                let metadata = fs::symlink_metadata(&path)
                    .map_err(|source| UploadError::Local { path: path.clone(), source })?;
                let kind = metadata.file_type();
                if kind.is_dir() {
                    pending.push(path);
                } else if kind.is_symlink() {
                    refused.symlinks.push(path);
                } else if kind.is_file() {
                    plan.files.push(file(dir, prefix, path, &metadata)?);
                } else {
                    refused.special.push(path);
                }
            }
        }
        refused.check(dir)?;
        plan.sort(rules.last);
        if plan.files.is_empty() && plan.last.is_empty() {
            return Err(UploadError::Empty { dir: dir.to_owned() });
        }
        Ok(plan)
    }

    fn sort(&mut self, last: &[&str]) {
        self.files.sort_by(|a, b| a.key.cmp(&b.key));
        self.left_out.sort();
        for name in last {
            let key = format!("{}{name}", self.prefix);
            if let Ok(at) = self.files.binary_search_by(|file| file.key.cmp(&key)) {
                let file = self.files.remove(at);
                self.last.push(file);
            }
        }
    }

    /// All files, in the order in which they are begun.
    pub fn all(&self) -> impl Iterator<Item = &LocalFile> {
        self.files.iter().chain(&self.last)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.all().fold(0, |sum, file| sum.saturating_add(file.len))
    }
}

fn file(dir: &Path, prefix: &str, path: PathBuf, metadata: &fs::Metadata) -> Result<LocalFile, UploadError> {
    let relative = path.strip_prefix(dir).unwrap_or(&path).to_str();
    let Some(relative) = relative else {
        return Err(UploadError::Name { path, why: "is not valid UTF-8" });
    };
    let key = format!("{prefix}{relative}");
    if key.len() > KEY_MAX {
        return Err(UploadError::Name { path, why: "makes a key of more than 1023 bytes" });
    }
    let modified = metadata.modified().map_err(|source| UploadError::Local { path: path.clone(), source })?;
    let len = metadata.len();
    if len > MAX_PARTS * MAX_PART {
        return Err(UploadError::TooLarge { path, len, limit: MAX_PARTS * MAX_PART });
    }
    Ok(LocalFile { path, key, len, modified })
}

impl Refused {
    fn check(self, dir: &Path) -> Result<(), UploadError> {
        let shown = |mut paths: Vec<PathBuf>| {
            paths.sort();
            let count = paths.len();
            paths.truncate(SHOWN);
            (dir.to_owned(), paths, count)
        };
        if !self.symlinks.is_empty() {
            let (dir, shown, count) = shown(self.symlinks);
            return Err(UploadError::Symlinks { dir, shown, count });
        }
        if !self.special.is_empty() {
            let (dir, shown, count) = shown(self.special);
            return Err(UploadError::Special { dir, shown, count });
        }
        Ok(())
    }
}

/// Whether the directory `dir` has a plain file `name` at its top.
fn has_file(dir: &Path, name: &str) -> Result<bool, UploadError> {
    let fail = |source| UploadError::Local { path: dir.to_owned(), source };
    fs::read_dir(dir).map_err(fail)?;
    match fs::symlink_metadata(dir.join(name)) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(UploadError::Local { path: dir.join(name), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan_of(dir: &Path, prefix: &str, required: Option<&str>) -> Result<Plan, UploadError> {
        let is_leftover = |path: &Path| path.extension().is_some_and(|extension| extension == "partial");
        Plan::of(dir, prefix, &Rules { last: &["signature", "conf"], required, is_leftover: &is_leftover })
    }

    #[test]
    fn plan_has_the_keys_in_order_the_last_files_apart_and_no_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sub/empty")).unwrap();
        fs::create_dir_all(dir.path().join("other.partial/sub")).unwrap();
        for (name, len) in [("conf", 3), ("signature", 7), ("sub/conf", 5), ("z", 0), ("sub/x.partial", 9)] {
            fs::write(dir.path().join(name), vec![0; len]).unwrap();
        }
        let plan = plan_of(dir.path(), "m/", Some("conf")).unwrap();
        let keys: Vec<(&str, u64)> = plan.files.iter().map(|file| (file.key.as_str(), file.len)).collect();
        assert_eq!(keys, [("m/sub/conf", 5), ("m/z", 0)]);
        let last: Vec<(&str, u64)> = plan.last.iter().map(|file| (file.key.as_str(), file.len)).collect();
        assert_eq!(last, [("m/signature", 7), ("m/conf", 3)]);
        assert_eq!(plan.bytes(), 15);
        assert_eq!(plan.left_out, [Path::new("other.partial"), Path::new("sub/x.partial")]);
    }

    #[test]
    fn last_file_that_is_a_directory_or_a_symlink_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("z"), "z").unwrap();
        let refused = || matches!(plan_of(dir.path(), "", Some("conf")), Err(UploadError::NoLast { .. }));
        std::os::unix::fs::symlink("z", dir.path().join("conf")).unwrap();
        assert!(refused());
        fs::remove_file(dir.path().join("conf")).unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        assert!(refused());
    }

    #[test]
    fn file_longer_than_all_parts_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = fs::File::create(dir.path().join("shard")).unwrap();
        sparse.set_len(671_088_640_000).unwrap();
        assert_eq!(plan_of(dir.path(), "", None).unwrap().files[0].part_len(), 64 << 20);
        sparse.set_len(671_088_640_001).unwrap();
        let error = plan_of(dir.path(), "", None).unwrap_err();
        assert!(matches!(error, UploadError::TooLarge { len: 671_088_640_001, .. }), "{error}");
    }

    #[test]
    fn key_of_more_than_1023_bytes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("xyz"), "").unwrap();
        let prefix = |len: usize| format!("{}/", "p".repeat(len - 1));
        assert!(plan_of(dir.path(), &prefix(1020), None).is_ok());
        let error = plan_of(dir.path(), &prefix(1021), None).unwrap_err();
        assert!(matches!(error, UploadError::Name { .. }), "{error}");
    }
}
