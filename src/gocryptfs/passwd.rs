//! Another password for a directory: its master key sealed anew. No file of the model changes.
//!
//! The order keeps a directory that opens at every moment: the new conf is written beside the old one and opened with the new
//! password; the old one is kept as [`BACKUP`] while the new one takes its place by one rename; opened once more where it now
//! is; and only then is the old one removed. The old password still opens every *copy* of the old conf: where it may be known,
//! encrypt the model again.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use subtle::ConstantTimeEq;

use super::conf::{CONF_NAME, Conf, LARGEST_CONF};
use super::error::FormatError;
use super::keys::unlock_master;
use super::passphrase::Passphrase;
use crate::error::{ErrorClass, Fault};

/// The old conf while the new one takes its place.
pub const BACKUP: &str = "gocryptfs.conf.bak";
/// The new conf until it is proven.
const DRAFT: &str = "gocryptfs.conf.new";

/// The password was not changed. The directory opens with the old one.
#[derive(Debug, thiserror::Error)]
pub enum PasswdError {
    /// The conf does not open, or cannot be made.
    #[error("changing the password")]
    Format(#[from] FormatError),
    /// A file cannot be read or written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What was written does not give the same master key: a defect, or a disk that lies.
    #[error("the new conf does not open the directory")]
    Unproven,
}

impl Fault for PasswdError {
    fn class(&self) -> ErrorClass {
        match self {
            PasswdError::Format(source) => source.class(),
            PasswdError::Write { .. } => ErrorClass::Config,
            PasswdError::Unproven => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            PasswdError::Format(source) => source.code(),
            PasswdError::Write { .. } => "passwd.write",
            PasswdError::Unproven => "passwd.unproven",
        }
    }

    fn hint(&self) -> String {
        match self {
            PasswdError::Format(source) => source.hint(),
            PasswdError::Write { .. } => {
                "check space and permissions; the old password still opens the directory".into()
            }
            PasswdError::Unproven => format!(
                "the old password still opens the directory, or its copy {BACKUP}; please report this"
            ),
        }
    }
}

/// Seal the master key of `dir` under `new` in place of `old`. Feature flags and scrypt's cost stay, the salt is new.
///
/// # Errors
/// [`PasswdError`].
pub fn change_password(dir: &Path, old: &Passphrase, new: &Passphrase) -> Result<(), PasswdError> {
    let (conf_path, draft, backup) = (dir.join(CONF_NAME), dir.join(DRAFT), dir.join(BACKUP));
    let json = read(&conf_path)?;
    let conf = Conf::parse(&json)?;
    let master = unlock_master(&conf, old)?;
    let proven = |path: &Path| {
        let opened = Conf::parse(&read(path)?).and_then(|conf| unlock_master(&conf, new))?;
        let same = opened.with(|opened| master.with(|master| bool::from(opened.ct_eq(master))));
        if same { Ok(()) } else { Err(PasswdError::Unproven) }
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PasswdError::Write { path, source }
    };

    // The conf opened with the old password: whatever an interrupted run left is of no use.
    for leftover in [&draft, &backup] {
        remove(leftover).map_err(failed(leftover))?;
    }
    let mut file =
        File::options().write(true).create_new(true).mode(0o400).open(&draft).map_err(failed(&draft))?;
    file.write_all(&conf.resealed(&json, &master, new)?)
        .and_then(|()| file.sync_all())
        .map_err(failed(&draft))?;
    if let Err(error) = proven(&draft) {
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    if let Err(source) = fs::hard_link(&conf_path, &backup) {
        let _ = fs::remove_file(&draft);
        return Err(PasswdError::Write { path: backup, source });
    }
    fs::rename(&draft, &conf_path).map_err(failed(&conf_path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed(dir))?;
    proven(&conf_path)?;
    remove(&backup).map_err(failed(&backup))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PasswdError> {
    let mut json = Vec::new();
    let limit = u64::try_from(LARGEST_CONF).unwrap_or(u64::MAX).saturating_add(1);
    match File::open(path).and_then(|file| file.take(limit).read_to_end(&mut json)) {
        Ok(_) => Ok(json),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(FormatError::NoConf.into()),
        Err(source) => Err(PasswdError::Write { path: path.to_owned(), source }),
    }
}
