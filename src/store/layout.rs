//! Range arithmetic: how an object is cut into chunks, and a read into pieces of chunks. Pure.

use std::ops::Range;

/// Index of an object in the list the store was opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectIndex(pub usize);

/// Index of a chunk in its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkIndex(pub u64);

/// One chunk of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkKey {
    /// The object.
    pub object: ObjectIndex,
    /// The chunk of it.
    pub chunk: ChunkIndex,
}

/// How one object of `len` bytes is cut: chunks of `chunk_len` bytes, the last one shorter; none if it is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Object length in bytes.
    pub len: u64,
    /// Chunk length in bytes, at least 1.
    chunk_len: u64,
}

/// The part of a read that lies in one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The chunk.
    pub chunk: ChunkIndex,
    /// Offset in the object, in bytes.
    pub offset: u64,
    /// Offset in the chunk, in bytes.
    pub within: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
}

impl Layout {
    /// Cut `len` bytes into chunks of `chunk_len` (0 counts as 1).
    pub fn new(len: u64, chunk_len: u64) -> Self {
        Layout { len, chunk_len: chunk_len.max(1) }
    }

    /// Chunk length in bytes.
    pub fn chunk_len(&self) -> u64 {
        self.chunk_len
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.len.div_ceil(self.chunk_len)
    }

    /// Bytes of the object that `chunk` covers; empty when it is outside.
    pub fn range(&self, chunk: ChunkIndex) -> Range<u64> {
        let start = chunk.0.saturating_mul(self.chunk_len).min(self.len);
        start..start.saturating_add(self.chunk_len).min(self.len)
    }

    /// Length of `chunk` in bytes; 0 when it is outside.
    pub fn len_of(&self, chunk: ChunkIndex) -> u64 {
        let range = self.range(chunk);
        range.end.saturating_sub(range.start)
    }

    /// Bytes of it without `missing` chunks, of which the last of all is one if `lacks_last`.
    pub fn len_without(&self, missing: u64, lacks_last: bool) -> u64 {
        let last = ChunkIndex(self.chunks().saturating_sub(1));
        let short = if lacks_last { self.chunk_len.saturating_sub(self.len_of(last)) } else { 0 };
        self.len.saturating_sub(missing.saturating_mul(self.chunk_len).saturating_sub(short))
    }

    /// Cut the read `offset..offset + len` at chunk borders, in order. `None` when it is not inside the object.
    pub fn pieces(&self, offset: u64, len: u64) -> Option<impl Iterator<Item = Piece>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len)?;
        let layout = *self;
        let chunks = if len == 0 { 0..0 } else { offset / layout.chunk_len..end.div_ceil(layout.chunk_len) };
        Some(chunks.map(move |index| {
            let chunk = ChunkIndex(index);
            let range = layout.range(chunk);
            let start = offset.max(range.start);
            let within = start.saturating_sub(range.start);
            Piece { chunk, offset: start, within, len: end.min(range.end).saturating_sub(start) }
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn layout_of_an_empty_object_has_no_chunk() {
        let layout = Layout::new(0, 8);
        assert_eq!(layout.chunks(), 0);
        assert_eq!(layout.range(ChunkIndex(0)), 0..0);
        assert_eq!(layout.pieces(0, 0).unwrap().count(), 0);
        assert!(layout.pieces(0, 1).is_none());
    }

    #[test]
    fn layout_ends_in_the_remainder() {
        let layout = Layout::new(17, 8);
        let ranges: Vec<_> = (0..layout.chunks()).map(|chunk| layout.range(ChunkIndex(chunk))).collect();
        assert_eq!(ranges, [0..8, 8..16, 16..17]);
        assert_eq!(layout.len_of(ChunkIndex(2)), 1);
        assert_eq!(layout.len_of(ChunkIndex(3)), 0);
        assert_eq!(layout.len_of(ChunkIndex(u64::MAX)), 0);
    }

    #[test]
    fn read_that_wraps_around_is_outside() {
        assert!(Layout::new(u64::MAX, 8).pieces(u64::MAX, 2).is_none());
        assert!(Layout::new(10, 8).pieces(11, 0).is_none());
    }

    proptest! {
        #[test]
        fn chunks_cover_the_object_once_in_order(len in 0u64..5_000, chunk_len in 1u64..700) {
            let layout = Layout::new(len, chunk_len);
            let mut next = 0;
            for chunk in 0..layout.chunks() {
                let range = layout.range(ChunkIndex(chunk));
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end > range.start && range.end - range.start <= chunk_len);
                next = range.end;
            }
            prop_assert_eq!(next, len);
        }

        #[test]
        fn length_without_chunks_is_that_of_the_others(
            len in 0u64..5_000, chunk_len in 1u64..700, here: u64,
        ) {
            let layout = Layout::new(len, chunk_len);
            let is_here = |chunk: u64| here.rotate_left(u32::try_from(chunk % 64).unwrap()) & 1 == 1;
            let (here, missing): (Vec<_>, Vec<_>) = (0..layout.chunks()).partition(|chunk| is_here(*chunk));
            let expected: u64 = here.iter().map(|chunk| layout.len_of(ChunkIndex(*chunk))).sum();
            let lacks_last = missing.last() == layout.chunks().checked_sub(1).as_ref() && !missing.is_empty();
            prop_assert_eq!(layout.len_without(missing.len() as u64, lacks_last), expected);
        }

        #[test]
        fn pieces_cover_the_read_once_in_order(
            object in 0u64..5_000, chunk_len in 1u64..700, offset in 0u64..6_000, len in 0u64..6_000,
        ) {
            let layout = Layout::new(object, chunk_len);
            match layout.pieces(offset, len) {
                None => prop_assert!(offset + len > object),
                Some(pieces) => {
                    let mut next = offset;
                    for piece in pieces {
                        let range = layout.range(piece.chunk);
                        prop_assert_eq!(piece.offset, next);
                        prop_assert_eq!(piece.within, piece.offset - range.start);
                        prop_assert!(piece.len > 0 && piece.offset + piece.len <= range.end);
                        next += piece.len;
                    }
                    prop_assert_eq!(next, offset + len);
                }
            }
        }
    }
}
