//! Local ciphertext: sparse file + chunk map, fetch plan, [`ChunkSource`].

mod source;

pub use source::{ChunkSource, FetchFuture, Fetched, Object, SourceError};
