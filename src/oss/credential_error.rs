//! Why there is no credential.

use std::path::PathBuf;

use crate::config::Problems;
use crate::error::{ErrorClass, Fault};

type Boxed = Box<dyn std::error::Error + Send + Sync>;

/// Why a credential could not be had. Holds none.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The HTTP client could not be set up.
    #[error("setting up the client of the credential service")]
    Setup(#[source] reqwest::Error),
    /// No answer.
    #[error("asking {url} for credentials")]
    Send {
        /// URL.
        url: String,
        /// What the client said.
        #[source]
        source: reqwest::Error,
    },
    /// The service refused.
    #[error("{url} answered {status} {code} (request id {request_id})")]
    Refused {
        /// URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// Its code; empty when it gave none.
        code: String,
        /// Its request id; empty when it gave none.
        request_id: String,
    },
    /// The answer is longer than any credential.
    #[error("the answer of {url} is longer than {limit} bytes")]
    TooLarge {
        /// URL.
        url: String,
        /// The limit.
        limit: usize,
    },
    /// The answer is no credential.
    #[error("{url} answered with a wrong {what}")]
    BadAnswer {
        /// URL.
        url: String,
        /// Which part of the answer.
        what: &'static str,
    },
    /// The OIDC token cannot be read.
    #[error("reading the OIDC token in {path}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// The env file cannot be read, or its access key is wrong.
    #[error("reading the access key again")]
    Reread(#[source] Problems),
    /// The env file holds no access key any more.
    #[error("{path} holds no access key any more")]
    KeyGone {
        /// The file.
        path: PathBuf,
    },
    /// There is no memory to keep it in.
    #[error("keeping the credential in memory")]
    Memory(#[source] Boxed),
}

impl Fault for CredentialError {
    fn class(&self) -> ErrorClass {
        match self {
            CredentialError::Send { .. } | CredentialError::TooLarge { .. } => ErrorClass::Transient,
            CredentialError::BadAnswer { .. } => ErrorClass::Transient,
            CredentialError::Refused { status, .. } if *status >= 500 || *status == 429 => {
                ErrorClass::Transient
            }
            CredentialError::Refused { .. } => ErrorClass::Denied,
            CredentialError::TokenFile { .. } | CredentialError::Reread(_) => ErrorClass::Config,
            CredentialError::KeyGone { .. } => ErrorClass::Config,
            CredentialError::Setup(_) | CredentialError::Memory(_) => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            CredentialError::Setup(_) => "oss.credential-setup",
            CredentialError::Send { .. } => "oss.credential-service",
            CredentialError::Refused { .. } => "oss.credential-refused",
            CredentialError::TooLarge { .. } | CredentialError::BadAnswer { .. } => "oss.credential-answer",
            CredentialError::TokenFile { .. } => "oss.oidc-token",
            CredentialError::Reread(_) | CredentialError::KeyGone { .. } => "oss.credential-file",
            CredentialError::Memory(_) => "oss.credential-memory",
        }
    }

    fn hint(&self) -> String {
        match self {
            CredentialError::Send { .. } => {
                "is this an ECS instance, and do routes and firewall let it reach the service? Without a RAM role set \
                 oss.credentials to what you have"
            }
            CredentialError::Refused { .. } => {
                "check that the RAM role is attached to the instance (ecs-ram-role), or that it trusts the token's provider \
                 (oidc), and its name in oss.ram_role or oss.role_arn; oss.metadata = \"normal\" for an instance without \
                 hardened mode"
            }
            CredentialError::TooLarge { .. } | CredentialError::BadAnswer { .. } => {
                "something else answers in the service's place: check for a proxy"
            }
            CredentialError::TokenFile { .. } => "check oss.oidc_token_file, and that user cai may read it",
            CredentialError::Reread(_) | CredentialError::KeyGone { .. } => {
                "correct MODEL_OSS_ACCESS_KEY_ID, _SECRET_ACCESS_KEY and _SESSION_TOKEN; cai reads them again by itself"
            }
            CredentialError::Setup(_) => "this is a defect in cai; please report it",
            CredentialError::Memory(_) => "raise the limit of locked memory (LimitMEMLOCK=)",
        }
        .to_owned()
    }
}
