//! `cai.env`.
//!
//! Holds: no input panics; a file is judged the same twice; a secret in it is in no message and no summary, whatever the
//! rest of the file looks like.
#![no_main]

use std::path::Path;

use cai::config::{self, Facts, FileKind, Problems, Settings, SourceFile};
use libfuzzer_sys::fuzz_target;

/// First line of every file; nothing after it can change it.
const SECRET: &str = "uNl1keLyS3cr3tValue0123456789";

fuzz_target!(|rest: &[u8]| {
    let Ok(rest) = std::str::from_utf8(rest) else { return };
    if rest.contains(SECRET) {
        return;
    }
    let text = format!("MODEL_OSS_SECRET_ACCESS_KEY={SECRET}\n{rest}");
    let shown = show(&text);
    assert!(!shown.contains(SECRET), "{shown}");
    assert_eq!(shown, show(&text));
});

/// Everything that is ever shown of a configuration.
fn show(env: &str) -> String {
    let file = SourceFile {
        name: "cai.env".into(),
        kind: FileKind::Env,
        text: env.to_owned().into(),
        mode: Some(0o644),
    };
    let facts = Facts { model_gid: None, sandbox: false };
    match config::parse(&[file], Path::new("/"), &facts) {
        Ok((settings, notices)) => {
            let Settings { fingerprint, .. } = &settings;
            format!("{fingerprint} {:?} {notices:?}", settings.effective())
        }
        Err(problems) => {
            let Problems { problems: list, notices } = &problems;
            format!("{problems} {list:?} {notices:?}")
        }
    }
}
