//! What a check found, in the one form in which all of them say it.

use std::time::Duration;

use serde::Serialize;

use crate::error::{ErrorClass, Fault, chain};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, nothing to do.
    Note,
    /// Could not be looked at from here.
    Unseen,
    /// cai starts and serves, but not as well or as safely as it could.
    Warning,
    /// cai does not start, or does not serve.
    Error,
}

impl Level {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Unseen => "unseen",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// One thing that was looked at. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable dotted name of what was looked at; never reused for something else.
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What follows from it; empty where nothing does.
    pub meaning: String,
    /// What to do, a command where there is one; empty where nothing is to be done.
    pub fix: String,
    /// Code of the failure behind it (docs/failure-codes.md), where there is one.
    pub code: Option<&'static str>,
    /// What an error does to the exit status; not shown.
    #[serde(skip)]
    pub class: ErrorClass,
}

impl Finding {
    fn new(id: &'static str, level: Level, found: impl Into<String>) -> Self {
        Finding {
            id,
            level,
            found: found.into(),
            meaning: String::new(),
            fix: String::new(),
            code: None,
            class: ErrorClass::Config,
        }
    }

    /// As it should be.
    pub(super) fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Finding::new(id, Level::Ok, found)
    }

    /// Worth knowing.
    pub(super) fn note(id: &'static str, found: impl Into<String>) -> Self {
        Finding::new(id, Level::Note, found)
    }

    /// Could not be looked at; `fix` says how it could.
    pub(super) fn unseen(id: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding::new(id, Level::Unseen, found).fixed_by(fix)
    }

    /// Not as it should be, and no obstacle.
    pub(super) fn warning(id: &'static str, found: impl Into<String>, meaning: impl Into<String>) -> Self {
        Finding::new(id, Level::Warning, found).meaning(meaning)
    }

    /// An obstacle.
    pub(super) fn error(
        id: &'static str,
        class: ErrorClass,
        found: impl Into<String>,
        meaning: impl Into<String>,
    ) -> Self {
        Finding { class, ..Finding::new(id, Level::Error, found).meaning(meaning) }
    }

    /// The failure that the agent would end with, in its own words.
    pub(super) fn fault(id: &'static str, fault: &dyn Fault, meaning: impl Into<String>) -> Self {
        let found = Finding::error(id, fault.class(), chain(fault), meaning).fixed_by(fault.hint());
        Finding { code: Some(fault.code()), ..found }
    }

    /// With what follows from it.
    pub(super) fn meaning(self, meaning: impl Into<String>) -> Self {
        Finding { meaning: meaning.into(), ..self }
    }

    /// With what to do.
    pub(super) fn fixed_by(self, fix: impl Into<String>) -> Self {
        Finding { fix: fix.into(), ..self }
    }
}

/// The errors that no restart mends come first, then what a restart may mend.
const GRAVEST_FIRST: [ErrorClass; 5] = [
    ErrorClass::Config,
    ErrorClass::Denied,
    ErrorClass::Corrupt,
    ErrorClass::Internal,
    ErrorClass::Transient,
];

/// Exit status for these findings: 0 without an error, else that of the gravest class among the errors.
pub fn exit_status<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> u8 {
    let errors = findings.into_iter().filter(|finding| finding.level == Level::Error);
    let classes: Vec<ErrorClass> = errors.map(|finding| finding.class).collect();
    GRAVEST_FIRST.into_iter().find(|class| classes.contains(class)).map_or(0, ErrorClass::exit_code)
}

/// Bytes a second.
pub(super) fn rate(bytes: u64, took: Duration) -> u64 {
    let each_second = u128::from(bytes) * 1_000_000 / took.as_micros().max(1);
    u64::try_from(each_second).unwrap_or(u64::MAX)
}

/// `3 files`, `1 file`.
pub(super) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_is_that_of_the_gravest_error_and_warnings_are_none() {
        let error = |class| Finding::error("a.b", class, "", "");
        let warning = || Finding::warning("a.b", "", "");
        assert_eq!(exit_status(&[]), 0);
        assert_eq!(exit_status(&[warning(), Finding::unseen("a.b", "", ""), Finding::note("a.b", "")]), 0);
        assert_eq!(exit_status(&[warning(), error(ErrorClass::Transient)]), 69);
        assert_eq!(exit_status(&[error(ErrorClass::Transient), error(ErrorClass::Denied)]), 77);
        assert_eq!(exit_status(&[error(ErrorClass::Denied), error(ErrorClass::Config)]), 78);
        assert_eq!(exit_status(&[error(ErrorClass::Internal), error(ErrorClass::Corrupt)]), 65);
    }

    #[test]
    fn levels_are_in_the_order_of_how_bad_they_are() {
        let levels = [Level::Ok, Level::Note, Level::Unseen, Level::Warning, Level::Error];
        assert!(levels.is_sorted());
        assert_eq!(levels.map(Level::name), ["ok", "note", "unseen", "warning", "error"]);
    }
}
