//! What was asked of the sandbox, for tests to assert on and for a person to follow.
//!
//! Owns the list behind `GET {control}/log` and the lines on stderr. Header values that could be secret never reach it.
//! One mutex, held for a push. Tested through `tests/sandbox_kbs.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Entries kept: a long demo must not grow without end; the counts stay exact.
const KEPT: usize = 10_000;

/// One request, after its answer's header was made.
#[derive(Clone, Serialize)]
pub(crate) struct Entry {
    pub(crate) server: &'static str,
    pub(crate) op: &'static str,
    pub(crate) method: String,
    /// Object key, listing prefix or resource path.
    pub(crate) subject: String,
    /// The request's `Range`, as sent.
    pub(crate) range: Option<String>,
    /// Status of the answer; 0 when the connection was dropped instead.
    pub(crate) status: u16,
    /// Body length that the answer announces, in bytes.
    pub(crate) bytes: u64,
}

/// The log as `GET /log` gives it.
#[derive(Clone, Default, Serialize)]
pub(crate) struct Seen {
    /// `server.op` to number of requests.
    counts: BTreeMap<String, u64>,
    requests: VecDeque<Entry>,
}

#[derive(Default)]
pub(crate) struct Journal(Mutex<Seen>);

impl Journal {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self, entry: Entry) {
        let Entry { server, op, method, subject, range, status, bytes } = &entry;
        let range = range.as_deref().unwrap_or("-");
        eprintln!("{server} {op} {status} {bytes} {method} {subject:?} {range}");
        let mut seen = self.seen();
        *seen.counts.entry(format!("{server}.{op}")).or_default() += 1;
        if seen.requests.len() == KEPT {
            seen.requests.pop_front();
        }
        seen.requests.push_back(entry);
    }

    pub(crate) fn snapshot(&self) -> Seen {
        self.seen().clone()
    }

    pub(crate) fn clear(&self) {
        *self.seen() = Seen::default();
    }
}
