//! The running agent as it describes itself, and its units as the service manager does.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::context::Context;
use super::finding::Finding;
use crate::bus::BusError;
use crate::error::{ErrorClass, Fault as _, chain};
use crate::host::tool;

/// The units of the package; an instance of `cai-helper@` comes and goes with each connection.
const UNITS: [&str; 3] = ["cai.service", "cai-gate.service", "cai-helper.socket"];

/// How long systemctl may take, and what it may say: a dozen short lines for each unit.
const SYSTEMCTL: (Duration, usize) = (Duration::from_secs(10), 16 << 10);

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let mut findings = match context.status().await {
        Ok(status) => described(status),
        Err(error) => vec![silent(error)],
    };
    findings.extend(super::blocking("daemon.units", move || units(&context)).await);
    findings
}

fn silent(error: &BusError) -> Finding {
    match error {
        BusError::NotRunning => {
            Finding::note("daemon.state", "the agent is not running").fixed_by("systemctl start cai")
        }
        error => Finding::unseen("daemon.state", chain(error), error.hint()),
    }
}

/// What it says of itself.
fn described(status: &Value) -> Vec<Finding> {
    let text =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (state, said) = (text(status, "State"), text(status, "StatusText"));
    let found = match state.as_str() {
        "Serving" => Finding::ok("daemon.state", said),
        "Degraded" => Finding::warning("daemon.state", said, "the model is served, and not everything works"),
        "Failed" => Finding::error(
            "daemon.state",
            ErrorClass::Transient,
            said,
            "nothing is served, and the keys are gone",
        )
        .fixed_by("journalctl -u cai"),
        _ => Finding::note("daemon.state", said),
    };
    let mut findings = vec![found];
    let error = status.get("LastError").unwrap_or(&Value::Null);
    if error.get("Code").is_some() {
        let found = format!("{} [{}]", text(error, "Detail"), text(error, "Code"));
        let newest = "the newest failure; it stays shown after a recovery";
        findings.push(match state.as_str() {
            "Serving" => Finding::note("daemon.failure", found).meaning(newest),
            _ => Finding::warning("daemon.failure", found, newest),
        });
        if let Some(last) = findings.last_mut() {
            last.fix = text(error, "Hint");
        }
    }
    let notices = status.get("Notices").and_then(Value::as_array).into_iter().flatten();
    let notice = |notice: &Value| Finding::warning("daemon.notice", notice.as_str().unwrap_or_default(), "");
    findings.extend(notices.map(notice));
    findings
}

fn units(context: &Context) -> Vec<Finding> {
    let unseen = |why: &str| vec![Finding::unseen("daemon.units", why, "systemctl status cai")];
    if !context.is_machine() {
        return unseen("units belong to the machine, not to a directory (--root)");
    }
    let Some(systemctl) = tool::find(Path::new("/"), "systemctl") else {
        return unseen("there is no systemctl");
    };
    let mut arguments = vec!["show", "--property=Id,LoadState,ActiveState,Result,ExecMainStatus"];
    arguments.extend(UNITS);
    match tool::run(&systemctl, &arguments, SYSTEMCTL.0, SYSTEMCTL.1) {
        Ok(said) if said.success => said.text.split("\n\n").filter_map(unit).collect(),
        Ok(said) => unseen(said.text.lines().next().unwrap_or("systemctl failed")),
        Err(error) => unseen(&format!("systemctl: {error}")),
    }
}

/// One unit, from the lines that systemctl shows of it.
fn unit(lines: &str) -> Option<Finding> {
    let value = |name: &str| lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let id = value("Id")?;
    let (load, active) = (value("LoadState")?, value("ActiveState")?);
    let found = format!("{id} is {active}");
    Some(match (load, active) {
        ("not-found", _) => Finding::warning(
            "daemon.units",
            format!("{id} is not installed"),
            "cai was started by hand, or the package is not installed",
        ),
        (_, "failed") => {
            let status = value("ExecMainStatus").unwrap_or("?");
            let found = format!("{found}: {}, exit status {status}", value("Result").unwrap_or("?"));
            Finding::error(
                "daemon.units",
                class_of(status),
                found,
                "systemd does not start it again by itself",
            )
            .fixed_by(format!("journalctl -u {id} -n 50; after the cure: systemctl restart {id}"))
        }
        (_, "active") => Finding::ok("daemon.units", found),
        _ => Finding::note("daemon.units", found),
    })
}

/// The class that an exit status of the agent stands for.
fn class_of(status: &str) -> ErrorClass {
    let classes = [ErrorClass::Denied, ErrorClass::Corrupt, ErrorClass::Config, ErrorClass::Internal];
    let known = classes.into_iter().find(|class| class.exit_code().to_string() == status);
    known.unwrap_or(ErrorClass::Transient)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::doctor::Level;

    #[test]
    fn unit_that_failed_is_an_error_of_the_class_of_its_exit_status() {
        let lines =
            "Id=cai.service\nLoadState=loaded\nActiveState=failed\nResult=exit-code\nExecMainStatus=77";
        let finding = unit(lines).unwrap();
        assert_eq!((finding.level, finding.class), (Level::Error, ErrorClass::Denied));
        assert_eq!(finding.found, "cai.service is failed: exit-code, exit status 77");
        let level = |active: &str| unit(&lines.replace("=failed", active)).unwrap().level;
        assert_eq!((level("=active"), level("=inactive")), (Level::Ok, Level::Note));
        assert_eq!(unit(&lines.replace("=loaded", "=not-found")).unwrap().level, Level::Warning);
        assert_eq!(unit(""), None);
    }

    #[test]
    fn agent_that_serves_keeps_its_last_failure_as_a_note() {
        let status = |state: &str| {
            json!({
                "State": state, "StatusText": format!("{state}: x"), "Notices": ["plain http"],
                "LastError": {"Code": "kbs.denied", "Detail": "no", "Hint": "ask"},
            })
        };
        let levels = |state: &str| -> Vec<Level> {
            described(&status(state)).iter().map(|finding| finding.level).collect()
        };
        assert_eq!(levels("Serving"), [Level::Ok, Level::Note, Level::Warning]);
        assert_eq!(levels("Attesting"), [Level::Note, Level::Warning, Level::Warning]);
        assert_eq!(levels("Failed"), [Level::Error, Level::Warning, Level::Warning]);
        let failure = &described(&status("Degraded"))[1];
        assert_eq!((failure.found.as_str(), failure.fix.as_str()), ("no [kbs.denied]", "ask"));
        assert_eq!(described(&json!({"State": "Serving", "LastError": {}})).len(), 1);
    }
}
