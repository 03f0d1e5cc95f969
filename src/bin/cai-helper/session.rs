//! One connection of the daemon: its requests carried out one after the other, and undone when it ends.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::Context;
use cai::attest::gpu::on_pci;
use cai::config::{Problems, Settings};
use cai::error::Fault;
use cai::helper::channel;
use cai::helper::protocol::{Reply, Request};
use cai::host;

use crate::mount_point::MountPoint;
use crate::vendor::{self, Act};
use crate::{tdx, tsm};

/// Most that a refusal says about an invalid configuration: a packet is bounded, and `cai check-config` says it all.
const PROBLEM_CHARS: usize = 2048;

/// A request that was not carried out.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: Cow<'static, str>,
    pub(crate) text: String,
    pub(crate) hint: String,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Self {
        Refusal { code: code.into(), text: text.into(), hint: hint.into() }
    }
}

/// What an act gives: words for the journal, and a descriptor for some.
pub(crate) type Done = (String, Option<OwnedFd>);

/// Data that was asked for, in a memory file.
fn give(what: &str, data: &[u8]) -> Result<Done, Refusal> {
    let file = channel::memory_file(data).map_err(|error| {
        let text = format!("handing over {what}: {error}");
        Refusal::new("helper.refused", text, "see whether memory is exhausted")
    })?;
    Ok((format!("{what} of {} bytes", data.len()), Some(file)))
}

/// One connection of the daemon.
pub(crate) struct Session {
    root: PathBuf,
    /// Only what mounts needs it: attesting must work before a model is configured.
    settings: Result<Settings, Problems>,
    daemon: host::User,
    mount_point: MountPoint,
    /// The GPUs may accept work since this connection asked for it.
    gpus_ready: bool,
}

impl Session {
    pub(crate) fn new(root: PathBuf, settings: Result<Settings, Problems>, daemon: host::User) -> Self {
        Session { root, settings, daemon, mount_point: MountPoint::default(), gpus_ready: false }
    }

    /// Answer requests until the line closes.
    pub(crate) fn serve(&mut self, line: BorrowedFd<'_>) -> anyhow::Result<()> {
        while let Some((message, _)) = channel::receive(line).context("receiving a request")? {
            let request = Request::from_packet(&message).context("a request that is none")?;
            let (reply, descriptor) = match self.act(request) {
                Ok((text, descriptor)) => (Reply::Done { text }, descriptor),
                Err(Refusal { code, text, hint }) => (Reply::Refused { code: code.into(), text, hint }, None),
            };
            let message = serde_json::to_vec(&reply)?;
            channel::send(line, &message, descriptor.as_ref().map(AsFd::as_fd)).context("answering")?;
        }
        Ok(())
    }

    fn act(&mut self, request: Request) -> Result<Done, Refusal> {
        let root = &self.root;
        match request {
            Request::Mount => {
                let mount = &valid(&self.settings)?.mount;
                self.mount_point.mount(mount, &self.daemon).map(|(text, device)| (text, Some(device)))
            }
            Request::Readahead => {
                let kib = valid(&self.settings)?.mount.readahead_kib;
                self.mount_point.readahead(kib).map(|text| (text, None))
            }
            Request::Unmount => self.mount_point.detach().map(|text| (text, None)),
            Request::Memory | Request::Register | Request::Unregister { .. } | Request::Publish => {
                let text = "this helper has no private memory yet";
                Err(Refusal::new("memory.failed", text, "set mount.mode = \"on-demand\""))
            }
            Request::EventLogs => give("event logs", &tdx::event_logs(root)?),
            Request::TsmQuote { report_data } => give("a TDX quote", &tsm::quote(root, &report_data)?),
            Request::TdxReport { report_data } => give("a TDREPORT", &tdx::report(root, &report_data)?),
            Request::LibraryQuote { report_data } => {
                let quote = vendor::run(root, Act::TdxQuote, &report_data)?;
                give(
                    "a TDX quote",
                    &hex::decode(quote).map_err(|error| vendor::failed(Act::TdxQuote, error))?,
                )
            }
            Request::GpuEvidence { nonce } => {
                give("GPU evidence", vendor::run(root, Act::GpuEvidence, &nonce)?.as_bytes())
            }
            Request::GpuReady => {
                // Noted before it is tried: a child that dies half way may have done it.
                self.gpus_ready = true;
                vendor::run(root, Act::GpuReady, &[]).map(|text| (text, None))
            }
            Request::GpuNotReady => self.gpus_not_ready().map(|text| (text, None)),
        }
    }

    fn gpus_not_ready(&mut self) -> Result<String, Refusal> {
        if matches!(on_pci(&self.root), Ok(0)) {
            return Ok("there is no NVIDIA GPU to hold back".into());
        }
        // Until it is done: what failed now is tried once more at the end.
        self.gpus_ready = true;
        let text = vendor::run(&self.root, Act::GpuNotReady, &[])?;
        self.gpus_ready = false;
        Ok(text)
    }

    /// Undo what was done through this connection: behind a daemon that crashed no dead mount stays, and no GPU goes on
    /// working for whoever asks.
    fn undo(&mut self) {
        let detached = self.mount_point.detach().map(drop);
        let not_ready = if self.gpus_ready { self.gpus_not_ready().map(drop) } else { Ok(()) };
        for undone in [detached, not_ready] {
            if let Err(refusal) = undone {
                eprintln!("cai-helper: {}; {}", refusal.text, refusal.hint);
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.undo();
    }
}

/// The settings, or the refusal of what needs them.
fn valid(settings: &Result<Settings, Problems>) -> Result<&Settings, Refusal> {
    settings.as_ref().map_err(|problems| {
        let text: String = problems.to_string().chars().take(PROBLEM_CHARS).collect();
        Refusal::new("config.invalid", text, problems.hint())
    })
}
