//! The decrypted directory tree: built once from a listing, then immutable.
//!
//! Whatever cannot be a file of this directory (a name that does not decrypt, a directory without its IV, a long name
//! that does not hash to its file) is left out and reported, as gocryptfs leaves it out of a listing. What cannot be
//! *read* fails the build: that may be the network, and a tree with holes must not look complete.
//!
//! Work is linear in the entries, but for one sort per directory.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::conf::CONF_NAME;
use super::content::{Damage, open_target, read_class};
use super::keys::Keys;
use super::layout::plain_len;
use super::names::{DirIv, LONG_SUFFIX, LONGEST_SHORT, LONGEST_TEXT, NameError, Names, Stored, long_object};
use crate::ciphertext::{Attributes, Ciphertext, Entry, EntryId, EntryKind, ReadError};
use crate::error::{ErrorClass, Fault};

/// Index of a [`Node`] in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// The root is the first node.
const ROOT: NodeId = NodeId(0);

/// One file, directory or symlink of the plaintext tree.
#[derive(Debug)]
pub struct Node {
    /// Its own id.
    pub id: NodeId,
    /// The directory it is in; the root is its own parent.
    pub parent: NodeId,
    /// Plaintext name, any bytes but `/` and NUL; empty for the root.
    pub name: OsString,
    /// What it is.
    pub kind: Kind,
    /// The ciphertext entry behind it; the root has none.
    pub entry: Option<EntryId>,
    /// Attributes of that entry. `ino` is shared by hard links.
    pub attributes: Attributes,
    /// Link count to show: 2 and the subdirectories for a directory, the stored count for a file.
    pub nlink: u32,
}

/// What a [`Node`] is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// Its nodes, sorted bytewise by name.
        children: Vec<NodeId>,
    },
    /// A regular file.
    File {
        /// Plaintext length in bytes.
        plain_len: u64,
        /// Ciphertext length in bytes.
        cipher_len: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Plaintext target; empty only where the stored one is.
        target: OsString,
    },
    /// A device, fifo or socket, as `attributes.mode` says.
    Special {
        /// Device number, else 0.
        rdev: u64,
    },
}

/// A ciphertext entry that is not in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Ciphertext path. Entries below a skipped directory are not listed one by one.
    pub path: PathBuf,
    /// Why.
    pub reason: SkipReason,
}

/// Why an entry is not in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// The name does not decrypt to a legal one.
    #[error("undecryptable name: {0}")]
    Name(NameError),
    /// A long name without its `.name` file.
    #[error("long name without its .name file")]
    NoLongText,
    /// The `.name` file is empty, too large, or holds a name that needs none.
    #[error(".name file does not hold a long name")]
    BadLongText,
    /// The `.name` file belongs to another object.
    #[error(".name file does not hash to its file name")]
    ForeignLongText,
    /// Over 255 characters, where the format asks for a long name.
    #[error("name is too long to be stored as it is")]
    NotLong,
    /// The directory has no `gocryptfs.diriv`.
    #[error("directory without gocryptfs.diriv")]
    NoDirIv,
    /// `gocryptfs.diriv` has not 16 bytes, or only zeros.
    #[error("damaged gocryptfs.diriv")]
    BadDirIv,
    /// The symlink target does not open.
    #[error("damaged symlink target: {0}")]
    Target(Damage),
    /// Another entry of the same directory has the same plaintext name.
    #[error("second entry of the same name")]
    Duplicate,
    /// Its directory is not in the listing.
    #[error("entry without a directory")]
    NoParent,
}

/// No tree can be built.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The root is not a gocryptfs directory.
    #[error("root of the encrypted directory: {reason}")]
    Root {
        /// [`SkipReason::NoDirIv`] or [`SkipReason::BadDirIv`].
        reason: SkipReason,
    },
    /// Metadata could not be read.
    #[error("reading {path}")]
    Read {
        /// Ciphertext path.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// More than 2^32 nodes.
    #[error("too many entries")]
    TooMany,
}

impl Fault for TreeError {
    fn class(&self) -> ErrorClass {
        match self {
            TreeError::Root { .. } | TreeError::TooMany => ErrorClass::Corrupt,
            TreeError::Read { source, .. } => read_class(source),
        }
    }

    fn code(&self) -> &'static str {
        match self {
            TreeError::Root { .. } => "tree.root",
            TreeError::Read { .. } => "tree.read",
            TreeError::TooMany => "tree.too_many",
        }
    }

    fn hint(&self) -> String {
        match self {
            TreeError::Root { .. } => "upload the whole encrypted directory, gocryptfs.diriv files included",
            TreeError::Read { .. } => "check that the ciphertext can be reached and read",
            TreeError::TooMany => "this is no model directory",
        }
        .to_owned()
    }
}

/// The entries [`Tree::build`] reads: the conf, every directory IV, every long name. Small, and needed before anything
/// can be shown.
pub fn metadata_entries(entries: &[Entry]) -> Vec<EntryId> {
    let needed = |entry: &Entry| {
        let (parent, name) = split(entry);
        let is_file = matches!(entry.kind, EntryKind::File { .. });
        is_file
            && match Stored::classify(name) {
                Stored::DirIv | Stored::LongText => true,
                Stored::Long | Stored::Short => is_conf(parent, name),
            }
    };
    (0..).zip(entries).filter(|(_, entry)| needed(entry)).map(|(index, _)| EntryId(index)).collect()
}

/// The decrypted directory tree. Share it by `Arc`.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    skipped: Vec<Skipped>,
}

impl Tree {
    /// Decrypt the whole listing of `source`. Reads what [`metadata_entries`] names, nothing else.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn build(source: &dyn Ciphertext, keys: &Keys) -> Result<Tree, TreeError> {
        let mut builder = Builder::new(source, keys)?;
        for (index, entry) in (0..).zip(source.entries()) {
            builder.add(EntryId(index), entry)?;
        }
        Ok(builder.finish())
    }

    /// The root directory's id.
    pub fn root(&self) -> NodeId {
        ROOT
    }

    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(index(id))
    }

    /// The node called `name` in directory `parent`.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Option<&Node> {
        let Kind::Directory { children } = &self.node(parent)?.kind else { return None };
        let name_of = |id: &NodeId| self.node(*id).map(|node| node.name.as_os_str());
        let found = children.binary_search_by(|id| name_of(id).cmp(&Some(name))).ok()?;
        self.node(*children.get(found)?)
    }

    /// Path of a node below the root, for messages; empty for the root and for an unknown id.
    pub fn path(&self, id: NodeId) -> PathBuf {
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT
            && let Some(node) = self.node(at)
        {
            names.push(node.name.as_os_str());
            at = node.parent;
        }
        names.iter().rev().collect()
    }

    /// Every node, parents before children, the root first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Number of nodes, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is always a root.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Ciphertext entries that are not in the tree, in listing order.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }
}

fn index(id: NodeId) -> usize {
    id.0 as usize
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
        let (mut ivs, mut texts) = (HashMap::new(), HashMap::new());
        for (index, entry) in (0..).zip(source.entries()) {
            let EntryKind::File { len } = entry.kind else { continue };
            let (parent, name) = split(entry);
            let found = match Stored::classify(name) {
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
            names: keys.names(),
            ivs,
            texts,
            directories: HashMap::new(),
            gone: HashSet::new(),
            taken: HashSet::new(),
            nodes: vec![root(source.entries())],
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
        let stored = Stored::classify(name);
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
            Stored::DirIv | Stored::LongText | Stored::Short if name.len() > LONGEST_SHORT => {
                return Err(SkipReason::NotLong.into());
            }
            Stored::DirIv | Stored::LongText | Stored::Short => {
                self.names.decrypt(&iv, name).map_err(SkipReason::Name)?
            }
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
            EntryKind::File { len } => Kind::File { plain_len: plain_len(*len), cipher_len: *len },
            EntryKind::Symlink { target } if target.is_empty() => Kind::Symlink { target: OsString::new() },
            EntryKind::Symlink { target } => {
                Kind::Symlink { target: open_target(self.keys, target).map_err(SkipReason::Target)? }
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

    /// Plaintext name of the object at `path`, whose encrypted name is in the `.name` file beside it.
    fn long_name(&self, path: &[u8], object: &[u8], iv: &DirIv) -> Result<OsString, Refusal> {
        let text_path = [path, LONG_SUFFIX.as_bytes()].concat();
        let &file = self.texts.get(text_path.as_slice()).ok_or(SkipReason::NoLongText)?;
        let text = self.small(file, LONGEST_SHORT + 1..=LONGEST_TEXT)?.ok_or(SkipReason::BadLongText)?;
        if long_object(&text).as_bytes() != object {
            return Err(SkipReason::ForeignLongText.into());
        }
        Ok(self.names.decrypt(iv, &text).map_err(SkipReason::Name)?)
    }

    fn dir_iv(&self, directory: &[u8]) -> Result<DirIv, Refusal> {
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
    fn finish(mut self) -> Tree {
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
        Tree { nodes: self.nodes, skipped: self.skipped }
    }
}

/// The root has no entry of its own: it is as new as the newest entry in it, and the mount decides the rest.
fn root(entries: &[Entry]) -> Node {
    let top = entries.iter().filter(|entry| split(entry).0.is_empty());
    let mtime = top.map(|entry| entry.attributes.mtime).max().unwrap_or(SystemTime::UNIX_EPOCH);
    Node {
        id: ROOT,
        parent: ROOT,
        name: OsString::new(),
        kind: Kind::Directory { children: Vec::new() },
        entry: None,
        attributes: Attributes { mode: 0, uid: 0, gid: 0, nlink: 1, ino: 0, blocks: 0, mtime },
        nlink: 2,
    }
}
