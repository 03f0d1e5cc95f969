//! What a store finds again after a stop, a crash, a damaged disk and a changed origin.

#[path = "common/chunks.rs"]
#[allow(dead_code)]
mod chunks;
mod common;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cai::error::{ErrorClass, Fault as _};
use cai::store::{Filled, Object, Store, StoreError};
use chunks::*;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Bytes of a chunk map before its names. Source: the format in `src/store/chunkmap.rs`.
const MAP_HEADER: usize = 52;
/// Where in it the promised checksum is.
const PROMISED: usize = 40;

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
fn killed_process_loses_only_what_was_on_its_way() {
    let (rt, dir) = (runtime(), TempDir::new().unwrap());
    let objects = model();
    // Before the first save, and once more: notes of the first life are kept by the second, which saves nothing either.
    let held = |path: &str, chunk, _| if path == "w/2" && chunk > 7 { Fault::Hold } else { Fault::None };
    let mut had = 0;
    for expected in [15, 15, 15] {
        let source = Faulty::new(Memory::new(&objects), held);
        let store = open(options(dir.path(), 4), &objects, source.clone(), &rt);
        let token = CancellationToken::new();
        let filling = rt.spawn({
            let (store, token) = (store.clone(), token.clone());
            async move { store.fill(token).await }
        });
        let total: u64 = objects.iter().map(|object| object.len).sum();
        eventually("all but four chunks", || store.progress().borrow().bytes_done == total - 4 * CHUNK);
        let held_fetches = |fetched: &(String, u64)| held(&fetched.0, fetched.1, 0) == Fault::Hold;
        let fetched = source.fetched().into_iter().filter(|fetched| !held_fetches(fetched)).count();
        assert_eq!(had + fetched, expected, "chunks that came once");
        had += fetched;
        filling.abort();
        let _ = rt.block_on(filling);
        // As a process that is killed: nothing is saved, and no file says how far it was.
        drop(store);
    }
    assert_eq!(
        refetched(dir.path(), &objects, &rt),
        (8..12).map(|number| ("w/2".to_owned(), number)).collect::<Vec<_>>()
    );
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

/// Fill a cache, lose a data file in some way, and read on; gives what was fetched after the loss.
fn refetched_after(path: &str, lose: impl FnOnce(&Path)) -> Vec<(String, u64)> {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let source = source(&objects);
    let store = open(options(dir.path(), 4), &objects, source.clone(), &rt);
    fill(&store, &rt);
    let before = source.fetched().len();
    lose(&file(dir.path(), path, "data"));
    let len = objects.iter().find(|object| object.path == Path::new(path)).unwrap().len;
    // From the last chunk to the first: the first write makes the file long enough again.
    for start in (0..len.div_ceil(CHUNK)).rev().map(|chunk| chunk * CHUNK) {
        let range = start..len.min(start + CHUNK);
        let expected = &content(path, len)[range.start as usize..range.end as usize];
        assert_eq!(read(&store, path, range).unwrap(), expected, "{path} from {start}");
    }
    assert_content(&store, &objects);
    let mut fetched = source.fetched().split_off(before);
    fetched.sort();
    rt.block_on(store.close()).unwrap();
    drop(store);
    assert_eq!(refetched(dir.path(), &objects, &rt), [], "what was repaired is kept");
    fetched
}

fn cut(data: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(data).unwrap().set_len(len).unwrap();
}

#[test]
fn data_file_lost_under_a_running_store_is_fetched_once_more_whole() {
    type Loss = fn(&Path);
    let losses: [(&str, Loss); 5] = [
        ("removed", |data| fs::remove_file(data).unwrap()),
        ("emptied", |data| cut(data, 0)),
        ("one byte short", |data| cut(data, fs::metadata(data).unwrap().len() - 1)),
        ("replaced by an empty one", |data| {
            fs::remove_file(data).unwrap();
            fs::write(data, []).unwrap();
        }),
        ("too long", |data| cut(data, fs::metadata(data).unwrap().len() + 1)),
    ];
    let objects = model();
    for (name, lose) in losses {
        for object in &objects {
            let path = object.path.to_str().unwrap();
            let expected = all_chunks(std::slice::from_ref(object));
            assert_eq!(refetched_after(path, lose), expected, "{path} {name}");
        }
    }
    // The descriptor that is kept shows that another file has the name, even one of the right length.
    let swap = |data: &Path| {
        let len = fs::metadata(data).unwrap().len();
        fs::remove_file(data).unwrap();
        fs::write(data, vec![0; usize::try_from(len).unwrap()]).unwrap();
    };
    assert_eq!(refetched_after("w/1", swap), all_chunks(&objects[1..2]));
}

#[test]
fn data_file_lost_during_a_fill_is_filled_again() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let source = Faulty::new(Memory::new(&objects), |path, number, _| {
        if (path, number) == ("w/2", 11) { Fault::Hold } else { Fault::None }
    });
    let store = open(options(dir.path(), 1), &objects, source.clone(), &rt);
    let filling = store.clone();
    let filled = rt.spawn(async move { filling.fill(CancellationToken::new()).await });
    // The last one is held.
    source.wait_for(1 + 6 + 12);
    fs::remove_file(file(dir.path(), "w/2", "data")).unwrap();
    source.release(2);
    assert_eq!(rt.block_on(filled).unwrap().unwrap(), Filled::Complete);
    let before = source.fetched().len();
    assert_content(&store, &objects);
    assert_eq!(source.fetched().len(), before, "complete is complete");
    let again = source.fetched().iter().filter(|entry| **entry == ("w/2".to_owned(), 0)).count();
    assert_eq!(again, 2);
    rt.block_on(store.close()).unwrap();
    drop(store);
    assert_eq!(refetched(dir.path(), &objects, &rt), []);
}

#[test]
fn readers_of_a_file_that_is_cut_again_and_again_never_see_a_hole() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let store = open(options(dir.path(), 4), &objects, source(&objects), &rt);
    fill(&store, &rt);
    let (data, expected) = (file(dir.path(), "w/2", "data"), content("w/2", 12 * CHUNK));
    for round in 0..30u64 {
        cut(&data, (round % 12) * CHUNK);
        std::thread::scope(|scope| {
            for reader in 0..4u64 {
                let (store, expected) = (&store, &expected);
                scope.spawn(move || {
                    for step in 0..12 {
                        let start = ((step * 5 + reader * 7 + round) % 12) * CHUNK;
                        let bytes = read(store, "w/2", start..start + CHUNK).unwrap();
                        assert!(
                            bytes == expected[start as usize..(start + CHUNK) as usize],
                            "{round} {start}"
                        );
                    }
                });
            }
        });
    }
}

#[test]
fn lost_data_file_that_nobody_read_is_fetched_after_a_restart() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let store = open(options(dir.path(), 4), &objects, source(&objects), &rt);
    read(&store, "w/2", 0..2 * CHUNK).unwrap();
    fs::remove_file(file(dir.path(), "w/2", "data")).unwrap();
    rt.block_on(store.close()).unwrap();
    drop(store);
    assert_eq!(refetched(dir.path(), &objects, &rt), all_chunks(&objects));
}

#[test]
fn chunks_that_could_not_be_synced_are_checked_before_each_use() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let source = source(&objects);
    let store = open(options(dir.path(), 4), &objects, source.clone(), &rt);
    read(&store, "w/1", 0..CHUNK).unwrap();
    eventually("the first chunk is durable", || marked(dir.path(), &objects[1]) == 1);
    // Where the next map should be written, something is in the way.
    fs::create_dir(file(dir.path(), "w/1", "new")).unwrap();
    read(&store, "w/1", CHUNK..4 * CHUNK).unwrap();
    eventually("caching stopped", || !store.progress().borrow().caching);
    let before = source.fetched().len();
    // The system dropped one of the pages it could not write.
    let data = file(dir.path(), "w/1", "data");
    let lost = fs::OpenOptions::new().write(true).open(&data).unwrap();
    lost.write_all_at(&vec![0; CHUNK as usize], 2 * CHUNK).unwrap();
    let expected = content("w/1", 5 * CHUNK + 17);
    assert_eq!(read(&store, "w/1", 0..4 * CHUNK).unwrap(), expected[..4 * CHUNK as usize]);
    assert_eq!(source.fetched()[before..], [("w/1".to_owned(), 2)]);
    let progress = store.progress().borrow().clone();
    let problem = progress.problems.iter().find(|problem| problem.code == "store.caching-off").unwrap();
    assert_eq!(problem.class, ErrorClass::Config);
}

#[test]
fn distrusted_chunks_are_checked_and_only_wrong_ones_fetched_again() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    filled(dir.path(), &objects, &rt);
    flip(&file(dir.path(), "w/1", "data"), 2 * CHUNK + 3);
    let source = source(&objects);
    let store = open(options(dir.path(), 4), &objects, source.clone(), &rt);
    let expected = content("w/1", 5 * CHUNK + 17);
    let len = expected.len() as u64;
    assert_ne!(read(&store, "w/1", 0..len).unwrap(), expected, "a clean stop is trusted");
    store.distrust(id(&store, "w/1"), 4 * CHUNK..u64::MAX);
    assert_ne!(read(&store, "w/1", 0..len).unwrap(), expected, "nobody doubted the wrong chunk");
    store.distrust(id(&store, "w"), 0..u64::MAX);
    store.distrust(id(&store, "w/1"), CHUNK + 5..2 * CHUNK + 1);
    assert_eq!(read(&store, "w/1", 0..len).unwrap(), expected);
    assert_eq!(source.fetched(), [("w/1".to_owned(), 2)]);
    eventually("counted once", || {
        let progress = store.progress().borrow().clone();
        (progress.bytes_done, progress.objects_done) == (progress.bytes_total, 3)
            && progress.bytes_from_cache == progress.bytes_total
    });
}

#[test]
fn object_found_corrupt_twice_is_fetched_afresh_after_a_restart() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    let bad = Faulty::new(Memory::new(&objects), |path, number, _| {
        if (path, number) == ("w/1", 2) { Fault::WrongByte } else { Fault::None }
    });
    let store = open(options(dir.path(), 4), &objects, bad, &rt);
    let error = rt.block_on(store.fill(CancellationToken::new())).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Corrupt, "{error}");
    rt.block_on(store.close()).unwrap();
    drop(store);
    assert!(!dir.path().join("clean").exists());
    assert_eq!(marked(dir.path(), &objects[1]), 0);
    assert_eq!(refetched(dir.path(), &objects, &rt), all_chunks(&objects[1..2]));
}

#[test]
fn full_map_that_contradicts_the_promised_checksum_is_discarded() {
    let (rt, dir, objects) = (runtime(), TempDir::new().unwrap(), model());
    filled(dir.path(), &objects, &rt);
    let path = file(dir.path(), "w/1", "map");
    let mut map = fs::read(&path).unwrap();
    map[PROMISED] ^= 1;
    let body = map.len() - 8;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &map[..body]);
    map[body..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, map).unwrap();
    assert!(dir.path().join("clean").exists());
    assert_eq!(refetched(dir.path(), &objects, &rt), all_chunks(&objects[1..2]));
    assert_eq!(refetched(dir.path(), &objects, &rt), []);
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
        let why = format!("cannot mount a tmpfs: {mounted:?}");
        common::available("root", mounted.is_ok(), &why).then_some(SmallDisk(dir))
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
