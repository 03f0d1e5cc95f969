//! RCAR client of the Trustee key broker: attest, then receive a secret.
//!
//! Owns: the broker's protocol in its two dialects (0.1.0 and 0.4.0), the session of one handshake, the JWE a secret
//! arrives in, and what each of the broker's refusals means. Must not know: how evidence is made ([`crate::attest`]),
//! what a secret is for, files other than the CA bundle, when to try again over minutes (the agent does).
//!
//! ```text
//! Client::attest   auth ──nonce──> wire::runtime_digest ──> Attester::evidence ──> attest ──token──> token::check ──> Attested
//! Client::secret   Attested ──cookie──> resource ──JWE──> jwe::Jwe::open ──> keyring::Secret
//! ```
//!
//! The JWE keeps a secret confidential without TLS; it does not say who sent it. [`Client::server_authenticated`] does.
//!
//! Asynchronous; evidence, key generation and decryption run on blocking threads. Two locks, never held together nor
//! across an await: the cookies of a session, and the dialect a client has found. Frozen bytes of both dialects:
//! `tests/kbs_vectors.rs`; behaviour against a scripted broker: `tests/kbs_protocol.rs`. [`wire`], [`jwe`] and
//! [`TeeKey`] are public and free of I/O so that vectors and fuzzers reach them from outside.
//!
//! Source: `kbs.md`, the wire specification of this project, and `kbs-observed.md`, what running brokers answered.

mod client;
mod error;
mod fault;
pub mod jwe;
mod key;
mod session;
mod token;
mod transport;
mod uri;
mod verdict;
pub mod wire;

pub use client::{Attested, Client, Facts};
pub use error::{KbsError, Refusal, Step};
pub use key::{KeyError, RsaAlg, TeeKey};
pub use token::TokenError;
pub use uri::{ResourceUri, UriError};
