//! Claim: the pages for people lead where they say, name tests, files, commands, keys and codes that exist, and quote what cai prints.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cai::cli::Cli;
use cai::config::keys::{ENV, TOML};
use clap::CommandFactory;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// Every page, with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = files_below(&root().join("docs"), "md");
    paths.extend(files_below(&root().join("packaging"), "md"));
    paths.extend(["README.md", "CHANGELOG.md"].map(|name| root().join(name)));
    assert!(paths.len() > 8, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// What stands between backquotes, outside of code blocks.
fn inline_code(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with("    "));
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// All sources as one text, strings joined where the source breaks them and with their quotes as they are printed.
fn sources() -> String {
    let joined: Vec<String> =
        files_below(&root().join("src"), "rs").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut parts = joined.join("\n");
    parts = parts
        .split("\\\n")
        .enumerate()
        .fold(String::new(), |text, (index, part)| text + if index == 0 { part } else { part.trim_start() });
    parts.replace("\\\"", "\"")
}

/// A heading's anchor, as the forges make it.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter(kept)
        .collect::<String>()
        .replace(' ', "-")
}

#[test]
fn relative_links_resolve() {
    for (path, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}", path.display());
            if !fragment.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let found =
                    text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == fragment);
                assert!(found, "{} links to {link}", path.display());
            }
        }
    }
}

#[test]
fn named_files_exist() {
    for (path, text) in pages() {
        for name in inline_code(&text) {
            let is_path = name.ends_with(".rs")
                || ["src/", "tests/", "docs/", "fuzz/"].iter().any(|top| name.starts_with(top));
            if !is_path || name.contains([' ', '*', '{']) {
                continue;
            }
            let places = ["", "src", "tests"].map(|top| root().join(top).join(name));
            assert!(places.iter().any(|place| place.exists()), "{} names {name}", path.display());
        }
    }
}

#[test]
fn security_page_names_a_test_in_every_row_that_holds() {
    let text = page("security.md");
    let mut rows = 0;
    for section in text.split("| holds | shown by |\n").skip(1) {
        for row in section.lines().skip(1).take_while(|line| line.starts_with('|')) {
            let shown = row.trim_matches('|').rsplit('|').next().unwrap();
            let tests = shown.split('`').skip(1).step_by(2).filter(|name| name.ends_with(".rs"));
            let found: Vec<_> = tests.map(|name| root().join("tests").join(name)).collect();
            assert!(shown.trim() == "argument" || !found.is_empty(), "{row}");
            assert!(found.iter().all(|path| path.exists()), "{row}");
            rows += 1;
        }
    }
    assert!(rows > 30, "{rows}");
}

#[test]
fn commands_that_are_told_exist() {
    let commands: BTreeSet<String> =
        Cli::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for (path, text) in pages() {
        let blocks = text.lines().filter_map(|line| line.strip_prefix("    "));
        for code in inline_code(&text).into_iter().chain(blocks) {
            let mut words = code.split([' ', '`', ';', ',', '|', ']']);
            if words.next() != Some("cai") {
                continue;
            }
            let word = words.next().unwrap_or_default();
            let is_command = word.starts_with(|c: char| c.is_ascii_lowercase());
            assert!(!is_command || commands.contains(word), "{} tells `{code}`", path.display());
        }
    }
}

#[test]
fn keys_and_codes_that_are_named_exist() {
    let sources = sources();
    let sections: BTreeSet<&str> = TOML.iter().filter_map(|key| key.name.split('.').next()).collect();
    let areas = [
        "kbs",
        "store",
        "gpu",
        "format",
        "helper",
        "memory",
        "mount-point",
        "fuse",
        "gate",
        "verify",
        "connect",
        "licence",
        "rotation",
        "tdx",
    ];
    for (path, text) in pages() {
        for name in inline_code(&text) {
            let name = name.split(" = ").next().unwrap();
            let Some((area, rest)) = name.split_once('.') else { continue };
            let known = sections.contains(area) || areas.contains(&area);
            let plain = !rest.is_empty()
                && rest.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c));
            // Names of files look the same.
            if !known || !plain || ["rs", "conf", "md", "toml"].contains(&rest) {
                continue;
            }
            let is_key = TOML.iter().any(|key| key.name == name);
            assert!(is_key || sources.contains(&format!("\"{name}\"")), "{} names {name}", path.display());
        }
    }
}

#[test]
fn quoted_messages_are_those_of_the_code() {
    let sources = sources();
    let text = page("troubleshooting.md");
    let mut quotes = Vec::<String>::new();
    let mut open = false;
    for line in text.lines() {
        match (line.strip_prefix("> "), open) {
            (Some(part), true) => quotes.last_mut().unwrap().push_str(&format!(" {part}")),
            (Some(part), false) => quotes.push(part.to_owned()),
            (None, _) => {}
        }
        open = line.starts_with("> ");
    }
    assert!(quotes.len() > 40, "{}", quotes.len());
    for quote in quotes {
        for part in quote.split('…').filter(|part| part.len() > 3) {
            assert!(sources.contains(part), "no source says {part:?} of {quote:?}");
        }
    }
}

#[test]
fn every_variable_has_its_row_in_the_migration() {
    let text = page("migration.md");
    for key in ENV {
        assert!(text.contains(&format!("\n| `{}` |", key.name)), "{}", key.name);
    }
}
