//! RCAR client of the Trustee key broker: attest, then receive a secret.
//!
//! Owns: the broker's protocol in its four dialects (0.1.0, 0.1.1, 0.2.0 and 0.4.0), the session of one handshake, the JWE
//! a secret arrives in, the attestation token, and what each of the broker's refusals means. Must not know: how evidence is
//! made ([`crate::attest`]), what a secret is for, files other than the two PEM files of its configuration, when to try
//! again over minutes (the agent does).
//!
//! ```text
//! Client::attest   auth ──nonce──> wire::primary_digest ──> Attester::evidence ──> attest ──token──> token::check ──> Attested
//! Client::secret   Attested ──cookie, else token──> resource ──JWE──> jwe::Jwe::open ──> keyring::Secret
//! a refusal        transport::Refusal ──> verdict::judge ──> meaning::Asked ──> KbsError ──> fault (class, code), hint
//! ```
//!
//! The JWE keeps a secret confidential without TLS; it does not say who sent it. [`Client::server_authenticated`] does.
//!
//! Asynchronous; evidence, key generation and decryption run on blocking threads. Three locks, never held together
//! nor across an await: the cookies of a session, the dialect a client has found, and how far the clocks are apart. Frozen bytes: `tests/kbs_vectors.rs`;
//! behaviour against a scripted broker: `tests/kbs_protocol.rs` and `kbs_hostile.rs`, tokens in `kbs_token.rs`, refusals in
//! `kbs_errors.rs`; against the stand-in Trustee: `kbs_sandbox.rs`. [`wire`], [`jwe`],
//! [`token`], [`session`], [`Refusal::read`] and [`TeeKey`] are public and free of I/O so that vectors and fuzzers reach them
//! from outside.
//!
//! Source: `kbs.md`, the wire specification of this project, and `kbs-observed.md`, what running brokers answered.

mod attested;
mod client;
mod error;
mod fault;
mod hint;
pub mod jwe;
mod key;
mod meaning;
mod negotiate;
pub mod session;
mod signer;
pub mod token;
mod transport;
mod uri;
mod verdict;
pub mod wire;

pub use attested::{Attested, Facts};
pub use client::{Client, Probe};
pub use error::{KbsError, Refusal, Step};
pub use key::{KeyAlg, KeyError, RsaAlg, TeeKey};
pub use meaning::Cause;
pub use token::{Policy, TokenError};
pub use uri::{ResourceUri, UriError};
