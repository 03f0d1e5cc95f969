//! While the model is served: what is asked of the agent, the rotation that is under way, the revisions that readers still hold.

use std::cell::RefCell;
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::future::{FutureExt, OptionFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::oneshot;

use super::command::{Answer, Command, Commands, Prefetched, Refusal, Reloaded};
use super::model::Opened;
use super::rotation::Rotor;
use super::status::Failure;
use crate::ciphertext::{Ciphertext, EntryId, EntryKind};
use crate::config::{self, Settings};
use crate::gocryptfs;
use crate::store::Store;

/// How often it is looked how much of replaced revisions is still open.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// Answer for ever, and do what was asked for; returns only when serving must end.
pub(super) async fn serve(commands: &mut Commands, rotor: &Rotor<'_>) -> Failure {
    commands.forget_old();
    let lease = rotor.lease.keep(rotor.settings, rotor.voice, rotor.broker, rotor.served);
    tokio::pin!(lease);
    let mut rotations = 0u32;
    let last = RefCell::new(None);
    let mut rotating: OptionFuture<Pin<Box<dyn Future<Output = _> + Send + '_>>> = None.into();
    let mut leaving = FuturesUnordered::new();
    let mut reattesting = FuturesUnordered::new();
    let mut reloading = FuturesUnordered::new();
    let mut idle = true;
    loop {
        tokio::select! {
            failure = &mut lease => {
                // Who asked for this attestation hears of it.
                while let Some(Some((answer, heard))) = reattesting.next().now_or_never() {
                    hear(answer, heard);
                }
                return failure;
            }
            command = commands.next() => match command {
                Command::Prefetch { path, answer } => drop(answer.send(prefetch(rotor, path))),
                Command::Rotate { answer } if idle => {
                    rotations = rotations.saturating_add(1);
                    rotor.begin(rotations);
                    rotating = Some(Box::pin(rotor.rotate(rotations)) as Pin<Box<dyn Future<Output = _> + Send>>).into();
                    idle = false;
                    drop(answer.send(Ok(rotations)));
                }
                Command::Rotate { answer } => drop(answer.send(Err(Refusal::Busy))),
                Command::Reattest { answer } => {
                    let (asked, heard) = oneshot::channel();
                    match rotor.lease.ask(asked) {
                        Ok(()) => reattesting.push(async move { (answer, heard.await) }),
                        Err(_) => drop(answer.send(Err(Refusal::Busy))),
                    }
                }
                // Not here: what it waits for may wait for a rotation.
                Command::Reload { answer } => {
                    let last = &last;
                    reloading.push(async move { drop(answer.send(reload(rotor, last).await)) });
                }
            },
            Some(replaced) = &mut rotating => {
                rotating = None.into();
                idle = true;
                if let Some(replaced) = replaced {
                    leaving.push(rotor.leave(replaced));
                }
            }
            Some((answer, heard)) = reattesting.next() => hear(answer, heard),
            Some(()) = reloading.next() => {}
            Some(()) = leaving.next() => rotor.show_left_open(),
            () = tokio::time::sleep(LOOK_EVERY), if !leaving.is_empty() => rotor.show_left_open(),
        }
    }
}

/// Tell who asked for an attestation how it went.
fn hear(answer: Answer<()>, heard: Result<Result<(), Failure>, oneshot::error::RecvError>) {
    let outcome = match heard {
        Ok(outcome) => outcome.map_err(Refusal::from),
        Err(_) => Err(Refusal::NotServing),
    };
    drop(answer.send(outcome));
}

fn prefetch(rotor: &Rotor<'_>, path: PathBuf) -> Result<Prefetched, Refusal> {
    let served = rotor.served.borrow().clone();
    let below = path.strip_prefix(&rotor.settings.mount.point).unwrap_or(&path);
    let files = match &served.opened {
        Opened::Tree { tree, .. } => gocryptfs::files_at(tree, below),
        // Which encrypted file is behind a path, only the adapter knows.
        Opened::Adapter { .. } if below.as_os_str().is_empty() => Some(all_files(&served.store)),
        Opened::Adapter { .. } => None,
    };
    let files = files.ok_or_else(|| Refusal::NoSuchPath { path: path.clone() })?;
    // Also where the store was opened to keep nothing.
    if !served.store.progress().borrow().caching {
        return Err(Refusal::NothingKept);
    }
    served.store.prefetch(&files);
    let prefetched = Prefetched {
        files: u64::try_from(files.len()).unwrap_or(u64::MAX),
        missing: served.store.missing(&files),
    };
    tracing::info!(event = "agent.prefetch", path = %path.display(), "prefetch: {prefetched:?}");
    Ok(prefetched)
}

fn all_files(store: &Store) -> Vec<EntryId> {
    let numbered = (0..).map(EntryId).zip(store.entries());
    numbered.filter(|(_, entry)| matches!(entry.kind, EntryKind::File { .. })).map(|(id, _)| id).collect()
}

/// Read the configuration again: the terms of the lease and the key of the bucket hold from now on; for everything else it is
/// said what a restart would change. `last` is what was read the last time.
async fn reload(rotor: &Rotor<'_>, last: &RefCell<Option<Settings>>) -> Result<Reloaded, Refusal> {
    let root = rotor.settings.root.clone();
    let loaded = tokio::task::spawn_blocking(move || config::load(&root)).await;
    let (settings, _) = match loaded {
        Ok(Ok(loaded)) => loaded,
        Ok(Err(error)) => return Err(Refusal::Configuration { detail: error.to_string() }),
        Err(_) => return Err(Refusal::Configuration { detail: "reading it panicked".into() }),
    };
    let (_, later) = settings.changed_since(rotor.settings);
    let (applied, _) = settings.changed_since(last.borrow().as_ref().unwrap_or(rotor.settings));
    rotor.lease.set_terms(rotor.voice, settings.trustee.lease);
    // The client reads the file by itself; what it finds it logs.
    rotor.client.renew_key().await;
    tracing::info!(event = "config.reloaded", ?applied, needs_restart = ?later, "configuration {}", settings.fingerprint);
    last.replace(Some(settings));
    Ok(Reloaded { applied, later })
}
