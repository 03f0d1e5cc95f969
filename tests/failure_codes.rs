//! Claim: `docs/failure-codes.md` has every code that a failure of cai can have, no other, and the exit status that goes with it.
//!
//! The sources are read as text. A code is a literal in a function `code` or `..._code`, or one that the helper may answer with; its
//! class is looked up by the variants that have it, as far as the two tables are plain matches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What the sources say about one code.
#[derive(Debug, Default, PartialEq)]
struct Known {
    /// Names of classes, as far as they are written out.
    classes: BTreeSet<String>,
    /// Something else decides, too.
    delegated: bool,
}

type Codes = BTreeMap<String, Known>;

// ---- The sources ---------------------------------------------------------------------------------------------------

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Text of every source file below `directory`, without tests and comments.
fn sources(directory: &str) -> Vec<String> {
    let mut files = Vec::new();
    files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut files);
    files.iter().map(|path| without_comments(&std::fs::read_to_string(path).unwrap())).collect()
}

fn without_comments(source: &str) -> String {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    source.lines().filter(is_code).map(|line| format!("{line}\n")).collect()
}

/// What is between the first `{` at or after `from` and its `}`. Braces in strings do not count.
fn block(text: &str, from: usize) -> &str {
    let (mut depth, mut quoted, mut escaped, mut start) = (0, false, false, 0);
    for (at, c) in text[from..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '{' => {
                if depth == 0 {
                    start = from + at + 1;
                }
                depth += 1;
            }
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return &text[start..from + at];
                }
            }
            _ => {}
        }
    }
    panic!("a block without end: {}", &text[from..].chars().take(80).collect::<String>());
}

/// Pattern and value of every arm of the first `match` in `body`; without one, the body is the value of every pattern.
fn arms(body: &str) -> Vec<(String, String)> {
    let Some(at) = body.find("match ") else { return vec![("*".to_owned(), body.to_owned())] };
    let (mut arms, mut pattern, mut text) = (Vec::new(), None::<String>, String::new());
    let (mut depth, mut quoted, mut before) = (0, false, ' ');
    for c in block(body, at).chars() {
        text.push(c);
        if c == '"' && before != '\\' {
            quoted = !quoted;
        }
        if !quoted {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && c == '>' && before == '=' && pattern.is_none() {
                pattern = Some(std::mem::take(&mut text));
            }
            let is_block = text.trim_start().starts_with(['{']) || text.trim_start().starts_with("match ");
            let ends = c == ',' || (c == '}' && is_block);
            if depth == 0 && ends && pattern.is_some() {
                arms.push((pattern.take().unwrap(), std::mem::take(&mut text)));
            }
        }
        before = c;
    }
    if let Some(pattern) = pattern {
        arms.push((pattern, text));
    }
    arms
}

/// Names that begin with a capital and are not the type's own.
fn variants(pattern: &str) -> Vec<String> {
    let words = pattern.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let last = |word: &str| word.rsplit("::").next().unwrap_or_default().to_owned();
    words.map(last).filter(|word| word.starts_with(|c: char| c.is_uppercase() || c == '*')).collect()
}

/// Literals of the form `area.what`.
fn literals(text: &str) -> impl Iterator<Item = &str> {
    text.split('"').skip(1).step_by(2).filter(|literal| is_code(literal))
}

fn is_code(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.split_once('.').is_some_and(|(area, what)| part(area) && part(what))
}

/// Names of constants in `text` whose literals are codes, from `file`.
fn constants<'a>(text: &str, file: &'a str) -> Vec<&'a str> {
    let words = text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
    let constant = |word: &str| {
        let (_, after) = file.split_once(&format!("const {word}: &str = \""))?;
        after.split('"').next().filter(|literal| is_code(literal))
    };
    words.filter(|word| word.len() > 2).filter_map(constant).collect()
}

/// Every code of the library, with the classes that it can have.
fn codes() -> Codes {
    let mut codes = Codes::new();
    for file in sources("src") {
        // Tables beside the implementations: causes of a refusal, failures of a source.
        for (at, _) in file
            .match_indices("code(")
            .filter(|(at, _)| file[..*at].ends_with("fn ") || file[..*at].ends_with('_'))
        {
            let line = file[..at].rfind("fn ").map_or("", |start| &file[start..]);
            if line.lines().next().is_some_and(|line| line.ends_with("-> &'static str {"))
                && file[..at].rfind("fn ").is_some_and(|start| at - start < 20)
            {
                let body = block(&file, at);
                for code in literals(body).chain(constants(body, &file)) {
                    codes.entry(code.to_owned()).or_default();
                }
            }
        }
        for (at, _) in file.match_indices("impl Fault for ") {
            let implementation = block(&file, at);
            let function = |name: &str| block(implementation, implementation.find(name).unwrap());
            let classes = arms(function("fn class(&self)"));
            for (pattern, value) in arms(function("fn code(&self)")) {
                let with_code = variants(&pattern);
                let has = |pattern: &str| {
                    pattern == "*" || variants(pattern).iter().any(|variant| with_code.contains(variant))
                };
                let value_of = || {
                    classes
                        .iter()
                        .filter(|(pattern, _)| has(pattern) || with_code == ["*"])
                        .map(|(_, value)| value)
                };
                for code in literals(&value).chain(constants(&value, &file)) {
                    let known = codes.get_mut(code).unwrap();
                    known.delegated |=
                        value_of().any(|value| value.contains(".class()") || value.contains("self."));
                    known.classes.extend(value_of().flat_map(|value| class_names(value)));
                }
            }
        }
    }
    codes
}

fn class_names(text: &str) -> impl Iterator<Item = String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric()).collect();
    text.split("ErrorClass::").skip(1).map(name)
}

/// The codes that the helper may answer with, and their classes.
fn helper_codes() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/helper/client.rs");
    let source = without_comments(&std::fs::read_to_string(path).unwrap());
    let (_, table) = source.split_once("const CODES").unwrap();
    let rows = table.split("];").next().unwrap().lines().filter_map(|line| {
        let code = literals(line).next()?.to_owned();
        Some((code, class_names(line).next().unwrap()))
    });
    // What it says to a code that it does not know.
    rows.chain([("helper.refused".to_owned(), "Config".to_owned())]).collect()
}

// ---- The table -----------------------------------------------------------------------------------------------------

/// Exit statuses of a row, by code.
fn documented() -> BTreeMap<String, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/failure-codes.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let line = line.replace("\\|", "¦");
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [code, status, cause, remedy] = cells[..] else { panic!("{line}") };
        assert!(!cause.is_empty() && !remedy.is_empty(), "{line}");
        let old = rows.insert(code.trim_matches('`').to_owned(), status.to_owned());
        assert!(old.is_none(), "{code} is there twice");
    }
    rows
}

fn status(class: &str) -> &'static str {
    match class {
        "Config" => "78",
        "Denied" => "77",
        "Corrupt" => "65",
        "Transient" => "69",
        "Internal" => "70",
        other => panic!("no class: {other}"),
    }
}

#[test]
fn table_has_every_code_and_no_other() {
    let known: BTreeSet<String> = codes().into_keys().chain(helper_codes().into_keys()).collect();
    let documented: BTreeSet<String> = documented().into_keys().collect();
    assert!(known.len() > 350, "only {} codes were found in the sources", known.len());
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    assert_eq!(only(&known, &documented), [""; 0], "not in docs/failure-codes.md");
    assert_eq!(only(&documented, &known), [""; 0], "no longer a code");
}

#[test]
fn exit_statuses_of_the_table_are_those_of_the_code() {
    let (codes, helper) = (codes(), helper_codes());
    for (code, documented) in documented() {
        let mut known = Known::default();
        if let Some(of_library) = codes.get(&code) {
            known.classes.extend(of_library.classes.iter().cloned());
            known.delegated = of_library.delegated;
        }
        known.classes.extend(helper.get(&code).cloned());
        if documented == "as the source" {
            assert!(known.delegated || known.classes.is_empty(), "{code}: {known:?}");
            continue;
        }
        let listed: BTreeSet<&str> = documented.split(", ").collect();
        assert!(
            listed.iter().all(|status| ["65", "69", "70", "77", "78"].contains(status)),
            "{code}: {documented}"
        );
        let possible: BTreeSet<&str> = known.classes.iter().map(|class| status(class)).collect();
        // Causes of a refusal have their class elsewhere, and so has what delegates.
        if known.delegated || possible.is_empty() {
            continue;
        }
        assert!(listed.is_subset(&possible), "{code}: documented {documented}, the code says {possible:?}");
        if possible.len() == 1 {
            assert_eq!(listed, possible, "{code}");
        }
    }
}

#[test]
fn helper_answers_with_known_codes_alone() {
    let known = helper_codes();
    for file in sources("src/bin/cai-helper") {
        for (at, _) in file.match_indices("(\"").chain(file.match_indices("(\n")) {
            let after = file[at + 1..].trim_start();
            let Some(literal) = after.strip_prefix('"').and_then(|text| text.split('"').next()) else {
                continue;
            };
            if is_code(literal) {
                assert!(known.contains_key(literal), "{literal} would be shown as helper.refused");
            }
        }
    }
}

// ---- The reader itself ---------------------------------------------------------------------------------------------

#[test]
fn arms_of_a_match_are_read_with_blocks_and_nested_matches() {
    let body = "match self {\n A::X { .. } | A::Y(_) => \"a.x\",\n A::Z(e) => match e { B::P => \"a.p\", B::Q => \"a.q\" },\n \
        A::W => { \"a.{w\" }\n A::V => other(*v) }";
    let read = arms(body);
    let seen: Vec<(Vec<String>, Vec<&str>)> =
        read.iter().map(|(pattern, value)| (variants(pattern), literals(value).collect())).collect();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        seen,
        [
            (names(&["X", "Y"]), vec!["a.x"]),
            (names(&["Z"]), vec!["a.p", "a.q"]),
            (names(&["W"]), vec![]),
            (names(&["V"]), vec![]),
        ]
    );
    assert_eq!(arms("\"a.b\""), [("*".to_owned(), "\"a.b\"".to_owned())]);
    assert!(is_code("mount-point.not-empty") && !is_code("a.b.c") && !is_code("A.b") && !is_code(".b"));
}
