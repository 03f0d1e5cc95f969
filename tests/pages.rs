//! Claim: the manual pages say what the code does: every key, every member of the D-Bus interface and its errors, every directive of the
//! daemon's unit that an operator meets, every exit status; the package has all of them, and groff has nothing to say about them.
#![cfg(feature = "sandbox")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use cai::config::keys::{Default, ENV, Key, TOML};
use cai::error::ErrorClass;
use common::available;

/// Name to text of every page that cai-pages writes.
fn pages() -> BTreeMap<String, String> {
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_cai-pages")).arg(directory.path()).status().unwrap();
    assert!(status.success());
    let entries = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap());
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    let is_page = |name: &str| [".1", ".5", ".7", ".8"].iter().any(|section| name.ends_with(section));
    entries
        .filter(|entry| is_page(&name(entry)))
        .map(|entry| (name(&entry), fs::read_to_string(entry.path()).unwrap()))
        .collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What groff makes of a page for a terminal of 80 columns, and what it complains of.
fn formatted(page: &str) -> (String, String) {
    let mut groff = Command::new("groff")
        .args(["-man", "-ww", "-Tutf8", "-P-cbou"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, page) = (groff.stdin.take().unwrap(), page.to_owned());
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, page.as_bytes()));
    let output = groff.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// Source without its escapes: good enough to look words up.
fn plain(page: &str) -> String {
    ["\\fB", "\\fR", "\\fI", "\\&"]
        .iter()
        .fold(page.to_owned(), |text, escape| text.replace(escape, ""))
        .replace("\\-", "-")
        .replace("\\*(Aq", "'")
        .replace("\\\\", "\\")
}

#[test]
fn groff_formats_every_page_without_a_word() {
    let present = Command::new("groff").arg("--version").output().is_ok();
    if !available("groff", present, "no groff") {
        return;
    }
    for (name, page) in pages() {
        let (text, complaints) = formatted(&page);
        assert_eq!(complaints, "", "{name}");
        assert!(text.contains("\nNAME\n"), "{name}\n{text}");
        for placeholder in ["@KEYS@", "@INTERFACE@", "@VERSION@"] {
            assert!(!page.contains(placeholder), "{name}");
        }
    }
}

#[test]
fn package_has_every_page_and_the_units_name_theirs() {
    let spec = read("packaging/cai.spec");
    let pages = pages();
    for name in pages.keys() {
        let section = name.rsplit('.').next().unwrap();
        let listed = match section {
            "1" => "%{_mandir}/man1/cai*.1.gz".to_owned(),
            _ => format!("%{{_mandir}}/man{section}/{name}.gz"),
        };
        assert!(spec.contains(&listed), "{listed}");
    }
    let more: Vec<&String> = pages.keys().filter(|name| !name.ends_with(".1")).collect();
    assert_eq!(more, ["cai-decryptor.7", "cai.env.5", "cai.service.8", "cai.toml.5", "com.alibaba.cai1.5"]);
    let ours = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")).unwrap();
    let ours = ours.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_unit = |name: &String| ["service", "socket", "timer"].iter().any(|kind| name.ends_with(kind));
    for unit in ours.filter(is_unit) {
        assert!(read(&format!("systemd/{unit}")).contains("man:cai.service(8)"), "{unit}");
        assert!(plain(&pages["cai.service.8"]).contains(&unit), "{unit}");
    }
}

fn assert_key(page: &str, key: &Key) {
    let entry = page.split(".TP 4\n").find(|entry| entry.starts_with(&format!("{}\n", key.name)));
    let entry = entry.unwrap_or_else(|| panic!("no entry of {}", key.name));
    let unit = key.unit.map(|unit| format!("Unit: {unit}."));
    let default = match key.default {
        Default::Required => "Must be set.".to_owned(),
        Default::Is(text) | Default::Derived(text) => format!("Default: {text}."),
    };
    let form = format!("Form: {}.", key.form);
    for part in [key.effect, &form, &unit.unwrap_or_default(), &default, key.example] {
        assert!(entry.contains(part), "{part} is missing in\n{entry}");
    }
}

#[test]
fn every_key_has_an_entry_with_form_unit_default_and_example_and_no_entry_is_anything_else() {
    let pages = pages();
    let (env, toml) = (plain(&pages["cai.env.5"]), plain(&pages["cai.toml.5"]));
    ENV.iter().for_each(|key| assert_key(&env, key));
    TOML.iter().for_each(|key| assert_key(&toml, key));
    for (page, count) in [(&env, ENV.len()), (&toml, TOML.len())] {
        assert_eq!(page.matches("\n.TP 4\n").count(), count);
    }
}

/// Names of methods, properties and signals, as the interface's source declares them, and of its errors.
fn declared() -> (BTreeSet<String>, BTreeSet<String>) {
    let source = read("src/bus/agent.rs");
    let interface = source.split("#[interface(").nth(1).unwrap().split("\n}\n").next().unwrap();
    let camel = |name: &str| -> String {
        let word = |word: &str| word[..1].to_uppercase() + &word[1..];
        name.split('_').map(word).collect()
    };
    let signal = interface.split("signal, name = \"").skip(1).filter_map(|rest| rest.split('"').next());
    let signals: Vec<String> = signal.map(str::to_owned).collect();
    let functions = interface.split("\n    fn ").skip(1).chain(interface.split("\n    async fn ").skip(1));
    // A signal's function has a name of its own.
    let is_signal =
        |function: &&str| function.split(')').next().is_some_and(|head| head.contains("emitter:"));
    let names = functions.filter(|function| !is_signal(function)).filter_map(|rest| rest.split('(').next());
    let members = names.map(camel).chain(signals).collect();
    let errors = source.split("enum MethodError {").nth(1).unwrap().split('}').next().unwrap();
    let errors = errors.lines().filter_map(|line| line.trim().strip_suffix("(String),"));
    (members, errors.map(str::to_owned).collect())
}

#[test]
fn every_member_and_error_of_the_bus_interface_is_described() {
    let page = plain(&pages()["com.alibaba.cai1.5"]);
    let (members, errors) = declared();
    assert!(members.len() > 15 && errors.len() > 3, "{members:?} {errors:?}");
    let entries = |section: &str| -> BTreeSet<String> {
        let text = page.split(&format!(".SH {section}\n")).nth(1).unwrap().split(".SH ").next().unwrap();
        let entries = text.split(".TP\n").skip(1);
        entries.filter_map(|entry| Some(entry.split([' ', '\n']).next()?.to_owned())).collect()
    };
    let described: BTreeSet<String> =
        ["PROPERTIES", "METHODS", "SIGNALS"].into_iter().flat_map(entries).collect();
    assert_eq!(described, members);
    let named: BTreeSet<String> = page
        .split("com.alibaba.cai1.Error.")
        .skip(1)
        .filter_map(|rest| Some(rest.lines().next()?.to_owned()))
        .collect();
    assert_eq!(named, errors);
    assert!(page.contains("StateChanged (s from, s to)"), "{page}");
    assert!(page.contains("Prefetch (s path) -> (t files, t missing_bytes)"), "{page}");
    let policy = read("systemd/com.alibaba.cai1.policy");
    for action in policy.split("<action id=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert!(page.contains(action), "{action}");
    }
    for state in cai::agent::state::State::ALL {
        assert!(page.contains(state.name()), "{state}");
    }
}

#[test]
fn directives_that_an_operator_meets_are_described_as_the_unit_has_them() {
    let unit = read("systemd/cai.service");
    let page = plain(&pages()["cai.service.8"]);
    let service = unit.split("[Service]\n").nth(1).unwrap();
    // From there on it only takes privileges away.
    let (met, hardening) = service.split_once("CapabilityBoundingSet=").unwrap();
    let directives: Vec<&str> =
        met.lines().filter(|line| line.contains('=') && !line.starts_with('#')).collect();
    assert!(directives.len() > 15, "{directives:?}");
    for directive in directives {
        assert!(page.contains(directive), "{directive}");
    }
    assert!(hardening.contains("\nProtectHome=yes\n") && page.contains("ProtectHome=yes"));
}

#[test]
fn exit_statuses_are_those_of_the_classes() {
    let page = plain(&pages()["cai.1"]);
    let status = page.split(".SH \"EXIT STATUS\"\n").nth(1).unwrap().split(".SH ").next().unwrap();
    let listed: BTreeSet<&str> = status.lines().filter_map(|line| line.strip_prefix(".B ")).collect();
    use ErrorClass::*;
    let codes = [Transient, Denied, Corrupt, Config, Internal].map(|class| class.exit_code().to_string());
    // Zero, and clap's own.
    let expected: BTreeSet<&str> = codes.iter().map(String::as_str).chain(["0", "2"]).collect();
    assert_eq!(listed, expected);
}
