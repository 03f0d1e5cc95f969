//! The last few chunks in memory, for when the disk takes nothing any more.

use std::collections::VecDeque;

use bytes::Bytes;

use super::flight::Ready;
use super::layout::ChunkKey;

/// Chunks kept: a reader takes a chunk in many small reads, and a handful of readers do so side by side. 16 chunks of
/// 8 MiB are 128 MiB at most, and nothing at all while the disk works.
pub const KEPT: usize = 16;

/// Most recently fetched chunks, oldest first.
#[derive(Debug, Default)]
pub struct Recent {
    chunks: VecDeque<(ChunkKey, Vec<Bytes>)>,
}

impl Recent {
    /// The frames of `key`, if they are still here.
    pub fn get(&self, key: ChunkKey) -> Option<Vec<Bytes>> {
        self.chunks.iter().find(|(other, _)| *other == key).map(|(_, frames)| frames.clone())
    }

    /// Keep `frames` for the next read, and serve this one from them.
    pub fn serve(&mut self, key: ChunkKey, frames: Vec<Bytes>) -> Ready {
        self.put(key, frames.clone());
        Ready::Memory(frames)
    }

    /// Keep `frames`, dropping the oldest.
    fn put(&mut self, key: ChunkKey, frames: Vec<Bytes>) {
        self.chunks.retain(|(other, _)| *other != key);
        self.chunks.push_back((key, frames));
        while self.chunks.len() > KEPT {
            self.chunks.pop_front();
        }
    }
}

/// Copy `buf.len()` bytes from `offset` of the concatenation of `frames`; `false` when they end before.
pub fn copy_frames(frames: &[Bytes], mut offset: usize, mut buf: &mut [u8]) -> bool {
    for frame in frames {
        let Some(rest) = frame.get(offset..) else {
            offset -= frame.len();
            continue;
        };
        offset = 0;
        let len = rest.len().min(buf.len());
        let Some((now, later)) = buf.split_at_mut_checked(len) else { return false };
        now.copy_from_slice(rest.get(..len).unwrap_or_default());
        buf = later;
    }
    buf.is_empty() && offset == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{ChunkIndex, ObjectIndex};
    use super::*;

    #[test]
    fn recent_drops_the_oldest() {
        let key = |chunk| ChunkKey { object: ObjectIndex(0), chunk: ChunkIndex(chunk) };
        let mut recent = Recent::default();
        (0..=KEPT as u64).for_each(|chunk| recent.put(key(chunk), vec![Bytes::from(chunk.to_string())]));
        assert_eq!(recent.get(key(0)), None);
        assert_eq!(recent.get(key(1)), Some(vec![Bytes::from_static(b"1")]));
    }

    proptest! {
        #[test]
        fn copy_equals_a_slice_of_the_concatenation(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..8),
            offset in 0usize..100, len in 0usize..100,
        ) {
            let whole = parts.concat();
            let frames: Vec<Bytes> = parts.into_iter().map(Bytes::from).collect();
            let mut buf = vec![0; len];
            let copied = copy_frames(&frames, offset, &mut buf);
            match whole.get(offset..offset + len) {
                Some(expected) => { prop_assert!(copied); prop_assert_eq!(buf, expected) }
                None => prop_assert!(!copied),
            }
        }
    }
}
