//! Local ciphertext: sparse file + chunk map, fetch plan, [`ChunkSource`].
//!
//! Owns: the cache directory, and the decision what is fetched when, from which source, how often. Must not know: keys,
//! plaintext, what the objects mean, how a source gets its bytes.
//!
//! A chunk is *missing*, *unverified* (left by an unclean stop, or in doubt since; checked against its CRC-64 before its
//! next use) or *present*. A reader that misses creates a flight or joins the one there is; workers of the runtime bring it in:
//! source -> write, batch by batch -> manifest, where there is one -> mark in memory -> wake readers; the sidecar follows after
//! `fdatasync`. What a broken connection brought is kept, and only the rest asked for again. A read gives every byte it asked for
//! or an error; a chunk is never marked before all of it is written and checked.
//!
//! | file | holds |
//! |---|---|
//! | `layout`, `tree`, `plan`, `chunkmap`, `crc64`, `backoff`, `memory` | pure parts |
//! | `revisions` | which directory is which revision of the model |
//! | `disk` | the directory and its files |
//! | `state`, `flight`, `engine` | what changes, who waits, who works |
//! | `landing`, `landed` | a chunk whose bytes are arriving; a note that they have |
//! | `sharing`, `exchange`, `proof` | chunks of other nodes: whose they are to fetch, how one comes in, what shows that it is right |
//! | `doubt` | what happens when the disk is not what the marks say |
//! | `room`, `evict` | what stays when the disk cannot hold everything (`room` is pure) |
//! | `reader`, `fill`, `upkeep` | the three ways in: reads, background, sync and progress |
//!
//! Threads and locks: see `engine`. Tested in `tests/fetch_faults.rs`, `tests/store_resume.rs` and `tests/store_bounded.rs`.

mod backoff;
mod chunkmap;
pub(crate) mod crc64;
mod direct;
mod disk;
mod doubt;
mod engine;
mod error;
mod evict;
mod exchange;
mod fill;
mod flight;
mod landed;
mod landing;
mod layout;
mod memory;
mod options;
mod plan;
mod progress;
mod proof;
mod reader;
pub mod revisions;
mod room;
mod sharing;
mod source;
mod state;
mod tree;
mod upkeep;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

pub use backoff::Retry;
pub use error::StoreError;
pub use fill::Filled;
pub use layout::{ChunkIndex, ChunkKey, Layout, ObjectIndex, Piece};
pub use options::{CacheMode, StoreOptions};
pub use progress::{Coming, Problem, Progress};
pub use room::Keeping;
pub use sharing::{Holder, Patience, PeerFailed, Peers, ReceiveFuture, Received, Sender, Sharing};
pub use source::{AT_ONCE, ChunkSource, FetchFuture, Fetched, Object, SourceError, Urgency};

use self::chunkmap::ChunkMap;
use self::disk::CacheDir;
use self::engine::{Engine, Slot};
use self::landed::Records;
use self::state::Whole;
use self::tree::Tree;
use crate::ahead::ReadAhead;
use crate::ciphertext::EntryId;
use crate::manifest::Manifest;
use crate::task::Tasks;

/// How long workers get to end at [`Store::close`]; they end at their next await.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A model's ciphertext, local or on its way. Implements [`crate::ciphertext::Ciphertext`].
///
/// Dropping it without [`Store::close`] is an unclean stop: nothing is lost but the certainty that it is whole.
pub struct Store {
    engine: Arc<Engine>,
    tree: Tree,
    progress: watch::Receiver<Progress>,
    tasks: Mutex<Option<Tasks>>,
    handle: Handle,
    /// One fill at a time.
    fill_turn: tokio::sync::Mutex<()>,
    ahead: ReadAhead,
    keeping: Keeping,
}

impl Store {
    /// Open the cache of `objects` and start its workers on `handle`. Blocking: it reads every sidecar.
    ///
    /// # Errors
    /// `InUse`, `Io`, `NoSpace`, `UnsafePath`, `Conflict`, `TooMany`.
    pub fn open(
        options: StoreOptions,
        objects: Vec<Object>,
        source: Arc<dyn ChunkSource>,
        handle: Handle,
    ) -> Result<Arc<Self>, StoreError> {
        Store::open_checked(options, objects, None, source, handle)
    }

    /// The same, with a manifest that every chunk must be in before anybody sees it, wherever it came from: also what an
    /// earlier run left on the disk is checked with it before its first use. The chunk length must be the manifest's.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_checked(
        options: StoreOptions,
        objects: Vec<Object>,
        manifest: Option<Arc<Manifest>>,
        source: Arc<dyn ChunkSource>,
        handle: Handle,
    ) -> Result<Arc<Self>, StoreError> {
        Store::open_with(options, objects, manifest, source, handle, None)
    }

    /// The same, in another directory than `old`, which lives on: objects that both have, and that are whole there, are not
    /// fetched again. Each of their chunks is checked before its first use all the same.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_beside(
        old: &Store,
        options: StoreOptions,
        objects: Vec<Object>,
        manifest: Option<Arc<Manifest>>,
        source: Arc<dyn ChunkSource>,
        handle: Handle,
    ) -> Result<Arc<Self>, StoreError> {
        Store::open_with(options, objects, manifest, source, handle, Some(old))
    }

    fn open_with(
        options: StoreOptions,
        objects: Vec<Object>,
        manifest: Option<Arc<Manifest>>,
        source: Arc<dyn ChunkSource>,
        handle: Handle,
        old: Option<&Store>,
    ) -> Result<Arc<Self>, StoreError> {
        let tree = tree::build(&objects)?;
        let (cache, clean) = CacheDir::open(&options.dir)?;
        cache.remove_leftovers(&objects)?;
        let slots: Vec<Slot> =
            objects.into_iter().map(|object| Slot::new(object, &options, &cache)).collect();
        let landed = cache.landed(clean)?;
        let lent = old.filter(|_| options.cache != CacheMode::Nothing).map(|old| old.lend_to(&slots));
        let load = || load(&cache, &options, &slots, &landed, clean && manifest.is_none());
        let (mut maps, mut keeping) = load()?;
        if let Some(lent) = lent.filter(|lent| keeping != Keeping::Full && !lent.is_empty()) {
            // Who lets chunks go must not do so in files of others.
            lent.iter().try_for_each(|slot| slot.file.discard())?;
            (maps, keeping) = load()?;
        }
        let engine = Arc::new(Engine::new(options, slots, maps, manifest, keeping, cache, source));
        engine.is_only_noted(&landed);
        let (sender, progress) = watch::channel(engine.snapshot(&mut Default::default()));
        let tasks = upkeep::start(&engine, sender, &handle);
        let fill_turn = tokio::sync::Mutex::new(());
        let (tasks, ahead) = (Mutex::new(Some(tasks)), ReadAhead::default());
        Ok(Arc::new(Store { engine, tree, progress, tasks, handle, fill_turn, ahead, keeping }))
    }

    /// Let the slots of another store have the files of objects that are the same, and whole here; gives those that have one.
    fn lend_to<'s>(&self, slots: &'s [Slot]) -> Vec<&'s Slot> {
        let mut lent = Vec::new();
        // Of a cache that lets chunks go nothing can be lent.
        if self.keeping != Keeping::Full || !self.engine.lock().caching {
            return lent;
        }
        let ours: HashMap<&Path, (usize, &Slot)> = (0..)
            .zip(&self.engine.slots)
            .map(|(index, slot)| (slot.object.path.as_path(), (index, slot)))
            .collect();
        for theirs in slots {
            let Some((index, slot)) = ours.get(theirs.object.path.as_path()) else { continue };
            let same = (slot.object.len, &slot.object.etag) == (theirs.object.len, &theirs.object.etag);
            let map = self
                .engine
                .lock()
                .objects
                .get(*index)
                .filter(|object| object.whole == Whole::Done)
                .map(|object| object.map.clone());
            if let Some(map) = map.filter(|_| same && slot.layout.len > 0) {
                match slot.file.lend(&theirs.file, &map.encode(&theirs.object, theirs.layout)) {
                    Ok(()) => lent.push(theirs),
                    // Then it is fetched.
                    Err(error) => {
                        tracing::warn!(event = "store.not-linked", object = slot.path, error = ?error)
                    }
                }
            }
        }
        lent
    }

    /// Where its cache lies.
    pub fn directory(&self) -> &Path {
        self.engine.cache.path()
    }

    /// What the store is doing; updated a few times a second while something changes, and at once at the end.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The files will be read in this order; the next fill follows it.
    pub fn set_load_order(&self, order: &[EntryId]) {
        let objects = order.iter().filter_map(|id| Some(self.object_of(*id)?.0));
        self.engine.lock().plan.set_order(objects);
    }

    /// Stop the workers, wake all readers with an error, make everything durable and say that it is.
    ///
    /// # Errors
    /// `Io`: the cache is usable, but will be checked at the next start.
    pub async fn close(&self) -> Result<(), StoreError> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(tasks) = tasks else { return Ok(()) };
        let waiting = {
            let mut state = self.engine.lock();
            state.closed = true;
            std::mem::take(&mut state.flights)
        };
        tasks.stop(STOP_LIMIT).await;
        waiting.into_values().for_each(|flight| flight.land(Err(flight::Failure::Closed)));
        self.engine.landed.notify_waiters();
        let engine = self.engine.clone();
        let flushed = tokio::task::spawn_blocking(move || engine.finish()).await;
        flushed.unwrap_or(Err(StoreError::Closed))
    }
}

impl Slot {
    fn new(object: Object, options: &StoreOptions, cache: &CacheDir) -> Self {
        let layout = Layout::new(object.len, options.chunk_len);
        let file = cache.file(&object, layout);
        let identity = landed::identity(&object, layout);
        Slot { path: object.path.display().to_string(), object, identity, layout, file }
    }
}

/// Most bytes a model can have: no list entry, which may be a lie of any size, takes memory by its length. 64 TiB are a
/// hundred times the largest models.
const MOST_BYTES: u64 = 64 << 40;

/// The chunk maps of all objects, and how much of the model the disk is to keep.
fn load(
    cache: &CacheDir,
    options: &StoreOptions,
    slots: &[Slot],
    landed: &Records,
    clean: bool,
) -> Result<(Vec<ChunkMap>, Keeping), StoreError> {
    let (total, mut free) = cache.space()?;
    let refuse = |missing, free| StoreError::NoSpace {
        dir: options.dir.clone(),
        free,
        missing,
        reserve: options.reserve_bytes,
    };
    let whole = slots.iter().fold(0u64, |sum, slot| sum.saturating_add(slot.layout.len));
    let limit = options.cache_bytes.unwrap_or(u64::MAX);
    let must_fit = options.cache == CacheMode::Full;
    if whole > MOST_BYTES || (must_fit && whole > total) {
        return Err(refuse(whole, free));
    }
    let load = |slot: &Slot| {
        let landed = landed.get(&slot.identity).map(Vec::as_slice).unwrap_or_default();
        slot.file.load(&slot.object, landed, clean)
    };
    let maps = slots.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let missing =
        slots.iter().zip(&maps).map(|(slot, map)| slot.missing_bytes(map)).fold(0u64, u64::saturating_add);
    let mut room = free.saturating_sub(options.reserve_bytes);
    let fits = (missing == 0 || missing <= room) && whole <= limit;
    if !fits && !clean {
        // Halves of chunks that a kill left are not counted, and take room.
        slots.iter().zip(&maps).for_each(|(slot, map)| slot.give_back_missing(map));
        free = cache.space()?.1;
        room = free.saturating_sub(options.reserve_bytes);
    }
    let bounded = limit.min((whole - missing).saturating_add(room));
    let keeping = match options.cache {
        CacheMode::Auto | CacheMode::Full if fits => Keeping::Full,
        CacheMode::Auto | CacheMode::Bounded if bounded >= options.least_bounded() => {
            Keeping::Bounded(bounded)
        }
        CacheMode::Auto | CacheMode::Nothing => Keeping::Nothing,
        CacheMode::Full | CacheMode::Bounded => return Err(refuse(missing, free)),
    };
    Ok((maps, keeping))
}

impl Slot {
    /// Punch out whatever the data file has of chunks that are not here.
    fn give_back_missing(&self, map: &ChunkMap) {
        let missing = (0..).zip(&map.chunks).filter(|(_, chunk)| chunk.crc().is_none());
        for (index, _) in missing.filter(|_| map.chunks.len() > 1) {
            if let Err(error) = self.file.punch(&self.layout.range(layout::ChunkIndex(index))) {
                tracing::debug!(event = "store.punch", ?error, "giving back the place of missing chunks");
                return;
            }
        }
    }

    /// Bytes of the object that the cache has not got.
    pub(super) fn missing_bytes(&self, map: &ChunkMap) -> u64 {
        let missing = (0..).zip(&map.chunks).filter(|(_, chunk)| chunk.crc().is_none());
        missing.fold(0, |sum, (index, _)| sum.saturating_add(self.layout.len_of(layout::ChunkIndex(index))))
    }
}
