//! `cai mount`: a local ciphertext directory, for its owner, without any daemon.
//!
//! Root mounts through the helper, as the daemon does, and has all modes; anybody else mounts through `fusermount3` and reads
//! on demand.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use tokio::signal::unix::{SignalKind, signal};

use super::run::RuntimeError;
use crate::agent::mounting::{memory_ended, prepare_load, private_memory};
use crate::error::{ErrorClass, Fault, chain};
use crate::gocryptfs::{self, Conf, LocalDir, Passphrase, Tree};
use crate::helper::Helper;
use crate::helper::protocol::Request;
use crate::host;
use crate::mount::{self, Attributes, ModelFs, Mounted};

/// How long open files are waited for at the end.
const MOUNT_GRACE: Duration = Duration::from_secs(2);

/// Arguments of `cai mount`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory with gocryptfs.conf.
    directory: PathBuf,
    /// Empty directory to mount at.
    mount_point: PathBuf,
    /// File whose first line is the password.
    #[arg(long, value_name = "FILE")]
    passfile: PathBuf,
    /// How files are decrypted, as mount.mode of cai.toml: load and ram need root.
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    mode: Mode,
    /// Most memory for decrypted files in modes load and ram, bytes; 0 = half of what is available for load, what the model
    /// needs for ram.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    memory: u64,
    /// How long load mode keeps a file that nobody has open, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    idle: u64,
    /// Threads that answer the kernel; 0 = one per core, but 16 to 64.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// How far the kernel reads ahead in a file, KiB; only root can set it.
    #[arg(long, value_name = "KIB", default_value_t = 4096)]
    readahead: u32,
}

/// `mount.mode` on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    Auto,
    OnDemand,
    Load,
    Ram,
}

/// The mode needs what the caller has not.
#[derive(Debug, thiserror::Error)]
enum ModeError {
    #[error("modes load and ram need root, and this is user {0}")]
    NotRoot(Uid),
    #[error("mode load is not possible here: {0}")]
    NoLoad(String),
    #[error("the mount point {} is not there", point.display())]
    Point {
        point: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the helper gave no descriptor for the mount")]
    NoDevice,
}

impl Fault for ModeError {
    fn class(&self) -> ErrorClass {
        match self {
            ModeError::NoDevice => ErrorClass::Internal,
            ModeError::NotRoot(_) | ModeError::NoLoad(_) | ModeError::Point { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ModeError::NotRoot(_) => "mount.not-root",
            ModeError::NoLoad(_) => "mount.no-load",
            ModeError::Point { .. } => "mount.point",
            ModeError::NoDevice => "helper.no-device",
        }
    }

    fn hint(&self) -> String {
        match self {
            ModeError::NotRoot(_) => "run it with sudo, or leave --mode out",
            ModeError::NoLoad(_) => "leave --mode out, and files are decrypted on demand",
            ModeError::Point { .. } => "make the directory first",
            ModeError::NoDevice => "this is a defect: please report it",
        }
        .to_owned()
    }
}

pub(super) fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    host::log_to_stderr();
    let fs = open(args)?;
    let files = fs.file_count();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RuntimeError)?;
    runtime.block_on(async {
        let listen = || -> Result<_, RuntimeError> {
            let on = |kind| signal(kind).map_err(RuntimeError);
            Ok((on(SignalKind::terminate())?, on(SignalKind::interrupt())?))
        };
        let ((mut terminate, mut interrupt), (mut place, how)) = if Uid::effective().is_root() {
            // What the helper did is undone when this process ends: until the mount is there a signal may end it, at any time.
            let helped = as_root(args, fs)?;
            (listen()?, helped)
        } else {
            // A mount of our own must not be found half made by a signal.
            (listen()?, as_user(args, fs)?)
        };
        eprintln!("{files} files at {}, {how}; unmount with Ctrl-C or SIGTERM", args.mount_point.display());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = place.ended() => return Ok(()),
        }
        place.unmount().await
    })
}

/// The decrypted tree over its ciphertext.
fn open(args: &Args) -> Result<ModelFs, Box<dyn Fault>> {
    let conf = Conf::read_file(&args.directory)?;
    let passphrase = Passphrase::from_secret(&gocryptfs::read_passfile(&args.passfile)?)?;
    let keys = gocryptfs::unlock(&conf, &passphrase)?;
    let directory = LocalDir::open(&args.directory)?;
    let tree = Tree::build(&directory, &keys)?;
    for skipped in tree.skipped() {
        tracing::warn!(event = "model.skipped", "{}: {}", skipped.path.display(), skipped.reason);
    }
    Ok(ModelFs::new(Arc::new(tree), Arc::new(directory), Arc::new(keys), Attributes::AsStored))
}

/// The mount, and what has to be told to take it away.
enum Place {
    /// Mounted by this process.
    Own(Mounted),
    /// Mounted by the helper, answered here.
    Helped(Mounted, Arc<Helper>),
    /// A memory file system, mounted by the helper.
    Memory(Arc<Helper>, PathBuf),
}

impl Place {
    async fn ended(&self) {
        match self {
            Place::Own(mounted) | Place::Helped(mounted, _) => mounted.ended().await,
            Place::Memory(_, point) => memory_ended(point).await,
        }
    }

    async fn unmount(&mut self) -> Result<(), Box<dyn Fault>> {
        let mounted = match self {
            Place::Own(mounted) => {
                mounted.unmount()?;
                mounted
            }
            Place::Helped(mounted, helper) => {
                helper.ask(Request::Unmount)?;
                mounted
            }
            Place::Memory(helper, _) => {
                helper.ask(Request::Unmount)?;
                return Ok(());
            }
        };
        // Open files keep the session alive; the process ends under them.
        let _ = tokio::time::timeout(MOUNT_GRACE, mounted.ended()).await;
        Ok(())
    }
}

fn as_user(args: &Args, fs: ModelFs) -> Result<(Place, String), Box<dyn Fault>> {
    if matches!(args.mode, Mode::Load | Mode::Ram) {
        return Err(ModeError::NotRoot(Uid::effective()).into());
    }
    let mounted = Mounted::at_path(fs, &args.mount_point, args.threads)?;
    Ok((Place::Own(mounted), "decrypted on demand".to_owned()))
}

fn as_root(args: &Args, fs: ModelFs) -> Result<(Place, String), Box<dyn Fault>> {
    let point = absolute(&args.mount_point)?;
    let memory = match args.mode {
        Mode::Ram if args.memory == 0 => mount::memory_needed(&fs),
        _ => args.memory,
    };
    let helper = Arc::new(Helper::start_for_owner(&point, memory, args.readahead)?);
    if args.mode == Mode::Ram {
        let memory = private_memory(&helper)?;
        mount::fill(&fs, &memory, |_| ())?;
        drop(memory);
        helper.ask(Request::Publish)?;
        return Ok((Place::Memory(helper, point), "all of them in memory".to_owned()));
    }
    let (_, device) = helper.ask(Request::Mount)?;
    let mounted = Mounted::from_device(fs, device.ok_or(ModeError::NoDevice)?, args.threads)?;
    if let Err(error) = helper.ask(Request::Readahead) {
        tracing::warn!(event = "mount.readahead", error = ?error, "setting the read-ahead: {}", chain(&error));
    }
    let how = match args.mode {
        Mode::OnDemand => "decrypted on demand".to_owned(),
        mode => match load(args, &helper, &mounted) {
            Ok(()) => "large ones loaded whole when they are opened".to_owned(),
            Err(why) if mode == Mode::Load => return Err(ModeError::NoLoad(why).into()),
            Err(why) => format!("decrypted on demand: {why}"),
        },
    };
    Ok((Place::Helped(mounted, helper), how))
}

/// Put load mode in place, or say why it cannot be had.
fn load(args: &Args, helper: &Arc<Helper>, mounted: &Mounted) -> Result<(), String> {
    let options = prepare_load(helper, mounted.can_pass_through(), Duration::from_secs(args.idle.max(1)))?;
    mounted.load(options).map_err(|error| chain(&error))
}

fn absolute(point: &Path) -> Result<PathBuf, ModeError> {
    std::fs::canonicalize(point).map_err(|source| ModeError::Point { point: point.to_path_buf(), source })
}
