//! Where the instance metadata service answers, in sandbox builds: at its fixed address, unless a stand-in is set up.

use std::path::Path;

/// File with the stand-in's base URL, below the root.
const FILE: &str = "etc/cai/sandbox-metadata";

/// The stand-in's base URL, where the file that names it exists; the real one otherwise.
pub(super) fn base(root: &Path) -> String {
    match std::fs::read_to_string(root.join(FILE)) {
        Ok(url) => {
            tracing::warn!(
                event = "oss.sandbox-metadata",
                "a stand-in gives the credentials: for the sandbox only"
            );
            url.trim().to_owned()
        }
        Err(_) => "http://100.100.100.200".to_owned(),
    }
}
