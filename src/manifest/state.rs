//! What was accepted before, on disk: one small file per model key.
//!
//! Written whole or not at all. A file that cannot be understood is an error and never "nothing seen": whoever could damage
//! it would roll the model back otherwise.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::code::Identity;
use super::key::PublicKey;
use super::policy::Seen;
use crate::error::{ErrorClass, Fault};

/// A state file has about 300 bytes.
const LARGEST: u64 = 16 << 10;

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading or writing failed.
    #[error("the state file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what cai writes.
    #[error("the state file {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl Fault for StateError {
    fn class(&self) -> ErrorClass {
        match self {
            StateError::Io { .. } | StateError::Damaged { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            StateError::Io { .. } => "model.state-io",
            StateError::Damaged { .. } => "model.state-damaged",
        }
    }

    fn hint(&self) -> String {
        match self {
            StateError::Io { path, .. } => {
                format!("{} must be writable for user cai", path.parent().unwrap_or(path).display())
            }
            StateError::Damaged { path } => format!(
                "it remembers the newest revision of the model: compare the model with its publisher's, then remove {}",
                path.display()
            ),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    key_id: String,
    publisher: String,
    revision: u64,
    identity: String,
}

/// Where the state of every model key lies.
#[derive(Debug, Clone)]
pub struct StateDir {
    dir: PathBuf,
}

impl StateDir {
    /// Below `dir`, which belongs to the daemon's user.
    pub fn new(dir: &Path) -> Self {
        StateDir { dir: dir.join("models") }
    }

    /// The file of `key_id`. Key ids are text of the operator's; a hash of one is a file name.
    fn path(&self, key_id: &str) -> PathBuf {
        self.dir.join(format!("{}.json", hex::encode(Sha256::digest(key_id))))
    }

    /// What was accepted for `key_id`.
    ///
    /// # Errors
    /// [`StateError`]; a file that is not there is no error.
    pub fn load(&self, key_id: &str) -> Result<Option<Seen>, StateError> {
        let path = self.path(key_id);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StateError::Io { path, source }),
        }
        let damaged = || StateError::Damaged { path: path.clone() };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| damaged())?;
        let seen = PublicKey::parse(&stored.publisher).zip(Identity::parse(&stored.identity));
        match seen {
            Some((publisher, identity))
                if stored.version == 1 && stored.key_id == key_id && stored.revision > 0 =>
            {
                Ok(Some(Seen { publisher, revision: stored.revision, identity }))
            }
            _ => Err(damaged()),
        }
    }

    /// Remember `seen` for `key_id`, durably.
    ///
    /// # Errors
    /// [`StateError::Io`]; what was remembered before still is.
    pub fn store(&self, key_id: &str, seen: &Seen) -> Result<(), StateError> {
        let path = self.path(key_id);
        let stored = Stored {
            version: 1,
            key_id: key_id.to_owned(),
            publisher: seen.publisher.to_string(),
            revision: seen.revision,
            identity: seen.identity.to_string(),
        };
        self.put(&path, &stored).map_err(|source| StateError::Io { path: path.clone(), source })
    }

    fn put(&self, path: &Path, stored: &Stored) -> std::io::Result<()> {
        DirBuilder::new().mode(0o700).recursive(true).create(&self.dir)?;
        let draft = path.with_extension("new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(stored)?)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(revision: u64) -> Seen {
        let identity = Identity::parse(&"cd".repeat(32)).unwrap();
        Seen { publisher: PublicKey::new([7; 32]), revision, identity }
    }

    #[test]
    fn state_is_remembered_for_each_key_apart() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(&dir.path().join("var/lib/cai"));
        assert_eq!(state.load("kbs:///a/b/c").unwrap(), None);
        state.store("kbs:///a/b/c", &seen(3)).unwrap();
        state.store("kbs:///a/b/d", &seen(9)).unwrap();
        state.store("kbs:///a/b/c", &seen(4)).unwrap();
        assert_eq!(state.load("kbs:///a/b/c").unwrap(), Some(seen(4)));
        assert_eq!(state.load("kbs:///a/b/d").unwrap(), Some(seen(9)));
        assert_eq!(state.load("../../x").unwrap(), None);
    }

    #[test]
    fn damaged_state_is_an_error_and_never_nothing_seen() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        state.store("key", &seen(3)).unwrap();
        let path = state.path("key");
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"revision\": 3", "\"revision\": 0"),
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace("\"key\"", "\"another\""),
            good.replace("cd", "zz"),
            good.replace("\"version\": 1", "\"version\": 1, \"more\": 1"),
        ] {
            assert_ne!(bad, good);
            fs::write(&path, &bad).unwrap();
            let result = state.load("key");
            assert!(matches!(&result, Err(StateError::Damaged { path: named }) if *named == path), "{bad}");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(state.load("key"), Err(StateError::Io { .. })));
    }

    #[test]
    fn draft_of_an_interrupted_write_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        state.store("key", &seen(1)).unwrap();
        fs::write(state.path("key").with_extension("new"), b"{").unwrap();
        state.store("key", &seen(2)).unwrap();
        assert_eq!(state.load("key").unwrap(), Some(seen(2)));
    }
}
