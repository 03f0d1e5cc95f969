//! `cai mount`: a local ciphertext directory, for its owner, without any daemon.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::run::RuntimeError;
use crate::error::Fault;
use crate::gocryptfs::{self, Conf, LocalDir, Passphrase, Tree};
use crate::host;
use crate::mount::{Attributes, ModelFs, Mounted};

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
    /// Threads that answer the kernel; 0 = one per core, but at least 16.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

pub(super) fn run(args: &Args) -> Result<(), Box<dyn Fault>> {
    host::log_to_stderr();
    let conf = Conf::read_file(&args.directory)?;
    let passphrase = Passphrase::from_secret(&gocryptfs::read_passfile(&args.passfile)?)?;
    let keys = gocryptfs::unlock(&conf, &passphrase)?;
    let directory = LocalDir::open(&args.directory)?;
    let tree = Tree::build(&directory, &keys)?;
    for skipped in tree.skipped() {
        tracing::warn!(event = "model.skipped", "{}: {}", skipped.path.display(), skipped.reason);
    }
    let fs = ModelFs::new(Arc::new(tree), Arc::new(directory), Arc::new(keys), Attributes::AsStored);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RuntimeError)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(RuntimeError)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RuntimeError)?;
        let files = fs.file_count();
        let mut mounted = Mounted::at_path(fs, &args.mount_point, args.threads)?;
        eprintln!("{files} files at {}; unmount with Ctrl-C or SIGTERM", args.mount_point.display());
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = mounted.ended() => return Ok(()),
        }
        mounted.unmount()?;
        // Open files keep the session alive; the process ends under them.
        let _ = tokio::time::timeout(MOUNT_GRACE, mounted.ended()).await;
        Ok(())
    })
}
