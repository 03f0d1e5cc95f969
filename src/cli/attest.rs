//! `cai attest`: evidence of this machine as a key broker would get it, shown; nobody is asked for anything.
//!
//! Owns: which facts are shown and in which form. Must not know: how evidence is made. Needs no configuration beyond
//! `cai.toml`, no network, no key. Tested here and, with the real binary, in `tests/attest_cli.rs`.

mod report;
mod save;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::Uid;

use crate::attest::{self, Digest, Evidence, Tee, Verifier, reference_values};
use crate::config::{self, Protocol};
use crate::error::{ErrorClass, Fault};
use crate::helper::Helper;
use crate::helper::protocol::{EventLogs, Request};
use crate::host;
use report::Report;

/// Length of what evidence is bound to, in bytes: SHA-384, as in a handshake with a key broker.
const NONCE_LEN: usize = 48;

/// Least length of a nonce, in bytes: GPUs take that many.
const NONCE_MIN: usize = 32;

/// Collect evidence of this machine and show what it says; no network, no key.
///
/// Run it as root: it then starts the helper itself. /etc/cai/cai.env may be empty or missing.
#[derive(Debug, clap::Args)]
#[command(after_long_help = report::JSON_HELP)]
pub struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Print only the reference values that a verifier needs to know this machine, as JSON for its RVPS
    #[arg(long, conflicts_with = "json")]
    reference_values: bool,
    /// Keep evidence, quote, event logs and claims in a new directory, for a support case; nothing in it is secret
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// What to bind the evidence to, 32 to 48 bytes in hexadecimal; shorter than 48 is padded with zeros [default: random]
    #[arg(long, value_name = "HEX", value_parser = parse_nonce)]
    nonce: Option<Digest>,
}

fn parse_nonce(text: &str) -> Result<Digest, String> {
    let wanted = || format!("expected {NONCE_MIN} to {NONCE_LEN} bytes in hexadecimal");
    let bytes = hex::decode(text).map_err(|_| wanted())?;
    let mut nonce = [0; NONCE_LEN];
    match nonce.get_mut(..bytes.len()) {
        Some(start) if bytes.len() >= NONCE_MIN => start.copy_from_slice(&bytes),
        _ => return Err(wanted()),
    }
    Ok(Digest(nonce))
}

/// Evidence and everything known about it.
struct Collected {
    tee: Tee,
    nonce: Digest,
    verifier: Verifier,
    evidence: Evidence,
    /// Text of `additional_evidence`, empty without devices in that form.
    additional: String,
    /// The event logs as they lie on this machine, sent or not; only collected to be saved.
    logs: EventLogs,
}

/// Collect, show, and keep if asked for.
pub(super) fn run(root: &Path, args: &Args) -> Result<(), Box<dyn Fault>> {
    host::log_to_stderr();
    let collected = collect(root, args)?;
    let values = reference_values(&collected.evidence.claims);
    let report = Report::new(&collected, &values)?;
    let text = match (args.json, args.reference_values) {
        (_, true) => pretty(&values)?,
        (true, false) => pretty(&report)?,
        (false, false) => report.text(),
    };
    if let Some(directory) = &args.save {
        save::save(directory, &collected, &pretty(&report)?, &pretty(&values)?)?;
    }
    std::io::stdout().write_all(text.as_bytes()).map_err(super::OutputError)?;
    Ok(())
}

/// What this machine can prove, as files for a support case: a summary, and with `raw` the evidence itself.
pub(super) fn for_support(root: &Path, raw: bool) -> Result<Vec<(String, String)>, Box<dyn Fault>> {
    let save = raw.then(PathBuf::new);
    let collected = collect(root, &Args { json: false, reference_values: false, save, nonce: None })?;
    let values = reference_values(&collected.evidence.claims);
    let report = Report::new(&collected, &values)?;
    let mut files = vec![("evidence.txt".to_owned(), report.text())];
    if raw {
        files.extend(save::texts(&collected, &pretty(&report)?, &pretty(&values)?)?);
    }
    Ok(files)
}

fn collect(root: &Path, args: &Args) -> Result<Collected, Box<dyn Fault>> {
    let (settings, notices) = config::load_attest(root)?;
    for notice in notices {
        eprintln!("notice: {notice}");
    }
    let helper = if Uid::effective().is_root() { Helper::start(root)? } else { Helper::connect(root)? };
    let helper = Arc::new(helper);
    let attester = attest::detect(&settings, &helper)?;
    let nonce = match args.nonce {
        Some(nonce) => nonce,
        None => fresh_nonce()?,
    };
    let verifier = verifier(settings.protocol);
    let additional = attester.device_evidence(&nonce)?;
    let evidence = attester.evidence(&nonce, verifier)?;
    let tee = attester.tee();
    let logs = match (&args.save, tee) {
        (Some(_), Tee::Tdx) => event_logs(&helper)?,
        _ => EventLogs::default(),
    };
    Ok(Collected { tee, nonce, verifier, evidence, additional, logs })
}

fn fresh_nonce() -> Result<Digest, AttestCliError> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(AttestCliError::Random)?;
    Ok(Digest(nonce))
}

/// The generation of verifier that the pinned protocol stands for; the current one where none is pinned.
const fn verifier(protocol: Protocol) -> Verifier {
    match protocol {
        Protocol::V0_1_0 | Protocol::V0_1_1 => Verifier::Legacy,
        Protocol::Auto | Protocol::V0_2_0 | Protocol::V0_4_0 => Verifier::Current,
    }
}

fn event_logs(helper: &Helper) -> Result<EventLogs, Box<dyn Fault>> {
    let (_, data) = helper.fetch(Request::EventLogs)?;
    Ok(serde_json::from_slice(&data).map_err(AttestCliError::Json)?)
}

fn pretty<T: serde::Serialize>(value: &T) -> Result<String, AttestCliError> {
    Ok(serde_json::to_string_pretty(value).map_err(AttestCliError::Json)? + "\n")
}

/// Evidence could not be shown or kept.
#[derive(Debug, thiserror::Error)]
enum AttestCliError {
    /// No random bytes.
    #[error("making a nonce")]
    Random(#[source] getrandom::Error),
    /// An object of cai's own cannot be read or written as JSON.
    #[error("reading or writing evidence as JSON")]
    Json(#[source] serde_json::Error),
    /// The evidence could not be kept.
    #[error("saving {}", path.display())]
    Save {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Fault for AttestCliError {
    fn class(&self) -> ErrorClass {
        match self {
            AttestCliError::Random(_) => ErrorClass::Transient,
            AttestCliError::Json(_) => ErrorClass::Internal,
            AttestCliError::Save { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            AttestCliError::Random(_) => "attest.random",
            AttestCliError::Json(_) => "attest.json",
            AttestCliError::Save { .. } => "attest.save",
        }
    }

    fn hint(&self) -> String {
        match self {
            AttestCliError::Random(_) => {
                "the system gives no random numbers: is it still starting?".to_owned()
            }
            AttestCliError::Json(_) => "report this as a defect of cai".to_owned(),
            AttestCliError::Save { .. } => {
                "give --save a directory that does not exist yet, below one that can be written".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonce_is_32_to_48_bytes_and_padded_with_zeros() {
        let Digest(nonce) = parse_nonce(&"ab".repeat(32)).unwrap();
        assert_eq!((&nonce[..32], &nonce[32..]), (&[0xab; 32][..], &[0; 16][..]));
        assert_eq!(parse_nonce(&"cd".repeat(48)).unwrap(), Digest([0xcd; 48]));
        for refused in ["", "ab", &"ab".repeat(31), &"ab".repeat(49), &"0x".repeat(32), &"a".repeat(65)] {
            assert_eq!(parse_nonce(refused).unwrap_err(), "expected 32 to 48 bytes in hexadecimal");
        }
    }

    #[test]
    fn verifier_is_the_one_of_the_pinned_protocol() {
        assert_eq!(verifier(Protocol::V0_1_0), Verifier::Legacy);
        assert_eq!(verifier(Protocol::Auto), Verifier::Current);
    }
}
