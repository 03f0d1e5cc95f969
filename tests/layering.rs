//! Claim: modules use each other as the table in `src/lib.rs` says, and the table keeps the wall between ciphertext with
//! sockets and keys with plaintext.
//!
//! The sources are read as tokens, so comments, strings and formatting do not matter; `crate::...` and `super::...` paths
//! are resolved, inline modules included. Test modules are held to the same rules. Binaries are outside: they use the
//! library like any other crate.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

// ---- The table -----------------------------------------------------------------------------------------------------

/// What one module may use.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    /// These modules; an entry such as `keyring::Secret` allows one item only.
    Only(BTreeSet<String>),
    /// Every module but these.
    AllBut(BTreeSet<String>),
}

type Table = BTreeMap<String, Allowed>;

impl Allowed {
    fn allows(&self, path: &[String]) -> bool {
        let Some(module) = path.first() else { return false };
        let item = path.iter().take(2).cloned().collect::<Vec<_>>().join("::");
        match self {
            Allowed::Only(list) => list.contains(module) || list.contains(&item),
            Allowed::AllBut(list) => !list.contains(module),
        }
    }

    /// Modules of `table` that this allows, as a whole or in part.
    fn modules(&self, table: &Table) -> BTreeSet<String> {
        match self {
            Allowed::Only(list) => {
                list.iter().filter_map(|entry| entry.split("::").next().map(str::to_owned)).collect()
            }
            Allowed::AllBut(list) => table.keys().filter(|module| !list.contains(*module)).cloned().collect(),
        }
    }
}

/// The one fenced `text` block of the crate's documentation in which every line is a row.
fn table(lib: &str) -> Table {
    let doc = lib.lines().map_while(|line| line.strip_prefix("//!"));
    let mut blocks: Vec<Vec<&str>> = Vec::new();
    let mut open = false;
    for line in doc.map(str::trim) {
        match (open, line) {
            (false, "```text") => {
                open = true;
                blocks.push(Vec::new());
            }
            (true, "```") => open = false,
            (true, line) => blocks.last_mut().unwrap().push(line),
            (false, _) => {}
        }
    }
    let tables: Vec<Table> =
        blocks.iter().filter_map(|lines| lines.iter().map(|line| row(line)).collect()).collect();
    assert_eq!(tables.len(), 1, "lib.rs has {} tables of who may use whom", tables.len());
    tables.into_iter().next().unwrap()
}

/// `module: a, b::Item`, `module: (none)`, `module: everything`, `module: everything but a, b`.
fn row(line: &str) -> Option<(String, Allowed)> {
    let (module, rule) = line.split_once(':')?;
    let name =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_:".contains(c));
    let list = |text: &str| -> Option<BTreeSet<String>> {
        text.split(',').map(str::trim).map(|entry| name(entry).then(|| entry.to_owned())).collect()
    };
    let allowed = match rule.trim() {
        "(none)" => Allowed::Only(BTreeSet::new()),
        "everything" => Allowed::AllBut(BTreeSet::new()),
        rule => match rule.strip_prefix("everything but ") {
            Some(rest) => Allowed::AllBut(list(rest)?),
            None => Allowed::Only(list(rule)?),
        },
    };
    (name(module) && !module.contains(':')).then(|| (module.to_owned(), allowed))
}

// ---- The sources ---------------------------------------------------------------------------------------------------

#[derive(Debug)]
struct Token {
    text: String,
    line: usize,
}

/// Identifiers and single punctuation characters; comments, strings, characters and lifetimes are dropped.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut i, mut line, mut found) = (0, 1, Vec::new());
    while i < chars.len() {
        let start = i;
        let c = at(i);
        let word = |c: char| c.is_alphanumeric() || c == '_';
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            i = after_block_comment(&chars, i);
        } else if let Some(end) = after_string(&chars, i) {
            i = end;
        } else if c == '\'' {
            i = after_quote(&chars, i);
        } else if word(c) {
            while word(at(i)) {
                i += 1;
            }
            found.push(Token { text: chars[start..i].iter().collect(), line });
        } else {
            i += 1;
            if !c.is_whitespace() {
                found.push(Token { text: c.to_string(), line });
            }
        }
        line += chars[start..i].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn after_block_comment(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

/// End of the string literal that starts at `i`, with any of its prefixes.
fn after_string(chars: &[char], i: usize) -> Option<usize> {
    let rest: String = chars[i..].iter().take(3).collect();
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        rest.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('"') || (prefix.ends_with('r') && rest.starts_with('#')))
    })?;
    let mut j = i + prefix.len();
    if !prefix.ends_with('r') {
        j += 1;
        while j < chars.len() && chars[j] != '"' {
            j += if chars[j] == '\\' { 2 } else { 1 };
        }
        return Some(j + 1);
    }
    let hashes = chars[j..].iter().take_while(|c| **c == '#').count();
    j += hashes;
    // `r#name` is an identifier.
    if chars.get(j) != Some(&'"') {
        return None;
    }
    j += 1;
    while j < chars.len()
        && !(chars[j] == '"' && chars[j + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes)
    {
        j += 1;
    }
    Some(j + 1 + hashes)
}

/// End of the character literal or lifetime that starts at `i`.
fn after_quote(chars: &[char], i: usize) -> usize {
    match (chars.get(i + 1), chars.get(i + 2)) {
        (Some('\\'), _) => {
            let mut j = i + 3;
            while j < chars.len() && chars[j] != '\'' {
                j += 1;
            }
            j + 1
        }
        (Some(_), Some('\'')) => i + 3,
        // A lifetime: its name is read as a word, which harms nobody.
        _ => i + 1,
    }
}

/// A path into the crate that a file names, from the crate's root.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    path: Vec<String>,
    line: usize,
}

/// Every path from the crate's root that `source`, the file of module `module`, names through `crate` or `super`.
fn uses(module: &[String], source: &str) -> Vec<Use> {
    let tokens = tokens(source);
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let colons = |i: usize| text(i) == ":" && text(i + 1) == ":";
    let (mut found, mut depth, mut inline) = (Vec::new(), 0, Vec::<(String, usize)>::new());
    let mut i = 0;
    while i < tokens.len() {
        match text(i) {
            "mod" if text(i + 2) == "{" => inline.push((text(i + 1).to_owned(), depth)),
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.pop_if(|(_, outside)| *outside == depth);
            }
            "crate" | "super" => {
                let line = tokens[i].line;
                let mut base: Vec<String> =
                    module.iter().chain(inline.iter().map(|(name, _)| name)).cloned().collect();
                let root = text(i) == "crate";
                if root {
                    base.clear();
                } else {
                    base.pop();
                    while colons(i + 1) && text(i + 3) == "super" {
                        base.pop();
                        i += 3;
                    }
                }
                if colons(i + 1) {
                    let paths = tree(&tokens, i + 3);
                    found.extend(
                        paths.into_iter().map(|path| Use { path: [base.clone(), path].concat(), line }),
                    );
                } else if text(i + 1) == "as" {
                    // `use crate as x`, `use super as x`: a way around this test when it is the crate's root.
                    found.push(Use { path: [base, vec!["*".to_owned()]].concat(), line });
                }
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// The paths of the use tree (or plain path) that starts at token `i`.
fn tree(tokens: &[Token], i: usize) -> Vec<Vec<String>> {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    if text(i) != "{" {
        let head = vec![text(i).to_owned()];
        let word = text(i + 3).chars().all(|c| c.is_alphanumeric() || "_{*".contains(c));
        if text(i + 1) == ":" && text(i + 2) == ":" && word {
            return tree(tokens, i + 3).into_iter().map(|tail| [head.clone(), tail].concat()).collect();
        }
        return vec![head];
    }
    // A group: one tree after its brace and after every comma that is its own.
    let (mut paths, mut depth) = (Vec::new(), 0);
    for j in i..tokens.len() {
        match text(j) {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        let starts = depth == 1 && (j == i || text(j) == ",");
        if starts && text(j + 1) != "}" {
            paths.extend(tree(tokens, j + 1));
        }
    }
    paths
}

// ---- The check -----------------------------------------------------------------------------------------------------

/// What is forbidden in `source`, the file of module `module`: `line: why` each.
fn violations(table: &Table, module: &[String], source: &str) -> Vec<String> {
    let own = &module[0];
    let Some(allowed) = table.get(own) else {
        return vec![format!("1: module {own} is not in the table")];
    };
    let forbidden = |used: &Use| match used.path.first().map(String::as_str) {
        Some("*" | "self") | None => Some("the whole crate under another name".to_owned()),
        Some(target) if target == own => None,
        Some(target) if !table.contains_key(target) => Some(format!("{target}, which is not in the table")),
        Some(_) if allowed.allows(&used.path) => None,
        Some(_) => Some(used.path.join("::")),
    };
    let report = |used: Use| forbidden(&used).map(|what| format!("{}: {own} uses {what}", used.line));
    uses(module, source).into_iter().filter_map(report).collect()
}

/// Everything that `module` reaches through what the table allows, step by step.
fn reach(table: &Table, module: &str) -> BTreeSet<String> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![module.to_owned()]);
    while let Some(module) = next.pop() {
        for used in table.get(&module).map(|allowed| allowed.modules(table)).unwrap_or_default() {
            if reached.insert(used.clone()) {
                next.push(used);
            }
        }
    }
    reached
}

/// Rows that break the wall. `oss` and `peer` hold settings and their own access keys, so for them the wall is about the
/// key's and plaintext's modules; for `store` it is about every secret.
fn broken_walls(table: &Table) -> Vec<String> {
    let walls: [(&[&str], &[&str]); 3] = [
        (&["store"], &["keyring", "config", "kbs", "gocryptfs", "sam", "mount"]),
        (&["oss", "peer"], &["kbs", "gocryptfs", "sam", "mount", "agent"]),
        (&["kbs", "keyring", "gocryptfs", "sam", "mount"], &["oss", "store", "peer", "agent"]),
    ];
    let mut broken = Vec::new();
    for (inside, outside) in walls {
        for module in inside {
            let reached = reach(table, module);
            broken.extend(
                outside.iter().filter(|o| reached.contains(**o)).map(|o| format!("{module} reaches {o}")),
            );
        }
    }
    // The one secret the object store may hold is its own access key.
    for module in ["oss", "peer"] {
        let whole = ["keyring".to_owned(), "Ring".to_owned()];
        if table.get(module).is_some_and(|allowed| allowed.allows(&whole)) {
            broken.push(format!("{module} uses more of keyring than Secret"));
        }
    }
    broken
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// Module path and text of every source file of the library except `lib.rs`.
fn sources(src: &Path) -> Vec<(Vec<String>, std::path::PathBuf)> {
    let mut found = Vec::new();
    let mut directories = vec![(src.to_owned(), Vec::new())];
    while let Some((directory, module)) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let child = |stem: String| [module.clone(), vec![stem]].concat();
            let top = module.is_empty();
            if path.is_dir() {
                if !(top && stem == "bin") {
                    directories.push((path, child(stem)));
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                match stem.as_str() {
                    "lib" | "main" if top => {}
                    "mod" => found.push((module.clone(), path)),
                    _ => found.push((child(stem), path)),
                }
            }
        }
    }
    found
}

#[test]
fn every_file_uses_only_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table = table(&std::fs::read_to_string(src.join("lib.rs")).unwrap());
    let sources = sources(&src);
    assert!(sources.len() > 10, "found only {} source files", sources.len());
    let mut found = Vec::new();
    for (module, path) in sources {
        let text = std::fs::read_to_string(&path).unwrap();
        found.extend(
            violations(&table, &module, &text).iter().map(|what| format!("{}:{what}", path.display())),
        );
    }
    assert!(found.is_empty(), "forbidden:\n{}", found.join("\n"));
}

#[test]
fn the_table_keeps_the_wall() {
    let lib = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let table = table(&lib);
    for module in ["store", "oss", "kbs", "keyring", "gocryptfs", "mount"] {
        assert!(table.contains_key(module), "{module} is not in the table");
    }
    assert_eq!(broken_walls(&table), Vec::<String>::new());
}

// ---- The checker itself --------------------------------------------------------------------------------------------

const LIB: &str = "//! Story.\n//!\n//! ```text\n//!  a ─> b: not a row ─\n//! ```\n//!\n//! ```text\n\
    //! error: (none)\n//! keyring: error\n//! store: error, ciphertext\n//! ciphertext: (none)\n\
    //! oss: keyring::Secret, store\n//! agent: everything but cli\n//! cli: everything\n//! ```\npub mod x;\n";

#[test]
fn table_reads_every_kind_of_row_and_passes_over_other_blocks() {
    let table = table(LIB);
    assert_eq!(table.len(), 7);
    assert_eq!(table["error"], Allowed::Only(BTreeSet::new()));
    assert_eq!(table["store"], Allowed::Only(["error".into(), "ciphertext".into()].into()));
    assert_eq!(table["agent"], Allowed::AllBut(["cli".into()].into()));
    assert_eq!(table["cli"], Allowed::AllBut(BTreeSet::new()));
}

#[test]
fn planted_use_is_found_in_every_way_it_can_be_written() {
    let table = table(LIB);
    for source in [
        "use crate::keyring::Secret;",
        "use crate::{error::Fault, keyring::{self}};",
        "use crate::{error::{A, B}, keyring::{Secret}};",
        "use ::core::fmt; pub(crate) use crate :: keyring :: *;",
        "fn f(key: &crate::keyring::Secret) {}",
        "fn f() -> Vec<crate::keyring::Secret> { Vec::<crate::error::E>::new() }",
        "use super::super::keyring;",
        "mod tests { use super::super::super::keyring::Secret; }",
        "use self::super::super::keyring;",
        "fn f<'a>(x: &'a str) -> char { 'x' } use crate::keyring::Secret;",
        "const Q: char = '\"'; use crate::keyring::Secret; const R: char = '\\''; ",
        "const S: &str = r#\"\"\"#; use crate::keyring::Secret;",
        "use {crate::error, crate::keyring};",
    ] {
        let found = violations(&table, &words(&["store", "chunks"]), source);
        assert_eq!(found.len(), 1, "{source}: {found:?}");
        assert!(found[0].contains("store uses keyring"), "{source}: {found:?}");
    }
}

#[test]
fn ways_around_the_check_are_found() {
    let table = table(LIB);
    for source in ["use crate as c;", "use crate::*;", "use crate::{self as c};", "use super::super::*;"] {
        let found = violations(&table, &words(&["store", "chunks"]), source);
        assert_eq!(found, ["1: store uses the whole crate under another name"], "{source}");
    }
    assert_eq!(violations(&table, &words(&["novel"]), ""), ["1: module novel is not in the table"]);
    let found = violations(&table, &words(&["store"]), "\nuse crate::novel::X;");
    assert_eq!(found, ["2: store uses novel, which is not in the table"]);
}

#[test]
fn item_of_a_module_can_be_allowed_alone() {
    let table = table(LIB);
    let oss = words(&["oss"]);
    assert_eq!(
        violations(&table, &oss, "use crate::keyring::Secret; use crate::store;"),
        Vec::<String>::new()
    );
    assert_eq!(
        violations(&table, &oss, "use crate::keyring::{Secret, Ring};"),
        ["1: oss uses keyring::Ring"]
    );
    assert_eq!(violations(&table, &oss, "use crate::keyring;"), ["1: oss uses keyring"]);
}

#[test]
fn allowed_uses_comments_and_strings_are_passed_over() {
    let table = table(LIB);
    for source in [
        "// use crate::keyring;\n/* crate::keyring /* nested */ crate::keyring */ use crate::error::{A, B};",
        "const S: &str = \"crate::keyring \\\" crate::keyring\"; const B: &[u8] = br##\"crate::keyring \"# \"##;",
        "use super::other; use crate::store::chunks; pub(crate) fn f() {} pub(super) fn g() {} pub(in crate::store) fn h() {}",
        "mod tests { use super::*; mod deep { use super::super::x; } } use super::y;",
    ] {
        assert_eq!(
            violations(&table, &words(&["store", "chunks"]), source),
            Vec::<String>::new(),
            "{source}"
        );
    }
}

#[test]
fn broken_walls_are_found_through_other_modules() {
    let whole = |rows: &[&str]| rows.iter().map(|line| row(line).unwrap()).collect::<Table>();
    let found = broken_walls(&whole(&["mount: helper", "helper: store", "store: error", "error: (none)"]));
    assert_eq!(found, ["mount reaches store"]);
    let found = broken_walls(&whole(&["store: task", "task: keyring", "keyring: (none)"]));
    assert_eq!(found, ["store reaches keyring"]);
    let found = broken_walls(&whole(&["oss: keyring", "keyring: (none)"]));
    assert_eq!(found, ["oss uses more of keyring than Secret"]);
}
