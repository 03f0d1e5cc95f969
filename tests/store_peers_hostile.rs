//! Peers that lie, send old or too much, or send what proves nothing: no wrong byte gets into a cache, and they are named.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cai::ciphertext::Judgement;
use cai::manifest::Manifest;
use cai::store::{ChunkKey, Patience};
use tempfile::TempDir;

#[path = "common/format.rs"]
mod format;
#[path = "common/group.rs"]
mod group;
#[path = "common/signed.rs"]
mod signed;
use format::seal;
use group::{CHUNK, Group, LARGE, Node, Origin, Sent, contents, objects, shared_chunks};

const NEVER: Duration = Duration::from_secs(600);

/// A node that has everything and behaves as told, and one that has nothing and has heard of it.
async fn pair(
    manner: impl Fn(ChunkKey, Vec<u8>) -> Sent + Send + Sync + 'static,
) -> (Arc<Origin>, Node, Node) {
    let (group, origin) = (Group::new(2), Origin::new());
    group.behave(0, manner);
    let liar = group.start(0, &origin, Duration::from_millis(20));
    liar.fill().await;
    let node = group.start(1, &origin, Duration::from_millis(20));
    node.hears_of_all().await;
    (origin, liar, node)
}

fn check(node: &Node) {
    tokio::task::block_in_place(|| node.check());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_bit_of_a_peer_is_found_named_and_fetched_from_the_origin() {
    let lies = Arc::new(AtomicUsize::new(0));
    let told = lies.clone();
    let (origin, _liar, node) = pair(move |key, mut bytes| {
        if told.fetch_add(1, Ordering::SeqCst) > 3 {
            let at = (key.chunk.0 as usize * 977) % bytes.len();
            bytes[at] ^= 0x40;
        }
        Sent::Bytes(bytes)
    })
    .await;
    let before = origin.delivered();
    node.fill().await;
    check(&node);
    let forged = node.judged(Judgement::Forged);
    assert!(!forged.is_empty() && forged.iter().all(|(node, _)| *node == 0), "{forged:?}");
    // What was in the air when the first lie was found is all that a liar costs.
    assert!(forged.len() <= 8, "{forged:?}");
    let good = node.judged(Judgement::Genuine).len() as u64;
    assert_eq!((origin.delivered() - before) + good, shared_chunks());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_elsewhere_that_open_there_are_forged_here() {
    let all = contents();
    let (_origin, _liar, node) = pair(move |key, bytes| {
        // The next chunk of the same file, or its first.
        let content = &all[key.object.0];
        let start = ((key.chunk.0 + 1) * CHUNK) as usize;
        let moved = content.get(start..start + bytes.len()).unwrap_or(&content[..bytes.len()]);
        Sent::Bytes(moved.to_vec())
    })
    .await;
    node.fill().await;
    check(&node);
    assert_eq!(node.judged(Judgement::Genuine), []);
    assert!(!node.judged(Judgement::Forged).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn zeros_prove_nothing_and_come_from_the_origin() {
    let (origin, _liar, node) = pair(|key, mut bytes| {
        if key.chunk.0 == 3 && key.object.0 == LARGE {
            // A whole sealed block: the format reads it as a hole.
            let into = (4128 - (3 * CHUNK as usize - 18) % 4128) % 4128;
            bytes[into..into + 4128].fill(0);
        }
        Sent::Bytes(bytes)
    })
    .await;
    let before = origin.delivered();
    node.fill().await;
    check(&node);
    let unprovable = node.judged(Judgement::Unprovable);
    assert_eq!(unprovable.len(), 1, "asked once: {unprovable:?}");
    assert_eq!((origin.delivered() - before, node.judged(Judgement::Forged)), (1, Vec::new()));
}

/// Another content under the same file id: every block of it opens.
fn older() -> Vec<u8> {
    let old = seal(&(0..20 * 65_000).map(|at| (at % 13) as u8).collect::<Vec<u8>>(), 1);
    assert_eq!(old.len() as u64, objects()[LARGE].len);
    old
}

#[tokio::test(flavor = "multi_thread")]
async fn older_state_of_a_file_does_not_fit_the_edges_of_its_chunks() {
    let old = older();
    let (_origin, _liar, node) = pair(move |key, bytes| {
        let start = (key.chunk.0 * CHUNK) as usize;
        Sent::Bytes(if key.object.0 == LARGE { old[start..start + bytes.len()].to_vec() } else { bytes })
    })
    .await;
    node.fill().await;
    check(&node);
    assert!(node.judged(Judgement::Genuine).iter().all(|(_, key)| key.object.0 != LARGE));
    assert!(node.judged(Judgement::Forged).len() <= 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn older_state_of_a_file_of_one_chunk_is_found_by_the_checksum_of_the_whole() {
    let (group, origin, old) = (Group::new(2), Origin::new(), older());
    group.behave(0, move |key, bytes| Sent::Bytes(if key.object.0 == LARGE { old.clone() } else { bytes }));
    let patience = Patience { turn: Duration::from_millis(20), answer: NEVER, pause: NEVER, chunk: NEVER };
    let liar = group.start_with(0, &origin, patience, 8 << 20, None);
    liar.fill().await;
    let node = group.start_with(1, &origin, patience, 8 << 20, None);
    node.hears_of(2).await;
    // The first fill may end with the news; the agent tries again.
    let token = tokio_util::sync::CancellationToken::new();
    while node.store.fill(token.clone()).await.is_err() {}
    check(&node);
    let stale = node.judged(Judgement::Genuine).iter().filter(|(_, key)| key.object.0 == LARGE).count();
    assert_eq!(stale, 1, "it did open, and is not asked of peers again");
    assert_eq!(node.judged(Judgement::Forged).len(), 1, "and who sent it is told in the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_and_too_little_are_refused() {
    let turn = Arc::new(AtomicUsize::new(0));
    let (_origin, _liar, node) = pair(move |_, mut bytes| {
        match turn.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => bytes.extend_from_slice(&[0; 100_000]),
            _ => bytes.truncate(CHUNK as usize / 2),
        }
        Sent::Bytes(bytes)
    })
    .await;
    node.fill().await;
    check(&node);
    assert_eq!(node.bytes_of_peers(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_left_is_checked_here_and_not_written_over_by_peers() {
    let (group, origin) = (Group::new(2), Origin::new());
    let dir = TempDir::new().unwrap();
    {
        let store = group::open_in(dir.path(), 1, &origin, CHUNK, None);
        group::fill(&store).await;
        // Without a close: nothing says that what is here is whole.
    }
    let before = origin.delivered();
    // Zeros for a block of each chunk, for whoever asks.
    group.behave(0, |_, mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8192].fill(0);
        Sent::Bytes(bytes)
    });
    let liar = group.start(0, &origin, Duration::from_millis(20));
    liar.fill().await;
    let delivered = origin.delivered() - before;
    let patience = Patience { turn: NEVER, ..Patience::default() };
    let node = group.start_in(dir, 1, &origin, patience);
    node.hears_of_all().await;
    node.fill().await;
    check(&node);
    assert_eq!((node.asked(), origin.delivered() - before), (0, delivered), "all of it was here");
}

/// A manifest of the model.
fn manifest() -> Arc<Manifest> {
    let (objects, contents) = (objects(), contents());
    signed::manifest(objects.iter().zip(&contents).map(|(object, content)| (&*object.path, &**content)))
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_finds_what_blocks_cannot_show() {
    let (group, origin) = (Group::new(2), Origin::new());
    let patience = Patience { turn: Duration::from_millis(20), ..Patience::default() };
    let asked = Arc::new(Mutex::new(0));
    let (old, count) = (older(), asked.clone());
    group.behave(0, move |key, bytes| {
        *count.lock().unwrap() += 1;
        Sent::Bytes(if key.object.0 == LARGE { old.clone() } else { bytes })
    });
    let liar = group.start_with(0, &origin, patience, 8 << 20, Some(manifest()));
    liar.fill().await;
    let node = group.start_with(1, &origin, Patience { turn: NEVER, ..patience }, 8 << 20, Some(manifest()));
    node.hears_of(2).await;
    node.fill().await;
    check(&node);
    assert!(*asked.lock().unwrap() > 0 && !node.judged(Judgement::Forged).is_empty());
    assert!(node.judged(Judgement::Genuine).iter().all(|(_, key)| key.object.0 != LARGE));
}
