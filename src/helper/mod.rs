//! The daemon's line to `cai-helper`, the small root process that does what the unprivileged daemon cannot.
//!
//! Owns: the protocol (one JSON message per packet, [`protocol`]), the packet channel with descriptor passing
//! ([`channel`]) and the daemon's side ([`Helper`]). The verbs themselves live in `bin/cai-helper/`. Must not know: keys,
//! formats, the network. No path of a request decides anything: the helper reads the root-owned configuration itself; it
//! takes only what evidence is to be bound to, files of the private memory it gave itself, and a pipe that it hands on unread.
//! One request at a time per connection; calls block. Tested in `tests/helper.rs`, `tests/helper_memory.rs`,
//! `tests/helper_publish.rs`, `tests/helper_taken_over.rs` and `tests/sam.rs`.

pub mod channel;
mod client;
pub mod protocol;

pub use crate::text::printable;
pub use client::{Helper, HelperError};
