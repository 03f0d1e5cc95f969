//! Who reads here and there gets what it asks for without the rest of the chunk: from the origin or a peer, right in any case.
// One range is what is meant: what was fetched, in order.
#![allow(clippy::single_range_in_vec_init)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cai::ciphertext::Judgement;
use cai::manifest::Manifest;
use cai::store::{ChunkKey, Patience};
use tokio_util::sync::CancellationToken;

#[path = "common/format.rs"]
mod format;
#[path = "common/group.rs"]
mod group;
#[path = "common/signed.rs"]
mod signed;
use group::{Group, Node, Origin, Sent, contents, objects};

/// Chunks so large that a few blocks are much less: "large" has one of 1.3 MB.
const CHUNK_LEN: u64 = 8 << 20;
/// The 10 blocks from the 20th on, behind the file's header.
const BLOCKS: Range<u64> = 18 + 20 * 4128..18 + 30 * 4128;
/// Others, far behind.
const OTHERS: Range<u64> = 18 + 200 * 4128..18 + 210 * 4128;

const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(10),
    pause: Duration::from_millis(300),
    chunk: Duration::from_secs(10),
    turn: Duration::from_secs(600),
};

fn read(node: &Node, range: Range<u64>) {
    tokio::task::block_in_place(|| node.read("large", range.start, (range.end - range.start) as usize));
}

/// What left the origin of "large" since this was last asked.
fn delivered(origin: &Origin) -> Vec<Range<u64>> {
    let taken = std::mem::take(&mut *origin.ranges.lock().unwrap());
    taken.into_iter().filter(|(path, _)| path == "large").map(|(_, range)| range).collect()
}

fn whole() -> Range<u64> {
    0..objects()[group::LARGE].len
}

fn alone(manifest: Option<Arc<Manifest>>) -> (Arc<Origin>, Node) {
    let (group, origin) = (Group::new(1), Origin::new());
    let node = group.start_with(0, &origin, PATIENCE, CHUNK_LEN, manifest);
    (origin, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn first_read_fetches_what_it_asks_for_and_the_second_the_chunk() {
    let (origin, node) = alone(None);
    read(&node, BLOCKS);
    assert_eq!(delivered(&origin), [BLOCKS]);
    read(&node, OTHERS);
    assert_eq!(delivered(&origin), [whole()]);
    read(&node, BLOCKS);
    assert_eq!(delivered(&origin), [], "it is here");
}

#[tokio::test(flavor = "multi_thread")]
async fn header_that_two_ask_for_is_nobodys_first_read() {
    let (origin, node) = alone(None);
    for range in [0..18, 0..18, OTHERS] {
        read(&node, range);
    }
    assert_eq!(delivered(&origin), [0..18, 0..18, OTHERS]);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_chunk_comes_with_the_fill_no_read_waits_for_it() {
    let (origin, _full, node) = pair(|_, bytes| Sent::Bytes(bytes)).await;
    let store = node.store.clone();
    let _fill = tokio::spawn(async move { store.fill(CancellationToken::new()).await });
    // What peers do not send comes at once, the chunks do not.
    group::until("the fill", || node.store.progress().borrow().objects_done == 1).await;
    for range in [BLOCKS, OTHERS, BLOCKS] {
        read(&node, range);
    }
    assert_eq!(delivered(&origin), []);
    assert_eq!(node.judged(Judgement::Genuine).len(), 3);
    assert_eq!(node.asked(), 2 + 3, "the chunks, which still come, and the reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_on_reading_waits_for_the_chunk() {
    let (origin, node) = alone(None);
    let step = 32 * 4128;
    for at in 0..4 {
        read(&node, 18 + at * step..18 + (at + 1) * step);
    }
    assert_eq!(delivered(&origin), [18..18 + step, whole()], "the second would leave too little");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_so_is_counted() {
    let (_origin, node) = alone(None);
    read(&node, BLOCKS);
    node.fill().await;
    let progress = node.store.progress().borrow().clone();
    let all: u64 = objects().iter().map(|object| object.len).sum();
    assert_eq!(progress.bytes_by_source[0], ("origin", all + BLOCKS.end - BLOCKS.start));
}

#[tokio::test(flavor = "multi_thread")]
async fn most_of_a_chunk_comes_as_the_chunk() {
    let (origin, node) = alone(None);
    read(&node, 18..400_000);
    assert_eq!(delivered(&origin), [whole()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_manifest_nothing_is_read_that_it_does_not_show() {
    let (objects, contents) = (objects(), contents());
    let named = objects.iter().zip(&contents).map(|(object, content)| (&*object.path, &**content));
    let (origin, node) = alone(Some(signed::manifest(named)));
    read(&node, BLOCKS);
    assert_eq!(delivered(&origin), [whole()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_is_left_to_the_chunk() {
    let (origin, node) = alone(None);
    origin.refuse(0);
    let reading = tokio::task::spawn_blocking(move || {
        node.read("large", BLOCKS.start, 4128);
        node
    });
    group::until("two refusals", || origin.refused.load(Ordering::SeqCst) >= 2).await;
    origin.admit(0);
    reading.await.unwrap();
    assert_eq!(delivered(&origin), [whole()]);
}

/// A node that has everything and behaves as told, and one that has nothing and has heard of it.
async fn pair(
    manner: impl Fn(ChunkKey, Vec<u8>) -> Sent + Send + Sync + 'static,
) -> (Arc<Origin>, Node, Node) {
    pair_with(PATIENCE, manner).await
}

async fn pair_with(
    patience: Patience,
    manner: impl Fn(ChunkKey, Vec<u8>) -> Sent + Send + Sync + 'static,
) -> (Arc<Origin>, Node, Node) {
    let (group, origin) = (Group::new(2), Origin::new());
    group.owner.set(0).unwrap();
    let full = group.start_with(0, &origin, PATIENCE, CHUNK_LEN, None);
    full.fill().await;
    // The chunks themselves are on their way meanwhile, and do not come.
    group.behave(0, move |key, bytes| match bytes.len() as u64 {
        1..100_000 => manner(key, bytes),
        _ => Sent::Stall(Vec::new()),
    });
    let node = group.start_with(1, &origin, patience, CHUNK_LEN, None);
    node.hears_of(2).await;
    group::until("the chunks to be asked for", || node.asked() == 2).await;
    delivered(&origin);
    (origin, full, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_has_it_is_asked_first() {
    let (origin, _full, node) = pair(|_, bytes| Sent::Bytes(bytes)).await;
    read(&node, BLOCKS);
    assert_eq!(delivered(&origin), []);
    assert_eq!(node.judged(Judgement::Genuine).len(), 1);
    let asked_for = BLOCKS.end - BLOCKS.start;
    group::until("the bytes to be told of", || node.bytes_of_peers() == asked_for).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_lies_is_named_and_the_origin_asked() {
    let (origin, _full, node) = pair(|_, mut bytes| {
        bytes[20_000] ^= 1;
        Sent::Bytes(bytes)
    })
    .await;
    read(&node, BLOCKS);
    assert_eq!(delivered(&origin), [BLOCKS]);
    assert_eq!((node.bytes_of_peers(), node.judged(Judgement::Forged).len()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_sends_too_much_is_named_and_one_that_sends_too_little_is_not() {
    for (len, forged) in [(50_000, 1), (-1, 0)] {
        let (origin, _full, node) = pair(move |_, mut bytes| {
            bytes.resize(bytes.len().saturating_add_signed(len), 0);
            Sent::Bytes(bytes)
        })
        .await;
        read(&node, BLOCKS);
        assert_eq!(delivered(&origin), [BLOCKS]);
        assert_eq!((node.bytes_of_peers(), node.judged(Judgement::Forged).len()), (0, forged));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_stalls_or_refuses_costs_a_moment() {
    for stalls in [true, false] {
        let (origin, _full, node) =
            pair(move |_, bytes| if stalls { Sent::Stall(bytes[..8192].to_vec()) } else { Sent::Refused })
                .await;
        read(&node, BLOCKS);
        assert_eq!(delivered(&origin), [BLOCKS]);
        assert_eq!((node.bytes_of_peers(), node.judged(Judgement::Forged).len()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn part_of_a_block_is_no_peers_to_send() {
    let (origin, _full, node) = pair(|_, bytes| Sent::Bytes(bytes)).await;
    read(&node, BLOCKS.start + 1..BLOCKS.end);
    assert_eq!(delivered(&origin), [BLOCKS.start + 1..BLOCKS.end]);
    assert_eq!(node.asked(), 2, "the chunks");
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_is_asked_too_when_a_peer_takes_its_time() {
    let patience =
        Patience { answer: Duration::from_millis(20), pause: Duration::from_secs(600), ..PATIENCE };
    let (origin, _full, node) = pair_with(patience, |_, _| Sent::Stall(Vec::new())).await;
    read(&node, BLOCKS);
    assert_eq!((delivered(&origin), node.judged(Judgement::Forged).len()), (vec![BLOCKS], 0));
    group::until("the peer to be left to what it was asked before", || node.unanswered() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_into_which_one_read_is_cut_all_go_directly() {
    let (origin, node) = alone(None);
    let next = BLOCKS.end..BLOCKS.end + 4128;
    read(&node, BLOCKS);
    read(&node, next.clone());
    assert_eq!(delivered(&origin), [BLOCKS, next]);
}
