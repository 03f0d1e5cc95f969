//! Where metrics are told: what the configuration says of it, and its check. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::check::tuning_problem;
use super::report::{Findings, Reported};
use super::tuning::Tuning;
use super::{under, values};

/// `metrics.listen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsPlace {
    /// A loopback port.
    Port(SocketAddr),
    /// A unix socket, with `root` applied.
    Socket(PathBuf),
}

impl fmt::Display for MetricsPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsPlace::Port(address) => address.fmt(f),
            MetricsPlace::Socket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The place that `metrics.listen` names; `None` where it names none.
pub(super) fn place(
    tuning: &Tuning,
    root: &Path,
    findings: &mut Findings,
) -> Result<Option<MetricsPlace>, Reported> {
    let Some(text) = tuning.metrics.listen.as_deref() else { return Ok(None) };
    let mut refuse = |flaw: &str| Err(findings.problem(tuning_problem("metrics.listen", tuning, flaw)));
    if let Some(path) = text.strip_prefix("unix:") {
        return match values::path(path) {
            Ok(path) => Ok(Some(MetricsPlace::Socket(under(root, &path)))),
            Err(flaw) => refuse(&format!("{flaw}, after unix:")),
        };
    }
    match text.parse::<SocketAddr>() {
        // What is told has no secret in it, but neither encryption nor a check of who asks.
        Ok(address) if !address.ip().is_loopback() => {
            refuse(&format!("is {address}, which other machines reach"))
        }
        Ok(address) if address.port() != 0 => Ok(Some(MetricsPlace::Port(address))),
        _ => refuse("is neither ADDRESS:PORT nor unix: and a path"),
    }
}
