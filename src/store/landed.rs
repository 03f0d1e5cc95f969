//! Chunks that landed since the chunk maps were last saved: one small record each, so that a process that is killed loses no
//! more than what was on its way.
//!
//! The records make no claim that survives a power loss, and none that is believed: a chunk from here is checked against its
//! CRC-64 before its first use, as every chunk is after an unclean stop. Two files: while maps are saved, new records go to a
//! new one, and the old one goes once the maps are durable. Lock: one mutex around the open file. Tested here and in
//! `tests/store_resume.rs`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::chunkmap::{Chunk, ChunkMap};
use super::crc64::{self, Crc64};
use super::layout::{ChunkIndex, Layout};
use super::source::Object;

/// Where records are added.
const FILE: &str = "landed";
/// Records of chunks that the maps being saved have.
const OLD: &str = "landed.old";
/// Bytes of a record: object, chunk, CRC-64 of the chunk, that of the object where the origin told it (else 0), CRC-64 of the four.
const RECORD: usize = 40;
/// Bytes that are read at most. Maps are saved every few seconds: a file has some thousand records.
const MOST_READ: u64 = 4 << 20;

/// The records of one cache directory.
#[derive(Debug)]
pub struct Landed {
    dir: PathBuf,
    /// Opened by the first record.
    file: Mutex<Option<File>>,
}

/// Records by object, in the order they were written.
pub type Records = HashMap<u64, Vec<Record>>;

/// A chunk that landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    chunk: ChunkIndex,
    crc: u64,
    /// CRC-64 of the whole object; 0 where the origin told none.
    object_crc64: u64,
}

/// What stands for this version of `object` in this layout.
pub fn identity(object: &Object, layout: Layout) -> u64 {
    let mut crc = Crc64::default();
    let path = object.path.as_os_str().as_encoded_bytes();
    for field in [path, object.etag.as_bytes(), &object.len.to_le_bytes(), &layout.chunk_len().to_le_bytes()]
    {
        crc.update(&field.len().to_le_bytes());
        crc.update(field);
    }
    crc.finish()
}

impl Landed {
    /// In `dir`.
    pub fn new(dir: &Path) -> Self {
        Landed { dir: dir.to_owned(), file: Mutex::default() }
    }

    /// Note a chunk, after it was marked. Without the note it is only fetched again after a kill.
    pub fn note(&self, object: u64, chunk: ChunkIndex, crc: u64, object_crc64: Option<u64>) {
        let fields = [object, chunk.0, crc, object_crc64.unwrap_or(0)];
        let mut record = fields.map(u64::to_le_bytes).concat();
        record.extend(crc64::of(&record).to_le_bytes());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = match &mut *file {
            Some(file) => file.write_all(&record),
            none => self.open().and_then(|opened| none.insert(opened).write_all(&record)),
        };
        if let Err(error) = noted {
            tracing::debug!(event = "store.landed", ?error, "noting a chunk that landed");
        }
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.dir.join(FILE))
    }

    /// Chunk maps are about to be copied and saved: what is noted from now on is not in them.
    ///
    /// # Errors
    /// What the system said.
    pub fn turn_over(&self) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.dir.join(OLD);
        // One that is left from a save that failed has records that no map has; these here wait for the next turn.
        if old.exists() {
            return Ok(());
        }
        *file = None;
        match std::fs::rename(self.dir.join(FILE), old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The maps are saved: the old records are in them.
    ///
    /// # Errors
    /// What the system said.
    pub fn drop_old(&self) -> io::Result<()> {
        remove(&self.dir.join(OLD))
    }

    /// What was noted before an unclean stop. Anything that is no record is passed over.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(&self) -> io::Result<Records> {
        let mut records = Records::new();
        for name in [OLD, FILE] {
            let file = match File::open(self.dir.join(name)) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let mut bytes = Vec::new();
            file.take(MOST_READ).read_to_end(&mut bytes)?;
            for record in bytes.as_chunks::<RECORD>().0 {
                let [object, chunk, crc, object_crc64, check] = words(record);
                let (body, _) = record.split_at(RECORD - 8);
                if crc64::of(body) == check {
                    let record = Record { chunk: ChunkIndex(chunk), crc, object_crc64 };
                    records.entry(object).or_default().push(record);
                }
            }
        }
        Ok(records)
    }

    /// Forget everything, after a clean stop.
    ///
    /// # Errors
    /// What the system said.
    pub fn clear(&self) -> io::Result<()> {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
        remove(&self.dir.join(FILE))?;
        self.drop_old()
    }
}

fn words(record: &[u8; RECORD]) -> [u64; RECORD / 8] {
    let mut words = [0; RECORD / 8];
    for (word, bytes) in words.iter_mut().zip(record.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Put `records` of its object into `map`: to be checked before they are used.
pub fn apply(records: &[Record], map: &mut ChunkMap) {
    for record in records {
        let chunk = usize::try_from(record.chunk.0).ok().and_then(|index| map.chunks.get_mut(index));
        if let Some(chunk) = chunk {
            *chunk = Chunk::Unverified(record.crc);
            map.object_crc64 = map.object_crc64.or(Some(record.object_crc64).filter(|crc| *crc != 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(chunk: u64, crc: u64, object_crc64: u64) -> Record {
        Record { chunk: ChunkIndex(chunk), crc, object_crc64 }
    }

    #[test]
    fn records_survive_any_moment_of_a_save_and_damage_costs_only_what_it_hit() {
        let dir = tempfile::TempDir::new().unwrap();
        let landed = Landed::new(dir.path());
        let chunks = |records: &Records| -> Vec<u64> {
            records.get(&7).map(|of| of.iter().map(|record| record.chunk.0).collect()).unwrap_or_default()
        };
        assert!(landed.read().unwrap().is_empty());
        landed.note(7, ChunkIndex(1), 11, Some(5));
        landed.note(8, ChunkIndex(2), 22, None);
        assert_eq!(landed.read().unwrap()[&8], [record(2, 22, 0)]);
        assert_eq!(landed.read().unwrap()[&7], [record(1, 11, 5)]);
        landed.turn_over().unwrap();
        landed.note(7, ChunkIndex(3), 33, None);
        assert_eq!(chunks(&landed.read().unwrap()), [1, 3], "in the middle of a save");
        // The save failed: the next one must not throw away what no map has.
        landed.turn_over().unwrap();
        landed.note(7, ChunkIndex(4), 44, None);
        assert_eq!(chunks(&landed.read().unwrap()), [1, 3, 4]);
        landed.drop_old().unwrap();
        assert_eq!(chunks(&landed.read().unwrap()), [3, 4]);
        // A torn record, as a power loss may leave it, and a flipped one.
        let path = dir.path().join(FILE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        bytes.extend([1, 2, 3]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(chunks(&landed.read().unwrap()), [4]);
        landed.clear().unwrap();
        assert!(landed.read().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_version_of_an_object_is_another_object() {
        let object = |path: &str, len, etag: &str| Object {
            path: path.into(),
            len,
            etag: etag.into(),
            modified: std::time::SystemTime::UNIX_EPOCH,
        };
        let layout = Layout::new(20, 8);
        let all = [
            identity(&object("a", 20, "1"), layout),
            identity(&object("b", 20, "1"), layout),
            identity(&object("a1", 20, ""), layout),
            identity(&object("a", 21, "1"), layout),
            identity(&object("a", 20, "2"), layout),
            identity(&object("a", 20, "1"), Layout::new(20, 4)),
        ];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
    }

    #[test]
    fn record_of_a_chunk_that_the_object_has_not_is_passed_over() {
        let mut map = ChunkMap::empty(Layout::new(20, 8));
        apply(&[record(2, 5, 0), record(3, 6, 9), record(u64::MAX, 7, 9)], &mut map);
        assert_eq!(map.object_crc64, None);
        apply(&[record(2, 5, 9), record(2, 5, 8)], &mut map);
        assert_eq!(map.object_crc64, Some(9));
        assert_eq!(map.chunks, [Chunk::Missing, Chunk::Missing, Chunk::Unverified(5)]);
    }
}
