//! A store in front of a misbehaving source: every byte right or an error, and nothing fetched more often than needed.

#[path = "common/chunks.rs"]
#[allow(dead_code)]
mod chunks;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cai::ciphertext::{Ciphertext, EntryKind, ReadError};
use cai::error::{ErrorClass, Fault as _};
use cai::store::{Filled, Store, StoreError, StoreOptions};
use chunks::*;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// A store over `objects` whose source misbehaves as `cue` says.
struct Bench {
    store: Arc<Store>,
    source: Arc<Faulty<Memory>>,
    rt: Runtime,
    dir: TempDir,
}

fn bench(
    objects: &[cai::store::Object],
    concurrency: usize,
    cue: impl Fn(&str, u64, usize) -> Fault + Send + Sync + 'static,
) -> Bench {
    let (rt, dir) = (runtime(), TempDir::new().unwrap());
    let source = Faulty::new(Memory::new(objects), cue);
    let store = open(options(dir.path(), concurrency), objects, source.clone(), &rt);
    Bench { store, source, rt, dir }
}

impl Bench {
    fn fill(&self) -> Result<Filled, StoreError> {
        self.rt.block_on(self.store.fill(CancellationToken::new()))
    }
}

fn chunk(path: &str, chunk: u64) -> (String, u64) {
    (path.to_owned(), chunk)
}

#[test]
fn cold_read_fetches_exactly_the_chunks_it_touches() {
    let objects = [object("model/a", 10 * CHUNK + 5), object("model/b", 20)];
    let bench = bench(&objects, 4, |_, _, _| Fault::None);
    let range = 3 * CHUNK - 10..5 * CHUNK - 10;
    let expected = content("model/a", 10 * CHUNK + 5)[range.start as usize..range.end as usize].to_vec();
    assert_eq!(read(&bench.store, "model/a", range.clone()).unwrap(), expected);
    assert_eq!(read(&bench.store, "model/a", range).unwrap(), expected);
    assert_eq!(bench.source.fetched(), [chunk("model/a", 2), chunk("model/a", 3), chunk("model/a", 4)]);
    assert_eq!(read(&bench.store, "model/a", 10 * CHUNK..10 * CHUNK + 5).unwrap().len(), 5);
    assert_eq!(bench.source.fetched().len(), 4);
}

#[test]
fn sixteen_readers_of_one_cold_chunk_cause_one_fetch() {
    let bench = bench(&[object("a", CHUNK * 2)], 8, |_, _, _| Fault::Hold);
    let start = std::sync::Barrier::new(17);
    std::thread::scope(|scope| {
        let reader = || {
            start.wait();
            read(&bench.store, "a", 5..CHUNK).unwrap()
        };
        let readers: Vec<_> = (0..16).map(|_| scope.spawn(reader)).collect();
        start.wait();
        bench.source.wait_for(1);
        bench.source.release(1);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), &content("a", CHUNK * 2)[5..CHUNK as usize]);
        }
    });
    assert_eq!(bench.source.fetched(), [chunk("a", 0)]);
}

#[test]
fn passing_failures_are_retried_while_a_reader_waits() {
    let bench =
        bench(&[object("a", 100)], 1, |_, _, nth| if nth < 3 { Fault::Unavailable } else { Fault::None });
    assert_eq!(read(&bench.store, "a", 0..100).unwrap(), content("a", 100));
    assert_eq!(bench.source.fetched().len(), 4);
    eventually("3 retries and no problem left", || {
        let progress = bench.store.progress().borrow().clone();
        progress.retries == 3 && progress.problems.is_empty()
    });
}

/// Codes and classes of the problems there are now.
fn problems(bench: &Bench) -> Vec<(&'static str, ErrorClass)> {
    bench.store.progress().borrow().problems.iter().map(|problem| (problem.code, problem.class)).collect()
}

#[test]
fn unavailable_object_is_a_problem_from_the_fourth_failure_until_it_comes() {
    for (failures, expected) in [(3, vec![]), (4, vec![("store.unavailable", ErrorClass::Transient)])] {
        let cue = move |_: &str, _, nth| if nth < failures { Fault::Unavailable } else { Fault::Hold };
        let bench = bench(&[object("a", 100)], 1, cue);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&bench.store, "a", 0..100).unwrap());
            bench.source.wait_for(failures + 1);
            eventually("retries counted", || bench.store.progress().borrow().retries == failures as u64);
            assert_eq!(problems(&bench), expected);
            bench.source.release(1);
            assert_eq!(reader.join().unwrap(), content("a", 100));
        });
        eventually("no problem left", || problems(&bench).is_empty());
    }
}

#[test]
fn refusal_is_a_problem_until_the_object_comes() {
    let bench = bench(&[object("a", 100)], 1, |_, _, nth| if nth == 0 { Fault::Denied } else { Fault::None });
    read(&bench.store, "a", 0..100).unwrap_err();
    eventually("reported", || problems(&bench) == [("store.denied", ErrorClass::Denied)]);
    assert_eq!(read(&bench.store, "a", 0..100).unwrap(), content("a", 100));
    eventually("no problem left", || problems(&bench).is_empty());
}

#[test]
fn delivery_of_a_wrong_length_is_never_served() {
    let faults = [Fault::Short, Fault::Long, Fault::None];
    let bench = bench(&[object("a", 2 * CHUNK)], 1, move |_, _, nth| faults[nth]);
    assert_eq!(read(&bench.store, "a", 0..2 * CHUNK).unwrap(), content("a", 2 * CHUNK));
    let expected = [0, 0, 0, 1, 1, 1].map(|number| chunk("a", number));
    assert_eq!(bench.source.fetched(), expected);
}

#[test]
fn read_past_its_deadline_is_unavailable_and_its_fetch_is_joined_later() {
    let (rt, dir) = (runtime(), TempDir::new().unwrap());
    let objects = [object("a", 100)];
    let source = Faulty::new(Memory::new(&objects), |_, _, _| Fault::Hold);
    let mut options = options(dir.path(), 2);
    options.read_timeout = Duration::from_millis(60);
    let store = open(options, &objects, source.clone(), &rt);
    let started = Instant::now();
    let error = read(&store, "a", 10..20).unwrap_err();
    assert!(
        matches!(&error, ReadError::Unavailable { path, offset: 10, waited_secs: 0 } if path == "a"),
        "{error}"
    );
    assert!(started.elapsed() >= Duration::from_millis(60));
    source.release(1);
    eventually("served", || read(&store, "a", 10..20).is_ok_and(|bytes| bytes == content("a", 100)[10..20]));
    assert_eq!(source.fetched().len(), 1);
}

#[test]
fn changed_or_deleted_object_fails_at_once_and_alone() {
    let objects = [object("changed", 3 * CHUNK), object("gone", 10), object("good", 10)];
    let cue = |path: &str, number: u64, _| match (path, number) {
        ("changed", 1) => Fault::Changed,
        ("gone", _) => Fault::Gone,
        _ => Fault::None,
    };
    let bench = bench(&objects, 2, cue);
    assert!(read(&bench.store, "changed", 0..CHUNK).is_ok());
    for _ in 0..3 {
        let changed = read(&bench.store, "changed", CHUNK..CHUNK + 1).unwrap_err();
        assert!(matches!(&changed, ReadError::Changed { path } if path == "changed"), "{changed}");
        let gone = read(&bench.store, "gone", 0..1).unwrap_err();
        assert!(matches!(&gone, ReadError::Gone { path } if path == "gone"), "{gone}");
    }
    // Not even what is here already: generations are never mixed.
    assert!(matches!(read(&bench.store, "changed", 0..1), Err(ReadError::Changed { .. })));
    assert_eq!(read(&bench.store, "good", 0..10).unwrap(), content("good", 10));
    assert_eq!(
        bench.source.fetched_sorted(),
        [chunk("changed", 0), chunk("changed", 1), chunk("gone", 0), chunk("good", 0)]
    );
    eventually("both reported", || {
        let codes: Vec<_> =
            bench.store.progress().borrow().problems.iter().map(|problem| problem.code).collect();
        codes == ["store.object-changed", "store.object-gone"]
    });
}

#[test]
fn refused_access_is_not_retried() {
    let bench = bench(&[object("a", 10)], 1, |_, _, _| Fault::Denied);
    let started = Instant::now();
    let error = read(&bench.store, "a", 0..10).unwrap_err();
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error}");
    assert!(started.elapsed() < PATIENCE / 2);
    assert_eq!(bench.source.fetched().len(), 1);
}

#[test]
fn fill_fetches_everything_once_small_objects_first() {
    let objects = [object("big", 3 * CHUNK), object("d/small", 5), object("empty", 0), object("one", CHUNK)];
    let bench = bench(&objects, 1, |_, _, _| Fault::None);
    assert_eq!(bench.fill().unwrap(), Filled::Complete);
    let expected =
        [("d/small", 0), ("one", 0), ("big", 0), ("big", 1), ("big", 2)].map(|(path, at)| chunk(path, at));
    assert_eq!(bench.source.fetched(), expected);
    assert_content(&bench.store, &objects);
    assert_eq!(bench.source.fetched().len(), 5);
    eventually("complete", || {
        let progress = bench.store.progress().borrow().clone();
        progress.bytes_done == 4 * CHUNK + 5
            && progress.bytes_total == progress.bytes_done
            && progress.bytes_by_source == [("memory", progress.bytes_done)]
            && (progress.objects_done, progress.objects_total, progress.in_flight) == (4, 4, 0)
            && progress.bytes_from_cache == 0
            && progress.caching
    });
}

#[test]
fn opened_object_is_filled_first() {
    let objects = [object("a", 3 * CHUNK), object("b", 3 * CHUNK)];
    let bench = bench(&objects, 1, |_, _, _| Fault::None);
    bench.store.will_need(id(&bench.store, "b"));
    assert_eq!(bench.fill().unwrap(), Filled::Complete);
    let expected =
        [("b", 0), ("a", 0), ("b", 1), ("b", 2), ("a", 1), ("a", 2)].map(|(path, at)| chunk(path, at));
    assert_eq!(bench.source.fetched(), expected);
}

#[test]
fn reader_overtakes_a_saturating_fill_and_joins_its_fetches() {
    let objects = [object("a", 8 * CHUNK), object("b", CHUNK)];
    // Two workers, one of them for readers only; the fill's worker is stuck in b, then in the chunks of a.
    let bench = bench(
        &objects,
        2,
        |path, number, _| if (path, number) == ("a", 7) { Fault::None } else { Fault::Hold },
    );
    let token = CancellationToken::new();
    let (store, fill_token) = (bench.store.clone(), token.clone());
    let fill = bench.rt.spawn(async move { store.fill(fill_token).await });
    bench.source.wait_for(1);
    assert_eq!(read(&bench.store, "a", 7 * CHUNK..8 * CHUNK).unwrap().len(), CHUNK as usize);
    assert_eq!(bench.source.fetched(), [chunk("b", 0), chunk("a", 7)]);
    let (store, (sender, receiver)) = (bench.store.clone(), mpsc::channel());
    let reader = std::thread::spawn(move || sender.send(read(&store, "b", 0..CHUNK)).unwrap());
    bench.source.release(8);
    assert_eq!(receiver.recv_timeout(PATIENCE).unwrap().unwrap(), content("b", CHUNK));
    reader.join().unwrap();
    assert_eq!(bench.rt.block_on(fill).unwrap().unwrap(), Filled::Complete);
    assert_eq!(bench.source.fetched_sorted(), all_chunks(&objects));
    drop(token);
}

#[test]
fn chunk_around_which_somebody_reads_comes_next_and_is_not_waited_for() {
    // As large as chunks are that are worth reading past.
    let large = 2048 * CHUNK;
    let objects = [object("a", 5 * large)];
    let (rt, dir) = (runtime(), TempDir::new().unwrap());
    let cue = |_: &str, number: u64, _| if number.is_multiple_of(2048) { Fault::Hold } else { Fault::None };
    let source = Faulty::new(Memory::new(&objects), cue);
    let options = StoreOptions { chunk_len: large, ..options(dir.path(), 2) };
    let store = open(options, &objects, source.clone(), &rt);
    let filled = store.clone();
    let fill = rt.spawn(async move { filled.fill(CancellationToken::new()).await });
    source.wait_for(1);
    let all = content("a", 5 * large);
    // Far from each other, in the fourth of five.
    for at in [3 * large + CHUNK, 3 * large + 1024 * CHUNK, 3 * large + CHUNK] {
        let range = at..at + 8 * CHUNK;
        assert_eq!(read(&store, "a", range.clone()).unwrap(), all[range.start as usize..range.end as usize]);
    }
    source.release(5);
    assert_eq!(rt.block_on(fill).unwrap().unwrap(), Filled::Complete);
    let fetched = [0, 3 * 2048 + 1, 3 * 2048 + 1024, 3 * 2048 + 1, 3 * 2048, 2048, 2 * 2048, 4 * 2048];
    assert_eq!(source.fetched(), fetched.map(|number| chunk("a", number)));
}

#[test]
fn chunks_that_arrive_in_any_order_make_the_object() {
    let objects = [object("a", 16 * CHUNK + 100)];
    let bench = bench(&objects, 8, |_, number, _| if number % 2 == 0 { Fault::Hold } else { Fault::None });
    let store = bench.store.clone();
    let fill = bench.rt.spawn(async move { store.fill(CancellationToken::new()).await });
    for count in 1..=17 {
        bench.source.wait_for(count);
        bench.source.release(1);
    }
    assert_eq!(bench.rt.block_on(fill).unwrap().unwrap(), Filled::Complete);
    assert_content(&bench.store, &objects);
    assert_eq!(bench.source.fetched_sorted(), all_chunks(&objects));
}

#[test]
fn object_with_a_wrong_byte_is_discarded_and_fetched_once_more() {
    let objects = [object("a", 4 * CHUNK), object("b", 10)];
    let cue = |path: &str, number, nth| {
        if (path, number, nth) == ("a", 2, 0) { Fault::WrongByte } else { Fault::None }
    };
    let bench = bench(&objects, 1, cue);
    assert_eq!(bench.fill().unwrap(), Filled::Complete);
    let mut expected = all_chunks(&objects);
    expected.extend(all_chunks(&objects[..1]));
    expected.sort();
    assert_eq!(bench.source.fetched_sorted(), expected);
    assert_content(&bench.store, &objects);
}

#[test]
fn object_that_never_has_the_promised_checksum_is_corrupt() {
    let objects = [object("a", 3 * CHUNK), object("b", 10)];
    let bench = bench(&objects, 1, |path, _, _| if path == "a" { Fault::WrongCrc } else { Fault::None });
    let error = bench.fill().unwrap_err();
    let StoreError::Incomplete { objects: 1, path, source } = &error else { panic!("{error}") };
    assert_eq!(path, "a");
    assert!(matches!(&**source, StoreError::ObjectCorrupt { path } if path == "a"), "{source}");
    assert_eq!(error.class(), ErrorClass::Corrupt);
    assert_eq!(bench.source.fetched().iter().filter(|(path, _)| path == "a").count(), 6);
    let read_error = read(&bench.store, "a", 0..1).unwrap_err();
    let ReadError::Io { source, .. } = &read_error else { panic!("{read_error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::InvalidData);
    assert_eq!(read(&bench.store, "b", 0..10).unwrap(), content("b", 10));
    eventually("reported", || {
        bench.store.progress().borrow().problems.iter().any(|problem| problem.code == "store.object-corrupt")
    });
}

#[test]
fn object_without_a_promised_checksum_is_complete() {
    let bench = bench(&[object("a", 3 * CHUNK)], 1, |_, _, _| Fault::NoCrc);
    assert_eq!(bench.fill().unwrap(), Filled::Complete);
    assert_eq!(bench.source.fetched().len(), 3);
}

#[test]
fn fill_passes_over_what_fails_and_takes_it_up_again() {
    let objects = [object("bad", 5 * CHUNK), object("good", 3 * CHUNK)];
    let bench = bench(
        &objects,
        1,
        |path, _, nth| if path == "bad" && nth == 0 { Fault::Denied } else { Fault::None },
    );
    let error = bench.fill().unwrap_err();
    let StoreError::Incomplete { objects: 1, path, source } = &error else { panic!("{error}") };
    assert_eq!((path.as_str(), source.code(), error.class()), ("bad", "store.denied", ErrorClass::Denied));
    // One refusal is enough to leave the other chunks alone.
    assert_eq!(
        bench.source.fetched(),
        [("bad", 0), ("good", 0), ("good", 1), ("good", 2)].map(|(path, at)| chunk(path, at))
    );
    bench.fill().unwrap_err();
    assert_eq!(bench.source.fetched().len(), 6, "chunk 0 came, chunk 1 was refused");
    (2..5).for_each(|_| drop(bench.fill().unwrap_err()));
    assert_eq!(bench.fill().unwrap(), Filled::Complete);
    assert_content(&bench.store, &objects);
}

#[test]
fn fill_that_waits_for_its_last_chunk_rests() {
    // Everything runs on this thread, so that its processor time is the store's.
    let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (dir, objects) = (TempDir::new().unwrap(), [object("a", 3 * CHUNK)]);
    let source = Faulty::new(
        Memory::new(&objects),
        |_, number, _| if number == 1 { Fault::Hold } else { Fault::None },
    );
    let store = open(options(dir.path(), 8), &objects, source.clone(), &rt);
    let used = || getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let busy =
        |usage: Usage| (usage.user_time().num_milliseconds() + usage.system_time().num_milliseconds()) as u64;
    let before = busy(used());
    let waited = Duration::from_millis(500);
    rt.block_on(async { tokio::time::timeout(waited, store.fill(CancellationToken::new())).await })
        .unwrap_err();
    let spent = busy(used()) - before;
    assert!(spent < 150, "{spent} ms of processor time in {waited:?} of waiting");
    source.release(1);
    assert_eq!(rt.block_on(store.fill(CancellationToken::new())).unwrap(), Filled::Complete);
    assert_eq!(source.fetched_sorted(), all_chunks(&objects));
}

#[test]
fn cancelled_fill_ends_and_leaves_readers_alone() {
    let objects = [object("a", 4 * CHUNK)];
    let bench = bench(&objects, 1, |_, _, _| Fault::Hold);
    let token = CancellationToken::new();
    let (store, fill_token) = (bench.store.clone(), token.clone());
    let fill = bench.rt.spawn(async move { store.fill(fill_token).await });
    bench.source.wait_for(1);
    token.cancel();
    assert_eq!(bench.rt.block_on(fill).unwrap().unwrap(), Filled::Cancelled);
    bench.source.release(2);
    assert_eq!(read(&bench.store, "a", 3 * CHUNK..4 * CHUNK).unwrap().len(), CHUNK as usize);
    assert_eq!(bench.source.fetched(), [chunk("a", 0), chunk("a", 3)]);
}

#[test]
fn fetch_entries_brings_whole_files_and_nothing_else() {
    let objects = [object("conf", 10), object("d/iv", 3 * CHUNK), object("d/weights", 9 * CHUNK)];
    let bench = bench(&objects, 4, |_, _, nth| if nth == 0 { Fault::Unavailable } else { Fault::None });
    let ids = ["conf", "d", "d/iv"].map(|path| id(&bench.store, path));
    assert_eq!(bench.store.entries()[1].kind, EntryKind::Directory);
    bench.rt.block_on(bench.store.fetch_entries(&ids)).unwrap();
    let expected = [
        ("conf", 0),
        ("conf", 0),
        ("d/iv", 0),
        ("d/iv", 0),
        ("d/iv", 1),
        ("d/iv", 1),
        ("d/iv", 2),
        ("d/iv", 2),
    ];
    assert_eq!(bench.source.fetched_sorted(), expected.map(|(path, at)| chunk(path, at)));
}

#[test]
fn fetch_entries_gives_up_after_the_retry_limit() {
    let bench = bench(&[object("conf", 10)], 1, |_, _, _| Fault::Unavailable);
    let started = Instant::now();
    let error = bench.rt.block_on(bench.store.fetch_entries(&[id(&bench.store, "conf")])).unwrap_err();
    assert!(matches!(&error, StoreError::Fetch { path, .. } if path == "conf"), "{error}");
    assert_eq!((error.class(), error.code()), (ErrorClass::Transient, "store.unavailable"));
    assert!(started.elapsed() >= Duration::from_millis(100) && bench.source.fetched().len() > 5);
}

#[test]
fn closing_wakes_every_reader_with_an_error() {
    let bench = bench(&[object("a", 10)], 2, |_, _, _| Fault::Hold);
    let (store, (sender, receiver)) = (bench.store.clone(), mpsc::channel());
    let reader = std::thread::spawn(move || sender.send(read(&store, "a", 0..10)).unwrap());
    bench.source.wait_for(1);
    bench.rt.block_on(bench.store.close()).unwrap();
    let error = receiver.recv_timeout(PATIENCE / 2).unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Unavailable { .. }), "{error}");
    reader.join().unwrap();
    assert!(matches!(read(&bench.store, "a", 0..10), Err(ReadError::Unavailable { .. })));
    assert!(matches!(bench.fill(), Err(StoreError::Closed)));
    bench.rt.block_on(bench.store.close()).unwrap();
}

#[test]
fn read_outside_of_a_file_is_out_of_range() {
    let bench = bench(&[object("d/a", 10)], 1, |_, _, _| Fault::None);
    for (path, range) in [("d/a", 0..11), ("d/a", 11..11), ("d", 0..1)] {
        let error = read(&bench.store, path, range.clone()).unwrap_err();
        assert!(matches!(error, ReadError::OutOfRange { .. }), "{path} {range:?}: {error}");
    }
    assert!(read(&bench.store, "d/a", 10..10).unwrap().is_empty());
    assert!(bench.source.fetched().is_empty());
}

#[test]
fn listed_length_without_bounds_is_refused_before_it_costs_memory() {
    let bench = bench(&[], 1, |_, _, _| Fault::None);
    assert_eq!(bench.fill().unwrap(), Filled::Complete);
    let dir = bench.dir.path().join("other");
    let objects = vec![object("a", u64::MAX), object("b", u64::MAX)];
    let error = Store::open(options(&dir, 1), objects, bench.source.clone(), bench.rt.handle().clone())
        .err()
        .unwrap();
    assert!(matches!(error, StoreError::NoSpace { missing: u64::MAX, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Config);
}
