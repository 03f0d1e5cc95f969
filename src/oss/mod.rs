//! Alibaba Cloud OSS: signing, listing, ranged GET, upload.
//!
//! Owns: the wire format of OSS and the meaning of its errors. Must not know: keys of the model, the cache, and, but in
//! `publish` and `download`, files. Each operation of the client is one attempt; `store`, `publish` and `download` decide
//! about retry.
//!
//! One client has one credential, one limit of requests and one of bandwidth, so that a process with one client keeps within
//! them. Async throughout; locks are held for a look (`credentials`, `throttle`, `bandwidth`), and the only tasks are the
//! connections of the pool and the one that renews a role's credential. Publishing is tested in `tests/upload.rs` and
//! `tests/upload_resume.rs`, downloading in `tests/download.rs`, everything else in `tests/oss_client.rs`, all against the
//! stand-in server, and against a verifier of signatures written from the specification in `tests/oss_signature.rs`.
//! Credentials: `tests/oss_credentials.rs`.

mod access;
mod address;
mod answer;
mod client;
mod clock;
mod cloud;
mod credential;
mod credential_error;
mod credentials;
mod download;
mod error;
pub mod list;
mod metadata;
#[cfg(not(feature = "sandbox"))]
mod metadata_address;
#[cfg(feature = "sandbox")]
#[path = "metadata_address_sandbox.rs"]
mod metadata_address;
mod persist;
mod publish;
mod route;
mod sign;
mod source;
mod sts;
mod throttle;
mod transport;
mod unfinished;
mod upload;

pub use access::Access;
pub use answer::Head;
pub use client::Client;
pub use credential_error::CredentialError;
pub use download::{DownloadError, DownloadEvent, DownloadOptions, Downloaded, Downloader};
pub use error::{OssError, Reason, Refusal};
pub use publish::{Event, LocalFile, Plan, PublishOptions, Published, Publisher, Rules, UploadError};
pub use source::OssSource;
pub use unfinished::Unfinished;
pub use upload::{MultipartUpload, UploadedPart};
