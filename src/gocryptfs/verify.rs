//! Looking at all of an encrypted directory: every name, every directory IV, every block.
//!
//! What the format cannot show stays unseen without a manifest: a file cut at a block border, swapped, missing or rolled
//! back. Threads, one per core, take pieces of files from a common counter; they live only inside [`verify`].

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, available_parallelism, scope};

use super::content::{ContentError, Damage, FileReader};
use super::features::Features;
use super::keys::Keys;
use super::layout::{BLOCK, HEADER};
use super::names::{LONG_SUFFIX, Stored};
use super::tree::{Kind, NodeId, SkipReason, Tree};
use crate::ciphertext::{Ciphertext, EntryId, EntryKind};
use crate::error::{ErrorClass, Fault};

/// Bytes opened between two looks at the counter.
const PIECE: usize = 128 * BLOCK;

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// It is no part of the plaintext tree.
    Entry(SkipReason),
    /// A `.name` file without the object whose name it holds.
    NoObject,
    /// 1 to 18 bytes: a header, or less, and no block. It would read as empty.
    CutHeader {
        /// Length in bytes.
        len: u64,
    },
    /// These blocks do not open.
    Blocks {
        /// First and last block, from 0.
        blocks: RangeInclusive<u64>,
        /// What is wrong with them.
        what: Damage,
    },
    /// It cannot be read.
    Unreadable {
        /// Why, in words.
        why: String,
    },
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Entry(reason) => write!(f, "{reason}"),
            Flaw::NoObject => f.write_str(".name file without its object"),
            Flaw::CutHeader { len } => {
                write!(f, "cut to {len} bytes, which is no whole block: it would read as empty")
            }
            Flaw::Blocks { blocks, what } if blocks.start() == blocks.end() => {
                write!(f, "block {}: {what}", blocks.start())
            }
            Flaw::Blocks { blocks, what } => {
                write!(f, "blocks {} to {}: {what}", blocks.start(), blocks.end())
            }
            Flaw::Unreadable { why } => write!(f, "cannot be read: {why}"),
        }
    }
}

/// A damaged entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Ciphertext path.
    pub stored: PathBuf,
    /// Plaintext path, where its name can be told.
    pub plain: Option<PathBuf>,
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Regular files looked at.
    pub files: u64,
    /// Plaintext bytes of the blocks that opened.
    pub bytes: u64,
    /// Files with holes, by plaintext path, and how many blocks: they read as zeros, and nothing authenticates them. A sparse
    /// file has them, and so has one that somebody overwrote with zeros. `cai encrypt` writes none.
    pub holes: Vec<(PathBuf, u64)>,
    /// Everything that is wrong, sorted by ciphertext path.
    pub damaged: Vec<Damaged>,
}

/// No thread could be started.
#[derive(Debug, thiserror::Error)]
#[error("starting a thread")]
pub struct VerifyError(#[source] std::io::Error);

impl Fault for VerifyError {
    fn class(&self) -> ErrorClass {
        ErrorClass::Internal
    }

    fn code(&self) -> &'static str {
        "verify.thread"
    }

    fn hint(&self) -> String {
        "raise the limit of processes and threads".into()
    }
}

/// Look at everything of `tree`, calling `advanced` with the plaintext bytes of each piece done.
///
/// # Errors
/// [`VerifyError`]. Damage is what is returned, not an error.
pub fn verify(
    source: &dyn Ciphertext,
    keys: &Keys,
    tree: &Tree,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Verified, VerifyError> {
    let mut verified = Verified::default();
    let skipped = tree.skipped().iter();
    verified.damaged.extend(skipped.map(|skipped| Damaged {
        stored: skipped.path.clone(),
        plain: None,
        flaw: Flaw::Entry(skipped.reason),
    }));
    verified.damaged.extend(orphans(source, keys.features()));

    let mut files = Vec::new();
    for node in tree.nodes() {
        let (Kind::File { plain_len, cipher_len }, Some(entry)) = (&node.kind, node.entry) else { continue };
        verified.files += 1;
        if let Some(reader) = FileReader::new(tree, node.id) {
            files.push(File { node: node.id, entry, len: *plain_len, reader });
        }
        if (1..=HEADER as u64).contains(cipher_len) {
            let flaw = Flaw::CutHeader { len: *cipher_len };
            verified.damaged.push(Damaged {
                stored: stored(source, entry),
                plain: Some(tree.path(node.id)),
                flaw,
            });
        }
    }
    let mut found = look(source, keys, &files, advanced)?;
    found.sort_by_key(|found| (found.file, found.first));
    let mut found = found.into_iter().peekable();
    for (index, file) in files.iter().enumerate() {
        let mut pieces = Vec::new();
        while let Some(piece) = found.next_if(|piece| piece.file == index) {
            pieces.push(piece);
        }
        verified.bytes += pieces.iter().map(|piece| piece.opened).sum::<u64>();
        let holes = pieces.iter().map(|piece| piece.holes).sum();
        if holes > 0 {
            verified.holes.push((tree.path(file.node), holes));
        }
        let flaws = merge(pieces.into_iter().flat_map(|piece| piece.flaws));
        verified.damaged.extend(flaws.into_iter().map(|flaw| Damaged {
            stored: stored(source, file.entry),
            plain: Some(tree.path(file.node)),
            flaw,
        }));
    }
    verified.damaged.sort_by(|a, b| a.stored.cmp(&b.stored));
    Ok(verified)
}

struct File {
    node: NodeId,
    entry: EntryId,
    len: u64,
    reader: FileReader,
}

/// What one piece of one file is like.
struct Found {
    file: usize,
    first: u64,
    opened: u64,
    holes: u64,
    flaws: Vec<Flaw>,
}

fn look(
    source: &dyn Ciphertext,
    keys: &Keys,
    files: &[File],
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Found>, VerifyError> {
    let pieces: Vec<(usize, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(index, file)| (0..file.len.div_ceil(PIECE as u64)).map(move |piece| (index, piece)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut found, mut plain, mut scratch) = (Vec::new(), vec![0; PIECE], Vec::new());
        while let Some(&(index, piece)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(file) = files.get(index) {
                let look = Look { source, keys, file };
                let offset = piece.saturating_mul(PIECE as u64);
                let piece = look.piece(index, offset, &mut plain, &mut scratch);
                advanced(file.len.saturating_sub(offset).min(PIECE as u64));
                found.push(piece);
            }
        }
        found
    };
    scope(|scope| {
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        let start = |number| Builder::new().name(format!("cai-verify-{number}")).spawn_scoped(scope, work);
        let threads: Vec<_> =
            (0..cores.min(pieces.len()).max(1)).map(start).collect::<Result<_, _>>().map_err(VerifyError)?;
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<Found>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        Ok(threads.into_iter().flat_map(join).collect())
    })
}

struct Look<'a> {
    source: &'a dyn Ciphertext,
    keys: &'a Keys,
    file: &'a File,
}

impl Look<'_> {
    /// One read where all is well; block by block where it is not.
    fn piece(&self, file: usize, offset: u64, plain: &mut [u8], scratch: &mut Vec<u8>) -> Found {
        let first = offset / BLOCK as u64;
        let mut found = Found { file, first, opened: 0, holes: 0, flaws: Vec::new() };
        match self.file.reader.read(self.source, self.keys, offset, plain, scratch) {
            Ok(count) => self.opened(&mut found, first, plain.split_at(count.min(plain.len())).0),
            Err(_) => {
                let mut at = offset;
                for block in first..first.saturating_add((PIECE / BLOCK) as u64) {
                    if at >= self.file.len {
                        break;
                    }
                    let (one, _) = plain.split_at_mut(BLOCK);
                    match self.file.reader.read(self.source, self.keys, at, one, scratch) {
                        Ok(count) => self.opened(&mut found, block, one.split_at(count.min(BLOCK)).0),
                        Err(error) => found.flaws.push(flaw(block, &error)),
                    }
                    at = at.saturating_add(BLOCK as u64);
                }
                found.flaws = merge(std::mem::take(&mut found.flaws).into_iter());
            }
        }
        found
    }

    /// Count what opened, and what opened without being authenticated.
    fn opened(&self, found: &mut Found, first: u64, plain: &[u8]) {
        found.opened += plain.len() as u64;
        for (block, bytes) in (first..).zip(plain.chunks(BLOCK)) {
            if bytes.len() == BLOCK && bytes.iter().all(|&byte| byte == 0) && self.is_hole(block) {
                found.holes += 1;
            }
        }
    }

    fn is_hole(&self, block: u64) -> bool {
        let layout = self.keys.layout();
        let mut nonce = vec![1; layout.nonce()];
        let read = self.source.read_at(self.file.entry, layout.cipher_offset(block), &mut nonce);
        read.is_ok() && nonce.iter().all(|&byte| byte == 0)
    }
}

fn flaw(block: u64, error: &ContentError) -> Flaw {
    match error {
        ContentError::Corrupt { what, .. } => Flaw::Blocks { blocks: block..=block, what: *what },
        ContentError::Read(_) => Flaw::Unreadable { why: crate::error::chain(error) },
    }
}

/// Neighbouring blocks with the same damage as one flaw; the same reason once.
fn merge(flaws: impl Iterator<Item = Flaw>) -> Vec<Flaw> {
    let mut merged: Vec<Flaw> = Vec::new();
    for flaw in flaws {
        match (merged.last_mut(), flaw) {
            (Some(Flaw::Blocks { blocks, what }), Flaw::Blocks { blocks: more, what: same })
                if *what == same && blocks.end().checked_add(1) == Some(*more.start()) =>
            {
                *blocks = *blocks.start()..=*more.end();
            }
            (Some(last), flaw) if *last == flaw => {}
            (_, flaw) => merged.push(flaw),
        }
    }
    merged
}

/// `.name` files whose object is not there. Names that no hash gives belong to somebody else, such as the manifest.
fn orphans(source: &dyn Ciphertext, features: Features) -> Vec<Damaged> {
    // A SHA-256 in base64url, with padding in old directories.
    let hash = if features.raw64 { 43 } else { 44 };
    let paths: HashSet<&[u8]> =
        source.entries().iter().map(|entry| entry.path.as_os_str().as_bytes()).collect();
    let orphan = |path: &&PathBuf| {
        let name = path.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        let hashed = name.len() == super::names::LONG_PREFIX.len() + hash + LONG_SUFFIX.len();
        let object = path.as_os_str().as_bytes().strip_suffix(LONG_SUFFIX.as_bytes()).unwrap_or_default();
        Stored::classify(features.naming, name) == Stored::LongText && hashed && !paths.contains(object)
    };
    let files = source.entries().iter().filter(|entry| matches!(entry.kind, EntryKind::File { .. }));
    files
        .map(|entry| &entry.path)
        .filter(orphan)
        .map(|path| Damaged { stored: path.clone(), plain: None, flaw: Flaw::NoObject })
        .collect()
}

fn stored(source: &dyn Ciphertext, entry: EntryId) -> PathBuf {
    let at = usize::try_from(entry.0).ok().and_then(|index| source.entries().get(index));
    at.map(|entry| entry.path.clone()).unwrap_or_default()
}
