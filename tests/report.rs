//! Claim: `cai report` makes one archive with what support needs, and no secret is in it, in whatever form it got there.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use common::install_program;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sandbox::Builder;
use world::{SECRET, World};

/// Planted where the configuration has it: an old key in a comment, a token, an unknown variable, a password in a URL.
const OLD: &str = "0ld+key/in=a comment";
const TOKEN: &str = "CAIS+planted/token==0123456789";
const FOREIGN: &str = "planted foreign value";
const PROXY: &str = "planted-proxy-pass";
/// Planted in the journal alone: nobody knows them, they only look like secrets.
const JWT: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJl";
const BEARER: &str = "planted0bearer0token0";
const USER: &str = "planted-user-pass";

/// Base64 that is cut off anywhere.
const CUT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Every form in which a secret may have got into a text.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![
        secret.to_owned(),
        serde_json::to_string(secret).unwrap(),
        utf8_percent_encode(secret, NON_ALPHANUMERIC).to_string(),
        hex::encode(secret),
        hex::encode_upper(secret),
    ];
    for before in ["", "x", "xy"] {
        let whole = format!("{before}{secret}z");
        forms.extend([
            STANDARD.encode(&whole),
            STANDARD_NO_PAD.encode(&whole),
            URL_SAFE_NO_PAD.encode(&whole),
        ]);
    }
    forms
}

/// A `journalctl` that prints `lines` below `root`.
fn journal(root: &Path, lines: &str) {
    let script = format!("#!/bin/sh\nexec cat {}/journal\n", root.display());
    install_program(&root.join("usr/bin/journalctl"), &script);
    fs::write(root.join("journal"), lines).unwrap();
}

fn report(world: &World, arguments: &[&str]) -> (Output, PathBuf) {
    let archive = world.path("report.tar.gz");
    let mut command = world.on_bus(env!("CARGO_BIN_EXE_cai"));
    let output =
        command.arg("--root").arg(world.root()).arg("report").arg("--output").arg(&archive).args(arguments);
    (output.output().unwrap(), archive)
}

/// Names below the archive's one directory, and texts.
fn unpack(archive: &Path) -> BTreeMap<String, String> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(archive).unwrap()));
    let mut files = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let (directory, name) = name.split_once('/').unwrap();
        assert!(directory.starts_with("cai-report-20"), "{directory}");
        assert_eq!(entry.header().mode().unwrap(), 0o600);
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        assert!(files.insert(name.to_owned(), text).is_none());
    }
    files
}

/// Whether `text` holds `secret`: as it is, escaped, in hexadecimal or in base64, wherever either begins. Looks by decoding, which the
/// redaction does not.
fn holds(text: &str, secret: &str) -> bool {
    let in_bytes = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    if text.contains(secret)
        || in_bytes(&percent_decode_str(text).collect::<Vec<u8>>())
        || text.replace('\\', "").contains(secret)
    {
        return true;
    }
    let runs = |of: fn(char) -> bool| {
        text.split(move |c: char| !of(c))
            .filter(|run| run.len() >= secret.len())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let hex = runs(|c| c.is_ascii_hexdigit()).into_iter().any(|run| {
        (0..2).any(|start| {
            let run = &run[start..];
            hex::decode(&run[..run.len() & !1]).is_ok_and(|bytes| in_bytes(&bytes))
        })
    });
    let base64 = runs(|c| c.is_ascii_alphanumeric() || "+/-_".contains(c)).into_iter().any(|run| {
        let run = run.replace('-', "+").replace('_', "/");
        (0..4).any(|start| {
            let run = &run[start..];
            // One character alone is no byte.
            let whole = &run[..run.len() - usize::from(run.len() % 4 == 1)];
            CUT.decode(whole).is_ok_and(|bytes| in_bytes(&bytes))
        })
    });
    hex || base64
}

fn assert_nothing_of(secrets: &[&str], archive: &Path, files: &BTreeMap<String, String>) {
    let packed = fs::read(archive).unwrap();
    for secret in secrets {
        assert!(
            !packed.windows(secret.len()).any(|window| window == secret.as_bytes()),
            "{secret} in the archive's bytes"
        );
        for (name, text) in files {
            assert!(!holds(name, secret) && !holds(text, secret), "{secret} in {name}:\n{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn report_of_a_serving_machine_has_everything_and_no_secret() {
    let Some(mut world) = World::with_small_model().await else { return };
    let key = sandbox::ACCESS_KEY_SECRET;
    world.env.push_str(&format!("#MODEL_OSS_SECRET_ACCESS_KEY='{OLD}'\nVLLM_EXTRA=\"{FOREIGN}\"\n"));
    let known = [key, OLD, FOREIGN];
    let mut lines = String::from("2026-11-27 host cai[1]: an ordinary line\n");
    for secret in known {
        forms(secret)
            .iter()
            .for_each(|form| lines.push_str(&format!("2026-11-27 host cai[1]: saw {form} there\n")));
    }
    lines.push_str(&format!("Authorization: Bearer {BEARER}\ntoken {JWT}\nGET http://me:{USER}@host/path\n"));
    journal(&world.root(), &lines);
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let (output, archive) = report(&world, &["--with-evidence"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);

    let files = unpack(&archive);
    for name in [
        "MANIFEST",
        "etc/cai/cai.env",
        "etc/cai/cai.toml",
        "status.json",
        "doctor.txt",
        "doctor.json",
        "evidence.txt",
        "evidence/evidence.json",
        "evidence/claims.json",
        "journal/cai.txt",
        "journal/cai-helper.txt",
        "journal/cai-decryptor.txt",
        "journal/cai-gate.txt",
        "mounts.txt",
        "versions.txt",
        "cmdline.txt",
        "meminfo.txt",
    ] {
        assert!(files.contains_key(name), "no {name} in {:?}", files.keys());
        if name != "MANIFEST" {
            let line = format!("{:>9}  {name} ", files[name].len());
            assert!(files["MANIFEST"].contains(&line), "{line}\n{}", files["MANIFEST"]);
        }
    }
    assert!(files["journal/cai.txt"].contains("an ordinary line"));
    assert_eq!(files["journal/cai.txt"].matches("saw ").count(), 3 * forms(key).len());
    let status: serde_json::Value = serde_json::from_str(&files["status.json"]).unwrap();
    assert_eq!(status["State"], "Serving");
    let doctor: serde_json::Value = serde_json::from_str(&files["doctor.json"]).unwrap();
    assert!(doctor["findings"].as_array().unwrap().iter().any(|finding| finding["id"] == "key.release"));
    assert!(
        files["etc/cai/cai.env"].contains("MODEL_OSS_SECRET_ACCESS_KEY=[REMOVED]\nVLLM_EXTRA=[REMOVED]\n")
    );
    assert!(files["etc/cai/cai.env"].contains("MODEL_OSS_BUCKET_PATH=\"conf-ai:/model/\"\n"));
    assert!(files["MANIFEST"].contains("cai.env:8: MODEL_OSS_SECRET_ACCESS_KEY\n"), "{}", files["MANIFEST"]);
    assert!(files["MANIFEST"].contains("\n  gpu.txt: there is no nvidia-smi\n"), "{}", files["MANIFEST"]);
    let password = std::str::from_utf8(SECRET).unwrap().trim();
    let mut secrets = known.to_vec();
    secrets.extend([password, JWT, BEARER, USER]);
    assert_nothing_of(&secrets, &archive, &files);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.starts_with(&files["MANIFEST"]) && said.ends_with("look into it before you send it\n"),
        "{said}"
    );

    let before = fs::read(&archive).unwrap();
    let (again, _) = report(&world, &[]);
    assert_eq!(again.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&again.stderr).contains("[report.create]"));
    assert!(fs::read(&archive).unwrap() == before, "an archive was overwritten");
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn report_of_a_machine_that_cannot_start_has_what_there_is_and_says_what_is_missing() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    // The secret in the name of the model, which status and findings repeat; and a configuration that is wrong in every way.
    world.env = format!(
        "MODEL_OSS_SECRET_ACCESS_KEY={TOKEN}\nMODEL_OSS_BUCKET_PATH=conf-ai:/{FOREIGN}/\nMODEL_PASSWORD={FOREIGN}\nAbC4planted==x\n"
    );
    world.toml = format!("[oss]\nproxy = \"http://me:{PROXY}@127.0.0.1:9\"\nsecret = \"{OLD}\"\n");
    world.write_config();
    journal(&world.root(), &format!("proxy http://me:{PROXY}@127.0.0.1:9 {}\n", hex::encode(TOKEN)));
    let (output, archive) = report(&world, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = unpack(&archive);
    assert!(
        files["MANIFEST"].contains("\n  status.json: nobody answers to com.alibaba.cai1 on the system bus\n"),
        "{}",
        files["MANIFEST"]
    );
    assert!(files["MANIFEST"].contains("cai.toml: oss.secret\n"), "{}", files["MANIFEST"]);
    assert!(files["doctor.txt"].contains("config.problem"), "{}", files["doctor.txt"]);
    assert!(!files.contains_key("status.json") && !files.contains_key("evidence/evidence.json"));
    assert!(
        files["journal/cai.txt"].starts_with("proxy http://[REMOVED]@127.0.0.1:9 [REMOVED]"),
        "{}",
        files["journal/cai.txt"]
    );
    assert_nothing_of(&[TOKEN, FOREIGN, PROXY, OLD, "AbC4planted"], &archive, &files);
}

#[test]
fn search_finds_what_is_hidden() {
    let secret = "planted-secret+/";
    for form in forms(secret) {
        assert!(holds(&format!("a {form} b"), secret), "{form}");
    }
    assert!(!holds("planted", secret));
}
