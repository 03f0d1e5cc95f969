//! What is wrong with a manifest, and why one (or none) is not accepted.

use std::path::PathBuf;

use super::code::{Identity, NAME};
use super::key::PublicKey;
use crate::error::{ErrorClass, Fault, utc};

/// A manifest, a key or a licence that cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// More than 64 MiB, or a part over its bound.
    #[error("the manifest is too large")]
    TooLarge,
    /// It ends in the middle.
    #[error("the manifest is cut short")]
    Cut,
    /// It goes on after its end.
    #[error("the manifest has {bytes} bytes behind its end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// Not a manifest, or of a version this cai does not know.
    #[error("this is no manifest of version 1")]
    Magic,
    /// The signature is not that of the key in it: changed, damaged, or forged.
    #[error("the manifest's signature does not verify")]
    Signature,
    /// Revision 0.
    #[error("the manifest has no revision")]
    Revision,
    /// Too many fields, or not in order.
    #[error("the manifest's fields are not in order")]
    Fields,
    /// A critical field this cai does not know.
    #[error("the manifest has a critical field {tag:#06x} that this cai does not know")]
    UnknownField {
        /// Its tag.
        tag: u16,
    },
    /// No objects, or more than 2^20.
    #[error("the manifest has {count} objects, not 1 to 1048576")]
    Objects {
        /// How many.
        count: u32,
    },
    /// A path that is not below the root, or not in its only form.
    #[error("{path:?} is no path of an object")]
    Path {
        /// As found.
        path: PathBuf,
    },
    /// Two objects of one path, or not sorted.
    #[error("{path:?} is not in its place among the objects")]
    Order {
        /// The later of the two.
        path: PathBuf,
    },
    /// A licence that says something it must not.
    #[error("the licence: {what}")]
    Licence {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The licence file cannot be read.
    #[error("reading the licence {}", path.display())]
    LicenceFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The licence file does not hold a licence.
    #[error("{}: {what}", path.display())]
    LicenceText {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The key file cannot be read or written.
    #[error("the key file {}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Others can read the private key.
    #[error("{} can be read by others (mode {mode:04o})", path.display())]
    KeyMode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no Ed25519 private key.
    #[error("{} holds no Ed25519 private key", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The cryptographic library failed where it cannot.
    #[error("signing")]
    Crypto,
    /// A file or directory cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file was written to while it was hashed.
    #[error("{} changed while it was hashed", path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// The manifest cannot be written.
    #[error("writing {}", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// No thread could be started.
    #[error("starting a thread")]
    Thread {
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Fault for ManifestError {
    fn class(&self) -> ErrorClass {
        match self {
            ManifestError::TooLarge
            | ManifestError::Cut
            | ManifestError::Trailing { .. }
            | ManifestError::Magic
            | ManifestError::Signature
            | ManifestError::Revision
            | ManifestError::Fields
            | ManifestError::UnknownField { .. }
            | ManifestError::Objects { .. }
            | ManifestError::Path { .. }
            | ManifestError::Order { .. }
            | ManifestError::Licence { .. } => ErrorClass::Corrupt,
            ManifestError::LicenceFile { .. }
            | ManifestError::LicenceText { .. }
            | ManifestError::KeyFile { .. }
            | ManifestError::KeyMode { .. }
            | ManifestError::NoKey { .. }
            | ManifestError::Read { .. }
            | ManifestError::Changed { .. }
            | ManifestError::Write { .. } => ErrorClass::Config,
            ManifestError::Crypto | ManifestError::Thread { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ManifestError::TooLarge => "manifest.too-large",
            ManifestError::Cut => "manifest.cut",
            ManifestError::Trailing { .. } => "manifest.trailing",
            ManifestError::Magic => "manifest.version",
            ManifestError::Signature => "manifest.signature",
            ManifestError::Revision => "manifest.revision",
            ManifestError::Fields => "manifest.fields",
            ManifestError::UnknownField { .. } => "manifest.unknown-field",
            ManifestError::Objects { .. } => "manifest.objects",
            ManifestError::Path { .. } => "manifest.path",
            ManifestError::Order { .. } => "manifest.order",
            ManifestError::Licence { .. } => "manifest.licence",
            ManifestError::LicenceFile { .. } => "licence.file",
            ManifestError::LicenceText { .. } => "licence.text",
            ManifestError::KeyFile { .. } => "manifest.key-file",
            ManifestError::KeyMode { .. } => "manifest.key-mode",
            ManifestError::NoKey { .. } => "manifest.no-key",
            ManifestError::Crypto => "manifest.crypto",
            ManifestError::Read { .. } => "manifest.read",
            ManifestError::Changed { .. } => "manifest.file-changed",
            ManifestError::Write { .. } => "manifest.write",
            ManifestError::Thread { .. } => "manifest.thread",
        }
    }

    fn hint(&self) -> String {
        match self {
            ManifestError::TooLarge
            | ManifestError::Cut
            | ManifestError::Trailing { .. }
            | ManifestError::Signature
            | ManifestError::Revision
            | ManifestError::Fields
            | ManifestError::Objects { .. }
            | ManifestError::Path { .. }
            | ManifestError::Order { .. }
            | ManifestError::Licence { .. } => {
                format!("{NAME} is damaged or forged: restore it from where the model was signed, or sign again")
            }
            ManifestError::Magic | ManifestError::UnknownField { .. } => {
                "it was made by a newer cai, or is no manifest: update cai, or sign again".into()
            }
            ManifestError::LicenceFile { .. } => "give a file that you may read".into(),
            ManifestError::LicenceText { .. } => {
                "id = \"...\" and licensee = \"...\", and optionally policy, text, not_before = 2026-01-01, not_after".into()
            }
            ManifestError::KeyFile { .. } => {
                "cai keygen makes a new key and overwrites none; check path and permissions".into()
            }
            ManifestError::KeyMode { path, .. } => format!("chmod 600 {}", path.display()),
            ManifestError::NoKey { .. } => "give the private key that cai keygen made, not the .pub file".into(),
            ManifestError::Crypto => "this is a defect in cai: please report it".into(),
            ManifestError::Read { .. } => "everything in the directory must be readable for this user".into(),
            ManifestError::Changed { .. } => "let nothing write to the directory, and run it again".into(),
            ManifestError::Write { .. } => "check space and permissions of the directory".into(),
            ManifestError::Thread { .. } => "raise the limit of processes and threads".into(),
        }
    }
}

/// Why a model is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// The configuration names a publisher or an identity, and there is no manifest.
    #[error("the model has no signed manifest, and the configuration asks for one")]
    Required,
    /// The model had one before.
    #[error("the model has no signed manifest any more; revision {revision} had one")]
    Gone {
        /// The last one seen.
        revision: u64,
    },
    /// Signed by somebody else than the configuration names, or than before.
    #[error("the manifest is signed by {found}, not by {wanted}")]
    OtherPublisher {
        /// Who should have signed.
        wanted: PublicKey,
        /// Who has.
        found: PublicKey,
    },
    /// Not the model that the configuration names.
    #[error("the model's identity is {found}, not {wanted}")]
    OtherIdentity {
        /// As configured.
        wanted: Identity,
        /// As found.
        found: Identity,
    },
    /// An older revision than was seen.
    #[error("the model is revision {found}, and revision {seen} was seen before")]
    RolledBack {
        /// The last one seen.
        seen: u64,
        /// As found.
        found: u64,
    },
    /// Two models of one revision.
    #[error("revision {revision} is another model ({found}) than before ({seen})")]
    Replaced {
        /// The revision.
        revision: u64,
        /// The identity seen before.
        seen: Identity,
        /// As found.
        found: Identity,
    },
    /// The licence begins later.
    #[error("licence {id} is not valid before {}", utc(*.from))]
    NotYetValid {
        /// Licence id.
        id: String,
        /// Seconds since 1970.
        from: u64,
    },
    /// The licence has ended.
    #[error("licence {id} ended at {}", utc(*.until))]
    Expired {
        /// Licence id.
        id: String,
        /// Seconds since 1970.
        until: u64,
    },
    /// The licence has dates, and the key broker gave no time to compare them with.
    #[error("licence {id} has dates, and the attestation token has no time")]
    NoTime {
        /// Licence id.
        id: String,
    },
    /// The licence asks for another attestation policy.
    #[error("licence {id} asks for attestation policy {asks}, this machine uses {has}")]
    OtherPolicy {
        /// Licence id.
        id: String,
        /// The policy of the licence.
        asks: String,
        /// The policy of this machine.
        has: String,
    },
    /// The bucket has not what the manifest names.
    #[error("{count} objects are not what the manifest says, the first is {first}")]
    Objects {
        /// How many.
        count: usize,
        /// The first, and what is wrong with it.
        first: String,
    },
}

impl Fault for PolicyError {
    fn class(&self) -> ErrorClass {
        match self {
            PolicyError::Required
            | PolicyError::Gone { .. }
            | PolicyError::OtherPublisher { .. }
            | PolicyError::OtherIdentity { .. }
            | PolicyError::RolledBack { .. }
            | PolicyError::Replaced { .. }
            | PolicyError::Objects { .. } => ErrorClass::Corrupt,
            PolicyError::NotYetValid { .. }
            | PolicyError::Expired { .. }
            | PolicyError::NoTime { .. }
            | PolicyError::OtherPolicy { .. } => ErrorClass::Denied,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            PolicyError::Required => "model.no-manifest",
            PolicyError::Gone { .. } => "model.manifest-gone",
            PolicyError::OtherPublisher { .. } => "model.other-publisher",
            PolicyError::OtherIdentity { .. } => "model.other-identity",
            PolicyError::RolledBack { .. } => "model.rolled-back",
            PolicyError::Replaced { .. } => "model.revision-replaced",
            PolicyError::NotYetValid { .. } => "licence.not-yet-valid",
            PolicyError::Expired { .. } => "licence.expired",
            PolicyError::NoTime { .. } => "licence.no-time",
            PolicyError::OtherPolicy { .. } => "licence.other-policy",
            PolicyError::Objects { .. } => "model.objects",
        }
    }

    fn hint(&self) -> String {
        match self {
            PolicyError::Required => {
                "sign the model (cai manifest DIR --sign KEYFILE) and upload it again, or remove model.publisher_key and \
                 model.manifest_sha256 from cai.toml"
                    .into()
            }
            PolicyError::Gone { .. } | PolicyError::RolledBack { .. } | PolicyError::Replaced { .. } => {
                "somebody put an older or another model in its place; where it was meant, remove the model's file below \
                 /var/lib/cai/models"
                    .into()
            }
            PolicyError::OtherPublisher { .. } => {
                "ask the publisher; a new key goes into model.publisher_key of cai.toml".into()
            }
            PolicyError::OtherIdentity { .. } => {
                "model.manifest_sha256 of cai.toml names another model than the bucket holds".into()
            }
            PolicyError::NotYetValid { .. } | PolicyError::Expired { .. } => {
                "ask the model's owner for a licence; the date of the attestation token counts, not this machine's clock"
                    .into()
            }
            PolicyError::NoTime { .. } => {
                "a licence needs a time that can be trusted: use an https TRUSTEE_URL, or set trustee.token_cert; the \
                 attestation token must have an expiry"
                    .into()
            }
            PolicyError::OtherPolicy { .. } => "set TRUSTEE_POLICY to the policy of the licence".into(),
            PolicyError::Objects { .. } => {
                "upload the model again, with its manifest; while an upload is under way, wait for its end".into()
            }
        }
    }
}
