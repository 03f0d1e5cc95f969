//! The configuration as it may be shown to others: what is known not to be secret, and nothing else.
//!
//! Values of secret and of unknown keys are left out, and so are comments: an old key that was commented out is still a key. What
//! was left out is handed over as well, in memory that is wiped, for whoever has to look for it elsewhere.

use std::path::Path;

use toml_edit::{Document, Item, TableLike};
use zeroize::Zeroizing;

use super::env_file;
use super::files;
use super::keys::{self, Form};
use super::report::Findings;
use super::{FileKind, SourceFile};

/// What stands in the place of what was left out.
const REMOVED: &str = "[REMOVED]";

/// Every file, and what must not be seen of them.
#[derive(Default)]
pub struct Redacted {
    /// Name and text of each file.
    pub files: Vec<(String, String)>,
    /// What was left out and from where: `/etc/cai/cai.env:6: MODEL_OSS_SECRET_ACCESS_KEY`.
    pub removed: Vec<String>,
    /// Why a file is not here.
    pub missing: Vec<String>,
    /// The values that were left out.
    pub secrets: Vec<Zeroizing<String>>,
}

/// The configuration below `root`, valid or not.
pub fn redacted(root: &Path) -> Redacted {
    let mut findings = Findings::default();
    let mut files = files::tomls(root, &mut findings);
    files.extend(files::env(root, &mut findings));
    let mut redacted = Redacted::default();
    for file in &files {
        let text = match file.kind {
            FileKind::Env => redacted.env(file),
            FileKind::Toml => redacted.toml(file),
        };
        redacted.files.push((file.name.clone(), text));
    }
    if let Err(problems) = findings.conclude(Ok(())) {
        redacted.missing =
            problems.problems.iter().map(|problem| format!("{}: {}", problem.at, problem.message)).collect();
    }
    redacted
}

impl Redacted {
    fn remove(&mut self, from: String, value: &str) {
        self.removed.push(from);
        self.hide(value);
    }

    fn hide(&mut self, value: &str) {
        self.secrets.push(Zeroizing::new(value.to_owned()));
    }

    fn env(&mut self, file: &SourceFile) -> String {
        let mut text = format!("# values as {} has them, without comments\n", file.name);
        for found in env_file::read(&file.text) {
            match found {
                Ok(assignment) => {
                    let (name, value) = (assignment.name, assignment.value.as_str());
                    let at = format!("{}:{}", file.name, assignment.line);
                    match keys::ENV.iter().find(|key| key.name == name).map(|key| key.form) {
                        Some(Form::Secret(_)) if value.is_empty() => text.push_str(&format!("{name}=\n")),
                        Some(form) if !matches!(form, Form::Secret(_)) => {
                            let value = self.without_user(value);
                            text.push_str(&format!("{name}={value:?}\n"));
                        }
                        _ => {
                            // Half of a broken secret reads like an assignment.
                            let shown = shown_name(name).unwrap_or_else(|| {
                                self.hide(name);
                                REMOVED
                            });
                            text.push_str(&format!("{shown}={REMOVED}\n"));
                            self.remove(format!("{at}: {shown}"), value);
                        }
                    }
                }
                Err(unreadable) => {
                    text.push_str(&format!("# line {}: {REMOVED}, it is not readable\n", unreadable.line));
                    let line = file.text.lines().nth(unreadable.line.saturating_sub(1)).unwrap_or_default();
                    self.remove(format!("{}:{}: the whole line", file.name, unreadable.line), line.trim());
                }
            }
        }
        self.commented_out(&file.text);
        text
    }

    /// Secrets in comments.
    fn commented_out(&mut self, text: &str) {
        let comments = text.lines().filter_map(|line| line.trim_start().strip_prefix('#'));
        for assignment in
            comments.flat_map(|comment| env_file::read(comment.trim_start_matches('#'))).flatten()
        {
            let key = keys::ENV.iter().find(|key| key.name == assignment.name);
            if key.is_some_and(|key| matches!(key.form, Form::Secret(_))) {
                self.hide(&assignment.value);
            }
        }
    }

    /// A URL without the password that does not belong into it; any other value as it is.
    fn without_user(&mut self, value: &str) -> String {
        let whole = || value.to_owned();
        let Some((scheme, rest)) = value.split_once("://") else { return whole() };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let Some((user, _)) = authority.rsplit_once('@') else { return whole() };
        self.hide(user.split_once(':').map_or(user, |(_, password)| password));
        format!("{scheme}://{REMOVED}{}", rest.strip_prefix(user).unwrap_or_default())
    }

    fn toml(&mut self, file: &SourceFile) -> String {
        let Ok(document) = Document::parse(file.text.as_str()) else {
            self.removed.push(format!("{}: all of it, it is not readable as TOML", file.name));
            for word in file.text.split(['"', '\'', '\n', '=', ' ']).filter(|word| word.len() >= UNKNOWN_LEN)
            {
                self.hide(word);
            }
            return format!("# {REMOVED}: not readable as TOML\n");
        };
        let mut text = format!("# values as {} has them, without comments\n", file.name);
        self.table(&file.name, "", document.as_table(), &mut text);
        text
    }

    fn table(&mut self, file: &str, above: &str, table: &dyn TableLike, text: &mut String) {
        for (name, item) in table.iter() {
            let name = if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") };
            match (item, keys::TOML.iter().any(|key| key.name == name)) {
                (Item::Value(value), true) => {
                    let value = self.without_user(&value.clone().decorated("", "").to_string());
                    text.push_str(&format!("{name} = {value}\n"));
                }
                (Item::Table(inside), false) => self.table(file, &name, inside, text),
                (item, _) => {
                    text.push_str(&format!("{} = {REMOVED}\n", shown_name(&name).unwrap_or(REMOVED)));
                    let value = Zeroizing::new(item.to_string());
                    self.remove(
                        format!("{file}: {}", shown_name(&name).unwrap_or(REMOVED)),
                        value.trim().trim_matches('"'),
                    );
                }
            }
        }
    }
}

/// Words of an unreadable file that are shorter are no secret that could be looked for elsewhere.
const UNKNOWN_LEN: usize = 8;

/// A name that cannot be half of a secret: those are of mixed case.
fn shown_name(name: &str) -> Option<&str> {
    let has = |kind: fn(&char) -> bool| name.chars().any(|c| kind(&c));
    (!(has(char::is_ascii_lowercase) && has(char::is_ascii_uppercase))).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(env: &str, toml: &str) -> Redacted {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/cai");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("cai.env"), env).unwrap();
        std::fs::write(etc.join("cai.toml"), toml).unwrap();
        redacted(root.path())
    }

    #[test]
    fn known_values_that_are_no_secrets_are_shown_and_everything_else_is_not() {
        let env = "TRUSTEE_URL='http://me:hunter22@kbs/'  # S-comment\nMODEL_OSS_SECRET_ACCESS_KEY=S-secret\n\
            MODEL_OSS_SESSION_TOKEN=\n#MODEL_OSS_SESSION_TOKEN=S-old\nMODEL_SECRET=S-unknown\nAbC4==S-half\nS-broken line\n";
        let toml = "[oss]\nconcurrency = 8\nproxy = \"http://p:S-proxy@h:1\"\npassword = \"S-toml\"\n[extra]\nx = 'S-x'\n";
        let redacted = of(env, toml);
        let texts: Vec<&str> = redacted.files.iter().map(|(_, text)| text.as_str()).collect();
        let (toml, env) = (texts[0], texts[1]);
        assert!(env.ends_with(
            "TRUSTEE_URL=\"http://[REMOVED]@kbs/\"\nMODEL_OSS_SECRET_ACCESS_KEY=[REMOVED]\nMODEL_OSS_SESSION_TOKEN=\n\
             MODEL_SECRET=[REMOVED]\n[REMOVED]=[REMOVED]\n# line 7: [REMOVED], it is not readable\n"
        ), "{env}");
        assert!(
            toml.contains("oss.concurrency = 8\n") && toml.contains("oss.password = [REMOVED]\n"),
            "{toml}"
        );
        assert!(toml.contains("oss.proxy = \"http://[REMOVED]@h:1\"\n"), "{toml}");
        assert!(toml.contains("extra.x = [REMOVED]\n"), "{toml}");
        let secrets: Vec<&str> = redacted.secrets.iter().map(|secret| secret.as_str()).collect();
        for secret in
            ["hunter22", "S-secret", "S-old", "S-unknown", "AbC4", "S-broken line", "S-proxy", "S-toml"]
        {
            assert!(secrets.contains(&secret), "{secret} in {secrets:?}");
        }
        assert!(redacted.removed.iter().any(|from| from.ends_with("cai.env:2: MODEL_OSS_SECRET_ACCESS_KEY")));
        assert_eq!(redacted.missing, [""; 0]);
    }

    #[test]
    fn toml_that_cannot_be_read_is_left_out_as_a_whole() {
        let redacted = of("", "[oss\nsecret = \"S-planted-here\"\n");
        assert_eq!(redacted.files[0].1, "# [REMOVED]: not readable as TOML\n");
        assert!(redacted.secrets.iter().any(|secret| secret.as_str() == "S-planted-here"));
    }
}
