//! Claim: a peer on the list that speaks nonsense, promises what it has not got, breaks off, or asks for what it must not have
//! costs a bounded number of attempts: the node completes from the origin, gives nothing away, and names the peer.
#![cfg(feature = "sandbox")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cai::peer::wire::{ANSWER, ASK, Answer, Ask, HELLO, Have, Hello, Purpose};
use cai::peer::{Options, Security, Shown, Standing, Swarm};
use cai::store::{Patience, Store};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

#[path = "common/format.rs"]
mod format;
#[path = "common/group.rs"]
mod group;
use group::{CHUNK, CONF, LARGE, Origin, objects, shared_chunks};

const MODEL: [u8; 32] = [7; 32];

/// `host` 1 is the node, 2 the peer.
fn at(group: u8, host: u8) -> SocketAddr {
    let port = 20_000 + (std::process::id() % 20_000) as u16;
    (Ipv4Addr::new(127, 89, group, host), port).into()
}

struct Node {
    store: Arc<Store>,
    swarm: Swarm,
    origin: Arc<Origin>,
    _dir: TempDir,
}

async fn node(group: u8) -> Node {
    let origin = Origin::new();
    let (store, dir) = group::open(0, &origin, CHUNK, None);
    let options = Options {
        listen: at(group, 1),
        peers: vec![at(group, 2)],
        security: Security::Network,
        upload_limit: 0,
        model: MODEL,
        shared: group::files(&store),
    };
    let swarm = Swarm::start(options, store.clone()).await.unwrap();
    let turn = Duration::from_millis(100);
    let patience = Patience { turn, chunk: Duration::from_secs(1), ..Patience::default() };
    group::share(&store, swarm.peers(), patience);
    Node { store, swarm, origin, _dir: dir }
}

impl Node {
    fn peer(&self) -> Shown {
        self.swarm.shown().remove(0)
    }

    async fn completes(&self) {
        group::fill(&self.store).await;
        tokio::task::block_in_place(|| group::check(&self.store));
        assert_eq!(self.origin.delivered(), shared_chunks());
        assert_eq!(self.peer().counts.received, 0);
    }
}

/// Everything there is.
fn all() -> Vec<u8> {
    let have = |(at, object): (usize, cai::store::Object)| {
        Have::of(at, &vec![true; object.len.div_ceil(CHUNK) as usize]).encode()
    };
    objects().into_iter().enumerate().skip(1).flat_map(have).collect()
}

/// What the peer does with an ask.
#[derive(Clone, Copy)]
enum Manner {
    /// Something that is no answer.
    Garbage,
    /// A hash, and then bytes that do not make it.
    WrongBlob,
    /// A hash, and the end of the connection.
    Cut,
    NotHere,
    /// Nothing.
    Silent,
}

/// A peer that says hello, and that it has everything. Gives how often it was asked.
async fn liar(group: u8, manner: Manner) -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(at(group, 2)).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = counter.clone();
            #[expect(clippy::disallowed_methods, reason = "ends with the test's runtime")]
            tokio::spawn(async move { drop(lie(stream, manner, &asked).await) });
        }
    });
    asked
}

async fn lie(mut stream: TcpStream, manner: Manner, asked: &AtomicUsize) -> std::io::Result<()> {
    let mut hello = [0; HELLO];
    stream.read_exact(&mut hello).await?;
    let theirs = Hello::decode(&hello).unwrap();
    stream.write_all(&Hello { node: [9; 16], ..theirs }.encode()).await?;
    if theirs.purpose == Purpose::News {
        stream.write_all(&all()).await?;
        // Until the node goes.
        stream.read_exact(&mut [0]).await?;
    }
    loop {
        let mut ask = [0; ASK];
        stream.read_exact(&mut ask).await?;
        asked.fetch_add(1, Ordering::SeqCst);
        assert!(Ask::decode(&ask).unwrap().object != CONF, "what is not shared was asked for");
        match manner {
            Manner::Garbage => stream.write_all(&[0x55; ANSWER]).await?,
            Manner::Silent => {}
            Manner::NotHere => stream.write_all(&Answer::NotHere.encode()).await?,
            Manner::Cut => {
                stream.write_all(&Answer::Blob([3; 32]).encode()).await?;
                return Ok(());
            }
            Manner::WrongBlob => {
                stream.write_all(&Answer::Blob([3; 32]).encode()).await?;
                let Ask { object, chunk, .. } = Ask::decode(&ask).unwrap();
                let size = (objects()[object].len - chunk * CHUNK).min(CHUNK);
                stream.write_all(&size.to_le_bytes()).await?;
                stream.write_all(&[0xaa; 100_000]).await?;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_promises_and_does_not_deliver_costs_a_few_asks_a_chunk() {
    for (group, manner) in [
        (1, Manner::Garbage),
        (2, Manner::WrongBlob),
        (3, Manner::Cut),
        (4, Manner::NotHere),
        (11, Manner::Silent),
    ] {
        let asked = liar(group, manner).await;
        let node = node(group).await;
        // What it lacks after all is taken off what it told at once.
        while node.peer().chunks < shared_chunks() && asked.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node.completes().await;
        let asked = asked.load(Ordering::SeqCst) as u64;
        // Three in a row, and what was asked meanwhile; a line that was idle is dialled anew once.
        assert!(asked > 0 && asked <= 2 * (3 + 8), "{group}: {asked}");
        let failed = node.peer().counts.failed;
        assert!((3..=3 + 8).contains(&failed), "{group}: {failed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_speaks_nonsense_is_named() {
    let cases: [(u8, Vec<u8>, &str); 4] = [
        (
            5,
            b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "peer.protocol",
        ),
        (6, Vec::new(), "peer.broken"),
        (7, [hello([9; 16], MODEL), Have::of(999, &[true]).encode()].concat(), "peer.protocol"),
        (8, [hello([9; 16], MODEL), Have::of(LARGE, &[true; 900]).encode()].concat(), "peer.protocol"),
    ];
    for (group, says, code) in cases {
        let listener = TcpListener::bind(at(group, 2)).await.unwrap();
        let node = node(group).await;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; HELLO]).await.unwrap();
        stream.write_all(&says).await.unwrap();
        drop(stream);
        let standing = loop {
            match node.peer().standing {
                Standing::Failed(code, text) => break (code, text),
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert_eq!(standing.0, code, "{}", standing.1);
        node.completes().await;
    }
}

fn hello(node: [u8; 16], model: [u8; 32]) -> Vec<u8> {
    Hello { node, model, purpose: Purpose::News }.encode()
}

/// A connection to the node from the peer's address, after the hellos.
async fn dial(group: u8, purpose: Purpose) -> TcpStream {
    let mut stream = dial_raw(group).await;
    stream.write_all(&Hello { node: [9; 16], model: MODEL, purpose }.encode()).await.unwrap();
    let mut hello = [0; HELLO];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(Hello::decode(&hello).unwrap().model, MODEL);
    stream
}

async fn dial_raw(group: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(at(group, 2).ip(), 0)).unwrap();
    socket.connect(at(group, 1)).await.unwrap()
}

async fn ends(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut rest)).await;
    // Reset or closed, but not more bytes.
    read.is_ok() && rest.is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_had_is_not_given() {
    let node = node(9).await;
    group::fill(&node.store).await;
    let ask = |object, chunk, range| Ask { object, chunk, range, urgent: false }.encode();
    let len = CHUNK;
    for (what, ask) in [
        ("the conf", ask(CONF, 0, 0..4)),
        ("no such object", ask(77, 0, 0..4)),
        ("no such chunk", ask(LARGE, 1 << 40, 0..4)),
        ("behind the chunk", ask(LARGE, 0, len - 1..len + 1)),
    ] {
        let mut stream = dial(9, Purpose::Chunks).await;
        stream.write_all(&ask).await.unwrap();
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Answer::decode(&answer), Some(Answer::NotHere), "{what}");
    }
    // Connections that are of no use end.
    for (what, bytes) in [
        ("no hello", vec![b'G'; HELLO]),
        ("another model", Hello { node: [9; 16], model: [8; 32], purpose: Purpose::News }.encode()),
    ] {
        let mut stream = dial_raw(9).await;
        stream.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.len() <= HELLO, "{what}");
    }
    let mut stream = dial(9, Purpose::Chunks).await;
    stream.write_all(&[0xff; ASK]).await.unwrap();
    assert!(ends(&mut stream).await, "no ask");
    // What may be had comes, as often as it is asked for.
    let mut stream = dial(9, Purpose::Chunks).await;
    for _ in 0..2 {
        stream.write_all(&ask(LARGE, 0, 0..len)).await.unwrap();
        let mut answer = [0; ANSWER];
        stream.read_exact(&mut answer).await.unwrap();
        let content = &group::contents()[LARGE][..len as usize];
        assert_eq!(Answer::decode(&answer), Some(Answer::Blob(*blake3::hash(content).as_bytes())));
        assert_eq!(stream.read_u64_le().await.unwrap(), len);
        // 64 KiB in four groups: three pairs of hashes.
        stream.read_exact(&mut vec![0; 3 * 64 + len as usize]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_peer_has_so_many_connections_and_no_more() {
    let node = node(10).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(dial(10, Purpose::Chunks).await);
    }
    let mut ninth = dial_raw(10).await;
    assert!(ends(&mut ninth).await);
    drop(held);
    // Places come back as connections end.
    let again = async {
        loop {
            let mut stream = dial_raw(10).await;
            let hello = Hello { node: [9; 16], model: MODEL, purpose: Purpose::Chunks }.encode();
            let said = stream.write_all(&hello).await;
            if said.is_ok() && stream.read_exact(&mut [0; HELLO]).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.unwrap();
    assert_eq!(node.swarm.listening(), at(10, 1));
}
