//! The envelope a secret arrives in, opened straight into locked memory.
//!
//! Two forms: RFC 7516 flattened JSON, and the legacy form of dialects 0.1.x (header as plain JSON text, tag appended to
//! the ciphertext, no associated data).
//!
//! Source: kbs.md section 5.

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Tag};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::key::{EphemeralKey, TeeKey};
use super::wire::{Dialect, decode_base64, decode_base64_into, parse_json};
use crate::keyring::{LockError, Secret};
use crate::text::printable;

/// Length of the GCM tag, in bytes.
const TAG_LEN: usize = 16;

/// Length of the GCM nonce, in bytes.
const IV_LEN: usize = 12;

/// A JWE as received; ciphertext, hence no secret yet.
#[derive(Deserialize)]
pub struct Jwe {
    protected: String,
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
    epk: Option<EphemeralKey>,
    // Both would change the meaning of the rest; no broker sends them.
    crit: Option<IgnoredAny>,
    zip: Option<IgnoredAny>,
}

impl Jwe {
    /// Read the broker's answer to `GET resource`.
    ///
    /// # Errors
    /// [`JweError::Malformed`] when it is not an object with the members of a JWE.
    pub fn parse(body: &[u8]) -> Result<Self, JweError> {
        parse_json("JWE", body).map_err(|_| JweError::Malformed { member: "(whole)" })
    }

    /// Open the envelope with the key pair offered in a handshake of `dialect`.
    ///
    /// The legacy form is told by its content, and refused after a handshake in a later dialect: accepting it would drop
    /// the associated data. The algorithm must be the one that belongs to `key`.
    ///
    /// # Errors
    /// [`JweError`]; damage of whatever kind below the header is one and the same [`JweError::Open`].
    pub fn open(&self, key: &TeeKey, dialect: Dialect) -> Result<Secret, JweError> {
        let legacy = self.protected.trim_start().starts_with('{');
        if legacy && !dialect.has_legacy_envelope() {
            return Err(JweError::Legacy { protocol: dialect.version() });
        }
        let header = self.header(legacy)?;
        let offered = key.algorithm().name();
        if header.alg != offered {
            return Err(JweError::Algorithm { alg: printable(&header.alg, 32), offered });
        }
        let encrypted_key = member("encrypted_key", &self.encrypted_key)?;
        let iv: [u8; IV_LEN] = exactly("iv", &self.iv)?;
        let tag = match (legacy, self.tag.is_empty()) {
            (true, true) => None,
            (true, false) => return Err(JweError::Malformed { member: "tag" }),
            (false, _) => Some(exactly::<TAG_LEN>("tag", &self.tag)?),
        };
        let associated = if legacy { &[][..] } else { self.protected.as_bytes() };
        let content_key = key.content_key(header.epk.as_ref(), &encrypted_key)?;
        let cipher = Aes256Gcm::new((&*content_key).into());

        Secret::fill(base64::decoded_len_estimate(self.ciphertext.len()), |buffer| {
            let malformed = JweError::Malformed { member: "ciphertext" };
            let len = decode_base64_into(&self.ciphertext, buffer).ok_or(malformed)?;
            let (text, _) = buffer.split_at_mut_checked(len).ok_or(JweError::Open)?;
            let (text, tag) = split_tag(text, tag)?;
            cipher
                .decrypt_inout_detached(&iv.into(), associated, (&mut *text).into(), &Tag::from(tag))
                .map_err(|_| JweError::Open)?;
            Ok(text.len())
        })
    }

    fn header(&self, legacy: bool) -> Result<Header, JweError> {
        let malformed = || JweError::Malformed { member: "protected" };
        let text = if legacy {
            self.protected.as_bytes().to_vec()
        } else {
            decode_base64(&self.protected).ok_or_else(malformed)?
        };
        let header: Header = parse_json("JWE header", &text).map_err(|_| malformed())?;
        if header.crit.is_some() || header.zip.is_some() {
            return Err(malformed());
        }
        if header.enc != "A256GCM" {
            return Err(JweError::Encryption { enc: printable(&header.enc, 32) });
        }
        Ok(header)
    }
}

/// Ciphertext proper and tag: the tag given, or (legacy) the last bytes of `text`.
fn split_tag(text: &mut [u8], tag: Option<[u8; TAG_LEN]>) -> Result<(&mut [u8], [u8; TAG_LEN]), JweError> {
    if let Some(tag) = tag {
        return Ok((text, tag));
    }
    let at = text.len().checked_sub(TAG_LEN).ok_or(JweError::Malformed { member: "ciphertext" })?;
    let (text, tag) = text.split_at_mut_checked(at).ok_or(JweError::Open)?;
    let tag = <[u8; TAG_LEN]>::try_from(&*tag).map_err(|_| JweError::Open)?;
    Ok((text, tag))
}

fn member(name: &'static str, text: &str) -> Result<Vec<u8>, JweError> {
    decode_base64(text).ok_or(JweError::Malformed { member: name })
}

fn exactly<const LEN: usize>(name: &'static str, text: &str) -> Result<[u8; LEN], JweError> {
    member(name, text)?.try_into().map_err(|_| JweError::Malformed { member: name })
}

/// The envelope could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum JweError {
    /// A member is missing, is not base64, or has an impossible length.
    #[error("the member `{member}` of the JWE is malformed")]
    Malformed {
        /// Its name.
        member: &'static str,
    },
    /// Encrypted with an algorithm other than the one of the key pair offered.
    #[error("the JWE uses {alg}, but the key pair offered is for {offered}")]
    Algorithm {
        /// Algorithm of the JWE.
        alg: String,
        /// Algorithm offered.
        offered: &'static str,
    },
    /// Content encryption other than `A256GCM`.
    #[error("the JWE uses the content encryption {enc}, not A256GCM")]
    Encryption {
        /// Content encryption of the JWE.
        enc: String,
    },
    /// Legacy form after a handshake in a dialect that does not have it.
    #[error("the JWE is in the legacy form, which protocol {protocol} does not have")]
    Legacy {
        /// Version of the protocol spoken.
        protocol: &'static str,
    },
    /// The content key does not unwrap or the tag does not match. Deliberately not told apart.
    #[error("the JWE does not open with the key pair offered")]
    Open,
    /// No locked memory for the secret.
    #[error("taking memory for the secret")]
    Lock(#[from] LockError),
}
