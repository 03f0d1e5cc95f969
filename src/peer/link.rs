//! The dialling end: hears what a peer has, and gets chunks from it.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;

use super::asking::{Job, Queues};
use super::blobs;
use super::board::Board;
use super::error::PeerError;
use super::transport::{Dialler, Line, Wire, ended, hear_hello, say, within};
use super::wire::{ANSWER, Answer, HAVE, Have, Hello, Purpose};
use crate::error::chain;
use crate::store::{ChunkIndex, ChunkKey, ObjectIndex, PeerFailed, Store};
use crate::task::Tasks;

/// Connections that bring chunks of one peer for the fill: one answers while the next is asked for.
const LANES: usize = 2;

/// Pauses between attempts to reach a peer: the first, and the longest, each twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long a peer may say nothing: it repeats itself within a third of it.
pub const SILENCE: Duration = Duration::from_secs(30);

/// How often news are told at most: a chunk takes longer at 1 Gbit/s.
pub const NEWS_EVERY: Duration = Duration::from_millis(50);

/// How long a hello may take.
pub const HELLO_LIMIT: Duration = Duration::from_secs(10);

/// How long an answer that nobody waits for any more may take: about what a new connection costs.
const HEAR_OUT_LIMIT: Duration = Duration::from_secs(2);

/// Start all there is for peer `index`.
pub fn supervise(
    tasks: &mut Tasks,
    board: &Arc<Board>,
    dialler: &Arc<Dialler>,
    store: &Arc<Store>,
    index: usize,
    queues: Queues,
) {
    let link = |board: &Arc<Board>| Link { board: board.clone(), dialler: dialler.clone(), index };
    tasks.supervise("peer-news", link(board).hear(store.clone()));
    let jobs = Arc::new(Mutex::new(queues.jobs));
    for _ in 0..LANES {
        tasks.supervise("peer-lane", link(board).bring(jobs.clone()));
    }
    tasks.supervise("peer-lane", link(board).bring(Arc::new(Mutex::new(queues.urgent))));
}

struct Link {
    board: Arc<Board>,
    dialler: Arc<Dialler>,
    index: usize,
}

impl Link {
    /// Dial, and say hello.
    async fn dial(&self, purpose: Purpose) -> Result<(Line, Hello), PeerError> {
        let address = self.board.address(self.index).ok_or(PeerError::Itself)?;
        let mut line = self.dialler.dial(address).await?;
        let stream = &mut line.stream;
        let ours = Hello { node: self.board.node, model: self.board.model, purpose };
        let greeted = async {
            say(stream, &ours.encode()).await?;
            hear_hello(stream).await
        };
        let theirs = within(HELLO_LIMIT, greeted).await??;
        if theirs.node == self.board.node {
            return Err(PeerError::Itself);
        }
        if theirs.model != self.board.model {
            return Err(PeerError::OtherModel);
        }
        Ok((line, theirs))
    }

    /// Hear what the peer has, for ever.
    async fn hear(self, store: Arc<Store>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.dial(Purpose::News).await {
                Ok((line, hello)) => {
                    self.board.connected(self.index, hello.node);
                    let (since, term) = (Instant::now(), line.term());
                    let error = tokio::select! {
                        error = self.listen(line.stream, &store) => error,
                        // What it has told stays: it is attested again at once.
                        () = ended(term) => continue,
                    };
                    // Who only says hello is not dialled more often than who says nothing.
                    pause = if since.elapsed() > SILENCE { FIRST_PAUSE } else { pause };
                    error
                }
                Err(error) => error,
            };
            self.board.gone(self.index, &error);
            if matches!(error, PeerError::Itself) {
                return std::future::pending().await;
            }
            // Nodes that start together must not go on dialling in step.
            let jitter = Duration::from_millis(u64::from(self.board.node.first().copied().unwrap_or(0)));
            tokio::time::sleep(pause + jitter).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn listen(&self, mut stream: Box<dyn Wire>, store: &Store) -> PeerError {
        let mut frames = 0usize;
        loop {
            // A peer tells of each object at a time, and then no more often than it should.
            frames = frames.saturating_add(1);
            if frames.is_multiple_of(store.objects().max(1)) {
                tokio::time::sleep(NEWS_EVERY).await;
            }
            match within(SILENCE, self.next_have(&mut stream)).await {
                Ok(Ok(have)) => store.offered(self.board.heard(self.index, have).into_iter()),
                Ok(Err(error)) | Err(error) => return error,
            }
        }
    }

    async fn next_have(&self, stream: &mut Box<dyn Wire>) -> Result<Have, PeerError> {
        let mut head = [0; HAVE];
        stream.read_exact(&mut head).await.map_err(PeerError::Broken)?;
        let decoded = Have::decode_head(&head, |object| self.board.chunks_of(object));
        let (object, len) = decoded.ok_or_else(|| PeerError::Protocol {
            expected: "the chunks of an object of this model",
            got: format!("{head:02x?}"),
        })?;
        let mut bitmap = vec![0; len];
        stream.read_exact(&mut bitmap).await.map_err(PeerError::Broken)?;
        Ok(Have { object, bitmap })
    }

    /// Do jobs, one after the other, over one connection as long as that is good.
    async fn bring(self, jobs: Arc<Mutex<mpsc::UnboundedReceiver<Job>>>) {
        let mut line = None;
        loop {
            let job = jobs.lock().await.recv().await;
            let Some(job) = job else { return std::future::pending().await };
            if job.frames.is_closed() {
                continue;
            }
            line = self.do_job(job, line).await;
        }
    }

    /// Gives the connection back, if it is still good.
    async fn do_job(&self, job: Job, line: Option<Line>) -> Option<Line> {
        let Job { ask, size, begun, frames } = job;
        let mut begun = Some(begun);
        // A connection that was idle may be gone; that is no failure of the peer.
        let mut line = line.filter(Line::holds);
        let mut fresh = line.is_none();
        let error = loop {
            let dialled = match line.take() {
                Some(line) => Ok(line),
                None => self.dial(Purpose::Chunks).await.map(|(line, _)| line),
            };
            let mut now = match dialled {
                Ok(line) => line,
                Err(error) => break error,
            };
            if frames.is_closed() {
                // Whoever waited has gone to the origin. The next one finds the connection ready.
                return Some(now);
            }
            let stream = &mut now.stream;
            let asked = async {
                let hash = self.ask(stream, &ask.encode(), ask.object, ask.chunk).await?;
                let tell = || {
                    if let Some(begun) = begun.take() {
                        // Nobody listens where the reader has gone to the origin.
                        let _ = begun.send(Ok(()));
                    }
                };
                blobs::take(&mut **stream, hash, ask.range.clone(), size, &frames, tell).await
            };
            let left = async {
                frames.closed().await;
                tokio::time::sleep(HEAR_OUT_LIMIT).await;
            };
            let outcome = tokio::select! {
                outcome = asked => outcome,
                () = left => Err(blobs::abandoned()),
            };
            match outcome {
                Ok(()) => return Some(now),
                Err(PeerError::NotHere { object, chunk }) => {
                    self.board.lacks(
                        self.index,
                        ChunkKey { object: ObjectIndex(object), chunk: ChunkIndex(chunk) },
                    );
                    if let Some(begun) = begun.take() {
                        let _ = begun.send(Err(PeerFailed("the peer has it no more".into())));
                    }
                    return Some(now);
                }
                Err(_) if !fresh && begun.is_some() && !frames.is_closed() => fresh = true,
                Err(error) => break error,
            }
        };
        tracing::debug!(event = "peer.chunk", peer = self.index, error = ?error, "a chunk did not come: {}", chain(&error));
        let failed = PeerFailed(chain(&error));
        match begun.take() {
            Some(begun) => drop(begun.send(Err(failed))),
            None => drop(frames.try_send(Err(failed))),
        }
        None
    }

    async fn ask(
        &self,
        stream: &mut Box<dyn Wire>,
        ask: &[u8],
        object: usize,
        chunk: u64,
    ) -> Result<[u8; 32], PeerError> {
        let mut bytes = [0; ANSWER];
        let answered = async {
            say(stream, ask).await?;
            stream.read_exact(&mut bytes).await.map_err(PeerError::Broken)
        };
        within(blobs::STALL, answered).await??;
        match Answer::decode(&bytes) {
            Some(Answer::Blob(hash)) => Ok(hash),
            Some(Answer::NotHere) => Err(PeerError::NotHere { object, chunk }),
            None => Err(PeerError::Protocol { expected: "an answer", got: "something else".into() }),
        }
    }
}
