//! The one place where asynchronous tasks start.
//!
//! A task that nobody waits for hides its panic and outlives its owner. Here each has a name (a tracing span), a
//! cancellation token and a place in a [`Tasks`] set that is joined at stop.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// A task ended that should have run until it was cancelled, or panicked.
#[derive(Debug, thiserror::Error)]
#[error("task {name} ended unasked ({how})")]
pub struct Ended {
    /// Name given to [`Tasks::supervise`].
    pub name: &'static str,
    /// `returned` or `panicked`.
    pub how: &'static str,
}

/// The tasks of one owner, stopped and joined together.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    token: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Token that is cancelled when [`Tasks::stop`] is called.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Start `future` under `name`. It is dropped at its next await once the token is cancelled.
    pub fn supervise<F>(&mut self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let token = self.token.clone();
        let span = tracing::info_span!("task", name);
        let task = async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = future => {}
            }
            name
        };
        self.set.spawn(task.instrument(span));
    }

    /// Forget the tasks that have ended, where tasks come and go and nobody waits for them.
    pub fn reap(&mut self) {
        while self.set.try_join_next().is_some() {}
    }

    /// Wait until any task ends: normally never, so this is a failure to report unless the token was cancelled.
    pub async fn any_ended(&mut self) -> Ended {
        match self.set.join_next().await {
            Some(Ok(name)) => Ended { name, how: "returned" },
            Some(Err(_)) => Ended { name: "unknown", how: "panicked" },
            None => std::future::pending().await,
        }
    }

    /// Cancel every task and wait for it, at most `limit`; what is left then is aborted.
    pub async fn stop(mut self, limit: Duration) {
        self.token.cancel();
        let joined =
            tokio::time::timeout(limit, async { while self.set.join_next().await.is_some() {} }).await;
        if joined.is_err() {
            tracing::warn!(
                event = "task.stuck",
                left = self.set.len(),
                "tasks did not end in time and were aborted"
            );
            self.set.shutdown().await;
        }
    }
}
