//! The tree of a ciphertext directory as it is: no name and no byte is decrypted. For formats that somebody else decrypts.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::SystemTime;

use super::tree::{Kind, Node, NodeId, ROOT, TreeError, index};
use crate::ciphertext::{Attributes, Ciphertext, EntryId, EntryKind};

/// All nodes, the root first and parents before children.
pub(super) fn build(source: &dyn Ciphertext) -> Result<Vec<Node>, TreeError> {
    let attributes = source.root().unwrap_or(Attributes::unknown(SystemTime::UNIX_EPOCH));
    let kind = Kind::Directory { children: Vec::new() };
    let root =
        Node { id: ROOT, parent: ROOT, name: OsString::new(), kind, entry: None, attributes, nlink: 2 };
    let (mut nodes, mut directories) = (vec![root], HashMap::from([(Path::new(""), ROOT)]));
    for (number, entry) in (0..).zip(source.entries()) {
        let above = entry.path.parent().unwrap_or(Path::new(""));
        // A listing has every directory before what it holds.
        let Some(&parent) = directories.get(above) else { continue };
        let id = NodeId(u32::try_from(nodes.len()).map_err(|_| TreeError::TooMany)?);
        let (kind, nlink) = match &entry.kind {
            EntryKind::Directory => {
                directories.insert(&entry.path, id);
                (Kind::Directory { children: Vec::new() }, 2)
            }
            EntryKind::File { len } => (Kind::File { plain_len: *len, cipher_len: *len }, 1),
            EntryKind::Symlink { target } => {
                (Kind::Symlink { target: OsString::from_vec(target.clone()) }, 1)
            }
            EntryKind::Special { rdev } => (Kind::Special { rdev: *rdev }, 1),
        };
        if let Some(Node { kind: Kind::Directory { children }, nlink: links, .. }) =
            nodes.get_mut(index(parent))
        {
            children.push(id);
            *links = links.saturating_add(u32::from(nlink == 2));
        }
        let name = entry.path.file_name().map(OsStr::to_owned).unwrap_or_default();
        let entry_id = Some(EntryId(number));
        nodes.push(Node { id, parent, name, kind, entry: entry_id, attributes: entry.attributes, nlink });
    }
    sort_children(&mut nodes);
    Ok(nodes)
}

/// A lookup is a search by name.
fn sort_children(nodes: &mut [Node]) {
    let names: Vec<OsString> = nodes.iter().map(|node| node.name.clone()).collect();
    for node in nodes {
        if let Kind::Directory { children } = &mut node.kind {
            children.sort_by_key(|id| names.get(index(*id)));
        }
    }
}
