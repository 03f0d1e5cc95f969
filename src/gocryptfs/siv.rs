//! AES-SIV-512 as gocryptfs uses it: RFC 5297 with AES-256, the associated data and then the nonce as its two headers.
//!
//! RustCrypto's `aes-siv`. A context there cannot be shared between threads, so one is made for each block from the key
//! in locked memory and wiped after it: two key expansions against 256 block operations twice over.

use aes_siv::KeyInit;
use aes_siv::aead::array::Array;
use aes_siv::aead::inout::InOutBuf;
use aes_siv::siv::Aes256Siv;

use super::aead::Refused;
use super::layout::TAG;
use crate::keyring::Secret;

/// Bytes of a key: half of it for the synthetic IV, half for encryption.
pub(super) const SIV_KEY: usize = 64;

/// A key of [`SIV_KEY`] bytes in locked memory.
pub(super) struct Siv {
    key: Secret,
}

impl Siv {
    /// `None` when the key has another length.
    pub(super) fn new(key: Secret) -> Option<Self> {
        (key.len() == SIV_KEY).then_some(Siv { key })
    }

    /// Open `sealed` with its detached `tag` into `out`, which has the same length.
    ///
    /// # Errors
    /// [`Refused`]; `out` then holds no plaintext.
    pub(super) fn open(
        &self,
        nonce: &[u8],
        associated: &[u8],
        sealed: &[u8],
        tag: &[u8; TAG],
        out: &mut [u8],
    ) -> Result<(), Refused> {
        let buffers = InOutBuf::new(sealed, out).map_err(|_| Refused)?;
        let opened = self.context()?.decrypt_inout_detached([associated, nonce], buffers, tag.into());
        // What does not authenticate is decrypted into `out` all the same.
        opened.map_err(|_| {
            out.fill(0);
            Refused
        })
    }

    /// Seal `plain` into `out`, which has the same length, and its tag into `tag`.
    ///
    /// # Errors
    /// [`Refused`] when the lengths differ.
    pub(super) fn seal(
        &self,
        nonce: &[u8],
        associated: &[u8],
        plain: &[u8],
        out: &mut [u8],
        tag: &mut [u8; TAG],
    ) -> Result<(), Refused> {
        let buffers = InOutBuf::new(plain, out).map_err(|_| Refused)?;
        let sealed = self.context()?.encrypt_inout_detached([associated, nonce], buffers);
        *tag = sealed.map_err(|_| Refused)?.into();
        Ok(())
    }

    fn context(&self) -> Result<Aes256Siv, Refused> {
        self.key.with(|key| Ok(Aes256Siv::new(<&Array<u8, _>>::try_from(key).map_err(|_| Refused)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn siv(key: &[u8]) -> Siv {
        Siv::new(Secret::copy_of(key).unwrap()).unwrap()
    }

    fn seal(siv: &Siv, nonce: &[u8], associated: &[u8], plain: &[u8]) -> (Vec<u8>, [u8; TAG]) {
        let (mut out, mut tag) = (vec![0; plain.len()], [0; TAG]);
        siv.seal(nonce, associated, plain, &mut out, &mut tag).unwrap();
        (out, tag)
    }

    /// The constant that gocryptfs holds its own AES-SIV to.
    #[test]
    fn seal_gives_gocryptfs_bytes() {
        let plain = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let (sealed, tag) = seal(&siv(&[1; SIV_KEY]), &[2; 16], &[0; 24], &plain);
        assert_eq!(
            hex::encode(tag) + &hex::encode(sealed),
            "317b316f67c3ad336c01c9a01b4c5e552ba89e966bc4c1ade1"
        );
    }

    #[test]
    fn key_and_buffers_of_another_length_are_refused() {
        for len in [0, 32, 63, 65] {
            assert!(Siv::new(Secret::copy_of(&vec![1; len]).unwrap()).is_none(), "{len}");
        }
        let siv = siv(&[1; SIV_KEY]);
        assert!(siv.open(&[1; 16], b"", &[0; 8], &[0; TAG], &mut [0; 9]).is_err());
        assert!(siv.seal(&[1; 16], b"", &[0; 8], &mut [0; 7], &mut [0; TAG]).is_err());
    }

    proptest! {
        #[test]
        fn open_undoes_seal_and_refuses_anything_changed_without_plaintext(
            key in proptest::collection::vec(any::<u8>(), SIV_KEY),
            plain in proptest::collection::vec(1_u8.., 1..5000),
            bit in any::<proptest::sample::Index>(),
        ) {
            let siv = siv(&key);
            let (mut body, mut tag) = seal(&siv, &[3; 16], b"here", &plain);
            let mut out = vec![0xaa; plain.len()];
            siv.open(&[3; 16], b"here", &body, &tag, &mut out).unwrap();
            prop_assert_eq!(&out, &plain);
            prop_assert!(siv.open(&[4; 16], b"here", &body, &tag, &mut out).is_err());
            prop_assert!(siv.open(&[3; 16], b"there", &body, &tag, &mut out).is_err());

            let bit = bit.index((body.len() + TAG) * 8);
            match bit / 8 {
                at if at < TAG => tag[at] ^= 1 << (bit % 8),
                at => body[at - TAG] ^= 1 << (bit % 8),
            }
            out.fill(0xaa);
            prop_assert!(siv.open(&[3; 16], b"here", &body, &tag, &mut out).is_err());
            prop_assert_eq!(out, vec![0; plain.len()]);
        }
    }
}
