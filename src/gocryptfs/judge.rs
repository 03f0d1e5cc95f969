//! Whether bytes that nobody vouches for are a file's: every block of them opens, or they are not.
//!
//! Stricter than reading: a block of zeros, which the format takes for a hole, proves nothing, for anybody could have made it.
//! What no block can show is told nowhere: an older state of a block of the same file. Pure; the plaintext is overwritten by
//! the next block's and wiped at the end. Tested in `tests/format_props.rs`.

use std::ops::Range;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::content::{FileId, open_block};
use super::keys::Keys;
use super::layout::{BLOCK, HEADER};
use crate::ciphertext::{Judge, Judgement};

/// Judges the content of one model's files.
pub struct BlockJudge {
    keys: Arc<Keys>,
}

impl BlockJudge {
    /// With the keys that open the model.
    pub fn new(keys: Arc<Keys>) -> Self {
        BlockJudge { keys }
    }

    /// Number of the block that holds ciphertext byte `offset`; the header counts to the first.
    fn block_at(&self, offset: u64) -> u64 {
        // A sealed block is a few KiB.
        let sealed = u64::try_from(self.keys.layout().sealed_block()).unwrap_or(u64::MAX);
        offset.saturating_sub(self.head()) / sealed
    }
}

impl Judge for BlockJudge {
    fn head(&self) -> u64 {
        u64::try_from(HEADER).unwrap_or(u64::MAX)
    }

    fn span(&self, len: u64, range: Range<u64>) -> Range<u64> {
        let start = match range.start < self.head() {
            true => 0,
            false => self.keys.layout().cipher_offset(self.block_at(range.start)),
        };
        let end = match range.end <= self.head() {
            true => self.head(),
            false => {
                self.keys.layout().cipher_offset(self.block_at(range.end.saturating_sub(1)).saturating_add(1))
            }
        };
        start.min(len)..end.min(len)
    }

    fn judge(&self, head: &[u8], offset: u64, bytes: &[u8]) -> Judgement {
        let Some(id) = <&[u8; HEADER]>::try_from(head).ok().and_then(|head| FileId::from_header(head).ok())
        else {
            return Judgement::Forged;
        };
        let Some(sealed) = (if offset == 0 { bytes.strip_prefix(head) } else { Some(bytes) }) else {
            return Judgement::Forged;
        };
        let (layout, mut plain) = (self.keys.layout(), Zeroizing::new([0; BLOCK]));
        let mut judgement = Judgement::Genuine;
        for (block, sealed) in (self.block_at(offset)..).zip(sealed.chunks(layout.sealed_block())) {
            let target = plain.get_mut(..sealed.len().saturating_sub(layout.overhead()));
            if !target.is_some_and(|target| open_block(&self.keys, id, block, sealed, target).is_ok()) {
                return Judgement::Forged;
            }
            if sealed.iter().take(layout.nonce()).all(|&byte| byte == 0) {
                judgement = Judgement::Unprovable;
            }
        }
        judgement
    }
}
