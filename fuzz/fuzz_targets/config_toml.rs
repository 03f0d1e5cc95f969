//! `cai.toml`, below a valid `cai.env`.
//!
//! Holds: no input panics; a file is judged the same twice; every number of a file that is taken is in the range that the
//! table of keys documents.
#![no_main]

use std::path::Path;

use cai::config::keys::{self, Form};
use cai::config::{self, Facts, FileKind, SourceFile};
use libfuzzer_sys::fuzz_target;

const ENV: &str = "TRUSTEE_URL=https://trustee.example.com\n\
    MODEL_KEY_ID=kbs:///default/aliyun/key\n\
    MODEL_OSS_BUCKET_PATH=conf-ai:/model/\n\
    MODEL_OSS_ENDPOINT=https://oss-cn-beijing.aliyuncs.com\n\
    MODEL_MOUNT_POINT=/tmp/model\n";

fuzz_target!(|toml: &[u8]| {
    let Ok(toml) = std::str::from_utf8(toml) else { return };
    let first = judge(toml);
    assert_eq!(first, judge(toml));
    let Some(settings) = first else { return };
    for (name, value) in settings {
        if let Some(Form::Whole(least, most)) =
            keys::TOML.iter().find(|key| key.name == name).map(|key| key.form)
            && !value.is_empty()
        {
            let number: i64 = value.parse().unwrap();
            assert!((least..=most).contains(&number), "{name} = {number}");
        }
    }
});

/// The values in effect, if the file is taken.
fn judge(toml: &str) -> Option<Vec<(&'static str, String)>> {
    let file = |name: &str, kind, text: &str| SourceFile {
        name: name.into(),
        kind,
        text: text.to_owned().into(),
        mode: Some(0o640),
    };
    let files = [file("cai.toml", FileKind::Toml, toml), file("cai.env", FileKind::Env, ENV)];
    let facts = Facts { model_gid: Some(990), sandbox: false };
    let (settings, _) = config::parse(&files, Path::new("/"), &facts).ok()?;
    Some(settings.effective())
}
