//! Extended attributes: what is stored as `user.gocryptfs.*`, in the names and values it stands for.
//!
//! They are read when asked for, never when the tree is built: a mount does not wait for what nobody looks at. Access
//! control lists are the one kind that gocryptfs does not encrypt.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::content::{Damage, open_value, read_class};
use super::keys::Keys;
use super::names::NameError;
use crate::ciphertext::{Ciphertext, EntryId, ReadError};
use crate::error::{ErrorClass, Fault};

/// Before every encrypted name.
const PREFIX: &[u8] = b"user.gocryptfs.";
/// Stored as they are, so that the backing file system can enforce them.
const ACCESS_LISTS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];

/// Why an attribute cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum XattrError {
    /// The stored attributes cannot be read.
    #[error("reading extended attributes")]
    Read(#[from] ReadError),
    /// The value is not what was encrypted.
    #[error("extended attribute {} is corrupt", name.display())]
    Corrupt {
        /// Plaintext name.
        name: OsString,
        /// What is wrong with it.
        #[source]
        what: Damage,
    },
}

impl Fault for XattrError {
    fn class(&self) -> ErrorClass {
        match self {
            XattrError::Read(source) => read_class(source),
            XattrError::Corrupt { .. } => ErrorClass::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            XattrError::Read(_) => "xattr.read",
            XattrError::Corrupt { .. } => "xattr.corrupt",
        }
    }

    fn hint(&self) -> String {
        match self {
            XattrError::Read(_) => "check that the ciphertext can be reached and has not been replaced",
            XattrError::Corrupt { .. } => {
                "the attribute was changed or damaged: copy the encrypted directory again"
            }
        }
        .to_owned()
    }
}

/// The attributes of one file or directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct XattrNames {
    /// Plaintext names, namespace included.
    pub names: Vec<OsString>,
    /// Stored names that do not decrypt, left out as gocryptfs leaves them out.
    pub skipped: Vec<(OsString, NameError)>,
}

/// Names of the extended attributes of `of`; `None` is the root directory.
///
/// # Errors
/// [`XattrError::Read`].
pub fn xattr_names(
    source: &dyn Ciphertext,
    keys: &Keys,
    of: Option<EntryId>,
) -> Result<XattrNames, XattrError> {
    let cipher = keys.names();
    let mut found = XattrNames::default();
    for stored in source.xattr_names(of)? {
        if is_access_list(&stored) {
            found.names.push(stored);
        } else if let Some(text) = stored.as_bytes().strip_prefix(PREFIX) {
            match cipher.decrypt_xattr(text) {
                // Access lists were once encrypted; nobody could enforce those.
                Ok(name) if is_access_list(&name) => found.skipped.push((stored, NameError::Illegal)),
                Ok(name) => found.names.push(name),
                Err(reason) => found.skipped.push((stored, reason)),
            }
        }
    }
    Ok(found)
}

/// The value of one extended attribute of `of`; `None` when there is none of that name.
///
/// # Errors
/// [`XattrError`].
pub fn xattr(
    source: &dyn Ciphertext,
    keys: &Keys,
    of: Option<EntryId>,
    name: &OsStr,
) -> Result<Option<Vec<u8>>, XattrError> {
    if is_access_list(name) {
        return Ok(source.xattr(of, name)?);
    }
    let Ok(text) = keys.names().encrypt_xattr(name) else { return Ok(None) };
    let stored_name = OsString::from_vec([PREFIX, text.as_bytes()].concat());
    let Some(stored) = source.xattr(of, &stored_name)? else { return Ok(None) };
    let value = open_value(keys, &stored);
    value.map(Some).map_err(|what| XattrError::Corrupt { name: name.to_owned(), what })
}

fn is_access_list(name: &OsStr) -> bool {
    ACCESS_LISTS.iter().any(|list| name == *list)
}
