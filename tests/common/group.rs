//! Stores of one model that are each other's peers, in memory; and an origin that counts.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cai::ciphertext::{Ciphertext, EntryId, Judgement};
use cai::gocryptfs::BlockJudge;
use cai::manifest::Manifest;
use cai::store::{
    CacheMode, ChunkIndex, ChunkKey, ChunkSource, FetchFuture, Fetched, Holder, Object, ObjectIndex,
    Patience, PeerFailed, Peers, ReceiveFuture, Received, Retry, Sender, Sharing, SourceError, Store,
    StoreOptions, Urgency,
};
use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::format::{keys, seal};

/// Chunk length: sixteen blocks, and no multiple of one.
pub const CHUNK: u64 = 64 << 10;

/// The objects of the model: what peers may not send, and two files of 20 and 10 chunks.
pub const CONF: usize = 0;
pub const LARGE: usize = 1;
pub const SMALL: usize = 2;

pub fn contents() -> Vec<Vec<u8>> {
    let plain = |len: usize, seed: u8| -> Vec<u8> { (0..len).map(|at| (at % 241) as u8 ^ seed).collect() };
    vec![b"{\"a conf\": 1}".to_vec(), seal(&plain(20 * 65_000, 1), 1), seal(&plain(10 * 65_000, 2), 2)]
}

pub fn objects() -> Vec<Object> {
    let paths = ["gocryptfs.conf", "large", "small"];
    let object = |(path, content): (&str, Vec<u8>)| Object {
        path: path.into(),
        len: content.len() as u64,
        etag: "\"1\"".into(),
        modified: SystemTime::UNIX_EPOCH,
    };
    paths.into_iter().zip(contents()).map(object).collect()
}

/// Chunks of the shared objects.
pub fn shared_chunks() -> u64 {
    objects()[1..].iter().map(|object| object.len.div_ceil(CHUNK)).sum()
}

/// The object store.
pub struct Origin {
    contents: Vec<Vec<u8>>,
    /// Whole chunks of shared objects that it delivered, by object and chunk.
    pub chunks: Mutex<BTreeMap<(String, u64), u32>>,
    pub down: AtomicBool,
    /// Microseconds before each answer.
    pub delay: AtomicU64,
    /// Whether chunks of shared objects are answered at all yet, and how many were asked for.
    pub open: watch::Sender<bool>,
    pub asked: AtomicU64,
    pub refused: AtomicU64,
    /// Everything that was delivered, by path.
    pub ranges: Mutex<Vec<(String, Range<u64>)>>,
    down_for: Mutex<HashSet<usize>>,
}

impl Origin {
    pub fn new() -> Arc<Self> {
        Arc::new(Origin {
            contents: contents(),
            chunks: Mutex::default(),
            down: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            open: watch::Sender::new(true),
            asked: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            ranges: Mutex::default(),
            down_for: Mutex::default(),
        })
    }

    /// How many whole chunks it delivered.
    pub fn delivered(&self) -> u64 {
        self.chunks.lock().unwrap().values().map(|count| u64::from(*count)).sum()
    }

    /// It serves this node again.
    pub fn admit(&self, node: usize) {
        self.down_for.lock().unwrap().remove(&node);
    }

    /// From now on it refuses this node.
    pub fn refuse(&self, node: usize) {
        self.down_for.lock().unwrap().insert(node);
    }
}

/// The origin as one node sees it.
struct Seen {
    origin: Arc<Origin>,
    node: usize,
}

impl ChunkSource for Seen {
    fn name(&self) -> &'static str {
        "origin"
    }

    fn fetch<'a>(&'a self, object: &'a Object, range: Range<u64>, _: &'a Urgency) -> FetchFuture<'a> {
        Box::pin(async move {
            let path = object.path.to_str().unwrap().to_owned();
            tokio::time::sleep(Duration::from_micros(self.origin.delay.load(Ordering::SeqCst))).await;
            let refused = self.origin.down_for.lock().unwrap().contains(&self.node);
            if refused || self.origin.down.load(Ordering::SeqCst) {
                self.origin.refused.fetch_add(1, Ordering::SeqCst);
                let detail = "down on cue".into();
                return Err(SourceError::Unavailable { path, detail, retry_after: None });
            }
            self.origin.ranges.lock().unwrap().push((path.clone(), range.clone()));
            let index = objects().iter().position(|other| other.path == object.path).unwrap();
            let content = &self.origin.contents[index];
            let whole = range.start.is_multiple_of(CHUNK)
                && (range.end.is_multiple_of(CHUNK) || range.end == object.len);
            if whole && index != CONF {
                self.origin.asked.fetch_add(1, Ordering::SeqCst);
                self.origin.open.subscribe().wait_for(|open| *open).await.unwrap();
                *self.origin.chunks.lock().unwrap().entry((path, range.start / CHUNK)).or_default() += 1;
            }
            let bytes = content[range.start as usize..range.end as usize].to_vec();
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, content);
            let frames =
                bytes.chunks(16 << 10).map(|frame| Ok(Bytes::copy_from_slice(frame))).collect::<Vec<_>>();
            Ok(Fetched { object_crc64: Some(crc), frames: stream::iter(frames).boxed() })
        })
    }
}

/// A store of the model, for node `number`.
pub fn open(
    number: usize,
    origin: &Arc<Origin>,
    chunk_len: u64,
    manifest: Option<Arc<Manifest>>,
) -> (Arc<Store>, TempDir) {
    let dir = TempDir::new().unwrap();
    (open_in(dir.path(), number, origin, chunk_len, manifest), dir)
}

/// The same, in the cache of an earlier one.
pub fn open_in(
    dir: &Path,
    number: usize,
    origin: &Arc<Origin>,
    chunk_len: u64,
    manifest: Option<Arc<Manifest>>,
) -> Arc<Store> {
    let options = StoreOptions {
        dir: dir.join("cache"),
        chunk_len,
        concurrency: 16,
        read_timeout: Duration::from_secs(20),
        retry: Retry {
            first: Duration::from_millis(5),
            limit: Duration::from_millis(300),
            ..Retry::default()
        },
        reserve_bytes: 0,
        cache: CacheMode::Full,
        cache_bytes: None,
    };
    let source = Arc::new(Seen { origin: origin.clone(), node: number });
    Store::open_checked(options, objects(), manifest, source, Handle::current()).unwrap()
}

/// What is shared: everything but the conf.
pub fn files(store: &Store) -> Vec<EntryId> {
    let files = store.entries().iter().zip(0..);
    let files = files.filter(|(entry, _)| entry.path.to_str() != Some("gocryptfs.conf"));
    files.map(|(_, id)| EntryId(id)).collect()
}

/// Let `store` take chunks from `peers`.
pub fn share(store: &Store, peers: Arc<dyn Peers>, patience: Patience) {
    let sharing = Sharing {
        peers,
        judge: Some(Arc::new(BlockJudge::new(Arc::new(keys())))),
        shared: files(store),
        patience,
    };
    store.share(sharing, &Handle::current());
}

/// Read, and check, `len` bytes.
pub fn read(store: &Store, path: &str, offset: u64, len: usize) {
    let index = objects().iter().position(|object| object.path.to_str() == Some(path)).unwrap();
    let mut read = vec![0; len];
    store.read_at(entry(store, path), offset, &mut read).unwrap();
    assert!(read == contents()[index][offset as usize..][..len], "{path} at {offset}");
}

/// Every byte, as a reader gets it.
pub fn check(store: &Store) {
    for (object, content) in objects().iter().zip(contents()) {
        read(store, object.path.to_str().unwrap(), 0, content.len());
    }
}

pub fn entry(store: &Store, path: &str) -> EntryId {
    let at = store.entries().iter().position(|entry| entry.path.to_str() == Some(path)).unwrap();
    EntryId(at as u32)
}

/// Bring everything.
pub async fn fill(store: &Store) {
    let filled = tokio::time::timeout(Duration::from_secs(30), store.fill(CancellationToken::new())).await;
    filled.expect("the fill hangs").expect("the fill fails");
}

/// Wait for `condition`, at most half a minute.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited 30 s for {what}"));
}

/// What a node does with a chunk it is asked for.
pub type Manner = dyn Fn(ChunkKey, Vec<u8>) -> Sent + Send + Sync;

/// What goes out.
pub enum Sent {
    Bytes(Vec<u8>),
    /// These, and then nothing for ever. Of none it is not told that they begin.
    Stall(Vec<u8>),
    Refused,
}

/// One node.
pub struct Node {
    pub number: usize,
    pub store: Arc<Store>,
    _dir: TempDir,
    board: Arc<Board>,
}

/// What a node knows of the others.
pub struct Board {
    number: usize,
    /// By chunk, the nodes that say that they have it.
    has: Mutex<BTreeMap<ChunkKey, HashSet<usize>>>,
    group: Arc<Group>,
    pub judged: Mutex<Vec<(usize, ChunkKey, Judgement)>>,
    distrusted: Mutex<HashSet<usize>>,
    pub asked: AtomicU64,
    unanswered: AtomicU64,
}

/// Asked, and nothing has come yet.
struct Unanswered<'a>(&'a AtomicU64);

impl<'a> Unanswered<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Unanswered(count)
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Member = (Arc<Store>, Arc<Board>);

/// All of them.
pub struct Group {
    pub size: usize,
    members: Mutex<BTreeMap<usize, Member>>,
    /// What a node does that is not honest.
    pub manners: Mutex<BTreeMap<usize, Arc<Manner>>>,
    /// Overrules who fetches a chunk first.
    pub owner: OnceLock<usize>,
}

impl Group {
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Group { size, members: Mutex::default(), manners: Mutex::default(), owner: OnceLock::new() })
    }

    pub fn behave(&self, node: usize, manner: impl Fn(ChunkKey, Vec<u8>) -> Sent + Send + Sync + 'static) {
        self.manners.lock().unwrap().insert(node, Arc::new(manner));
    }

    /// Start node `number` with this origin; it waits `turn` for chunks that fall to others.
    pub fn start(self: &Arc<Self>, number: usize, origin: &Arc<Origin>, turn: Duration) -> Node {
        let patience = Patience {
            answer: Duration::from_secs(10),
            pause: Duration::from_millis(500),
            chunk: Duration::from_secs(10),
            turn,
        };
        self.start_with(number, origin, patience, CHUNK, None)
    }

    pub fn start_with(
        self: &Arc<Self>,
        number: usize,
        origin: &Arc<Origin>,
        patience: Patience,
        chunk_len: u64,
        manifest: Option<Arc<Manifest>>,
    ) -> Node {
        let (store, dir) = open(number, origin, chunk_len, manifest);
        self.join(number, store, dir, patience)
    }

    /// Start node `number` with the cache of an earlier run.
    pub fn start_in(
        self: &Arc<Self>,
        dir: TempDir,
        number: usize,
        origin: &Arc<Origin>,
        patience: Patience,
    ) -> Node {
        let store = open_in(dir.path(), number, origin, CHUNK, None);
        self.join(number, store, dir, patience)
    }

    fn join(self: &Arc<Self>, number: usize, store: Arc<Store>, dir: TempDir, patience: Patience) -> Node {
        let board = Arc::new(Board {
            number,
            has: Mutex::default(),
            group: self.clone(),
            judged: Mutex::default(),
            distrusted: Mutex::default(),
            asked: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
        });
        let shared = store
            .entries()
            .iter()
            .zip(0..)
            .filter(|(entry, _)| entry.path.to_str() != Some("gocryptfs.conf"));
        let shared = shared.map(|(_, id)| EntryId(id)).collect();
        let sharing = Sharing {
            peers: board.clone(),
            judge: Some(Arc::new(BlockJudge::new(Arc::new(keys())))),
            shared,
            patience,
        };
        store.share(sharing, &Handle::current());
        self.members.lock().unwrap().insert(number, (store.clone(), board.clone()));
        tokio::spawn(tell(self.clone(), number, store.clone()));
        Node { number, store, _dir: dir, board }
    }

    /// The node is gone: nobody is told anything by it or asks it any more.
    pub fn leave(&self, number: usize) {
        let (_, _) = self.members.lock().unwrap().remove(&number).unwrap();
        for (_, board) in self.members.lock().unwrap().values() {
            board.has.lock().unwrap().values_mut().for_each(|nodes| nodes.retain(|node| node != &number));
        }
    }
}

/// Tell everybody what node `number` has, for ever.
async fn tell(group: Arc<Group>, number: usize, store: Arc<Store>) {
    loop {
        let mut have = Vec::new();
        for object in 0..store.objects() {
            let served = store.served(ObjectIndex(object));
            let keys = (0..).zip(served).filter(|(_, here)| *here);
            have.extend(
                keys.map(|(chunk, _)| ChunkKey { object: ObjectIndex(object), chunk: ChunkIndex(chunk) }),
            );
        }
        let others: Vec<_> = {
            let members = group.members.lock().unwrap();
            if !members.contains_key(&number) {
                return;
            }
            members.iter().filter(|(other, _)| **other != number).map(|(_, member)| member.clone()).collect()
        };
        for (other, board) in others {
            if board.distrusted.lock().unwrap().contains(&number) {
                continue;
            }
            let news: Vec<ChunkKey> = {
                let mut has = board.has.lock().unwrap();
                have.iter().copied().filter(|key| has.entry(*key).or_default().insert(number)).collect()
            };
            other.offered(news.into_iter());
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), store.changed()).await;
    }
}

impl Peers for Board {
    fn are_there(&self) -> bool {
        self.group.members.lock().unwrap().len() > 1
    }

    fn holder(&self, chunk: ChunkKey) -> Option<Holder> {
        let has = self.has.lock().unwrap();
        has.get(&chunk).filter(|nodes| !nodes.is_empty()).map(|_| Holder::Part)
    }

    fn rank(&self, chunk: ChunkKey) -> u32 {
        let size = self.group.size;
        let first = self.group.owner.get().copied();
        let first = first.unwrap_or((chunk.object.0 * 7 + chunk.chunk.0 as usize * 5) % size);
        ((self.number + size - first) % size) as u32
    }

    fn fetch<'a>(&'a self, chunk: ChunkKey, range: Range<u64>, _: &'a Urgency) -> ReceiveFuture<'a> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let _unanswered = Unanswered::new(&self.unanswered);
            let holder = {
                let has = self.has.lock().unwrap();
                let nodes = has.get(&chunk).into_iter().flatten();
                // Whoever owns it, or anybody.
                nodes.copied().min_by_key(|node| (self.number + node * 3 + chunk.chunk.0 as usize) % 5)
            };
            let holder = holder.ok_or_else(|| PeerFailed("nobody has it".into()))?;
            let member = self.group.members.lock().unwrap().get(&holder).map(|(store, _)| store.clone());
            let store = member.ok_or_else(|| PeerFailed("gone".into()))?;
            let bytes = tokio::task::spawn_blocking(move || store.read_chunk(chunk)).await.ok().flatten();
            let bytes = bytes.ok_or_else(|| PeerFailed("has it no more".into()))?;
            let start = (range.start - chunk.chunk.0 * CHUNK) as usize;
            let bytes = bytes[start..start + (range.end - range.start) as usize].to_vec();
            let manner = self.group.manners.lock().unwrap().get(&holder).cloned();
            let sent = manner.map_or(Sent::Bytes(bytes.clone()), |manner| manner(chunk, bytes));
            let (bytes, stalls) = match sent {
                Sent::Bytes(bytes) => (bytes, false),
                Sent::Stall(bytes) if bytes.is_empty() => return std::future::pending().await,
                Sent::Stall(bytes) => (bytes, true),
                Sent::Refused => return Err(PeerFailed("refused".into())),
            };
            let frames: Vec<_> =
                bytes.chunks(10_000).map(|frame| Ok(Bytes::copy_from_slice(frame))).collect();
            let end = if stalls { stream::pending().left_stream() } else { stream::empty().right_stream() };
            let frames = stream::iter(frames).chain(end).boxed();
            Ok(Received { frames, sender: Arc::new(Told { board: self.group.board(self.number), holder }) })
        })
    }
}

impl Group {
    fn board(&self, number: usize) -> Option<Arc<Board>> {
        self.members.lock().unwrap().get(&number).map(|(_, board)| board.clone())
    }
}

struct Told {
    board: Option<Arc<Board>>,
    holder: usize,
}

impl Sender for Told {
    fn judged(&self, chunk: ChunkKey, judgement: Judgement) {
        let Some(board) = &self.board else { return };
        board.judged.lock().unwrap().push((self.holder, chunk, judgement));
        if judgement == Judgement::Forged {
            // Such a peer is not asked again.
            board.distrusted.lock().unwrap().insert(self.holder);
            board
                .has
                .lock()
                .unwrap()
                .values_mut()
                .for_each(|nodes| nodes.retain(|node| node != &self.holder));
        }
    }
}

impl Node {
    /// Bring everything.
    pub async fn fill(&self) {
        fill(&self.store).await;
    }

    /// Every byte, as a reader gets it.
    pub fn check(&self) {
        check(&self.store);
    }

    /// Wait until the others have told of every chunk.
    pub async fn hears_of_all(&self) {
        self.hears_of(shared_chunks()).await;
    }

    pub async fn hears_of(&self, chunks: u64) {
        until("the others to tell of every chunk", || self.board.has.lock().unwrap().len() as u64 >= chunks)
            .await;
    }

    pub fn read(&self, path: &str, offset: u64, len: usize) {
        read(&self.store, path, offset, len);
    }

    /// Read a file chunk by chunk.
    pub fn read_in_order(&self, path: &str) {
        let len = objects().iter().find(|object| object.path.to_str() == Some(path)).unwrap().len;
        (0..len.div_ceil(CHUNK)).for_each(|chunk| self.read(path, chunk * CHUNK, 1));
    }

    pub fn bytes_of_peers(&self) -> u64 {
        let progress = self.store.progress();
        let progress = progress.borrow().clone();
        progress.bytes_by_source.iter().find(|(name, _)| *name == "peers").unwrap().1
    }

    pub fn judged(&self, what: Judgement) -> Vec<(usize, ChunkKey)> {
        let judged = self.board.judged.lock().unwrap();
        judged
            .iter()
            .filter(|(.., judgement)| *judgement == what)
            .map(|(node, key, _)| (*node, *key))
            .collect()
    }

    pub fn asked(&self) -> u64 {
        self.board.asked.load(Ordering::SeqCst)
    }

    pub fn unanswered(&self) -> u64 {
        self.board.unanswered.load(Ordering::SeqCst)
    }
}
