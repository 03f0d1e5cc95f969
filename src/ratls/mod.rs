//! The evidence certificate: a self-signed X.509 certificate that carries what the attester says about its key.
//!
//! Owns: the certificate and the evidence in it, what a relying party asks an attestation service about it, and the TLS roles
//! that receive it, as TNG (Trusted Network Gateway) has them on the wire: the client's, and both of peers that attest each
//! other. Must not know: who
//! connects to whom and why, sockets, the gateway. No locks, no threads but the blocking ones in which evidence is
//! collected. The parsers of bytes from outside (blob, certificate) are pure and public, to be fuzzed. Tested beside the code
//! on `tests/vectors/tng-vectors.json`.
//!
//! The chain of binding: the TEE signs the hash of the *runtime data*, which names the hash of the certificate's *public
//! key*, whose private half speaks TLS. Source of every wire fact in this module: tng.md section 4.

mod cbor;
pub mod certificate;
mod error;
pub mod evidence;
pub mod identity;
mod limit;
mod service;
mod term;
mod tls;
pub mod verdict;
mod verifier;

pub use error::VerifyError;
pub use term::Term;
pub use tls::{Attested, Client, Server, TlsError, TlsStream, Unattested};
pub use verdict::Demands;
pub use verifier::{Options as VerifierOptions, Peer, Verifier};

/// Member of the runtime data (current format) with the identity of the model that is served, as `cai manifest` prints it.
pub const MODEL_IDENTITY: &str = "model-identity";

/// The two bodies of an evidence certificate. No evidence satisfies the verifiers of both (tng.md 4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// TNG up to 2.2.6: the runtime data holds the hash of a claims buffer, which holds the hash of the key.
    Legacy,
    /// TNG from 2.3.0 on: the runtime data holds the hash of the key, and may hold more.
    Current,
}

impl Format {
    /// Name in the configuration and the status.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Legacy => "legacy",
            Format::Current => "current",
        }
    }
}
