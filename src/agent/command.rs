//! What the agent is asked to do while it serves, and the answers.
//!
//! Who may ask is decided where the question comes in (`bus`); what can be done, here.

use std::path::PathBuf;

use tokio::sync::{mpsc, oneshot};

use super::status::Failure;
use crate::error::{ErrorClass, Fault};

/// Questions that wait while one is answered: more are an attack or a loop.
const WAITING: usize = 16;

/// What was brought forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefetched {
    /// Files at or below the path.
    pub files: u64,
    /// Ciphertext bytes of them that are not local. A bounded cache may have no room for all until others were read.
    pub missing: u64,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to do it with.
    #[error("the model is not served now: ask again in state Serving")]
    NotServing,
    /// No such file or directory in the model.
    #[error("{} is no file or directory of the model; give it below the mount point, or the mount point's own path", path.display())]
    NoSuchPath {
        /// What was asked for.
        path: PathBuf,
    },
    /// One at a time.
    #[error("the same is under way already: cai status shows how far it is")]
    Busy,
    /// The attestation was denied, and serving ends.
    #[error("the attestation was denied, and cai ends: {detail} [{code}]")]
    Denied {
        /// The failure's code.
        code: &'static str,
        /// The whole cause.
        detail: String,
    },
    /// The attestation failed.
    #[error("the attestation was not renewed: {detail} [{code}]")]
    NotAttested {
        /// The failure's code.
        code: &'static str,
        /// The whole cause.
        detail: String,
    },
    /// The configuration cannot be used; the old one stays in effect.
    #[error("the configuration cannot be used, and the old one stays in effect: {detail}")]
    Configuration {
        /// What is wrong with it.
        detail: String,
    },
    /// What is fetched ahead would be thrown away.
    #[error("the cache keeps nothing (cache.mode, or a full disk), so nothing can be fetched ahead")]
    NothingKept,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let (code, detail) = (failure.shown().code, failure.shown().detail.clone());
        match failure.class() {
            ErrorClass::Denied | ErrorClass::Corrupt => Refusal::Denied { code, detail },
            ErrorClass::Transient | ErrorClass::Config | ErrorClass::Internal => {
                Refusal::NotAttested { code, detail }
            }
        }
    }
}

/// What a new reading of the configuration changed, by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// In effect from now on.
    pub applied: Vec<&'static str>,
    /// In effect after a restart.
    pub later: Vec<&'static str>,
}

/// Where an answer goes.
pub(super) type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

/// A question, and where its answer goes.
pub(super) enum Command {
    Prefetch { path: PathBuf, answer: Answer<Prefetched> },
    Rotate { answer: Answer<u32> },
    Reattest { answer: Answer<()> },
    Reload { answer: Answer<Reloaded> },
}

/// Where questions are handed in. Cheap to clone.
#[derive(Clone)]
pub struct Desk(mpsc::Sender<Command>);

/// Where they come out.
pub struct Commands(mpsc::Receiver<Command>);

/// Both ends.
pub fn desk() -> (Desk, Commands) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Desk(sender), Commands(receiver))
}

impl Desk {
    /// Fetch the file at `path`, or all files below it, before everything else that nobody waits for. `path` is absolute and at
    /// or below the mount point, or relative to it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub async fn prefetch(&self, path: PathBuf) -> Result<Prefetched, Refusal> {
        self.ask(|answer| Command::Prefetch { path, answer }).await
    }

    /// Begin a rotation; gives its number. How it goes is in the status.
    ///
    /// # Errors
    /// [`Refusal::NotServing`], [`Refusal::Busy`].
    pub async fn rotate(&self) -> Result<u32, Refusal> {
        self.ask(|answer| Command::Rotate { answer }).await
    }

    /// Attest anew and ask whether the key would still be released. A denial ends the agent.
    ///
    /// # Errors
    /// [`Refusal::NotServing`], [`Refusal::Busy`], [`Refusal::NotAttested`], [`Refusal::Denied`].
    pub async fn reattest(&self) -> Result<(), Refusal> {
        self.ask(|answer| Command::Reattest { answer }).await
    }

    /// Read the configuration again.
    ///
    /// # Errors
    /// [`Refusal::NotServing`], [`Refusal::Configuration`].
    pub async fn reload(&self) -> Result<Reloaded, Refusal> {
        self.ask(|answer| Command::Reload { answer }).await
    }

    async fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(command(answer)).await.map_err(|_| Refusal::NotServing)?;
        // Dropped unanswered where the agent stops serving.
        answered.await.unwrap_or(Err(Refusal::NotServing))
    }
}

impl Commands {
    /// What was asked before there was anything to ask has its answer.
    pub(super) fn forget_old(&mut self) {
        while self.0.try_recv().is_ok() {}
    }

    /// The next question.
    pub(super) async fn next(&mut self) -> Command {
        match self.0.recv().await {
            Some(command) => command,
            // Without a bus nobody asks.
            None => std::future::pending().await,
        }
    }
}
