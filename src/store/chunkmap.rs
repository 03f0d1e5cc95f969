//! What is known of an object's local chunks, and how that is kept in the sidecar file.
//!
//! Format, little endian: magic, version u32, chunk count u32, chunk length u64, object length u64, object CRC flag u32,
//! path length u32, object CRC u64, entity tag length u32, then path, tag, bitmap (1 bit a chunk, lowest bit first), one
//! CRC-64 a chunk (0 for a missing one), and the CRC-64 of all before. Pure; tested here, by round trips and by damage.

use super::crc64;
use super::layout::Layout;
use super::source::Object;

/// First bytes of a sidecar.
const MAGIC: &[u8; 8] = b"CAICHNK\n";
/// Version of the format; another one is discarded, never guessed at.
const VERSION: u32 = 1;

/// What is known of one chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    /// Not here.
    Missing,
    /// Said to be here, with this CRC-64, by a sidecar that was not closed, or come into doubt since: to be checked before
    /// its next use.
    Unverified(u64),
    /// Here, with this CRC-64.
    Present(u64),
}

impl Chunk {
    /// The chunk's CRC-64, where it has one.
    pub fn crc(self) -> Option<u64> {
        match self {
            Chunk::Missing => None,
            Chunk::Unverified(crc) | Chunk::Present(crc) => Some(crc),
        }
    }
}

/// What a sidecar holds beside the object's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkMap {
    /// One for each chunk of the object.
    pub chunks: Vec<Chunk>,
    /// CRC-64 of the whole object, where the origin told it.
    pub object_crc64: Option<u64>,
}

/// Why a sidecar is of no use. Its object is then fetched afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not a sidecar of this version, or damaged.
    #[error("the chunk map is damaged or of another version")]
    Damaged,
    /// The sidecar belongs to another path, length, entity tag or chunk length.
    #[error("the chunk map describes another version of the object")]
    OtherObject,
}

impl ChunkMap {
    /// Nothing here yet.
    pub fn empty(layout: Layout) -> Self {
        let count = usize::try_from(layout.chunks()).unwrap_or(usize::MAX);
        ChunkMap { chunks: vec![Chunk::Missing; count], object_crc64: None }
    }

    /// The sidecar of `object`.
    pub fn encode(&self, object: &Object, layout: Layout) -> Vec<u8> {
        let path = object.path.as_os_str().as_encoded_bytes();
        let mut out = Vec::with_capacity(Self::max_encoded_len(object, layout));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&len32(&self.chunks));
        out.extend_from_slice(&layout.chunk_len().to_le_bytes());
        out.extend_from_slice(&object.len.to_le_bytes());
        out.extend_from_slice(&u32::from(self.object_crc64.is_some()).to_le_bytes());
        out.extend_from_slice(&len32(path));
        out.extend_from_slice(&self.object_crc64.unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&len32(object.etag.as_bytes()));
        out.extend_from_slice(path);
        out.extend_from_slice(object.etag.as_bytes());
        out.extend(self.chunks.chunks(8).map(|eight| {
            eight.iter().rev().fold(0u8, |byte, chunk| byte << 1 | u8::from(chunk.crc().is_some()))
        }));
        self.chunks.iter().for_each(|chunk| out.extend_from_slice(&chunk.crc().unwrap_or(0).to_le_bytes()));
        let crc = crc64::of(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Longest sidecar `object` can have, in bytes: nothing longer needs to be read.
    pub fn max_encoded_len(object: &Object, layout: Layout) -> usize {
        let chunks = usize::try_from(layout.chunks()).unwrap_or(usize::MAX);
        let names = object.path.as_os_str().len().saturating_add(object.etag.len());
        let fixed = 64usize;
        fixed
            .saturating_add(names)
            .saturating_add(chunks.saturating_mul(8))
            .saturating_add(chunks.div_ceil(8))
    }

    /// Read a sidecar that must describe `object`. Chunks it has are [`Chunk::Present`] when `clean`, else
    /// [`Chunk::Unverified`].
    ///
    /// # Errors
    /// [`MapError`].
    pub fn decode(bytes: &[u8], object: &Object, layout: Layout, clean: bool) -> Result<Self, MapError> {
        let (body, crc) = bytes.split_last_chunk::<8>().ok_or(MapError::Damaged)?;
        if crc64::of(body) != u64::from_le_bytes(*crc) {
            return Err(MapError::Damaged);
        }
        let mut read = Reader(body);
        if read.take(MAGIC.len())? != MAGIC || read.u32()? != VERSION {
            return Err(MapError::Damaged);
        }
        let count = read.u32()?;
        let same_shape = read.u64()? == layout.chunk_len() && read.u64()? == object.len;
        let has_crc = read.u32()? == 1;
        let path_len = read.u32()?;
        let object_crc64 = Some(read.u64()?).filter(|_| has_crc);
        let etag_len = read.u32()?;
        let path = read.take(usize::try_from(path_len).map_err(|_| MapError::Damaged)?)?;
        let etag = read.take(usize::try_from(etag_len).map_err(|_| MapError::Damaged)?)?;
        let same_object =
            path == object.path.as_os_str().as_encoded_bytes() && etag == object.etag.as_bytes();
        if !same_shape || !same_object || u64::from(count) != layout.chunks() {
            return Err(MapError::OtherObject);
        }
        let count = usize::try_from(count).map_err(|_| MapError::Damaged)?;
        let bits = read.take(count.div_ceil(8))?;
        let crcs = read.take(count.checked_mul(8).ok_or(MapError::Damaged)?)?;
        let bits = bits.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
        let present = if clean { Chunk::Present } else { Chunk::Unverified };
        let chunks = bits
            .zip(crcs.as_chunks::<8>().0)
            .map(|(set, crc)| if set { present(u64::from_le_bytes(*crc)) } else { Chunk::Missing });
        Ok(ChunkMap { chunks: chunks.collect(), object_crc64 })
    }
}

/// Length of `items` as it is stored. Object keys, tags and chunk counts are far below the limit; a longer one would be
/// found by the decoder as a sidecar of another object.
fn len32<T>(items: &[T]) -> [u8; 4] {
    u32::try_from(items.len()).unwrap_or(u32::MAX).to_le_bytes()
}

/// Takes fields off the front of a sidecar.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], MapError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(MapError::Damaged)?;
        self.0 = rest;
        Ok(head)
    }

    fn u32(&mut self) -> Result<u32, MapError> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(MapError::Damaged)
    }

    fn u64(&mut self) -> Result<u64, MapError> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or(MapError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    fn object(path: &str, len: u64, etag: &str) -> Object {
        Object { path: path.into(), len, etag: etag.into(), modified: SystemTime::UNIX_EPOCH }
    }

    fn map_of(marks: &[Option<u64>], object_crc64: Option<u64>) -> ChunkMap {
        let chunks = marks.iter().map(|crc| crc.map_or(Chunk::Missing, Chunk::Present)).collect();
        ChunkMap { chunks, object_crc64 }
    }

    #[test]
    fn map_of_another_version_of_the_object_is_refused() {
        let layout = Layout::new(20, 8);
        let bytes = ChunkMap::empty(layout).encode(&object("a", 20, "\"1\""), layout);
        let others = [
            (object("b", 20, "\"1\""), layout),
            (object("a", 20, "\"2\""), layout),
            (object("a", 21, "\"1\""), Layout::new(21, 8)),
            (object("a", 20, "\"1\""), Layout::new(20, 4)),
        ];
        for (other, layout) in others {
            assert_eq!(
                ChunkMap::decode(&bytes, &other, layout, true),
                Err(MapError::OtherObject),
                "{other:?}"
            );
        }
    }

    #[test]
    fn map_of_an_unclean_stop_is_unverified() {
        let (layout, object) = (Layout::new(20, 8), object("a", 20, "\"1\""));
        let bytes = map_of(&[Some(7), None, Some(9)], Some(3)).encode(&object, layout);
        let map = ChunkMap::decode(&bytes, &object, layout, false).unwrap();
        assert_eq!(map.chunks, [Chunk::Unverified(7), Chunk::Missing, Chunk::Unverified(9)]);
        assert_eq!(map.object_crc64, Some(3));
    }

    proptest! {
        #[test]
        fn map_comes_back_as_it_was_written(
            marks in proptest::collection::vec(any::<Option<u64>>(), 0..40),
            object_crc64: Option<u64>, tail in 1u64..=64, path in "[a-z/é]{1,20}", etag in "\"[0-9A-F]{0,32}\"",
        ) {
            let len = (marks.len() as u64).saturating_sub(1) * 64 + if marks.is_empty() { 0 } else { tail };
            let (layout, object) = (Layout::new(len, 64), object(&path, len, &etag));
            let map = map_of(&marks, object_crc64);
            let bytes = map.encode(&object, layout);
            prop_assert!(bytes.len() <= ChunkMap::max_encoded_len(&object, layout));
            prop_assert_eq!(ChunkMap::decode(&bytes, &object, layout, true), Ok(map));
        }

        #[test]
        fn damaged_map_is_refused(
            marks in proptest::collection::vec(any::<Option<u64>>(), 1..20), at: prop::sample::Index, bit in 0u8..8,
            cut: prop::sample::Index,
        ) {
            let len = marks.len() as u64 * 64;
            let (layout, object) = (Layout::new(len, 64), object("model/x", len, "\"e\""));
            let bytes = map_of(&marks, None).encode(&object, layout);
            let mut flipped = bytes.clone();
            flipped[at.index(bytes.len())] ^= 1 << bit;
            prop_assert_eq!(ChunkMap::decode(&flipped, &object, layout, true), Err(MapError::Damaged));
            let short = &bytes[..cut.index(bytes.len())];
            prop_assert_eq!(ChunkMap::decode(short, &object, layout, true), Err(MapError::Damaged));
        }
    }
}
