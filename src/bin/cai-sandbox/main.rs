//! cai-sandbox: a stand-in Trustee and a stand-in OSS on loopback, for the demo and the tests.
//!
//! Written from the specifications only and sharing no code with the `cai` library, so that the library's clients are
//! checked by something that cannot make their mistakes. It guards nothing: anyone who reaches the control port can read
//! and set everything. One tokio runtime; a thread waits on stdin when asked to. Faults: `faults.rs`; control port: `control.rs`.
#![deny(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::let_underscore_future,
    clippy::await_holding_lock,
    clippy::disallowed_methods,
    clippy::undocumented_unsafe_blocks,
    unused_must_use
)]

mod clock;
mod control;
mod faults;
mod journal;
mod kbs;
mod kbs_evidence;
mod kbs_jwe;
mod kbs_token;
mod oss;
mod oss_error;
mod oss_list;
mod oss_read;
mod oss_request;
mod oss_sign;
mod oss_store;
mod oss_uploads;
mod oss_write;
mod wire;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::control::Control;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::kbs::{Kbs, Resources};
use crate::kbs_evidence::Protocol;
use crate::oss::{Bucket, Oss, is_token};
use crate::oss_sign::Credentials;
use crate::oss_store::Store;
use crate::wire::serve;

/// Stand-in Trustee and OSS on loopback. Prints one JSON line with its addresses once all listen.
#[derive(Parser)]
struct Arguments {
    /// Address of the Trustee; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the OSS.
    #[arg(long, default_value = "127.0.0.1:0")]
    oss_listen: SocketAddr,
    /// Address of the control port.
    #[arg(long, default_value = "127.0.0.1:0")]
    control_listen: SocketAddr,
    /// Directory of the bucket's objects; created when missing.
    #[arg(long)]
    state_dir: PathBuf,
    /// Name of the one bucket.
    #[arg(long)]
    bucket: String,
    /// Region that version 4 signatures must name.
    #[arg(long)]
    region: String,
    /// The one identity that may sign.
    #[arg(long)]
    access_key_id: String,
    /// File with its secret; surrounding white space is dropped.
    #[arg(long)]
    access_key_secret_file: PathBuf,
    /// File with its session token; makes the identity a temporary one.
    #[arg(long)]
    session_token_file: Option<PathBuf>,
    /// `repository/type/tag=FILE`: a resource of the Trustee, byte for byte.
    #[arg(long)]
    resource: Vec<String>,
    /// Protocol of the Trustee.
    #[arg(long, value_enum, default_value = "0.4.0")]
    kbs_protocol: Protocol,
    /// Listing and reading need no signature.
    #[arg(long)]
    allow_anonymous_read: bool,
    /// End when stdin ends.
    #[arg(long)]
    exit_with_stdin: bool,
}

fn read_credential(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let credential = text.trim();
    ensure!(is_token(credential), "{} does not hold one printable word", path.display());
    Ok(credential.to_owned())
}

fn bucket(arguments: &Arguments) -> anyhow::Result<Bucket> {
    Ok(Bucket {
        name: arguments.bucket.clone(),
        region: arguments.region.clone(),
        credentials: Credentials {
            access_key_id: arguments.access_key_id.clone(),
            access_key_secret: read_credential(&arguments.access_key_secret_file)?,
            session_token: arguments.session_token_file.as_deref().map(read_credential).transpose()?,
        },
        anonymous_read: arguments.allow_anonymous_read,
    })
}

fn resources(arguments: &Arguments) -> anyhow::Result<Resources> {
    let resources = Resources::default();
    for argument in &arguments.resource {
        let Some((path, file)) = argument.split_once('=') else {
            bail!("--resource {argument:?} has no `=FILE`")
        };
        let bytes = std::fs::read(file).with_context(|| format!("reading {file}"))?;
        ensure!(resources.put(path, bytes), "{path:?} is not repository/type/tag");
    }
    Ok(resources)
}

/// Resolves when stdin ends; never without `--exit-with-stdin`.
fn stdin_end(wanted: bool) -> anyhow::Result<oneshot::Receiver<()>> {
    let (sender, receiver) = oneshot::channel();
    // Not tokio's stdin: its reader would keep the runtime from ending. The thread ends with the process.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 4096];
        while wanted && stdin.read(&mut buffer).is_ok_and(|n| n > 0) {}
        if !wanted {
            // Holds the sender for good.
            std::thread::park();
        }
        let _ = sender.send(());
    })?;
    Ok(receiver)
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let faults = Arc::new(Faults::default());
    let journal = Arc::new(Journal::default());
    let resources = Arc::new(resources(&arguments)?);
    let store = Store::open(&arguments.state_dir)
        .with_context(|| format!("opening {}", arguments.state_dir.display()))?;
    let kbs = Arc::new(Kbs::new(arguments.kbs_protocol, faults.clone(), resources.clone())?);
    let oss = Arc::new(Oss::new(bucket(&arguments)?, store, faults.clone()));
    let control = Arc::new(Control { faults, journal: journal.clone(), resources });

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stdin = stdin_end(arguments.exit_with_stdin)?;
    let kbs_listener = TcpListener::bind(arguments.listen).await.context("listening for the Trustee")?;
    let oss_listener = TcpListener::bind(arguments.oss_listen).await.context("listening for OSS")?;
    let control_listener =
        TcpListener::bind(arguments.control_listen).await.context("listening for control")?;
    let ready = serde_json::json!({
        "kbs": format!("http://{}", kbs_listener.local_addr()?),
        "oss": format!("http://{}", oss_listener.local_addr()?),
        "control": format!("http://{}", control_listener.local_addr()?),
    });
    writeln!(std::io::stdout(), "{ready}")?;
    tokio::select! {
        never = serve(kbs_listener, kbs, journal.clone()) => match never {},
        never = serve(oss_listener, oss, journal.clone()) => match never {},
        never = serve(control_listener, control, Arc::default()) => match never {},
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = stdin => {}
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("sandbox").enable_all().build()?;
    let result = runtime.block_on(run(arguments));
    // A copy of a large object may be running; what it leaves is swept at the next start.
    runtime.shutdown_background();
    result
}
