//! A chunk that arrives in pieces: what a broken connection brought is kept, and what became doubtful meanwhile is not.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cai::ciphertext::{Ciphertext, EntryId};
use cai::manifest::{CHUNK_LEN, Manifest};
use cai::store::{
    CacheMode, ChunkSource, FetchFuture, Fetched, Object, Retry, SourceError, Store, StoreOptions, Urgency,
};
use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use tokio::runtime::Runtime;

#[path = "common/signed.rs"]
mod signed;

const MIB: u64 = 1 << 20;
/// One chunk and a bit.
const LEN: u64 = CHUNK_LEN + 4_321;

fn content() -> Vec<u8> {
    (0..LEN).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect()
}

/// What a fetch does with its range.
enum Act {
    /// Break the connection after so many bytes.
    Cut(u64),
    /// The same, and by then the cache's files have been deleted.
    CutAndLose(u64),
    /// Flip a byte, and break the connection after so many.
    FlipAndCut(u64),
    /// Break the connection after everything.
    BreakAtTheEnd,
    /// Deliver everything.
    Whole,
}

struct Source {
    acts: Mutex<VecDeque<Act>>,
    asked: Mutex<Vec<(Range<u64>, bool)>>,
    cache: PathBuf,
}

impl Source {
    fn new(cache: &Path, acts: impl IntoIterator<Item = Act>) -> Arc<Self> {
        let (acts, asked) = (Mutex::new(acts.into_iter().collect()), Mutex::default());
        Arc::new(Source { acts, asked, cache: cache.to_owned() })
    }

    fn asked(&self) -> Vec<Range<u64>> {
        self.asked.lock().unwrap().iter().map(|(range, _)| range.clone()).collect()
    }
}

impl ChunkSource for Source {
    fn name(&self) -> &'static str {
        "script"
    }

    fn fetch<'a>(&'a self, _: &'a Object, range: Range<u64>, urgency: &'a Urgency) -> FetchFuture<'a> {
        Box::pin(async move {
            self.asked.lock().unwrap().push((range.clone(), urgency.is_raised()));
            let whole = content();
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &whole);
            let mut bytes = whole[range.start as usize..range.end as usize].to_vec();
            let act = self.acts.lock().unwrap().pop_front().unwrap_or(Act::Whole);
            if let Act::FlipAndCut(_) = act {
                bytes[100] ^= 1;
            }
            let (len, lose) = match act {
                Act::Cut(len) | Act::FlipAndCut(len) => (len, false),
                Act::CutAndLose(len) => (len, true),
                Act::Whole | Act::BreakAtTheEnd => (range.end - range.start, false),
            };
            let cut = (len < range.end - range.start || matches!(act, Act::BreakAtTheEnd)).then(|| {
                let (path, detail) = ("weights".into(), "cut on cue".into());
                Err(SourceError::Unavailable { path, detail, retry_after: None })
            });
            let frames: Vec<_> = bytes[..len as usize]
                .chunks(100_000)
                .map(|frame| Ok(Bytes::copy_from_slice(frame)))
                .collect();
            let end = stream::iter(cut).inspect(move |_| {
                if lose {
                    let files = std::fs::read_dir(&self.cache).unwrap().map(|entry| entry.unwrap().path());
                    let data = files.filter(|path| path.extension().is_some_and(|kind| kind == "data"));
                    data.for_each(|path| std::fs::remove_file(path).unwrap());
                }
            });
            Ok(Fetched { object_crc64: Some(crc), frames: stream::iter(frames).chain(end).boxed() })
        })
    }
}

fn manifest() -> Arc<Manifest> {
    signed::manifest([(Path::new("weights"), &*content())])
}

struct Bench {
    rt: Runtime,
    store: Arc<Store>,
    source: Arc<Source>,
    _dir: TempDir,
}

fn bench(cache: CacheMode, acts: impl IntoIterator<Item = Act>) -> Bench {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = TempDir::new().unwrap();
    let options = StoreOptions {
        dir: dir.path().to_owned(),
        chunk_len: CHUNK_LEN,
        concurrency: 2,
        read_timeout: Duration::from_secs(60),
        // A minute's pauses for whoever brings nothing.
        retry: Retry { first: Duration::from_millis(1), ..Retry::default() },
        reserve_bytes: 0,
        cache,
        cache_bytes: None,
    };
    let modified = SystemTime::UNIX_EPOCH;
    let object = Object { path: "weights".into(), len: LEN, etag: "\"1\"".into(), modified };
    let source = Source::new(dir.path(), acts);
    let handle = rt.handle().clone();
    let store = Store::open_checked(options, vec![object], Some(manifest()), source.clone(), handle).unwrap();
    Bench { rt, store, source, _dir: dir }
}

impl Bench {
    fn assert_reads(&self, range: Range<u64>) {
        let mut buffer = vec![0; (range.end - range.start) as usize];
        self.store.read_at(EntryId(0), range.start, &mut buffer).unwrap();
        assert!(buffer == content()[range.start as usize..range.end as usize]);
    }

    fn close(self) {
        self.rt.block_on(self.store.close()).unwrap();
    }
}

#[test]
fn broken_connections_cost_only_what_they_did_not_bring() {
    for cache in [CacheMode::Full, CacheMode::Nothing] {
        let bench = bench(cache, [Act::Cut(3 * MIB + 7), Act::Cut(0), Act::Cut(10), Act::Whole]);
        bench.assert_reads(5..CHUNK_LEN);
        let from = |start| start..CHUNK_LEN;
        let expected = [from(0), from(3 * MIB + 7), from(3 * MIB + 7), from(3 * MIB + 17)];
        assert_eq!(bench.source.asked(), expected, "{cache:?}");
        let mut progress = bench.store.progress();
        let counted = progress.wait_for(|progress| progress.retries == 3);
        bench.rt.block_on(async {
            tokio::time::timeout(Duration::from_secs(20), counted).await.unwrap().unwrap()
        });
        bench.close();
    }
}

#[test]
fn nothing_is_asked_for_where_nothing_is_missing() {
    let bench = bench(CacheMode::Full, [Act::Cut(9), Act::BreakAtTheEnd]);
    bench.assert_reads(0..CHUNK_LEN);
    assert_eq!(bench.source.asked(), [0..CHUNK_LEN, 9..CHUNK_LEN]);
    bench.close();
}

#[test]
fn damage_in_what_was_kept_is_found_at_the_end_and_all_fetched_again() {
    let bench = bench(CacheMode::Full, [Act::FlipAndCut(2 * MIB), Act::Whole, Act::Whole]);
    bench.assert_reads(0..CHUNK_LEN);
    assert_eq!(bench.source.asked(), [0..CHUNK_LEN, 2 * MIB..CHUNK_LEN, 0..CHUNK_LEN]);
    bench.close();
}

#[test]
fn chunk_whose_first_half_went_with_its_file_is_fetched_again() {
    let bench = bench(CacheMode::Full, [Act::CutAndLose(2 * MIB), Act::Whole, Act::Whole]);
    bench.assert_reads(0..CHUNK_LEN);
    assert_eq!(bench.source.asked(), [0..CHUNK_LEN, 2 * MIB..CHUNK_LEN, 0..CHUNK_LEN]);
    bench.close();
}

#[test]
fn source_is_told_who_waits() {
    let bench = bench(CacheMode::Full, []);
    bench.assert_reads(0..10);
    let filled = bench.store.fill(tokio_util::sync::CancellationToken::new());
    bench.rt.block_on(filled).unwrap();
    assert_eq!(*bench.source.asked.lock().unwrap(), [(0..CHUNK_LEN, true), (CHUNK_LEN..LEN, false)]);
    bench.close();
}
