//! What a store finds again after a stop, a crash, a damaged disk and a changed origin.

#[path = "common/chunks.rs"]
#[allow(dead_code)]
mod chunks;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cai::ciphertext::Ciphertext;
use cai::error::Fault as _;
use cai::store::{Filled, Object, Store, StoreError};
use chunks::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Bytes of a chunk map before its names. Source: the format in `src/store/chunkmap.rs`.
const MAP_HEADER: usize = 52;

fn model() -> Vec<Object> {
    vec![object("gocryptfs.conf", 300), object("w/1", 5 * CHUNK + 17), object("w/2", 12 * CHUNK)]
}

fn source(objects: &[Object]) -> Arc<Faulty<Memory>> {
    Faulty::new(Memory::new(objects), |_, _, _| Fault::None)
}

fn fill(store: &Store, rt: &Runtime) {
    assert_eq!(rt.block_on(store.fill(CancellationToken::new())).unwrap(), Filled::Complete);
}

fn file(dir: &Path, path: &str, extension: &str) -> PathBuf {
    let hex: String = Sha256::digest(path).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    dir.join(hex).with_extension(extension)
}

/// Fill a cache of `objects` and close it.
fn filled(dir: &Path, objects: &[Object], rt: &Runtime) {
    let store = open(options(dir, 4), objects, source(objects), rt);
    fill(&store, rt);
    rt.block_on(store.close()).unwrap();
}

/// Open the cache again, read everything, and say what had to be fetched.
fn refetched(dir: &Path, objects: &[Object], rt: &Runtime) -> Vec<(String, u64)> {
    let source = source(objects);
    let store = open(options(dir, 4), objects, source.clone(), rt);
    assert_content(&store, objects);
    let fetched = source.fetched_sorted();
    rt.block_on(store.close()).unwrap();
    fetched
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

/// Chunks the sidecar of `object` says are here.
fn marked(dir: &Path, object: &Object) -> u32 {
    let Ok(map) = fs::read(file(dir, object.path.to_str().unwrap(), "map")) else { return 0 };
    let start = MAP_HEADER + object.path.as_os_str().len() + object.etag.len();
    let bits = &map[start..start + (object.len.div_ceil(CHUNK) as usize).div_ceil(8)];
    bits.iter().map(|byte| byte.count_ones()).sum()
}

#[test]
fn closed_cache_is_used_without_a_fetch() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    filled(dir.path(), &objects, &rt);
    assert!(dir.path().join("clean").exists());
    let source = source(&objects);
    let store = open(options(dir.path(), 4), &objects, source.clone(), &rt);
    assert!(!dir.path().join("clean").exists(), "a crash from now on is an unclean stop");
    let progress = store.progress().borrow().clone();
    assert_eq!(
        (progress.bytes_done, progress.bytes_from_cache),
        (progress.bytes_total, progress.bytes_total)
    );
    assert_eq!((progress.objects_done, progress.objects_total), (3, 3));
    fill(&store, &rt);
    assert_content(&store, &objects);
    assert_eq!(source.fetched(), []);
}

#[test]
fn half_filled_cache_goes_on_where_it_was() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let store = open(options(dir.path(), 4), &objects, source(&objects), &rt);
    read(&store, "w/2", 3 * CHUNK..6 * CHUNK).unwrap();
    rt.block_on(store.close()).unwrap();
    drop(store);
    let mut expected = all_chunks(&objects);
    expected.retain(|(path, chunk)| path != "w/2" || !(3..6).contains(chunk));
    assert_eq!(refetched(dir.path(), &objects, &rt), expected);
}

#[test]
fn cache_files_are_private_and_sparse() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), vec![object("w", 4_000 * CHUNK)]);
    let store = open(options(dir.path(), 4), &objects, source(&objects), &rt);
    read(&store, "w", 0..10).unwrap();
    rt.block_on(store.close()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(dir.path()), 0o700);
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 4, "data, map, lock and clean: {files:?}");
    files.iter().for_each(|path| assert_eq!(mode(path), 0o600, "{path:?}"));
    let data = fs::metadata(file(dir.path(), "w", "data")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!(data.len(), 4_000 * CHUNK);
    assert!(data.blocks() * 512 < 100 * CHUNK, "{} blocks", data.blocks());
}

#[test]
fn drop_without_close_is_an_unclean_stop_that_is_checked_chunk_by_chunk() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let store = open(options(dir.path(), 4), &objects, source(&objects), &rt);
    fill(&store, &rt);
    eventually("all marks are durable", || {
        objects.iter().all(|object| u64::from(marked(dir.path(), object)) == object.len.div_ceil(CHUNK))
    });
    drop(store);
    assert!(!dir.path().join("clean").exists());
    flip(&file(dir.path(), "w/1", "data"), 2 * CHUNK + 3);
    flip(&file(dir.path(), "w/2", "data"), 11 * CHUNK);
    let source = source(&objects);
    let store = open(options(dir.path(), 4), &objects, source.clone(), &rt);
    assert_eq!(store.progress().borrow().bytes_done, 0, "nothing is counted before it is checked");
    assert_content(&store, &objects);
    assert_eq!(source.fetched_sorted(), [("w/1".to_owned(), 2), ("w/2".to_owned(), 11)]);
    eventually("counted", || {
        let progress = store.progress().borrow().clone();
        progress.bytes_done == progress.bytes_total
            && progress.bytes_from_cache == progress.bytes_total - 2 * CHUNK
    });
}

#[test]
fn unverified_chunks_stay_unverified_through_a_clean_stop() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    filled(dir.path(), &objects, &rt);
    fs::remove_file(dir.path().join("clean")).unwrap();
    flip(&file(dir.path(), "w/2", "data"), 0);
    let store = open(options(dir.path(), 4), &objects, source(&objects), &rt);
    rt.block_on(store.close()).unwrap();
    drop(store);
    assert_eq!(refetched(dir.path(), &objects, &rt), [("w/2".to_owned(), 0)]);
}

#[test]
fn damaged_chunk_map_costs_its_object_only() {
    type Damage = fn(&Path);
    let damage: [(&str, Damage); 4] = [
        ("truncated", |map| fs::write(map, &fs::read(map).unwrap()[..70]).unwrap()),
        ("empty", |map| fs::write(map, []).unwrap()),
        ("flipped", |map| flip(map, 60)),
        ("longer", |map| fs::write(map, [fs::read(map).unwrap(), vec![0; 1 << 20]].concat()).unwrap()),
    ];
    for (name, damage) in damage {
        let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
        filled(dir.path(), &objects, &rt);
        damage(&file(dir.path(), "w/1", "map"));
        assert_eq!(refetched(dir.path(), &objects, &rt), all_chunks(&objects[1..2]), "{name}");
    }
}

#[test]
fn truncated_or_missing_data_file_is_fetched_afresh() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    filled(dir.path(), &objects, &rt);
    fs::OpenOptions::new().write(true).open(file(dir.path(), "w/1", "data")).unwrap().set_len(CHUNK).unwrap();
    fs::remove_file(file(dir.path(), "w/2", "data")).unwrap();
    assert_eq!(refetched(dir.path(), &objects, &rt), all_chunks(&objects[1..]));
}

#[test]
fn data_lost_under_a_running_store_is_fetched_once_more() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let source = source(&objects);
    let store = open(options(dir.path(), 4), &objects, source.clone(), &rt);
    fill(&store, &rt);
    fs::OpenOptions::new()
        .write(true)
        .open(file(dir.path(), "w/1", "data"))
        .unwrap()
        .set_len(2 * CHUNK)
        .unwrap();
    assert_eq!(read(&store, "w/1", 0..5 * CHUNK + 17).unwrap(), content("w/1", 5 * CHUNK + 17));
    let count = source.fetched().iter().filter(|entry| **entry == ("w/1".to_owned(), 2)).count();
    assert_eq!(count, 2);
}

#[test]
fn changed_object_is_fetched_afresh_alone() {
    let (rt, dir, mut objects) = (runtime(), TempDir::new().unwrap(), model());
    filled(dir.path(), &objects, &rt);
    objects[1].etag = "\"other\"".into();
    objects[2].len -= 1;
    assert_eq!(refetched(dir.path(), &objects, &rt), all_chunks(&objects[1..]));
}

#[test]
fn files_of_objects_no_longer_listed_are_removed_and_others_are_not_touched() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    filled(dir.path(), &objects, &rt);
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    fs::write(file(dir.path(), "w/2", "new"), "half a map").unwrap();
    assert_eq!(refetched(dir.path(), &objects[..2], &rt), []);
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    left.sort();
    let mut expected = vec![dir.path().join("notes.txt"), dir.path().join("lock"), dir.path().join("clean")];
    for path in ["gocryptfs.conf", "w/1"] {
        expected.extend(["data", "map"].map(|extension| file(dir.path(), path, extension)));
    }
    expected.sort();
    assert_eq!(left, expected);
}

#[test]
fn second_store_on_the_same_directory_is_refused() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let store = open(options(dir.path(), 4), &objects, source(&objects), &rt);
    let second = Store::open(options(dir.path(), 4), objects.clone(), source(&objects), rt.handle().clone());
    let error = second.err().unwrap();
    assert!(matches!(&error, StoreError::InUse { dir: used } if used == dir.path()), "{error}");
    assert_eq!(error.code(), "store.in-use");
    rt.block_on(store.close()).unwrap();
    drop(store);
    open(options(dir.path(), 4), &objects, source(&objects), &rt);
}

#[test]
fn too_little_space_is_refused_with_numbers() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let mut greedy = options(dir.path(), 1);
    greedy.reserve_bytes = u64::MAX / 2;
    let error =
        Store::open(greedy.clone(), objects.clone(), source(&objects), rt.handle().clone()).err().unwrap();
    let StoreError::NoSpace { missing, reserve, free, .. } = &error else { panic!("{error}") };
    assert_eq!((*missing, *reserve), (300 + 17 * CHUNK + 17, u64::MAX / 2));
    assert!(*free > 0 && error.hint().contains(&(missing + reserve - free).to_string()), "{}", error.hint());
    // A complete cache needs nothing.
    filled(dir.path(), &objects, &rt);
    open(greedy, &objects, source(&objects), &rt);
}

/// A small file system of its own, unmounted also when the test fails.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(options: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mounted = nix::mount::mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options),
        );
        match mounted {
            Ok(()) => Some(SmallDisk(dir)),
            Err(error) => {
                let required = std::env::var("CAI_TEST_REQUIRE").unwrap_or_default();
                assert!(!required.split(',').any(|name| name == "root"), "cannot mount a tmpfs: {error}");
                println!("skip: cannot mount a tmpfs: {error}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn full_disk_stops_caching_but_not_serving() {
    let Some(disk) = SmallDisk::new("size=1m,mode=0700") else { return };
    let (rt, dir) = (runtime(), disk.0.path());
    let objects = vec![object("conf", 10), object("w", 400 * CHUNK)];
    let source = source(&objects);
    let store = open(options(dir, 4), &objects, source.clone(), &rt);
    read(&store, "w", 0..3 * CHUNK).unwrap();
    // Somebody else takes the space that was there at the start, up to the last page.
    let filler = dir.join("filler");
    let mut taken = Vec::new();
    while fs::write(&filler, &taken).is_ok() {
        taken.resize(taken.len() + 4096, 1);
    }
    let error = rt.block_on(store.fill(CancellationToken::new())).unwrap_err();
    assert!(matches!(error, StoreError::CachingOff { .. }), "{error}");
    assert_content(&store, &objects);
    let before = source.fetched().len();
    for at in 0..16 {
        let start = 399 * CHUNK + at * 64;
        assert_eq!(
            read(&store, "w", start..start + 64).unwrap(),
            content("w", 400 * CHUNK)[start as usize..start as usize + 64]
        );
    }
    assert_eq!(source.fetched().len(), before, "small reads of one chunk share what is in memory");
    eventually("reported", || {
        let progress = store.progress().borrow().clone();
        !progress.caching && progress.problems.iter().any(|problem| problem.code == "store.caching-off")
    });
    assert!(store.space().0 > 0);
    rt.block_on(store.close()).unwrap();
    drop(store);
    // With room again, what was written is used after a check, and nothing half-written is.
    fs::remove_file(&filler).unwrap();
    let source = self::source(&objects);
    let store = open(options(dir, 4), &objects, source.clone(), &rt);
    fill(&store, &rt);
    assert_content(&store, &objects);
    let fetched = source.fetched().len();
    assert!((390..=401).contains(&fetched), "{fetched} chunks fetched");
}
