//! The mount put in place, in the way that the configuration and the machine allow, and taken away.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, FsType, TMPFS_MAGIC};

use super::adapter::{self, Adapted};
use super::model::{Opened, Revision};
use super::stages::{StageError, ask, blocking};
use super::state::{Event, State};
use super::status::Failure;
use super::voice::Voice;
use crate::config::{self, MountMode, Settings};
use crate::error::{Fault, chain};
use crate::helper::Helper;
use crate::helper::protocol::Request;
use crate::mount::{self, Attributes, LoadOptions, Memory, ModelFs, Mounted, Registrar};
use crate::sam::SamError;

/// How long open files of the detached mount are waited for before the process ends under them.
pub(super) const MOUNT_GRACE: Duration = Duration::from_secs(2);
/// How often it is looked whether a mount that needs no process of ours is still there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often the progress of a whole decryption is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// The mount, in place.
pub(super) enum Mount {
    /// We answer the kernel.
    Fuse(Mounted),
    /// A memory file system, which needs nobody.
    Memory(PathBuf),
    /// An adapter answers the kernel, and we answer the adapter.
    Adapter(Adapted),
}

impl Mount {
    /// What `statfs` shows of it.
    pub(super) fn kind(&self) -> FsType {
        match self {
            Mount::Fuse(_) | Mount::Adapter(_) => FUSE_SUPER_MAGIC,
            Mount::Memory(_) => TMPFS_MAGIC,
        }
    }

    /// Wait until it is gone.
    pub(super) async fn ended(&self) {
        match self {
            Mount::Fuse(mounted) => mounted.ended().await,
            Mount::Memory(point) => memory_ended(point).await,
            // Its adapter ends with it, and says more.
            Mount::Adapter(_) => std::future::pending().await,
        }
    }

    /// Wait until the adapter has ended, where there is one.
    pub(super) async fn adapter_failed(&self) -> SamError {
        match self {
            Mount::Adapter(adapted) => adapted.failed().await,
            Mount::Fuse(_) | Mount::Memory(_) => std::future::pending().await,
        }
    }
}

/// Wait until the memory file system at `point` is gone.
pub async fn memory_ended(point: &Path) {
    while see_it_answer(point, TMPFS_MAGIC).is_ok() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Put the mount in place and see it answer; and in words, what can be read there and how.
pub(super) async fn mount(
    settings: &Settings,
    voice: &Voice,
    helper: &Arc<Helper>,
    revision: &Revision,
) -> Result<(Mount, String), Failure> {
    let point = settings.mount.point.clone();
    voice.apply(Event::MetadataReady, format!("mounting at {}", point.display()))?;
    if let Opened::Adapter { key } = &revision.opened {
        return adapter::mount(settings, voice, helper, revision, key.clone()).await;
    }
    let fs = model_fs(settings, revision)?;
    let files = fs.file_count();
    let (mounted, how) = match settings.mount.mode {
        MountMode::Ram => (in_memory(settings, voice, helper, fs).await?, "all of them in memory".into()),
        MountMode::Auto | MountMode::OnDemand | MountMode::Load => {
            let mounted = through_fuse(settings, helper, fs).await?;
            let how = with_load(settings, voice, helper, &mounted).await?;
            (Mount::Fuse(mounted), how)
        }
    };
    Ok((mounted, format!("{files} files at {}, {how}", point.display())))
}

/// A revision as files: the plaintext, or the ciphertext as it is for an adapter.
pub(super) fn model_fs(settings: &Settings, revision: &Revision) -> Result<ModelFs, Failure> {
    let Revision { store, opened, .. } = revision;
    let attributes = shown_attributes(&settings.mount);
    match opened {
        Opened::Tree { keys, tree } => {
            Ok(ModelFs::new(tree.clone(), store.clone(), keys.clone(), attributes))
        }
        Opened::Adapter { .. } => ModelFs::as_stored(store.clone(), attributes)
            .map_err(|error| Failure::new(State::Mounting, &error)),
    }
}

async fn through_fuse(settings: &Settings, helper: &Arc<Helper>, fs: ModelFs) -> Result<Mounted, Failure> {
    let fail = |fault: &dyn Fault| Failure::new(State::Mounting, fault);
    let (text, device) = ask(helper, Request::Mount).await.map_err(|error| fail(&error))?;
    tracing::info!(event = "mount.made", "{text}");
    let device = device.ok_or_else(|| fail(&StageError::NoDevice))?;
    let (threads, point) = (settings.mount.threads, settings.mount.point.clone());
    let mounted = blocking(State::Mounting, move || {
        let fail = |fault: &dyn Fault| Failure::new(State::Mounting, fault);
        let mounted = Mounted::from_device(fs, device, threads).map_err(|error| fail(&error))?;
        see_it_answer(&point, FUSE_SUPER_MAGIC)
            .map_err(|source| fail(&StageError::Unreachable { point, source }))?;
        Ok(mounted)
    })
    .await?;
    match ask(helper, Request::Readahead).await {
        Ok((text, _)) => tracing::info!(event = "mount.readahead", "{text}"),
        Err(error) => {
            tracing::warn!(event = "mount.readahead", error = ?error, "setting the read-ahead: {error}")
        }
    }
    Ok(mounted)
}

/// Load mode where it is wanted and the machine can; in words, what was chosen and why.
async fn with_load(
    settings: &Settings,
    voice: &Voice,
    helper: &Arc<Helper>,
    mounted: &Mounted,
) -> Result<String, Failure> {
    if settings.mount.mode == MountMode::OnDemand {
        return Ok("decrypted on demand".into());
    }
    let (helper, idle) = (helper.clone(), settings.mount.idle);
    let can_pass_through = mounted.can_pass_through();
    let prepared =
        blocking(State::Mounting, move || Ok(prepare_load(&helper, can_pass_through, idle))).await?;
    let started = prepared.and_then(|options| {
        let size = options.memory.size();
        mounted.load(options).map(|()| size).map_err(|error| chain(&error))
    });
    Ok(match started {
        Ok(size) => format!("weight files loaded whole into up to {} of memory", gib(size)),
        Err(why) => {
            if settings.mount.mode == MountMode::Load {
                voice.notice(&format!("mount.mode is load, and files are decrypted on demand: {why}"));
            }
            format!("decrypted on demand: {why}")
        }
    })
}

/// What load mode needs, or why it cannot be had. Blocks.
///
/// # Errors
/// The reason, in words.
pub fn prepare_load(
    helper: &Arc<Helper>,
    can_pass_through: bool,
    idle: Duration,
) -> Result<LoadOptions, String> {
    if !can_pass_through {
        return Err("this kernel has no FUSE passthrough (Linux 6.9 has)".into());
    }
    let memory = private_memory(helper).map_err(|fault| chain(fault.as_ref()))?;
    Ok(LoadOptions { memory, registrar: Arc::new(ThroughHelper(helper.clone())), idle })
}

/// The helper's private memory file system. Blocks.
///
/// # Errors
/// The helper's refusal; what the system says about the file system.
pub fn private_memory(helper: &Helper) -> Result<Memory, Box<dyn Fault>> {
    let (text, root) = helper.ask(Request::Memory)?;
    tracing::debug!(event = "memory.made", "{text}");
    let root = root.ok_or(StageError::NoDevice)?;
    Ok(Memory::new(root).map_err(StageError::Memory)?)
}

/// Registers files with the kernel by way of the helper.
struct ThroughHelper(Arc<Helper>);

impl Registrar for ThroughHelper {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<u32> {
        self.0.register(file).map_err(io::Error::other)
    }

    fn unregister(&self, id: u32) {
        if let Err(error) = self.0.ask(Request::Unregister { id }) {
            tracing::warn!(event = "load.unregister", error = ?error, "giving a file back: {}", chain(&error));
        }
    }
}

/// RAM mode: everything is decrypted, then the memory becomes the mount.
async fn in_memory(
    settings: &Settings,
    voice: &Voice,
    helper: &Arc<Helper>,
    fs: ModelFs,
) -> Result<Mount, Failure> {
    let point = settings.mount.point.clone();
    let done = Arc::new(AtomicU64::new(0));
    let (line, counter) = (helper.clone(), done.clone());
    let decrypting = blocking(State::Mounting, move || {
        let fail = |fault: &dyn Fault| Failure::new(State::Mounting, fault);
        let memory = private_memory(&line).map_err(|error| fail(error.as_ref()))?;
        mount::fill(&fs, &memory, |bytes| counter.store(bytes, Ordering::Relaxed))
            .map_err(|error| fail(&error))
    });
    tokio::pin!(decrypting);
    loop {
        tokio::select! {
            filled = &mut decrypting => break filled?,
            () = tokio::time::sleep(SHOW_EVERY) => {
                voice.stage(format!("decrypting the model into memory: {} done", gib(done.load(Ordering::Relaxed))));
            }
        }
    }
    let fail = |fault: &dyn Fault| Failure::new(State::Mounting, fault);
    let (text, _) = ask(helper, Request::Publish).await.map_err(|error| fail(&error))?;
    tracing::info!(event = "mount.made", "{text}");
    see_it_answer(&point, TMPFS_MAGIC)
        .map_err(|source| fail(&StageError::Unreachable { point: point.clone(), source }))?;
    Ok(Mount::Memory(point))
}

/// Ask the file system at `point` a question that the kernel never answers for it, `statfs`. No descriptor of it is kept: it
/// would make the mount busy for everybody who wants to take it away.
///
/// # Errors
/// What the system says; `ENODEV` when what is there is of another kind.
pub(super) fn see_it_answer(point: &Path, kind: FsType) -> nix::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(point, flags, Mode::empty())?;
    let found = nix::sys::statfs::fstatfs(&root)?.filesystem_type();
    if found == kind { Ok(()) } else { Err(nix::Error::ENODEV) }
}

/// Take the mount away. One that stays is a failure of its own: readers would find it dead.
pub(super) async fn detach(mounted: Mount, voice: &Voice, helper: &Arc<Helper>) -> Result<(), Failure> {
    let detached = match ask(helper, Request::Unmount).await {
        Ok((text, _)) => {
            tracing::info!(event = "mount.detached", "{text}");
            Ok(())
        }
        Err(error) => {
            tracing::error!(event = "mount.detach-failed", error = ?error, "detaching the mount: {}", chain(&error));
            Err(Failure::new(voice.state(), &error))
        }
    };
    match mounted {
        Mount::Fuse(mounted) => {
            if tokio::time::timeout(MOUNT_GRACE, mounted.ended()).await.is_err() {
                tracing::warn!(
                    event = "mount.busy",
                    "files of the model are still open; their readers will get an error"
                );
            }
        }
        Mount::Adapter(adapted) => adapted.stop(voice).await,
        Mount::Memory(_) => {}
    }
    detached
}

fn shown_attributes(mount: &config::Mount) -> Attributes {
    Attributes::Fixed { uid: mount.uid, gid: mount.gid, mode: mount.permissions }
}

/// `12.5 GiB`.
fn gib(bytes: u64) -> String {
    // A tenth of a GiB is exact enough to be read.
    let tenths = bytes / (1 << 30) * 10 + bytes % (1 << 30) * 10 / (1 << 30);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_tenths_of_a_gib() {
        assert_eq!(gib(0), "0.0 GiB");
        assert_eq!(gib((12 << 30) + (1 << 29)), "12.5 GiB");
        assert_eq!(gib(u64::MAX), "17179869183.9 GiB");
    }

    #[test]
    fn mount_of_another_kind_does_not_answer() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(see_it_answer(directory.path(), FUSE_SUPER_MAGIC), Err(nix::Error::ENODEV));
        assert_eq!(see_it_answer(Path::new("/proc"), TMPFS_MAGIC), Err(nix::Error::ENODEV));
    }
}
