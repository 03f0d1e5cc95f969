//! The variables of `cai.env`: which of them are ours, and what each is worth.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::env_file::{self, Assignment};
use super::keys::{self, Default, Form, Key};
use super::report::{Findings, Place, Problem, Reported};
use super::values::Flaw;
use super::{FileKind, SourceFile};

/// Permission bits that let every local user read a file.
const OTHERS_READ: u32 = 0o004;

/// A value and where it stands.
struct Variable {
    value: Zeroizing<String>,
    at: Place,
}

/// The variables that are set, by key.
pub(super) struct Variables {
    set: BTreeMap<&'static str, Variable>,
    /// The file where a missing variable belongs.
    home: Place,
}

impl Variables {
    /// The variables of the env files among `files`; what is set later wins. Syntax, unknown names and values that
    /// cannot be anything are reported. `home` is the file that a missing variable is expected in.
    pub(super) fn collect(files: &[SourceFile], home: Place, findings: &mut Findings) -> Self {
        let mut variables = Variables { set: BTreeMap::new(), home };
        for file in files.iter().filter(|file| file.kind == FileKind::Env) {
            notice_line_ends(file, findings);
            for found in env_file::read(&file.text) {
                match found {
                    Ok(assignment) => variables.assign(file, assignment, findings),
                    Err(unreadable) => {
                        findings.problem(Problem {
                            at: Place::line(&file.name, unreadable.line),
                            message: unreadable.flaw.into_owned(),
                            expected: "NAME=value, NAME=\"value\", or a comment that begins with #"
                                .to_owned(),
                            got: None,
                            example: Some(keys::TRUSTEE_URL.example_line()),
                        });
                    }
                }
            }
            variables.notice_readers(file, findings);
        }
        variables
    }

    fn assign(&mut self, file: &SourceFile, assignment: Assignment<'_>, findings: &mut Findings) {
        let at = Place::line(&file.name, assignment.line);
        let Some(key) = keys::ENV.iter().find(|key| key.name == assignment.name) else {
            unknown(&at, assignment.name, findings);
            return;
        };
        let value = assignment.value.as_str();
        let placeholder = !matches!(key.form, Form::Secret(_)) && value.contains(['<', '>']);
        let flaw = if assignment.expands {
            Some(
                "holds a $ that docker compose would replace, which cai does not; write the value itself, or \
                  use single quotes if it is meant as it is",
            )
        } else if value.contains(char::is_control) {
            Some("contains a control character or a line break (is a closing quote missing?)")
        } else if placeholder {
            Some("still holds a placeholder in < >")
        } else {
            None
        };
        if let Some(flaw) = flaw {
            findings.problem(key.problem(&at, flaw, Some(value)));
        }
        let new = Variable { value: assignment.value, at };
        if let Some(old) = self.set.insert(key.name, new) {
            findings.notice(
                Place::line(&file.name, assignment.line),
                "config.duplicate",
                format!("{} is set again and replaces {}", key.name, old.at),
                "remove one of the two lines".to_owned(),
            );
        }
    }

    /// Warn when everybody can read a file that holds a secret.
    fn notice_readers(&self, file: &SourceFile, findings: &mut Findings) {
        let secret = |key: &&&Key| matches!(key.form, Form::Secret(_));
        let holds = keys::ENV
            .iter()
            .filter(secret)
            .filter_map(|key| self.set.get(key.name))
            .any(|variable| variable.at.file == file.name && !variable.value.is_empty());
        if holds && file.mode.is_some_and(|mode| mode & OTHERS_READ != 0) {
            findings.notice(
                Place::file(&file.name),
                "config.secrets-readable",
                "holds a secret and can be read by every local user".to_owned(),
                format!("chown root:cai {0} && chmod 0640 {0}", file.name),
            );
        }
    }

    /// Set `key` from somewhere else than a file, above every file.
    pub(super) fn replace(&mut self, key: &'static Key, value: String, origin: &str) {
        self.set.insert(key.name, Variable { value: Zeroizing::new(value), at: Place::file(origin) });
    }

    /// Where `key` is set, or where it belongs.
    pub(super) fn at(&self, key: &Key) -> Place {
        self.set.get(key.name).map_or_else(|| self.home.clone(), |variable| variable.at.clone())
    }

    /// The value of `key`: what is set, else the built-in one. A required key that is missing is a problem.
    pub(super) fn get<T>(
        &self,
        key: &Key,
        findings: &mut Findings,
        parse: impl FnOnce(&str) -> Result<T, Flaw>,
    ) -> Result<T, Reported> {
        match (self.text(key), key.default) {
            (Some(text), _) => self.parsed(key, text, findings, parse),
            (None, Default::Is(text)) => self.parsed(key, text.trim_matches('"'), findings, parse),
            (None, Default::Required | Default::Derived(_)) => {
                Err(findings.problem(key.problem(&self.at(key), "is not set", None)))
            }
        }
    }

    /// The value of `key` if it is set.
    pub(super) fn optional<T>(
        &self,
        key: &Key,
        findings: &mut Findings,
        parse: impl FnOnce(&str) -> Result<T, Flaw>,
    ) -> Result<Option<T>, Reported> {
        self.text(key).map(|text| self.parsed(key, text, findings, parse)).transpose()
    }

    /// The text of `key`; an empty one is the same as none.
    fn text(&self, key: &Key) -> Option<&str> {
        self.set.get(key.name).map(|variable| variable.value.as_str()).filter(|text| !text.trim().is_empty())
    }

    fn parsed<T>(
        &self,
        key: &Key,
        text: &str,
        findings: &mut Findings,
        parse: impl FnOnce(&str) -> Result<T, Flaw>,
    ) -> Result<T, Reported> {
        let at = self.at(key);
        if at.line.is_some() && findings.has_problem(&at) {
            return Err(Reported);
        }
        parse(text.trim()).map_err(|flaw| findings.problem(key.problem(&at, &flaw, Some(text))))
    }
}

/// A name that is none of ours: an error when it looks like one of ours, a notice otherwise. Its value is never shown.
fn unknown(at: &Place, name: &str, findings: &mut Findings) {
    let nearest = keys::nearest(name, keys::ENV.iter().map(|key| key.name));
    let folded = name.to_ascii_uppercase();
    if folded.starts_with("MODEL_") || folded.starts_with("TRUSTEE_") {
        let suggestion = nearest.map_or(String::new(), |known| format!("; did you mean {known}?"));
        findings.problem(Problem {
            at: at.clone(),
            message: format!("{name} is not a variable of cai{suggestion}"),
            expected: format!(
                "one of {}",
                keys::ENV.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
            ),
            got: None,
            example: keys::ENV.iter().find(|key| Some(key.name) == nearest).map(|key| key.example_line()),
        });
    } else {
        let hint = match nearest {
            Some(known) => {
                format!("did you mean {known}? Otherwise remove the line, or leave it: it has no effect")
            }
            None => "remove the line, or leave it: it has no effect".to_owned(),
        };
        // Half of a broken secret such as `AbC4==` reads like an assignment; names are not of mixed case, secrets are.
        let mixed = name.contains(|c: char| c.is_ascii_lowercase())
            && name.contains(|c: char| c.is_ascii_uppercase());
        let name = if mixed { "this" } else { name };
        findings.notice(
            at.clone(),
            "config.foreign",
            format!("{name} is not a variable of cai and is ignored"),
            hint,
        );
    }
}

/// Tell once per file that lines end in CR LF: harmless here, not in other tools that read the same file.
fn notice_line_ends(file: &SourceFile, findings: &mut Findings) {
    if let Some(index) = file.text.split('\n').position(|line| line.ends_with('\r')) {
        findings.notice(
            Place::line(&file.name, index + 1),
            "config.line-ends",
            "lines end in CR LF; the CR is taken for a part of the line end, not of the value".to_owned(),
            format!("sed -i 's/\\r$//' {}", file.name),
        );
    }
}
