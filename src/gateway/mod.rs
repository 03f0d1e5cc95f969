//! The service port: attested tunnels of TNG's clients in, their plaintext out to the inference service, nobody else.
//!
//! Owns: the listener, TLS, the tunnel's HTTP/2 and raw forms, and the choice of the backend. Must not know: how evidence is
//! collected (`ratls`), the model, its keys. Each connection is a task, each stream of a tunnel another; they end with the
//! gateway. No locks but the log's memory and the clients' shares, held over nothing. What a peer that is not attested may
//! cost is bounded in `limits.rs`. Tested in `tests/gateway_*.rs` against the real `tng`, openssl and hostile peers.
//!
//! ```text
//!  TCP ── first byte ──┬─ TLS 1.3 ── ALPN ──┬─ h2: a CONNECT stream per connection ──┐
//!                      │                    └─ rats-tls: the bytes themselves ────────┼──> backend
//!                      └─ plaintext: a listed health check, one request ──────────────┘
//! ```
//!
//! Source of every wire fact in this module: tng.md sections 2, 3, 6 and 8.

pub mod connect;
mod gate;
mod http2;
mod limits;
pub mod plaintext;
mod refusal;
mod relay;
mod route;
mod server;
mod status;
mod tls;

pub use gate::{Gate, GateError};
pub use limits::Limits;
pub use server::{Gateway, GatewayError};
pub use status::Snapshot;
