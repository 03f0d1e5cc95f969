//! What is said with the keeper: the process that starts the adapter, waits for it and stops it.
//!
//! The helper tells it what to start ([`Order`], then the descriptors) and hands the line to the daemon. From then on the
//! keeper speaks ([`Said`]) and the daemon only closes its side, which means: stop. It runs as the adapter's user, so what
//! it says is believed as little as what the adapter says.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::SamError;
use crate::error::ErrorClass;
use crate::helper::channel;

/// How long an adapter that was asked to end may take before it is killed.
pub const STOP_GRACE: Duration = Duration::from_secs(5);

/// How much longer its keeper may take to say so.
const KEEPER_GRACE: Duration = Duration::from_secs(5);

/// Packets with a descriptor each that follow an [`Order`], in this order: the mounted `/dev/fuse`, and the program. Beside the
/// order itself comes the key.
pub const FOLLOWING: [&[u8]; 2] = [b"device", b"adapter"];

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// `--key-id`.
    pub key_id: String,
    /// `--cipher-dir`.
    pub cipher_dir: PathBuf,
}

/// What the keeper says, each at most once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Said {
    /// The adapter printed `READY`.
    Ready,
    /// The adapter has ended.
    Ended(End),
}

/// How an adapter ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Its exit status.
    pub status: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It had to be killed at a stop.
    pub killed: bool,
    /// Processes that it left behind, and that were killed.
    pub left: u32,
}

impl End {
    /// Nobody said how.
    const UNKNOWN: End = End { status: None, signal: None, killed: false, left: 0 };

    /// What its exit status means, by `sysexits.h` as everywhere in cai.
    pub fn class(&self) -> ErrorClass {
        match self.status {
            Some(78) => ErrorClass::Config,
            Some(77) => ErrorClass::Denied,
            Some(65) => ErrorClass::Corrupt,
            Some(_) | None => ErrorClass::Transient,
        }
    }

    /// Processes that it left behind by itself: who is killed has no chance to end what it started.
    pub fn left_behind(&self) -> u32 {
        if self.killed || self.signal.is_some() { 0 } else { self.left }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status, self.signal) {
            (Some(status), _) => write!(f, "exit status {status}"),
            (None, Some(signal)) => write!(f, "signal {signal}"),
            (None, None) => f.write_str("its keeper is gone"),
        }
    }
}

/// How far an adapter has come.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Course {
    Starting,
    Ready,
    Ended(End),
}

/// The daemon's line to a keeper. Dropping it stops the adapter.
#[derive(Debug)]
pub struct Keeper {
    line: Arc<OwnedFd>,
    course: watch::Receiver<Course>,
}

impl Keeper {
    /// On a `line` that the helper gave.
    ///
    /// # Errors
    /// [`SamError::Line`]: no thread.
    pub fn new(line: OwnedFd) -> Result<Self, SamError> {
        let line = Arc::new(line);
        let (sender, course) = watch::channel(Course::Starting);
        let listening = line.clone();
        let listen = move || {
            loop {
                let next = match hear(&listening) {
                    Some(Said::Ready) => Course::Ready,
                    Some(Said::Ended(end)) => Course::Ended(end),
                    None => Course::Ended(End::UNKNOWN),
                };
                let is_over = matches!(next, Course::Ended(_));
                let _ = sender.send(next);
                if is_over {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("cai-keeper".into()).spawn(listen).map_err(SamError::Line)?;
        Ok(Keeper { line, course })
    }

    /// Wait until the adapter says that it is ready.
    ///
    /// # Errors
    /// [`SamError::NotReady`] after `limit`; [`SamError::Exited`] and [`SamError::Leaked`] when it ended.
    pub async fn ready(&self, limit: Duration) -> Result<(), SamError> {
        let mut course = self.course.clone();
        let begun = course.wait_for(|course| *course != Course::Starting);
        match tokio::time::timeout(limit, begun).await {
            Err(_) => Err(SamError::NotReady { after: limit }),
            Ok(Ok(course)) => match &*course {
                Course::Ended(end) => Err(SamError::exited(end.clone())),
                Course::Starting | Course::Ready => Ok(()),
            },
            Ok(Err(_)) => Err(SamError::exited(End::UNKNOWN)),
        }
    }

    /// Wait until the adapter has ended: how.
    pub async fn ended(&self) -> End {
        let mut course = self.course.clone();
        match course.wait_for(|course| matches!(course, Course::Ended(_))).await.as_deref() {
            Ok(Course::Ended(end)) => end.clone(),
            Ok(Course::Starting | Course::Ready) | Err(_) => End::UNKNOWN,
        }
    }

    /// Stop the adapter: how it ended, and [`None`] when nobody says so in time.
    pub async fn stop(&self) -> Option<End> {
        // A closed line is a stop that was given already.
        let _ = shutdown(self.line.as_raw_fd(), Shutdown::Write);
        tokio::time::timeout(STOP_GRACE + KEEPER_GRACE, self.ended()).await.ok()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = shutdown(self.line.as_raw_fd(), Shutdown::Both);
    }
}

/// The next thing that the keeper says; [`None`] at the end, and for what is none.
fn hear(line: &OwnedFd) -> Option<Said> {
    let heard: io::Result<_> = channel::receive(line.as_fd());
    let (packet, _) = heard.ok().flatten()?;
    serde_json::from_slice(&packet).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses_mean_what_they_mean_for_cai() {
        let class = |status| End { status, ..End::UNKNOWN }.class();
        assert_eq!([Some(78), Some(77), Some(65), Some(1), None].map(class), {
            use ErrorClass::*;
            [Config, Denied, Corrupt, Transient, Transient]
        });
    }

    #[tokio::test]
    async fn line_that_closes_or_says_nonsense_is_an_end() {
        for said in [None, Some(&b"{}"[..])] {
            let (ours, theirs) = channel::pair().unwrap();
            if let Some(said) = said {
                channel::send(theirs.as_fd(), said, None).unwrap();
            } else {
                drop(theirs);
            }
            let keeper = Keeper::new(ours).unwrap();
            assert_eq!(keeper.ended().await, End::UNKNOWN);
            let refused = keeper.ready(Duration::from_secs(5)).await.unwrap_err();
            assert!(matches!(refused, SamError::Exited { .. }), "{refused:?}");
        }
    }
}
