//! The host around the daemon: service manager, journal, users and process hardening.
//!
//! Owns: everything that is said to systemd, the logging set-up, the mount table, and how programs of the system are asked. Must
//! not know: what is served. Tested beside the code
//! and in `tests/lifecycle.rs`.

pub mod directory;
pub mod harden;
mod logging;
pub mod mounts;
mod notify;
pub mod tool;

pub use harden::User;
pub use logging::{log_to_journal_or_stderr, log_to_stderr};
pub use notify::Notifier;

/// User the daemon runs as; made by the package (sysusers), by `make demo` for its own time.
pub const DAEMON_USER: &str = "cai";
