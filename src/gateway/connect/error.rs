//! Why an application's connection did not come about.

use std::io;

use super::destination::Destination;
use crate::error::{ErrorClass, Fault};
use crate::ratls::{TlsError, VerifyError};

/// No tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TLS cannot be set up at all.
    #[error("setting up TLS")]
    Setup(#[source] TlsError),
    /// Nobody listens there, or the name is not known.
    #[error("connecting to {to}")]
    Dial {
        /// Where to.
        to: Destination,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// No TLS with whoever listens there.
    #[error("no attested connection to {to}")]
    Tls {
        /// Where to.
        to: Destination,
        /// What happened.
        #[source]
        source: TlsError,
    },
    /// The peer is not attested.
    #[error("attestation of {to} failed")]
    Attestation {
        /// Where to.
        to: Destination,
        /// Why.
        #[source]
        source: Box<VerifyError>,
    },
    /// The peer does not speak HTTP/2 as a tunnel does.
    #[error("opening a stream to {to}")]
    Stream {
        /// Where to.
        to: Destination,
        /// What happened.
        #[source]
        source: h2::Error,
    },
    /// The peer does not answer for a stream: it is gone without a word, or has as many as it takes.
    #[error("{to} does not answer CONNECT within {secs} s")]
    Silent {
        /// Where to.
        to: Destination,
        /// How long was waited, in seconds.
        secs: u64,
    },
    /// The peer refuses the stream.
    #[error("{to} answers CONNECT with HTTP {status}, expected 200")]
    Refused {
        /// Where to.
        to: Destination,
        /// The status.
        status: u16,
    },
}

impl ConnectError {
    /// Whether the other end is there, but is not trusted.
    pub fn is_distrust(&self) -> bool {
        match self {
            ConnectError::Tls { .. } | ConnectError::Attestation { .. } => true,
            ConnectError::Setup(_)
            | ConnectError::Dial { .. }
            | ConnectError::Stream { .. }
            | ConnectError::Silent { .. }
            | ConnectError::Refused { .. } => false,
        }
    }
}

impl Fault for ConnectError {
    fn class(&self) -> ErrorClass {
        match self {
            ConnectError::Setup(source) | ConnectError::Tls { source, .. } => source.class(),
            ConnectError::Attestation { source, .. } => source.class(),
            ConnectError::Dial { .. }
            | ConnectError::Silent { .. }
            | ConnectError::Stream { .. }
            | ConnectError::Refused { .. } => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ConnectError::Setup(source) | ConnectError::Tls { source, .. } => source.code(),
            ConnectError::Attestation { source, .. } => source.code(),
            ConnectError::Dial { .. } => "connect.dial",
            ConnectError::Stream { .. } => "connect.stream",
            ConnectError::Silent { .. } => "connect.silent",
            ConnectError::Refused { .. } => "connect.refused",
        }
    }

    fn hint(&self) -> String {
        match self {
            ConnectError::Setup(source) | ConnectError::Tls { source, .. } => source.hint(),
            ConnectError::Attestation { source, .. } => source.hint(),
            ConnectError::Dial { .. } => "does the server run, and may this machine reach its port?".into(),
            ConnectError::Stream { .. } | ConnectError::Silent { .. } | ConnectError::Refused { .. } => {
                "the tunnel's other end is there and attested, but does not serve: look at its log".into()
            }
        }
    }
}
