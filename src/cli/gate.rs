//! `cai gate`: keep plaintext from outside off the service port, whether the agent runs or not. What `cai-gate.service` runs.

use std::path::Path;

use nix::unistd::Uid;

use super::OutputError;
use crate::config;
use crate::error::{ErrorClass, Fault};
use crate::gateway::Gate;

/// Arguments of `cai gate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Subcommand)]
enum Act {
    /// Lead everybody outside to the gateway, and nobody past it.
    Shut,
    /// Take the rules away: the service's port is open to everybody in plaintext.
    Open,
    /// Print the rules that `shut` loads.
    Show,
}

/// Rules are root's.
#[derive(Debug, thiserror::Error)]
#[error("rules of the kernel need root, and this is user {0}")]
struct NotRoot(Uid);

impl Fault for NotRoot {
    fn class(&self) -> ErrorClass {
        ErrorClass::Config
    }

    fn code(&self) -> &'static str {
        "gate.not-root"
    }

    fn hint(&self) -> String {
        "run it with sudo; under systemd: systemctl start cai-gate".into()
    }
}

pub(super) fn run(root: &Path, args: &Args) -> Result<(), Box<dyn Fault>> {
    if args.act != Act::Show && !Uid::effective().is_root() {
        return Err(Box::new(NotRoot(Uid::effective())));
    }
    let said = match args.act {
        // Whatever the configuration says by now.
        Act::Open if Gate::open()? => {
            "the gate is open: the service port takes plaintext from everywhere\n".into()
        }
        Act::Open => "the gate was open\n".into(),
        Act::Shut | Act::Show => {
            let (settings, _) = config::load(root)?;
            match (Gate::of(&settings.gateway), args.act) {
                (None, _) => "no gate: MODEL_SERVICE_PORT is not set, or gateway.listen is\n".into(),
                (Some(gate), Act::Show) => gate.rules(),
                (Some(gate), _) => {
                    gate.shut()?;
                    "the gate is shut: from outside the service port is reached through the gateway alone\n"
                        .into()
                }
            }
        }
    };
    std::io::Write::write_all(&mut std::io::stdout(), said.as_bytes()).map_err(OutputError)?;
    Ok(())
}
