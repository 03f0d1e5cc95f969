//! A store beside another one: what both models have in common is linked, checked, and never fetched twice.

mod common;
#[path = "common/chunks.rs"]
mod chunks;
