//! Why a connection ended before or beside its purpose, and how that is told without letting strangers fill the journal.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::plaintext::Unfit;
use crate::error::{ErrorClass, Fault, chain};

/// How often a line of each kind is written at most; the next one says how many were not.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A connection was not served, or not to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Nothing was sent.
    #[error("sent nothing for {secs} s")]
    Silent { secs: u64 },
    /// Everything may be open only so often.
    #[error("is one {what} too many (limit {limit} for {whose})")]
    TooMany { what: &'static str, limit: usize, whose: &'static str },
    /// Not encrypted, and no listed health check.
    #[error("spoke plaintext")]
    Plaintext(#[source] Unfit),
    /// Somebody reached the listener around the redirect.
    #[error("was not redirected here from port {expected}: its destination was {found}")]
    Destination { expected: u16, found: String },
    /// Too slow to be one of TNG's.
    #[error("did not {step} within {secs} s")]
    Slow { step: &'static str, secs: u64 },
    /// The peer did not like what we showed.
    #[error(
        "ended the TLS handshake with the alert {alert}: it did not accept this machine's certificate or evidence"
    )]
    Alert { alert: String },
    /// TLS, but not as it must be.
    #[error("failed the TLS handshake")]
    Tls(#[source] io::Error),
    /// What a client from TNG 2.2.5 on does whose verifier says no, and somebody who only looks.
    #[error(
        "left after the TLS handshake and before it used the tunnel: did its verifier accept this machine's evidence?"
    )]
    Left,
    /// Encrypted, and then no HTTP/2.
    #[error("broke the tunnel's HTTP/2")]
    Http2(#[source] h2::Error),
    /// The inference service.
    #[error("could not be passed on to {to}")]
    Backend {
        to: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// The line broke.
    #[error("was cut off")]
    Line(#[source] io::Error),
}

impl Refusal {
    /// What a failed handshake means.
    pub(super) fn handshake(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(rustls::Error::AlertReceived(alert)) => Refusal::Alert { alert: format!("{alert:?}") },
            Some(_) => Refusal::Tls(error),
            None => Refusal::Line(error),
        }
    }
}

impl Fault for Refusal {
    fn class(&self) -> ErrorClass {
        match self {
            Refusal::Silent { .. }
            | Refusal::TooMany { .. }
            | Refusal::Slow { .. }
            | Refusal::Backend { .. }
            | Refusal::Line(_) => ErrorClass::Transient,
            Refusal::Plaintext(_)
            | Refusal::Destination { .. }
            | Refusal::Alert { .. }
            | Refusal::Left
            | Refusal::Tls(_)
            | Refusal::Http2(_) => ErrorClass::Denied,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Refusal::Silent { .. } => "gateway.silent",
            Refusal::TooMany { .. } => "gateway.too-many",
            Refusal::Plaintext(_) => "gateway.plaintext",
            Refusal::Destination { .. } => "gateway.destination",
            Refusal::Slow { .. } => "gateway.slow",
            Refusal::Alert { .. } => "gateway.alert",
            Refusal::Left => "gateway.left",
            Refusal::Tls(_) => "gateway.tls",
            Refusal::Http2(_) => "gateway.http2",
            Refusal::Backend { .. } => "gateway.backend",
            Refusal::Line(_) => "gateway.line",
        }
    }

    fn hint(&self) -> String {
        match self {
            Refusal::Silent { .. } | Refusal::Slow { .. } | Refusal::Line(_) => {
                "nothing to do, unless it is a client of yours".into()
            }
            Refusal::TooMany { .. } => {
                "if these are your clients, let them keep their tunnels; otherwise limit who reaches the port".into()
            }
            Refusal::Plaintext(_) => {
                "clients reach the service through `cai connect` or TNG; health checks may use gateway.plaintext_paths"
                    .into()
            }
            Refusal::Destination { .. } => {
                "only the redirect of MODEL_SERVICE_PORT leads to gateway.capture_port: is cai-gate.service active?"
                    .into()
            }
            Refusal::Alert { .. } | Refusal::Left => {
                "see the client's log for what its verifier said; for TNG up to 2.2.6 gateway.certificate must not be \
                 \"current\", for newer ones not \"legacy\""
                    .into()
            }
            Refusal::Tls(_) | Refusal::Http2(_) => {
                "the port speaks TNG: TLS 1.3 with ALPN h2 or rats-tls; use `cai connect` or TNG as the client".into()
            }
            Refusal::Backend { .. } => "is the inference service up, and does it listen there?".into(),
        }
    }
}

/// Writes a line about a refusal, but not every time.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// By code: when the last line was written, and how many were not since.
    kinds: Mutex<BTreeMap<&'static str, (Instant, u64)>>,
}

impl Log {
    /// How many of that kind were left out since the last line; `None` where this one is left out too.
    fn due(&self, code: &'static str, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        match kinds.get_mut(code) {
            Some((last, left_out)) if now.saturating_duration_since(*last) < LINE_EVERY => {
                *left_out += 1;
                None
            }
            Some(entry) => Some(std::mem::replace(entry, (now, 0)).1),
            None => {
                kinds.insert(code, (now, 0));
                Some(0)
            }
        }
    }

    pub(super) fn refused(&self, peer: SocketAddr, refusal: &Refusal) {
        let code = refusal.code();
        let Some(left_out) = self.due(code, Instant::now()) else { return };
        let hint = refusal.hint();
        let why = chain(refusal);
        tracing::warn!(event = code, %peer, hint, left_out, "a connection from {peer} {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_of_a_kind_is_written_at_once_and_then_counted() {
        let log = Log::default();
        let start = Instant::now();
        assert_eq!(log.due("gateway.tls", start), Some(0));
        assert_eq!(log.due("gateway.tls", start), None);
        assert_eq!(log.due("gateway.slow", start), Some(0));
        assert_eq!(log.due("gateway.tls", start + LINE_EVERY - Duration::from_millis(1)), None);
        assert_eq!(log.due("gateway.tls", start + LINE_EVERY), Some(2));
        assert_eq!(log.due("gateway.tls", start + LINE_EVERY * 2), Some(0));
    }

    #[test]
    fn alert_of_the_peer_is_told_apart_from_our_own() {
        let wrapped = |error| Refusal::handshake(io::Error::new(io::ErrorKind::InvalidData, error));
        let alert = wrapped(rustls::Error::AlertReceived(rustls::AlertDescription::BadCertificate));
        assert_eq!(alert.code(), "gateway.alert");
        assert!(alert.to_string().contains("BadCertificate"), "{alert}");
        assert_eq!(wrapped(rustls::Error::NoApplicationProtocol).code(), "gateway.tls");
        assert_eq!(Refusal::handshake(io::ErrorKind::UnexpectedEof.into()).code(), "gateway.line");
    }
}
