//! A signed manifest of objects in memory.

use std::path::Path;
use std::sync::Arc;

use cai::manifest::{Contents, Manifest, SigningKey, generate, list};

/// Of revision 1, without a licence, signed with a key made for it.
pub fn manifest<'a>(objects: impl IntoIterator<Item = (&'a Path, &'a [u8])>) -> Arc<Manifest> {
    let dir = tempfile::tempdir().unwrap();
    generate(&dir.path().join("key")).unwrap();
    let key = SigningKey::read(&dir.path().join("key")).unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for (path, content) in objects {
        std::fs::write(model.join(path), content).unwrap();
    }
    let objects = list(&model).unwrap().objects(&model, &|_| {}).unwrap();
    let file = Contents { revision: 1, licence: None, objects }.sign(&key).unwrap();
    Arc::new(Manifest::parse(&file).unwrap())
}
