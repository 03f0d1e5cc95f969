//! The model as files: inodes, attributes, reads. No kernel types.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::info::{Attributes, NodeInfo};
use crate::ciphertext::{Ciphertext, EntryId};
use crate::error::chain;
use crate::gocryptfs::{
    self, ContentError, FileReader, Keys, Kind as NodeKind, Node, NodeId, Tree, TreeError, XattrError,
};

/// Damaged blocks that are remembered so that each is logged once; the kernel asks again and again for a bad page.
const REPORTED_LIMIT: usize = 10_000;

/// Asked for before every write and every `exec`, and meaningless under `nosuid`.
const CAPABILITY: &str = "security.capability";

/// The root's inode, by FUSE's rule; of every revision.
pub(super) const ROOT: u64 = 1;

/// Bits of an inode that number nodes within one revision: the 32 of a [`NodeId`], and one for the 1 that is added.
const NODE_BITS: u32 = 33;

/// The revision that an inode, not the root's, belongs to.
pub(super) fn revision_of(inode: u64) -> u32 {
    u32::try_from(inode >> NODE_BITS).unwrap_or(u32::MAX)
}

/// Why a request cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FsError {
    /// No such name or inode.
    #[error("no such file or directory")]
    NotFound,
    /// It belongs to a revision of the model that is not shown any more.
    #[error("replaced by a newer revision")]
    Stale,
    /// A directory was expected.
    #[error("not a directory")]
    NotADirectory,
    /// A regular file was expected.
    #[error("not a regular file")]
    NotAFile,
    /// A symbolic link was expected.
    #[error("not a symbolic link")]
    NotALink,
    /// No extended attribute of that name.
    #[error("no such attribute")]
    NoAttribute,
    /// An extended attribute that a mount without set-user-id programs has no use for.
    #[error("not supported")]
    NotSupported,
    /// It does not authenticate; logged with file and block.
    #[error("damaged")]
    Damaged,
    /// Not to be had before the deadline, or not from the disk; logged with file and offset.
    #[error("unreadable")]
    Unreadable,
}

/// Buffers of one read: ciphertext in, plaintext out. Kept between reads so that their pages stay warm.
#[derive(Default)]
pub struct ReadBuffers {
    ciphertext: Vec<u8>,
    plaintext: Vec<u8>,
}

/// One entry of a directory listing: the offset of the next one, name, attributes.
pub type Listed<'a> = (u64, &'a OsStr, NodeInfo);

/// A decrypted tree over its ciphertext; or the ciphertext as it is, for who decrypts it.
pub struct ModelFs {
    tree: Arc<Tree>,
    cipher: Arc<dyn Ciphertext>,
    /// `None` where everything is shown as it is.
    keys: Option<Arc<Keys>>,
    attributes: Attributes,
    /// Its number among those of one mount, below 2^31.
    revision: u32,
    /// By node; `None` for what is no regular file.
    readers: Vec<Option<FileReader>>,
    /// Nodes that are further names of a file, with the node that stands for it.
    hard_links: HashMap<NodeId, NodeId>,
    /// Sum of plaintext sizes and number of nodes.
    bytes: u64,
    /// Damaged (inode, block) pairs already logged.
    reported: Mutex<HashSet<(u64, u64)>>,
}

impl ModelFs {
    /// The model of `tree`, read from `cipher` with `keys`.
    pub fn new(
        tree: Arc<Tree>,
        cipher: Arc<dyn Ciphertext>,
        keys: Arc<Keys>,
        attributes: Attributes,
    ) -> Self {
        Self::shown(tree, cipher, Some(keys), attributes)
    }

    /// The ciphertext of `cipher` as it is: no key, no name and no byte decrypted.
    ///
    /// # Errors
    /// [`TreeError::TooMany`].
    pub fn as_stored(cipher: Arc<dyn Ciphertext>, attributes: Attributes) -> Result<Self, TreeError> {
        let tree = Arc::new(Tree::as_stored(cipher.as_ref())?);
        Ok(Self::shown(tree, cipher, None, attributes))
    }

    fn shown(
        tree: Arc<Tree>,
        cipher: Arc<dyn Ciphertext>,
        keys: Option<Arc<Keys>>,
        attributes: Attributes,
    ) -> Self {
        let readers: Vec<_> = tree.nodes().iter().map(|node| FileReader::new(&tree, node.id)).collect();
        let bytes = tree.nodes().iter().map(plain_len).fold(0, u64::saturating_add);
        let hard_links = hard_links(&tree);
        let reported = Mutex::default();
        ModelFs { tree, cipher, keys, attributes, revision: 0, readers, hard_links, bytes, reported }
    }

    /// The same, as another revision of one mount: its inodes are no other's, but for the root.
    pub(super) fn numbered(self, revision: u32) -> Self {
        ModelFs { revision: revision & (u32::MAX >> 1), ..self }
    }

    /// Its number among those of one mount.
    pub(super) fn revision(&self) -> u32 {
        self.revision
    }

    /// Number of regular files.
    pub fn file_count(&self) -> usize {
        self.readers.iter().flatten().count()
    }

    /// Blocks of `block` bytes that the plaintext fills, and the number of inodes.
    pub fn totals(&self, block: u64) -> (u64, u64) {
        let files = u64::try_from(self.tree.len()).unwrap_or(u64::MAX);
        (self.bytes.div_ceil(block), files)
    }

    /// Attributes of `inode`.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn info(&self, inode: u64) -> Result<NodeInfo, FsError> {
        self.node(inode).map(|node| self.describe(node))
    }

    /// Attributes of `name` in directory `parent`.
    ///
    /// # Errors
    /// [`FsError::NotFound`].
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<NodeInfo, FsError> {
        let parent = self.node(parent)?;
        self.tree.lookup(parent.id, name).map(|node| self.describe(node)).ok_or(FsError::NotFound)
    }

    /// Children of a directory, sorted by name.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotADirectory`].
    pub fn children(&self, inode: u64) -> Result<&[NodeId], FsError> {
        match &self.node(inode)?.kind {
            NodeKind::Directory { children } => Ok(children),
            NodeKind::File { .. } | NodeKind::Symlink { .. } | NodeKind::Special { .. } => {
                Err(FsError::NotADirectory)
            }
        }
    }

    /// Listing of a directory from `offset` on (0 = begin): `.`, `..`, then the children.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotADirectory`].
    pub fn list(&self, inode: u64, offset: u64) -> Result<impl Iterator<Item = Listed<'_>>, FsError> {
        let children = self.children(inode)?;
        let here = self.node(inode)?;
        let above = self.tree.node(here.parent).unwrap_or(here);
        let dots = [(OsStr::new("."), here), (OsStr::new(".."), above)];
        let named =
            children.iter().filter_map(|id| self.tree.node(*id)).map(|node| (node.name.as_os_str(), node));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let numbered = dots.into_iter().chain(named).zip(1u64..).skip(skip);
        Ok(numbered.map(|((name, node), next)| (next, name, self.describe(node))))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotALink`].
    pub fn read_link(&self, inode: u64) -> Result<&[u8], FsError> {
        match &self.node(inode)?.kind {
            NodeKind::Symlink { target } => Ok(target.as_bytes()),
            NodeKind::Directory { .. } | NodeKind::File { .. } | NodeKind::Special { .. } => {
                Err(FsError::NotALink)
            }
        }
    }

    /// Names of the extended attributes of `inode`, namespaces included.
    ///
    /// # Errors
    /// [`FsError::NotFound`]; [`FsError::Unreadable`] after a log record.
    pub fn xattr_names(&self, inode: u64) -> Result<Vec<OsString>, FsError> {
        let node = self.node(inode)?;
        let Some(keys) = &self.keys else { return Ok(Vec::new()) };
        let found = gocryptfs::xattr_names(self.cipher.as_ref(), keys, node.entry)
            .map_err(|error| self.report_xattr(node, &error))?;
        for (stored, reason) in &found.skipped {
            let (file, stored) = (self.tree.path(node.id), stored.display());
            let file = file.display();
            tracing::warn!(event = "xattr.skipped", file = %file, "{file}, extended attribute {stored}: {reason}");
        }
        Ok(found.names)
    }

    /// Value of the extended attribute `name` of `inode`.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NoAttribute`], [`FsError::NotSupported`]; [`FsError::Unreadable`] after a log
    /// record.
    pub fn xattr(&self, inode: u64, name: &OsStr) -> Result<Vec<u8>, FsError> {
        let node = self.node(inode)?;
        if name == CAPABILITY {
            return Err(FsError::NotSupported);
        }
        let Some(keys) = &self.keys else { return Err(FsError::NoAttribute) };
        gocryptfs::xattr(self.cipher.as_ref(), keys, node.entry, name)
            .map_err(|error| self.report_xattr(node, &error))?
            .ok_or(FsError::NoAttribute)
    }

    fn report_xattr(&self, node: &Node, error: &XattrError) -> FsError {
        let file = self.tree.path(node.id);
        let file = file.display();
        tracing::error!(event = "xattr.failed", file = %file, "{file}: {}", chain(error));
        FsError::Unreadable
    }

    /// A regular file is about to be read: tell the ciphertext's source, which may begin to fetch it.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotAFile`].
    pub fn open(&self, inode: u64) -> Result<(), FsError> {
        let node = self.node(inode)?;
        match (&node.kind, node.entry) {
            (NodeKind::File { .. }, Some(entry)) => {
                self.cipher.will_need(entry);
                Ok(())
            }
            _ => Err(FsError::NotAFile),
        }
    }

    /// Up to `size` plaintext bytes of a regular file from `offset`; fewer only at its end.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotAFile`]; [`FsError::Damaged`] after one log record with file and block,
    /// [`FsError::Unreadable`] after one with file and offset.
    pub fn read<'b>(
        &self,
        inode: u64,
        offset: u64,
        size: u32,
        buffers: &'b mut ReadBuffers,
    ) -> Result<&'b [u8], FsError> {
        let wanted = plain_len(self.node(inode)?).saturating_sub(offset).min(u64::from(size));
        let wanted = usize::try_from(wanted).map_err(|_| FsError::Unreadable)?;
        if buffers.plaintext.len() < wanted {
            buffers.plaintext.resize(wanted, 0);
        }
        let out = buffers.plaintext.get_mut(..wanted).ok_or(FsError::Unreadable)?;
        let len = self.read_into(inode, offset, out, &mut buffers.ciphertext)?;
        buffers.plaintext.get(..len).ok_or(FsError::Unreadable)
    }

    /// Plaintext of a regular file from `offset` into `out`; the count is short only at its end. `scratch` is for the
    /// ciphertext: keep it between reads.
    ///
    /// # Errors
    /// As [`ModelFs::read`].
    pub(super) fn read_into(
        &self,
        inode: u64,
        offset: u64,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<usize, FsError> {
        let node = self.node(inode)?;
        let reader = usize::try_from(node.id.0).ok().and_then(|index| self.readers.get(index)?.as_ref());
        let reader = reader.ok_or(FsError::NotAFile)?;
        let Some(keys) = &self.keys else { return self.read_stored(node, reader.entry(), offset, out) };
        let mut read = || reader.read(self.cipher.as_ref(), keys, offset, out, scratch);
        let outcome = match read() {
            Err(error) if self.may_heal(node, reader, keys, &error) => read(),
            outcome => outcome,
        };
        outcome.map_err(|error| {
            self.report(node, offset, &error);
            match error {
                ContentError::Corrupt { .. } => FsError::Damaged,
                ContentError::Read(_) => FsError::Unreadable,
            }
        })
    }

    /// The same where everything is shown as it is.
    fn read_stored(
        &self,
        node: &Node,
        entry: EntryId,
        offset: u64,
        out: &mut [u8],
    ) -> Result<usize, FsError> {
        let left = usize::try_from(plain_len(node).saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = out.len().min(left);
        let out = out.get_mut(..len).ok_or(FsError::Unreadable)?;
        self.cipher.read_at(entry, offset, out).map_err(|error| {
            self.report(node, offset, &ContentError::Read(error));
            FsError::Unreadable
        })?;
        Ok(len)
    }

    /// The tree behind the file system.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Path of `inode` below the mount point, empty for what there is not.
    pub(super) fn path(&self, inode: u64) -> PathBuf {
        self.node(inode).map(|node| self.tree.path(node.id)).unwrap_or_default()
    }

    /// Plaintext length of the regular file `inode`, bytes; `None` for anything else.
    pub(super) fn file_len(&self, inode: u64) -> Option<u64> {
        match self.node(inode).ok()?.kind {
            NodeKind::File { plain_len, .. } => Some(plain_len),
            NodeKind::Directory { .. } | NodeKind::Symlink { .. } | NodeKind::Special { .. } => None,
        }
    }

    /// Whether reading the file `inode` needs no network.
    pub(super) fn is_complete(&self, inode: u64) -> bool {
        self.node(inode).ok().and_then(|node| node.entry).is_some_and(|entry| self.cipher.is_complete(entry))
    }

    /// The regular file that follows `inode` in its directory, by name.
    pub(super) fn next_file(&self, inode: u64) -> Option<u64> {
        let node = self.node(inode).ok()?;
        let NodeKind::Directory { children } = &self.tree.node(node.parent)?.kind else { return None };
        let at = children.iter().position(|child| *child == node.id)?;
        let following = children.iter().skip(at + 1).filter_map(|id| self.tree.node(*id));
        following
            .map(|node| (node, self.inode(node.id)))
            .find(|(node, _)| matches!(node.kind, NodeKind::File { .. }))
            .map(|(_, inode)| inode)
    }

    /// Whether the bytes of a damaged block may be better the next time: only the local copy may be bad. Asked once a block,
    /// since checking the copy costs more than the read.
    fn may_heal(&self, node: &Node, reader: &FileReader, keys: &Keys, error: &ContentError) -> bool {
        let ContentError::Corrupt { block, .. } = error else { return false };
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.contains(&(self.inode(node.id), *block)) {
            return false;
        }
        drop(reported);
        let layout = keys.layout();
        let sealed = layout.cipher_offset(*block)..layout.cipher_offset(block.saturating_add(1));
        let doubted = self.cipher.doubt(reader.entry(), sealed);
        if doubted {
            let file = self.tree.path(node.id);
            let file = file.display();
            tracing::warn!(event = "block.doubted", file = %file, block, "{file}, block {block}: checking the local copy");
        }
        doubted
    }

    /// One record per damaged block, however often it is asked for.
    fn report(&self, node: &Node, offset: u64, error: &ContentError) {
        let file = self.tree.path(node.id);
        let file = file.display();
        match error {
            ContentError::Corrupt { block, .. } => {
                let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
                let new = reported.len() < REPORTED_LIMIT && reported.insert((self.inode(node.id), *block));
                if new {
                    tracing::error!(event = "block.corrupt", file = %file, block, "{file}, block {block}: {}", chain(error));
                }
            }
            ContentError::Read(_) => {
                tracing::error!(event = "read.failed", file = %file, offset, "{file} at {offset}: {}", chain(error));
            }
        }
    }

    fn node(&self, inode: u64) -> Result<&Node, FsError> {
        if inode != ROOT && revision_of(inode) != self.revision {
            return Err(FsError::Stale);
        }
        let node = inode & ((1 << NODE_BITS) - 1);
        let index =
            node.checked_sub(1).and_then(|index| u32::try_from(index).ok()).ok_or(FsError::NotFound)?;
        self.tree.node(NodeId(index)).ok_or(FsError::NotFound)
    }

    /// The root is 1 (FUSE's rule), everything else follows the tree's numbering, from the revision's first on; hard links
    /// share one.
    pub(super) fn inode(&self, id: NodeId) -> u64 {
        let node = u64::from(self.hard_links.get(&id).unwrap_or(&id).0) + 1;
        if node == ROOT { ROOT } else { u64::from(self.revision) << NODE_BITS | node }
    }

    fn describe(&self, node: &Node) -> NodeInfo {
        NodeInfo::new(node, self.inode(node.id), self.attributes)
    }
}

/// Further names of a file, symlink or special file, by the identity its source gives it.
fn hard_links(tree: &Tree) -> HashMap<NodeId, NodeId> {
    let mut first: HashMap<u64, NodeId> = HashMap::new();
    let mut links = HashMap::new();
    for node in tree.nodes() {
        let stored = &node.attributes;
        let linked = !matches!(node.kind, NodeKind::Directory { .. }) && stored.nlink > 1 && stored.ino != 0;
        if linked {
            let stands_for_it = *first.entry(node.attributes.ino).or_insert(node.id);
            if stands_for_it != node.id {
                links.insert(node.id, stands_for_it);
            }
        }
    }
    links
}

fn plain_len(node: &Node) -> u64 {
    match node.kind {
        NodeKind::File { plain_len, .. } => plain_len,
        NodeKind::Directory { .. } | NodeKind::Symlink { .. } | NodeKind::Special { .. } => 0,
    }
}
