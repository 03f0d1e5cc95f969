//! The keys of `cai.env` and `cai.toml`, as a manual page has them.

use cai::config::keys::{Default, Key};
use clap_mangen::roff::{Roff, bold, line_break, roman};

/// Variables, in the order of the file.
pub fn variables(keys: &[&Key]) -> String {
    let mut roff = Roff::new();
    for key in keys {
        entry(&mut roff, key);
    }
    roff.render()
}

/// Tuning keys, by section, in the order of the file.
pub fn tuning(keys: &[Key]) -> String {
    let mut roff = Roff::new();
    let section = |key: &Key| key.name.split('.').next().unwrap_or_default().to_owned();
    for keys in keys.chunk_by(|one, next| section(one) == section(next)) {
        let Some(first) = keys.first() else { continue };
        roff.control("SS", [&*format!("[{}]", section(first))]);
        for key in keys {
            entry(&mut roff, key);
        }
    }
    roff.render()
}

fn entry(roff: &mut Roff, key: &Key) {
    // Narrower than usual: a hash in hexadecimal digits must fit behind it into 80 columns.
    roff.control("TP", ["4"]);
    roff.text([bold(key.name)]);
    let mut facts = format!("Form: {}.", key.form);
    if let Some(unit) = key.unit {
        facts += &format!(" Unit: {unit}.");
    }
    facts += &match key.default {
        Default::Required => " Must be set.".to_owned(),
        Default::Is(value) => format!(" Default: {value}."),
        Default::Derived(words) => format!(" Default: {words}."),
    };
    facts += &format!(" Example: {}", key.example_line());
    roff.text([roman(key.effect), line_break(), roman(facts)]);
}
