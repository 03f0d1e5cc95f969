//! How the object store is used right now, for people: which credential, how much is let through.

use std::time::SystemTime;

use tokio::sync::watch;

/// A snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// What kind of credential signs the requests: `anonymous`, `AccessKey`, `STS`, `RAM role of this machine`, `RAM role by
    /// OIDC`.
    pub credentials: String,
    /// The proxy that requests go to, where there is one.
    pub proxy: Option<String>,
    /// When it ends, where that is known.
    pub expires: Option<SystemTime>,
    /// Answers that asked for less or slower, since the start.
    pub throttled: u64,
    /// Requests that may be in flight now.
    pub concurrency: u64,
    /// Seconds that this machine's clock is behind OSS, once that was in the way.
    pub clock_offset: i64,
}

/// Where the snapshot is kept.
pub(super) struct AccessCell(watch::Sender<Access>);

impl AccessCell {
    pub(super) fn new(concurrency: u64, proxy: Option<String>) -> Self {
        AccessCell(watch::Sender::new(Access { concurrency, proxy, ..Access::default() }))
    }

    pub(super) fn watch(&self) -> watch::Receiver<Access> {
        self.0.subscribe()
    }

    pub(super) fn credential(&self, kind: &str, expires: Option<SystemTime>) {
        self.change(|access| {
            access.credentials = kind.to_owned();
            access.expires = expires;
        });
    }

    pub(super) fn counts(&self, throttled: u64, concurrency: u64) {
        self.change(|access| (access.throttled, access.concurrency) = (throttled, concurrency));
    }

    pub(super) fn clock(&self, offset: i64) {
        self.change(|access| access.clock_offset = offset);
    }

    fn change(&self, change: impl FnOnce(&mut Access)) {
        self.0.send_if_modified(|access| {
            let before = access.clone();
            change(access);
            *access != before
        });
    }
}
