//! The service port's part of the configuration: what it says, and [`check`](super::check) of it. Pure.

use std::net::SocketAddr;
use std::time::Duration;

use super::check::tuning_problem;
use super::keys::MODEL_SERVICE_PORT;
use super::report::{Findings, Reported};
use super::tuning::Tuning;
use super::variables::Variables;

/// Longest path of a health check, in bytes: its request must fit the head that the gateway reads.
const PATH_LIMIT: usize = 1024;

/// The gateway.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Where connections come in; `None` where no port is to be protected.
    pub entrance: Option<Entrance>,
    /// `gateway.capture_port`.
    pub capture_port: u16,
    /// `gateway.certificate`.
    pub certificate: CertificateRule,
    /// `gateway.refresh_secs`: how often key and evidence are made anew.
    pub refresh: Duration,
    /// `gateway.plaintext_paths`.
    pub plaintext_paths: Vec<String>,
    /// `gateway.drain_secs`: how long open connections may take to end at stop.
    pub drain: Duration,
}

/// How connections reach the gateway, and where it passes them on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entrance {
    /// They dial the gateway, which dials one backend.
    Mapping {
        /// `gateway.listen`.
        listen: SocketAddr,
        /// `gateway.backend`.
        backend: SocketAddr,
    },
    /// They dial the inference service and are redirected; the backend is what they dialled.
    Capture {
        /// `gateway.capture_port`: where the redirect leads.
        port: u16,
        /// `MODEL_SERVICE_PORT`: what is redirected.
        service_port: u16,
    },
}

/// `gateway.certificate`: which of the two certificate formats clients are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateRule {
    /// By what the client offers.
    Auto,
    /// TNG up to 2.2.6.
    Legacy,
    /// TNG from 2.3.0 on.
    Current,
}

impl CertificateRule {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            CertificateRule::Auto => "auto",
            CertificateRule::Legacy => "legacy",
            CertificateRule::Current => "current",
        }
    }
}

pub(super) fn gateway(
    service_port: Option<u16>,
    variables: &Variables,
    tuning: &Tuning,
    findings: &mut Findings,
) -> Result<Gateway, Reported> {
    let entrance = entrance(service_port, variables, tuning, findings);
    let plaintext_paths = &tuning.gateway.plaintext_paths;
    if !plaintext_paths.iter().all(|path| is_path(path)) {
        let flaw = format!("has a path that is not / and up to {PATH_LIMIT} visible ASCII characters");
        return Err(findings.problem(tuning_problem("gateway.plaintext_paths", tuning, &flaw)));
    }
    Ok(Gateway {
        entrance: entrance?,
        capture_port: tuning.gateway.capture_port,
        certificate: tuning.gateway.certificate,
        refresh: Duration::from_secs(tuning.gateway.refresh_secs),
        plaintext_paths: plaintext_paths.clone(),
        drain: Duration::from_secs(tuning.gateway.drain_secs),
    })
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.len() <= PATH_LIMIT && path.bytes().all(|byte| byte.is_ascii_graphic())
}

fn entrance(
    service_port: Option<u16>,
    variables: &Variables,
    tuning: &Tuning,
    findings: &mut Findings,
) -> Result<Option<Entrance>, Reported> {
    let mut address = |name, text: &Option<String>| match text.as_deref().map(str::parse::<SocketAddr>) {
        Some(Ok(address)) if address.port() != 0 => Ok(Some(address)),
        Some(_) => Err(findings.problem(tuning_problem(name, tuning, "is not ADDRESS:PORT"))),
        None => Ok(None),
    };
    let listen = address("gateway.listen", &tuning.gateway.listen);
    let backend = address("gateway.backend", &tuning.gateway.backend);
    let mut refuse = |name, flaw| Err(findings.problem(tuning_problem(name, tuning, flaw)));
    match (listen?, backend?, service_port) {
        (Some(listen), Some(backend), _) if leads_back(listen, backend) => {
            refuse("gateway.backend", "is gateway.listen itself")
        }
        (Some(listen), Some(backend), _) => Ok(Some(Entrance::Mapping { listen, backend })),
        (Some(_), None, _) => refuse("gateway.listen", "is set, and gateway.backend is not"),
        (None, Some(_), _) => refuse("gateway.backend", "is set, and gateway.listen is not"),
        (None, None, Some(port)) if port == tuning.gateway.capture_port => {
            let at = variables.at(&MODEL_SERVICE_PORT);
            let flaw = "is gateway.capture_port, where its connections are redirected to";
            Err(findings.problem(MODEL_SERVICE_PORT.problem(&at, flaw, Some(&port.to_string()))))
        }
        (None, None, Some(service_port)) => {
            Ok(Some(Entrance::Capture { port: tuning.gateway.capture_port, service_port }))
        }
        (None, None, None) => Ok(None),
    }
}

/// Whether who dials `backend` reaches who listens on `listen`.
fn leads_back(listen: SocketAddr, backend: SocketAddr) -> bool {
    let everywhere =
        listen.ip().is_unspecified() && (backend.ip().is_loopback() || backend.ip().is_unspecified());
    listen.port() == backend.port() && (listen.ip() == backend.ip() || everywhere)
}
