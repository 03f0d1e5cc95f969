//! Where things lie in a ciphertext file: sizes and offsets, pure arithmetic.
//!
//! All lengths and offsets are bytes. Source of every number: gocryptfs' `Documentation/file-format.md`. The content
//! ciphers differ in their nonce alone, so a [`Layout`] is the length of one; the constants and free functions here are
//! those of [`Layout::AES`], which is what cai writes.

/// Plaintext bytes in a full block.
pub const BLOCK: usize = 4096;
/// Nonce in front of each block sealed with AES-GCM or AES-SIV.
pub const NONCE: usize = 16;
/// Nonce in front of each block sealed with XChaCha20-Poly1305.
pub const XCHACHA_NONCE: usize = 24;
/// Authentication tag of each block: behind the data, but with AES-SIV before it.
pub const TAG: usize = 16;
/// What sealing adds to a block.
pub const OVERHEAD: usize = Layout::AES.overhead();
/// A full block as stored.
pub const SEALED_BLOCK: usize = Layout::AES.sealed_block();
/// Random id of a file's content, bound into every block.
pub const FILE_ID: usize = 16;
/// Version (u16, big-endian) and file id, in front of the first block of a file that is not empty.
pub const HEADER: usize = 2 + FILE_ID;
/// The only header version there is.
pub const VERSION: u16 = 2;

const BLOCK_U64: u64 = BLOCK as u64;
const HEADER_U64: u64 = HEADER as u64;

/// The layout of files sealed with one content cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    nonce: usize,
}

impl Layout {
    /// AES-GCM and AES-SIV.
    pub const AES: Layout = Layout { nonce: NONCE };
    /// XChaCha20-Poly1305.
    pub const XCHACHA: Layout = Layout { nonce: XCHACHA_NONCE };

    /// Nonce in front of each block.
    pub const fn nonce(self) -> usize {
        self.nonce
    }

    /// What sealing adds to a block.
    pub const fn overhead(self) -> usize {
        self.nonce + TAG
    }

    /// A full block as stored.
    pub const fn sealed_block(self) -> usize {
        BLOCK + self.overhead()
    }

    /// Plaintext length of a ciphertext file of `cipher_len` bytes, as gocryptfs shows it.
    ///
    /// No length is refused: 1 to 18 bytes hold no block and show as empty, and a last piece too short for a block
    /// counts as one byte, so that reading it reports the damage.
    pub const fn plain_len(self, cipher_len: u64) -> u64 {
        let sealed = self.sealed_block() as u64;
        let body = cipher_len.saturating_sub(HEADER_U64);
        let tail = match body % sealed {
            0 => 0,
            rest if rest > self.overhead() as u64 => rest - self.overhead() as u64,
            _ => 1,
        };
        body / sealed * BLOCK_U64 + tail
    }

    /// Ciphertext length of `plain_len` bytes; `None` when it does not fit `u64`.
    pub fn cipher_len(self, plain_len: u64) -> Option<u64> {
        if plain_len == 0 {
            return Some(0);
        }
        let tail = match plain_len % BLOCK_U64 {
            0 => 0,
            rest => rest + self.overhead() as u64,
        };
        (plain_len / BLOCK_U64).checked_mul(self.sealed_block() as u64)?.checked_add(HEADER_U64 + tail)
    }

    /// Ciphertext offset of block `block`; saturates, which no file can reach.
    pub const fn cipher_offset(self, block: u64) -> u64 {
        block.saturating_mul(self.sealed_block() as u64).saturating_add(HEADER_U64)
    }
}

/// [`Layout::plain_len`] of what cai writes.
pub const fn plain_len(cipher_len: u64) -> u64 {
    Layout::AES.plain_len(cipher_len)
}

/// [`Layout::cipher_len`] of what cai writes.
pub fn cipher_len(plain_len: u64) -> Option<u64> {
    Layout::AES.cipher_len(plain_len)
}

/// [`Layout::cipher_offset`] of what cai writes.
pub const fn cipher_offset(block: u64) -> u64 {
    Layout::AES.cipher_offset(block)
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
        for (plain, cipher) in [(0, 0), (1, 59), (4096, 4154), (5000, 5098)] {
            assert_eq!(Layout::XCHACHA.cipher_len(plain), Some(cipher), "plain {plain}");
            assert_eq!(Layout::XCHACHA.plain_len(cipher), plain, "cipher {cipher}");
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
        assert_eq!([0, 1, 100].map(|block| Layout::XCHACHA.cipher_offset(block)), [18, 4154, 413_618]);
        assert_eq!((block_of(4095), block_of(4096), offset_in_block(4097)), (0, 1, 1));
    }
}
