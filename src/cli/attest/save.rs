//! `--save`: evidence as files, for a support case. Everything in them is public: measurements, reports, certificates.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{AttestCliError, Collected};

/// A file to be written.
struct Saved {
    name: &'static str,
    about: &'static str,
    content: Vec<u8>,
}

/// Write everything into `directory`, which must not exist yet.
pub(super) fn save(
    directory: &Path,
    collected: &Collected,
    claims: &str,
    values: &str,
) -> Result<(), AttestCliError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| AttestCliError::Save { path, source }
    };
    let files = files(collected, claims, values)?;
    DirBuilder::new().create(directory).map_err(failed(directory))?;
    for Saved { name, content, .. } in files.iter().chain([&readme(&files)]) {
        let path = directory.join(name);
        let mut file = File::create_new(&path).map_err(failed(&path))?;
        file.write_all(content).map_err(failed(&path))?;
    }
    Ok(())
}

/// Those of the files that are text; the others are in them.
pub(super) fn texts(
    collected: &Collected,
    claims: &str,
    values: &str,
) -> Result<Vec<(String, String)>, AttestCliError> {
    let text = |file: Saved| Some((format!("evidence/{}", file.name), String::from_utf8(file.content).ok()?));
    Ok(files(collected, claims, values)?.into_iter().filter_map(text).collect())
}

fn readme(files: &[Saved]) -> Saved {
    let lines = files.iter().map(|file| format!("{:<26}{}\n", file.name, file.about));
    let text = format!(
        "Evidence of one machine, collected by cai {} with `cai attest --save`. Nothing here is secret.\n\n{}",
        env!("CARGO_PKG_VERSION"),
        lines.collect::<String>()
    );
    Saved { name: "README", about: "", content: text.into_bytes() }
}

fn files(collected: &Collected, claims: &str, values: &str) -> Result<Vec<Saved>, AttestCliError> {
    let object: Value =
        serde_json::from_str(collected.evidence.object.get()).map_err(AttestCliError::Json)?;
    let decoded = |text: &str| STANDARD.decode(text).ok();
    let quote = object.get("quote").and_then(Value::as_str).and_then(decoded);
    let boot_log = collected.logs.ccel.as_deref().and_then(decoded);
    let agent_log = collected.logs.aael.as_deref().and_then(decoded);
    let always = [
        Saved {
            name: "evidence.json",
            about: "primary evidence, as a key broker gets it",
            content: collected.evidence.object.get().into(),
        },
        Saved { name: "claims.json", about: "what it says, as cai attest --json", content: claims.into() },
        Saved {
            name: "reference-values.json",
            about: "as cai attest --reference-values",
            content: values.into(),
        },
    ];
    let sometimes = [
        ("additional-evidence.json", "evidence of devices, as sent beside the primary", {
            let text = collected.additional.as_bytes();
            (!text.is_empty()).then(|| text.to_vec())
        }),
        ("quote.bin", "the TDX quote alone", quote),
        ("ccel.bin", "boot event log, the whole ACPI table CCEL, sent or not", boot_log),
        ("aael.bin", "the agents' event log, sent or not", agent_log),
    ];
    let sometimes = sometimes
        .into_iter()
        .filter_map(|(name, about, content)| Some(Saved { name, about, content: content? }));
    Ok(always.into_iter().chain(sometimes).collect())
}
