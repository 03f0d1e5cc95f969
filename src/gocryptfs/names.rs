//! File names: padding, EME, base64url, long names; and which stored names are the format's own files.
//!
//! Names are bytes: no encoding is assumed and nothing is normalised. Decoding is strict (base64url with all of its
//! padding or, in all but old directories, none, and without trailing bits), so that one plaintext name has exactly one
//! stored form.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, URL_SAFE, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::eme::{BLOCK, Eme};
use super::features::{Features, Naming};

/// File with a directory's IV, in every directory.
pub const DIR_IV_NAME: &str = "gocryptfs.diriv";
/// Start of the stored name of an object whose encrypted name is too long for a file name.
pub const LONG_PREFIX: &str = "gocryptfs.longname.";
/// End of the name of the file that holds the encrypted name of such an object.
pub const LONG_SUFFIX: &str = ".name";
/// Longest encrypted name that is stored as a file name, unless the conf says less (`NAME_MAX` of Linux file systems).
pub const LONGEST_SHORT: u8 = 255;
/// Longest plaintext name (`NAME_MAX`), in bytes.
pub const LONGEST_PLAIN: usize = 255;
/// Encrypted name of a 255-byte plaintext name: 256 bytes in base64, with padding; 342 without.
pub const LONGEST_TEXT: usize = 344;
/// The tweak of extended attribute names, in place of a directory's IV.
const XATTR_IV: &[u8; BLOCK] = b"xattr_name_iv_xx";

/// What a stored name is, by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// `gocryptfs.diriv`.
    DirIv,
    /// `gocryptfs.longname.*.name`: holds the encrypted name of the object beside it.
    LongText,
    /// `gocryptfs.longname.*`: an object whose encrypted name is in its `.name` file.
    Long,
    /// Anything else: a name, encrypted or plain, or nothing of gocryptfs.
    Short,
}

impl Stored {
    /// Classify the last component of a ciphertext path.
    pub fn classify(naming: Naming, name: &[u8]) -> Stored {
        if naming == Naming::Plain {
            Stored::Short
        } else if naming == Naming::DirIv && name == DIR_IV_NAME.as_bytes() {
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
    /// Not canonical base64url, padded or unpadded as the directory has it.
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

/// The IV of one directory. Those that are stored are never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirIv([u8; BLOCK]);

impl DirIv {
    /// Bytes in a `gocryptfs.diriv` file.
    pub const LEN: usize = BLOCK;
    /// The IV of every directory with deterministic names; stored nowhere.
    pub const DETERMINISTIC: DirIv = DirIv([0; BLOCK]);

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
    base64: &'static GeneralPurpose,
    longest_short: usize,
}

impl Names {
    pub(super) fn new(key: &[u8; 32], features: &Features) -> Self {
        Names {
            eme: Eme::new(key),
            base64: base64(features),
            longest_short: usize::from(features.longest_name),
        }
    }

    /// Longest encrypted name that is stored as a file name, in characters.
    pub fn longest_short(&self) -> usize {
        self.longest_short
    }

    /// Encrypt `name` as it is stored in the directory with `iv`.
    ///
    /// # Errors
    /// [`NameError::Illegal`] when it is not a file name of 1 to 255 bytes.
    pub fn encrypt(&self, iv: &DirIv, name: &OsStr) -> Result<StoredName, NameError> {
        check(name.as_bytes())?;
        let text = self.seal(iv.as_bytes(), name.as_bytes())?;
        if text.len() <= self.longest_short {
            return Ok(StoredName { object: text, text_file: None });
        }
        let object = self.long_object(text.as_bytes());
        let text_file = Some((format!("{object}{LONG_SUFFIX}"), text));
        Ok(StoredName { object, text_file })
    }

    /// Decrypt the base64 text of a name in the directory with `iv`.
    ///
    /// # Errors
    /// Any [`NameError`].
    pub fn decrypt(&self, iv: &DirIv, text: &[u8]) -> Result<OsString, NameError> {
        let name = self.open(iv.as_bytes(), text)?;
        check(&name)?;
        Ok(OsString::from_vec(name))
    }

    /// Stored name of the object whose encrypted name `text` is too long: `gocryptfs.longname.` and its hash.
    pub fn long_object(&self, text: &[u8]) -> String {
        format!("{LONG_PREFIX}{}", self.base64.encode(Sha256::digest(text)))
    }

    /// Encrypt the name of an extended attribute, namespace included; without the prefix it is stored with.
    ///
    /// # Errors
    /// [`NameError::Illegal`] when it has not 1 to 255 bytes.
    pub fn encrypt_xattr(&self, name: &OsStr) -> Result<String, NameError> {
        check_xattr(name.as_bytes())?;
        self.seal(XATTR_IV, name.as_bytes())
    }

    /// Decrypt the name of an extended attribute.
    ///
    /// # Errors
    /// Any [`NameError`].
    pub fn decrypt_xattr(&self, text: &[u8]) -> Result<OsString, NameError> {
        let name = self.open(XATTR_IV, text)?;
        check_xattr(&name)?;
        Ok(OsString::from_vec(name))
    }

    /// Pad, encrypt, encode: names of 1 to 255 bytes.
    fn seal(&self, tweak: &[u8; BLOCK], name: &[u8]) -> Result<String, NameError> {
        let mut padded = name.to_vec();
        let pad = BLOCK - padded.len() % BLOCK;
        padded.resize(padded.len() + pad, u8::try_from(pad).map_err(|_| NameError::BadLength)?);
        self.eme.encrypt(tweak, &mut padded).map_err(|_| NameError::BadLength)?;
        Ok(self.base64.encode(&padded))
    }

    /// Decode, decrypt, unpad. Nothing is known about the result yet.
    fn open(&self, tweak: &[u8; BLOCK], text: &[u8]) -> Result<Vec<u8>, NameError> {
        if text.len() > LONGEST_TEXT {
            return Err(NameError::BadLength);
        }
        let mut name = self.base64.decode(text).map_err(|_| NameError::NotBase64)?;
        self.eme.decrypt(tweak, &mut name).map_err(|_| NameError::BadLength)?;
        let pad = usize::from(name.last().copied().unwrap_or(0));
        let len = name.len().checked_sub(pad).ok_or(NameError::BadPadding)?;
        let (_, padding) = name.split_at(len);
        if !(1..=BLOCK).contains(&pad) || padding.iter().any(|&byte| usize::from(byte) != pad) {
            return Err(NameError::BadPadding);
        }
        name.truncate(len);
        Ok(name)
    }
}

/// The base64 of names, symlink targets and old attribute values.
pub(super) fn base64(features: &Features) -> &'static GeneralPurpose {
    if features.raw64 { &URL_SAFE_NO_PAD } else { &URL_SAFE }
}

/// A plaintext name as it is stored where names are not encrypted.
///
/// # Errors
/// [`NameError::Illegal`].
pub(super) fn plain(name: &[u8]) -> Result<OsString, NameError> {
    check(name)?;
    Ok(OsString::from_vec(name.to_owned()))
}

/// Names of attributes may have slashes and need only be what `xattr(7)` allows.
fn check_xattr(name: &[u8]) -> Result<(), NameError> {
    let legal = (1..=LONGEST_PLAIN).contains(&name.len()) && !name.contains(&0);
    if legal { Ok(()) } else { Err(NameError::Illegal) }
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
        Names::new(&[3; 32], &Features::default())
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
        assert_eq!(stored(255).unwrap().text_file.unwrap().1.len(), 342);
        assert_eq!(stored(256), Err(NameError::Illegal));
        assert_eq!(stored(0), Err(NameError::Illegal));
    }

    #[test]
    fn encrypt_goes_long_where_the_directory_says() {
        let features = Features { longest_name: 100, raw64: false, ..Features::default() };
        let names = Names::new(&[3; 32], &features);
        let stored = |len| names.encrypt(&IV, OsStr::new(&"n".repeat(len))).unwrap();
        assert_eq!((stored(63).object.len(), stored(63).text_file), (88, None));
        let (name, text) = stored(64).text_file.unwrap();
        assert!(name.starts_with(&names.long_object(text.as_bytes())), "{name}");
        // 32 bytes of hash with padding.
        assert_eq!((name.len(), text.len()), (68, 108));
        assert_eq!(stored(255).text_file.unwrap().1.len(), LONGEST_TEXT);
        assert_eq!(names.decrypt(&IV, text.as_bytes()), Ok("n".repeat(64).into()));
        assert_eq!(names.decrypt(&IV, text.trim_end_matches('=').as_bytes()), Err(NameError::NotBase64));
    }

    #[test]
    fn attribute_name_both_ways_is_gocryptfs_own() {
        let master = crate::keyring::Secret::copy_of(&(0..32).collect::<Vec<u8>>()).unwrap();
        let names = crate::gocryptfs::Keys::from_master(&master, Features::default()).unwrap().names();
        let text = "49MtW6o4r3wu_Jt77wclOA";
        assert_eq!(names.encrypt_xattr(OsStr::new("user.foo")), Ok(text.to_owned()));
        assert_eq!(names.decrypt_xattr(text.as_bytes()), Ok("user.foo".into()));
        let slashed = names.encrypt_xattr(OsStr::new("user.a/b")).unwrap();
        assert_eq!(names.decrypt_xattr(slashed.as_bytes()), Ok("user.a/b".into()));
        for illegal in ["", "user.\0", &"n".repeat(256)] {
            assert_eq!(names.encrypt_xattr(OsStr::new(illegal)), Err(NameError::Illegal), "{illegal:?}");
        }
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
            assert_eq!(Stored::classify(Naming::DirIv, name.as_bytes()), kind, "{name}");
            let other = if kind == Stored::DirIv { Stored::Short } else { kind };
            assert_eq!(Stored::classify(Naming::Deterministic, name.as_bytes()), other, "{name}");
            assert_eq!(Stored::classify(Naming::Plain, name.as_bytes()), Stored::Short, "{name}");
        }
        assert_eq!(DirIv::new([0; 16]), None);
    }
}
