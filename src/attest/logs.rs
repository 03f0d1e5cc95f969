//! Which event logs go out, in which form: what each generation of verifiers does with a log is known, so a log that it
//! would refuse is found out here, named, and by default left out (kbs.md sections 7.1.1 to 7.1.3).

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha384};

use super::eventlog::{EventLog, EventLogError, LOG_LIMIT, extended};
use super::quote::Quote;
use super::{Verifier, boot};
use crate::config;

/// How the text form of the agents' log starts, before the register's initial value in hex.
const INIT: &str = "INIT sha384/";

/// The logs of this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logs {
    /// The ACPI table `CCEL`'s data.
    pub ccel: Option<Vec<u8>>,
    /// The agents' own log, `/run/attestation-agent/eventlog`.
    pub aael: Option<Vec<u8>>,
}

/// What goes out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selected {
    /// Value of `cc_eventlog`, before base64.
    pub cc: Option<Vec<u8>>,
    /// Value of `aa_eventlog`.
    pub aa: Option<String>,
    /// For [`super::TdxClaims::boot`]; empty unless the log replays to RTMR0 to RTMR2.
    pub boot: BTreeMap<String, Vec<String>>,
    /// What an operator should know.
    pub notices: Vec<String>,
}

/// What `verifier` gets of `logs` beside `quote`.
pub fn select(logs: &Logs, quote: &Quote, verifier: Verifier, choice: config::EventLog) -> Selected {
    let mut selected = Selected::default();
    if choice == config::EventLog::Never {
        selected.notices.push("event logs are left out: attest.event_log is \"never\"".into());
        return selected;
    }
    let agents = logs.aael.as_deref().filter(|log| !log.is_empty()).map(Agents::from);
    let always = choice == config::EventLog::Always;
    match (verifier, agents) {
        (Verifier::Legacy, Some(Agents::Text(text))) => {
            selected.agents_text(text, quote, always);
            selected.boot_log(logs, &[], quote, verifier, always);
        }
        (Verifier::Current, Some(Agents::Binary(events))) => {
            selected.boot_log(logs, events, quote, verifier, always);
        }
        (_, agents) => {
            if let Some(agents) = agents {
                selected.notices.push(format!(
                    "the agents' event log is left out: it is {}, which this generation of verifiers does not read",
                    agents.form()
                ));
            }
            selected.boot_log(logs, &[], quote, verifier, always);
        }
    }
    selected
}

/// The agents' log, by its form (kbs.md 7.1.3).
enum Agents<'a> {
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

impl<'a> From<&'a [u8]> for Agents<'a> {
    fn from(log: &'a [u8]) -> Self {
        if log.starts_with(b"INIT ") { Agents::Text(log) } else { Agents::Binary(log) }
    }
}

impl Agents<'_> {
    fn form(&self) -> &'static str {
        match self {
            Agents::Text(_) => "text",
            Agents::Binary(_) => "binary",
        }
    }
}

impl Selected {
    /// The agents' log as text of its own: it must replay to RTMR3.
    fn agents_text(&mut self, text: &[u8], quote: &Quote, always: bool) {
        let [.., rtmr3] = quote.rtmrs;
        let text = std::str::from_utf8(text).ok();
        let trouble = match text.and_then(replay_text) {
            None => Some("it cannot be read".to_owned()),
            Some(state) if state != rtmr3 => Some(differs(3, &state, &rtmr3)),
            Some(_) => None,
        };
        let kept = self.judge("the agents' event log", trouble, always);
        self.aa = text.filter(|_| kept).map(str::to_owned);
    }

    /// The boot log with the agents' binary events behind it.
    fn boot_log(&mut self, logs: &Logs, agents: &[u8], quote: &Quote, verifier: Verifier, always: bool) {
        let name = if agents.is_empty() { "the boot event log" } else { "the event log of boot and agents" };
        let ccel = logs.ccel.as_deref().filter(|log| !log.is_empty());
        if ccel.is_none() {
            self.notices.push(
                "this machine has no boot event log (ACPI table CCEL): policies on kernel, initrd and command line \
                 cannot match"
                    .into(),
            );
            if agents.is_empty() {
                return;
            }
        }
        let log = match read(ccel, agents) {
            Ok(log) => log,
            Err(error) => {
                let kept = self.judge(name, Some(error.to_string()), always);
                self.cc = ccel.filter(|log| kept && log.len() <= LOG_LIMIT).map(<[u8]>::to_vec);
                return;
            }
        };
        let replayed = log.replay();
        let differing = |registers: usize| {
            let pairs = replayed.iter().zip(&quote.rtmrs).enumerate().take(registers);
            pairs.filter(|(_, (log, quote))| log != quote).map(|(at, (log, quote))| differs(at, log, quote))
        };
        if differing(3).next().is_none() {
            self.boot = boot::values(log.events(), verifier);
        }
        let trouble: Vec<String> = match verifier {
            Verifier::Legacy => {
                let remark = log.events().iter().any(|event| event.is_remark());
                let remark = remark.then(|| "it has remarks that this generation cannot read".to_owned());
                differing(3).chain(remark).collect()
            }
            Verifier::Current => differing(4).collect(),
        };
        let trouble = (!trouble.is_empty()).then(|| trouble.join("; "));
        if self.judge(name, trouble, always) {
            self.cc = Some(log.trimmed());
        }
    }

    /// Whether a log goes out. What is wrong with it is noted either way.
    fn judge(&mut self, log: &str, trouble: Option<String>, always: bool) -> bool {
        if let Some(trouble) = &trouble {
            let fate = if always {
                "sent, as attest.event_log demands, but"
            } else {
                "left out (attest.event_log = \"always\" sends it):"
            };
            self.notices.push(format!("{log} is {fate} {trouble}"));
        }
        trouble.is_none() || always
    }
}

fn read<'a>(ccel: Option<&'a [u8]>, agents: &'a [u8]) -> Result<EventLog<'a>, EventLogError> {
    let mut log = ccel.map_or_else(|| Ok(EventLog::empty()), EventLog::parse)?;
    log.append(agents)?;
    Ok(log)
}

fn differs(register: usize, log: &[u8; 48], quote: &[u8; 48]) -> String {
    let (log, quote) = (hex::encode(log), hex::encode(quote));
    format!("RTMR{register} replays to {log}, the quote has {quote}")
}

/// RTMR3 as the text form leaves it; `None` where the text is none.
pub fn replay_text(text: &str) -> Option<[u8; 48]> {
    let mut lines = text.lines();
    let mut state = [0; 48];
    hex::decode_to_slice(lines.next()?.strip_prefix(INIT)?, &mut state).ok()?;
    for line in lines {
        state = extended(&state, &Sha384::digest(line).into());
    }
    Some(state)
}

#[cfg(test)]
mod tests;
