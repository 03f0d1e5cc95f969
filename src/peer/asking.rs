//! A chunk is asked of one peer: the job that its lanes do, and what becomes of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, oneshot};

use super::board::Board;
use super::wire::Ask;
use crate::ciphertext::Judgement;
use crate::store::{ChunkKey, PeerFailed, Received, Sender};

/// Bytes that are wanted of a peer.
pub struct Job {
    /// Which.
    pub ask: Ask,
    /// Length of the chunk in bytes.
    pub size: u64,
    /// Told once the first byte is here, or that none will be.
    pub begun: oneshot::Sender<Result<(), PeerFailed>>,
    /// Where the bytes go.
    pub frames: mpsc::Sender<Result<Bytes, PeerFailed>>,
}

/// Where the lanes of one peer take their jobs from.
pub struct Queues {
    /// For the fill.
    pub jobs: mpsc::UnboundedReceiver<Job>,
    /// For readers.
    pub urgent: mpsc::UnboundedReceiver<Job>,
}

/// Frames of a job that may wait to be taken. A lane pauses then.
const FRAMES: usize = 4;

impl Board {
    /// Ask whoever is to be asked for bytes `range` of the object of `chunk`, which are some of that.
    pub(super) async fn ask<'a>(
        self: &Arc<Self>,
        chunk: ChunkKey,
        range: Range<u64>,
        urgent: bool,
    ) -> Result<Received<'a>, PeerFailed> {
        let gone = || PeerFailed("no peer has it".into());
        let size = self.len_of(chunk).ok_or_else(gone)?;
        let start = self.start_of(chunk).ok_or_else(gone)?;
        let range = range.start.saturating_sub(start)..range.end.saturating_sub(start).min(size);
        let (index, queue) = self.choose(chunk, urgent).ok_or_else(gone)?;
        let len = range.end.saturating_sub(range.start);
        let asked = Arc::new(Asked::new(self.clone(), index, len, urgent));
        let (begun, has_begun) = oneshot::channel();
        let (frames, coming) = mpsc::channel(FRAMES);
        let ask = Ask { object: chunk.object.0, chunk: chunk.chunk.0, range, urgent };
        queue.send(Job { ask, size, begun, frames }).map_err(|_| gone())?;
        has_begun.await.unwrap_or_else(|_| Err(gone()))?;
        asked.counts.store(true, Ordering::Relaxed);
        let sender: Arc<dyn Sender> = asked.clone();
        let next = async |(mut coming, asked): (mpsc::Receiver<_>, Arc<Asked>)| {
            let frame: Result<Bytes, PeerFailed> = coming.recv().await?;
            Some((frame, (coming, asked)))
        };
        Ok(Received { frames: stream::unfold((coming, asked), next).boxed(), sender })
    }
}

/// A chunk that a peer was asked for; as long as this lives, the peer has that to do.
pub(super) struct Asked {
    board: Arc<Board>,
    index: usize,
    len: u64,
    /// It is a failure if nothing comes of it.
    counts: AtomicBool,
}

impl Asked {
    /// A reader's is no failure before it began: it did not wait for long.
    pub(super) fn new(board: Arc<Board>, index: usize, len: u64, urgent: bool) -> Self {
        Asked { board, index, len, counts: AtomicBool::new(!urgent) }
    }
}

impl Sender for Asked {
    fn judged(&self, chunk: ChunkKey, judgement: Judgement) {
        self.counts.store(false, Ordering::Relaxed);
        self.board.judged(self.index, chunk, self.len, judgement);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.board.done(self.index, self.counts.load(Ordering::Relaxed));
    }
}
