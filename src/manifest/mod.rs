//! The signed manifest: which ciphertext objects make up a model, as its publisher left them.
//!
//! Encryption says that a block belongs to its file. It does not say that the file is whole, is the one that belongs under
//! its name, is of this version, or that the model comes from whom one thinks: whoever can write to the bucket could cut,
//! swap, drop or roll back files. The manifest closes that. It names every object with length and tree hash, and is signed
//! by the publisher; the hash of what is signed is the *model identity*.
//!
//! Owns: the file's layout, its signature, the hashes, the licence in it, and the decision whether a manifest (or its absence)
//! is acceptable ([`Policy`]). Must not know: the model's key, plaintext, where objects come from. It is ciphertext-side data:
//! the store may check chunks with it, whoever sent them. Threads live only inside the hashing of a directory; no locks
//! beyond it. Tested in each file, in `tests/manifest.rs`, and with frozen bytes in `tests/vectors/manifest.json`.
//!
//! # The file
//!
//! [`NAME`] in the root of the ciphertext directory. Names of this form hold the text of long names and every gocryptfs
//! passes over one it does not look for, without a warning and without a complaint from `-fsck`; any other name it reports
//! as corrupt. Integers are big-endian, lengths in bytes; two encodings of one manifest do not exist.
//!
//! ```text
//! body       magic       16  "cai-manifest 1\r\n"
//!            publisher   32  Ed25519 public key
//!            revision     8  1 and up; a later one replaces an earlier one
//!            fields       2  how many, at most 16; their tags ascend
//!              tag        2  0x8000 set: critical, refused when unknown; clear: passed over when unknown
//!              length     4
//!              content
//!            objects      4  how many, 1 to 2^20; their paths ascend bytewise, none twice
//!              length     2  1 to 4095
//!              path          relative, "/" between names of 1 to 255 bytes, none of them "." or "..", no NUL
//!              length     8  of the object
//!              hashes        32 for each started 8 MiB, and 32 for an empty object
//! signature  Ed25519     64  over "cai-manifest 1 signature\0" and the model identity
//! ```
//!
//! The model identity is the SHA-256 of the body. The only field is the licence, tag 0x8001 ([`Licence`]):
//!
//! ```text
//! id         2 + n   1 to 256 bytes of UTF-8 without control characters
//! licensee   2 + n   the same
//! policy     2 + n   the same, or empty: any attestation policy
//! text       2 + n   at most 16 KiB of UTF-8, line breaks allowed
//! not before 8       seconds since 1970, 0 for no limit
//! not after  8       the same, 2^64-1 for no limit
//! ```
//!
//! # The hashes
//!
//! BLAKE3. An object of at most 8 MiB has one: its ordinary hash, what `b3sum` prints. A longer one has the chaining value of
//! each 8 MiB subtree in order: so a chunk that came from anywhere can be checked by itself before the rest is there, and all
//! of them merge into the object's ordinary hash ([`Object::root`]), which is what a BLAKE3 transport such as iroh-blobs asks
//! for. A file is no larger than 64 MiB, which is enough for 16 TiB of model.
//!
//! Source: BLAKE3 specification section 2.1 and 5.1; RFC 8032 (Ed25519).

mod code;
mod directory;
mod error;
mod hash;
mod key;
mod licence;
mod licence_file;
mod policy;
mod state;

pub use code::{Contents, Identity, Manifest, NAME, Object};
pub use directory::{Difference, Listing, compare, list, read, write};
pub use error::{ManifestError, PolicyError};
pub use hash::{CHUNK_LEN, ChunkCheck, ChunkHasher, Hash};
pub use key::{PublicKey, SigningKey, generate};
pub use licence::Licence;
pub use licence_file::read_licence;
pub use policy::{Origin, Pin, Policy, Seen};
pub use state::{StateDir, StateError};
