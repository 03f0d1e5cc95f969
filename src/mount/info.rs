//! What `stat` shows of a node.

use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;

use crate::gocryptfs::{Kind as NodeKind, Node};

/// Whose attributes files show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attributes {
    /// Those of the ciphertext entry.
    AsStored,
    /// The configured ones: object stores keep none.
    Fixed {
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits of files; directories get `x` wherever `r` is.
        mode: u32,
    },
}

/// Type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of stat(2)")]
pub enum Kind {
    Directory,
    File,
    Symlink,
    NamedPipe,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeInfo {
    /// Inode number; 1 is the root.
    pub inode: u64,
    /// Type.
    pub kind: Kind,
    /// Plaintext length in bytes; length of the target for links.
    pub size: u64,
    /// Permission bits, without the type.
    pub permissions: u16,
    /// Number of names (files) or of directories pointing here (directories).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device nodes.
    pub rdev: u64,
    /// 512-byte blocks: those allocated to the ciphertext, so that holes take none; where attributes are fixed, those
    /// that the plaintext would fill.
    pub blocks: u64,
    /// Time of last modification.
    pub mtime: SystemTime,
}

impl NodeInfo {
    /// What `stat` shows of `node` as `inode`.
    pub(super) fn new(node: &Node, inode: u64, attributes: Attributes) -> NodeInfo {
        let kind = kind(node);
        let stored = &node.attributes;
        let size = match &node.kind {
            NodeKind::File { plain_len, .. } => *plain_len,
            NodeKind::Symlink { target } => u64::try_from(target.as_bytes().len()).unwrap_or(u64::MAX),
            NodeKind::Directory { .. } => 4096,
            NodeKind::Special { .. } => 0,
        };
        let rdev = match node.kind {
            NodeKind::Special { rdev } => rdev,
            _ => 0,
        };
        let (uid, gid, permissions) = match attributes {
            Attributes::AsStored => (stored.uid, stored.gid, stored.mode & 0o7777),
            Attributes::Fixed { uid, gid, mode } => (uid, gid, fixed_mode(kind, mode)),
        };
        let (nlink, blocks) = match attributes {
            Attributes::AsStored => (stored.nlink, stored.blocks),
            Attributes::Fixed { .. } => (node.nlink, size.div_ceil(512)),
        };
        NodeInfo {
            inode,
            kind,
            size,
            permissions: u16::try_from(permissions & 0o7777).unwrap_or(0),
            nlink,
            uid,
            gid,
            rdev,
            blocks,
            mtime: stored.mtime,
        }
    }
}

fn fixed_mode(kind: Kind, mode: u32) -> u32 {
    match kind {
        Kind::Directory => mode | ((mode & 0o444) >> 2),
        Kind::Symlink => 0o777,
        _ => mode,
    }
}

fn kind(node: &Node) -> Kind {
    match node.kind {
        NodeKind::Directory { .. } => Kind::Directory,
        NodeKind::File { .. } => Kind::File,
        NodeKind::Symlink { .. } => Kind::Symlink,
        // Type bits of st_mode, inode(7).
        NodeKind::Special { .. } => match node.attributes.mode & 0o170_000 {
            0o020_000 => Kind::CharDevice,
            0o060_000 => Kind::BlockDevice,
            0o140_000 => Kind::Socket,
            _ => Kind::NamedPipe,
        },
    }
}
