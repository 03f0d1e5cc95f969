//! A store with a manifest: no chunk is served that is not in it, whoever delivered it and wherever it lay.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cai::ciphertext::{Ciphertext, EntryId, ReadError};
use cai::error::{ErrorClass, Fault};
use cai::manifest::{CHUNK_LEN, Manifest};
use cai::store::{
    CacheMode, ChunkSource, FetchFuture, Fetched, Filled, Object, Retry, Store, StoreOptions, Urgency,
};
use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

#[path = "common/signed.rs"]
mod signed;

const LEN: usize = 2 * CHUNK_LEN as usize + 5_000;

fn content(seed: u8) -> Vec<u8> {
    (0..LEN).map(|at| (at % 251) as u8 ^ seed).collect()
}

/// Delivers what it has now, with the checksum of that: a liar who is consistent.
struct Source {
    content: Mutex<Vec<u8>>,
    fetches: AtomicUsize,
    /// This many fetches come with a flipped byte.
    noisy: AtomicUsize,
}

impl Source {
    fn new(content: Vec<u8>) -> Arc<Self> {
        Arc::new(Source {
            content: Mutex::new(content),
            fetches: AtomicUsize::new(0),
            noisy: AtomicUsize::new(0),
        })
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::Relaxed)
    }
}

impl ChunkSource for Source {
    fn name(&self) -> &'static str {
        "liar"
    }

    fn fetch<'a>(&'a self, _: &'a Object, range: Range<u64>, _: &'a Urgency) -> FetchFuture<'a> {
        Box::pin(async move {
            self.fetches.fetch_add(1, Ordering::Relaxed);
            let content = self.content.lock().unwrap();
            let mut bytes = content[range.start as usize..range.end as usize].to_vec();
            let noise =
                self.noisy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if noise.is_ok() {
                bytes[7] ^= 1;
            }
            let frames: Vec<_> =
                bytes.chunks(65_536).map(|frame| Ok(Bytes::copy_from_slice(frame))).collect();
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &content);
            Ok(Fetched { frames: stream::iter(frames).boxed(), object_crc64: Some(crc) })
        })
    }
}

/// A manifest of one object, `weights`, with this content.
fn manifest(content: &[u8]) -> Arc<Manifest> {
    signed::manifest([(Path::new("weights"), content)])
}

fn open(dir: &Path, manifest: Option<Arc<Manifest>>, source: Arc<Source>, rt: &Runtime) -> Arc<Store> {
    let options = StoreOptions {
        dir: dir.to_owned(),
        chunk_len: StoreOptions::CHUNK_LEN,
        concurrency: 2,
        read_timeout: Duration::from_secs(60),
        retry: Retry { first: Duration::from_millis(1), ..Retry::default() },
        reserve_bytes: 0,
        cache: CacheMode::Full,
        cache_bytes: None,
    };
    let object = Object {
        path: "weights".into(),
        len: LEN as u64,
        etag: "\"1\"".into(),
        modified: SystemTime::UNIX_EPOCH,
    };
    Store::open_checked(options, vec![object], manifest, source, rt.handle().clone()).unwrap()
}

fn read(store: &Store, range: Range<usize>) -> Result<Vec<u8>, ReadError> {
    let mut buffer = vec![0; range.len()];
    store.read_at(EntryId(0), range.start as u64, &mut buffer).map(|()| buffer)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn chunks_of_the_manifest_are_served_and_kept() {
    let (rt, dir, right) = (runtime(), TempDir::new().unwrap(), content(0));
    let source = Source::new(right.clone());
    let store = open(dir.path(), Some(manifest(&right)), source.clone(), &rt);
    assert_eq!(rt.block_on(store.fill(CancellationToken::new())).unwrap(), Filled::Complete);
    assert!(read(&store, 0..LEN).unwrap() == right);
    assert_eq!(source.fetches(), 3);
    rt.block_on(store.close()).unwrap();
    drop(store);
    // What an earlier run left is looked at with the manifest, and not fetched again.
    let store = open(dir.path(), Some(manifest(&right)), source.clone(), &rt);
    assert!(read(&store, 0..LEN).unwrap() == right);
    assert_eq!(source.fetches(), 3);
    rt.block_on(store.close()).unwrap();
}

#[test]
fn forged_chunk_is_fetched_once_more_and_never_served() {
    let (rt, dir) = (runtime(), TempDir::new().unwrap());
    let mut forged = content(0);
    forged[CHUNK_LEN as usize + 9] ^= 1;
    let source = Source::new(forged.clone());
    let store = open(dir.path(), Some(manifest(&content(0))), source.clone(), &rt);
    assert!(read(&store, 0..100).unwrap() == forged[..100], "a chunk that is in the manifest is served");
    let middle = CHUNK_LEN as usize;
    let error = read(&store, middle + 1_000..middle + 1_100).unwrap_err();
    assert!(matches!(&error, ReadError::Io { path, .. } if path == "weights"), "{error:?}");
    assert_eq!(source.fetches(), 3, "one for the sound chunk, two for the forged one");
    let problems = store.progress().borrow().problems.clone();
    assert!(problems.iter().all(|problem| problem.class == ErrorClass::Corrupt), "{problems:?}");
    assert!(read(&store, middle..middle + 1).is_err());
    rt.block_on(store.close()).unwrap();
}

#[test]
fn file_that_was_swapped_as_a_whole_is_corrupt_however_its_chunks_come() {
    let (rt, dir) = (runtime(), TempDir::new().unwrap());
    let source = Source::new(content(1));
    let store = open(dir.path(), Some(manifest(&content(0))), source.clone(), &rt);
    let error = rt.block_on(store.fill(CancellationToken::new())).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Corrupt, "{error:?}");
    assert!(source.fetches() <= 6, "each chunk twice at most, not {} fetches", source.fetches());
    rt.block_on(store.close()).unwrap();
}

#[test]
fn chunk_damaged_on_the_way_is_fetched_again_and_served() {
    let (rt, dir, right) = (runtime(), TempDir::new().unwrap(), content(0));
    let source = Source::new(right.clone());
    source.noisy.store(1, Ordering::Relaxed);
    let store = open(dir.path(), Some(manifest(&right)), source.clone(), &rt);
    assert!(read(&store, 0..1_000).unwrap() == right[..1_000]);
    assert_eq!(source.fetches(), 2);
    rt.block_on(store.close()).unwrap();
}

#[test]
fn cache_filled_before_there_was_a_manifest_is_not_believed() {
    let (rt, dir, right) = (runtime(), TempDir::new().unwrap(), content(0));
    let source = Source::new(content(1));
    let store = open(dir.path(), None, source.clone(), &rt);
    assert_eq!(rt.block_on(store.fill(CancellationToken::new())).unwrap(), Filled::Complete);
    assert!(read(&store, 0..LEN).unwrap() == content(1), "without a manifest nobody knows better");
    rt.block_on(store.close()).unwrap();
    drop(store);

    *source.content.lock().unwrap() = right.clone();
    let store = open(dir.path(), Some(manifest(&right)), source.clone(), &rt);
    assert!(read(&store, 0..LEN).unwrap() == right);
    assert_eq!(source.fetches(), 6);
    rt.block_on(store.close()).unwrap();
}
