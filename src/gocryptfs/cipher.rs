//! The content cipher of one directory, chosen once when it is unlocked.

use super::aead::{Aead, Algorithm, KEY, Refused};
use super::content::Damage;
use super::error::FormatError;
use super::features::Cipher;
use super::keys::key_of;
use super::layout::{Layout, TAG};
use super::siv::{SIV_KEY, Siv};
use crate::keyring::Secret;

/// Opens and seals pieces: a nonce, then the data with its tag.
pub(super) enum ContentCipher {
    /// Nonce 16, data, tag.
    AesGcm(Aead),
    /// Nonce 24, data, tag.
    XChaCha(Aead),
    /// Nonce 16, tag, data.
    AesSiv(Siv),
}

impl ContentCipher {
    /// Bytes of the key that [`ContentCipher::new`] takes.
    pub(super) fn key_len(cipher: Cipher) -> usize {
        match cipher {
            Cipher::AesGcm | Cipher::XChaCha20Poly1305 => KEY,
            Cipher::AesSiv => SIV_KEY,
        }
    }

    /// The cipher with its key, which must have [`ContentCipher::key_len`] bytes.
    ///
    /// # Errors
    /// [`FormatError::Lock`]; [`FormatError::Derive`] for an AES-SIV key of another length.
    pub(super) fn new(cipher: Cipher, key: Secret) -> Result<Self, FormatError> {
        let aead = |algorithm| Aead::new(algorithm, &key_of(&key));
        Ok(match cipher {
            Cipher::AesGcm => ContentCipher::AesGcm(aead(Algorithm::AesGcm)?),
            Cipher::XChaCha20Poly1305 => ContentCipher::XChaCha(aead(Algorithm::XChaCha)?),
            Cipher::AesSiv => {
                let length = FormatError::Derive { step: "the length of the AES-SIV key" };
                ContentCipher::AesSiv(Siv::new(key).ok_or(length)?)
            }
        })
    }

    pub(super) fn layout(&self) -> Layout {
        match self {
            ContentCipher::AesGcm(_) | ContentCipher::AesSiv(_) => Layout::AES,
            ContentCipher::XChaCha(_) => Layout::XCHACHA,
        }
    }

    /// Open the piece `sealed` into `out`, which is [`Layout::overhead`] shorter.
    ///
    /// # Errors
    /// [`Damage::TooShort`], [`Damage::Tag`]; `out` then holds no plaintext.
    pub(super) fn open(&self, associated: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<(), Damage> {
        let (nonce, rest) = sealed.split_at_checked(self.layout().nonce()).ok_or(Damage::TooShort)?;
        let opened = match self {
            ContentCipher::AesGcm(aead) | ContentCipher::XChaCha(aead) => {
                let (body, tag) = rest.split_last_chunk::<TAG>().ok_or(Damage::TooShort)?;
                aead.open(nonce, associated, body, tag, out)
            }
            ContentCipher::AesSiv(siv) => {
                let (tag, body) = rest.split_first_chunk::<TAG>().ok_or(Damage::TooShort)?;
                siv.open(nonce, associated, body, tag, out)
            }
        };
        opened.map_err(|Refused| Damage::Tag)
    }

    /// Seal `plain` under `nonce` as the piece `sealed`; `None` when the lengths do not fit.
    pub(super) fn seal(
        &self,
        nonce: &[u8],
        associated: &[u8],
        plain: &[u8],
        sealed: &mut [u8],
    ) -> Option<()> {
        let (front, rest) = sealed.split_at_mut_checked(self.layout().nonce())?;
        if nonce.len() != front.len() {
            return None;
        }
        front.copy_from_slice(nonce);
        match self {
            ContentCipher::AesGcm(aead) | ContentCipher::XChaCha(aead) => {
                let (body, tag) = rest.split_last_chunk_mut::<TAG>()?;
                aead.seal(nonce, associated, plain, body, tag).ok()
            }
            ContentCipher::AesSiv(siv) => {
                let (tag, body) = rest.split_first_chunk_mut::<TAG>()?;
                siv.seal(nonce, associated, plain, body, tag).ok()
            }
        }
    }
}
