//! What is said on the line: one JSON object per packet, both ways.

use serde::{Deserialize, Serialize};

/// Longest message either side accepts, in bytes. The longest real one is an error text with two paths.
pub const MESSAGE_LIMIT: usize = 16 * 1024;

/// Something only root can do, asked for by the daemon. No argument is taken from the daemon: the root-owned
/// configuration says where and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Open `/dev/fuse`, mount it at the configured point, hand the descriptor over.
    Mount,
    /// Set the kernel's read-ahead of the mount to the configured value.
    Readahead,
    /// Detach the mount this connection made.
    Unmount,
}

/// The helper's answer. A descriptor travels beside `Done` to `Mount` only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Reply {
    /// It is done.
    Done {
        /// What was done, for the journal.
        text: String,
    },
    /// It was refused or failed; nothing has been changed.
    Refused {
        /// Stable dotted code, such as `mount-point.not-empty`.
        code: String,
        /// What was expected and what came.
        text: String,
        /// What to do about it.
        hint: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_on_the_wire_is_the_documented_object() {
        let text = serde_json::to_string(&Request::Readahead).unwrap();
        assert_eq!(text, r#"{"verb":"readahead"}"#);
    }

    #[test]
    fn request_with_an_argument_is_refused() {
        let parsed = serde_json::from_str::<Request>(r#"{"verb":"mount","point":"/etc"}"#);
        assert!(parsed.is_err(), "an argument from the daemon must not even parse");
    }

    #[test]
    fn request_of_another_verb_is_refused() {
        assert!(serde_json::from_str::<Request>(r#"{"verb":"chown"}"#).is_err());
    }
}
