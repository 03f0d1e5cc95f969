//! What can go wrong with the object store, and the table that says what an error answer means (oss.md 1.5).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::credential_error::CredentialError;
use crate::error::{ErrorClass, Fault};
use crate::store::SourceError;
use crate::text::seconds_behind;

/// Why an operation on the object store failed.
#[derive(Debug, thiserror::Error)]
pub enum OssError {
    /// The endpoint cannot be used with this bucket.
    #[error("endpoint {endpoint} {why}")]
    Endpoint {
        /// Scheme and host.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Signing needs a region and there is none.
    #[error("the region of endpoint {endpoint} is unknown")]
    NoRegion {
        /// Scheme and host.
        endpoint: String,
    },
    /// The CA bundle could not be read.
    #[error("reading CA certificates from {path}")]
    CaFile {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// TLS could not be set up.
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
    /// The CA bundle holds no certificate.
    #[error("no CA certificate in {path}")]
    NoCa {
        /// The bundle.
        path: PathBuf,
    },
    /// Key or token is not text.
    #[error("the access key or token is not valid UTF-8")]
    CredentialText,
    /// Key or token cannot be kept in memory.
    #[error("keeping the access key in memory")]
    CredentialMemory(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no credential to sign with.
    #[error("no credential for the object store")]
    Credentials(#[source] Arc<CredentialError>),
    /// The machine's clock is outside of what a date can say.
    #[error("the time of this machine cannot be written as a date")]
    Time,
    /// A request could not be put together.
    #[error("building the request for {url}")]
    Request {
        /// URL without query.
        url: String,
        /// What is wrong with it.
        #[source]
        source: http::Error,
    },
    /// No answer: connection refused, reset, TLS failure.
    #[error("sending the request for {url}")]
    Send {
        /// URL without query.
        url: String,
        /// What the client said.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// Not a byte moved for the configured time.
    #[error("{url} did not move a byte for {secs} s")]
    Stalled {
        /// URL without query.
        url: String,
        /// The time, in seconds.
        secs: u64,
    },
    /// The answer ended before its end.
    #[error("receiving {url}")]
    Body {
        /// URL without query.
        url: String,
        /// What the connection said.
        #[source]
        source: hyper::Error,
    },
    /// The answer is longer than anything of its kind can be.
    #[error("the answer of {url} is longer than {limit} bytes")]
    TooLarge {
        /// URL without query.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// The answer is not the XML it should be.
    #[error("parsing the answer of {url}")]
    Xml {
        /// URL without query.
        url: String,
        /// What is wrong with it.
        #[source]
        source: quick_xml::DeError,
    },
    /// The answer is a success, but not to what was asked.
    #[error("{url} answered with a wrong {what}: {got}")]
    BadAnswer {
        /// URL without query.
        url: String,
        /// Which part of the answer.
        what: &'static str,
        /// What it was.
        got: String,
    },
    /// The server refused.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// The object must be restored before it can be read.
    #[error("object {key} is in storage class {storage_class} and cannot be read")]
    Archived {
        /// The key.
        key: String,
        /// Its storage class.
        storage_class: String,
    },
    /// An object's key cannot be a path below the prefix.
    #[error("object key {key:?} cannot be a file of the model: {why}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More objects than a model has.
    #[error("more than {limit} objects below {prefix:?}")]
    TooMany {
        /// The prefix.
        prefix: String,
        /// The limit.
        limit: usize,
    },
    /// The server's checksum of what it received is not the one of what was sent.
    #[error("{key} arrived with checksum {theirs}, not {ours}")]
    Checksum {
        /// The key.
        key: String,
        /// CRC-64 of what was sent.
        ours: u64,
        /// CRC-64 of what arrived.
        theirs: u64,
    },
}

/// An error answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{url} answered {status} {code}: {message} (EC {ec}, request id {request_id})")]
pub struct Refusal {
    /// URL without query.
    pub url: String,
    /// HTTP status.
    pub status: u16,
    /// What it means for us.
    pub reason: Reason,
    /// OSS error code; empty when the answer had none.
    pub code: String,
    /// OSS detail code, for the vendor's support.
    pub ec: String,
    /// The server's explanation.
    pub message: String,
    /// Identity of the request at the server.
    pub request_id: String,
    /// `Date` of the answer, to compare clocks.
    pub date: String,
    /// How long the server asked us to wait.
    pub retry_after: Option<Duration>,
}

/// What an error answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// A server's fault or a passing one: retry.
    Passing,
    /// Too many or too fast: retry with patience.
    Throttled,
    /// Our clock is more than 15 minutes off.
    ClockSkew,
    /// The access key or token is unknown or expired.
    Credentials,
    /// The policy does not allow it.
    AccessDenied,
    /// The signature does not match: wrong secret, or wrong region.
    Signature,
    /// The endpoint wants the bucket in the host name.
    SecondLevelDomain,
    /// The object is archived.
    Archived,
    /// There is no such object.
    NoSuchKey,
    /// There is no such bucket.
    NoSuchBucket,
    /// The object is not the one that was asked for.
    Changed,
    /// The proxy wants to know who we are.
    ProxyLogin,
    /// Anything else.
    Other,
}

/// Codes whose meaning does not follow from the status alone.
const CODES: &[(&str, Reason)] = &[
    ("InternalError", Reason::Passing),
    ("ServiceUnavailable", Reason::Passing),
    ("RequestTimeout", Reason::Passing),
    // Rare transport damage, which the SDKs retry too; a request that is really wrong has a code of its own.
    ("BadRequest", Reason::Passing),
    ("DownloadTrafficRateLimitExceeded", Reason::Throttled),
    ("UploadTrafficRateLimitExceeded", Reason::Throttled),
    ("TotalQpsLimitExceeded", Reason::Throttled),
    ("ActiveRequestLimitExceeded", Reason::Throttled),
    ("CpuLimitExceeded", Reason::Throttled),
    ("MetaOperationQpsLimitExceeded", Reason::Throttled),
    ("PartitionQpsLimitted", Reason::Throttled),
    ("QpsLimitExceeded", Reason::Throttled),
    ("RequestTimeTooSkewed", Reason::ClockSkew),
    ("InvalidAccessKeyId", Reason::Credentials),
    ("InvalidSecurityToken", Reason::Credentials),
    ("SecurityTokenExpired", Reason::Credentials),
    ("AccessKeyIdAndSecurityTokenNotMatch", Reason::Credentials),
    ("AccessDenied", Reason::AccessDenied),
    ("SignatureDoesNotMatch", Reason::Signature),
    ("SecondLevelDomainForbidden", Reason::SecondLevelDomain),
    ("InvalidObjectState", Reason::Archived),
    ("NoSuchKey", Reason::NoSuchKey),
    ("NoSuchBucket", Reason::NoSuchBucket),
    ("PreconditionFailed", Reason::Changed),
    ("InvalidRange", Reason::Changed),
];

/// Detail codes of a V4 credential scope with a wrong region, date or product (400 `InvalidArgument`).
const WRONG_SCOPE: &str = "0002-0000022";

impl Reason {
    /// Look an answer up. The code decides; without a known one the status does.
    pub fn of(status: u16, code: &str, ec: &str) -> Self {
        if code == "InvalidArgument" && ec.starts_with(WRONG_SCOPE) {
            return Reason::Signature;
        }
        if let Some((_, reason)) = CODES.iter().find(|(known, _)| *known == code) {
            return *reason;
        }
        match status {
            401 | 408 | 500 | 502 | 503 | 504 => Reason::Passing,
            407 => Reason::ProxyLogin,
            429 => Reason::Throttled,
            403 => Reason::AccessDenied,
            404 => Reason::NoSuchKey,
            412 | 416 => Reason::Changed,
            _ => Reason::Other,
        }
    }
}

impl From<CredentialError> for OssError {
    fn from(error: CredentialError) -> Self {
        OssError::Credentials(Arc::new(error))
    }
}

impl From<Arc<CredentialError>> for OssError {
    fn from(error: Arc<CredentialError>) -> Self {
        OssError::Credentials(error)
    }
}

impl OssError {
    /// This failure as a source's, about `path`.
    pub fn into_source_error(self, path: &str) -> SourceError {
        let path = path.to_owned();
        let detail = crate::error::chain(&self);
        if let OssError::Refused(refusal) = &self {
            return match refusal.reason {
                Reason::NoSuchKey => SourceError::Gone { path },
                Reason::Changed => SourceError::Changed { path },
                Reason::Passing | Reason::Throttled => {
                    SourceError::Unavailable { path, detail, retry_after: refusal.retry_after }
                }
                Reason::ClockSkew
                | Reason::Credentials
                | Reason::AccessDenied
                | Reason::Signature
                | Reason::SecondLevelDomain
                | Reason::Archived
                | Reason::NoSuchBucket
                | Reason::ProxyLogin
                | Reason::Other => SourceError::Denied { path, detail },
            };
        }
        match self.class() {
            ErrorClass::Config | ErrorClass::Denied | ErrorClass::Internal => {
                SourceError::Denied { path, detail }
            }
            ErrorClass::Transient | ErrorClass::Corrupt => {
                SourceError::Unavailable { path, detail, retry_after: None }
            }
        }
    }
}

impl Fault for OssError {
    fn class(&self) -> ErrorClass {
        match self {
            OssError::Endpoint { .. } | OssError::NoRegion { .. } | OssError::CaFile { .. } => {
                ErrorClass::Config
            }
            OssError::NoCa { .. } | OssError::CredentialText | OssError::Archived { .. } => {
                ErrorClass::Config
            }
            OssError::Key { .. } | OssError::TooMany { .. } => ErrorClass::Config,
            OssError::Tls(_) | OssError::CredentialMemory(_) | OssError::Request { .. } => {
                ErrorClass::Internal
            }
            OssError::Credentials(error) => error.class(),
            OssError::Time => ErrorClass::Config,
            OssError::Send { .. } | OssError::Stalled { .. } | OssError::Body { .. } => ErrorClass::Transient,
            OssError::TooLarge { .. } | OssError::Xml { .. } | OssError::BadAnswer { .. } => {
                ErrorClass::Transient
            }
            OssError::Checksum { .. } => ErrorClass::Transient,
            OssError::Refused(refusal) => match refusal.reason {
                Reason::Passing | Reason::Throttled => ErrorClass::Transient,
                Reason::AccessDenied | Reason::Credentials | Reason::Signature => ErrorClass::Denied,
                Reason::ClockSkew | Reason::SecondLevelDomain | Reason::Archived => ErrorClass::Config,
                Reason::NoSuchKey | Reason::NoSuchBucket | Reason::ProxyLogin | Reason::Other => {
                    ErrorClass::Config
                }
                Reason::Changed => ErrorClass::Corrupt,
            },
        }
    }

    fn code(&self) -> &'static str {
        match self {
            OssError::Endpoint { .. } => "oss.endpoint",
            OssError::NoRegion { .. } => "oss.no-region",
            OssError::CaFile { .. } | OssError::NoCa { .. } => "oss.ca-file",
            OssError::Tls(_) => "oss.tls",
            OssError::CredentialText => "oss.credential-text",
            OssError::CredentialMemory(_) => "oss.credential-memory",
            OssError::Credentials(error) => error.code(),
            OssError::Time => "oss.time",
            OssError::Request { .. } => "oss.request",
            OssError::Send { .. } => "oss.unreachable",
            OssError::Stalled { .. } => "oss.stalled",
            OssError::Body { .. } => "oss.body",
            OssError::TooLarge { .. } => "oss.too-large",
            OssError::Xml { .. } => "oss.xml",
            OssError::BadAnswer { .. } => "oss.bad-answer",
            OssError::Archived { .. } => "oss.archived",
            OssError::Key { .. } => "oss.key",
            OssError::TooMany { .. } => "oss.too-many-objects",
            OssError::Checksum { .. } => "oss.checksum",
            OssError::Refused(refusal) => match refusal.reason {
                Reason::Passing => "oss.server-fault",
                Reason::Throttled => "oss.throttled",
                Reason::ClockSkew => "oss.clock-skew",
                Reason::Credentials => "oss.credentials",
                Reason::AccessDenied => "oss.access-denied",
                Reason::Signature => "oss.signature",
                Reason::SecondLevelDomain => "oss.second-level-domain",
                Reason::Archived => "oss.archived",
                Reason::NoSuchKey => "oss.no-such-key",
                Reason::NoSuchBucket => "oss.no-such-bucket",
                Reason::Changed => "oss.changed",
                Reason::ProxyLogin => "oss.proxy-login",
                Reason::Other => "oss.refused",
            },
        }
    }

    fn hint(&self) -> String {
        match self {
            OssError::Refused(refusal) => refusal.hint(),
            OssError::Endpoint { .. } => "set MODEL_OSS_ENDPOINT to the region's endpoint, such as \
                 https://oss-cn-beijing-internal.aliyuncs.com, without bucket or path"
                .into(),
            OssError::NoRegion { .. } => "set MODEL_OSS_REGION, such as cn-beijing".into(),
            OssError::CaFile { .. } | OssError::NoCa { .. } => "oss.ca_file must be a PEM bundle of certificates".into(),
            OssError::CredentialText => "check MODEL_OSS_ACCESS_KEY_ID, _SECRET_ACCESS_KEY and _SESSION_TOKEN".into(),
            OssError::Send { .. } | OssError::Stalled { .. } | OssError::Body { .. } => {
                "check name resolution, routes, oss.proxy if it is set, and TLS trust (oss.ca_file) towards MODEL_OSS_ENDPOINT"
                    .into()
            }
            OssError::TooLarge { .. } | OssError::Xml { .. } | OssError::BadAnswer { .. } => {
                "MODEL_OSS_ENDPOINT does not behave like OSS: check for a proxy or another service in its place".into()
            }
            OssError::Archived { .. } => RESTORE.into(),
            OssError::Key { .. } | OssError::TooMany { .. } => {
                "MODEL_OSS_BUCKET_PATH must name exactly one encrypted model; remove other objects below it".into()
            }
            OssError::Checksum { .. } => "run the upload again".into(),
            OssError::Credentials(error) => error.hint(),
            OssError::CredentialMemory(_) => "raise the limit of locked memory (LimitMEMLOCK=)".into(),
            OssError::Time => "set this machine's clock".into(),
            OssError::Tls(_) | OssError::Request { .. } => {
                "this is a defect in cai; please report it".into()
            }
        }
    }
}

const RESTORE: &str = "restore the object, or better copy the model to the Standard storage class";

impl Refusal {
    /// Seconds that this machine's clock is behind OSS, measured now; `None` where the answer had no date.
    pub fn clock_behind(&self) -> Option<i64> {
        seconds_behind(&self.date, SystemTime::now())
    }

    fn hint(&self) -> String {
        match self.reason {
            Reason::Passing => "nothing to do: cai retries".into(),
            Reason::Throttled => "lower oss.concurrency, or ask for a higher OSS limit; cai retries".into(),
            Reason::ClockSkew => {
                let date = &self.date;
                format!("this machine's clock is more than 15 minutes off (OSS says {date}): set up time synchronisation")
            }
            Reason::Credentials => {
                "the access key or token is unknown or expired: renew MODEL_OSS_ACCESS_KEY_ID, _SECRET_ACCESS_KEY and \
                 _SESSION_TOKEN in cai.env, which cai reads again by itself; or check the RAM role (oss.credentials)"
                    .into()
            }
            Reason::AccessDenied => {
                "the grant needs oss:GetObject on bucket/* and oss:ListObjects on the bucket; for anonymous access the \
                 bucket policy must name this machine's address (acs:SourceIp) and VPC (acs:SourceVpc)"
                    .into()
            }
            Reason::Signature => "check MODEL_OSS_SECRET_ACCESS_KEY, and that MODEL_OSS_REGION is the bucket's region".into(),
            Reason::SecondLevelDomain => {
                "this endpoint wants the bucket in the host name: give a name, not an address, in MODEL_OSS_ENDPOINT".into()
            }
            Reason::Archived => RESTORE.into(),
            Reason::NoSuchKey => "check MODEL_OSS_BUCKET_PATH: there is no such object".into(),
            Reason::NoSuchBucket => "check the bucket in MODEL_OSS_BUCKET_PATH, and that MODEL_OSS_ENDPOINT is its region".into(),
            Reason::Changed => "the model was replaced while it was in use: restart cai to serve the new one".into(),
            Reason::ProxyLogin => "oss.proxy must let this machine in by its address: cai logs in to no proxy".into(),
            Reason::Other => "look the code up in the OSS documentation; support needs the request id".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_every_row_of_the_table() {
        // oss.md 1.5, row by row.
        let rows = [
            (500, "InternalError", "", Reason::Passing),
            (502, "", "", Reason::Passing),
            (503, "ServiceUnavailable", "", Reason::Passing),
            (503, "", "", Reason::Passing),
            (503, "DownloadTrafficRateLimitExceeded", "", Reason::Throttled),
            (503, "PartitionQpsLimitted", "", Reason::Throttled),
            (429, "QpsLimitExceeded", "", Reason::Throttled),
            (429, "", "", Reason::Throttled),
            (408, "", "", Reason::Passing),
            (401, "", "", Reason::Passing),
            (400, "BadRequest", "", Reason::Passing),
            (403, "RequestTimeTooSkewed", "", Reason::ClockSkew),
            (403, "InvalidAccessKeyId", "", Reason::Credentials),
            (403, "InvalidSecurityToken", "", Reason::Credentials),
            (403, "SecurityTokenExpired", "", Reason::Credentials),
            (403, "AccessDenied", "0003-00000001", Reason::AccessDenied),
            (403, "SignatureDoesNotMatch", "", Reason::Signature),
            (400, "InvalidArgument", "0002-00000222", Reason::Signature),
            (400, "InvalidArgument", "0002-00000209", Reason::Other),
            (403, "SecondLevelDomainForbidden", "", Reason::SecondLevelDomain),
            (403, "InvalidObjectState", "", Reason::Archived),
            (403, "", "", Reason::AccessDenied),
            (404, "NoSuchKey", "", Reason::NoSuchKey),
            (404, "NoSuchBucket", "", Reason::NoSuchBucket),
            (412, "PreconditionFailed", "", Reason::Changed),
            (416, "InvalidRange", "", Reason::Changed),
            (407, "", "", Reason::ProxyLogin),
            (409, "", "", Reason::Other),
        ];
        for (status, code, ec, reason) in rows {
            assert_eq!(Reason::of(status, code, ec), reason, "{status} {code} {ec}");
        }
    }
}
