//! The daemon's side: get a line to the helper, ask, wait for the answer.

use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::channel;
use super::protocol::{Reply, Request};
use crate::error::{ErrorClass, Fault};

/// Longest data a verb can give, in bytes: a boot event log has a few hundred KiB at most, in base64.
const DATA_LIMIT: u64 = 4 << 20;

/// How often it is looked whether the helper is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where `cai-helper.socket` listens, below the root.
pub const SOCKET: &str = "run/cai/helper.sock";

/// The line to the helper could not be had, or the helper refused.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// Neither root (to start the helper) nor a socket to reach a running one.
    #[error("no helper: {} cannot be reached and this process is not root", socket.display())]
    NoHelper {
        /// The socket tried.
        socket: PathBuf,
        /// Why it cannot be reached.
        #[source]
        source: io::Error,
    },
    /// The helper's program could not be started.
    #[error("starting {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The line broke.
    #[error("talking to the helper about {verb:?}")]
    Line {
        /// What was asked.
        verb: Request,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The line was closed from the other end: nobody is there to undo what was done through it.
    #[error("the helper has ended")]
    Gone,
    /// The helper said no.
    #[error("{text}")]
    Refused {
        /// The helper's stable code.
        code: &'static str,
        /// What was expected and what came.
        text: String,
        /// What to do about it.
        hint: String,
    },
}

impl Fault for HelperError {
    fn class(&self) -> ErrorClass {
        match self {
            HelperError::NoHelper { .. } | HelperError::Start { .. } => ErrorClass::Config,
            HelperError::Refused { code, .. } => {
                let known = CODES.into_iter().find(|(known, _)| known == code);
                known.map_or(ErrorClass::Config, |(_, class)| class)
            }
            HelperError::Line { .. } => ErrorClass::Internal,
            // A new daemon has a new helper, which clears away what the old one left.
            HelperError::Gone => ErrorClass::Transient,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            HelperError::NoHelper { .. } => "helper.none",
            HelperError::Start { .. } => "helper.start",
            HelperError::Line { .. } => "helper.line",
            HelperError::Gone => "helper.gone",
            HelperError::Refused { code, .. } => code,
        }
    }

    fn hint(&self) -> String {
        match self {
            HelperError::NoHelper { .. } => {
                "start cai through systemd (cai-helper.socket), or as root".into()
            }
            HelperError::Start { .. } => "install cai-helper beside cai, or in /usr/libexec/cai".into(),
            HelperError::Line { .. } => "see the journal for cai-helper".into(),
            HelperError::Gone => {
                "see why it ended: journalctl -u 'cai-helper@*', and whether memory was exhausted".into()
            }
            HelperError::Refused { hint, .. } => hint.clone(),
        }
    }
}

/// Codes the helper may answer with, and what they mean for a retry. Anything else is reported as `helper.refused`.
const CODES: [(&str, ErrorClass); 50] = [
    ("config.invalid", ErrorClass::Config),
    ("mount-point.symlink", ErrorClass::Config),
    ("mount-point.not-a-directory", ErrorClass::Config),
    ("mount-point.owner", ErrorClass::Config),
    ("mount-point.parent", ErrorClass::Config),
    ("mount-point.not-empty", ErrorClass::Config),
    ("mount-point.busy", ErrorClass::Config),
    ("mount-point.io", ErrorClass::Config),
    ("fuse.device", ErrorClass::Config),
    ("fuse.mount", ErrorClass::Config),
    ("readahead.failed", ErrorClass::Config),
    ("memory.swap", ErrorClass::Config),
    ("memory.kernel", ErrorClass::Config),
    ("memory.failed", ErrorClass::Config),
    ("memory.register", ErrorClass::Config),
    ("memory.publish", ErrorClass::Config),
    ("sam.runtime-missing", ErrorClass::Config),
    ("sam.adapter-unsafe", ErrorClass::Config),
    ("sam.adapter-hash", ErrorClass::Config),
    ("sam.adapter-io", ErrorClass::Config),
    ("sam.user", ErrorClass::Config),
    ("sam.directory", ErrorClass::Config),
    ("sam.start", ErrorClass::Transient),
    ("sam.no-mount", ErrorClass::Config),
    ("gate.none", ErrorClass::Config),
    ("gate.no-nft", ErrorClass::Config),
    ("gate.run", ErrorClass::Transient),
    ("gate.refused", ErrorClass::Transient),
    ("vendor.child", ErrorClass::Transient),
    ("tdx.event-log", ErrorClass::Config),
    ("tdx.no-tsm", ErrorClass::Config),
    ("tdx.tsm", ErrorClass::Config),
    ("tdx.tsm-provider", ErrorClass::Config),
    ("tdx.tsm-shared", ErrorClass::Transient),
    ("tdx.tsm-busy", ErrorClass::Transient),
    ("tdx.host-timeout", ErrorClass::Transient),
    ("tdx.empty-quote", ErrorClass::Transient),
    ("tdx.no-device", ErrorClass::Config),
    ("tdx.device", ErrorClass::Config),
    ("tdx.no-library", ErrorClass::Config),
    ("tdx.library", ErrorClass::Config),
    ("tdx.library-vsock", ErrorClass::Transient),
    ("tdx.library-device", ErrorClass::Config),
    ("tdx.library-quote", ErrorClass::Transient),
    ("gpu.no-library", ErrorClass::Config),
    ("gpu.driver-old", ErrorClass::Config),
    ("gpu.driver", ErrorClass::Transient),
    ("gpu.not-supported", ErrorClass::Config),
    ("gpu.device", ErrorClass::Transient),
    ("gpu.data", ErrorClass::Config),
];

/// A line to the helper. Dropping it makes the helper detach what it mounted on this line.
#[derive(Debug)]
pub struct Helper {
    socket: Mutex<OwnedFd>,
}

impl Helper {
    /// Start the helper as a child (root only): it gets its end of the line as standard input.
    ///
    /// # Errors
    /// [`HelperError::Start`].
    pub fn start(root: &Path) -> Result<Self, HelperError> {
        Self::start_program(&program(), root)
    }

    /// [`Helper::start`] with the program given.
    ///
    /// # Errors
    /// [`HelperError::Start`].
    pub fn start_program(program: &Path, root: &Path) -> Result<Self, HelperError> {
        Self::spawn(program, [OsStr::new("--root"), root.as_os_str()])
    }

    /// Start the helper for a mount of root's own: at the absolute `point`, with a memory file system of `memory_bytes` (0 =
    /// half of what is available) and a read-ahead of `readahead_kib` KiB. It reads no configuration, root is its daemon, what
    /// it mounts is for root alone, and it attests nothing.
    ///
    /// # Errors
    /// [`HelperError::Start`]. A relative `point` ends the helper: [`HelperError::Line`] at the first request.
    pub fn start_for_owner(point: &Path, memory_bytes: u64, readahead_kib: u32) -> Result<Self, HelperError> {
        Self::start_program_for_owner(&program(), point, memory_bytes, readahead_kib)
    }

    /// [`Helper::start_for_owner`] with the program given.
    ///
    /// # Errors
    /// As there.
    pub fn start_program_for_owner(
        program: &Path,
        point: &Path,
        memory_bytes: u64,
        readahead_kib: u32,
    ) -> Result<Self, HelperError> {
        let (bytes, kib) = (memory_bytes.to_string(), readahead_kib.to_string());
        let (point, bytes, kib) = (point.as_os_str(), OsStr::new(&bytes), OsStr::new(&kib));
        let [mount_point, memory_bytes, readahead_kib] =
            ["--mount-point", "--memory-bytes", "--readahead-kib"].map(OsStr::new);
        Self::spawn(program, [mount_point, point, memory_bytes, bytes, readahead_kib, kib])
    }

    fn spawn<const COUNT: usize>(program: &Path, arguments: [&OsStr; COUNT]) -> Result<Self, HelperError> {
        let fail = |source| HelperError::Start { program: program.to_path_buf(), source };
        let (ours, theirs) = channel::pair().map_err(fail)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::from(theirs)).stdout(Stdio::null());
        // Ctrl-C in the daemon's terminal is not for the helper: it has to outlive the daemon's teardown.
        command.process_group(0);
        // The child outlives nobody: it ends by itself when the line closes. Reaped by init or by us at exit.
        command.spawn().map_err(fail)?;
        Ok(Helper { socket: Mutex::new(ours) })
    }

    /// Reach the helper that systemd starts behind its socket.
    ///
    /// # Errors
    /// [`HelperError::NoHelper`].
    pub fn connect(root: &Path) -> Result<Self, HelperError> {
        let path = root.join(SOCKET);
        let fail = |source: nix::Error| HelperError::NoHelper { socket: path.clone(), source: source.into() };
        let line =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(fail)?;
        let address = UnixAddr::new(&path).map_err(fail)?;
        connect(std::os::fd::AsRawFd::as_raw_fd(&line), &address).map_err(fail)?;
        Ok(Helper { socket: Mutex::new(line) })
    }

    /// Ask for `verb` and wait. The descriptor, if one came, is returned beside the helper's text.
    ///
    /// # Errors
    /// [`HelperError::Refused`] with the helper's reason, [`HelperError::Line`] when the line broke.
    pub fn ask(&self, verb: Request) -> Result<(String, Option<OwnedFd>), HelperError> {
        match self.exchange(verb, None)? {
            (Reply::Done { text }, descriptor) => Ok((text, descriptor)),
            (other, _) => Err(unexpected(verb, &other)),
        }
    }

    /// Ask for [`Request::Register`] of `file`; the kernel's number for it.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn register(&self, file: BorrowedFd<'_>) -> Result<u32, HelperError> {
        match self.exchange(Request::Register, Some(file))? {
            (Reply::Registered { id }, _) => Ok(id),
            (other, _) => Err(unexpected(Request::Register, &other)),
        }
    }

    /// Ask for [`Request::Decrypt`] with a pipe that holds the `key`: the helper's text, and the line to the keeper.
    ///
    /// # Errors
    /// As [`Helper::ask`].
    pub fn decrypt(&self, key: BorrowedFd<'_>) -> Result<(String, Option<OwnedFd>), HelperError> {
        match self.exchange(Request::Decrypt, Some(key))? {
            (Reply::Done { text }, line) => Ok((text, line)),
            (other, _) => Err(unexpected(Request::Decrypt, &other)),
        }
    }

    /// Wait until the helper is gone: [`HelperError::Gone`]. It ends only with the line, unless somebody kills it; then the mount
    /// would stay when the daemon ends, and the GPUs would go on working.
    pub async fn gone(&self) -> HelperError {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if self.is_hung_up() {
                return HelperError::Gone;
            }
        }
    }

    /// Whether the other end is closed. While an answer is waited for, who waits for it will hear of that.
    fn is_hung_up(&self) -> bool {
        let Ok(line) = self.socket.try_lock() else { return false };
        let mut polled = [PollFd::new(line.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::ZERO).is_ok()
            && polled.iter().filter_map(PollFd::revents).any(|events| events.contains(PollFlags::POLLHUP))
    }

    fn exchange(
        &self,
        verb: Request,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<(Reply, Option<OwnedFd>), HelperError> {
        let fail = |source: io::Error| HelperError::Line { verb, source };
        let line = self.socket.lock().map_err(|_| fail(io::ErrorKind::Deadlock.into()))?;
        let message = verb.to_packet().map_err(|error| fail(error.into()))?;
        channel::send(line.as_fd(), &message, file).map_err(fail)?;
        let (answer, descriptor) = channel::receive(line.as_fd())
            .map_err(fail)?
            .ok_or_else(|| fail(io::ErrorKind::UnexpectedEof.into()))?;
        match serde_json::from_slice(&answer).map_err(|error| fail(error.into()))? {
            Reply::Refused { code, text, hint } => {
                let known = CODES.into_iter().find(|(known, _)| *known == code);
                let code = known.map_or("helper.refused", |(code, _)| code);
                Err(HelperError::Refused { code, text, hint })
            }
            reply => Ok((reply, descriptor)),
        }
    }

    /// Ask for a verb that gives data: the helper's text, and the data.
    ///
    /// # Errors
    /// As [`Helper::ask`]; [`HelperError::Line`] also when the data is missing or over its limit.
    pub fn fetch(&self, verb: Request) -> Result<(String, Vec<u8>), HelperError> {
        let fail = |source: io::Error| HelperError::Line { verb, source };
        let (text, descriptor) = self.ask(verb)?;
        let descriptor = descriptor.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        Ok((text, read_bounded(descriptor).map_err(fail)?))
    }
}

/// An answer that belongs to another verb.
fn unexpected(verb: Request, reply: &Reply) -> HelperError {
    let source = io::Error::new(io::ErrorKind::InvalidData, format!("the helper answered {reply:?}"));
    HelperError::Line { verb, source }
}

/// All of a memory file, which starts at its beginning.
fn read_bounded(descriptor: OwnedFd) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    std::fs::File::from(descriptor).take(DATA_LIMIT + 1).read_to_end(&mut data)?;
    if data.len() as u64 > DATA_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the helper's data is over its limit"));
    }
    Ok(data)
}

/// `cai-helper` beside this program, else where the package puts it.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name("cai-helper"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "/usr/libexec/cai/cai-helper".into())
}
