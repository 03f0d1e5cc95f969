//! A model in memory as a chunk source, and a decorator that makes it misbehave on cue.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use cai::ciphertext::{Ciphertext, EntryId, ReadError};
use cai::store::{
    CacheMode, ChunkSource, FetchFuture, Fetched, Object, Retry, SourceError, Store, StoreError,
    StoreOptions, Urgency,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// Chunk length of all tests, in bytes.
pub const CHUNK: u64 = 1024;
/// Nothing in these tests takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The content of `path`: different at every chunk and in every file.
pub fn content(path: &str, len: u64) -> Vec<u8> {
    let seed = path.bytes().fold(7u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    (0..len).map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) as u8).collect()
}

pub fn object(path: &str, len: u64) -> Object {
    Object { path: path.into(), len, etag: format!("\"{path}-1\""), modified: SystemTime::UNIX_EPOCH }
}

/// Objects in memory, delivered in small frames, with the right checksum.
pub struct Memory(HashMap<PathBuf, Vec<u8>>);

impl Memory {
    pub fn new(objects: &[Object]) -> Self {
        let content = |object: &Object| content(object.path.to_str().unwrap(), object.len);
        Memory(objects.iter().map(|object| (object.path.clone(), content(object))).collect())
    }
}

impl ChunkSource for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn fetch<'a>(&'a self, object: &'a Object, range: Range<u64>, _: &'a Urgency) -> FetchFuture<'a> {
        Box::pin(async move {
            let whole = &self.0[&object.path];
            let bytes = &whole[range.start as usize..range.end as usize];
            let frames = bytes.chunks(300).map(|frame| Ok(Bytes::copy_from_slice(frame)));
            let object_crc64 = Some(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, whole));
            Ok(Fetched { frames: stream::iter(frames).boxed(), object_crc64 })
        })
    }
}

/// What a fetch does instead of, or before, delivering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    Unavailable,
    Changed,
    Gone,
    Denied,
    /// The last byte is missing.
    Short,
    /// The connection breaks after the first frame.
    Cut,
    /// One byte too many.
    Long,
    /// The right length, one wrong byte.
    WrongByte,
    /// The promised checksum of the whole object is wrong.
    WrongCrc,
    /// Nothing at all is promised about the whole object.
    NoCrc,
    /// Wait for [`Faulty::release`], then deliver.
    Hold,
}

type Cue = dyn Fn(&str, u64, usize) -> Fault + Send + Sync;

/// Decorates a source with faults, and keeps a log of what was asked for.
pub struct Faulty<S> {
    inner: S,
    cue: Box<Cue>,
    log: Mutex<Vec<(String, u64)>>,
    logged: Condvar,
    gate: Semaphore,
}

impl<S: ChunkSource> Faulty<S> {
    /// `cue` says what happens to the `n`th fetch (from 0) of a chunk of a path.
    pub fn new(inner: S, cue: impl Fn(&str, u64, usize) -> Fault + Send + Sync + 'static) -> Arc<Self> {
        let (log, logged) = (Mutex::default(), Condvar::new());
        Arc::new(Faulty { inner, cue: Box::new(cue), log, logged, gate: Semaphore::new(0) })
    }

    /// `(path, chunk)` of every fetch so far, in order.
    pub fn fetched(&self) -> Vec<(String, u64)> {
        self.log.lock().unwrap().clone()
    }

    /// The same, sorted, for tests with several workers.
    pub fn fetched_sorted(&self) -> Vec<(String, u64)> {
        let mut fetched = self.fetched();
        fetched.sort();
        fetched
    }

    /// Wait until `count` fetches have begun.
    pub fn wait_for(&self, count: usize) {
        let log = self.log.lock().unwrap();
        let (log, timeout) = self.logged.wait_timeout_while(log, PATIENCE, |log| log.len() < count).unwrap();
        assert!(!timeout.timed_out(), "only {log:?}");
    }

    /// Let `count` held fetches go on.
    pub fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }
}

impl<S: ChunkSource> ChunkSource for Faulty<S> {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn fetch<'a>(&'a self, object: &'a Object, range: Range<u64>, urgency: &'a Urgency) -> FetchFuture<'a> {
        Box::pin(async move {
            let path = object.path.to_str().unwrap().to_owned();
            let chunk = range.start / CHUNK;
            let nth = {
                let mut log = self.log.lock().unwrap();
                let nth = log.iter().filter(|entry| **entry == (path.clone(), chunk)).count();
                log.push((path.clone(), chunk));
                self.logged.notify_all();
                nth
            };
            let fault = (self.cue)(&path, chunk, nth);
            match fault {
                Fault::Unavailable => {
                    return Err(SourceError::Unavailable {
                        path,
                        detail: "on cue".into(),
                        retry_after: None,
                    });
                }
                Fault::Changed => return Err(SourceError::Changed { path }),
                Fault::Gone => return Err(SourceError::Gone { path }),
                Fault::Denied => return Err(SourceError::Denied { path, detail: "on cue".into() }),
                Fault::Hold => self.gate.acquire().await.unwrap().forget(),
                _ => {}
            }
            let unavailable =
                |detail: &str| SourceError::Unavailable { path, detail: detail.into(), retry_after: None };
            let fetched = self.inner.fetch(object, range, urgency).await?;
            let mut object_crc64 = fetched.object_crc64;
            let mut frames: Vec<Bytes> = fetched.frames.try_collect().await?;
            let mut end = None;
            match fault {
                Fault::Short => {
                    let last = frames.pop().unwrap();
                    frames.push(last.slice(..last.len() - 1));
                }
                Fault::Cut => {
                    frames.truncate(1);
                    end = Some(Err(unavailable("cut on cue")));
                }
                Fault::Long => frames.push(Bytes::from_static(b"!")),
                Fault::WrongByte => {
                    let mut first = frames[0].to_vec();
                    first[0] ^= 1;
                    frames[0] = first.into();
                }
                Fault::WrongCrc => object_crc64 = object_crc64.map(|crc| !crc),
                Fault::NoCrc => object_crc64 = None,
                _ => {}
            }
            let frames = stream::iter(frames.into_iter().map(Ok).chain(end)).boxed();
            Ok(Fetched { object_crc64, frames })
        })
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn options(dir: &Path, concurrency: usize) -> StoreOptions {
    let retry = Retry {
        first: Duration::from_millis(2),
        longest: Duration::from_millis(10),
        limit: Duration::from_millis(200),
    };
    StoreOptions {
        dir: dir.into(),
        chunk_len: CHUNK,
        concurrency,
        read_timeout: PATIENCE,
        retry,
        reserve_bytes: 0,
        cache: CacheMode::Full,
        cache_bytes: None,
    }
}

/// Open a store; a predecessor that was just dropped may take a moment to let go of the lock.
pub fn open(
    options: StoreOptions,
    objects: &[Object],
    source: Arc<dyn ChunkSource>,
    rt: &Runtime,
) -> Arc<Store> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Store::open(options.clone(), objects.to_vec(), source.clone(), rt.handle().clone()) {
            Err(StoreError::InUse { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

pub fn id(store: &Store, path: &str) -> EntryId {
    let at = store.entries().iter().position(|entry| entry.path == Path::new(path)).unwrap();
    EntryId(u32::try_from(at).unwrap())
}

/// Read a range of `path`.
pub fn read(store: &Store, path: &str, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
    let mut buf = vec![0xAA; (range.end - range.start) as usize];
    store.read_at(id(store, path), range.start, &mut buf)?;
    Ok(buf)
}

/// Read all of every object and compare.
pub fn assert_content(store: &Store, objects: &[Object]) {
    for object in objects {
        let path = object.path.to_str().unwrap();
        assert_eq!(read(store, path, 0..object.len).unwrap(), content(path, object.len), "{path}");
    }
}

/// `(path, chunk)` of all chunks of `objects`, sorted.
pub fn all_chunks(objects: &[Object]) -> Vec<(String, u64)> {
    let chunks = |object: &Object| {
        let path = object.path.to_str().unwrap().to_owned();
        (0..object.len.div_ceil(CHUNK)).map(move |chunk| (path.clone(), chunk))
    };
    let mut all: Vec<_> = objects.iter().flat_map(chunks).collect();
    all.sort();
    all
}

/// Wait until `condition` holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
