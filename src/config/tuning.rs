//! The tuning keys of `cai.toml` and `cai.toml.d/*.toml`: every value checked against the table, then merged.
//!
//! Two steps, because they answer different questions. Checking walks every file with positions and lists every problem
//! at once; merging (the `config` crate) decides which file wins and gives typed values.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use config::{Config, ConfigError, File, FileFormat};
use serde::Deserialize;
use toml_edit::{Document, Item, TableLike};

use super::gateway::CertificateRule;
use super::keys::{self, Default, Key};
use super::report::{Findings, Place, Problem, Reported};
use super::settings::{
    Addressing, CacheMode, CredentialChoice, EventLog, GpuForm, KeyAlgorithm, Metadata, MountMode,
    PeerAttestation, Protocol, QuoteChoice, Signature, TeeChoice,
};
use super::{FileKind, SourceFile};

/// The merged values of `cai.toml`, as far as types go; the table's ranges and grammars hold for each.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tuning {
    pub(super) trustee: Trustee,
    pub(super) attest: Attest,
    #[serde(default)]
    pub(super) model: Model,
    pub(super) sam: Sam,
    pub(super) oss: Oss,
    pub(super) mount: Mount,
    pub(super) cache: Cache,
    pub(super) gateway: Gateway,
    pub(super) peer: Peer,
    #[serde(default)]
    pub(super) metrics: Metrics,
    /// Where each key was last set.
    #[serde(skip)]
    places: BTreeMap<&'static str, Place>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trustee {
    pub(super) require_https: bool,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) protocol: Protocol,
    pub(super) key_algorithm: KeyAlgorithm,
    pub(super) token_cert: Option<PathBuf>,
    pub(super) gpu_evidence: GpuForm,
    pub(super) timeout_secs: u64,
    pub(super) retry_limit_secs: u64,
    pub(super) reattest_interval_secs: u64,
    pub(super) grace_secs: u64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attest {
    pub(super) tee: TeeChoice,
    pub(super) quote: QuoteChoice,
    pub(super) event_log: EventLog,
    pub(super) require_gpu: Option<bool>,
}

/// No key of the section has a value that is built in, so it may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Model {
    pub(super) publisher_key: Option<String>,
    pub(super) manifest_sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sam {
    pub(super) adapter_sha256: Option<String>,
    pub(super) key_id: Option<String>,
    pub(super) ready_timeout_secs: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Oss {
    pub(super) credentials: CredentialChoice,
    pub(super) ram_role: Option<String>,
    pub(super) metadata: Metadata,
    pub(super) role_arn: Option<String>,
    pub(super) oidc_provider_arn: Option<String>,
    pub(super) oidc_token_file: Option<PathBuf>,
    pub(super) sts_endpoint: String,
    pub(super) signature: Signature,
    pub(super) addressing: Addressing,
    pub(super) proxy: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) concurrency: usize,
    pub(super) bandwidth_limit: Size,
    pub(super) timeout_secs: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) uid: u32,
    pub(super) gid: Option<u32>,
    pub(super) permissions: String,
    pub(super) mode: MountMode,
    pub(super) memory_bytes: Size,
    pub(super) idle_secs: u64,
    pub(super) threads: usize,
    pub(super) readahead_kib: u32,
    pub(super) read_timeout_secs: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cache {
    pub(super) dir: PathBuf,
    pub(super) mode: CacheMode,
    pub(super) size_bytes: Size,
    pub(super) reserve_bytes: Size,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) listen: Option<String>,
    pub(super) backend: Option<String>,
    pub(super) capture_port: u16,
    pub(super) certificate: CertificateRule,
    pub(super) refresh_secs: u64,
    pub(super) plaintext_paths: Vec<String>,
    pub(super) drain_secs: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    pub(super) attestation: PeerAttestation,
    pub(super) port: u16,
    pub(super) upload_limit: Size,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    pub(super) listen: Option<String>,
}

/// A number of bytes, plain or with a unit.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

impl Tuning {
    /// The values of the TOML files among `files`, later ones above earlier ones, all above the built-in ones.
    pub(super) fn collect(files: &[SourceFile], findings: &mut Findings) -> Result<Self, Reported> {
        let tomls: Vec<_> = files.iter().filter(|file| file.kind == FileKind::Toml).collect();
        let mut places = BTreeMap::new();
        let mut sound = Ok(());
        for file in &tomls {
            // Not `and`: every file is checked.
            sound = sound.and(check_file(file, &mut places, findings));
        }
        sound?;
        let mut tuning = merge(&tomls).map_err(|error| {
            findings.problem(Problem {
                at: tomls
                    .last()
                    .map_or_else(|| Place::file("built-in values"), |file| Place::file(&file.name)),
                message: format!("the merged tuning values do not fit together ({error})"),
                expected: "values as in the shipped cai.toml".to_owned(),
                got: None,
                example: None,
            })
        })?;
        tuning.places = places;
        Ok(tuning)
    }

    /// Whether a file, and not only the built-in values, sets `name`.
    pub(super) fn sets(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Where the effective value of `name` was set, for what is found after merging.
    pub(super) fn at(&self, name: &str) -> Place {
        self.places.get(name).cloned().unwrap_or_else(|| Place::file("built-in values"))
    }
}

fn merge(tomls: &[&SourceFile]) -> Result<Tuning, ConfigError> {
    let builtin = File::from_str(&builtin(), FileFormat::Toml);
    let layers = tomls.iter().map(|file| File::from_str(&file.text, FileFormat::Toml));
    let builder =
        layers.fold(Config::builder().add_source(builtin), |builder, layer| builder.add_source(layer));
    builder.build()?.try_deserialize()
}

/// The built-in values as the TOML file that sets them.
fn builtin() -> String {
    keys::TOML.iter().fold(String::new(), |mut text, key| {
        if let Default::Is(value) = key.default {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} = {value}", key.name);
        }
        text
    })
}

/// Check one file: its syntax, and every key against the table.
fn check_file(
    file: &SourceFile,
    places: &mut BTreeMap<&'static str, Place>,
    findings: &mut Findings,
) -> Result<(), Reported> {
    let document = Document::parse(file.text.as_str()).map_err(|error| {
        findings.problem(Problem {
            at: place(file, error.span()),
            message: format!("not TOML: {}", error.message().trim_end_matches('.').replace('\n', ", ")),
            expected: "a TOML file such as the shipped cai.toml".to_owned(),
            got: None,
            example: Some("[oss] on a line of its own, then concurrency = 64".to_owned()),
        })
    })?;
    Walk { file, places, findings }.table("", document.as_table())
}

/// One pass over a file.
struct Walk<'a> {
    file: &'a SourceFile,
    places: &'a mut BTreeMap<&'static str, Place>,
    findings: &'a mut Findings,
}

impl Walk<'_> {
    fn table(&mut self, prefix: &str, table: &dyn TableLike) -> Result<(), Reported> {
        let mut sound = Ok(());
        for (leaf, item) in table.iter() {
            let name = if prefix.is_empty() { leaf.to_owned() } else { format!("{prefix}.{leaf}") };
            let span = table.key(leaf).and_then(toml_edit::Key::span).or_else(|| item.span());
            sound = self.item(&name, place(self.file, span), item).and(sound);
        }
        sound
    }

    fn item(&mut self, name: &str, at: Place, item: &Item) -> Result<(), Reported> {
        if let Some(key) = keys::TOML.iter().find(|key| key.name == name) {
            return self.value(key, at, item);
        }
        let section = keys::TOML
            .iter()
            .any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        match item.as_table_like() {
            // Keys of an unknown section are reported one by one, each with its own suggestion.
            Some(table) if section || !table.is_empty() => self.table(name, table),
            _ if section => Err(self.findings.problem(Problem {
                at,
                message: format!("{name} is a section and has a value"),
                expected: format!("[{name}] on a line of its own"),
                got: None,
                example: keys::TOML.iter().find(|key| key.name.starts_with(name)).map(Key::example_line),
            })),
            _ => Err(self.unknown(name, at)),
        }
    }

    fn value(&mut self, key: &'static Key, at: Place, item: &Item) -> Result<(), Reported> {
        let flaw = match item.as_value() {
            Some(value) => key.form.check(value).err(),
            None => Some("is a value and has a section".into()),
        };
        if let Some(flaw) = flaw {
            let got = item.as_value().map(|value| value.to_string().trim().to_owned());
            return Err(self.findings.problem(key.problem(&at, &flaw, got.as_deref())));
        }
        self.places.insert(key.name, at);
        Ok(())
    }

    /// A key that is not in the table. Its value is not shown: it may be a secret in the wrong file.
    fn unknown(&mut self, name: &str, at: Place) -> Reported {
        let variable = keys::ENV.iter().find(|key| key.name == name);
        let nearest = keys::nearest(name, keys::TOML.iter().map(|key| key.name));
        let suggestion = match (variable, nearest) {
            (Some(_), _) => "; it is a variable of cai.env".to_owned(),
            (None, Some(known)) => format!("; did you mean {known}?"),
            (None, None) => String::new(),
        };
        self.findings.problem(Problem {
            at,
            message: format!("{name} is not a tuning key{suggestion}"),
            expected: format!(
                "one of {}",
                keys::TOML.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
            ),
            got: None,
            example: keys::TOML.iter().find(|key| Some(key.name) == nearest).map(Key::example_line),
        })
    }
}

/// The line of `file` that a span begins on.
fn place(file: &SourceFile, span: Option<std::ops::Range<usize>>) -> Place {
    match span {
        Some(span) => {
            let breaks = file.text.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
            Place::line(&file.name, breaks + 1)
        }
        None => Place::file(&file.name),
    }
}
