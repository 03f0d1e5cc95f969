//! `cai check-config`: read the configuration as `cai run` would, say everything about it, start nothing.
//!
//! Owns: the report's form, for people and as JSON. Must not know: how anything is validated. Tested here.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::config::{self, Credentials, Mount, Notice, Problem, Problems, Settings};
use crate::error::Fault;

/// Arguments of `cai check-config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Check the configuration below `root` and print the report on standard output: success, or the exit status of
/// `ErrorClass::Config` when there are problems.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(root: &Path, args: &Args) -> io::Result<ExitCode> {
    let checked = config::load(root);
    let mut out = io::stdout().lock();
    if args.json { write_json(&mut out, &checked) } else { write_text(&mut out, &checked) }?;
    out.flush()?;
    Ok(match checked {
        Ok(_) => ExitCode::SUCCESS,
        Err(problems) => ExitCode::from(problems.class().exit_code()),
    })
}

type Checked = Result<(Settings, Vec<Notice>), Problems>;

fn write_text(out: &mut impl Write, checked: &Checked) -> io::Result<()> {
    let notices = match checked {
        Ok((_, notices)) => notices,
        Err(problems) => &problems.notices,
    };
    for notice in notices {
        writeln!(out, "notice: {notice}\n")?;
    }
    match checked {
        Ok((settings, _)) => {
            writeln!(out, "the configuration is valid; cai would use")?;
            summary(settings).into_iter().try_for_each(|(name, value)| writeln!(out, "  {name:<12}{value}"))
        }
        Err(problems) => {
            problems.problems.iter().try_for_each(|problem| writeln!(out, "problem: {problem}\n"))?;
            writeln!(out, "{} in all: {}", count(problems.problems.len()), problems.hint())
        }
    }
}

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

/// What an operator wants to see before starting: who is asked for the key, where the bytes come from and go to.
fn summary(settings: &Settings) -> Vec<(&'static str, String)> {
    let Settings { trustee, oss, mount, cache, .. } = settings;
    let authentication = match (trustee.url.scheme(), &trustee.ca_file) {
        ("http", _) => "NOT authenticated: the URL is plain http".to_owned(),
        (_, Some(file)) => format!("authenticated by a certificate from {}", file.display()),
        (_, None) => "authenticated by a certificate from a public authority".to_owned(),
    };
    let access = match &oss.credentials {
        Credentials::Anonymous => "anonymous".to_owned(),
        Credentials::Static(key) if key.session_token.is_some() => {
            format!("AccessKey {} with session token", key.access_key_id)
        }
        Credentials::Static(key) => format!("AccessKey {}", key.access_key_id),
        Credentials::EcsRamRole(role) => {
            format!(
                "RAM role {} of this machine",
                role.name.as_deref().unwrap_or("(as the metadata service says)")
            )
        }
        Credentials::Oidc(oidc) => format!("{} by OIDC", oidc.role_arn),
    };
    let region = oss.region.as_deref().unwrap_or("not known");
    let Mount { uid, gid, permissions, .. } = mount;
    let mut lines = vec![
        ("trustee", trustee.url.to_string()),
        ("", authentication),
        ("key", trustee.key_id.clone()),
        ("model", format!("{} at {}", oss.location(), oss.endpoint)),
        ("", format!("region {region}, access {access}")),
        (
            "mount",
            format!("{}, owner {uid}, group {gid}, permissions {permissions:04o}", mount.point.display()),
        ),
        ("cache", format!("{}, {} bytes left free", cache.dir.display(), cache.reserve_bytes)),
    ];
    lines.extend(settings.service_port.map(|port| ("service", format!("port {port}"))));
    if !settings.peer.addresses.is_empty() {
        let peers: Vec<_> = settings.peer.addresses.iter().map(ToString::to_string).collect();
        lines.push(("peers", peers.join(" ")));
    }
    lines.push(("fingerprint", settings.fingerprint.clone()));
    lines
}

/// The report as JSON. Only additive change.
#[derive(Serialize)]
struct Report<'a> {
    valid: bool,
    problems: &'a [Problem],
    notices: &'a [Notice],
    /// Every key with the value in effect, secrets left out; only when valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    effective: Option<BTreeMap<&'static str, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fingerprint: Option<&'a str>,
}

fn write_json(out: &mut impl Write, checked: &Checked) -> io::Result<()> {
    let report = match checked {
        Ok((settings, notices)) => Report {
            valid: true,
            problems: &[],
            notices,
            effective: Some(settings.effective().into_iter().collect()),
            fingerprint: Some(&settings.fingerprint),
        },
        Err(Problems { problems, notices }) => {
            Report { valid: false, problems, notices, effective: None, fingerprint: None }
        }
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Facts, FileKind, SourceFile};

    fn checked(env: &str) -> Checked {
        let file = SourceFile {
            name: "cai.env".to_owned(),
            kind: FileKind::Env,
            text: env.to_owned().into(),
            mode: Some(0o640),
        };
        config::parse(&[file], Path::new("/"), &Facts { model_gid: Some(990), sandbox: false })
    }

    const VALID: &str = "TRUSTEE_URL=http://trustee.example.com/cai/\n\
        MODEL_KEY_ID=kbs:///default/aliyun/key\n\
        MODEL_OSS_BUCKET_PATH=conf-ai:/qwen/\n\
        MODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com\n\
        MODEL_OSS_ACCESS_KEY_ID=LTAI5t\n\
        MODEL_OSS_SECRET_ACCESS_KEY=hunter2\n\
        MODEL_MOUNT_POINT=/tmp/model\n";

    fn text(env: &str) -> String {
        let mut out = Vec::new();
        write_text(&mut out, &checked(env)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_of_a_valid_configuration_says_what_would_be_used_and_that_http_is_not_authenticated() {
        let text = text(VALID);
        let (body, fingerprint) = text.rsplit_once("  fingerprint ").unwrap();
        assert_eq!(fingerprint.trim().len(), 64);
        assert_eq!(
            body,
            "notice: cai.env:1: TRUSTEE_URL is plain http: the server is not authenticated\n    \
             hint:     whoever sits in between can answer in the Trustee's place; use an https URL and set \
             trustee.require_https = true\n\n\
             the configuration is valid; cai would use\n  \
               trustee     http://trustee.example.com/cai\n              \
             NOT authenticated: the URL is plain http\n  \
               key         kbs:///default/aliyun/key\n  \
               model       conf-ai:/qwen/ at https://oss-cn-beijing.aliyuncs.com/\n              \
             region cn-beijing, access AccessKey LTAI5t\n  \
               mount       /tmp/model, owner 0, group 990, permissions 0440\n  \
               cache       /var/cache/cai, 1073741824 bytes left free\n"
        );
    }

    #[test]
    fn text_of_an_invalid_configuration_lists_every_problem() {
        let text = text("TRUSTEE_URL=ftp://x\nMODEL_KEYID=kbs:///a/b/c\n");
        assert!(text.contains(
            "problem: cai.env:1: TRUSTEE_URL is neither http nor https\n    \
             expected: an http:// or https:// URL with a host, without user, query, fragment and /kbs/v0\n    \
             got:      ftp://x\n    \
             example:  TRUSTEE_URL=\"https://trustee.example.com/cai\"\n"
        ));
        assert!(text.contains(
            "problem: cai.env:2: MODEL_KEYID is not a variable of cai; did you mean MODEL_KEY_ID?\n"
        ));
        assert!(text.contains("problem: cai.env: MODEL_MOUNT_POINT is not set\n"));
        assert!(text.ends_with(
            "6 problems in all: correct what is listed, then run `cai check-config`: it checks everything and starts \
             nothing\n"
        ));
    }

    #[test]
    fn json_holds_problems_or_effective_values_and_never_the_secret() {
        let json = |env: &str| {
            let mut out = Vec::new();
            write_json(&mut out, &checked(env)).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(!text.contains("hunter2"));
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        let valid = json(VALID);
        assert_eq!(valid["valid"], true);
        assert_eq!(valid["effective"]["MODEL_OSS_SECRET_ACCESS_KEY"], "set");
        assert_eq!(valid["notices"][0]["code"], "config.trustee-http");
        let invalid = json("MODEL_OSS_SECRET_ACCESS_KEY=hunter2\n");
        assert_eq!(invalid["valid"], false);
        assert_eq!(invalid["problems"][5]["at"]["line"], 1);
        assert_eq!(invalid.get("effective"), None);
    }

    #[test]
    fn run_without_any_file_reports_the_missing_one_and_exits_with_the_status_for_configuration() {
        let root = tempfile::tempdir().unwrap();
        let code = run(root.path(), &Args { json: true }).unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(78)));
    }
}
