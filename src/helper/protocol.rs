//! What is said on the line: one JSON object per packet, both ways.

use serde::{Deserialize, Serialize};

/// Longest message either side accepts, in bytes. The longest real one is an error text with two paths.
pub const MESSAGE_LIMIT: usize = 16 * 1024;

/// Something only root can do, asked for by the daemon. No argument is taken from the daemon: the root-owned
/// configuration says where and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Open `/dev/fuse`, mount it at the configured point, hand the descriptor over.
    Mount,
    /// Set the kernel's read-ahead of the mount to the configured value.
    Readahead,
    /// Detach the mount this connection made.
    Unmount,
}

/// A [`Request`] on the wire: `{"verb":"mount"}`. A struct, so that an unknown field is refused.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    verb: Request,
}

impl Request {
    /// The packet that asks for it.
    ///
    /// # Errors
    /// None in practice: what serialisation says.
    pub fn to_packet(self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Message { verb: self })
    }

    /// The request in a packet.
    ///
    /// # Errors
    /// Anything but exactly one known verb.
    pub fn from_packet(packet: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(packet).map(|Message { verb }| verb)
    }
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
        assert_eq!(Request::Readahead.to_packet().unwrap(), br#"{"verb":"readahead"}"#);
        for verb in [Request::Mount, Request::Readahead, Request::Unmount] {
            assert_eq!(Request::from_packet(&verb.to_packet().unwrap()).unwrap(), verb);
        }
    }

    #[test]
    fn request_with_an_argument_is_refused() {
        let parsed = Request::from_packet(br#"{"verb":"mount","point":"/etc"}"#);
        assert!(parsed.is_err(), "an argument from the daemon must not even parse");
    }

    #[test]
    fn request_of_another_verb_is_refused() {
        assert!(Request::from_packet(br#"{"verb":"chown"}"#).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_packet_is_a_request_or_refused(packet in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
            if let Ok(request) = Request::from_packet(&packet) {
                proptest::prop_assert!(request.to_packet().is_ok());
            }
        }
    }
}
