//! The real `tng`, as scripts/setup.sh fetched it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::common;

/// Versions that setup.sh fetches: the oldest there is, and the newest.
pub const VERSIONS: [&str; 2] = ["2.6.0", "2.12.0"];
pub const NEWEST: &str = "2.12.0";

/// The binary of that version, if the test is to go on.
pub fn binary(version: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/tng").join(version).join("tng");
    common::available("tng", path.exists(), "no tng; run scripts/setup.sh test").then_some(path)
}

/// A running `tng`, ended with the test.
pub struct Tng {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Tng {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("tng said:\n{}", self.log());
        }
    }
}

impl Tng {
    /// Launch it, and wait until it listens at `at`.
    pub fn launch(binary: &Path, config: &Value, at: SocketAddr) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new(binary)
            .args(["launch", "--config-content", &config.to_string()])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut tng = Tng { child, directory };
        common::wait_until("tng to listen", || {
            assert_eq!(tng.child.try_wait().unwrap(), None, "{}", tng.log());
            TcpStream::connect(at).is_ok()
        });
        tng
    }

    pub fn log(&self) -> String {
        let log = std::fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}
