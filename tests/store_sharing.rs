//! Stores that share chunks: each chunk leaves the origin once, and nobody waits for who does not come.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cai::ciphertext::Judgement;
use futures_util::future::join_all;

#[path = "common/format.rs"]
mod format;
#[path = "common/group.rs"]
mod group;
use group::{Group, Node, Origin, Sent, shared_chunks};

/// Longer than any test: nobody takes over what falls to others.
const NEVER: Duration = Duration::from_secs(600);

async fn fill_all(nodes: &[Node]) {
    join_all(nodes.iter().map(Node::fill)).await;
}

fn check_all(nodes: &[Node]) {
    tokio::task::block_in_place(|| nodes.iter().for_each(Node::check));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_together_take_each_chunk_from_the_origin_once() {
    for size in [2, 3, 8] {
        let (group, origin) = (Group::new(size), Origin::new());
        let nodes: Vec<Node> = (0..size).map(|number| group.start(number, &origin, NEVER)).collect();
        fill_all(&nodes).await;
        check_all(&nodes);
        assert_eq!(origin.delivered(), shared_chunks(), "{size} nodes");
        assert!(nodes.iter().all(|node| node.bytes_of_peers() > 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_alone_behaves_as_if_there_were_no_peers() {
    let (group, origin) = (Group::new(1), Origin::new());
    let node = group.start(0, &origin, NEVER);
    fill_all(std::slice::from_ref(&node)).await;
    check_all(std::slice::from_ref(&node));
    assert_eq!((origin.delivered(), node.bytes_of_peers(), node.asked()), (shared_chunks(), 0, 0));
}

/// How many chunks a node asks of an origin that has not answered yet, where there are `size` nodes.
async fn asked_at_once(size: usize) -> u64 {
    let (group, origin) = (Group::new(size), Origin::new());
    // Nobody else fetches.
    group.owner.set(0).unwrap();
    origin.open.send_replace(false);
    let nodes: Vec<Node> = (0..size).map(|number| group.start(number, &origin, NEVER)).collect();
    let fill = async { nodes[0].fill().await };
    let look = async {
        while origin.asked.load(Ordering::SeqCst) < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // All workers were woken at the same time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = origin.asked.load(Ordering::SeqCst);
        origin.open.send_replace(true);
        asked
    };
    let (_, asked) = tokio::join!(fill, look);
    check_all(&nodes[..1]);
    assert_eq!(origin.delivered(), shared_chunks());
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn few_chunks_are_asked_at_once_of_a_slow_origin_so_that_others_have_them_soon() {
    // Four of the sixteen workers are kept for readers.
    assert_eq!((asked_at_once(1).await, asked_at_once(2).await), (12, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn late_node_gets_everything_from_those_that_have_it() {
    let (group, origin) = (Group::new(3), Origin::new());
    let nodes: Vec<Node> =
        (0..2).map(|number| group.start(number, &origin, Duration::from_millis(50))).collect();
    fill_all(&nodes).await;
    let before = origin.delivered();
    let late = group.start(2, &origin, NEVER);
    late.hears_of_all().await;
    fill_all(std::slice::from_ref(&late)).await;
    check_all(std::slice::from_ref(&late));
    assert_eq!(origin.delivered(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_of_a_node_that_never_delivers_are_taken_over() {
    let (group, origin) = (Group::new(2), Origin::new());
    group.owner.set(1).unwrap();
    origin.refuse(1);
    let patience = Duration::from_millis(200);
    let (node, _other) = (group.start(0, &origin, patience), group.start(1, &origin, patience));
    let began = Instant::now();
    node.fill().await;
    assert!(began.elapsed() >= patience, "it waited its turn");
    tokio::task::block_in_place(|| node.check());
    assert_eq!((origin.delivered(), node.bytes_of_peers()), (shared_chunks(), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn chunk_whose_borders_cannot_be_had_comes_from_nobody_and_keeps_no_line() {
    let (group, origin) = (Group::new(2), Origin::new());
    let node = group.start(0, &origin, Duration::from_millis(50));
    node.fill().await;
    let other = group.start(1, &origin, Duration::from_millis(300));
    other.hears_of_all().await;
    origin.refuse(1);
    let began = Instant::now();
    let token = tokio_util::sync::CancellationToken::new();
    assert!(tokio::time::timeout(Duration::from_secs(20), other.store.fill(token)).await.unwrap().is_err());
    assert!(began.elapsed() < Duration::from_secs(15));
    assert_eq!(other.judged(Judgement::Forged), [], "nobody is blamed");
    origin.admit(1);
    other.fill().await;
    check_all(std::slice::from_ref(&other));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_leave_in_the_middle_cost_nothing_but_time() {
    let (group, origin) = (Group::new(3), Origin::new());
    origin.delay.store(2_000, Ordering::SeqCst);
    let patience = Duration::from_millis(200);
    let nodes: Vec<Node> = (0..3).map(|number| group.start(number, &origin, patience)).collect();
    let filling = tokio::spawn({
        let store = nodes[0].store.clone();
        async move { store.fill(tokio_util::sync::CancellationToken::new()).await }
    });
    let others = nodes[1..].iter().map(Node::fill);
    let both = join_all(others);
    tokio::select! {
        _ = both => {}
        () = async { while nodes[0].bytes_of_peers() == 0 { tokio::task::yield_now().await } } => {}
    }
    group.leave(1);
    group.leave(2);
    filling.await.unwrap().unwrap();
    tokio::task::block_in_place(|| nodes[0].check());
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_that_goes_down_in_the_middle_is_waited_for() {
    let (group, origin) = (Group::new(2), Origin::new());
    origin.delay.store(2_000, Ordering::SeqCst);
    let nodes: Vec<Node> =
        (0..2).map(|number| group.start(number, &origin, Duration::from_millis(100))).collect();
    let fill = |node: &Node| {
        let store = node.store.clone();
        // As the agent does: what failed is tried again.
        async move {
            while store.fill(tokio_util::sync::CancellationToken::new()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let filling = tokio::spawn(join_all(nodes.iter().map(fill).collect::<Vec<_>>()));
    while origin.delivered() < 8 {
        tokio::task::yield_now().await;
    }
    origin.down.store(true, Ordering::SeqCst);
    // Both have noticed.
    while nodes.iter().any(|node| node.store.progress().borrow().retries == 0) {
        tokio::task::yield_now().await;
    }
    assert!(!filling.is_finished());
    origin.down.store(false, Ordering::SeqCst);
    filling.await.unwrap();
    check_all(&nodes);
}

#[tokio::test(flavor = "multi_thread")]
async fn reader_is_served_by_a_peer_and_by_the_origin_when_that_stalls() {
    let (group, origin) = (Group::new(2), Origin::new());
    let full = group.start(0, &origin, Duration::from_millis(50));
    full.fill().await;
    // Nobody but the reader gets anything, and what it gets depends on the chunk.
    group.behave(0, |key, bytes| match (key.object.0, key.chunk.0) {
        (group::LARGE, 5) => Sent::Bytes(bytes),
        (group::LARGE, 9) => Sent::Stall(bytes[..30_000].to_vec()),
        _ => Sent::Refused,
    });
    let reader = group.start(1, &origin, NEVER);
    reader.hears_of_all().await;
    let before = origin.delivered();
    for (chunk, from_origin) in [(5, 0), (9, 1), (11, 2)] {
        let began = Instant::now();
        tokio::task::block_in_place(|| reader.read("large", chunk * group::CHUNK, 100));
        assert_eq!(origin.delivered(), before + from_origin, "chunk {chunk}");
        assert!(began.elapsed() < Duration::from_secs(5), "chunk {chunk}");
    }
    assert_eq!(reader.judged(Judgement::Genuine).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_shared_is_neither_served_nor_asked_of_peers() {
    let (group, origin) = (Group::new(2), Origin::new());
    let nodes: Vec<Node> = (0..2).map(|number| group.start(number, &origin, NEVER)).collect();
    fill_all(&nodes).await;
    let conf = cai::store::ObjectIndex(group::CONF);
    assert!(nodes[0].store.served(conf).is_empty());
    let key = cai::store::ChunkKey { object: conf, chunk: cai::store::ChunkIndex(0) };
    assert_eq!(nodes[0].store.read_chunk(key), None);
}
