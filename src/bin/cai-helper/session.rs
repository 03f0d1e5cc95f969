//! One connection of the daemon: its requests carried out one after the other, and undone when it ends.

use std::borrow::Cow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use cai::attest::gpu::on_pci;
use cai::config::Problems;
use cai::error::{Fault, chain};
use cai::gateway::{Gate, GateError};
use cai::helper::protocol::{GATE_WAS_SHUT, Reply, Request};
use cai::helper::{channel, printable};

use crate::decryptor::{Decryptor, Launch};
use crate::hangup::{unless_hung_up, watch};
use crate::memory::Memory;
use crate::mount_point::MountPoint;
use crate::terms::Terms;
use crate::vendor::{self, Act};
use crate::{JOURNAL_CHARS, tdx, tsm};

/// Most that a reply says in a text, in bytes as JSON writes them: two of them and their object fit a packet
/// (`MESSAGE_LIMIT`). `cai check-config` says all of a long list of problems.
const TEXT_BYTES: usize = 4096;

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
    /// Where the machine is looked at for attesting; `None` where the helper was started for a mount alone.
    root: Option<PathBuf>,
    /// Only what mounts needs it: attesting must work before a model is configured.
    terms: Result<Terms, Problems>,
    mount_point: MountPoint,
    memory: Private,
    decryptor: Decryptor,
    /// The GPUs may accept work since this connection asked for it.
    gpus_ready: bool,
    /// The rules of the service port as they were loaded.
    gate: Option<String>,
}

/// The memory file system: one per connection.
#[derive(Default)]
enum Private {
    #[default]
    None,
    Made(Memory),
    /// It was published, and unmounted again.
    Gone,
}

impl Session {
    pub(crate) fn new(root: Option<PathBuf>, terms: Result<Terms, Problems>, launch: Launch) -> Self {
        let (mount_point, memory) = (MountPoint::default(), Private::default());
        let decryptor = Decryptor::new(launch);
        Session { root, terms, mount_point, memory, decryptor, gpus_ready: false, gate: None }
    }

    /// Answer requests until the line closes.
    pub(crate) fn serve(&mut self, line: BorrowedFd<'_>) -> anyhow::Result<()> {
        watch(line, [self.mount_point.backing().clone(), self.decryptor.backing().clone()])
            .context("watching the line")?;
        while let Some((message, file)) =
            unless_hung_up(channel::receive(line)).context("receiving a request")?.flatten()
        {
            let request = Request::from_packet(&message).context("a request that is none")?;
            let (reply, descriptor) = match self.answer(request, file) {
                Ok((Reply::Done { text }, descriptor)) => (Reply::Done { text: bounded(text) }, descriptor),
                Ok(answer) => answer,
                Err(Refusal { code, text, hint }) => {
                    (Reply::Refused { code: code.into(), text: bounded(text), hint: bounded(hint) }, None)
                }
            };
            self.tell(request, &reply);
            let message = serde_json::to_vec(&reply)?;
            let sent = channel::send(line, &message, descriptor.as_ref().map(AsFd::as_fd));
            if unless_hung_up(sent).context("answering")?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// One line in the journal for each act, and for each that was refused. Not where root itself asked, at its terminal.
    fn tell(&self, request: Request, reply: &Reply) {
        let said = match reply {
            _ if self.root.is_none() => return,
            // Asked for again and again, and nothing was done.
            Reply::Done { text } if text == GATE_WAS_SHUT => return,
            Reply::Done { text } => text.clone(),
            Reply::Registered { id } => format!("file {id} is registered"),
            Reply::Refused { code, text, .. } => format!("refused [{code}]: {text}"),
        };
        eprintln!("cai-helper: {}: {}", request.name(), printable(&said, JOURNAL_CHARS));
    }

    /// The answer to `request`, beside which `file` came.
    fn answer(
        &mut self,
        request: Request,
        file: Option<OwnedFd>,
    ) -> Result<(Reply, Option<OwnedFd>), Refusal> {
        match (request, file) {
            (Request::Register, Some(file)) => {
                self.register(&file).map(|id| (Reply::Registered { id }, None))
            }
            (Request::Decrypt, Some(key)) => {
                let (text, line) = self.decryptor.start(valid(&self.terms)?, &key)?;
                Ok((Reply::Done { text }, Some(line)))
            }
            (request, None) => self.act(request).map(|(text, descriptor)| (Reply::Done { text }, descriptor)),
            (_, Some(_)) => {
                let text = "a descriptor came beside a request that takes none";
                Err(Refusal::new("helper.refused", text, "cai and cai-helper must be of one version"))
            }
        }
    }

    fn act(&mut self, request: Request) -> Result<Done, Refusal> {
        match request {
            Request::Mount => {
                let mounted = self.mount_point.mount(valid(&self.terms)?);
                mounted.map(|(text, device)| (text, Some(device)))
            }
            Request::Readahead => {
                let kib = valid(&self.terms)?.readahead_kib;
                self.mount_point.readahead(kib).map(|text| (text, None))
            }
            Request::Unmount => self.unmount().map(|text| (text, None)),
            Request::Memory => self.make_memory().map(|(text, root)| (text, Some(root))),
            Request::Register => Err(Refusal::new(
                "memory.register",
                "no descriptor came beside the request",
                "send the file that is to be registered with it",
            )),
            Request::Unregister { id } => self.unregister(id).map(|text| (text, None)),
            Request::Publish => {
                let Private::Made(memory) = &mut self.memory else { return Err(no_memory("memory.publish")) };
                self.mount_point.publish(valid(&self.terms)?, memory).map(|text| (text, None))
            }
            Request::DecryptorCheck => self.decryptor.check(valid(&self.terms)?).map(|text| (text, None)),
            Request::Ciphertext => {
                let mounted = self.decryptor.ciphertext(valid(&self.terms)?);
                mounted.map(|(text, device)| (text, Some(device)))
            }
            Request::Decrypt => {
                let text = "no descriptor came beside the request";
                Err(Refusal::new("helper.refused", text, "cai and cai-helper must be of one version"))
            }
            Request::Decrypted => {
                let mount = self.decryptor.answering()?;
                self.mount_point.attach(valid(&self.terms)?, &mount).map(|text| (text, None))
            }
            Request::EventLogs => give("event logs", &tdx::event_logs(self.root()?)?),
            Request::TsmQuote { report_data } => {
                give("a TDX quote", &tsm::quote(self.root()?, &report_data)?)
            }
            Request::TdxReport { report_data } => {
                give("a TDREPORT", &tdx::report(self.root()?, &report_data)?)
            }
            Request::LibraryQuote { report_data } => {
                let quote = vendor::run(self.root()?, Act::TdxQuote, &report_data)?;
                give(
                    "a TDX quote",
                    &hex::decode(quote).map_err(|error| vendor::failed(Act::TdxQuote, error))?,
                )
            }
            Request::GpuEvidence { nonce } => {
                give("GPU evidence", vendor::run(self.root()?, Act::GpuEvidence, &nonce)?.as_bytes())
            }
            Request::Gate => self.gate().map(|text| (text, None)),
            Request::GpuReady => {
                let root = self.root()?.to_owned();
                // Noted before it is tried: a child that dies half way may have done it.
                self.gpus_ready = true;
                vendor::run(&root, Act::GpuReady, &[]).map(|text| (text, None))
            }
            Request::GpuNotReady => self.gpus_not_ready().map(|text| (text, None)),
        }
    }

    /// Where to look for what attests the machine.
    fn root(&self) -> Result<&Path, Refusal> {
        self.root.as_deref().ok_or_else(|| {
            let text = "this helper was started for a mount alone, and attests nothing";
            Refusal::new("helper.refused", text, "ask the helper of the service")
        })
    }

    fn make_memory(&mut self) -> Result<(String, OwnedFd), Refusal> {
        if !matches!(self.memory, Private::None) {
            let text = "this connection has had its private memory file system already";
            return Err(Refusal::new("memory.failed", text, "open a new line to the helper for another one"));
        }
        let (memory, text, root) = Memory::create(valid(&self.terms)?)?;
        self.memory = Private::Made(memory);
        Ok((text, root))
    }

    fn register(&mut self, file: &OwnedFd) -> Result<u32, Refusal> {
        let Private::Made(memory) = &self.memory else { return Err(no_memory("memory.register")) };
        self.mount_point.backing().lock().backing().ok_or_else(no_mount)?.register(memory, file)
    }

    fn unregister(&mut self, id: u32) -> Result<String, Refusal> {
        self.mount_point.backing().lock().backing().ok_or_else(no_mount)?.unregister(id)
    }

    /// A published memory file system is let go with its mount: it cannot be mounted again.
    fn unmount(&mut self) -> Result<String, Refusal> {
        let text = self.mount_point.detach()?;
        self.decryptor.detach()?;
        if matches!(&self.memory, Private::Made(memory) if memory.is_published()) {
            self.memory = Private::Gone;
        }
        Ok(text)
    }

    /// Nothing that this connection's end undoes: a port that was shut stays shut.
    fn gate(&mut self) -> Result<String, Refusal> {
        let Some(gate) = valid(&self.terms)?.gate else {
            let text = "no service port is configured that needs a gate";
            return Err(Refusal::new("gate.none", text, "cai and cai-helper must read one configuration"));
        };
        let refused = |error: GateError| Refusal::new(error.code(), chain(&error), error.hint());
        // What is loaded is compared with what nft made of our own rules, so the first time they are loaded whatever is there.
        let found = Gate::loaded().map_err(refused)?;
        if found.is_some() && found == self.gate {
            return Ok(GATE_WAS_SHUT.into());
        }
        gate.shut().map_err(refused)?;
        self.gate = Gate::loaded().map_err(refused)?;
        Ok("the gate is shut now".into())
    }

    fn gpus_not_ready(&mut self) -> Result<String, Refusal> {
        let root = self.root()?.to_owned();
        if matches!(on_pci(&root), Ok(0)) {
            return Ok("there is no NVIDIA GPU to hold back".into());
        }
        // Until it is done: what failed now is tried once more at the end.
        self.gpus_ready = true;
        let text = vendor::run(&root, Act::GpuNotReady, &[])?;
        self.gpus_ready = false;
        Ok(text)
    }

    /// Undo what was done through this connection: behind a daemon that crashed no dead mount stays, and no GPU goes on
    /// working for whoever asks. The device goes first: where nobody else holds it, readers get an error instead of waiting.
    fn undo(&mut self) {
        self.mount_point.backing().close();
        self.decryptor.backing().close();
        let detached = self.mount_point.detach().map(drop);
        let withdrawn = self.decryptor.detach().map(drop);
        // Not after the GPUs, which take their time: it may be most of the machine's.
        self.memory = Private::Gone;
        // Once more where it fails: a driver that was busy may not be any more, and nobody else comes behind.
        let not_ready = match self.gpus_ready {
            true => self.gpus_not_ready().or_else(|_| self.gpus_not_ready()).map(drop),
            false => Ok(()),
        };
        for undone in [detached, withdrawn, not_ready] {
            if let Err(refusal) = undone {
                let said = format!("at the end of the line: {}; {}", refusal.text, refusal.hint);
                eprintln!("cai-helper: {}", printable(&said, JOURNAL_CHARS));
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.undo();
    }
}

/// The beginning of `text` that a packet has room for.
fn bounded(text: String) -> String {
    let len_in_json = |c: char| match c {
        '"' | '\\' => 2,
        c if c.is_control() => 6,
        c => c.len_utf8(),
    };
    let (mut len, mut cut) = (0, None);
    for (at, c) in text.char_indices() {
        len += len_in_json(c);
        // The last place with room for the mark of a cut.
        if len <= TEXT_BYTES - '…'.len_utf8() {
            cut = Some(at + c.len_utf8());
        } else if len > TEXT_BYTES {
            return format!("{}…", text.get(..cut.unwrap_or_default()).unwrap_or_default());
        }
    }
    text
}

/// What was decided about the mount, or the refusal of what needs it.
fn valid(terms: &Result<Terms, Problems>) -> Result<&Terms, Refusal> {
    terms.as_ref().map_err(|problems| Refusal::new("config.invalid", problems.to_string(), problems.hint()))
}

fn no_memory(code: &'static str) -> Refusal {
    Refusal::new(code, "this connection has no private memory file system", "ask for memory first")
}

fn no_mount() -> Refusal {
    Refusal::new("memory.register", "this connection has no FUSE mount", "mount first")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_texts_fit_a_packet_and_one_that_fits_is_whole() {
        let whole = "x".repeat(TEXT_BYTES);
        assert_eq!(bounded(whole.clone()), whole);
        assert_eq!(bounded(whole + "x"), "x".repeat(TEXT_BYTES - 3) + "…");
        for c in ["\u{1}", "\"", "\\", "\n", "\u{7f}", "ü", "\u{10ffff}", "x"] {
            let text = bounded(c.repeat(TEXT_BYTES * 2));
            assert!(text.ends_with('…') && text.starts_with(c), "{c:?}");
            let reply =
                Reply::Refused { code: "mount-point.not-a-directory".into(), text: text.clone(), hint: text };
            let packet = serde_json::to_vec(&reply).unwrap();
            assert!(packet.len() <= cai::helper::protocol::MESSAGE_LIMIT, "{c:?}: {} bytes", packet.len());
        }
    }
}
