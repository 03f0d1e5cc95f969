//! The gocryptfs v2 format: conf, names, content, directory; reader and writer; pure CPU.
//!
//! Owns: everything that knows how a gocryptfs directory is laid out, and the keys that open it. Must not know: where
//! ciphertext comes from (it asks [`Ciphertext`](crate::ciphertext::Ciphertext)), object stores, sockets, the kernel's
//! side of a mount. The two files that touch a file system are [`LocalDir`] (a local directory as ciphertext) and
//! the writer behind [`encrypt_tree`]; [`change_password`] replaces one file. [`verify`] looks at all of a directory.
//!
//! What is read and written is what gocryptfs v2.4.0 makes with its default options: AES-256-GCM with 16-byte
//! nonces, EME names, HKDF, unpadded base64, one IV per directory, long names. Any other feature flag is refused by
//! name ([`FormatError`]); `conf.rs` is the one place that decides.
//!
//! A file of `n` plaintext bytes, `n > 0`, is an 18-byte header (version 2, 16-byte file id) and one sealed block per
//! 4096 bytes: nonce 16, ciphertext, tag 16. So 5000 bytes become 18 + 4128 + (904 + 32) = 5082. An empty file has
//! no header. What the format does not protect: a file cut at a block border, a whole file swapped, missing or
//! rolled back, and any full block overwritten with zeros, which reads as a hole.
//!
//! Threads and locks: every value is immutable once built and shared by reference or `Arc`; [`LocalDir`] has one lock
//! (its open files), held for bookkeeping only. Tested here, in `tests/format_vectors.rs`, `tests/format_props.rs` and,
//! against the real gocryptfs, in `tests/gocryptfs_peer.rs`.

mod aead;
mod conf;
pub mod content;
mod crew;
mod dirfd;
mod eme;
mod encrypt_error;
mod error;
mod exclude;
mod keys;
pub mod layout;
mod local;
pub mod names;
mod passphrase;
mod passwd;
mod plaintext;
mod seal;
mod tree;
mod tree_build;
mod verify;
mod work_dir;
mod writer;

pub use conf::{CONF_NAME, Conf, DEFAULT_SCRYPT_LOG_N};
pub use content::{ContentError, Damage, FileReader};
pub use encrypt_error::EncryptError;
pub use error::FormatError;
pub use exclude::Exclude;
pub use keys::{Keys, unlock};
pub use local::{LocalDir, LocalDirError};
pub use passphrase::{Passphrase, PassphraseError, PassphraseWarning, read_passfile};
pub use passwd::{BACKUP, PasswdError, change_password};
pub use tree::{Kind, Node, NodeId, SkipReason, Skipped, Tree, TreeError};
pub use tree_build::metadata_entries;
pub use verify::{Damaged, Flaw, Verified, VerifyError, verify};
pub use writer::{EncryptOptions, Encrypted, Finish, Progress, encrypt_tree, lone_directory};
