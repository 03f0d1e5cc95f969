//! Chunks of ciphertext between the nodes that serve one model.
//!
//! Owns: connections to and from the peers of `MODEL_SHARING_PEER`, who of them has which chunk, which one is asked, and what each
//! is worth. Must not know: keys, plaintext, how the store decides what is missing. The engine is bao-tree, the one under iroh-blobs,
//! chosen by trial (docs/peer-to-peer.md): each chunk crosses as a verified range of a blob, over TLS in which both ends are
//! attested (`ratls`). There is no discovery: the peers are those that the operator wrote down.
//!
//! What a peer says is not believed: hashes of blobs find a broken line early, and nothing more. That bytes are the model's, the
//! store finds out itself, and says so to the [`Sender`](crate::store::Sender) that came with them.
//!
//! Each node dials each of its peers: one connection over which it hears what the peer has ([`wire`]), and a few that bring chunks,
//! one at a time. So a pair has connections in both directions, and nobody has to agree on who dials.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | what is said around a blob; pure, fuzzed |
//! | `blobs` | the engine: one chunk given, one chunk taken |
//! | `board` | who has what, who is asked, who fetches first; answers the store from memory |
//! | `asking` | a chunk that one peer is asked for |
//! | `transport` | connections, attested or not |
//! | `link` | the dialling end |
//! | `server` | the listening end |
//!
//! Threads: everything is async; reading a chunk to be served runs in `spawn_blocking`. Locks: the board's, for a look.
//! Tested in `tests/peer_swarm.rs` and `tests/peer_hostile.rs`.

mod asking;
mod blobs;
mod board;
mod error;
mod link;
mod server;
mod transport;
pub mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::bandwidth::Bandwidth;
use crate::ciphertext::EntryId;
use crate::store::{Peers, Store};
use crate::task::{Ended, Tasks};
use board::Board;
pub use board::{Counts, Shown, Standing};
pub use error::PeerError;
use transport::Dialler;
pub use transport::Security;

/// How a node takes part.
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The others; its own address among them does no harm.
    pub peers: Vec<SocketAddr>,
    /// The files that are shared, as the store is told.
    pub shared: Vec<EntryId>,
    /// Who may take part.
    pub security: Security,
    /// Most bytes per second that are sent; 0: no limit.
    pub upload_limit: u64,
    /// SHA-256 over the list of objects: nodes with another list share nothing.
    pub model: [u8; 32],
}

/// A node's part in the group.
pub struct Swarm {
    board: Arc<Board>,
    tasks: Tasks,
    listening: SocketAddr,
}

impl Swarm {
    /// Names of its protocol in TLS (ALPN).
    pub const PROTOCOLS: &'static [&'static str] = &["cai-peer/1"];

    /// Listen, and dial the others. Chunks are served and fetched once the store shares with [`Swarm::peers`].
    ///
    /// # Errors
    /// [`PeerError::Listen`], [`PeerError::Random`].
    pub async fn start(options: Options, store: Arc<Store>) -> Result<Self, PeerError> {
        let at = options.listen;
        let listen = |source| PeerError::Listen { at, source };
        let listener = TcpListener::bind(at).await.map_err(listen)?;
        let listening = listener.local_addr().map_err(listen)?;
        let total = store.chunks_in(&options.shared);
        let (board, queues) = Board::new(options.model, store.layouts(), total, &options.peers)?;
        // Peers know this node by the address that it listens at, where that is one.
        let from = Some(at.ip()).filter(|ip| !ip.is_unspecified());
        let (board, dialler) = (Arc::new(board), Arc::new(Dialler { security: options.security, from }));
        let upload = Bandwidth::new(options.upload_limit).map(Arc::new);
        let mut tasks = Tasks::new();
        for (index, queue) in queues.into_iter().enumerate() {
            link::supervise(&mut tasks, &board, &dialler, &store, index, queue);
        }
        let server = server::Server::new(board.clone(), dialler, store, upload);
        tasks.supervise("peer-server", server.serve(listener));
        Ok(Swarm { board, tasks, listening })
    }

    /// What the store asks.
    pub fn peers(&self) -> Arc<dyn Peers> {
        Arc::new(self.board.clone())
    }

    /// Where it listens.
    pub fn listening(&self) -> SocketAddr {
        self.listening
    }

    /// Every peer, as people are shown it.
    pub fn shown(&self) -> Vec<Shown> {
        self.board.shown()
    }

    /// Wait until a task of it ends, which none does unless it panics.
    pub async fn any_ended(&mut self) -> Ended {
        self.tasks.any_ended().await
    }

    /// Serve and ask nobody any more.
    pub async fn stop(self, limit: Duration) {
        self.tasks.stop(limit).await;
        // The store goes on asking it.
        self.board.leave();
    }
}
