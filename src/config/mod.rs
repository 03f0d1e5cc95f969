//! `cai.env` + `cai.toml` -> [`Settings`], or every reason why not at once.
//!
//! ```text
//!  files ─SourceFile─> env_file ─> variables ─┐
//!  (I/O)          └──> tuning (TOML, merged) ─┴─> check (values) ─> Settings + Notices | Problems
//! ```
//!
//! Owns: the files' syntax, the table of [`keys`], validation, messages. Later wins: built-in values, then `cai.toml`,
//! then `cai.toml.d/*.toml` by name, then `cai.env`. Tuning keys and variables are disjoint today, so the last step only
//! says where a key shared in future would be decided. Nothing comes from the process environment.
//!
//! Must not know: who uses the settings. Secrets go from the file's text, which is wiped, into [`crate::keyring::Secret`];
//! values of secret and of unknown keys never enter a message. No threads, no locks; only `files` does I/O.
//!
//! Tested beside the code and in `tests/config_files.rs`, which holds the shipped files against the table.

mod check;
mod check_oss;
mod env_file;
mod files;
mod gateway;
pub mod keys;
mod metrics;
mod redacted;
mod report;
mod settings;
mod summary;
mod tuning;
mod values;
mod variables;

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

pub use gateway::{CertificateRule, Entrance, Gateway};
pub use metrics::MetricsPlace;
pub use redacted::{Redacted, redacted};
pub use report::{Notice, Place, Problem, Problems};
pub use settings::*;
pub use values::PEER_PORT;

use report::{Findings, Reported};
use tuning::Tuning;
use variables::Variables;

/// The variables, as the solution's document has them.
pub const ENV_FILE: &str = "/etc/cai/cai.env";
/// Tuning.
pub const TOML_FILE: &str = "/etc/cai/cai.toml";
/// Tuning in pieces; files named `*.toml` are read in the order of their names.
pub const TOML_DIR: &str = "/etc/cai/cai.toml.d";
/// What the daemon remembers.
pub const STATE_DIR: &str = "/var/lib/cai";
/// Group whose members may read the mounted model unless `mount.gid` names another.
const MODEL_GROUP: &str = "cai-model";

/// One configuration file, read.
pub struct SourceFile {
    /// Name for messages.
    pub name: String,
    /// Its syntax.
    pub kind: FileKind,
    /// Its text, wiped when dropped: it may hold secrets.
    pub text: Zeroizing<String>,
    /// Its permission bits, where it has any.
    pub mode: Option<u32>,
}

/// The syntax of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `cai.env`.
    Env,
    /// `cai.toml` and its drop-ins.
    Toml,
}

/// What the system, not a file, says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Number of group `cai-model`, if it exists.
    pub model_gid: Option<u32>,
    /// Whether this build has the sample attester.
    pub sandbox: bool,
}

impl Facts {
    /// The facts about this machine and this build.
    pub fn here() -> Self {
        let group = nix::unistd::Group::from_name(MODEL_GROUP).ok().flatten();
        Facts { model_gid: group.map(|group| group.gid.as_raw()), sandbox: cfg!(feature = "sandbox") }
    }
}

/// `path`, which is absolute, below `root`.
fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Read and check the configuration below `root` (`/` normally).
///
/// # Errors
/// [`Problems`]: every problem of every file, unreadable files included.
pub fn load(root: &Path) -> Result<(Settings, Vec<Notice>), Problems> {
    let mut findings = Findings::default();
    let mut files = files::tomls(root, &mut findings);
    files.extend(files::env(root, &mut findings));
    let (mut settings, notices) = check_files(&files, root, &Facts::here(), findings)?;
    settings.oss.env_file = Some(under(root, Path::new(ENV_FILE)));
    Ok((settings, notices))
}

/// Read the OSS access key in `env_file` again, and nothing else of it: an operator who renews a temporary key replaces these
/// three variables. Blocking. `None`: no key is set there any more.
///
/// # Errors
/// [`Problems`] with the file or with these variables.
pub fn reread_access_key(env_file: &Path) -> Result<(Option<OssCredentials>, Vec<Notice>), Problems> {
    let mut findings = Findings::default();
    let Some(file) = files::read(env_file, FileKind::Env, &mut findings) else {
        let reported = missing(env_file, &mut findings);
        return findings.conclude(Err(reported));
    };
    let home = Place::file(&file.name);
    let variables = Variables::collect(&[file], home, &mut findings);
    let key = check_oss::access_key(&variables, &mut findings);
    match key {
        // Whatever else is wrong with the file is the next start's business.
        Ok(key) => Ok((key, findings.notices_of("config.secrets-readable"))),
        Err(reported) => findings.conclude(Err(reported)),
    }
}

/// Check files that were read elsewhere, in the order in which later ones win. Pure.
///
/// # Errors
/// [`Problems`], as [`load`].
pub fn parse(files: &[SourceFile], root: &Path, facts: &Facts) -> Result<(Settings, Vec<Notice>), Problems> {
    check_files(files, root, facts, Findings::default())
}

fn check_files(
    files: &[SourceFile],
    root: &Path,
    facts: &Facts,
    mut findings: Findings,
) -> Result<(Settings, Vec<Notice>), Problems> {
    let tuning = Tuning::collect(files, &mut findings);
    let settings = variables(files, root, &mut findings)
        .and_then(|variables| check::settings(&variables, tuning, root, facts, &mut findings));
    findings.conclude(settings)
}

/// The variables of the env file among `files`; that there is none is reported once, not for every variable.
fn variables(files: &[SourceFile], root: &Path, findings: &mut Findings) -> Result<Variables, Reported> {
    let Some(file) = files.iter().rfind(|file| file.kind == FileKind::Env) else {
        return Err(missing(&under(root, Path::new(ENV_FILE)), findings));
    };
    Ok(Variables::collect(files, Place::file(&file.name), findings))
}

/// Report that there is no env file, unless why it cannot be read was reported already.
fn missing(path: &Path, findings: &mut Findings) -> Reported {
    let name = path.display().to_string();
    if findings.has_problem_in(&name) {
        return Reported;
    }
    findings.problem(Problem {
        at: Place::file(&name),
        message: "does not exist".to_owned(),
        expected: "the file with TRUSTEE_URL, MODEL_KEY_ID, MODEL_OSS_BUCKET_PATH, MODEL_OSS_ENDPOINT and \
                   MODEL_MOUNT_POINT; an existing cai.env works as it is"
            .to_owned(),
        got: None,
        example: Some(format!("install -m 0640 -g cai ~/cai.env {name}")),
    })
}

/// What `cai upload` and `cai download` take from the command line instead of a file; each wins over the file.
#[derive(Debug, Clone, Default)]
pub struct OssOverrides {
    /// Like `MODEL_OSS_BUCKET_PATH`.
    pub bucket_path: Option<String>,
    /// Like `MODEL_OSS_ENDPOINT`.
    pub endpoint: Option<String>,
    /// Like `MODEL_OSS_REGION`.
    pub region: Option<String>,
}

/// The object store alone, for tools of the model's owner: from `env_file` (taken as it is, not below `root`), or from
/// the usual file below `root` if it exists; its other variables may be missing or wrong. Tuning as in [`load`].
///
/// # Errors
/// [`Problems`] with what concerns the object store, and every unreadable line.
pub fn load_oss(
    root: &Path,
    env_file: Option<&Path>,
    overrides: OssOverrides,
) -> Result<(Oss, Vec<Notice>), Problems> {
    let mut findings = Findings::default();
    let mut files = files::tomls(root, &mut findings);
    match env_file {
        Some(path) => match files::read(path, FileKind::Env, &mut findings) {
            Some(file) => files.push(file),
            None => {
                let reported = missing(path, &mut findings);
                return findings.conclude(Err(reported));
            }
        },
        None => files.extend(files::env(root, &mut findings)),
    }
    let tuning = Tuning::collect(&files, &mut findings);
    let mut variables = Variables::collect(&files, Place::file("options and cai.env"), &mut findings);
    let options = [
        (&keys::MODEL_OSS_BUCKET_PATH, overrides.bucket_path, "option --bucket-path"),
        (&keys::MODEL_OSS_ENDPOINT, overrides.endpoint, "option --endpoint"),
        (&keys::MODEL_OSS_REGION, overrides.region, "option --region"),
    ];
    for (key, value, option) in options {
        if let Some(value) = value {
            variables.replace(key, value, option);
        }
    }
    let tuning = tuning.as_ref().map_err(|reported| *reported);
    let oss = check_oss::oss(&variables, tuning, root, &mut findings);
    let (mut oss, notices) = findings.conclude(oss)?;
    oss.env_file = Some(env_file.map_or_else(|| under(root, Path::new(ENV_FILE)), Path::to_owned));
    Ok((oss, notices))
}

/// What attesting alone needs, for `cai attest`: tuning, as in [`load`]. Nothing of `cai.env` takes part, so that a machine
/// can be looked at before anybody knows which Trustee and which model it will serve.
///
/// # Errors
/// [`Problems`] with what concerns tuning, and every unreadable file of it.
pub fn load_attest(root: &Path) -> Result<(AttestSettings, Vec<Notice>), Problems> {
    let mut findings = Findings::default();
    let files = files::tomls(root, &mut findings);
    let tuning = Tuning::collect(&files, &mut findings);
    let settings = tuning.and_then(|tuning| {
        let attest = check::attest(&tuning, &Facts::here(), &mut findings)?;
        let (gpu_evidence, protocol) = (tuning.trustee.gpu_evidence, tuning.trustee.protocol);
        Ok(AttestSettings { root: root.to_owned(), attest, gpu_evidence, protocol })
    });
    findings.conclude(settings)
}
