//! The password of a gocryptfs directory, taken from a secret exactly as gocryptfs takes it from a password file.
//!
//! A key broker delivers bytes; gocryptfs reads a line. Where the two could disagree (a second line, a trailing carriage
//! return, nothing at all) this module says so instead of guessing.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{ErrorClass, Fault};
use crate::keyring::{LockError, Secret};

/// Longest password gocryptfs takes, in bytes.
pub const LONGEST: usize = 2048;
/// Read at most this much of a password file: the longest password, its newline, and one byte that proves there is more.
const READ_LIMIT: usize = LONGEST + 2;

/// The bytes given are no password.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// Nothing before the first newline.
    #[error("the password is empty")]
    Empty,
    /// More follows the first newline.
    #[error("the password has more than one line; gocryptfs would use the first and ignore the rest")]
    InnerNewline,
    /// More than 2048 bytes.
    #[error("the password is longer than {LONGEST} bytes, gocryptfs' limit")]
    TooLong,
    /// The password file cannot be read.
    #[error("reading the password file {path}")]
    Read {
        /// Path as given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No locked memory for it.
    #[error("keeping the password in memory")]
    Lock(#[from] LockError),
}

impl Fault for PassphraseError {
    fn class(&self) -> ErrorClass {
        match self {
            PassphraseError::Empty
            | PassphraseError::InnerNewline
            | PassphraseError::TooLong
            | PassphraseError::Read { .. }
            | PassphraseError::Lock(_) => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            PassphraseError::Empty => "passphrase.empty",
            PassphraseError::InnerNewline => "passphrase.newline",
            PassphraseError::TooLong => "passphrase.too-long",
            PassphraseError::Read { .. } => "passphrase.read",
            PassphraseError::Lock(_) => "passphrase.lock",
        }
    }

    fn hint(&self) -> String {
        match self {
            PassphraseError::Empty => {
                "store the password itself; one newline after it is allowed, none is needed"
            }
            PassphraseError::InnerNewline => {
                "store exactly one line: the password, with or without a newline after it"
            }
            PassphraseError::TooLong => {
                "check that the secret is the password and not a file of another kind"
            }
            PassphraseError::Read { .. } => "check that the password file exists and that you may read it",
            PassphraseError::Lock(_) => "raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the unit)",
        }
        .to_owned()
    }
}

/// What is legal but probably not meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassphraseWarning {
    /// The last byte is a carriage return: it belongs to the password, as with gocryptfs.
    CarriageReturn,
}

impl std::fmt::Display for PassphraseWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PassphraseWarning::CarriageReturn => f.write_str(
                "the password ends in a carriage return, which is part of it (was it written on Windows?)",
            ),
        }
    }
}

/// A password of 1 to 2048 bytes, without its newline.
pub struct Passphrase {
    secret: Secret,
}

impl Passphrase {
    /// The password in `secret`: everything, less one trailing newline. Spaces and carriage returns belong to it.
    ///
    /// # Errors
    /// [`PassphraseError`]: empty, more than one line, too long, or no locked memory.
    pub fn from_secret(secret: &Secret) -> Result<Passphrase, PassphraseError> {
        secret.with(|bytes| {
            let password = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            if password.is_empty() {
                return Err(PassphraseError::Empty);
            }
            if password.contains(&b'\n') {
                return Err(PassphraseError::InnerNewline);
            }
            if password.len() > LONGEST {
                return Err(PassphraseError::TooLong);
            }
            Ok(Passphrase { secret: Secret::copy_of(password)? })
        })
    }

    /// What the caller should log or print about it. Says nothing about the content but its last byte's kind.
    pub fn warnings(&self) -> Vec<PassphraseWarning> {
        let carriage_return = self.secret.with(|bytes| bytes.last() == Some(&b'\r'));
        carriage_return.then_some(PassphraseWarning::CarriageReturn).into_iter().collect()
    }

    pub(super) fn with<R>(&self, read: impl FnOnce(&[u8]) -> R) -> R {
        self.secret.with(read)
    }
}

/// The content of a password file (or pipe), at most 2050 bytes, read straight into locked memory.
///
/// # Errors
/// [`PassphraseError::Read`], [`PassphraseError::TooLong`] when there is more, [`PassphraseError::Lock`].
pub fn read_passfile(path: &Path) -> Result<Secret, PassphraseError> {
    let failed = |source| PassphraseError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let secret = Secret::fill(READ_LIMIT, |buffer| {
        let mut filled = 0;
        while let Some(free) = buffer.get_mut(filled..)
            && !free.is_empty()
        {
            match file.read(free) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(filled)
    })?;
    if secret.len() == READ_LIMIT { Err(PassphraseError::TooLong) } else { Ok(secret) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(bytes: &[u8]) -> Result<Vec<u8>, PassphraseError> {
        let passphrase = Passphrase::from_secret(&Secret::copy_of(bytes).unwrap())?;
        Ok(passphrase.with(<[u8]>::to_vec))
    }

    #[test]
    fn from_secret_strips_exactly_one_newline() {
        for (given, kept) in [
            (&b"test"[..], &b"test"[..]),
            (b"test\n", b"test"),
            (b" test \n", b" test "),
            (b"test\r\n", b"test\r"),
            (b"\x00\xff\n", b"\x00\xff"),
        ] {
            assert_eq!(password(given).unwrap(), kept, "{given:?}");
        }
        assert_eq!(password(&[b'x'; LONGEST]).unwrap().len(), LONGEST);
    }

    #[test]
    fn from_secret_of_what_is_no_password_says_why() {
        assert!(matches!(password(b""), Err(PassphraseError::Empty)));
        assert!(matches!(password(b"\n"), Err(PassphraseError::Empty)));
        assert!(matches!(password(b"a\nb"), Err(PassphraseError::InnerNewline)));
        assert!(matches!(password(b"a\n\n"), Err(PassphraseError::InnerNewline)));
        assert!(matches!(password(b"\na"), Err(PassphraseError::InnerNewline)));
        assert!(matches!(password(&[b'x'; LONGEST + 1]), Err(PassphraseError::TooLong)));
    }

    #[test]
    fn warnings_name_a_trailing_carriage_return_only() {
        let warnings =
            |bytes: &[u8]| Passphrase::from_secret(&Secret::copy_of(bytes).unwrap()).unwrap().warnings();
        assert_eq!(warnings(b"test\r\n"), [PassphraseWarning::CarriageReturn]);
        assert_eq!(warnings(b"te\rst\n"), []);
    }

    #[test]
    fn read_passfile_is_bounded_and_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, b"alibaba@1688\n").unwrap();
        assert!(read_passfile(&path).unwrap().with(|bytes| bytes == b"alibaba@1688\n"));
        std::fs::write(&path, vec![b'x'; LONGEST + 1]).unwrap();
        assert_eq!(read_passfile(&path).unwrap().len(), LONGEST + 1);
        std::fs::write(&path, vec![b'x'; LONGEST + 2]).unwrap();
        assert!(matches!(read_passfile(&path), Err(PassphraseError::TooLong)));
        let missing = dir.path().join("missing");
        assert!(
            matches!(read_passfile(&missing), Err(PassphraseError::Read { path, .. }) if path == missing)
        );
    }
}
