//! The gocryptfs v2 format: conf, names, content, directory; reader and writer; pure CPU.
//!
//! Owns: everything that knows how a gocryptfs directory is laid out, and the keys that open it. Must not know: where
//! ciphertext comes from (it asks [`Ciphertext`](crate::ciphertext::Ciphertext)), object stores, sockets, the kernel's
//! side of a mount. The two files that touch a file system are [`LocalDir`] (a local directory as ciphertext) and
//! the writer behind [`encrypt_tree`]; [`change_password`] replaces one file. [`verify`] looks at all of a directory.
//!
//! What is read is everything that gocryptfs v2.4.0 opens with a password: content under AES-256-GCM, AES-SIV or
//! XChaCha20-Poly1305, with or without HKDF and with padded or unpadded base64; names under directory IVs,
//! deterministic or plain, long names from any length on; extended attributes; what `gocryptfs -reverse` shows. An
//! unknown feature flag is refused by name, and a combination that gocryptfs refuses is refused, too ([`FormatError`],
//! decided in `features.rs`). What is written is what gocryptfs makes with its default options.
//!
//! A file of `n` plaintext bytes, `n > 0`, is an 18-byte header (version 2, 16-byte file id) and one sealed block per
//! 4096 bytes: nonce 16, ciphertext, tag 16. So 5000 bytes become 18 + 4128 + (904 + 32) = 5082 ([`layout`] has the
//! rest). An empty file has no header. What the format does not protect: a file cut at a block border, a whole file
//! swapped, missing or rolled back, an older state of one block of a file, and any full block overwritten with zeros,
//! which reads as a hole.
//!
//! Threads and locks: every value is immutable once built and shared by reference or `Arc`; [`LocalDir`] has one lock
//! (its open files), held for bookkeeping only. Tested here, in `tests/format_vectors.rs`, `tests/format_props.rs` and,
//! against the real gocryptfs, in `tests/gocryptfs_peer.rs` and `tests/gocryptfs_options.rs`.

mod aead;
mod cipher;
mod conf;
pub mod content;
mod crew;
mod dirfd;
mod eme;
mod encrypt_error;
mod error;
mod exclude;
mod features;
mod judge;
mod keys;
pub mod layout;
mod local;
pub mod names;
mod order;
mod passphrase;
mod passwd;
mod plaintext;
mod seal;
mod siv;
mod tree;
mod tree_build;
mod tree_stored;
mod verify;
mod work_dir;
mod writer;
mod xattrs;

pub use conf::{CONF_NAME, Conf, DEFAULT_SCRYPT_LOG_N};
pub use content::{ContentError, Damage, FileReader, opened};
pub use encrypt_error::EncryptError;
pub use error::FormatError;
pub use exclude::Exclude;
pub use features::{Cipher, Features, Naming};
pub use judge::BlockJudge;
pub use keys::{Keys, unlock};
pub use local::{LocalDir, LocalDirError};
pub use order::{files_at, load_order};
pub use passphrase::{Passphrase, PassphraseError, PassphraseWarning, read_passfile};
pub use passwd::{BACKUP, PasswdError, change_password};
pub use tree::{Kind, Node, NodeId, SkipReason, Skipped, Tree, TreeError};
pub use tree_build::metadata_entries;
pub use verify::{Damaged, Flaw, Verified, VerifyError, verify};
pub use writer::{EncryptOptions, Encrypted, Finish, Progress, encrypt_tree, lone_directory};
pub use xattrs::{XattrError, XattrNames, xattr, xattr_names};
