//! Locked, zeroized memory for secrets, and the generations of a model's keys.
//!
//! Owns: the only types that hold key bytes. Must not know: sockets, files, formats. Tested here and in
//! `tests/secrets.rs`.

mod locked;

pub use locked::{LockError, Locked, Secret};
