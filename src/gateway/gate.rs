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

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::config::{self, Entrance};
use crate::error::{ErrorClass, Fault};
use crate::host::tool::{self, Said};

/// Our table. A leftover of any version has this name.
const TABLE: &str = "cai_gate";
/// How long nft may take: it needs milliseconds, and waits for nobody but the kernel.
const NFT_LIMIT: Duration = Duration::from_secs(10);
/// Most of what nft says, in bytes: the table has one KiB.
const NFT_OUTPUT: usize = 64 << 10;

/// The gate could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// There is no nft.
    #[error("there is no nft in /usr/bin, /usr/sbin, /bin or /sbin")]
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
        done("loading the rules of the service port", nft(&[&rules])?)
    }

    /// The rules that are loaded, as nft lists them, without counters; `None` without a table of ours.
    ///
    /// # Errors
    /// [`GateError::NoNft`], [`GateError::Run`].
    pub fn loaded() -> Result<Option<String>, GateError> {
        let listed = nft(&["-s", "list", "table", "inet", TABLE])?;
        Ok(listed.success.then_some(listed.text))
    }

    /// Take away whatever gate there is; `false` when there is none.
    ///
    /// # Errors
    /// [`GateError`].
    pub fn open() -> Result<bool, GateError> {
        if Gate::loaded()?.is_none() {
            return Ok(false);
        }
        done("removing the rules of the service port", nft(&["delete", "table", "inet", TABLE])?)?;
        Ok(true)
    }
}

fn done(doing: &'static str, said: Said) -> Result<(), GateError> {
    if said.success {
        return Ok(());
    }
    let said = said.text.trim().chars().take(1_000).collect();
    Err(GateError::Refused { doing, said })
}

/// Rules are an argument as good as a file: they are no secret.
fn nft(arguments: &[&str]) -> Result<Said, GateError> {
    let program = tool::find(Path::new("/"), "nft").ok_or(GateError::NoNft)?;
    tool::run(&program, arguments, NFT_LIMIT, NFT_OUTPUT).map_err(GateError::Run)
}
