//! `libtdx_attest.so.1`, compiled from C: the loading code meets a real library.

use std::fs;
use std::path::Path;
use std::process::Command;

/// `BEHAVIOUR` is C code that sees `report_data`, `quote` and `size`, and may return a code.
const SOURCE: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static uint8_t *given;
uint32_t tdx_att_get_quote(const uint8_t *report_data, const uint8_t *ids, uint32_t count, uint8_t *chosen,
                           uint8_t **quote, uint32_t *size, uint32_t flags) {
    if (!report_data || ids || count || chosen || !quote || !size || flags) return 2;
    BEHAVIOUR
    given = *quote;
    return 0;
}
uint32_t tdx_att_free_quote(uint8_t *quote) {
    if (!quote || quote != given) abort();
    free(quote);
    return 0;
}
"#;

/// Whether there is a compiler.
pub fn compiler() -> bool {
    Command::new("cc").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// A library below `root` that fails with `code`.
pub fn failing(root: &Path, code: u32) {
    build(root, &format!("return {code};"));
}

/// A library below `root` that gives `quote` with the report data put in at its place.
pub fn giving(root: &Path, quote: &[u8]) {
    let bytes: Vec<String> = quote.iter().map(u8::to_string).collect();
    let len = quote.len();
    build(
        root,
        &format!(
            "static const uint8_t bytes[] = {{ {} }};
             *quote = malloc({len}); memcpy(*quote, bytes, {len}); *size = {len};
             if ({len} > 632) memcpy(*quote + 568, report_data, 64);",
            bytes.join(",")
        ),
    );
}

/// A library below `root` that does what the C code says.
pub fn build(root: &Path, behaviour: &str) {
    let directory = root.join("usr/lib/x86_64-linux-gnu");
    fs::create_dir_all(&directory).unwrap();
    let source = directory.join("stub.c");
    fs::write(&source, SOURCE.replace("BEHAVIOUR", behaviour)).unwrap();
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(directory.join("libtdx_attest.so.1"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
