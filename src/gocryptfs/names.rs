//! File names: padding, EME, base64url, long names; and which stored names are the format's own files.
//!
//! Names are bytes: no encoding is assumed and nothing is normalised. Decoding is strict (unpadded base64url without
//! trailing bits), so that one plaintext name has exactly one stored form.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::eme::{BLOCK, Eme};

/// File with a directory's IV, in every directory.
pub const DIR_IV_NAME: &str = "gocryptfs.diriv";
/// Start of the stored name of an object whose encrypted name is too long for a file name.
pub const LONG_PREFIX: &str = "gocryptfs.longname.";
/// End of the name of the file that holds the encrypted name of such an object.
pub const LONG_SUFFIX: &str = ".name";
/// Longest encrypted name that is stored as a file name (`NAME_MAX` of Linux file systems).
pub const LONGEST_SHORT: usize = 255;
/// Longest plaintext name (`NAME_MAX`), in bytes.
pub const LONGEST_PLAIN: usize = 255;
/// Encrypted name of a 255-byte plaintext name: 256 padded bytes in unpadded base64.
pub const LONGEST_TEXT: usize = 342;

/// What a stored name is, by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// `gocryptfs.diriv`.
    DirIv,
    /// `gocryptfs.longname.*.name`: holds the encrypted name of the object beside it.
    LongText,
    /// `gocryptfs.longname.*`: an object whose encrypted name is in its `.name` file.
    Long,
    /// Anything else: an encrypted name, or nothing of gocryptfs.
    Short,
}

impl Stored {
    /// Classify the last component of a ciphertext path.
    pub fn classify(name: &[u8]) -> Stored {
        if name == DIR_IV_NAME.as_bytes() {
            Stored::DirIv
        } else if !name.starts_with(LONG_PREFIX.as_bytes()) {
            Stored::Short
        } else if name.ends_with(LONG_SUFFIX.as_bytes()) {
            Stored::LongText
        } else {
            Stored::Long
        }
    }
}

/// Why an encrypted name is not one, or a plaintext name cannot be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not canonical unpadded base64url.
    #[error("name is not canonical base64url")]
    NotBase64,
    /// Not 1 to 16 AES blocks.
    #[error("encrypted name is not 16 to 256 bytes in whole blocks")]
    BadLength,
    /// Wrong directory IV, wrong key, or not a name at all.
    #[error("name does not decrypt (wrong key or directory IV)")]
    BadPadding,
    /// The plaintext is empty, over 255 bytes, `.`, `..`, or has a `/` or NUL in it.
    #[error("plaintext name is not a legal file name")]
    Illegal,
}

/// The IV of one directory, never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirIv([u8; BLOCK]);

impl DirIv {
    /// Bytes in a `gocryptfs.diriv` file.
    pub const LEN: usize = BLOCK;

    /// The IV in these bytes; `None` when all are zero, which only a damaged file has.
    pub fn new(bytes: [u8; BLOCK]) -> Option<DirIv> {
        (bytes != [0; BLOCK]).then_some(DirIv(bytes))
    }

    /// The bytes of the `gocryptfs.diriv` file.
    pub fn as_bytes(&self) -> &[u8; BLOCK] {
        &self.0
    }
}

/// How a plaintext name is stored.
#[derive(Debug, PartialEq, Eq)]
pub struct StoredName {
    /// Name of the file, directory or symlink itself.
    pub object: String,
    /// For a long name: name and content of the file that holds the encrypted name.
    pub text_file: Option<(String, String)>,
}

/// The cipher of file names. Made for one walk by [`Keys::names`](super::Keys::names) and dropped after it.
pub struct Names {
    eme: Eme,
}

impl Names {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Names { eme: Eme::new(key) }
    }

    /// Encrypt `name` as it is stored in the directory with `iv`.
    ///
    /// # Errors
    /// [`NameError::Illegal`] when it is not a file name of 1 to 255 bytes.
    pub fn encrypt(&self, iv: &DirIv, name: &OsStr) -> Result<StoredName, NameError> {
        check(name.as_bytes())?;
        let mut padded = name.as_bytes().to_vec();
        let pad = BLOCK - padded.len() % BLOCK;
        padded.resize(padded.len() + pad, u8::try_from(pad).map_err(|_| NameError::BadLength)?);
        self.eme.encrypt(iv.as_bytes(), &mut padded).map_err(|_| NameError::BadLength)?;
        let text = URL_SAFE_NO_PAD.encode(&padded);
        if text.len() <= LONGEST_SHORT {
            return Ok(StoredName { object: text, text_file: None });
        }
        let object = long_object(text.as_bytes());
        let text_file = Some((format!("{object}{LONG_SUFFIX}"), text));
        Ok(StoredName { object, text_file })
    }

    /// Decrypt the base64 text of a name in the directory with `iv`.
    ///
    /// # Errors
    /// Any [`NameError`].
    pub fn decrypt(&self, iv: &DirIv, text: &[u8]) -> Result<OsString, NameError> {
        if text.len() > LONGEST_TEXT {
            return Err(NameError::BadLength);
        }
        let mut name = URL_SAFE_NO_PAD.decode(text).map_err(|_| NameError::NotBase64)?;
        self.eme.decrypt(iv.as_bytes(), &mut name).map_err(|_| NameError::BadLength)?;
        let pad = usize::from(name.last().copied().unwrap_or(0));
        let len = name.len().checked_sub(pad).ok_or(NameError::BadPadding)?;
        let (_, padding) = name.split_at(len);
        if !(1..=BLOCK).contains(&pad) || padding.iter().any(|&byte| usize::from(byte) != pad) {
            return Err(NameError::BadPadding);
        }
        name.truncate(len);
        check(&name)?;
        Ok(OsString::from_vec(name))
    }
}

/// Stored name of the object whose encrypted name `text` is too long: `gocryptfs.longname.` and its hash.
pub fn long_object(text: &[u8]) -> String {
    format!("{LONG_PREFIX}{}", URL_SAFE_NO_PAD.encode(Sha256::digest(text)))
}

/// Names come from whoever wrote the ciphertext: nothing that could leave its directory passes.
fn check(name: &[u8]) -> Result<(), NameError> {
    let length_fits = (1..=LONGEST_PLAIN).contains(&name.len());
    let reserved = name == b"." || name == b".." || name.iter().any(|&byte| byte == b'/' || byte == 0);
    if length_fits && !reserved { Ok(()) } else { Err(NameError::Illegal) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IV: DirIv = DirIv([7; BLOCK]);

    fn names() -> Names {
        Names::new(&[3; 32])
    }

    /// Encrypted text of any bytes, legal name or not, padded as gocryptfs pads.
    fn text_of(plain: &[u8]) -> String {
        let mut padded = plain.to_vec();
        let pad = BLOCK - plain.len() % BLOCK;
        padded.resize(plain.len() + pad, u8::try_from(pad).unwrap());
        sealed(padded)
    }

    fn sealed(mut padded: Vec<u8>) -> String {
        names().eme.encrypt(IV.as_bytes(), &mut padded).unwrap();
        URL_SAFE_NO_PAD.encode(padded)
    }

    #[test]
    fn decrypt_of_a_name_that_could_leave_its_directory_is_illegal() {
        for plain in [&b"."[..], b"..", b"a/b", b"/", b"a\0b", b"\0"] {
            assert_eq!(names().decrypt(&IV, text_of(plain).as_bytes()), Err(NameError::Illegal), "{plain:?}");
        }
        assert_eq!(names().decrypt(&IV, text_of(b"...").as_bytes()), Ok("...".into()));
    }

    #[test]
    fn decrypt_of_bad_padding_is_refused() {
        let mut unequal = vec![b'a'; 16];
        unequal[14..].copy_from_slice(&[3, 2]);
        for padded in [vec![0; 16], vec![17; 32], vec![b'a'; 16], unequal] {
            assert_eq!(
                names().decrypt(&IV, sealed(padded.clone()).as_bytes()),
                Err(NameError::BadPadding),
                "{padded:?}"
            );
        }
        assert_eq!(
            names().decrypt(&IV, sealed(vec![16; 16]).as_bytes()),
            Err(NameError::Illegal),
            "empty name"
        );
    }

    #[test]
    fn decrypt_of_non_canonical_base64_is_refused() {
        let text = text_of(b"a");
        assert_eq!(text.len(), 22);
        let last = text.as_bytes()[21];
        let twin = (0_u8..128)
            .map(|byte| {
                let mut t = text.clone().into_bytes();
                t[21] = byte;
                t
            })
            .filter(|t| t[21] != last);
        for other in twin {
            // Whatever decodes at all is another name, never an alias of "a".
            assert_ne!(names().decrypt(&IV, &other), Ok("a".into()), "{:?}", String::from_utf8_lossy(&other));
        }
        for bad in [format!("{text}=="), format!("{text}\n"), text.replace('-', "+"), String::new()] {
            if bad != text {
                assert!(names().decrypt(&IV, bad.as_bytes()).is_err(), "{bad}");
            }
        }
    }

    #[test]
    fn encrypt_goes_long_at_176_bytes_and_refuses_256() {
        let stored = |len| names().encrypt(&IV, OsStr::new(&"n".repeat(len)));
        assert_eq!(stored(175).unwrap().object.len(), 235);
        assert_eq!(stored(175).unwrap().text_file, None);
        let (name, text) = stored(176).unwrap().text_file.unwrap();
        assert_eq!((name.len(), text.len()), (67, 256));
        assert_eq!(stored(255).unwrap().text_file.unwrap().1.len(), LONGEST_TEXT);
        assert_eq!(stored(256), Err(NameError::Illegal));
        assert_eq!(stored(0), Err(NameError::Illegal));
    }

    #[test]
    fn classify_knows_the_formats_own_files() {
        for (name, kind) in [
            ("gocryptfs.diriv", Stored::DirIv),
            ("gocryptfs.longname.abc", Stored::Long),
            ("gocryptfs.longname.abc.name", Stored::LongText),
            ("gocryptfs.conf", Stored::Short),
            ("bzRnAUsfp9ZwhiyIKhK--g", Stored::Short),
        ] {
            assert_eq!(Stored::classify(name.as_bytes()), kind, "{name}");
        }
        assert_eq!(DirIv::new([0; 16]), None);
    }
}
