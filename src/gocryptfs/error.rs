//! Why a directory cannot be opened: what is wrong with its conf, or with the password.

use super::conf::{CONF_NAME, LARGEST_CONF, VERSION};
use crate::ciphertext::ReadError;
use crate::error::{ErrorClass, Fault};
use crate::keyring::LockError;

/// A conf that cannot be used, or a password that does not open it.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// There is no `gocryptfs.conf`.
    #[error("there is no {CONF_NAME}")]
    NoConf,
    /// It could not be read.
    #[error("reading {CONF_NAME}")]
    ReadConf(#[source] ReadError),
    /// Larger than any conf.
    #[error("{CONF_NAME} has {len} bytes; {LARGEST_CONF} at most are expected")]
    TooLarge {
        /// Length in bytes.
        len: u64,
    },
    /// Not JSON.
    #[error("{CONF_NAME} is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// A field has another type.
    #[error("field {field} of {CONF_NAME} is not what it should be")]
    Field {
        /// Field name.
        field: &'static str,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A field is not there.
    #[error("{CONF_NAME} has no field {field}")]
    MissingField {
        /// Field name.
        field: &'static str,
    },
    /// A field's bytes are not base64, or have a wrong length.
    #[error("field {field} of {CONF_NAME} does not hold the bytes it should")]
    Bytes {
        /// Field name.
        field: &'static str,
    },
    /// An on-disk version that this gocryptfs generation does not write.
    #[error("on-disk version {found} is not supported, only version {VERSION}")]
    Version {
        /// Version found.
        found: u64,
    },
    /// The master key is sealed under a FIDO2 token.
    #[error("the directory is opened with a FIDO2 token, which cai cannot ask (feature flag FIDO2)")]
    Fido2,
    /// Two flags that gocryptfs does not let stand together.
    #[error("feature flags {flag} and {other} exclude each other")]
    FlagConflict {
        /// Flag name.
        flag: &'static str,
        /// Flag name.
        other: &'static str,
    },
    /// A flag nobody knows.
    #[error("feature flag {flag:?} is unknown")]
    UnknownFlag {
        /// Flag name, cut to 64 characters.
        flag: String,
    },
    /// A flag that another one, or the cipher, needs is not set. Without `GCMIV128`: made by gocryptfs 0.6 or older.
    #[error("feature flag {flag}, which {by} needs, is not set")]
    MissingFlag {
        /// Flag name.
        flag: &'static str,
        /// Flag or cipher.
        by: &'static str,
    },
    /// The field and the flag `LongNameMax` must both be there, or neither.
    #[error("field LongNameMax is {value} (0: not set), and its feature flag says otherwise")]
    LongNameMax {
        /// The field.
        value: u8,
    },
    /// A scrypt parameter is outside of what is safe to run.
    #[error("scrypt parameter {parameter} = {value} is refused")]
    Scrypt {
        /// `N`, `R`, `P`, `KeyLen`, or `128*N*R`, `128*N*R*P` in bytes.
        parameter: &'static str,
        /// Its value.
        value: u64,
    },
    /// The master key does not open: another password, or a damaged conf (the two cannot be told apart).
    #[error("the password does not open this directory")]
    WrongPassword,
    /// A master key must have 32 bytes.
    #[error("a master key of {len} bytes, not 32")]
    MasterKeyLength {
        /// Length in bytes.
        len: usize,
    },
    /// A derivation refused lengths that are constants.
    #[error("key derivation failed: {step}")]
    Derive {
        /// Which step.
        step: &'static str,
    },
    /// No locked memory for keys.
    #[error("keeping keys in memory")]
    Lock(#[from] LockError),
    /// The system gave no random bytes.
    #[error("reading random bytes")]
    Random(#[from] getrandom::Error),
}

impl Fault for FormatError {
    fn class(&self) -> ErrorClass {
        match self {
            FormatError::ReadConf(source) => super::content::read_class(source),
            FormatError::NoConf
            | FormatError::Version { .. }
            | FormatError::Fido2
            | FormatError::FlagConflict { .. }
            | FormatError::UnknownFlag { .. }
            | FormatError::MissingFlag { .. }
            | FormatError::LongNameMax { .. }
            | FormatError::Scrypt { .. }
            | FormatError::WrongPassword
            | FormatError::MasterKeyLength { .. }
            | FormatError::Lock(_) => ErrorClass::Config,
            FormatError::TooLarge { .. }
            | FormatError::Json(_)
            | FormatError::Field { .. }
            | FormatError::MissingField { .. }
            | FormatError::Bytes { .. } => ErrorClass::Corrupt,
            FormatError::Derive { .. } | FormatError::Random(_) => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            FormatError::NoConf => "format.no-conf",
            FormatError::ReadConf(_) => "format.read-conf",
            FormatError::TooLarge { .. } => "format.conf-too-large",
            FormatError::Json(_) => "format.conf-json",
            FormatError::Field { .. } => "format.conf-field",
            FormatError::MissingField { .. } => "format.conf-missing-field",
            FormatError::Bytes { .. } => "format.conf-bytes",
            FormatError::Version { .. } => "format.version",
            FormatError::Fido2 => "format.fido2",
            FormatError::FlagConflict { .. } => "format.flag-conflict",
            FormatError::LongNameMax { .. } => "format.long-name-max",
            FormatError::UnknownFlag { .. } => "format.flag-unknown",
            FormatError::MissingFlag { .. } => "format.flag-missing",
            FormatError::Scrypt { .. } => "format.scrypt",
            FormatError::WrongPassword => "format.wrong-password",
            FormatError::MasterKeyLength { .. } => "format.master-key",
            FormatError::Derive { .. } => "format.derive",
            FormatError::Lock(_) => "format.lock",
            FormatError::Random(_) => "format.random",
        }
    }

    fn hint(&self) -> String {
        match self {
            FormatError::NoConf => {
                "point at the directory that holds gocryptfs.conf: the encrypted one itself, neither its parent nor \
                 its mount point"
            }
            FormatError::ReadConf(_) => "check that the ciphertext can be reached and read",
            FormatError::TooLarge { .. }
            | FormatError::Json(_)
            | FormatError::Field { .. }
            | FormatError::MissingField { .. }
            | FormatError::Bytes { .. } => "gocryptfs.conf is damaged: restore it from where the model was encrypted",
            FormatError::Version { .. }
            | FormatError::FlagConflict { .. }
            | FormatError::UnknownFlag { .. }
            | FormatError::MissingFlag { .. }
            | FormatError::LongNameMax { .. } => {
                "encrypt the model again, with `cai encrypt` or with gocryptfs 2.x"
            }
            FormatError::Fido2 => "encrypt the model again, with a password",
            FormatError::Scrypt { .. } => "the scrypt parameters are weak, huge or no power of two: encrypt again",
            FormatError::WrongPassword => {
                "compare the secret with the password used to encrypt, byte for byte; `cai check-key` tries one"
            }
            FormatError::MasterKeyLength { .. } => "a master key has 64 hexadecimal digits",
            FormatError::Derive { .. } => "this is a defect in cai: please report it",
            FormatError::Lock(_) => "raise RLIMIT_MEMLOCK (LimitMEMLOCK= in the unit)",
            FormatError::Random(_) => "the kernel's random source must work",
        }
        .to_owned()
    }
}
