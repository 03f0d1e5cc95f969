//! What the service manager is told, sd_notify(3). Without `NOTIFY_SOCKET` every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The line to the service manager. Remembers what was said, so that nothing is said twice.
#[derive(Debug, Default)]
pub struct Notifier {
    ready: bool,
    stopping: bool,
    text: String,
}

impl Notifier {
    /// Nothing said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `STATUS=`: one line for `systemctl status`. Before [`Notifier::ready`] and after [`Notifier::stopping`] a new text is a
    /// sign of progress, so the service manager is also asked to wait `patience` longer (`EXTEND_TIMEOUT_USEC=`).
    pub fn status(&mut self, text: &str, patience: Duration) {
        if self.text == text {
            return;
        }
        self.text = text.to_owned();
        let longer = NotifyState::ExtendTimeoutUsec(u32::try_from(patience.as_micros()).unwrap_or(u32::MAX));
        let is_waited_for = !self.ready || self.stopping;
        if is_waited_for {
            say(&[NotifyState::Status(text), longer])
        } else {
            say(&[NotifyState::Status(text)])
        }
    }

    /// `READY=1`, once: the mount can be read.
    pub fn ready(&mut self) {
        if !std::mem::replace(&mut self.ready, true) {
            say(&[NotifyState::Ready]);
        }
    }

    /// `STOPPING=1`, once.
    pub fn stopping(&mut self) {
        if !std::mem::replace(&mut self.stopping, true) {
            say(&[NotifyState::Stopping]);
        }
    }

    /// `WATCHDOG=1`: the agent's loop turned.
    pub fn alive(&self) {
        say(&[NotifyState::Watchdog]);
    }

    /// How often [`Notifier::alive`] is due: half of what the unit's `WatchdogSec=` allows; `None` without a watchdog.
    pub fn watchdog_interval() -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|limit| limit / 2)
    }
}

fn say(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(event = "notify.failed", error = ?error, "telling the service manager");
    }
}
