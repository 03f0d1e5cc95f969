//! Where things lie in a ciphertext file: sizes and offsets, pure arithmetic.
//!
//! All lengths and offsets are bytes. Source of every number: gocryptfs' `Documentation/file-format.md`.

/// Plaintext bytes in a full block.
pub const BLOCK: usize = 4096;
/// Nonce in front of each sealed block.
pub const NONCE: usize = 16;
/// GCM tag behind each sealed block.
pub const TAG: usize = 16;
/// What sealing adds to a block.
pub const OVERHEAD: usize = NONCE + TAG;
/// A full block as stored.
pub const SEALED_BLOCK: usize = BLOCK + OVERHEAD;
/// Random id of a file's content, bound into every block.
pub const FILE_ID: usize = 16;
/// Version (u16, big-endian) and file id, in front of the first block of a file that is not empty.
pub const HEADER: usize = 2 + FILE_ID;
/// The only header version there is.
pub const VERSION: u16 = 2;

const BLOCK_U64: u64 = BLOCK as u64;
const OVERHEAD_U64: u64 = OVERHEAD as u64;
const SEALED_BLOCK_U64: u64 = SEALED_BLOCK as u64;
const HEADER_U64: u64 = HEADER as u64;

/// Plaintext length of a ciphertext file of `cipher_len` bytes, as gocryptfs shows it.
///
/// No length is refused: 1 to 18 bytes hold no block and show as empty, and a last piece too short for a block counts
/// as one byte, so that reading it reports the damage.
pub fn plain_len(cipher_len: u64) -> u64 {
    let body = cipher_len.saturating_sub(HEADER_U64);
    let tail = match body % SEALED_BLOCK_U64 {
        0 => 0,
        rest => rest.saturating_sub(OVERHEAD_U64).max(1),
    };
    body / SEALED_BLOCK_U64 * BLOCK_U64 + tail
}

/// Ciphertext length of `plain_len` bytes; `None` when it does not fit `u64`.
pub fn cipher_len(plain_len: u64) -> Option<u64> {
    if plain_len == 0 {
        return Some(0);
    }
    let tail = match plain_len % BLOCK_U64 {
        0 => 0,
        rest => rest + OVERHEAD_U64,
    };
    (plain_len / BLOCK_U64).checked_mul(SEALED_BLOCK_U64)?.checked_add(HEADER_U64 + tail)
}

/// Block that holds plaintext byte `offset`.
pub fn block_of(offset: u64) -> u64 {
    offset / BLOCK_U64
}

/// Position of plaintext byte `offset` in its block.
pub fn offset_in_block(offset: u64) -> usize {
    // A remainder of 4096 fits every usize.
    usize::try_from(offset % BLOCK_U64).unwrap_or(0)
}

/// Ciphertext offset of block `block`; saturates, which no file can reach.
pub fn cipher_offset(block: u64) -> u64 {
    block.saturating_mul(SEALED_BLOCK_U64).saturating_add(HEADER_U64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen with gocryptfs 2.4.0: plaintext length, ciphertext length.
    const SIZES: [(u64, u64); 8] = [
        (0, 0),
        (1, 51),
        (4095, 4145),
        (4096, 4146),
        (4097, 4179),
        (5000, 5082),
        (131_072, 132_114),
        (300_000_000, 302_343_794),
    ];

    #[test]
    fn lengths_both_ways_are_gocryptfs_own() {
        for (plain, cipher) in SIZES {
            assert_eq!(cipher_len(plain), Some(cipher), "plain {plain}");
            assert_eq!(plain_len(cipher), plain, "cipher {cipher}");
        }
    }

    #[test]
    fn plain_len_of_a_damaged_length_is_what_gocryptfs_shows() {
        for (cipher, plain) in
            [(1, 0), (17, 0), (18, 0), (19, 1), (50, 1), (51, 1), (4147, 4097), (4178, 4097)]
        {
            assert_eq!(plain_len(cipher), plain, "cipher {cipher}");
        }
    }

    #[test]
    fn cipher_len_that_does_not_fit_is_none() {
        assert_eq!(cipher_len(u64::MAX), None);
        let longest = plain_len(u64::MAX);
        assert!(cipher_len(longest).is_some_and(|cipher| cipher > u64::MAX - 4128), "{longest}");
    }

    #[test]
    fn cipher_offset_counts_header_and_sealed_blocks() {
        let offsets: Vec<u64> = [0, 1, 2, 100].map(cipher_offset).to_vec();
        assert_eq!(offsets, [18, 4146, 8274, 412_818]);
        assert_eq!((block_of(4095), block_of(4096), offset_in_block(4097)), (0, 1, 1));
    }
}
