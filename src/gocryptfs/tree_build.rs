//! Building the decrypted tree from a listing.
//!
//! Whatever cannot be a file of this directory (a name that does not decrypt, a directory without its IV, a long name
//! that does not hash to its file) is left out and reported, as gocryptfs leaves it out of a listing. What cannot be
//! *read* fails the build: that may be the network, and a tree with holes must not look complete.
//!
//! Work is linear in the entries, but for one sort per directory. Tested in `tests/format_props.rs`.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use super::conf::CONF_NAME;
use super::content::{Damage, open_target};
use super::features::Naming;
use super::keys::Keys;
use super::names::{self, DirIv, LONG_SUFFIX, LONGEST_TEXT, Names, Stored};
use super::tree::{Kind, Node, NodeId, ROOT, SkipReason, Skipped, TreeError, index};
use crate::ciphertext::{Attributes, Ciphertext, Entry, EntryId, EntryKind};

/// The entries that must be readable before anything can be shown: the conf, every directory IV, every long name.
/// [`Tree::build`](super::Tree::build) reads them (but for the conf) and nothing else. They are small. Which names the
/// directory has is not known yet, so these are the most there can be: those of names under directory IVs.
pub fn metadata_entries(entries: &[Entry]) -> Vec<EntryId> {
    let needed = |entry: &Entry| {
        let (parent, name) = split(entry);
        let is_file = matches!(entry.kind, EntryKind::File { .. });
        is_file
            && match Stored::classify(Naming::DirIv, name) {
                Stored::DirIv | Stored::LongText => true,
                Stored::Long | Stored::Short => is_conf(parent, name),
            }
    };
    (0..).zip(entries).filter(|(_, entry)| needed(entry)).map(|(index, _)| EntryId(index)).collect()
}

/// All nodes, the root first and parents before children, and what was left out.
pub(super) fn build(source: &dyn Ciphertext, keys: &Keys) -> Result<(Vec<Node>, Vec<Skipped>), TreeError> {
    let mut builder = Builder::new(source, keys)?;
    for (index, entry) in (0..).zip(source.entries()) {
        builder.add(EntryId(index), entry)?;
    }
    Ok(builder.finish())
}

/// Parent path and last component of an entry's path.
fn split(entry: &Entry) -> (&[u8], &[u8]) {
    let path = entry.path.as_os_str().as_bytes();
    match path.iter().rposition(|&byte| byte == b'/').and_then(|slash| path.split_at_checked(slash)) {
        Some((parent, name)) => (parent, name.get(1..).unwrap_or_default()),
        None => (b"", path),
    }
}

fn is_conf(parent: &[u8], name: &[u8]) -> bool {
    parent.is_empty() && name == CONF_NAME.as_bytes()
}

/// Why one entry does not become a node.
enum Refusal {
    Skip(SkipReason),
    Fail(TreeError),
}

impl From<TreeError> for Refusal {
    fn from(error: TreeError) -> Self {
        Refusal::Fail(error)
    }
}

impl From<SkipReason> for Refusal {
    fn from(reason: SkipReason) -> Self {
        Refusal::Skip(reason)
    }
}

/// A metadata file: where it is and how long.
type Small = (EntryId, u64);

struct Builder<'a> {
    source: &'a dyn Ciphertext,
    keys: &'a Keys,
    naming: Naming,
    names: Names,
    /// `gocryptfs.diriv` by the path of its directory.
    ivs: HashMap<&'a [u8], Small>,
    /// `.name` files by their path.
    texts: HashMap<&'a [u8], Small>,
    /// Directories in the tree by ciphertext path.
    directories: HashMap<&'a [u8], (NodeId, DirIv)>,
    /// Directories left out, so that what is below them is left out without a word for each.
    gone: HashSet<&'a [u8]>,
    taken: HashSet<(NodeId, OsString)>,
    nodes: Vec<Node>,
    skipped: Vec<Skipped>,
}

impl<'a> Builder<'a> {
    fn new(source: &'a dyn Ciphertext, keys: &'a Keys) -> Result<Self, TreeError> {
        let naming = keys.features().naming;
        let (mut ivs, mut texts) = (HashMap::new(), HashMap::new());
        for (index, entry) in (0..).zip(source.entries()) {
            let EntryKind::File { len } = entry.kind else { continue };
            let (parent, name) = split(entry);
            let found = match Stored::classify(naming, name) {
                Stored::DirIv => Some((&mut ivs, parent)),
                Stored::LongText => Some((&mut texts, entry.path.as_os_str().as_bytes())),
                Stored::Long | Stored::Short => None,
            };
            if let Some((files, path)) = found {
                files.insert(path, (EntryId(index), len));
            }
        }
        let mut builder = Builder {
            source,
            keys,
            naming,
            names: keys.names(),
            ivs,
            texts,
            directories: HashMap::new(),
            gone: HashSet::new(),
            taken: HashSet::new(),
            nodes: vec![root(source)],
            skipped: Vec::new(),
        };
        let iv = builder.dir_iv(b"").map_err(|refusal| match refusal {
            Refusal::Skip(reason) => TreeError::Root { reason },
            Refusal::Fail(error) => error,
        })?;
        builder.directories.insert(b"", (ROOT, iv));
        Ok(builder)
    }

    /// Make a node of `entry`, or note why not.
    fn add(&mut self, id: EntryId, entry: &'a Entry) -> Result<(), TreeError> {
        let (parent, name) = split(entry);
        let path = entry.path.as_os_str().as_bytes();
        let is_directory = entry.kind == EntryKind::Directory;
        let stored = Stored::classify(self.naming, name);
        if matches!(stored, Stored::DirIv | Stored::LongText) || is_conf(parent, name) {
            if is_directory {
                self.gone.insert(path);
            }
            return Ok(());
        }
        if self.gone.contains(parent) {
            if is_directory {
                self.gone.insert(path);
            }
            return Ok(());
        }
        match self.place(id, entry, stored) {
            Ok(()) => {}
            Err(Refusal::Fail(error)) => return Err(error),
            Err(Refusal::Skip(reason)) => {
                self.skipped.push(Skipped { path: entry.path.clone(), reason });
                if is_directory && !self.directories.contains_key(path) {
                    self.gone.insert(path);
                }
            }
        }
        Ok(())
    }

    fn place(&mut self, id: EntryId, entry: &'a Entry, stored: Stored) -> Result<(), Refusal> {
        let (parent, name) = split(entry);
        let path = entry.path.as_os_str().as_bytes();
        let &(parent, iv) = self.directories.get(parent).ok_or(SkipReason::NoParent)?;
        let name = match stored {
            Stored::Long => self.long_name(path, name, &iv)?,
            Stored::DirIv | Stored::LongText | Stored::Short => self.short_name(name, &iv)?,
        };
        let place = (parent, name.clone());
        if self.taken.contains(&place) {
            return Err(SkipReason::Duplicate.into());
        }
        let node = NodeId(u32::try_from(self.nodes.len()).map_err(|_| TreeError::TooMany)?);
        let kind = match &entry.kind {
            EntryKind::Directory => {
                let iv = self.dir_iv(path)?;
                self.directories.insert(path, (node, iv));
                Kind::Directory { children: Vec::new() }
            }
            EntryKind::File { len } => {
                Kind::File { plain_len: self.keys.layout().plain_len(*len), cipher_len: *len }
            }
            EntryKind::Symlink { target } => {
                Kind::Symlink { target: self.target(target).map_err(SkipReason::Target)? }
            }
            EntryKind::Special { rdev } => Kind::Special { rdev: *rdev },
        };
        self.taken.insert(place);
        if let Some(Node { kind: Kind::Directory { children }, .. }) = self.nodes.get_mut(index(parent)) {
            children.push(node);
        }
        let (attributes, nlink) = (entry.attributes, entry.attributes.nlink.max(1));
        self.nodes.push(Node { id: node, parent, name, kind, entry: Some(id), attributes, nlink });
        Ok(())
    }

    /// Plaintext of a name that is stored as a file name.
    fn short_name(&self, name: &[u8], iv: &DirIv) -> Result<OsString, SkipReason> {
        if self.naming == Naming::Plain {
            return names::plain(name).map_err(SkipReason::Name);
        }
        if name.len() > self.names.longest_short() {
            return Err(SkipReason::NotLong);
        }
        self.names.decrypt(iv, name).map_err(SkipReason::Name)
    }

    /// Plaintext target of a symlink. An empty one is stored as it is, and so are all where names are.
    fn target(&self, stored: &[u8]) -> Result<OsString, Damage> {
        if self.naming == Naming::Plain || stored.is_empty() {
            return Ok(OsStr::from_bytes(stored).to_owned());
        }
        open_target(self.keys, stored)
    }

    /// Plaintext name of the object at `path`, whose encrypted name is in the `.name` file beside it.
    fn long_name(&self, path: &[u8], object: &[u8], iv: &DirIv) -> Result<OsString, Refusal> {
        let text_path = [path, LONG_SUFFIX.as_bytes()].concat();
        let &file = self.texts.get(text_path.as_slice()).ok_or(SkipReason::NoLongText)?;
        let text = self
            .small(file, self.names.longest_short() + 1..=LONGEST_TEXT)?
            .ok_or(SkipReason::BadLongText)?;
        if self.names.long_object(&text).as_bytes() != object {
            return Err(SkipReason::ForeignLongText.into());
        }
        Ok(self.names.decrypt(iv, &text).map_err(SkipReason::Name)?)
    }

    fn dir_iv(&self, directory: &[u8]) -> Result<DirIv, Refusal> {
        if self.naming != Naming::DirIv {
            return Ok(DirIv::DETERMINISTIC);
        }
        let &file = self.ivs.get(directory).ok_or(SkipReason::NoDirIv)?;
        let bytes = self.small(file, DirIv::LEN..=DirIv::LEN)?;
        let iv = bytes.and_then(|bytes| DirIv::new(bytes.try_into().ok()?));
        Ok(iv.ok_or(SkipReason::BadDirIv)?)
    }

    /// A metadata file whole; `None` when its length is not in `allowed`.
    fn small(
        &self,
        (id, len): Small,
        allowed: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<Vec<u8>>, TreeError> {
        let Some(len) = usize::try_from(len).ok().filter(|len| allowed.contains(len)) else {
            return Ok(None);
        };
        let mut bytes = vec![0; len];
        self.source.read_at(id, 0, &mut bytes).map_err(|source| {
            let entry = self.source.entries().get(id.0 as usize);
            TreeError::Read { path: entry.map(|entry| entry.path.clone()).unwrap_or_default(), source }
        })?;
        Ok(Some(bytes))
    }

    /// Sort every directory and count its subdirectories.
    fn finish(mut self) -> (Vec<Node>, Vec<Skipped>) {
        for at in 0..self.nodes.len() {
            let Some(Node { kind: Kind::Directory { children }, .. }) = self.nodes.get_mut(at) else {
                continue;
            };
            let mut children = std::mem::take(children);
            children.sort_unstable_by_key(|id| self.nodes.get(index(*id)).map(|node| node.name.as_os_str()));
            let is_directory = |id: &&NodeId| {
                self.nodes.get(index(**id)).is_some_and(|node| matches!(node.kind, Kind::Directory { .. }))
            };
            let subdirectories =
                u32::try_from(children.iter().filter(is_directory).count()).unwrap_or(u32::MAX);
            if let Some(node) = self.nodes.get_mut(at) {
                node.kind = Kind::Directory { children };
                node.nlink = subdirectories.saturating_add(2);
            }
        }
        (self.nodes, self.skipped)
    }
}

/// The root has no entry of its own: where its source does not say more, it is as new as the newest entry in it.
fn root(source: &dyn Ciphertext) -> Node {
    let top = source.entries().iter().filter(|entry| split(entry).0.is_empty());
    let newest = top.map(|entry| entry.attributes.mtime).max().unwrap_or(SystemTime::UNIX_EPOCH);
    let unknown = Attributes::unknown(newest);
    Node {
        id: ROOT,
        parent: ROOT,
        name: OsString::new(),
        kind: Kind::Directory { children: Vec::new() },
        entry: None,
        attributes: source.root().unwrap_or(unknown),
        nlink: 2,
    }
}
