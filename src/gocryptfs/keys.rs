//! From password to keys: scrypt, HKDF, and the master key's wrapping.
//!
//! scrypt runs in exactly one place, [`wrapping_key`], which [`unlock`] and [`Conf::create`] call once each; a counter
//! under `cfg(test)` lets the tests hold them to it.

use hkdf::Hkdf;
use sha2::{Digest, Sha256, Sha512};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::aead::{Aead, Algorithm, KEY};
use super::cipher::ContentCipher;
use super::conf::{Conf, ScryptParams, SealedKey};
use super::error::FormatError;
use super::features::{Cipher, Features};
use super::layout::Layout;
use super::names::Names;
use super::passphrase::Passphrase;
use crate::keyring::Secret;

/// HKDF info of the AES-GCM content key; of the key that wraps the master key, too.
const INFO_GCM: &[u8] = b"AES-GCM file content encryption";
/// HKDF info of the AES-SIV content key.
const INFO_SIV: &[u8] = b"AES-SIV file content encryption";
/// HKDF info of the XChaCha20-Poly1305 content key.
const INFO_XCHACHA: &[u8] = b"XChaCha20-Poly1305 file content encryption";
/// HKDF info of the EME name key.
const INFO_NAMES: &[u8] = b"EME filename encryption";
/// The master key is sealed as block 0 of no file: the block number is all the associated data.
const WRAP_ASSOCIATED: &[u8; 8] = &[0; 8];

/// The keys of one directory in locked memory, and how it is stored. Immutable; share it by `Arc`.
pub struct Keys {
    features: Features,
    content: ContentCipher,
    names: Secret,
}

impl Keys {
    /// The keys that belong to a 32-byte master key in a directory with `features`.
    ///
    /// # Errors
    /// [`FormatError::MasterKeyLength`]; [`FormatError::Lock`] when no memory can be locked.
    pub fn from_master(master: &Secret, features: Features) -> Result<Keys, FormatError> {
        if master.len() != KEY {
            return Err(FormatError::MasterKeyLength { len: master.len() });
        }
        let content = content_key(master, &features)?;
        Ok(Keys {
            features,
            content: ContentCipher::new(features.cipher, content)?,
            names: subkey(master, &features, INFO_NAMES, KEY)?,
        })
    }

    /// How the directory is stored.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Where its files have their blocks.
    pub fn layout(&self) -> Layout {
        self.content.layout()
    }

    /// Whether both come from the same master key, in directories with the same features: the name key is derived from it.
    pub fn are_those_of(&self, other: &Keys) -> bool {
        let same = self.names.with(|ours| other.names.with(|theirs| ours.ct_eq(theirs)));
        self.features == other.features && bool::from(same)
    }

    /// The name cipher, its key schedule expanded for one walk and wiped when dropped.
    pub fn names(&self) -> Names {
        Names::new(&key_of(&self.names), &self.features)
    }

    pub(super) fn content(&self) -> &ContentCipher {
        &self.content
    }
}

/// Open the directory that `conf` describes. Runs scrypt once: 0.2 s and 64 MiB with gocryptfs' default parameters.
///
/// # Errors
/// [`FormatError::WrongPassword`]; [`FormatError::Lock`] when no memory can be locked.
pub fn unlock(conf: &Conf, passphrase: &Passphrase) -> Result<Keys, FormatError> {
    Keys::from_master(&unlock_master(conf, passphrase)?, conf.features())
}

/// The master key in `conf`, for whoever seals it anew. As [`unlock`].
pub(super) fn unlock_master(conf: &Conf, passphrase: &Passphrase) -> Result<Secret, FormatError> {
    let wrapping = wrapping_key(passphrase, &conf.scrypt, &conf.features())?;
    let SealedKey { nonce, sealed, tag } = &conf.key;
    Secret::fill(KEY, |out| match wrapping.open(nonce, WRAP_ASSOCIATED, sealed, tag, out) {
        Ok(()) => Ok(KEY),
        Err(_) => Err(FormatError::WrongPassword),
    })
}

/// Seal `master` under the password.
pub(super) fn wrap(
    master: &Secret,
    passphrase: &Passphrase,
    scrypt: &ScryptParams,
    features: &Features,
) -> Result<SealedKey, FormatError> {
    let wrapping = wrapping_key(passphrase, scrypt, features)?;
    let mut key = SealedKey { nonce: vec![0; wrap_nonce(features)], sealed: [0; KEY], tag: [0; 16] };
    getrandom::fill(&mut key.nonce)?;
    wrapping
        .seal(&key.nonce, WRAP_ASSOCIATED, &*key_of(master), &mut key.sealed, &mut key.tag)
        .map_err(|_| FormatError::Derive { step: "sealing the master key" })?;
    Ok(key)
}

/// Bytes of the nonce that the master key is sealed with: gocryptfs 1.3 brought HKDF and longer nonces at once.
pub(super) fn wrap_nonce(features: &Features) -> usize {
    if features.hkdf { 16 } else { 12 }
}

#[cfg(test)]
thread_local! {
    static SCRYPT_RUNS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

fn wrapping_key(
    passphrase: &Passphrase,
    scrypt: &ScryptParams,
    features: &Features,
) -> Result<Aead, FormatError> {
    #[cfg(test)]
    SCRYPT_RUNS.set(SCRYPT_RUNS.get() + 1);
    let failed = || FormatError::Derive { step: "scrypt" };
    let params = scrypt::Params::new(scrypt.log_n, scrypt.r, scrypt.p).map_err(|_| failed())?;
    let hash = Secret::fill(KEY, |out| {
        passphrase
            .with(|password| scrypt::scrypt(password, &scrypt.salt, &params, out))
            .map_err(|_| failed())?;
        Ok::<_, FormatError>(KEY)
    })?;
    Ok(Aead::new(Algorithm::AesGcm, &key_of(&subkey(&hash, features, INFO_GCM, KEY)?))?)
}

fn content_key(master: &Secret, features: &Features) -> Result<Secret, FormatError> {
    let len = ContentCipher::key_len(features.cipher);
    match features.cipher {
        Cipher::AesGcm => subkey(master, features, INFO_GCM, len),
        Cipher::XChaCha20Poly1305 => subkey(master, features, INFO_XCHACHA, len),
        Cipher::AesSiv if features.hkdf => subkey(master, features, INFO_SIV, len),
        // It takes a key of twice the length: before HKDF that was the master key's hash.
        Cipher::AesSiv => {
            let hash = Zeroizing::new(<[u8; 64]>::from(master.with(|bytes| Sha512::digest(bytes))));
            Ok(Secret::copy_of(&*hash)?)
        }
    }
}

/// `len` bytes for one use of `from`: HKDF-SHA256 with an empty salt, or `from` itself where the directory has no HKDF.
fn subkey(from: &Secret, features: &Features, info: &[u8], len: usize) -> Result<Secret, FormatError> {
    Secret::fill(len, |out| {
        from.with(|bytes| {
            if features.hkdf {
                Hkdf::<Sha256>::new(None, bytes).expand(info, out).is_ok()
            } else if bytes.len() == out.len() {
                out.copy_from_slice(bytes);
                true
            } else {
                false
            }
        })
        .then_some(len)
        .ok_or(FormatError::Derive { step: "a subkey" })
    })
}

/// A copy of a 32-byte secret for the length of one key expansion.
pub(super) fn key_of(secret: &Secret) -> Zeroizing<[u8; KEY]> {
    let mut key = Zeroizing::new([0; KEY]);
    secret.with(|bytes| key.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from));
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::from_secret(&Secret::copy_of(text.as_bytes()).unwrap()).unwrap()
    }

    fn hex(secret: &Secret) -> String {
        secret.with(|bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn features(cipher: Cipher, hkdf: bool) -> Features {
        Features { cipher, hkdf, ..Features::default() }
    }

    #[test]
    fn subkeys_are_gocryptfs_own() {
        let master = Secret::copy_of(&(0..32).collect::<Vec<u8>>()).unwrap();
        let names = subkey(&master, &Features::default(), INFO_NAMES, KEY).unwrap();
        assert_eq!(hex(&names), "59366f708e4d4ed892d6bd6ca0de6e927040808b21bd0e1a2753ea365aeaf6c9");
        for (cipher, key) in [
            (Cipher::AesGcm, "17df772cfec9d28b9ede3c753d0010ba9f199655acfc3b78dd3b61b5dd5f36c5"),
            (
                Cipher::AesSiv,
                "90be6449231c24d9d308f1772b47953b6acf97f9e7876a16172e019977f3b7e0\
                 2419aaf86d684593cf2b43008422ad6726b83aaf0897186fb8a8cbd04854bd3c",
            ),
            (Cipher::XChaCha20Poly1305, "957caa5a8d2a9189b77f2fcb17707c1fc6ce862c0061f9d1db29a3b71eb7ca0d"),
        ] {
            assert_eq!(hex(&content_key(&master, &features(cipher, true)).unwrap()), key, "{cipher:?}");
        }
    }

    #[test]
    fn keys_without_hkdf_are_the_master_key_or_its_hash() {
        let master = Secret::copy_of(&[7; 32]).unwrap();
        let names = subkey(&master, &features(Cipher::AesGcm, false), INFO_NAMES, KEY).unwrap();
        assert_eq!(hex(&names), "07".repeat(32));
        assert_eq!(hex(&content_key(&master, &features(Cipher::AesGcm, false)).unwrap()), "07".repeat(32));
        let siv = content_key(&master, &features(Cipher::AesSiv, false)).unwrap();
        assert_eq!(hex(&siv), ::hex::encode(Sha512::digest([7; 32])));
    }

    #[test]
    fn unlock_runs_scrypt_once_whether_the_password_fits_or_not() {
        let (conf, _keys) = Conf::create(&passphrase("test"), 10).unwrap();
        assert_eq!(SCRYPT_RUNS.replace(0), 1);
        assert!(unlock(&conf, &passphrase("test")).is_ok());
        assert_eq!(SCRYPT_RUNS.replace(0), 1);
        assert!(matches!(unlock(&conf, &passphrase("tess")), Err(FormatError::WrongPassword)));
        assert_eq!(SCRYPT_RUNS.replace(0), 1);
    }

    #[test]
    fn from_master_of_another_length_is_refused() {
        let short = Secret::copy_of(&[1; 31]).unwrap();
        assert!(matches!(
            Keys::from_master(&short, Features::default()),
            Err(FormatError::MasterKeyLength { len: 31 })
        ));
    }

    #[test]
    fn keys_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Keys>();
    }
}
