//! cai: the host agent for confidential LLM inference.
//!
//! Who may use whom. `tests/layering.rs` holds every `crate::` path against this table, and the table against the wall:
//! what fetches ciphertext (`oss`, `store`, `peer`) never sees the model's key or a plaintext byte, and what handles key
//! or plaintext (`kbs`, `keyring`, `gocryptfs`, `mount`) never sees a socket to the store or a peer.
//!
//! ```text
//! error:      (none)
//! task:       (none)
//! ciphertext: (none)
//! keyring:    error
//! config:     error, keyring
//! attest:     error, config, keyring
//! kbs:        error, config, attest, keyring, task
//! store:      error, ciphertext, task
//! oss:        error, config, keyring::Secret, store, task
//! gocryptfs:  error, ciphertext, keyring
//! mount:      error, ciphertext, gocryptfs, keyring, config, task
//! host:       error
//! helper:     error, config
//! agent:      everything but cli, bus
//! bus:        error, agent
//! cli:        everything
//! ```
#![deny(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::let_underscore_future,
    clippy::await_holding_lock,
    clippy::disallowed_methods,
    clippy::undocumented_unsafe_blocks,
    unused_must_use
)]
#![warn(missing_docs)]

pub mod agent;
pub mod attest;
pub mod bus;
pub mod ciphertext;
pub mod cli;
pub mod config;
pub mod error;
pub mod gocryptfs;
pub mod helper;
pub mod host;
pub mod kbs;
pub mod keyring;
pub mod mount;
pub mod oss;
pub mod store;
pub mod task;
