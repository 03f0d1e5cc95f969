//! From a flat object list to a directory tree: every implied directory, sorted, no name used twice. Pure.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use super::error::StoreError;
use super::layout::ObjectIndex;
use super::source::Object;
use crate::ciphertext::{Attributes, Entry, EntryKind};

/// Longest path component in bytes. Source: `NAME_MAX` of Linux.
const NAME_MAX: usize = 255;

/// A tree of entries and, for each file, the object behind it.
#[derive(Debug)]
pub struct Tree {
    /// Sorted component by component, so that a directory precedes what it holds.
    pub entries: Vec<Entry>,
    /// Object of each entry; `None` for directories.
    pub objects: Vec<Option<ObjectIndex>>,
}

/// Build the tree of `objects`.
///
/// # Errors
/// `UnsafePath`, `Conflict`, `TooMany`.
pub fn build(objects: &[Object]) -> Result<Tree, StoreError> {
    let mut nodes: BTreeMap<PathBuf, (Option<ObjectIndex>, SystemTime)> = BTreeMap::new();
    for (index, object) in objects.iter().enumerate() {
        check(&object.path)?;
        if nodes.insert(object.path.clone(), (Some(ObjectIndex(index)), object.modified)).is_some() {
            return Err(StoreError::Conflict { path: object.path.clone() });
        }
        for parent in object.path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()) {
            // A directory is as new as the newest object below it: object stores keep no time of their own for it.
            let node = nodes.entry(parent.to_owned()).or_insert((None, object.modified));
            if node.0.is_some() {
                return Err(StoreError::Conflict { path: parent.to_owned() });
            }
            node.1 = node.1.max(object.modified);
        }
    }
    if u32::try_from(nodes.len()).is_err() {
        return Err(StoreError::TooMany { count: nodes.len() });
    }
    let entry = |(path, (index, mtime)): (PathBuf, (Option<ObjectIndex>, SystemTime))| {
        let file = index.and_then(|index| objects.get(index.0));
        let kind = file.map_or(EntryKind::Directory, |object| EntryKind::File { len: object.len });
        let attributes = Attributes::unknown(mtime);
        (Entry { path, kind, attributes }, index)
    };
    let (entries, objects) = nodes.into_iter().map(entry).unzip();
    Ok(Tree { entries, objects })
}

/// Refuse a path that is not a plain relative one.
fn check(path: &Path) -> Result<(), StoreError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    // `components()` tidies `a//b`, `a/./b` and `a/` up: compare with what was written.
    let plain = path.components().all(|part| match part {
        Component::Normal(name) => name.len() <= NAME_MAX,
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => false,
    });
    let tidy = bytes.split(|byte| *byte == b'/').all(|part| !part.is_empty() && part != b".");
    if plain && tidy && !bytes.contains(&0) {
        Ok(())
    } else {
        Err(StoreError::UnsafePath { path: path.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn object(path: &str, len: u64, second: u64) -> Object {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Object { path: path.into(), len, etag: "\"e\"".into(), modified }
    }

    #[test]
    fn tree_lists_every_implied_directory_before_its_content() {
        let tree = build(&[object("a/b/c", 3, 5), object("a.txt", 1, 1), object("a/d", 4, 9)]).unwrap();
        let paths: Vec<_> = tree.entries.iter().map(|entry| entry.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/d", "a.txt"]);
        let objects: Vec<_> = tree.objects.iter().map(|index| index.map(|index| index.0)).collect();
        assert_eq!(objects, [None, None, Some(0), Some(2), Some(1)]);
        assert_eq!(tree.entries[2].kind, EntryKind::File { len: 3 });
        assert_eq!(tree.entries[0].attributes.mtime, SystemTime::UNIX_EPOCH + Duration::from_secs(9));
    }

    #[test]
    fn tree_with_a_name_as_file_and_directory_is_refused() {
        for pair in [["a", "a/b"], ["a/b", "a"], ["a", "a"]] {
            let error = build(&pair.map(|path| object(path, 1, 1))).unwrap_err();
            assert!(matches!(&error, StoreError::Conflict { path } if path == Path::new("a")), "{error}");
        }
    }

    #[test]
    fn tree_with_a_hostile_path_is_refused() {
        let long = format!("a/{}", "x".repeat(256));
        for path in
            ["", "/", "/etc/passwd", "..", "a/../b", "a//b", "a/./b", "./a", "a/", "a\0b", long.as_str()]
        {
            let error = build(&[object(path, 1, 1)]).unwrap_err();
            assert!(matches!(error, StoreError::UnsafePath { .. }), "{path:?} gave {error}");
        }
        build(&[object(&format!("a/{}", "x".repeat(255)), 1, 1), object("...", 1, 1)]).unwrap();
    }
}
