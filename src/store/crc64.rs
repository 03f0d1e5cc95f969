//! CRC-64/XZ, the checksum OSS keeps for every object (`x-oss-hash-crc64ecma`), and its combination.
//!
//! It finds accidents, not attackers: authenticity is the cipher's business. Tested here against the catalogue's check
//! value and by splitting at random.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest, checksum_combine};

/// A checksum of bytes that come in pieces.
pub struct Crc64(Digest);

impl Default for Crc64 {
    fn default() -> Self {
        Crc64(Digest::new(CrcAlgorithm::Crc64Xz))
    }
}

impl Crc64 {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of everything so far.
    pub fn finish(&self) -> u64 {
        self.0.finalize()
    }
}

/// Checksum of the concatenation of `frames`.
pub fn of_frames(frames: &[Bytes]) -> u64 {
    let mut crc = Crc64::default();
    frames.iter().for_each(|frame| crc.update(frame));
    crc.finish()
}

/// Checksum of `bytes`.
pub fn of(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Xz, bytes)
}

/// Checksum of a concatenation from the checksum and length in bytes of each part, in order; 0 for nothing.
///
/// Costs tens of microseconds a part: not to be called under a lock.
pub fn combine(parts: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    parts.into_iter().fold(0, |whole, (crc, len)| match len {
        0 => whole,
        len => checksum_combine(CrcAlgorithm::Crc64Xz, whole, crc, len),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn crc_of_the_catalogue_string_is_the_catalogue_value() {
        // Source: reveng catalogue, CRC-64/XZ, check value.
        assert_eq!(of(b"123456789"), 0x995d_c9bb_df19_39fa);
        assert_eq!(of(b""), 0);
        assert_eq!(combine([]), 0);
    }

    proptest! {
        #[test]
        fn combining_any_split_gives_the_whole(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..6),
        ) {
            let whole = parts.concat();
            let sums = parts.iter().map(|part| (of(part), part.len() as u64));
            prop_assert_eq!(combine(sums), of(&whole));
            let frames: Vec<Bytes> = parts.iter().cloned().map(Bytes::from).collect();
            prop_assert_eq!(of_frames(&frames), of(&whole));
        }
    }
}
