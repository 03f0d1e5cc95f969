//! Where the instance metadata service of Alibaba Cloud answers.

use std::path::Path;

/// The fixed link-local address of every ECS instance. Source: oss.md 1.9.
pub(super) fn base(_root: &Path) -> String {
    "http://100.100.100.200".to_owned()
}
