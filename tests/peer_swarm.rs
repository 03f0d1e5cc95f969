//! Claim: nodes on a network take each chunk from the origin once and get the rest from each other, attested or by address alone;
//! whoever is of another model, is this node, is not on the list, or is refused by the attestation service takes no part, and the
//! status says why.
#![cfg(feature = "sandbox")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cai::attest::sample_attester;
use cai::peer::{Options, PeerError, Security, Shown, Standing, Swarm};
use cai::ratls::identity::{Identity, Recipe};
use cai::ratls::{Client, Demands, Format, Server, Verifier, VerifierOptions};
use cai::store::{Patience, Store};
use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;

#[path = "common/format.rs"]
mod format;
#[path = "common/group.rs"]
mod group;
#[path = "common/sandbox.rs"]
mod sandbox;
use group::{CHUNK, Origin, shared_chunks};
use sandbox::{Builder, Sandbox};

/// The list of objects that everybody has.
const MODEL: [u8; 32] = [7; 32];

/// Longer than any test: nobody takes over what falls to others.
const NEVER: Duration = Duration::from_secs(600);

struct Node {
    store: Arc<Store>,
    swarm: Swarm,
    _dir: TempDir,
}

/// Where node `number` of `group` listens: an address of its own, as machines have.
fn at(group: u8, number: usize) -> SocketAddr {
    let port = 20_000 + (std::process::id() % 20_000) as u16;
    (Ipv4Addr::new(127, 88, group, number as u8 + 1), port).into()
}

async fn start(
    group: u8,
    number: usize,
    size: usize,
    origin: &Arc<Origin>,
    security: Security,
    turn: Duration,
    model: [u8; 32],
) -> Node {
    let (store, dir) = group::open(number, origin, CHUNK, None);
    let options = Options {
        listen: at(group, number),
        // Everybody has the same list.
        peers: (0..size).map(|other| at(group, other)).collect(),
        security,
        upload_limit: 0,
        model,
        shared: group::files(&store),
    };
    let swarm = Swarm::start(options, store.clone()).await.unwrap();
    group::share(&store, swarm.peers(), Patience { turn, answer: NEVER, pause: NEVER, chunk: NEVER });
    Node { store, swarm, _dir: dir }
}

fn shown(node: &Node, group: u8, other: usize) -> Shown {
    node.swarm.shown().into_iter().find(|peer| peer.address == at(group, other)).unwrap()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// All of them know each other.
async fn meet(nodes: &[Node]) {
    until("everybody is connected", || {
        let connected = |node: &Node| {
            node.swarm.shown().iter().filter(|peer| peer.standing == Standing::Connected).count()
        };
        nodes.iter().all(|node| connected(node) == nodes.len() - 1)
    })
    .await;
}

async fn fill_and_check(nodes: &[Node]) {
    join_all(nodes.iter().map(|node| group::fill(&node.store))).await;
    tokio::task::block_in_place(|| nodes.iter().for_each(|node| group::check(&node.store)));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_take_each_chunk_from_the_origin_once() {
    let origin = Origin::new();
    let start = |number| start(1, number, 3, &origin, Security::Network, NEVER, MODEL);
    let nodes = join_all((0..3).map(start)).await;
    meet(&nodes).await;
    fill_and_check(&nodes).await;
    assert_eq!(origin.delivered(), shared_chunks());
    let received: u64 =
        nodes.iter().flat_map(|node| node.swarm.shown()).map(|peer| peer.counts.received).sum();
    let shared: u64 = group::objects()[1..].iter().map(|object| object.len).sum();
    assert_eq!(received, 2 * shared, "each node got what the two others fetched");
    until("what was sent is counted", || {
        let sent: u64 = nodes.iter().flat_map(|node| node.swarm.shown()).map(|peer| peer.counts.sent).sum();
        // And the edges of chunks, where they were asked of a peer.
        sent >= received
    })
    .await;
    let own = shown(&nodes[1], 1, 1);
    assert_eq!((own.standing, own.counts.received), (Standing::Itself, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn late_node_gets_everything_from_those_that_have_it_and_nothing_while_they_are_gone() {
    let origin = Origin::new();
    let turn = Duration::from_millis(50);
    let first = start(2, 0, 2, &origin, Security::Network, turn, MODEL).await;
    group::fill(&first.store).await;
    assert_eq!(shown(&first, 2, 1).standing_code(), "peer.unreachable");
    let before = origin.delivered();
    let late = start(2, 1, 2, &origin, Security::Network, NEVER, MODEL).await;
    until("it has heard of everything", || shown(&late, 2, 0).chunks == shared_chunks()).await;
    fill_and_check(std::slice::from_ref(&late)).await;
    assert_eq!(origin.delivered(), before);
    first.swarm.stop(Duration::from_secs(5)).await;
    until("it is noticed", || matches!(shown(&late, 2, 0).standing, Standing::Failed(..))).await;
    assert_eq!(shown(&late, 2, 0).chunks, 0);
}

/// A node's evidence, and who affirms that of others.
async fn attested(sandbox: &Sandbox, signer: &std::path::Path, policy: &str) -> (Security, Identity) {
    let recipe = Recipe {
        attester: sample_attester().unwrap(),
        formats: vec![Format::Current],
        members: BTreeMap::new(),
    };
    let identity = Identity::start(recipe, Duration::from_secs(600)).await.unwrap();
    let signers = std::fs::read(signer).unwrap();
    let verifier = Verifier::new(VerifierOptions {
        url: &format!("{}/as", sandbox.kbs).parse().unwrap(),
        ca: None,
        signers: Some(&signers),
        unauthenticated: false,
        demands: Demands { policies: vec![policy.into()], members: BTreeMap::new() },
    });
    let security = Security::Attested {
        client: Client::new(Swarm::PROTOCOLS).unwrap().showing(identity.fresh()),
        server: Server::new(Swarm::PROTOCOLS, identity.fresh()).unwrap(),
        verifier: Arc::new(verifier.unwrap()),
    };
    (security, identity)
}

#[tokio::test(flavor = "multi_thread")]
async fn attested_nodes_share_and_one_that_is_refused_gets_and_gives_nothing() {
    let dir = TempDir::new().unwrap();
    let signer = dir.path().join("signer.pem");
    let sandbox = Sandbox::start(Builder::default().with(&["--token-cert-out", signer.to_str().unwrap()]));
    let origin = Origin::new();
    let mut nodes = Vec::new();
    let mut identities = Vec::new();
    for number in 0..2 {
        let (security, identity) = attested(&sandbox, &signer, "default").await;
        identities.push(identity);
        nodes.push(start(3, number, 3, &origin, security, NEVER, MODEL).await);
    }
    meet(&nodes).await;
    fill_and_check(&nodes).await;
    assert_eq!(origin.delivered(), shared_chunks());

    // A machine whose evidence is not affirmed, and to which nobody else's is any more.
    sandbox.faults(json!([{"do": "as_contraindicate"}])).await;
    let (security, identity) = attested(&sandbox, &signer, "default").await;
    identities.push(identity);
    let refused = start(3, 2, 3, &origin, security, Duration::from_millis(50), MODEL).await;
    until("both sides have refused", || {
        let code = |node: &Node, other| shown(node, 3, other).standing_code();
        code(&refused, 0) == "verify.claim" && code(&nodes[0], 2) == "verify.claim"
    })
    .await;
    let Standing::Failed(_, text) = shown(&nodes[0], 3, 2).standing else { panic!() };
    assert!(text.contains("claim submods.cpu0.ear.status: expected affirming"), "{text}");
    fill_and_check(std::slice::from_ref(&refused)).await;
    assert!(refused.swarm.shown().iter().all(|peer| peer.counts.received == 0));
    assert!(nodes.iter().all(|node| shown(node, 3, 2).counts.sent == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_and_a_stranger_take_no_part() {
    let origin = Origin::new();
    let one = start(4, 0, 2, &origin, Security::Network, Duration::from_millis(50), MODEL).await;
    let other = start(4, 1, 2, &origin, Security::Network, Duration::from_millis(50), [8; 32]).await;
    until("they have met", || {
        shown(&one, 4, 1).standing_code() == "peer.other-model"
            && shown(&other, 4, 0).standing_code() == "peer.other-model"
    })
    .await;
    // Connections from an address that is not on the list end before anything is said.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.88.4.200:0".parse().unwrap()).unwrap();
    let mut stranger = socket.connect(at(4, 0)).await.unwrap();
    let mut byte = [0];
    let read = tokio::io::AsyncReadExt::read(&mut stranger, &mut byte).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    fill_and_check(&[one, other]).await;
    assert_eq!(origin.delivered(), 2 * shared_chunks());
}

#[tokio::test(flavor = "multi_thread")]
async fn port_that_is_taken_fails_the_start() {
    let origin = Origin::new();
    let _first = start(5, 0, 1, &origin, Security::Network, NEVER, MODEL).await;
    let (store, _dir) = group::open(1, &origin, CHUNK, None);
    let options = Options {
        listen: at(5, 0),
        peers: vec![],
        security: Security::Network,
        upload_limit: 0,
        model: [0; 32],
        shared: Vec::new(),
    };
    let error = Swarm::start(options, store).await.err().unwrap();
    assert!(matches!(error, PeerError::Listen { at: taken, .. } if taken == at(5, 0)));
}

trait Code {
    fn standing_code(&self) -> &'static str;
}

impl Code for Shown {
    fn standing_code(&self) -> &'static str {
        match &self.standing {
            Standing::Failed(code, _) => code,
            Standing::Dialling | Standing::Connected | Standing::Itself => "",
        }
    }
}
