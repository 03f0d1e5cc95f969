//! A model that an adapter decrypts: whether there is one, the ciphertext it reads, its start, its end.
//!
//! The key goes to it through a pipe and stays here, to be compared with what a rotation brings. What the adapter shows is
//! looked at by the helper before it is put at the mount point; whether it is the model, nobody but the vendor can say.

use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::statfs::FUSE_SUPER_MAGIC;

use super::model::Revision;
use super::mounting::{self, Mount};
use super::stages::{StageError, ask, blocking};
use super::state::State;
use super::status::Failure;
use super::voice::Voice;
use crate::config::{Encryption, Settings};
use crate::error::Fault;
use crate::helper::protocol::Request;
use crate::helper::{Helper, HelperError};
use crate::keyring::Secret;
use crate::mount::Mounted;
use crate::sam::keeper::Keeper;
use crate::sam::{KEY_BYTES, SamError};

/// The adapter, and the ciphertext that it reads.
pub(super) struct Adapted {
    ciphertext: Mounted,
    keeper: Keeper,
}

impl Adapted {
    /// Wait until the adapter has ended, which it must not while the model is served.
    pub(super) async fn failed(&self) -> SamError {
        SamError::crashed(self.keeper.ended().await)
    }

    /// End it, and what it read; nobody reads from it any more.
    pub(super) async fn stop(self, voice: &Voice) {
        match self.keeper.stop().await {
            Some(end) if end.killed => tracing::warn!(
                event = "sam.killed",
                "the adapter did not end when it was asked to, and was killed"
            ),
            Some(end) if end.left_behind() > 0 => {
                let count = end.left_behind();
                voice.warn(&Failure::new(voice.state(), &SamError::Leaked { end, count }));
            }
            Some(end) => tracing::info!(event = "sam.ended", "the adapter ended: {end}"),
            None => tracing::warn!(event = "sam.unheard", "nobody says whether the adapter has ended"),
        }
        if tokio::time::timeout(mounting::MOUNT_GRACE, self.ciphertext.ended()).await.is_err() {
            tracing::warn!(event = "sam.busy", "the adapter's directory is still in use");
        }
    }
}

/// Where a model needs an adapter, there must be one before anything else is done.
pub(super) async fn check(settings: &Settings, helper: &Arc<Helper>) -> Result<(), Failure> {
    if settings.model.encryption != Encryption::Sam {
        return Ok(());
    }
    let (text, _) =
        ask(helper, Request::DecryptorCheck).await.map_err(|error| Failure::new(State::Starting, &error))?;
    tracing::info!(event = "sam.adapter", "{text}");
    Ok(())
}

/// Whether what was released can be a key of the format.
pub(super) fn check_key(key: &Secret) -> Result<(), Failure> {
    let len = key.len();
    if KEY_BYTES.contains(&len) {
        return Ok(());
    }
    Err(Failure::new(State::Fetching, &SamError::KeyLength { len }))
}

/// Give the adapter the ciphertext and the `key`, and put what it shows at the mount point.
pub(super) async fn mount(
    settings: &Settings,
    voice: &Voice,
    helper: &Arc<Helper>,
    revision: &Revision,
    key: Arc<Secret>,
) -> Result<(Mount, String), Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Mounting, fault);
    let point = settings.mount.point.clone();
    let fs = mounting::model_fs(settings, revision)?;
    let files = fs.file_count();
    let (text, device) = ask(helper, Request::Ciphertext).await.map_err(|error| fail(&error))?;
    tracing::info!(event = "sam.ciphertext", "ciphertext {text}");
    let device = device.ok_or_else(|| fail(&StageError::NoDevice))?;
    let threads = settings.mount.threads;
    let ciphertext = blocking(State::Mounting, move || {
        Mounted::from_device(fs, device, threads).map_err(|error| Failure::new(State::Mounting, &error))
    })
    .await?;
    voice.stage("starting the adapter");
    let line = helper.clone();
    let (text, line) = blocking(State::Mounting, move || start(&line, &key)).await?;
    tracing::info!(event = "sam.started", "{text}");
    let keeper = Keeper::new(line).map_err(|error| fail(&error))?;
    keeper.ready(settings.sam.ready_timeout).await.map_err(|error| fail(&error))?;
    // It may end while its mount is waited for: then that is what is to be said.
    let shown = tokio::select! {
        biased;
        end = keeper.ended() => return Err(fail(&SamError::exited(end))),
        shown = ask(helper, Request::Decrypted) => shown,
    };
    let (text, _) = shown.map_err(|error| fail(&error))?;
    tracing::info!(event = "mount.made", "{text}");
    let seen = point.clone();
    blocking(State::Mounting, move || {
        mounting::see_it_answer(&seen, FUSE_SUPER_MAGIC).map_err(|source| {
            Failure::new(State::Mounting, &StageError::Unreachable { point: seen.clone(), source })
        })
    })
    .await?;
    if let Err(error) = ask(helper, Request::Readahead).await {
        tracing::warn!(event = "mount.readahead", error = ?error, "setting the read-ahead: {error}");
    }
    let how = format!("{files} encrypted files, decrypted at {} by the adapter sam", point.display());
    Ok((Mount::Adapter(Adapted { ciphertext, keeper }), how))
}

/// Have the adapter started, with its key in a pipe: words, and the line to its keeper. Blocks.
fn start(helper: &Helper, key: &Secret) -> Result<(String, OwnedFd), Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Mounting, fault);
    let line = |source: std::io::Error| fail(&HelperError::Line { verb: Request::Decrypt, source });
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| line(error.into()))?;
    // A pipe holds at least a page.
    key.with(|bytes| std::fs::File::from(writer).write_all(bytes)).map_err(line)?;
    let (text, keeper) = helper.decrypt(reader.as_fd()).map_err(|error| fail(&error))?;
    Ok((text, keeper.ok_or_else(|| fail(&StageError::NoDevice))?))
}
