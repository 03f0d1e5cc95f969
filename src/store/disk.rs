//! The cache directory: one sparse data file and one chunk map per object, one lock, one marker of a clean stop.
//!
//! Blocking; called from FUSE threads and from `spawn_blocking`. Knows nothing of fetching. File names are hashes of the
//! object's path, so no listed name ever becomes a file name. Tested here and through `tests/store_resume.rs`.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};

use super::chunkmap::ChunkMap;
use super::error::StoreError;
use super::landed::{self, Landed, Record, Records};
use super::layout::Layout;
use super::source::Object;

/// Held locked for the life of the store.
pub const LOCK: &str = "lock";
/// Exists only between a clean stop and the next start.
const CLEAN: &str = "clean";
/// Extension of data files.
const DATA: &str = "data";
/// Extension of chunk maps.
const MAP: &str = "map";
/// Extension of a chunk map that is being written.
const NEW_MAP: &str = "new";
/// Bytes of the path's SHA-256 that name its files: 2^64 objects before a collision is likely, and a collision would only
/// be a map of another object, which is discarded.
const NAME_BYTES: usize = 16;

/// The locked directory.
#[derive(Debug)]
pub struct CacheDir {
    dir: PathBuf,
    /// The directory itself, to make renames in it durable.
    handle: File,
    /// What came in since the maps were saved.
    pub landed: Landed,
    /// Locked as long as it is open.
    _lock: File,
}

/// The files of one object. At most one writer per chunk at a time; the store's flights see to that.
///
/// Only a write creates the data file or sets its length; to all others a file that is missing, deleted or of another
/// length is *lost*. When a write finds it lost it begins a new generation, in which no chunk of the old one counts.
#[derive(Debug)]
pub struct ObjectFile {
    data: PathBuf,
    map: PathBuf,
    layout: Layout,
    /// Kept open for objects of several chunks. Small ones are read once or twice and would only use up descriptors.
    open: Mutex<Option<Arc<File>>>,
    /// How often the data file was begun. Changes only while `open` and the store's state are both locked, in this order.
    generation: AtomicU64,
    /// How often a chunk was let go. Changes only while the store's state is locked.
    punched: AtomicU64,
}

/// Where a chunk can be read: good until the file is begun anew, or a chunk of it is let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the data file.
    pub generation: u64,
    punched: u64,
}

/// What became of a chunk map that was to be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// It and the data it speaks of are on the disk.
    Durable,
    /// The data is lost; the old map is still in place.
    Lost,
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> StoreError + use<'a> {
    move |source| StoreError::Io { doing, path: path.to_owned(), source }
}

/// How every file of the cache is opened: ours alone, never through a link.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits());
    options
}

impl CacheDir {
    /// Create `dir` where it is missing, lock it, and take its clean marker away: `true` says that it was there.
    ///
    /// # Errors
    /// `InUse`, `Io`.
    pub fn open(dir: &Path) -> Result<(Self, bool), StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("creating", dir))?;
        std::fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed("restricting", dir))?;
        let handle = File::open(dir).map_err(failed("opening", dir))?;
        let path = dir.join(LOCK);
        let lock = options().create(true).truncate(false).open(&path).map_err(failed("opening", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed("locking", &path)(source)),
        }
        let marker = dir.join(CLEAN);
        let clean = match std::fs::remove_file(&marker) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("removing", &marker)(error)),
        };
        let cache = CacheDir { dir: dir.to_owned(), handle, landed: Landed::new(dir), _lock: lock };
        // Durable before the first write: a crash must find the directory unclean.
        cache.sync()?;
        Ok((cache, clean))
    }

    /// What landed after the maps were last saved, if the last stop was not a clean one. It is noted no more: the next save
    /// has it.
    ///
    /// # Errors
    /// `Io`.
    pub fn landed(&self, clean: bool) -> Result<Records, StoreError> {
        if clean {
            self.landed.clear().map_err(failed("clearing notes in", &self.dir))?;
            return Ok(Records::new());
        }
        self.landed.read().map_err(failed("reading notes in", &self.dir))
    }

    /// Before chunk maps are copied and saved.
    ///
    /// # Errors
    /// `Io`.
    pub fn begin_save(&self) -> Result<(), StoreError> {
        self.landed.turn_over().map_err(failed("turning over notes in", &self.dir))
    }

    /// After all of them were saved.
    ///
    /// # Errors
    /// `Io`.
    pub fn end_save(&self) -> Result<(), StoreError> {
        self.sync()?;
        self.landed.drop_old().map_err(failed("removing notes in", &self.dir))
    }

    /// Where this is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Bytes `(total, free)` of the file system, free ones as an unprivileged user may take them.
    ///
    /// # Errors
    /// `Io`.
    pub fn space(&self) -> Result<(u64, u64), StoreError> {
        let space = statvfs(&self.dir).map_err(io::Error::from).map_err(failed("measuring", &self.dir))?;
        let bytes = |blocks: u64| blocks.saturating_mul(space.fragment_size());
        Ok((bytes(space.blocks()), bytes(space.blocks_available())))
    }

    /// The files of `object`.
    pub fn file(&self, object: &Object, layout: Layout) -> ObjectFile {
        let stem = self.dir.join(file_stem(&object.path));
        ObjectFile {
            data: stem.with_extension(DATA),
            map: stem.with_extension(MAP),
            layout,
            open: Mutex::default(),
            generation: AtomicU64::new(0),
            punched: AtomicU64::new(0),
        }
    }

    /// Delete the files of objects that are not in `objects`. Files that are not of our making stay.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove_leftovers(&self, objects: &[Object]) -> Result<(), StoreError> {
        let keep: HashSet<String> = objects.iter().map(|object| file_stem(&object.path)).collect();
        let listing = std::fs::read_dir(&self.dir).map_err(failed("listing", &self.dir))?;
        for entry in listing {
            let name = entry.map_err(failed("listing", &self.dir))?.file_name();
            let Some((stem, extension)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let ours = stem.len() == NAME_BYTES * 2 && [DATA, MAP, NEW_MAP].contains(&extension);
            if ours && (extension == NEW_MAP || !keep.contains(stem)) {
                let path = self.dir.join(&name);
                std::fs::remove_file(&path).map_err(failed("removing", &path))?;
                tracing::debug!(event = "store.leftover-removed", file = %path.display());
            }
        }
        Ok(())
    }

    /// Say that every file is complete on disk. The last act of a clean stop.
    ///
    /// # Errors
    /// `Io`.
    pub fn mark_clean(&self) -> Result<(), StoreError> {
        let path = self.dir.join(CLEAN);
        options().create(true).truncate(false).open(&path).map_err(failed("creating", &path))?;
        self.sync()
    }

    /// Make created, renamed and removed names durable.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.handle.sync_all().map_err(failed("syncing", &self.dir))
    }
}

impl ObjectFile {
    /// What the directory has of `object`, with what `landed` after its map was saved. Anything that does not fit is deleted, and
    /// the object begins empty.
    ///
    /// # Errors
    /// `Io` when that cannot be found out or the old files cannot be deleted.
    pub fn load(&self, object: &Object, landed: &[Record], clean: bool) -> Result<ChunkMap, StoreError> {
        let limit = ChunkMap::max_encoded_len(object, self.layout);
        let bytes = read_bounded(&self.map, limit).map_err(failed("reading", &self.map))?;
        let right_size = std::fs::metadata(&self.data).is_ok_and(|data| data.len() == self.layout.len);
        let map = match &bytes {
            // Killed before its first map was saved.
            None if !landed.is_empty() => Ok(ChunkMap::empty(self.layout)),
            None => {
                self.discard()?;
                return Ok(ChunkMap::empty(self.layout));
            }
            Some(bytes) => ChunkMap::decode(bytes, object, self.layout, clean),
        };
        match map {
            Ok(mut map) if right_size => {
                landed::apply(landed, &mut map);
                Ok(map)
            }
            other => {
                let reason = other
                    .err()
                    .map_or("the data file is missing or of another size".into(), |error| error.to_string());
                tracing::info!(event = "store.cache-discarded", object = %object.path.display(), reason);
                self.discard()?;
                Ok(ChunkMap::empty(self.layout))
            }
        }
    }

    /// How often the data file was begun. What was marked in one generation is not in the file of another.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Where chunks that are marked now can be read.
    pub fn place(&self) -> Place {
        Place { generation: self.generation(), punched: self.punched.load(Ordering::SeqCst) }
    }

    /// A chunk is let go: no place is good any more. The caller has the store's state locked and forgets the chunk in the
    /// same breath; [`ObjectFile::punch`] follows without the lock.
    pub fn let_go(&self) {
        self.punched.fetch_add(1, Ordering::SeqCst);
    }

    /// Give the disk back what `range` takes.
    ///
    /// # Errors
    /// What the system said; a file that is lost takes nothing.
    pub fn punch(&self, range: &Range<u64>) -> io::Result<()> {
        let file = match self.existing(&mut self.lock()) {
            Err(error) if is_lost(&error) => return Ok(()),
            file => file?,
        };
        let bytes = |at: u64| i64::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&*file, flags, bytes(range.start)?, bytes(range.end.saturating_sub(range.start))?)?;
        Ok(())
    }

    /// Begin a generation. The caller has the store's state locked and forgets all chunks in the same breath.
    pub fn begin_generation(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Fill `buf` from `offset`. `false`: some chunk was let go since `place` was good, perhaps this one, and `buf` may hold
    /// zeros.
    ///
    /// # Errors
    /// What the system said. [`is_lost`] tells a lost file, also one that was begun anew, from one that cannot be read.
    pub fn read_at(&self, place: Place, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        // Not one expression: reads must not wait for each other.
        let file = self.existing(&mut self.lock())?;
        file.read_exact_at(buf, offset)?;
        // Last, because the file may have become another one, or have got holes, during the read.
        let now = self.place();
        if now.generation == place.generation {
            Ok(now == place)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// The data file as it is now, to be read ahead.
    ///
    /// # Errors
    /// As [`ObjectFile::read_at`].
    pub fn existing_file(&self) -> io::Result<Arc<File>> {
        self.existing(&mut self.lock())
    }

    /// Write `frames` one after the other from `offset`, straight from where they were received. A lost file is begun
    /// anew, after `begin` has forgotten what was in it. Gives the generation that was written to.
    ///
    /// # Errors
    /// What the system said, `StorageFull` for instance; part of the bytes may be written then.
    pub fn write_at(&self, mut offset: u64, frames: &[Bytes], begin: impl FnOnce()) -> io::Result<u64> {
        let (file, generation) = {
            let mut open = self.lock();
            let file = match self.existing(&mut open) {
                Err(error) if is_lost(&error) => {
                    begin();
                    self.create(&mut open)
                }
                // Another revision's store reads it, and must never see what has not been checked.
                Ok(file) if file.metadata()?.nlink() > 1 => {
                    begin();
                    std::fs::remove_file(&self.data)?;
                    self.create(&mut open)
                }
                other => other,
            };
            (file?, self.generation())
        };
        for frame in frames {
            file.write_all_at(frame, offset)?;
            offset = offset.saturating_add(frame.len() as u64);
        }
        Ok(generation)
    }

    /// Make the data durable, unless the map has no chunk (`empty`), then replace the chunk map by `map`.
    ///
    /// # Errors
    /// `Io`; the old map is still in place then.
    pub fn save(&self, map: &[u8], empty: bool) -> Result<Saved, StoreError> {
        if !empty {
            let file = self.existing(&mut self.lock());
            match file.and_then(|file| file.sync_data()) {
                Err(error) if is_lost(&error) => return Ok(Saved::Lost),
                synced => synced.map_err(failed("syncing", &self.data))?,
            }
        }
        let new = self.map.with_extension(NEW_MAP);
        let write = || {
            let mut file = options().create(true).truncate(true).open(&new)?;
            file.write_all(map)?;
            file.sync_data()?;
            std::fs::rename(&new, &self.map)
        };
        write().map_err(failed("writing", &new))?;
        Ok(Saved::Durable)
    }

    /// Let `other`, the same object's file in another directory, have this data, under its own name, with `map`, which speaks of
    /// all of it. Nothing changes where it has a map already.
    ///
    /// # Errors
    /// `Io`.
    pub fn lend(&self, other: &ObjectFile, map: &[u8]) -> Result<(), StoreError> {
        if other.map.exists() {
            return Ok(());
        }
        // Begun without a map: nothing in it counts.
        other.discard()?;
        std::fs::hard_link(&self.data, &other.data).map_err(failed("linking", &self.data))?;
        other.save(map, false).map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The data file, if it is what it should be. A descriptor that is kept stays when it is not: what has its name now
    /// is another file, whatever its length.
    fn existing(&self, open: &mut Option<Arc<File>>) -> io::Result<Arc<File>> {
        let file = match open {
            Some(file) => file.clone(),
            None => Arc::new(options().open(&self.data)?),
        };
        let found = file.metadata()?;
        if found.nlink() == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        if found.len() != self.layout.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.keep_open(open, &file);
        Ok(file)
    }

    /// The data file in full length, sparse where it was not.
    fn create(&self, open: &mut Option<Arc<File>>) -> io::Result<Arc<File>> {
        *open = None;
        let file = Arc::new(options().create(true).truncate(false).open(&self.data)?);
        file.set_len(self.layout.len)?;
        self.keep_open(open, &file);
        Ok(file)
    }

    fn keep_open(&self, open: &mut Option<Arc<File>>, file: &Arc<File>) {
        if self.layout.chunks() > 1 {
            open.get_or_insert_with(|| file.clone());
        }
    }

    /// Delete both files.
    ///
    /// # Errors
    /// `Io`.
    pub fn discard(&self) -> Result<(), StoreError> {
        // What is open may have another name, which keeps it alive.
        *self.lock() = None;
        for path in [&self.map, &self.data] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("removing", path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether `error` says that a data file is not there, or not all of it: then no chunk of it can be trusted.
pub fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}

/// Name of an object's files, without extension.
fn file_stem(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    hex::encode(digest.iter().take(NAME_BYTES).copied().collect::<Vec<u8>>())
}

/// A file's content, or `None` when it does not exist. One byte over `limit` is read at most: enough for the decoder to
/// see that something is wrong.
fn read_bounded(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match options().write(false).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take((limit as u64).saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn lost_file_is_never_made_by_a_read_and_begins_a_generation_at_the_next_write() {
        let dir = tempfile::TempDir::new().unwrap();
        let (cache, _) = CacheDir::open(dir.path()).unwrap();
        let object = Object { path: "a".into(), len: 20, etag: "e".into(), modified: SystemTime::UNIX_EPOCH };
        for chunk_len in [8, 20] {
            let file = cache.file(&object, Layout::new(20, chunk_len));
            let mut buf = [9; 4];
            let lost = |read: io::Result<bool>| read.is_err_and(|error| is_lost(&error));
            let at = |generation| Place { generation, punched: 0 };
            assert!(lost(file.read_at(at(0), 16, &mut buf)));
            assert!(!file.data.exists());
            let frames = [Bytes::from_static(b"ab"), Bytes::from_static(b"cd")];
            let first = file.write_at(16, &frames, || file.begin_generation()).unwrap();
            assert!(file.read_at(at(first), 16, &mut buf).unwrap());
            assert_eq!(&buf, b"abcd");
            let same = file.write_at(0, &frames, || panic!("nothing was lost")).unwrap();
            assert_eq!(same, first);
            std::fs::remove_file(&file.data).unwrap();
            assert!(lost(file.read_at(at(first), 16, &mut buf)));
            assert_eq!(file.save(b"map", false).unwrap(), Saved::Lost);
            assert!(!file.data.exists() && !file.map.exists());
            let second = file.write_at(0, &frames, || file.begin_generation()).unwrap();
            assert_ne!(second, first);
            // There is a hole now where this reader was told to find its bytes.
            assert!(lost(file.read_at(at(first), 16, &mut buf)));
            assert!(file.read_at(at(second), 0, &mut buf).unwrap());
            assert_eq!(&buf, b"abcd");
            // A chunk is let go: what is read through an older place may be zeros, and is said to be.
            file.let_go();
            file.punch(&(0..4)).unwrap();
            assert!(!file.read_at(at(second), 0, &mut buf).unwrap());
            assert!(file.read_at(file.place(), 0, &mut buf).unwrap());
            assert_eq!(buf, [0; 4]);
            assert_eq!(file.data.metadata().unwrap().len(), 20);
            std::fs::remove_file(&file.data).unwrap();
        }
    }
}
