//! The configuration, and whether the daemon's user can read it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::context::{AS_ROOT, Configuration, Context};
use super::finding::Finding;
use crate::config::{self, Notice, Problem, Problems};
use crate::error::{ErrorClass, Fault as _};
use crate::host::{self, User};

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    super::blocking("config.valid", move || look(&context)).await
}

fn look(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &context.config {
        Configuration::Unreadable(path) => {
            findings.push(Finding::unseen(
                "config.valid",
                format!("{} is not for this user to read", path.display()),
                AS_ROOT,
            ));
        }
        Configuration::Invalid(Problems { problems, notices }) => {
            findings.extend(problems.iter().map(problem));
            findings.extend(notices.iter().map(notice));
        }
        Configuration::Valid(settings, notices) => {
            let short: String = settings.fingerprint.chars().take(12).collect();
            findings.push(Finding::ok("config.valid", format!("valid, fingerprint {short}")));
            findings.extend(notices.iter().map(notice));
        }
    }
    match context.daemon {
        Some(user) => findings.extend(readable(&context.root, user)),
        None => findings.push(
            Finding::error(
                "config.user",
                ErrorClass::Config,
                format!("there is no user {}", host::DAEMON_USER),
                "the agent has nobody to run as",
            )
            .fixed_by(format!(
                "useradd --system --no-create-home --shell /usr/sbin/nologin {}",
                host::DAEMON_USER
            )),
        ),
    }
    findings
}

fn problem(problem: &Problem) -> Finding {
    let found = format!("{}: {}", problem.at, problem.message);
    let mut meaning = format!("cai does not start; expected {}", problem.expected);
    if let Some(got) = &problem.got {
        meaning.push_str(&format!(", got {got}"));
    }
    let fix = match &problem.example {
        Some(example) => format!("for example: {example}"),
        None => "cai check-config lists every problem".to_owned(),
    };
    let code = Problems { problems: Vec::new(), notices: Vec::new() }.code();
    let finding = Finding::error("config.problem", ErrorClass::Config, found, meaning).fixed_by(fix);
    Finding { code: Some(code), ..finding }
}

fn notice(notice: &Notice) -> Finding {
    let found = format!("{}: {}", notice.at, notice.message);
    Finding::warning("config.notice", found, String::new()).fixed_by(notice.hint.clone())
}

/// Files that the daemon has to read, and cannot.
fn readable(root: &Path, user: User) -> Vec<Finding> {
    let below = |path: &str| root.join(path.trim_start_matches('/'));
    let mut files = vec![below(config::ENV_FILE), below(config::TOML_FILE)];
    if let Ok(entries) = std::fs::read_dir(below(config::TOML_DIR)) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let refused: Vec<PathBuf> = files.into_iter().filter(|path| !can_read(path, user)).collect();
    let finding = |path: PathBuf| {
        let found = format!("{} cannot be read by user {}", path.display(), host::DAEMON_USER);
        Finding::error("config.readable", ErrorClass::Config, found, "cai.service does not start")
            .fixed_by(format!("chown root:{1} {0} && chmod 0640 {0}", path.display(), host::DAEMON_USER))
    };
    let mut findings: Vec<Finding> = refused.into_iter().map(finding).collect();
    if findings.is_empty() {
        let found = format!("every file is {}'s to read", host::DAEMON_USER);
        findings.push(Finding::ok("config.readable", found));
    }
    findings
}

/// Whether the permission bits of `path` let `user` read it; what is not there refuses nobody.
fn can_read(path: &Path, user: User) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return true };
    let mode = metadata.mode();
    let bit = if metadata.uid() == user.uid.as_raw() {
        0o400
    } else if metadata.gid() == user.gid.as_raw() {
        0o040
    } else {
        0o004
    };
    mode & bit != 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::unistd::{Gid, Uid};

    use super::*;

    #[test]
    fn file_that_the_daemon_cannot_read_is_an_error_with_the_command_that_mends_it() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("etc/cai/cai.env");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        let metadata = std::fs::metadata(&file).unwrap();
        let stranger =
            User { uid: Uid::from_raw(metadata.uid() + 1), gid: Gid::from_raw(metadata.gid() + 1) };
        let member = User { gid: Gid::from_raw(metadata.gid()), ..stranger };
        let level = |mode: u32, user| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let findings = readable(root.path(), user);
            assert_eq!(findings.len(), 1);
            (findings[0].level.name(), findings[0].fix.clone())
        };
        assert_eq!(level(0o640, member).0, "ok");
        assert_eq!(level(0o644, stranger).0, "ok");
        let (found, fix) = level(0o640, stranger);
        assert_eq!(found, "error");
        assert_eq!(fix, format!("chown root:cai {0} && chmod 0640 {0}", file.display()));
    }
}
