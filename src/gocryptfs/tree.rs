//! The decrypted directory tree: built once from a listing, then immutable.
//!
//! How it is built is in `tree_build.rs`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::content::{Damage, read_class};
use super::keys::Keys;
use super::names::NameError;
use super::tree_build;
use super::tree_stored;
use crate::ciphertext::{Attributes, Ciphertext, EntryId, ReadError};
use crate::error::{ErrorClass, Fault};

/// Index of a [`Node`] in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// The root is the first node.
pub(super) const ROOT: NodeId = NodeId(0);

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
            TreeError::TooMany => "tree.too-many",
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

/// The decrypted directory tree. Share it by `Arc`.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    skipped: Vec<Skipped>,
}

impl Tree {
    /// Decrypt the whole listing of `source`. Reads what [`metadata_entries`](super::metadata_entries) names, nothing else.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn build(source: &dyn Ciphertext, keys: &Keys) -> Result<Tree, TreeError> {
        let (nodes, skipped) = tree_build::build(source, keys)?;
        Ok(Tree { nodes, skipped })
    }

    /// The listing of `source` as it is, nothing decrypted. Reads nothing.
    ///
    /// # Errors
    /// [`TreeError::TooMany`].
    pub fn as_stored(source: &dyn Ciphertext) -> Result<Tree, TreeError> {
        Ok(Tree { nodes: tree_stored::build(source)?, skipped: Vec::new() })
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

/// Where a node lies in the list of nodes.
pub(super) fn index(id: NodeId) -> usize {
    id.0 as usize
}
