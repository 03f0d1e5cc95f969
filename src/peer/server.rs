//! The listening end: tells what is here, and gives chunks to peers.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::blobs::{Blob, Gate};
use super::board::Board;
use super::error::PeerError;
use super::link::{HELLO_LIMIT, NEWS_EVERY, SILENCE};
use super::transport::{Dialler, Wire, ended, hear_hello, say, within};
use super::wire::{ASK, Answer, Ask, Have, Hello, Purpose};
use crate::bandwidth::Bandwidth;
use crate::error::{Fault, chain};
use crate::store::{ChunkIndex, ChunkKey, ObjectIndex, Store};
use crate::task::Tasks;

/// Connections of one peer at a time: news, its lanes, and as many again that it may not have noticed to be gone.
const CONNECTIONS: usize = 8;

/// How long a handshake may take, evidence asked about included.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// How long a connection for chunks may be idle.
const IDLE: Duration = Duration::from_secs(120);

/// How long one chunk may take: 8 MiB at 70 KB/s.
const CHUNK_LIMIT: Duration = Duration::from_secs(120);

/// Chunks that are read for peers and on their way to them at a time, all of them together: 16 MiB of memory each.
const SERVING: usize = 32;

/// How often it is told in the log that somebody was not let in.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// What a server needs.
pub struct Server {
    board: Arc<Board>,
    dialler: Arc<Dialler>,
    store: Arc<Store>,
    upload: Option<Arc<Bandwidth>>,
    /// The right to have a chunk in memory for a peer.
    serving: Semaphore,
}

impl Server {
    /// Of what `store` has.
    pub fn new(
        board: Arc<Board>,
        dialler: Arc<Dialler>,
        store: Arc<Store>,
        upload: Option<Arc<Bandwidth>>,
    ) -> Self {
        Server { board, dialler, store, upload, serving: Semaphore::new(SERVING) }
    }

    /// Take connections for ever.
    pub async fn serve(self, listener: TcpListener) {
        let server = Arc::new(self);
        let (gate, mut tasks) = (Arc::new(Gate::default()), Tasks::new());
        let addresses: Vec<_> = server.board.shown().iter().map(|peer| peer.address.ip()).collect();
        // Nodes behind one address share its places.
        let places_of =
            |ip| CONNECTIONS.saturating_mul(addresses.iter().filter(|other| **other == ip).count());
        let places: Vec<_> = addresses.iter().map(|ip| Arc::new(Semaphore::new(places_of(*ip)))).collect();
        let mut told: Option<Instant> = None;
        loop {
            let (tcp, from) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: others must get a chance to close theirs.
                    tracing::warn!(event = "peer.accept", ?error, "taking a connection of a peer");
                    tokio::time::sleep(NEWS_EVERY).await;
                    continue;
                }
            };
            tasks.reap();
            let Some(index) = server.board.peer_at(from.ip()) else {
                // Anybody who reaches the port could fill the journal.
                if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                    told = Some(Instant::now());
                    tracing::warn!(event = "peer.stranger", from = %from, "{from} is not in MODEL_SHARING_PEER: refused");
                }
                continue;
            };
            let Some(place) = places.get(index).and_then(|places| places.clone().try_acquire_owned().ok())
            else {
                tracing::debug!(event = "peer.too-many", from = %from, "{from} has {CONNECTIONS} connections already: refused");
                continue;
            };
            let (server, gate) = (server.clone(), gate.clone());
            tasks.supervise("peer-served", async move {
                if let Err(error) = server.connection(tcp, index, &gate).await {
                    tracing::debug!(event = error.code(), from = %from, error = ?error, "serving a peer: {}", chain(&error));
                }
                drop(place);
            });
        }
    }

    async fn connection(&self, tcp: TcpStream, index: usize, gate: &Arc<Gate>) -> Result<(), PeerError> {
        let from = tcp.peer_addr().map_err(PeerError::Broken)?;
        let accepted = within(HANDSHAKE, self.dialler.accept(tcp)).await?;
        let mut line = accepted.inspect_err(|error| {
            if let PeerError::Refused(_) = error {
                tracing::warn!(event = error.code(), from = %from, hint = error.hint(), "{from} may not take part: {}", chain(error));
            }
        })?;
        let hello = within(HELLO_LIMIT, self.hello(&mut line.stream)).await??;
        let (term, stream) = (line.term(), &mut line.stream);
        let over = async {
            ended(term).await;
            // The peer has a verdict of its own, and comes again when that ends: rather it goes than is cut off.
            tokio::time::sleep(SILENCE).await;
        };
        let served = async {
            match hello.purpose {
                Purpose::News => self.tell(stream).await,
                Purpose::Chunks => self.give(stream, index, gate).await,
            }
        };
        tokio::select! {
            served = served => served,
            () = over => Ok(()),
        }
    }

    /// Answer a hello with ours; whoever is of another model, or is this node, has what it needs to know and goes.
    async fn hello(&self, stream: &mut Box<dyn Wire>) -> Result<Hello, PeerError> {
        let theirs = hear_hello(stream).await?;
        let ours = Hello { node: self.board.node, model: self.board.model, purpose: theirs.purpose };
        say(stream, &ours.encode()).await?;
        if theirs.model != ours.model {
            return Err(PeerError::OtherModel);
        }
        if theirs.node == ours.node { Err(PeerError::Itself) } else { Ok(theirs) }
    }

    /// Tell what is here, and what changes.
    async fn tell(&self, stream: &mut Box<dyn Wire>) -> Result<(), PeerError> {
        let mut told: Vec<Option<Have>> = vec![None; self.store.objects()];
        loop {
            // Before anything is looked at: what comes while it is said must not be missed.
            let changed = self.store.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let mut news = Vec::new();
            for (object, told) in told.iter_mut().enumerate() {
                let have = Have::of(object, &self.store.served(ObjectIndex(object)));
                if !have.bitmap.is_empty() && told.as_ref() != Some(&have) {
                    news.extend(have.encode());
                    *told = Some(have);
                }
            }
            if news.is_empty() {
                // A sign of life.
                news.extend(told.iter().flatten().next().map(Have::encode).unwrap_or_default());
            }
            within(SILENCE, say(stream, &news)).await??;
            tokio::time::sleep(NEWS_EVERY).await;
            let _ = tokio::time::timeout(SILENCE / 3, changed).await;
        }
    }

    /// Give chunks, one after the other.
    async fn give(
        &self,
        stream: &mut Box<dyn Wire>,
        index: usize,
        gate: &Arc<Gate>,
    ) -> Result<(), PeerError> {
        loop {
            let mut bytes = [0; ASK];
            within(IDLE, stream.read_exact(&mut bytes)).await?.map_err(PeerError::Broken)?;
            let ask = Ask::decode(&bytes)
                .ok_or_else(|| PeerError::Protocol { expected: "an ask", got: "something else".into() })?;
            let sent = within(CHUNK_LIMIT, self.give_one(stream, &ask, gate)).await??;
            self.board.sent(index, sent);
        }
    }

    /// Gives the number of bytes that went out.
    async fn give_one(
        &self,
        stream: &mut Box<dyn Wire>,
        ask: &Ask,
        gate: &Arc<Gate>,
    ) -> Result<u64, PeerError> {
        let ahead = ask.urgent.then(|| gate.pass());
        let (store, key) =
            (self.store.clone(), ChunkKey { object: ObjectIndex(ask.object), chunk: ChunkIndex(ask.chunk) });
        // Closed only with the server.
        let _place = self.serving.acquire().await;
        let range = ask.range.clone();
        let read = move || Blob::new(&store.read_chunk(key)?, range);
        let blob = tokio::task::spawn_blocking(read).await.ok().flatten();
        let answer = blob.as_ref().map_or(Answer::NotHere, |blob| Answer::Blob(blob.hash));
        say(stream, &answer.encode()).await?;
        let Some(blob) = blob else { return Ok(0) };
        let len = ask.range.end.saturating_sub(ask.range.start);
        blob.give(&mut **stream, ahead.is_none().then_some(&**gate), self.upload.as_deref()).await?;
        Ok(len)
    }
}
