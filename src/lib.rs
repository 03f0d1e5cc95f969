//! cai: the host agent for confidential LLM inference.
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

pub mod attest;
pub mod ciphertext;
pub mod cli;
pub mod config;
pub mod error;
pub mod gocryptfs;
pub mod kbs;
pub mod keyring;
pub mod oss;
pub mod store;
pub mod task;
