//! `cai doctor`: what stands between this machine and a served model, and what mends it.
//!
//! Owns: the form in which findings are shown, and the exit status. Must not know: what is looked at (`crate::doctor`). Tested here
//! and, with the real binary, in `tests/doctor.rs`.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use serde::Serialize;

use super::OutputError;
use super::page::wrapped;
use super::run::RuntimeError;
use crate::doctor::{self, Finding, Level, exit_status};
use crate::error::{self, Fault};

/// Columns of level and id.
const LEVEL: usize = 8;
const ID: usize = 20;

/// Look at everything that cai depends on, and say what mends what is wrong.
///
/// Before a start and after it; run it as root to see everything. It changes nothing. As root or user cai it also attests to the
/// Trustee and asks for the model's key, which it wipes at once: the Trustee logs that as a release.
#[derive(Debug, clap::Args)]
#[command(after_long_help = HELP)]
pub struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Documentation of [`Report`]; only additive change.
const HELP: &str = "\
Exit status: 0 without an error (notes, warnings and what could not be seen are
none); else that of the gravest error: 78 configuration or host, 77 denied by
policy, 65 corrupt data, 70 a defect of cai, 69 passing.

Levels: ok; note (worth knowing); unseen (could not be looked at, and how it
could); warning (it works, but not as well or as safely as it could); error (the
agent does not start, or does not serve).

The object of --json (names are only ever added):
  version   version of cai
  at        when, UTC
  status    exit status
  findings  list of objects with
    id      stable name of what was looked at, such as oss.read
    level   ok, note, unseen, warning or error
    found   what was found
    meaning what follows from it; may be empty
    fix     what to do, a command where there is one; may be empty
    code    code of the failure behind it, or null (docs/failure-codes.md)

docs/doctor.md lists every id.";

/// Everything that was found. Its names are part of the interface: see [`HELP`].
#[derive(Serialize)]
pub(super) struct Report {
    version: &'static str,
    at: String,
    status: u8,
    findings: Vec<Finding>,
}

/// Longest that blocking work which nobody waits for any more may hold up the end.
const LEFTOVER_GRACE: Duration = Duration::from_millis(500);

/// Look, and show each finding as soon as it is its turn.
pub(super) fn run(root: &Path, args: &Args) -> Result<ExitCode, Box<dyn Fault>> {
    let terminal = std::io::stdout().is_terminal();
    let report = look(root, |findings| {
        if args.json {
            return Ok(());
        }
        let text: String = findings.iter().map(|finding| shown(finding, terminal)).collect();
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(OutputError)
    })?;
    let end = if args.json { report.json() } else { report.summary() };
    std::io::stdout().write_all(end.as_bytes()).map_err(OutputError)?;
    Ok(ExitCode::from(report.status))
}

/// Look, and let `show` have each check's findings in order.
pub(super) fn look(
    root: &Path,
    mut show: impl FnMut(&[Finding]) -> Result<(), OutputError>,
) -> Result<Report, Box<dyn Fault>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RuntimeError)?;
    let findings = runtime.block_on(async {
        let mut checks = std::pin::pin!(doctor::run(root));
        let mut all = Vec::new();
        while let Some(findings) = checks.next().await {
            show(&findings)?;
            all.extend(findings);
        }
        Ok::<_, OutputError>(all)
    })?;
    runtime.shutdown_timeout(LEFTOVER_GRACE);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        at: error::utc(now.as_secs()),
        status: exit_status(&findings),
        findings,
    })
}

impl Report {
    /// For machines.
    pub(super) fn json(&self) -> String {
        // Texts and numbers can always be written.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// For people: everything, without colours.
    pub(super) fn text(&self) -> String {
        self.findings.iter().map(|finding| shown(finding, false)).collect::<String>() + &self.summary()
    }

    /// `2 errors, 1 warning, 3 unseen; exit status 78`.
    fn summary(&self) -> String {
        let number = |level| self.findings.iter().filter(|finding| finding.level == level).count();
        let plural = |number, word: &str| format!("{number} {word}{}", if number == 1 { "" } else { "s" });
        let (errors, warnings) = (number(Level::Error), number(Level::Warning));
        format!(
            "\n{}, {}, {} unseen; exit status {}\n",
            plural(errors, "error"),
            plural(warnings, "warning"),
            number(Level::Unseen),
            self.status
        )
    }
}

/// One finding in 80 columns.
fn shown(finding: &Finding, terminal: bool) -> String {
    let Finding { id, level, found, meaning, fix, code, .. } = finding;
    let found = match code {
        Some(code) => format!("{found} [{code}]"),
        None => found.clone(),
    };
    let first = format!("{:<LEVEL$}{id}", level.name());
    let mut text = wrapped(&first, LEVEL + ID, &found);
    if terminal && let Some(rest) = text.strip_prefix(level.name()) {
        text = format!("{}{}\x1b[0m{rest}", colour(*level), level.name());
    }
    for (label, said) in [("means", meaning), ("do", fix)] {
        if !said.is_empty() {
            text.push_str(&wrapped(&format!("{:LEVEL$}{label}", ""), LEVEL + 7, said));
        }
    }
    text
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::Ok => "\x1b[32m",
        Level::Note => "\x1b[36m",
        Level::Unseen => "\x1b[35m",
        Level::Warning => "\x1b[33m",
        Level::Error => "\x1b[1;31m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorClass;

    fn finding() -> Finding {
        Finding {
            id: "oss.read",
            level: Level::Error,
            found: "no answer from https://conf-ai.oss-cn-beijing-internal.aliyuncs.com/qwen/".into(),
            meaning: "the list can be read, and the objects cannot".into(),
            fix: "check the grant: oss:GetObject on every object of the model, for the access key of cai.env"
                .into(),
            code: Some("oss.access-denied"),
            class: ErrorClass::Denied,
        }
    }

    #[test]
    fn finding_is_shown_in_80_columns_and_coloured_only_on_terminals() {
        let text = shown(&finding(), false);
        assert_eq!(
            text,
            "error   oss.read            no answer from\n                            \
             https://conf-ai.oss-cn-beijing-internal.aliyuncs.com/qwen/\n                            \
             [oss.access-denied]\n        \
             means  the list can be read, and the objects cannot\n        \
             do     check the grant: oss:GetObject on every object of the model, for\n               \
             the access key of cai.env\n"
        );
        assert_eq!(shown(&finding(), true), text.replacen("error", "\x1b[1;31merror\x1b[0m", 1));
    }

    #[test]
    fn json_has_exactly_the_documented_names() {
        let report = Report { version: "1", at: "now".into(), status: 77, findings: vec![finding()] };
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        let documented = |indent: &str| -> Vec<String> {
            let lines = HELP.lines().filter_map(|line| line.strip_prefix(indent));
            let mut names: Vec<String> = lines
                .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
                .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
                .collect();
            names.sort();
            names
        };
        let names =
            |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&json), documented("  "));
        assert_eq!(names(&json["findings"][0]), documented("    "));
        assert_eq!(json["status"], 77);
        assert_eq!(report.summary(), "\n1 error, 0 warnings, 0 unseen; exit status 77\n");
    }
}
