//! `cai connect`: doors for applications into attested tunnels.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use url::Url;

use super::place::{print, until_interrupted};
use crate::error::{ErrorClass, Fault};
use crate::gateway::connect::{Destination, Dialer, Door, Mode, serve};
use crate::host;
use crate::manifest::Identity;
use crate::ratls::{Demands, MODEL_IDENTITY, Verifier, VerifierOptions};
use crate::task::Tasks;

/// How long connections of applications get to notice the end.
const GRACE: Duration = Duration::from_secs(1);

/// Connect applications to attested servers: a proxy on this machine, whose other end is an encrypted service port
///
/// With env all_proxy=http://127.0.0.1:41000, curl http://HOST:8080/v1/models reaches the server only if the attestation
/// service affirms what its TLS certificate carries. Nothing ever goes to a server in the clear, or past the tunnel; where
/// there is no attested tunnel, the application gets an error (HTTP 502) that names the claim that failed.
///
/// Servers are cai, or TNG (Trusted Network Gateway) 2.0 to 2.12. A verdict holds as long as the service's token; then new
/// connections are attested afresh, and those that are open stay only while the service affirms their server again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address for applications: an HTTP proxy, or the door to the server that --to names
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:41000")]
    listen: SocketAddr,
    /// Pass every connection on to this server, instead of being a proxy
    #[arg(long, value_name = "HOST:PORT", value_parser = destination)]
    to: Option<Destination>,
    /// Address of a SOCKS5 proxy beside it
    #[arg(long, value_name = "ADDR")]
    socks: Option<SocketAddr>,
    /// Attestation service, such as https://TRUSTEE/as
    #[arg(long, value_name = "URL")]
    as_url: Url,
    /// Policy that the evidence must satisfy; more than once only for a service that issues simple tokens (EAR: the first
    /// alone is appraised, so a second refuses every server)
    #[arg(long, value_name = "ID", default_value = "default")]
    policy: Vec<String>,
    /// CA certificates (PEM) of the attestation service's https address, in place of the web's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Certificate (PEM) of the attestation service's token signer, or of the CA that issued it; https alone is trusted
    /// without it
    #[arg(long, value_name = "FILE")]
    as_cert: Option<PathBuf>,
    /// Believe an attestation service that anybody on the way can answer for: protects from nobody who is
    #[arg(long, conflicts_with = "as_cert")]
    as_unauthenticated: bool,
    /// Identity of the model that the server must serve, as cai manifest prints it
    #[arg(long, value_name = "ID", value_parser = identity)]
    expect_model: Option<Identity>,
    /// What is offered to servers: streams that share a connection, a connection each, or either
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
}

fn destination(text: &str) -> Result<Destination, String> {
    Destination::parse(text, None)
}

fn identity(text: &str) -> Result<Identity, String> {
    Identity::parse(text).ok_or_else(|| "expected 64 hexadecimal digits".into())
}

/// A file or an address of the command line cannot be used.
#[derive(Debug, thiserror::Error)]
enum ConnectCliError {
    #[error("reading {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("listening on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

impl Fault for ConnectCliError {
    fn class(&self) -> ErrorClass {
        match self {
            ConnectCliError::File { .. } | ConnectCliError::Listen { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ConnectCliError::File { .. } => "connect.file",
            ConnectCliError::Listen { .. } => "connect.listen",
        }
    }

    fn hint(&self) -> String {
        match self {
            ConnectCliError::File { .. } => "give a PEM file that this user can read".into(),
            ConnectCliError::Listen { .. } => {
                "is another cai connect, or a TNG, running? choose another address with --listen".into()
            }
        }
    }
}

/// Serve applications until interrupted.
pub(super) fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    host::log_to_stderr();
    // What applications send is in this process's memory.
    host::harden::forbid_dumps()?;
    let verifier = verifier(args)?;
    if !verifier.is_authenticated() {
        tracing::warn!(
            event = "connect.unauthenticated",
            "--as-unauthenticated: whoever answers in place of {} decides which servers are trusted",
            args.as_url
        );
    }
    let dialer = Arc::new(Dialer::new(verifier, args.mode)?);
    let door = args.to.clone().map_or(Door::Http, Door::Fixed);
    until_interrupted(async |stop| {
        let mut tasks = Tasks::new();
        for (address, door) in [(Some(args.listen), door), (args.socks, Door::Socks)] {
            let Some(address) = address else { continue };
            let failed = |source| ConnectCliError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            announce(&door, local);
            tasks.supervise("door", serve(listener, door, dialer.clone()));
        }
        stop.cancelled().await;
        tasks.stop(GRACE).await;
        Ok(())
    })
}

fn announce(door: &Door, local: SocketAddr) {
    print(&match door {
        Door::Http => format!("HTTP proxy on {local}"),
        Door::Socks => format!("SOCKS5 proxy on {local}"),
        Door::Fixed(to) => format!("{to} on {local}"),
    });
    if !local.ip().is_loopback() {
        tracing::warn!(
            event = "connect.open-door",
            "{local} can be reached from other machines: their traffic to it is not encrypted"
        );
    }
}

fn verifier(args: &Args) -> Result<Verifier, Box<dyn Fault>> {
    let ca = args.ca_file.as_deref().map(read).transpose()?;
    let signers = args.as_cert.as_deref().map(read).transpose()?;
    let model = args.expect_model.map(|identity| (MODEL_IDENTITY.to_owned(), identity.to_string()));
    let options = VerifierOptions {
        url: &args.as_url,
        ca: ca.as_deref(),
        signers: signers.as_deref(),
        unauthenticated: args.as_unauthenticated,
        demands: Demands { policies: args.policy.clone(), members: model.into_iter().collect() },
    };
    Ok(Verifier::new(options)?)
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectCliError> {
    std::fs::read(path).map_err(|source| ConnectCliError::File { path: path.to_owned(), source })
}
