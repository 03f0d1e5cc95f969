//! `cai report`: one archive with everything that support needs.
//!
//! Owns: what goes into it. Must not know: how secrets are taken out (`crate::report`). Tested in `tests/report.rs`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::Uid;

use super::run::RuntimeError;
use super::{OutputError, attest, doctor};
use crate::bus;
use crate::config::{self, Redacted};
use crate::error::{Fault, chain, utc};
use crate::report::{Bundle, Redactor, system};

/// Collect everything that support needs, without secrets, in one archive.
///
/// Inside: the configuration without secrets, status, journal of the units, what cai doctor finds, a summary of this machine's evidence,
/// mounts, rules of the service port, versions, and a MANIFEST of all that. Look into it before you send it: names of hosts, buckets and
/// files of the model are inside. Run it as root to have everything in it; like cai doctor it then asks for the model's key, and wipes it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The archive, which must not exist yet [default: cai-report-TIME.tar.gz in this directory]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// With the evidence itself: quote, event logs, reports of the GPUs; nothing in it is secret
    #[arg(long)]
    with_evidence: bool,
}

pub(super) fn run(root: &Path, args: &Args) -> Result<(), Box<dyn Fault>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = format!("cai-report-{}", utc(now).replace([':', '-'], ""));
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let Redacted { files, removed, missing, secrets } = config::redacted(root);
    let mut bundle = Bundle::new(Redactor::new(secrets.iter().map(|secret| secret.as_str())));
    for (path, text) in &files {
        let name = Path::new(path).strip_prefix(root).unwrap_or(Path::new(path));
        bundle.add(&name.display().to_string(), "configuration without secrets", text);
    }
    missing.iter().for_each(|why| bundle.missing("etc/cai", why));
    removed.iter().for_each(|what| bundle.removed(what));
    bundle.add_or_missing("status.json", "what the agent says of itself", status()?);
    let found = doctor::look(root, |_| Ok(()))?;
    bundle.add("doctor.txt", "what cai doctor finds", &found.text());
    bundle.add("doctor.json", "the same for machines", &found.json());
    match attest::for_support(root, args.with_evidence) {
        Ok(files) => {
            files.iter().for_each(|(name, text)| bundle.add(name, "what this machine can prove", text))
        }
        Err(fault) => {
            bundle.missing("evidence.txt", &format!("{} [{}]", chain(fault.as_ref()), fault.code()))
        }
    }
    for (name, about, source) in system::SOURCES {
        bundle.add_or_missing(name, about, source(root));
    }
    let title = format!(
        "cai {} report, {}, by uid {}, root {}",
        env!("CARGO_PKG_VERSION"),
        utc(now),
        Uid::effective(),
        root.display()
    );
    let manifest = bundle.write(&output, &name, &title, now)?;
    let said = format!("{manifest}\n{} is written; look into it before you send it\n", output.display());
    std::io::stdout().write_all(said.as_bytes()).map_err(OutputError)?;
    Ok(())
}

/// The running agent's properties as JSON, or why not.
fn status() -> Result<Result<String, String>, RuntimeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RuntimeError)?;
    Ok(match runtime.block_on(async { bus::Daemon::on_the_bus().await?.properties().await }) {
        Ok(properties) => Ok(format!("{:#}\n", bus::to_json(&properties))),
        Err(error) => Err(chain(&error)),
    })
}
