//! cai: the host agent for confidential LLM inference.
//!
//! ```text
//!  cai.env ──Settings──> attest ──evidence──> kbs ──Secret──> keyring ──Keys──┐         agent (state machine)
//!                                        (Trustee KBS)                        │           │ applies Event through State::on
//!                                                                             ▼           ├─ watch<Status> ─> bus (D-Bus), metrics
//!                                                                         gocryptfs       └─ host (sd_notify, journal)
//!  OSS ──ciphertext──> store (sparse files + verified chunks) ─Ciphertext─> open block ──plaintext──> mount (FUSE) ──> vLLM
//!                        ▲ demand reads jump the queue
//! ```
//!
//! The mount is ready when the metadata is: key released, names decrypted, every object listed. Bytes stream in on demand,
//! with a background fill behind. Plaintext exists in `gocryptfs` (while a block is opened) and `mount` (the reply to the
//! kernel), the model's key in `kbs` (while it is unwrapped), `keyring` and `gocryptfs`; neither is ever written to a disk.
//!
//! Who may use whom. `tests/layering.rs` holds every `crate::` path against this table, and the table against the wall:
//! what fetches ciphertext (`oss`, `store`, `peer`) never sees the model's key or a plaintext byte, and what handles key
//! or plaintext (`kbs`, `keyring`, `gocryptfs`, `mount`) never sees a socket to the store or a peer.
//!
//! ```text
//! error:      (none)
//! task:       (none)
//! text:       (none)
//! https:      (none)
//! meminfo:    (none)
//! ahead:      meminfo
//! ciphertext: (none)
//! manifest:   error
//! keyring:    error
//! config:     error, keyring, manifest::PublicKey, manifest::Identity, manifest::Pin
//! pki:        error
//! jwt:        pki, text
//! helper:     error, text::printable
//! sam:        error, helper
//! attest:     error, config, helper, pki
//! ratls:      error, attest, pki, jwt, text, https, task
//! kbs:        error, config, attest, keyring, pki, jwt, text, https, task
//! store:      error, ciphertext, manifest, task, ahead
//! bandwidth:  store::Urgency, store::AT_ONCE
//! oss:        error, config, keyring::Secret, store, task, text, bandwidth
//! peer:       error, ratls, store, ciphertext, task, bandwidth
//! gocryptfs:  error, ciphertext, keyring, ahead
//! mount:      error, ciphertext, gocryptfs, meminfo
//! gateway:    error, config, ratls, task, host::tool
//! host:       error
//! agent:      everything but cli, bus, metrics
//! bus:        error, agent, text::printable
//! metrics:    error, config::MetricsPlace, agent, mount
//! doctor:     everything but agent, cli
//! report:     error, host, gateway
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
mod ahead;
pub mod attest;
mod bandwidth;
pub mod bus;
pub mod ciphertext;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod error;
pub mod gateway;
pub mod gocryptfs;
pub mod helper;
pub mod host;
mod https;
pub mod jwt;
pub mod kbs;
pub mod keyring;
pub mod manifest;
pub mod meminfo;
pub mod metrics;
pub mod mount;
pub mod oss;
pub mod peer;
pub mod pki;
pub mod ratls;
pub mod report;
pub mod sam;
pub mod store;
pub mod task;
mod text;
