//! The order in which an inference engine reads a model's files.

use std::cmp::Ordering;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use super::tree::{Kind, ROOT, Tree};
use crate::ciphertext::EntryId;

/// The files of `tree` in the order that loaders read them in: by plaintext path, numbers in it by their value
/// (`model-2-of-10` before `model-10-of-10`), as vLLM sorts its shards. The listing's own order says nothing: its names are
/// encrypted.
pub fn load_order(tree: &Tree) -> Vec<EntryId> {
    let mut files: Vec<_> = tree
        .nodes()
        .iter()
        .filter(|node| matches!(node.kind, Kind::File { .. }))
        .filter_map(|node| Some((tree.path(node.id), node.entry?)))
        .collect();
    files.sort_by(|(a, _), (b, _)| natural(a.as_os_str().as_bytes(), b.as_os_str().as_bytes()));
    files.into_iter().map(|(_, entry)| entry).collect()
}

/// The file at plaintext `path` below the root, or all files below it, in the order of [`load_order`]; `None` where there is nothing of
/// that name, or something that holds no bytes.
pub fn files_at(tree: &Tree, path: &Path) -> Option<Vec<EntryId>> {
    let mut at = tree.node(ROOT)?;
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => at = tree.lookup(at.id, name)?,
            Component::Prefix(_) | Component::RootDir | Component::ParentDir => return None,
        }
    }
    match &at.kind {
        Kind::File { .. } => Some(vec![at.entry?]),
        Kind::Symlink { .. } | Kind::Special { .. } => None,
        Kind::Directory { .. } => {
            let below = tree.path(at.id);
            let inside = |node: &&super::tree::Node| {
                matches!(node.kind, Kind::File { .. }) && tree.path(node.id).starts_with(&below)
            };
            let wanted: std::collections::HashSet<EntryId> =
                tree.nodes().iter().filter(inside).filter_map(|node| node.entry).collect();
            Some(load_order(tree).into_iter().filter(|entry| wanted.contains(entry)).collect())
        }
    }
}

/// Compare texts piece by piece: digits by value, then by number of leading zeros; anything else bytewise.
fn natural(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        let (number_a, rest_a) = split_digits(a);
        let (number_b, rest_b) = split_digits(b);
        let pieces = match (number_a.is_empty(), number_b.is_empty()) {
            (false, false) => {
                (a, b) = (rest_a, rest_b);
                by_value(number_a, number_b)
            }
            _ => match (a.split_first(), b.split_first()) {
                (Some((first_a, after_a)), Some((first_b, after_b))) => {
                    (a, b) = (after_a, after_b);
                    first_a.cmp(first_b)
                }
                (first_a, first_b) => return first_a.is_some().cmp(&first_b.is_some()),
            },
        };
        if pieces.is_ne() {
            return pieces;
        }
    }
}

fn split_digits(text: &[u8]) -> (&[u8], &[u8]) {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.split_at(digits)
}

fn by_value(a: &[u8], b: &[u8]) -> Ordering {
    let significant =
        |digits: &[u8]| digits.iter().skip_while(|digit| **digit == b'0').copied().collect::<Vec<_>>();
    let (value_a, value_b) = (significant(a), significant(b));
    value_a.len().cmp(&value_b.len()).then(value_a.cmp(&value_b)).then(a.len().cmp(&b.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shards_are_ordered_by_their_number() {
        let mut names = [
            "model-10-of-12.safetensors",
            "model-2-of-12.safetensors",
            "model-00002-of-12.safetensors",
            "config.json",
            "model-2-of-12",
            "99999999999999999999999999.bin",
            "layer.9/x",
            "layer.10/x",
        ];
        names.sort_by(|a, b| natural(a.as_bytes(), b.as_bytes()));
        let expected = [
            "99999999999999999999999999.bin",
            "config.json",
            "layer.9/x",
            "layer.10/x",
            "model-2-of-12",
            "model-2-of-12.safetensors",
            "model-00002-of-12.safetensors",
            "model-10-of-12.safetensors",
        ];
        assert_eq!(names, expected);
    }

    proptest! {
        #[test]
        fn order_is_total(a in "[a-c0-2.]{0,6}", b in "[a-c0-2.]{0,6}", c in "[a-c0-2.]{0,6}") {
            let order = |a: &str, b: &str| natural(a.as_bytes(), b.as_bytes());
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            prop_assert_eq!(order(&a, &b).is_eq(), a == b);
            if order(&a, &b).is_le() && order(&b, &c).is_le() {
                prop_assert!(order(&a, &c).is_le());
            }
        }
    }
}
