//! Which root every GPU's chain must end in: NVIDIA's.

use std::path::Path;

use super::{NVIDIA_ROOT, Root};

/// NVIDIA's device root.
pub(in crate::attest) fn root(_root: &Path) -> Root {
    NVIDIA_ROOT
}
