//! What shows that bytes are a chunk of the model: the manifest, or else, for bytes of a peer, the blocks they make.

use std::ops::Range;
use std::sync::Arc;

use crate::ciphertext::{Judge, Judgement};
use crate::manifest::ChunkCheck;

/// Bytes that are judged at a time: enough of them to make the call cheap, few enough to be in a core's cache still.
const PIECE: usize = 256 << 10;

/// Looks at a chunk while it arrives.
pub enum Check {
    /// Nobody knows better than the origin.
    Nothing,
    /// Against the manifest.
    Manifest(ChunkCheck),
    /// Every block of it must open.
    Blocks(BlockCheck),
}

impl Check {
    /// The next bytes of the chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Check::Nothing => {}
            Check::Manifest(check) => check.update(bytes),
            Check::Blocks(check) => check.update(bytes),
        }
    }

    /// What is to be thought of the whole of it.
    pub fn finish(self) -> Judgement {
        match self {
            Check::Nothing => Judgement::Genuine,
            Check::Manifest(check) => {
                if check.passed() {
                    Judgement::Genuine
                } else {
                    Judgement::Forged
                }
            }
            Check::Blocks(check) => check.finish(),
        }
    }
}

/// What is around a chunk, from a source that is believed.
pub struct Edges {
    /// The file's first bytes, [`Judge::head`] of them.
    pub head: Vec<u8>,
    /// From the beginning of the chunk's first block to the chunk.
    pub before: Vec<u8>,
    /// From the chunk to the end of its last block.
    pub after: Vec<u8>,
}

/// Opens the blocks of a chunk as its bytes arrive.
pub struct BlockCheck {
    judge: Arc<dyn Judge>,
    len: u64,
    edges: Edges,
    /// Of the first byte that was not judged yet.
    offset: u64,
    unjudged: Vec<u8>,
    judgement: Judgement,
}

impl BlockCheck {
    /// For bytes `chunk` of a file of `len`.
    pub fn new(judge: Arc<dyn Judge>, len: u64, chunk: &Range<u64>, mut edges: Edges) -> Self {
        let unjudged = std::mem::take(&mut edges.before);
        let offset = chunk.start.saturating_sub(u64::try_from(unjudged.len()).unwrap_or(u64::MAX));
        BlockCheck { judge, len, edges, offset, unjudged, judgement: Judgement::Genuine }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.unjudged.extend_from_slice(bytes);
        if self.unjudged.len() >= PIECE {
            let end = self.offset.saturating_add(u64::try_from(self.unjudged.len()).unwrap_or(u64::MAX));
            let last = self.judge.span(self.len, end.saturating_sub(1)..end);
            self.judge_until(if last.end == end { end } else { last.start });
        }
    }

    /// Judge what is before `end`, a border of blocks.
    fn judge_until(&mut self, end: u64) {
        let count = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let later = self.unjudged.split_off(count.min(self.unjudged.len()));
        let now = std::mem::replace(&mut self.unjudged, later);
        if now.is_empty() || self.judgement == Judgement::Forged {
            return;
        }
        match self.judge.judge(&self.edges.head, self.offset, &now) {
            Judgement::Genuine => {}
            worse => self.judgement = worse,
        }
        self.offset = self.offset.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
    }

    fn finish(mut self) -> Judgement {
        let after = std::mem::take(&mut self.edges.after);
        self.unjudged.extend_from_slice(&after);
        self.judge_until(u64::MAX);
        self.judgement
    }
}
