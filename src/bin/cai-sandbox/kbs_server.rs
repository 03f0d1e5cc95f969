//! Which Trustee this is: protocol, generation, maker, and what it demands. What it says when it says no.
//!
//! Owns the refusals' wire form: statuses and texts of Alibaba's Trustee v1.8.7 (protocol 0.4.0) and v1.5.2 (0.1.0) as
//! observed; of its v1.0.0 to v1.1.2 (0.1.0, `oldest`), and of upstream's v0.11 to v0.13 (0.1.1, 0.2.0: status 401 for
//! everything), as read. Stateless. Tested in `tests/sandbox_kbs.rs` and `tests/sandbox_trustees.rs`.
//!
//! Source: `kbs-observed.md`, `kbs.md` 0.2 and 4; texts found in neither are our own.

use http::StatusCode;
use serde_json::json;

use crate::wire::{Reply, reply};

/// The protocol a server speaks, compared exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    /// As Alibaba's Trustee v1.5.2 speaks it.
    #[value(name = "0.1.0")]
    V010,
    /// As upstream's v0.11 speaks it.
    #[value(name = "0.1.1")]
    V011,
    /// As upstream's v0.13 speaks it.
    #[value(name = "0.2.0")]
    V020,
    /// As Alibaba's Trustee v1.8.7 speaks it.
    #[value(name = "0.4.0")]
    V040,
}

impl Protocol {
    pub(crate) fn version(self) -> &'static str {
        match self {
            Protocol::V010 => "0.1.0",
            Protocol::V011 => "0.1.1",
            Protocol::V020 => "0.2.0",
            Protocol::V040 => "0.4.0",
        }
    }

    /// Of the time when keys were RSA1_5, secrets went out in the form before RFC 7516, and RTMR3 was not replayed.
    pub(crate) fn is_legacy(self) -> bool {
        matches!(self, Protocol::V010 | Protocol::V011)
    }

    /// Name of the CPU's submodule in tokens.
    pub(crate) fn submod(self) -> &'static str {
        if self == Protocol::V040 { "cpu0" } else { "cpu" }
    }
}

/// Whose Trustee it is; they differ in the GPU evidence they read and in the encoding of certificates in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Maker {
    Alibaba,
    Upstream,
}

/// The server's character.
#[derive(Clone, Debug)]
pub(crate) struct Character {
    pub(crate) protocol: Protocol,
    pub(crate) maker: Maker,
    /// Alibaba's v1.0.0 to v1.1.2, which speak 0.1.0 too.
    pub(crate) oldest: bool,
    /// Lower-case hexadecimal; only TDs with this MRTD may read resources.
    pub(crate) mrtd: Option<String>,
}

impl Character {
    /// Whether a client of that version is served.
    pub(crate) fn speaks(&self, version: &str) -> bool {
        version == self.protocol.version() || (self.oldest && version.starts_with("0.0."))
    }
}

/// What the server says no to.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The `auth` body is not one.
    MalformedAuth,
    /// Another version, which is given.
    Version(String),
    /// The system has no random numbers.
    NoRandom,
    /// `attest` without a session cookie.
    NoCookie,
    /// With one that is not known, or not any more.
    LostCookie,
    /// The verifier's words.
    Evidence(String),
    TokenNotFound,
    TokenVerifier,
    PolicyDeny,
    /// The path is not one.
    Path,
    /// There is nothing at that path.
    NoResource,
    Jwe,
    Admin,
}

impl Refusal {
    pub(crate) fn reply(&self, server: &Character) -> Reply {
        if let (true, Refusal::MalformedAuth) = (server.oldest, self) {
            let text = "Json deserialize error: invalid type at line 1 column 1";
            return reply(StatusCode::BAD_REQUEST, Some("text/plain; charset=utf-8"), text);
        }
        let (status, kind, detail) = if server.oldest { self.first() } else { self.second(server) };
        let status = if !server.oldest && matches!(server.protocol, Protocol::V011 | Protocol::V020) {
            StatusCode::UNAUTHORIZED
        } else {
            status
        };
        let kind = format!("https://github.com/confidential-containers/kbs/errors/{kind}");
        // The real servers send no Content-Type here.
        reply(status, None, json!({"type": kind, "detail": detail}).to_string())
    }

    /// In the words of the first generation.
    fn first(&self) -> (StatusCode, &'static str, String) {
        let no = StatusCode::UNAUTHORIZED;
        let text = str::to_owned;
        match self {
            Refusal::Version(version) => (
                no,
                "ProtocolVersion",
                format!(
                    "KBS Client Protocol Version Mismatch: expected version: <=0.1.0, requested version: {version}"
                ),
            ),
            Refusal::MalformedAuth | Refusal::NoRandom => {
                (no, "FailedAuthentication", text("create session failed"))
            }
            Refusal::NoCookie => (no, "MissingCookie", text("No cookie found in the request")),
            Refusal::LostCookie => (no, "InvalidCookie", text("The cookie is not known")),
            Refusal::Evidence(words) => (no, "AttestationFailed", format!("Attestation failed: {words}")),
            // A GET without a session falls through to the bearer header.
            Refusal::TokenNotFound => (
                no,
                "InvalidRequest",
                text("The request is invalid: parse Authorization header failed: Header"),
            ),
            Refusal::TokenVerifier => (no, "TokenParseFailed", text("Token parse failed")),
            Refusal::PolicyDeny => (no, "PolicyReject", text("Resource not permitted.")),
            Refusal::Path | Refusal::Admin => {
                (no, "InvalidRequest", text("The request is invalid: illegal path"))
            }
            Refusal::NoResource => {
                (StatusCode::NOT_FOUND, "ReadSecretFailed", text("Read secret failed: no such file"))
            }
            Refusal::Jwe => (no, "JWEFailed", text("JWE failed")),
        }
    }

    /// In the words of the second.
    fn second(&self, server: &Character) -> (StatusCode, &'static str, String) {
        let handshake = match server.protocol {
            Protocol::V040 => StatusCode::BAD_GATEWAY,
            Protocol::V010 | Protocol::V011 | Protocol::V020 => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let auth =
            |cause: &str| (handshake, "AttestationError", format!("RCAR handshake Auth failed: {cause}"));
        let no = StatusCode::UNAUTHORIZED;
        let text = str::to_owned;
        match self {
            Refusal::MalformedAuth => auth("deserialize Request"),
            Refusal::Version(version) => {
                let expected = server.protocol.version();
                auth(&format!(
                    "KBS Client Protocol Version Mismatch: expect ={expected} while the request is {version}"
                ))
            }
            Refusal::NoRandom => auth("generate challenge failed"),
            Refusal::NoCookie | Refusal::LostCookie | Refusal::Evidence(_) => {
                (handshake, "AttestationError", text("Attestation error: RCAR handshake Attest failed"))
            }
            Refusal::TokenNotFound => (no, "TokenNotFound", text("Attestation Token not found")),
            Refusal::TokenVerifier => (no, "TokenVerifierError", text("Token Verifier error")),
            Refusal::PolicyDeny => (StatusCode::FORBIDDEN, "PolicyDeny", text("Access denied by policy")),
            Refusal::Path | Refusal::NoResource => {
                (StatusCode::INTERNAL_SERVER_ERROR, "PluginInternalError", text("Plugin Internal Error"))
            }
            Refusal::Jwe => (StatusCode::BAD_REQUEST, "JweError", text("JWE failed")),
            Refusal::Admin => (no, "AdminAuth", text("Admin auth error")),
        }
    }
}
