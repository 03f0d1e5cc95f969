//! One archive with what support needs, and no secret in it.
//!
//! Owns: redaction ([`Redactor`]), the archive ([`Bundle`]) and what the system says about itself ([`system`]). Must not know: where
//! else its texts come from. Everything that is put into a bundle passes one redaction, whoever put it there.
//!
//! No threads, no locks; blocking. Tested beside the code and in `tests/report.rs`.

mod bundle;
mod redact;
pub mod system;

pub use bundle::{Bundle, ReportError};
pub use redact::Redactor;
