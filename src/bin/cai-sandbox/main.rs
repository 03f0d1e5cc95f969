//! cai-sandbox: a stand-in Trustee and a stand-in OSS on loopback, for the demo and the tests.
//!
//! Written from the specifications only and sharing no code with the `cai` library, so that the library's
//! clients are checked by something that cannot make their mistakes. It guards nothing: anyone who reaches
//! the control port can read and set everything. One tokio runtime; a thread waits on stdin when asked to.
//! Faults: `faults.rs`; control port: `control.rs`.
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

mod attestation;
mod clock;
mod cloud;
mod control;
mod faults;
mod journal;
mod kbs;
mod kbs_evidence;
mod kbs_gpu;
mod kbs_jwe;
mod kbs_server;
mod kbs_tdx;
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
mod sample_model;
mod wire;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::cloud::{Cloud, Issuer};
use crate::control::Control;
use crate::faults::Faults;
use crate::journal::Journal;
use crate::kbs::{Kbs, Resources};
use crate::kbs_server::{Character, Maker, Protocol};
use crate::oss::{Bucket, Oss, is_token};
use crate::oss_request::Names;
use crate::oss_sign::Credentials;
use crate::oss_store::Store;
use crate::wire::serve;

/// Stand-ins for what cai talks to, for the demo and the tests.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Stand-in Trustee and OSS on loopback. Prints one JSON line with its addresses once all listen.
    Serve(Box<Arguments>),
    /// Write a sample model: configuration, tokenizer, index and two safetensors shards of random tensors.
    SampleModel {
        /// Size of all tensors together, in MiB.
        #[arg(long, default_value_t = 256)]
        mib: u64,
        /// Directory to write into; created when missing.
        directory: PathBuf,
    },
}

/// How the stand-ins serve.
#[derive(Args)]
struct Arguments {
    /// Address of the Trustee; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the OSS.
    #[arg(long, default_value = "127.0.0.1:0")]
    oss_listen: SocketAddr,
    /// Address of the metadata service and STS.
    #[arg(long, default_value = "127.0.0.1:0")]
    cloud_listen: SocketAddr,
    /// Name that is a domain of the bucket's own.
    #[arg(long)]
    cname: Option<String>,
    /// Name of an endpoint that takes the bucket in the path, as PrivateLink's do.
    #[arg(long)]
    path_host: Option<String>,
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
    /// Whose Trustee it is: alibaba reads GPU evidence inside the TDX evidence, upstream beside it.
    #[arg(long, value_enum, default_value = "alibaba")]
    kbs_maker: Maker,
    /// Answer as Alibaba's Trustee v1.0.0 to v1.1.2 does, with simple tokens; for protocol 0.1.0.
    #[arg(long)]
    kbs_oldest: bool,
    /// Only a TD with this MRTD (96 hexadecimal digits) may read resources.
    #[arg(long)]
    require_mrtd: Option<String>,
    /// Certify the token signer by a new authority, and write the authority's certificate (PEM) to this file.
    #[arg(long)]
    token_cert_out: Option<PathBuf>,
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

fn character(arguments: &Arguments) -> anyhow::Result<Character> {
    let (protocol, oldest) = (arguments.kbs_protocol, arguments.kbs_oldest);
    ensure!(!oldest || protocol == Protocol::V010, "--kbs-oldest goes with --kbs-protocol 0.1.0");
    let mrtd = arguments.require_mrtd.as_ref().map(|mrtd| mrtd.to_lowercase());
    ensure!(
        mrtd.as_ref().is_none_or(|mrtd| hex::decode(mrtd).is_ok_and(|bytes| bytes.len() == 48)),
        "--require-mrtd takes 96 hexadecimal digits"
    );
    Ok(Character { protocol, maker: arguments.kbs_maker, oldest, mrtd })
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
        names: Names { cname: arguments.cname.clone(), path_host: arguments.path_host.clone() },
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
    let (server, authority) = (character(&arguments)?, arguments.token_cert_out.as_deref());
    let kbs = Arc::new(Kbs::new(server, authority, faults.clone(), resources.clone())?);
    let issuer = Arc::new(Issuer::default());
    let oss = Arc::new(Oss::new(bucket(&arguments)?, store, faults.clone(), issuer.clone()));
    let cloud = Arc::new(Cloud { issuer: issuer.clone(), faults: faults.clone() });
    let control = Arc::new(Control { faults, journal: journal.clone(), resources, issuer });

    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stdin = stdin_end(arguments.exit_with_stdin)?;
    let kbs_listener = TcpListener::bind(arguments.listen).await.context("listening for the Trustee")?;
    let oss_listener = TcpListener::bind(arguments.oss_listen).await.context("listening for OSS")?;
    let cloud_listener =
        TcpListener::bind(arguments.cloud_listen).await.context("listening for the cloud")?;
    let control_listener =
        TcpListener::bind(arguments.control_listen).await.context("listening for control")?;
    let ready = serde_json::json!({
        "kbs": format!("http://{}", kbs_listener.local_addr()?),
        "oss": format!("http://{}", oss_listener.local_addr()?),
        "cloud": format!("http://{}", cloud_listener.local_addr()?),
        "control": format!("http://{}", control_listener.local_addr()?),
    });
    writeln!(std::io::stdout(), "{ready}")?;
    tokio::select! {
        never = serve(kbs_listener, kbs, journal.clone()) => match never {},
        never = serve(oss_listener, oss, journal.clone()) => match never {},
        never = serve(cloud_listener, cloud, journal.clone()) => match never {},
        never = serve(control_listener, control, Arc::default()) => match never {},
        _ = term.recv() => {}
        _ = int.recv() => {}
        _ = stdin => {}
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = match Cli::parse().command {
        Command::Serve(arguments) => *arguments,
        Command::SampleModel { mib, directory } => {
            return sample_model::write(&directory, mib)
                .with_context(|| format!("writing {}", directory.display()));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("sandbox").enable_all().build()?;
    let result = runtime.block_on(run(arguments));
    // A copy of a large object may be running; what it leaves is swept at the next start.
    runtime.shutdown_background();
    result
}
