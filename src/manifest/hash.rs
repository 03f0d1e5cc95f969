//! BLAKE3 over objects in chunks that can each be checked alone.

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

/// Bytes under one hash: the store's chunk, and a whole subtree of BLAKE3.
pub const CHUNK_LEN: u64 = 8 << 20;

/// 32 bytes of BLAKE3: a hash, or the chaining value of a subtree.
pub type Hash = [u8; 32];

/// Number of hashes of an object of `len` bytes: one per started chunk, one if it is empty.
pub(super) fn count(len: u64) -> u64 {
    len.div_ceil(CHUNK_LEN).max(1)
}

/// Hashes one chunk of an object, in whatever pieces it arrives.
pub struct ChunkHasher {
    hasher: blake3::Hasher,
    whole: bool,
}

impl ChunkHasher {
    /// For chunk `chunk` of an object of `len` bytes; the last one, where it has no such chunk.
    pub fn new(len: u64, chunk: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        // The library insists on whole chunks, which the last of an object is and a saturated number is not.
        hasher.set_input_offset(chunk.min(count(len).saturating_sub(1)).saturating_mul(CHUNK_LEN));
        ChunkHasher { hasher, whole: len <= CHUNK_LEN }
    }

    /// The next bytes of the chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        // A subtree has room for one chunk and the library insists; more would be no chunk of ours.
        let room = usize::try_from(CHUNK_LEN.saturating_sub(self.hasher.count())).unwrap_or(0);
        let (bytes, _) = bytes.split_at(bytes.len().min(room));
        self.hasher.update(bytes);
    }

    /// The chunk's hash. A chunk of no bytes exists in an empty object only.
    pub fn finish(self) -> Hash {
        if self.whole || self.hasher.count() == 0 {
            *self.hasher.finalize().as_bytes()
        } else {
            self.hasher.finalize_non_root()
        }
    }
}

/// Whether the bytes of a chunk are those of an object.
pub struct ChunkCheck {
    hasher: ChunkHasher,
    /// Bytes to come; `None` when there were more.
    left: Option<u64>,
    /// `None`: nothing is right.
    wanted: Option<Hash>,
}

impl ChunkCheck {
    /// Chunk `chunk` of an object of `len` bytes must have hash `wanted`; where there is none, no bytes are right.
    pub(super) fn new(len: u64, chunk: u64, wanted: Option<Hash>) -> Self {
        let left = len.saturating_sub(chunk.saturating_mul(CHUNK_LEN)).min(CHUNK_LEN);
        ChunkCheck { hasher: ChunkHasher::new(len, chunk), left: Some(left), wanted }
    }

    /// The next bytes of the chunk.
    pub fn update(&mut self, bytes: &[u8]) {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.left = self.left.and_then(|left| left.checked_sub(len));
        self.hasher.update(bytes);
    }

    /// Whether it was the chunk, whole.
    pub fn passed(self) -> bool {
        // A chunk that no object has is not hashed: it may lie where the library allows none.
        self.left == Some(0) && self.wanted.is_some_and(|wanted| wanted == self.hasher.finish())
    }
}

/// The ordinary hash of an object of `len` bytes with these chunk hashes, of which there are [`count`].
pub(super) fn root(len: u64, hashes: &[Hash]) -> Hash {
    match hashes {
        [only] => *only,
        _ => {
            let (left, right) = split(len, hashes);
            *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
        }
    }
}

/// Chaining values of the two halves of `len` bytes under more than one hash.
fn split(len: u64, hashes: &[Hash]) -> (Hash, Hash) {
    let left_len = left_subtree_len(len);
    let at = usize::try_from(left_len / CHUNK_LEN).unwrap_or(usize::MAX).min(hashes.len());
    let (left, right) = hashes.split_at(at);
    (subtree(left_len, left), subtree(len.saturating_sub(left_len), right))
}

fn subtree(len: u64, hashes: &[Hash]) -> Hash {
    match hashes {
        [only] => *only,
        // Unreachable for the number of hashes that `len` has; a wrong value is the safe answer.
        [] => [0; 32],
        _ => {
            let (left, right) = split(len, hashes);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(bytes: &[u8]) -> Vec<Hash> {
        let len = bytes.len() as u64;
        let step = usize::try_from(CHUNK_LEN).unwrap();
        (0..count(len))
            .map(|chunk| {
                let mut hasher = ChunkHasher::new(len, chunk);
                let start = usize::try_from(chunk).unwrap() * step;
                let end = bytes.len().min(start + step);
                bytes[start..end].chunks(1_000_003).for_each(|piece| hasher.update(piece));
                hasher.finish()
            })
            .collect()
    }

    #[test]
    fn chunk_hashes_merge_into_the_ordinary_hash_at_every_shape_of_the_tree() {
        let chunk = usize::try_from(CHUNK_LEN).unwrap();
        let bytes: Vec<u8> = (0..=250).cycle().take(5 * chunk + 3).collect();
        for len in [
            0,
            1,
            1024,
            chunk - 1,
            chunk,
            chunk + 1,
            2 * chunk,
            2 * chunk + 1,
            3 * chunk,
            4 * chunk,
            5 * chunk + 3,
        ] {
            let object = &bytes[..len];
            let found = root(len as u64, &hashes(object));
            assert_eq!(found, *blake3::hash(object).as_bytes(), "{len} bytes");
        }
    }

    #[test]
    fn chunks_of_the_same_bytes_differ_by_their_place() {
        let chunk = usize::try_from(CHUNK_LEN).unwrap();
        let [first, second] = hashes(&vec![7; 2 * chunk]).try_into().unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn more_bytes_than_a_chunk_has_are_no_panic() {
        let mut hasher = ChunkHasher::new(3 * CHUNK_LEN, 1);
        for _ in 0..20 {
            hasher.update(&[1; 1 << 20]);
        }
        let mut exact = ChunkHasher::new(3 * CHUNK_LEN, 1);
        exact.update(&vec![1; 8 << 20]);
        assert_eq!(hasher.finish(), exact.finish());
    }
}
