//! EME, the wide-block mode of file names: every output bit depends on every input bit.
//!
//! Source: Halevi and Rogaway, "A Parallelizable Enciphering Mode" (2003), in the byte order gocryptfs uses.

use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

/// Bytes of an AES block.
pub(super) const BLOCK: usize = 16;
/// Longest message in AES blocks that names need: 255 bytes and padding. EME itself is defined up to 128.
const MAX_BLOCKS: usize = 16;

type Block = [u8; BLOCK];

/// Which way the block cipher runs; everything else in EME is its own inverse.
#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// The message is empty, too long, or not made of whole blocks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadLength;

/// An expanded EME-AES-256 key, wiped on drop.
pub(super) struct Eme {
    aes: Aes256,
}

impl Eme {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Eme { aes: Aes256::new(key.into()) }
    }

    /// Encrypt `message` (1 to 16 whole blocks) in place under `tweak`.
    pub(super) fn encrypt(&self, tweak: &Block, message: &mut [u8]) -> Result<(), BadLength> {
        self.transform(Direction::Encrypt, tweak, message)
    }

    /// Decrypt `message` (1 to 16 whole blocks) in place under `tweak`.
    pub(super) fn decrypt(&self, tweak: &Block, message: &mut [u8]) -> Result<(), BadLength> {
        self.transform(Direction::Decrypt, tweak, message)
    }

    /// Names as in the paper: `L` masks, `MP`, `MC`, `M`; the three passes run over the blocks in place.
    fn transform(&self, direction: Direction, tweak: &Block, message: &mut [u8]) -> Result<(), BadLength> {
        let (blocks, rest) = message.as_chunks_mut::<BLOCK>();
        if !rest.is_empty() || blocks.is_empty() || blocks.len() > MAX_BLOCKS {
            return Err(BadLength);
        }

        let mut mask = self.first_mask();
        let mut mp = *tweak;
        for block in blocks.iter_mut() {
            xor(block, &mask);
            self.cipher(direction, block);
            xor(&mut mp, block);
            double(&mut mask);
        }

        let mut mc = mp;
        self.cipher(direction, &mut mc);
        let mut m = mp;
        xor(&mut m, &mc);
        let mut first = mc;
        xor(&mut first, tweak);
        for block in blocks.iter_mut().skip(1) {
            double(&mut m);
            xor(block, &m);
            xor(&mut first, block);
        }
        if let Some(block) = blocks.first_mut() {
            *block = first;
        }

        let mut mask = self.first_mask();
        for block in blocks.iter_mut() {
            self.cipher(direction, block);
            xor(block, &mask);
            double(&mut mask);
        }
        Ok(())
    }

    /// `L1 = 2 * E(0)`; encryption also when decrypting.
    fn first_mask(&self) -> Block {
        let mut mask = [0; BLOCK];
        self.cipher(Direction::Encrypt, &mut mask);
        double(&mut mask);
        mask
    }

    fn cipher(&self, direction: Direction, block: &mut Block) {
        let block: &mut Array<u8, _> = block.into();
        match direction {
            Direction::Encrypt => self.aes.encrypt_block(block),
            Direction::Decrypt => self.aes.decrypt_block(block),
        }
    }
}

fn xor(into: &mut Block, other: &Block) {
    for (byte, other) in into.iter_mut().zip(other) {
        *byte ^= other;
    }
}

/// Multiply by x in GF(2^128), byte 0 least significant; 0x87 is the reduction polynomial x^7 + x^2 + x + 1.
fn double(block: &mut Block) {
    let value = u128::from_le_bytes(*block);
    let carry = if value >> 127 == 1 { 0x87 } else { 0 };
    *block = ((value << 1) ^ carry).to_le_bytes();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn double_carries_out_of_byte_15_into_byte_0() {
        let mut block = [0; BLOCK];
        block[15] = 0x80;
        double(&mut block);
        assert_eq!(block, {
            let mut b = [0; BLOCK];
            b[0] = 0x87;
            b
        });
        let mut block = [0; BLOCK];
        block[0] = 0x80;
        double(&mut block);
        assert_eq!(block, {
            let mut b = [0; BLOCK];
            b[1] = 1;
            b
        });
    }

    #[test]
    fn encrypt_of_a_bad_length_is_refused() {
        let eme = Eme::new(&[1; 32]);
        for len in [0, 1, 15, 17, 16 * 17] {
            assert_eq!(eme.encrypt(&[0; BLOCK], &mut vec![0; len]), Err(BadLength), "length {len}");
            assert_eq!(eme.decrypt(&[0; BLOCK], &mut vec![0; len]), Err(BadLength), "length {len}");
        }
    }

    proptest! {
        #[test]
        fn decrypt_undoes_encrypt_and_every_block_depends_on_every_bit(
            key: [u8; 32],
            tweak: [u8; BLOCK],
            blocks in 1_usize..=16,
            seed: u8,
            bit in any::<proptest::sample::Index>(),
        ) {
            let eme = Eme::new(&key);
            let plain: Vec<u8> = (0..=255).cycle().map(|i: u8| i.wrapping_mul(31) ^ seed).take(blocks * BLOCK).collect();
            let mut sealed = plain.clone();
            eme.encrypt(&tweak, &mut sealed).unwrap();
            let mut opened = sealed.clone();
            eme.decrypt(&tweak, &mut opened).unwrap();
            prop_assert_eq!(&opened, &plain);

            let bit = bit.index(plain.len() * 8);
            let mut other = plain.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            eme.encrypt(&tweak, &mut other).unwrap();
            for (a, b) in sealed.chunks(BLOCK).zip(other.chunks(BLOCK)) {
                prop_assert_ne!(a, b);
            }
        }
    }
}
