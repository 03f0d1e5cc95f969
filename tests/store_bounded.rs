//! A disk that cannot hold the model: the store keeps what fits, lets go what was read longest ago, and every read is right.

#[path = "common/chunks.rs"]
#[allow(dead_code)]
mod chunks;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cai::ciphertext::Ciphertext;
use cai::error::Fault as _;
use cai::store::{CacheMode, Filled, Keeping, Object, Store, StoreError, StoreOptions};
use chunks::{
    CHUNK, Fault, Faulty, Memory, assert_content, eventually, id, object, open, options, read, runtime,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Chunks of the cache in these tests, and fetches at once: twice as many chunks are the least.
const KEPT: u64 = 48;
const AT_ONCE: usize = 4;

/// Two large objects of 100 chunks and one small one, in the order of the listing.
fn model() -> Vec<Object> {
    vec![object("gocryptfs.conf", 300), object("w/1", 100 * CHUNK), object("w/2", 100 * CHUNK - 7)]
}

fn bounded(dir: &Path) -> StoreOptions {
    StoreOptions { cache: CacheMode::Bounded, cache_bytes: Some(KEPT * CHUNK), ..options(dir, AT_ONCE) }
}

fn source(objects: &[Object]) -> Arc<Faulty<Memory>> {
    Faulty::new(Memory::new(objects), |_, _, _| Fault::None)
}

/// A fill in the background, which a bounded cache never ends.
fn filling(store: &Arc<Store>, rt: &Runtime) -> CancellationToken {
    let (store, token) = (store.clone(), CancellationToken::new());
    let theirs = token.clone();
    rt.spawn(async move {
        assert_eq!(store.fill(theirs).await.unwrap(), Filled::Cancelled);
    });
    token
}

fn done(store: &Store) -> u64 {
    store.progress().borrow().bytes_done
}

#[test]
fn model_larger_than_the_cache_is_read_whole_and_never_takes_more_than_its_share() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let store = open(bounded(dir.path()), &objects, source(&objects), &rt);
    assert_eq!(store.keeping(), Keeping::Bounded(KEPT * CHUNK));
    for _ in 0..3 {
        assert_content(&store, &objects);
        assert!(done(&store) <= KEPT * CHUNK, "{}", done(&store));
    }
    // The small object stays, and what it takes is not there for chunks.
    assert_eq!(store.progress().borrow().cache_limit, Some(KEPT * CHUNK - 300));
}

#[test]
fn what_is_let_go_is_given_back_to_the_disk() {
    let (rt, dir) = (runtime(), TempDir::new_in("/var/tmp").unwrap());
    let chunk_len = 64 << 10;
    let objects = vec![object("w/1", 100 * chunk_len)];
    let options = StoreOptions { chunk_len, cache_bytes: Some(10 * chunk_len), ..bounded(dir.path()) };
    let store = open(options, &objects, source(&objects), &rt);
    assert_content(&store, &objects);
    let files = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let (apparent, taken) =
        files.fold((0, 0), |(len, blocks), file| (len + file.len(), blocks + file.blocks() * 512));
    assert!(apparent >= 100 * chunk_len, "sparse in full length: {apparent}");
    // Beside the chunks: sidecar, lock, and what the file system adds for its extents.
    assert!(taken <= 10 * chunk_len + (64 << 10), "{taken}");
}

#[test]
fn fill_stops_at_the_limit_goes_on_behind_a_reader_and_fetches_nothing_twice() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let source = source(&objects);
    let store = open(bounded(dir.path()), &objects, source.clone(), &rt);
    let token = filling(&store, &rt);
    eventually("the cache is full", || done(&store) >= (KEPT - AT_ONCE as u64) * CHUNK);
    // A reader from front to back, as slow as it likes.
    for path in ["w/1", "w/2"] {
        store.will_need(id(&store, path));
        for chunk in 0..99 {
            let range = chunk * CHUNK..(chunk + 1) * CHUNK;
            assert_eq!(
                read(&store, path, range.clone()).unwrap(),
                chunks::content(path, 100 * CHUNK)[range.start as usize..range.end as usize]
            );
        }
    }
    token.cancel();
    let mut fetched = source.fetched_sorted();
    let all = fetched.len();
    fetched.dedup();
    // A reader may outrun the fill and take the place of chunks that were fetched ahead; nothing else comes twice.
    assert!(all - fetched.len() <= KEPT as usize, "{} of {all} twice", all - fetched.len());
}

#[test]
fn readers_among_evictions_never_see_a_hole() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let least = StoreOptions { cache_bytes: Some(2 * AT_ONCE as u64 * CHUNK), ..bounded(dir.path()) };
    let store = open(least, &objects, source(&objects), &rt);
    let token = filling(&store, &rt);
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..4u64 {
            let (store, failed) = (&store, &failed);
            scope.spawn(move || {
                let contents = ["w/1", "w/2"].map(|path| (path, chunks::content(path, 100 * CHUNK)));
                let mut at = seed;
                for _ in 0..600 {
                    at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (path, content) = &contents[(at >> 33) as usize % 2];
                    let start = (at >> 20) % (97 * CHUNK);
                    let range = start..start + 1 + (at >> 40) % (2 * CHUNK);
                    let expected = &content[range.start as usize..range.end as usize];
                    if read(store, path, range.clone()).unwrap() != expected {
                        failed.store(true, Ordering::SeqCst);
                        panic!("wrong bytes of {path} in {range:?}");
                    }
                }
            });
        }
    });
    assert!(!failed.load(Ordering::SeqCst));
    token.cancel();
}

#[test]
fn small_objects_stay_whatever_is_read() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let source = source(&objects);
    let store = open(bounded(dir.path()), &objects, source.clone(), &rt);
    for _ in 0..2 {
        assert_content(&store, &objects);
    }
    let small = source.fetched().into_iter().filter(|(path, _)| path == "gocryptfs.conf").count();
    assert_eq!(small, 1);
}

#[test]
fn restart_after_a_crash_keeps_the_limit_and_the_bytes() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    for _ in 0..3 {
        let store = open(bounded(dir.path()), &objects, source(&objects), &rt);
        assert_content(&store, &objects);
        assert!(done(&store) <= KEPT * CHUNK, "{}", done(&store));
        // Dropped without `close`: as a crash leaves it.
    }
    let store = open(bounded(dir.path()), &objects, source(&objects), &rt);
    rt.block_on(store.close()).unwrap();
    drop(store);
    let source = source(&objects);
    let store = open(bounded(dir.path()), &objects, source.clone(), &rt);
    assert_eq!(done(&store), store.progress().borrow().bytes_from_cache);
    assert_content(&store, &objects);
}

#[test]
fn what_is_kept_is_what_fits_or_what_was_asked_for() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let whole: u64 = objects.iter().map(|object| object.len).sum();
    let open = |cache, cache_bytes: u64| {
        let options = StoreOptions { cache, cache_bytes: Some(cache_bytes), ..options(dir.path(), AT_ONCE) };
        let store = Store::open(options, objects.clone(), source(&objects), rt.handle().clone());
        store.map(|store| {
            rt.block_on(store.close()).unwrap();
            store.keeping()
        })
    };
    let least = 2 * AT_ONCE as u64 * CHUNK;
    let refused = |result: Result<Keeping, StoreError>| result.unwrap_err().code();
    assert_eq!(open(CacheMode::Auto, whole).unwrap(), Keeping::Full);
    assert_eq!(open(CacheMode::Auto, whole - 1).unwrap(), Keeping::Bounded(whole - 1));
    assert_eq!(open(CacheMode::Auto, least).unwrap(), Keeping::Bounded(least));
    assert_eq!(open(CacheMode::Auto, least - 1).unwrap(), Keeping::Nothing);
    assert_eq!(open(CacheMode::Bounded, least).unwrap(), Keeping::Bounded(least));
    assert_eq!(refused(open(CacheMode::Bounded, least - 1)), "store.no-space");
    assert_eq!(open(CacheMode::Full, whole).unwrap(), Keeping::Full);
    assert_eq!(refused(open(CacheMode::Full, whole - 1)), "store.no-space");
    assert_eq!(open(CacheMode::Nothing, whole).unwrap(), Keeping::Nothing);
}

#[test]
fn nothing_is_kept_where_nothing_is_to_be_kept() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let options = StoreOptions { cache: CacheMode::Nothing, ..options(dir.path(), AT_ONCE) };
    let store = open(options, &objects, source(&objects), &rt);
    assert_content(&store, &objects);
    let error = rt.block_on(store.fill(CancellationToken::new())).unwrap_err();
    assert_eq!(error.code(), "store.caching-off");
    rt.block_on(store.close()).unwrap();
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["lock"]);
    assert_eq!(store.progress().borrow().problems, [], "it is no problem, it was asked for");
}
