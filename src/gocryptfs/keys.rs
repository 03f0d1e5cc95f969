//! From password to keys: scrypt, HKDF, and the master key's wrapping.
//!
//! scrypt runs in exactly one place, [`wrapping_key`], which [`unlock`] and [`Conf::create`] call once each; a counter
//! under `cfg(test)` lets the tests hold them to it.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::aead::{Gcm, KEY};
use super::conf::{Conf, ScryptParams, SealedKey};
use super::error::FormatError;
use super::names::Names;
use super::passphrase::Passphrase;
use crate::keyring::Secret;

/// HKDF info of the AES-GCM content key; of the key that wraps the master key, too.
const INFO_CONTENT: &[u8] = b"AES-GCM file content encryption";
/// HKDF info of the EME name key.
const INFO_NAMES: &[u8] = b"EME filename encryption";
/// The master key is sealed as block 0 of no file: the block number is all the associated data.
const WRAP_ASSOCIATED: &[u8; 8] = &[0; 8];

/// The keys of one directory, in locked memory. Immutable; share it by `Arc`.
pub struct Keys {
    content: Gcm,
    names: Secret,
}

impl Keys {
    /// The keys that belong to a 32-byte master key.
    ///
    /// # Errors
    /// [`FormatError::MasterKeyLength`]; [`FormatError::Lock`] when no memory can be locked.
    pub fn from_master(master: &Secret) -> Result<Keys, FormatError> {
        if master.len() != KEY {
            return Err(FormatError::MasterKeyLength { len: master.len() });
        }
        let content = derive(master, INFO_CONTENT)?;
        Ok(Keys { content: Gcm::new(&key_of(&content))?, names: derive(master, INFO_NAMES)? })
    }

    /// The name cipher, its key schedule expanded for one walk and wiped when dropped.
    pub fn names(&self) -> Names {
        Names::new(&key_of(&self.names))
    }

    pub(super) fn content(&self) -> &Gcm {
        &self.content
    }
}

/// Open the directory that `conf` describes. Runs scrypt once: 0.2 s and 64 MiB with gocryptfs' default parameters.
///
/// # Errors
/// [`FormatError::WrongPassword`]; [`FormatError::Lock`] when no memory can be locked.
pub fn unlock(conf: &Conf, passphrase: &Passphrase) -> Result<Keys, FormatError> {
    Keys::from_master(&unlock_master(conf, passphrase)?)
}

/// The master key in `conf`, for whoever seals it anew. As [`unlock`].
pub(super) fn unlock_master(conf: &Conf, passphrase: &Passphrase) -> Result<Secret, FormatError> {
    let wrapping = wrapping_key(passphrase, &conf.scrypt)?;
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
) -> Result<SealedKey, FormatError> {
    let wrapping = wrapping_key(passphrase, scrypt)?;
    let mut key = SealedKey { nonce: [0; 16], sealed: [0; KEY], tag: [0; 16] };
    getrandom::fill(&mut key.nonce)?;
    wrapping
        .seal(&key.nonce, WRAP_ASSOCIATED, &*key_of(master), &mut key.sealed, &mut key.tag)
        .map_err(|_| FormatError::Derive { step: "sealing the master key" })?;
    Ok(key)
}

#[cfg(test)]
thread_local! {
    static SCRYPT_RUNS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

fn wrapping_key(passphrase: &Passphrase, scrypt: &ScryptParams) -> Result<Gcm, FormatError> {
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
    Ok(Gcm::new(&key_of(&derive(&hash, INFO_CONTENT)?))?)
}

/// HKDF-SHA256 with an empty salt, 32 bytes.
fn derive(from: &Secret, info: &[u8]) -> Result<Secret, FormatError> {
    Secret::fill(KEY, |out| {
        let expanded = from.with(|bytes| Hkdf::<Sha256>::new(None, bytes).expand(info, out));
        expanded.map_err(|_| FormatError::Derive { step: "HKDF" })?;
        Ok(KEY)
    })
}

/// A copy of a 32-byte secret for the length of one key expansion.
fn key_of(secret: &Secret) -> Zeroizing<[u8; KEY]> {
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

    #[test]
    fn derive_gives_gocryptfs_subkeys() {
        let master = Secret::copy_of(&(0..32).collect::<Vec<u8>>()).unwrap();
        assert_eq!(
            hex(&derive(&master, INFO_NAMES).unwrap()),
            "59366f708e4d4ed892d6bd6ca0de6e927040808b21bd0e1a2753ea365aeaf6c9"
        );
        assert_eq!(
            hex(&derive(&master, INFO_CONTENT).unwrap()),
            "17df772cfec9d28b9ede3c753d0010ba9f199655acfc3b78dd3b61b5dd5f36c5"
        );
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
        assert!(matches!(Keys::from_master(&short), Err(FormatError::MasterKeyLength { len: 31 })));
    }

    #[test]
    fn keys_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Keys>();
    }
}
