//! `cai.env` + `cai.toml` -> [`Settings`].

mod settings;

pub use settings::*;
