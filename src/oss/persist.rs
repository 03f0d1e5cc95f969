//! Trying again: what `publish` and `download` do when a request fails in a way that may pass.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::error::{OssError, Reason};
use crate::error::{ErrorClass, Fault};
use crate::store::Retry;

/// Try until it works, fails for good, or has failed for longer than `retry.limit`; not again once `stop` is cancelled.
///
/// # Errors
/// Whatever the last attempt said.
pub(super) async fn persist<T, F>(
    retry: &Retry,
    stop: &CancellationToken,
    attempt: impl Fn() -> F,
) -> Result<T, OssError>
where
    F: Future<Output = Result<T, OssError>>,
{
    let began = Instant::now();
    let mut tries = 0;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let pause = retry.pause(tries, asked(&error));
        let late = began.elapsed().saturating_add(pause) > retry.limit;
        if error.class() != ErrorClass::Transient || late {
            return Err(error);
        }
        tokio::select! {
            () = stop.cancelled() => return Err(error),
            () = tokio::time::sleep(pause) => {}
        }
        tries = tries.saturating_add(1);
    }
}

/// No such object, or no such upload.
pub(super) fn is_missing(error: &OssError) -> bool {
    matches!(error, OssError::Refused(refusal) if refusal.reason == Reason::NoSuchKey)
}

/// Whether `error` says nothing about one object, so that every other request would meet it too: no grant, no connection,
/// no patience left. What is only wrong with one object is no reason to keep the others waiting.
pub(super) fn concerns_all(error: &OssError) -> bool {
    match error {
        OssError::Refused(refusal) => match refusal.reason {
            Reason::NoSuchKey | Reason::Archived | Reason::Changed | Reason::Other => false,
            Reason::Passing
            | Reason::Throttled
            | Reason::ClockSkew
            | Reason::Credentials
            | Reason::AccessDenied
            | Reason::Signature
            | Reason::SecondLevelDomain
            | Reason::NoSuchBucket
            | Reason::ProxyLogin => true,
        },
        OssError::Archived { .. } | OssError::Key { .. } | OssError::Checksum { .. } => false,
        OssError::TooLarge { .. } | OssError::Xml { .. } | OssError::BadAnswer { .. } => false,
        _ => true,
    }
}

/// How long the server asked us to wait.
fn asked(error: &OssError) -> Option<Duration> {
    match error {
        OssError::Refused(refusal) => refusal.retry_after,
        _ => None,
    }
}
