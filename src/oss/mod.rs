//! Alibaba Cloud OSS: signing, listing, ranged GET, upload.
//!
//! Owns: the wire format of OSS and the meaning of its errors. Must not know: keys of the model, the cache, and, but in
//! `publish` and `download`, files. Each operation of the client is one attempt; `store`, `publish` and `download` decide
//! about retry.
//!
//! Async throughout, no locks of its own, no tasks but the connections of the pool. Publishing is tested in
//! `tests/upload.rs` and `tests/upload_resume.rs`, downloading in `tests/download.rs`, everything else in `tests/oss_client.rs`, both against the stand-in server, and against a verifier of
//! signatures written from the specification in `tests/oss_signature.rs`.

mod address;
mod answer;
mod client;
mod download;
mod error;
pub mod list;
mod persist;
mod publish;
mod sign;
mod source;
mod transport;
mod unfinished;
mod upload;

pub use answer::Head;
pub use client::Client;
pub use download::{DownloadError, DownloadEvent, DownloadOptions, Downloaded, Downloader};
pub use error::{OssError, Reason, Refusal};
pub use publish::{Event, LocalFile, Plan, PublishOptions, Published, Publisher, Rules, UploadError};
pub use source::OssSource;
pub use unfinished::Unfinished;
pub use upload::{MultipartUpload, UploadedPart};
