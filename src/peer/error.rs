//! Why a peer is not asked, or not served.

use std::io;
use std::net::SocketAddr;

use crate::error::{ErrorClass, Fault};
use crate::ratls::{TlsError, VerifyError};

/// Something is wrong with a peer, or with our end.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The port cannot be had.
    #[error("listening for peers at {at}")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no randomness for the name of this node.
    #[error("no random bytes")]
    Random(#[source] getrandom::Error),
    /// Nobody answers.
    #[error("cannot be reached")]
    Unreachable(#[source] io::Error),
    /// TLS failed.
    #[error("TLS")]
    Tls(#[from] TlsError),
    /// It was not attested.
    #[error("was refused by attestation")]
    Refused(#[from] VerifyError),
    /// It says nothing for too long.
    #[error("said nothing for {secs} s")]
    Silent {
        /// Seconds.
        secs: u64,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// It speaks something else.
    #[error("speaks another protocol: expected {expected}, got {got}")]
    Protocol {
        /// What was expected.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// It serves another model, or another revision of it.
    #[error("serves another model, or another revision of it")]
    OtherModel,
    /// It is this node.
    #[error("is this machine")]
    Itself,
    /// It has not got the chunk it said it had.
    #[error("has not got chunk {chunk} of object {object} any more")]
    NotHere {
        /// Number of the object in the list.
        object: usize,
        /// Number of the chunk.
        chunk: u64,
    },
}

impl Fault for PeerError {
    fn class(&self) -> ErrorClass {
        match self {
            PeerError::Listen { .. } => ErrorClass::Config,
            PeerError::Random(_) => ErrorClass::Internal,
            PeerError::Tls(source) => source.class(),
            PeerError::Refused(source) => source.class(),
            PeerError::Unreachable(_)
            | PeerError::Silent { .. }
            | PeerError::Broken(_)
            | PeerError::OtherModel
            | PeerError::Itself
            | PeerError::NotHere { .. } => ErrorClass::Transient,
            PeerError::Protocol { .. } => ErrorClass::Corrupt,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            PeerError::Listen { .. } => "peer.listen",
            PeerError::Random(_) => "peer.random",
            PeerError::Unreachable(_) => "peer.unreachable",
            PeerError::Tls(source) => source.code(),
            PeerError::Refused(source) => source.code(),
            PeerError::Silent { .. } => "peer.silent",
            PeerError::Broken(_) => "peer.broken",
            PeerError::Protocol { .. } => "peer.protocol",
            PeerError::OtherModel => "peer.other-model",
            PeerError::Itself => "peer.itself",
            PeerError::NotHere { .. } => "peer.not-here",
        }
    }

    fn hint(&self) -> String {
        match self {
            PeerError::Listen { .. } => "another service has the port: set peer.port to a free one, and ADDRESS:PORT in the others' MODEL_SHARING_PEER",
            PeerError::Random(_) => "this is a defect of the machine: see getrandom(2)",
            PeerError::Unreachable(_) => {
                "is cai running there with this machine in its MODEL_SHARING_PEER, and is the port (peer.port) open between the two?"
            }
            PeerError::Tls(source) => return source.hint(),
            PeerError::Refused(source) => return source.hint(),
            PeerError::Silent { .. } | PeerError::Broken(_) | PeerError::NotHere { .. } => {
                "nothing to do: it is tried again, and the object store serves meanwhile"
            }
            PeerError::Protocol { .. } => "is another service on that port, or another version of cai?",
            PeerError::OtherModel => {
                "all nodes need the same MODEL_OSS_BUCKET_PATH; after an upload, rotate or restart those that still have the old list"
            }
            PeerError::Itself => "nothing to do",
        }
        .to_owned()
    }
}
