//! The gate: rules of the kernel that lead everybody outside to the gateway, and nobody past it.
//!
//! One nft table, loaded and replaced in a single transaction, so there is no moment without it. It belongs to no process: it
//! stays while the agent restarts, crashes or has failed, and a port that nobody serves is refused. What comes in over the
//! loopback device is this machine's own and passes: the gateway's connections to the service, and health checks.
//!
//! There are no loops to prevent: the redirect is for what comes in from outside, and the gateway's own connections leave
//! through the output hook, which has no rule. Ahead of Docker: its redirects of published ports have priority -100; a connection
//! that one of them took before the gate was shut is cut off on its way to the container.
//! Runs nft(8) and needs root; called by `cai gate` and by the helper. Tested in `tests/gateway_gate.rs`.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::config::{self, Entrance};
use crate::error::{ErrorClass, Fault};

/// Our table. A leftover of any version has this name.
const TABLE: &str = "cai_gate";
/// Where nft is: no search path decides what root runs.
const NFT: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"];

/// The gate could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// There is no nft.
    #[error("there is no nft at {}", NFT.join(", "))]
    NoNft,
    /// It cannot be run.
    #[error("running nft")]
    Run(#[source] io::Error),
    /// It refused.
    #[error("{doing}: nft says: {said}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// Its words.
        said: String,
    },
}

impl Fault for GateError {
    fn class(&self) -> ErrorClass {
        match self {
            GateError::NoNft => ErrorClass::Config,
            // A kernel that cannot do it says so each time; one that is short of memory does not.
            GateError::Run(_) | GateError::Refused { .. } => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            GateError::NoNft => "gate.no-nft",
            GateError::Run(_) => "gate.run",
            GateError::Refused { .. } => "gate.refused",
        }
    }

    fn hint(&self) -> String {
        match self {
            GateError::NoNft => {
                "install nftables, or use gateway.listen and gateway.backend, which need no rules".into()
            }
            GateError::Run(_) => "see whether memory or processes are exhausted".into(),
            GateError::Refused { .. } => {
                "it needs root and a kernel with nf_tables, NAT and fib for inet; see: nft list ruleset"
                    .into()
            }
        }
    }
}

/// The gate in front of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    service_port: u16,
    capture_port: u16,
}

impl Gate {
    /// The gate that `gateway` needs: none in front of a listener of its own.
    pub fn of(gateway: &config::Gateway) -> Option<Self> {
        match gateway.entrance? {
            Entrance::Mapping { .. } => None,
            Entrance::Capture { port, service_port } => Some(Gate { service_port, capture_port: port }),
        }
    }

    /// The table, as nft reads it.
    pub fn rules(self) -> String {
        let Gate { service_port, capture_port } = self;
        format!(
            "table inet {TABLE} {{
	chain to_the_gateway {{
		type nat hook prerouting priority -110; policy accept;
		iifname != \"lo\" fib daddr type local tcp dport {service_port} counter redirect to :{capture_port}
	}}
	chain not_past_it {{
		type filter hook input priority -10; policy accept;
		iifname \"lo\" accept
		tcp dport {service_port} counter reject with tcp reset
		udp dport {service_port} counter drop
		tcp dport {capture_port} ct status dnat accept
		tcp dport {capture_port} counter reject with tcp reset
	}}
	chain not_through_it {{
		type filter hook forward priority -10; policy accept;
		meta l4proto tcp ct original proto-dst {service_port} ct status dnat counter reject with tcp reset
		meta l4proto udp ct original proto-dst {service_port} ct status dnat counter drop
	}}
}}
"
        )
    }

    /// Whether `listed`, as [`Gate::loaded`] gives it, leads this gate's port to this gate's listener. nft words some rules in
    /// its own way, the one that counts as it was loaded.
    pub fn is_in(self, listed: &str) -> bool {
        let Gate { service_port, capture_port } = self;
        let leads = format!("tcp dport {service_port} counter redirect to :{capture_port}");
        listed.lines().any(|line| line.ends_with(&leads))
    }

    /// Load the rules, in place of those that were there.
    ///
    /// # Errors
    /// [`GateError`]; what was there before is there still.
    pub fn shut(self) -> Result<(), GateError> {
        // An empty table first: one that is not there cannot be deleted.
        let rules = format!("table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n{}", self.rules());
        done("loading the rules of the service port", nft(&["-f", "-"], &rules)?)
    }

    /// The rules that are loaded, as nft lists them, without counters; `None` without a table of ours.
    ///
    /// # Errors
    /// [`GateError::NoNft`], [`GateError::Run`].
    pub fn loaded() -> Result<Option<String>, GateError> {
        let listed = nft(&["-s", "list", "table", "inet", TABLE], "")?;
        Ok(listed.status.success().then(|| String::from_utf8_lossy(&listed.stdout).into_owned()))
    }

    /// Take away whatever gate there is; `false` when there is none.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn open() -> Result<bool, GateError> {
        if Gate::loaded()?.is_none() {
            return Ok(false);
        }
        done("removing the rules of the service port", nft(&["delete", "table", "inet", TABLE], "")?)?;
        Ok(true)
    }
}

fn done(doing: &'static str, output: Output) -> Result<(), GateError> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(1_000).collect();
    Err(GateError::Refused { doing, said })
}

fn nft(arguments: &[&str], input: &str) -> Result<Output, GateError> {
    let program = NFT.iter().find(|path| Path::new(path).exists()).ok_or(GateError::NoNft)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(GateError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(GateError::Run)
}
