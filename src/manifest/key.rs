//! The publisher's Ed25519 keys and their files.
//!
//! Ed25519 comes from `aws-lc-rs`, which is linked already and constant-time. The private key is PKCS#8 in PEM, so that
//! `openssl pkey` reads it and `openssl genpkey -algorithm ed25519` makes one; the public key is one line of base64.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::error::ManifestError;

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// PKCS#8 of an Ed25519 key takes 119 bytes in PEM; no key file is longer than this.
const LARGEST_FILE: u64 = 4096;
/// Group and others.
const OTHERS: u32 = 0o077;
/// Bytes of a signature.
pub(super) const SIGNATURE: usize = 64;

/// A publisher's public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key in these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        PublicKey(bytes)
    }

    /// The key in base64 (as `cai keygen` prints it) or in 64 hexadecimal digits; `None` when it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = if text.len() == 64 { hex::decode(text).ok() } else { STANDARD.decode(text).ok() };
        bytes?.try_into().ok().map(PublicKey)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A publisher's private key.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// Read a key file; one that others could read is refused.
    ///
    /// # Errors
    /// [`ManifestError::KeyFile`], [`ManifestError::KeyMode`], [`ManifestError::NoKey`].
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let failed = |source| ManifestError::KeyFile { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode();
        if mode & OTHERS != 0 {
            return Err(ManifestError::KeyMode { path: path.to_owned(), mode: mode & 0o777 });
        }
        let mut text = Zeroizing::new(String::new());
        file.take(LARGEST_FILE).read_to_string(&mut text).map_err(failed)?;
        SigningKey::from_pem(&text).ok_or_else(|| ManifestError::NoKey { path: path.to_owned() })
    }

    fn from_pem(text: &str) -> Option<Self> {
        let inside = text.split_once(BEGIN)?.1.split_once(END)?.0;
        let base64 = Zeroizing::new(inside.split_ascii_whitespace().collect::<String>());
        let der = Zeroizing::new(STANDARD.decode(base64.as_bytes()).ok()?);
        SigningKey::from_pair(Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).ok()?)
    }

    fn from_pair(pair: Ed25519KeyPair) -> Option<Self> {
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        Some(SigningKey { pair, public })
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE], ManifestError> {
        let signature = self.pair.try_sign(message).map_err(|_| ManifestError::Crypto)?;
        signature.as_ref().try_into().map_err(|_| ManifestError::Crypto)
    }
}

/// Make a new key: the private one in `path` (0600), the public one in `path.pub`. Neither may exist.
///
/// # Errors
/// [`ManifestError::KeyFile`], [`ManifestError::Crypto`].
pub fn generate(path: &Path) -> Result<PublicKey, ManifestError> {
    let key = Ed25519KeyPair::generate().map_err(|_| ManifestError::Crypto)?;
    let der = key.to_pkcs8v1().map_err(|_| ManifestError::Crypto)?;
    let base64 = Zeroizing::new(STANDARD.encode(der.as_ref()));
    let key = SigningKey::from_pair(key).ok_or(ManifestError::Crypto)?;
    let public_path =
        PathBuf::from([path.as_os_str(), ".pub".as_ref()].into_iter().collect::<std::ffi::OsString>());
    // The public file first: a private key without it would be of use to nobody, and in the way of the next attempt.
    put(&public_path, 0o644, &format!("{}\n", key.public))?;
    let text = Zeroizing::new(format!("{BEGIN}\n{}\n{END}\n", base64.as_str()));
    if let Err(error) = put(path, 0o600, &text) {
        let _ = std::fs::remove_file(&public_path);
        return Err(error);
    }
    Ok(key.public)
}

fn put(path: &Path, mode: u32, text: &str) -> Result<(), ManifestError> {
    let failed = |source| ManifestError::KeyFile { path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn generated_key_reads_back_and_openssl_agrees_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("publisher.key");
        let public = generate(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(
            PublicKey::parse(&fs::read_to_string(dir.path().join("publisher.key.pub")).unwrap()),
            Some(public)
        );
        let key = SigningKey::read(&path).unwrap();
        assert_eq!(key.public(), public);
        let signature = key.sign(b"message").unwrap();
        assert!(public.verifies(b"message", &signature));
        assert!(!public.verifies(b"massage", &signature));

        if !Command::new("openssl").arg("version").output().is_ok_and(|out| out.status.success()) {
            println!("skip: no openssl");
            return;
        }
        fs::write(dir.path().join("message"), b"message").unwrap();
        fs::write(dir.path().join("signature"), signature).unwrap();
        let verified = Command::new("openssl")
            .args([
                "pkeyutl",
                "-verify",
                "-rawin",
                "-inkey",
                "publisher.key",
                "-in",
                "message",
                "-sigfile",
                "signature",
            ])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(verified.status.success(), "{verified:?}");
        let made = Command::new("openssl")
            .args(["genpkey", "-algorithm", "ed25519", "-out", "theirs.key"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        fs::set_permissions(dir.path().join("theirs.key"), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(SigningKey::read(&dir.path().join("theirs.key")).is_ok());
    }

    #[test]
    fn key_that_is_there_is_not_overwritten_and_one_for_all_to_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        generate(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(generate(&path), Err(ManifestError::KeyFile { .. })));
        fs::remove_file(dir.path().join("key.pub")).unwrap();
        assert!(matches!(generate(&path), Err(ManifestError::KeyFile { path: named, .. }) if named == path));
        assert_eq!(fs::read(&path).unwrap(), before);
        assert!(!dir.path().join("key.pub").exists());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SigningKey::read(&path), Err(ManifestError::KeyMode { mode: 0o640, .. })));
        let public = dir.path().join("public");
        fs::write(&public, "AAAA\n").unwrap();
        fs::set_permissions(&public, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(SigningKey::read(&public), Err(ManifestError::NoKey { .. })));
    }

    #[test]
    fn public_key_is_read_in_both_of_its_forms_and_in_no_other() {
        let key = PublicKey::new([0xab; 32]);
        assert_eq!(PublicKey::parse(&key.to_string()), Some(key));
        assert_eq!(PublicKey::parse(&format!(" {}\n", hex::encode([0xab; 32]))), Some(key));
        for text in ["", "AAAA", &"ab".repeat(31), &"ab".repeat(33), &"zz".repeat(32), &"A".repeat(43)] {
            assert_eq!(PublicKey::parse(text), None, "{text}");
        }
    }
}
