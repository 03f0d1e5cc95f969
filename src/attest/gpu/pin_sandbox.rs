//! Which root every GPU's chain must end in, in sandbox builds: NVIDIA's, unless a stand-in for its GPUs is set up.

use std::path::Path;

use super::{NVIDIA_ROOT, Root};

/// Where a stand-in's root is pinned, below the root: SHA-256 of certificate and key, hex, a line each.
const PIN: &str = "etc/cai/sandbox-gpu-root";

/// The stand-in's root, where the file that pins it exists; NVIDIA's otherwise.
pub(in crate::attest) fn root(root: &Path) -> Root {
    let Some(pin) = std::fs::read_to_string(root.join(PIN)).ok().as_deref().and_then(parse) else {
        return NVIDIA_ROOT;
    };
    tracing::warn!(event = "attest.sandbox-gpu-root", "GPUs of a stand-in are believed: for the sandbox only");
    pin
}

fn parse(text: &str) -> Option<Root> {
    let mut lines = text.lines();
    let mut hash = || {
        let mut bytes = [0; 32];
        hex::decode_to_slice(lines.next()?, &mut bytes).ok()?;
        Some(bytes)
    };
    Some(Root { certificate: hash()?, key: hash()? })
}
