//! A local ciphertext directory: what its manifest has to say, and whether it is what a manifest says.
//!
//! Hashing runs on all cores, a chunk at a time, so that one large file keeps all of them busy.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, available_parallelism, scope};

use super::code::{Manifest, NAME, Object};
use super::error::ManifestError;
use super::hash::{CHUNK_LEN, ChunkHasher, Hash, count};

/// Name of a manifest that is being written; of the same form, so that nobody minds it.
const DRAFT: &str = "gocryptfs.longname.cai-manifest-draft.name";
/// Bytes hashed between two reads: enough for BLAKE3 to use its widest instructions, and within a core's cache.
const PIECE: usize = 1 << 20;

/// What is in a directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// Regular files with their lengths, sorted by path. The manifest is not among them.
    pub files: BTreeMap<PathBuf, u64>,
    /// Symlinks and special files, which an object store cannot hold and no manifest lists.
    pub others: Vec<PathBuf>,
}

/// List everything below `dir`. Nothing is followed.
///
/// # Errors
/// [`ManifestError::Read`].
pub fn list(dir: &Path) -> Result<Listing, ManifestError> {
    let mut listing = Listing::default();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let failed = |source| ManifestError::Read { path: dir.join(&below), source };
        for entry in fs::read_dir(dir.join(&below)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = below.join(entry.file_name());
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                pending.push(path);
            } else if !kind.is_file() {
                listing.others.push(path);
            } else if path != Path::new(NAME) && path != Path::new(DRAFT) {
                listing.files.insert(path, entry.metadata().map_err(failed)?.len());
            }
        }
    }
    listing.others.sort();
    Ok(listing)
}

impl Listing {
    /// Hash every file below `dir`, calling `advanced` with the bytes of each piece done.
    ///
    /// # Errors
    /// [`ManifestError::Read`], [`ManifestError::Changed`], [`ManifestError::Thread`].
    pub fn objects(&self, dir: &Path, advanced: &(dyn Fn(u64) + Sync)) -> Result<Vec<Object>, ManifestError> {
        let files: Vec<_> = self.files.iter().map(|(path, len)| (path.clone(), *len)).collect();
        let hashed = hash_files(dir, &files, advanced)?;
        let mut objects: Vec<Object> = files
            .into_iter()
            .zip(hashed)
            .map(|((path, len), hashes)| Ok(Object { path, len, hashes: hashes? }))
            .collect::<Result<_, ManifestError>>()?;
        // Paths compare by component, the manifest by bytes.
        objects.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
        Ok(objects)
    }
}

/// How a directory differs from its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A file the manifest names is not there.
    Missing {
        /// Path below the directory.
        path: PathBuf,
    },
    /// A file has another length: it was cut, appended to, or is another one.
    Length {
        /// Path below the directory.
        path: PathBuf,
        /// Bytes it should have.
        wanted: u64,
        /// Bytes it has.
        found: u64,
    },
    /// A file has other bytes: it was changed, swapped, or is another version.
    Content {
        /// Path below the directory.
        path: PathBuf,
        /// The first chunk (of 8 MiB, from 0) that differs.
        chunk: u64,
        /// How many differ.
        chunks: usize,
    },
    /// A file the manifest does not name.
    Extra {
        /// Path below the directory.
        path: PathBuf,
    },
    /// A file cannot be read.
    Unreadable {
        /// Path below the directory.
        path: PathBuf,
        /// Why, in words.
        why: String,
    },
}

impl Difference {
    /// The file it is about.
    pub fn path(&self) -> &Path {
        match self {
            Difference::Missing { path }
            | Difference::Length { path, .. }
            | Difference::Content { path, .. }
            | Difference::Extra { path }
            | Difference::Unreadable { path, .. } => path,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Missing { .. } => f.write_str("is in the manifest and not there"),
            Difference::Length { wanted, found, .. } => {
                write!(f, "has {found} bytes, the manifest says {wanted}")
            }
            Difference::Content { chunk, chunks, .. } => write!(
                f,
                "is not the file of the manifest: {chunks} chunks of 8 MiB differ, the first is chunk {chunk}"
            ),
            Difference::Extra { .. } => f.write_str("is there and not in the manifest"),
            Difference::Unreadable { why, .. } => write!(f, "cannot be read: {why}"),
        }
    }
}

/// Compare the directory `dir` with `manifest`, every byte; differences in the order of the paths.
///
/// # Errors
/// [`ManifestError::Read`] when it cannot be listed, [`ManifestError::Thread`].
pub fn compare(
    dir: &Path,
    manifest: &Manifest,
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Difference>, ManifestError> {
    let listing = list(dir)?;
    let (mut differences, mut same) = (Vec::new(), Vec::new());
    for object in &manifest.contents().objects {
        let path = object.path.clone();
        match listing.files.get(&path) {
            None => differences.push(Difference::Missing { path }),
            Some(&found) if found != object.len => {
                differences.push(Difference::Length { path, wanted: object.len, found });
            }
            Some(_) => same.push((path, object.len)),
        }
    }
    let extra = listing.files.into_keys().filter(|path| manifest.object(path).is_none());
    differences.extend(extra.map(|path| Difference::Extra { path }));
    let hashed = hash_files(dir, &same, advanced)?;
    for ((path, _), hashes) in same.into_iter().zip(hashed) {
        match (hashes, manifest.object(&path)) {
            (Ok(hashes), Some(object)) => {
                let unequal: Vec<u64> = (0..)
                    .zip(hashes.iter().zip(&object.hashes))
                    .filter(|(_, (found, wanted))| found != wanted)
                    .map(|(chunk, _)| chunk)
                    .collect();
                if let Some(&chunk) = unequal.first() {
                    differences.push(Difference::Content { path, chunk, chunks: unequal.len() });
                }
            }
            (Err(error), _) => {
                differences.push(Difference::Unreadable { path, why: crate::error::chain(&error) });
            }
            (Ok(_), None) => {}
        }
    }
    differences.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(differences)
}

/// The manifest in the root of `dir`, verified; `None` where there is none.
///
/// # Errors
/// [`ManifestError::Read`], or whatever is wrong with it.
pub fn read(dir: &Path) -> Result<Option<Manifest>, ManifestError> {
    let path = dir.join(NAME);
    let mut bytes = Vec::new();
    let limit = Manifest::largest().saturating_add(1);
    match File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
        Ok(_) => Manifest::parse(&bytes).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ManifestError::Read { path, source }),
    }
}

/// Put a manifest into the root of `dir`, whole or not at all.
///
/// # Errors
/// [`ManifestError::Write`].
pub fn write(dir: &Path, file: &[u8]) -> Result<(), ManifestError> {
    let (path, draft) = (dir.join(NAME), dir.join(DRAFT));
    let put = || {
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new = File::options().write(true).create_new(true).mode(0o444).open(&draft)?;
        new.write_all(file)?;
        new.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(dir)?.sync_all()
    };
    put().map_err(|source| ManifestError::Write { path: path.clone(), source })
}

/// The chunk hashes of each of `files`, or why it has none.
fn hash_files(
    dir: &Path,
    files: &[(PathBuf, u64)],
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Result<Vec<Hash>, ManifestError>>, ManifestError> {
    let chunks: Vec<(usize, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(file, (_, len))| (0..count(*len)).map(move |chunk| (file, chunk)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut hashed, mut buffer) = (Vec::new(), vec![0; PIECE]);
        while let Some(&(file, chunk)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some((path, len)) = files.get(file) {
                hashed.push((file, chunk, hash_chunk(&dir.join(path), *len, chunk, &mut buffer, advanced)));
            }
        }
        hashed
    };
    let hashed = scope(|scope| {
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        let threads = (0..cores.min(chunks.len()).max(1))
            .map(|number| Builder::new().name(format!("cai-hash-{number}")).spawn_scoped(scope, work));
        let threads: Vec<_> =
            threads.collect::<Result<_, _>>().map_err(|source| ManifestError::Thread { source })?;
        let mut hashed = Vec::new();
        for thread in threads {
            hashed.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        hashed.sort_unstable_by_key(|(file, chunk, _)| (*file, *chunk));
        Ok(hashed)
    })?;
    let mut results: Vec<Result<Vec<Hash>, ManifestError>> = files.iter().map(|_| Ok(Vec::new())).collect();
    for (file, _, hash) in hashed {
        if let Some(result) = results.get_mut(file) {
            match (&mut *result, hash) {
                (Ok(hashes), Ok(hash)) => hashes.push(hash),
                (Ok(_), Err(error)) => *result = Err(error),
                (Err(_), _) => {}
            }
        }
    }
    Ok(results)
}

fn hash_chunk(
    path: &Path,
    len: u64,
    chunk: u64,
    buffer: &mut [u8],
    advanced: &(dyn Fn(u64) + Sync),
) -> Result<Hash, ManifestError> {
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::UnexpectedEof => ManifestError::Changed { path: path.to_owned() },
        _ => ManifestError::Read { path: path.to_owned(), source },
    };
    // A file that is a link or a pipe by now is not the one that was listed, and must not hang us.
    let flags = (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed)?;
    let identity = |meta: fs::Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
    let before = identity(file.metadata().map_err(failed)?);
    let mut hasher = ChunkHasher::new(len, chunk);
    let mut offset = chunk.saturating_mul(CHUNK_LEN);
    let end = len.min(offset.saturating_add(CHUNK_LEN));
    while offset < end {
        let count = usize::try_from(end - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
        let (piece, _) = buffer.split_at_mut(count);
        file.read_exact_at(piece, offset).map_err(failed)?;
        hasher.update(piece);
        offset += count as u64;
        advanced(count as u64);
    }
    let after = identity(file.metadata().map_err(failed)?);
    if before != after || after.0 != len {
        return Err(ManifestError::Changed { path: path.to_owned() });
    }
    Ok(hasher.finish())
}
