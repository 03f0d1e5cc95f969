//! A store beside another one: what both models have in common is linked, checked, and never fetched twice.

#[path = "common/chunks.rs"]
#[allow(dead_code)]
mod chunks;
mod common;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cai::store::{CacheMode, Filled, Keeping, Object, Store, StoreOptions};
use chunks::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

fn old_model() -> Vec<Object> {
    vec![
        object("gocryptfs.conf", 300),
        object("w/1", 5 * CHUNK + 17),
        object("w/2", 12 * CHUNK),
        object("w/3", 3),
    ]
}

/// One object replaced, one gone, one new, the others as they were.
fn new_model() -> Vec<Object> {
    let mut changed = object("w/1", 5 * CHUNK + 17);
    changed.etag = "\"another\"".into();
    vec![object("gocryptfs.conf", 300), changed, object("w/2", 12 * CHUNK), object("w/4", CHUNK)]
}

fn source(objects: &[Object]) -> Arc<Faulty<Memory>> {
    Faulty::new(Memory::new(objects), |_, _, _| Fault::None)
}

fn fill(store: &Store, rt: &Runtime) {
    assert_eq!(rt.block_on(store.fill(CancellationToken::new())).unwrap(), Filled::Complete);
}

fn beside(old: &Store, options: StoreOptions, source: Arc<Faulty<Memory>>, rt: &Runtime) -> Arc<Store> {
    Store::open_beside(old, options, new_model(), None, source, rt.handle().clone()).unwrap()
}

/// Chunks of the new model that the old one does not have.
fn news() -> Vec<(String, u64)> {
    let mut chunks = all_chunks(&new_model());
    chunks.retain(|(path, _)| path == "w/1" || path == "w/4");
    chunks
}

/// The only data file of that many bytes.
fn data_file(dir: &Path, len: u64) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut fitting = files.filter(|path| path.extension().is_some_and(|extension| extension == "data"));
    fitting.find(|path| fs::metadata(path).unwrap().len() == len).unwrap()
}

#[test]
fn objects_that_both_have_are_linked_and_outlive_the_old_store() {
    let (rt, cache) = (runtime(), TempDir::new().unwrap());
    let (first, second) = (cache.path().join("first"), cache.path().join("second"));
    let old = open(options(&first, 4), &old_model(), source(&old_model()), &rt);
    fill(&old, &rt);
    let fetching = source(&new_model());
    let new = beside(&old, options(&second, 4), fetching.clone(), &rt);
    assert_eq!(new.directory(), second);
    assert_eq!(
        data_file(&second, 12 * CHUNK),
        second.join(data_file(&first, 12 * CHUNK).file_name().unwrap())
    );
    assert_eq!(fs::metadata(data_file(&second, 12 * CHUNK)).unwrap().nlink(), 2);
    fill(&new, &rt);
    assert_eq!(fetching.fetched_sorted(), news());
    // Both are read side by side, and the new one alone.
    assert_content(&old, &old_model());
    assert_content(&new, &new_model());
    rt.block_on(old.close()).unwrap();
    cai::store::revisions::remove(&first).unwrap();
    assert_content(&new, &new_model());
    rt.block_on(new.close()).unwrap();
    drop(new);
    let again = open(options(&second, 4), &new_model(), source(&new_model()), &rt);
    assert_content(&again, &new_model());
    rt.block_on(again.close()).unwrap();
}

#[test]
fn linked_chunk_that_is_damaged_parts_the_two_and_is_fetched_into_a_file_of_its_own() {
    let (rt, cache) = (runtime(), TempDir::new().unwrap());
    let (first, second) = (cache.path().join("first"), cache.path().join("second"));
    let old = open(options(&first, 4), &old_model(), source(&old_model()), &rt);
    fill(&old, &rt);
    let file = fs::OpenOptions::new().read(true).write(true).open(data_file(&first, 12 * CHUNK)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4 * CHUNK + 5).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 4 * CHUNK + 5).unwrap();
    let fetching = source(&new_model());
    let new = beside(&old, options(&second, 4), fetching.clone(), &rt);
    fill(&new, &rt);
    assert_content(&new, &new_model());
    assert_eq!(fs::metadata(data_file(&second, 12 * CHUNK)).unwrap().nlink(), 1);
    // What was checked before the damaged chunk was looked at may come again.
    let fetched = fetching.fetched_sorted();
    assert!(news().iter().all(|chunk| fetched.contains(chunk)), "{fetched:?}");
    assert!(fetched.contains(&("w/2".into(), 4)) && fetched.len() <= news().len() + 12, "{fetched:?}");
    let mut still = [0];
    file.read_exact_at(&mut still, 4 * CHUNK + 5).unwrap();
    assert_eq!(still[0], byte[0] ^ 1, "the other's file is left alone");
    rt.block_on(new.close()).unwrap();
    rt.block_on(old.close()).unwrap();
}

#[test]
fn store_that_lets_chunks_go_does_so_in_no_file_of_another() {
    let (rt, cache) = (runtime(), TempDir::new().unwrap());
    let (first, second) = (cache.path().join("first"), cache.path().join("second"));
    let old = open(options(&first, 4), &old_model(), source(&old_model()), &rt);
    fill(&old, &rt);
    let small = StoreOptions { cache: CacheMode::Auto, cache_bytes: Some(9 * CHUNK), ..options(&second, 1) };
    let new = beside(&old, small, source(&new_model()), &rt);
    assert!(matches!(new.keeping(), Keeping::Bounded(_)), "{:?}", new.keeping());
    assert_content(&new, &new_model());
    assert_content(&new, &new_model());
    // Every byte, from the disk, and none of it zeros.
    assert_content(&old, &old_model());
    for store in [old, new] {
        rt.block_on(store.close()).unwrap();
    }
}

#[test]
fn what_is_not_whole_is_not_linked() {
    let (rt, cache) = (runtime(), TempDir::new().unwrap());
    let (first, second) = (cache.path().join("first"), cache.path().join("second"));
    let old = open(options(&first, 4), &old_model(), source(&old_model()), &rt);
    // One chunk of many.
    read(&old, "w/2", 0..10).unwrap();
    let fetching = source(&new_model());
    let new = beside(&old, options(&second, 4), fetching.clone(), &rt);
    fill(&new, &rt);
    assert_eq!(fetching.fetched_sorted(), all_chunks(&new_model()));
    rt.block_on(new.close()).unwrap();
    rt.block_on(old.close()).unwrap();
}

#[test]
fn cache_that_lets_chunks_go_lends_nothing_and_one_that_keeps_nothing_takes_nothing() {
    let (rt, cache) = (runtime(), TempDir::new().unwrap());
    let bounded = |dir: &str| StoreOptions {
        cache: CacheMode::Bounded,
        cache_bytes: Some(30 * CHUNK),
        ..options(&cache.path().join(dir), 4)
    };
    let old = open(bounded("first"), &old_model(), source(&old_model()), &rt);
    fill(&old, &rt);
    let fetching = source(&new_model());
    let new = beside(&old, options(&cache.path().join("second"), 4), fetching.clone(), &rt);
    assert_content(&new, &new_model());
    assert_eq!(fetching.fetched_sorted(), all_chunks(&new_model()));
    // That one is whole now, and lends; to one without a disk, nothing.
    fill(&new, &rt);
    let nothing = StoreOptions { cache: CacheMode::Nothing, ..options(&cache.path().join("third"), 4) };
    let third = beside(&new, nothing, source(&new_model()), &rt);
    let left: Vec<_> = fs::read_dir(cache.path().join("third")).unwrap().collect();
    assert!(
        left.iter().all(|entry| entry
            .as_ref()
            .unwrap()
            .path()
            .extension()
            .is_none_or(|extension| extension != "data"))
    );
    assert_content(&third, &new_model());
    for store in [old, new, third] {
        rt.block_on(store.close()).unwrap();
    }
}
