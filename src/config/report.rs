//! What a check of the configuration found: problems, which stop cai, and notices, which do not.

use std::fmt;

use serde::Serialize;

use crate::error::{ErrorClass, Fault};

/// Where something was found: a file and a line, or what stands in for a file (`option --endpoint`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// File name as it was opened, `--root` included.
    pub file: String,
    /// Line number from 1; `None` means the file as a whole.
    pub line: Option<usize>,
}

impl Place {
    /// The file as a whole.
    pub fn file(name: &str) -> Self {
        Place { file: name.to_owned(), line: None }
    }

    /// One line of a file, counted from 1.
    pub fn line(name: &str, line: usize) -> Self {
        Place { file: name.to_owned(), line: Some(line) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

/// Something that must be changed before cai can start. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where it is.
    pub at: Place,
    /// What is wrong, one phrase without trailing dot.
    pub message: String,
    /// What is allowed there.
    pub expected: String,
    /// What is there, redacted and shortened; `None` where nothing is or where it might be a secret.
    pub got: Option<String>,
    /// A line that would be right.
    pub example: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    expected: {}", self.at, self.message, self.expected)?;
        if let Some(got) = &self.got {
            write!(f, "\n    got:      {got}")?;
        }
        if let Some(example) = &self.example {
            write!(f, "\n    example:  {example}")?;
        }
        Ok(())
    }
}

/// Something the operator should know and cai can live with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Notice {
    /// Where it is.
    pub at: Place,
    /// Stable dotted code, `config.what`.
    pub code: &'static str,
    /// What was noticed, one phrase without trailing dot.
    pub message: String,
    /// What the operator can do about it.
    pub hint: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    hint:     {}", self.at, self.message, self.hint)
    }
}

/// Why the configuration cannot be used: every problem of every file, and the notices beside them.
#[derive(Debug, thiserror::Error)]
pub struct Problems {
    /// At least one, ordered by file and line.
    pub problems: Vec<Problem>,
    /// Ordered by file and line.
    pub notices: Vec<Notice>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {} {plural}", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n{problem}"))
    }
}

impl Fault for Problems {
    fn class(&self) -> ErrorClass {
        ErrorClass::Config
    }

    fn code(&self) -> &'static str {
        "config.invalid"
    }

    fn hint(&self) -> String {
        "correct what is listed, then run `cai check-config`: it checks everything and starts nothing"
            .to_owned()
    }
}

/// There is no value, and the problem that says why is among the findings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reported;

/// Problems and notices while they are being collected.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
    notices: Vec<Notice>,
}

impl Findings {
    /// Add a problem.
    pub(super) fn problem(&mut self, problem: Problem) -> Reported {
        self.problems.push(problem);
        Reported
    }

    /// Add a notice.
    pub(super) fn notice(&mut self, at: Place, code: &'static str, message: String, hint: String) {
        self.notices.push(Notice { at, code, message, hint });
    }

    /// The notices with this code, whatever problems there are.
    pub(super) fn notices_of(self, code: &str) -> Vec<Notice> {
        self.notices.into_iter().filter(|notice| notice.code == code).collect()
    }

    /// Whether `file` has a problem already.
    pub(super) fn has_problem_in(&self, file: &str) -> bool {
        self.problems.iter().any(|problem| problem.at.file == file)
    }

    /// Whether `at` has a problem already.
    pub(super) fn has_problem(&self, at: &Place) -> bool {
        self.problems.iter().any(|problem| problem.at == *at)
    }

    /// `value` and the notices when there is no problem.
    pub(super) fn conclude<T>(mut self, value: Result<T, Reported>) -> Result<(T, Vec<Notice>), Problems> {
        self.problems.sort_by(|a, b| a.at.cmp(&b.at));
        self.notices.sort_by(|a, b| a.at.cmp(&b.at));
        match value {
            Ok(value) if self.problems.is_empty() => Ok((value, self.notices)),
            Ok(_) | Err(Reported) => Err(Problems { problems: self.problems, notices: self.notices }),
        }
    }
}

/// Longest value repeated in a message, in characters: enough for any sane URL, short enough for one journal line.
const SHOWN_CHARS: usize = 120;

/// `text` fit for a message: control characters escaped, user information and query of a URL removed, shortened.
///
/// Values of secret and of unknown keys must not come here at all: a misspelt name may hold a secret.
pub(super) fn shown(text: &str) -> String {
    let text = match text.split_once('?') {
        Some((before, _)) => format!("{before}?..."),
        None => text.to_owned(),
    };
    let text = match text.rsplit_once('@') {
        Some((before, after)) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            if scheme.is_empty() { format!("...@{after}") } else { format!("{scheme}://...@{after}") }
        }
        None => text,
    };
    let escaped: String = text
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    match escaped.char_indices().nth(SHOWN_CHARS) {
        Some((cut, _)) => escaped.get(..cut).unwrap_or_default().to_owned() + "...",
        None => escaped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_url_hides_user_information_and_query() {
        assert_eq!(shown("https://ak:sk@host/p?Signature=s"), "https://...@host/p?...");
        assert_eq!(shown("ak:sk@host"), "...@host");
        assert_eq!(shown("http://a@b:c@host"), "http://...@host");
    }

    #[test]
    fn shown_control_characters_are_escaped_and_long_text_is_cut() {
        assert_eq!(shown("a\r\u{1b}[2J"), "a\\r\\u{1b}[2J");
        let long = shown(&"é".repeat(500));
        assert_eq!(long.chars().count(), SHOWN_CHARS + 3);
    }

    #[test]
    fn problems_display_lists_every_one_with_its_place() {
        let problem = |line| Problem {
            at: Place::line("cai.env", line),
            message: "X is wrong".into(),
            expected: "y".into(),
            got: Some("z".into()),
            example: None,
        };
        let mut findings = Findings::default();
        findings.problem(problem(7));
        findings.problem(problem(2));
        let problems = findings.conclude(Ok(())).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "the configuration has 2 problems\n\
             cai.env:2: X is wrong\n    expected: y\n    got:      z\n\
             cai.env:7: X is wrong\n    expected: y\n    got:      z"
        );
        assert_eq!(problems.class(), ErrorClass::Config);
        assert_eq!(problems.code(), "config.invalid");
    }
}
