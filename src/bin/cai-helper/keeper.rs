//! The keeper of an adapter: starts it, tells the daemon what becomes of it, stops it when the daemon's line closes.
//!
//! It runs as the adapter's user: as `cai-decryptor@.service`, where systemd has confined it, or as a child of a helper that
//! systemd did not start, where it confines itself. Whatever the adapter leaves behind is killed. Threads: one reads the
//! adapter's standard output, one waits for the line to close.

use std::io::{BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use cai::helper::channel;
use cai::host::User;
use cai::sam::USER;
use cai::sam::keeper::{End, FOLLOWING, Order, STOP_GRACE, Said};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, Uid, setgroups, setresgid, setresuid};

use crate::launch;

/// Longest first line that can be `READY`.
const READY_LIMIT: usize = 64;

/// How long processes that were killed may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(3);

/// Keep one adapter, as the line at standard input says.
pub(crate) fn run() -> anyhow::Result<()> {
    // The end of the line is the only stop signal: whoever stops the unit signals the adapter, too, and its end is to be told.
    crate::block_stops()?;
    let stdin = std::io::stdin();
    let line = stdin.as_fd();
    let peer = getsockopt(&line, PeerCredentials).context("standard input is not a socket")?;
    anyhow::ensure!(peer.uid() == 0, "peer has uid {}, expected root", peer.uid());
    confine()?;
    prctl::set_child_subreaper(true).context("becoming the reaper of what the adapter leaves")?;
    let (order, placed) = receive(line)?;
    let mut child = start(&order, placed).context("starting the adapter")?;
    let stdout = child.stdout.take().context("no pipe to the adapter")?;
    let keeping = Keeping { adapter: Mutex::new(Some(pid(&child))), killed: Mutex::new(false) };
    std::thread::scope(|threads| {
        threads.spawn(|| listen(stdout, line));
        threads.spawn(|| keeping.stop_with(line));
        let end = keeping.wait(&mut child)?;
        say(line, &Said::Ended(end));
        // The threads have nothing to add, and may wait for ever.
        std::process::exit(0)
    })
}

/// Give up what systemd has not taken already; be nobody else than the adapter's user from here on.
fn confine() -> anyhow::Result<()> {
    let user = User::find(USER)?.with_context(|| format!("user {USER} does not exist"))?;
    if Uid::effective().is_root() {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC).context("leaving the network")?;
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        setgroups(&[])?;
        setresgid(user.gid, user.gid, user.gid)?;
        setresuid(user.uid, user.uid, user.uid)?;
    }
    prctl::set_no_new_privs()?;
    // After the change of user, which sets it.
    prctl::set_dumpable(false)?;
    let uid = Uid::effective();
    anyhow::ensure!(
        uid == user.uid && !uid.is_root(),
        "running as uid {uid}, expected {USER} ({})",
        user.uid
    );
    Ok(())
}

/// The order, and what is to be at descriptors 3, 4 and 5: key, device, program.
fn receive(line: BorrowedFd<'_>) -> anyhow::Result<(Order, [OwnedFd; 3])> {
    let next = || {
        let (packet, descriptor) = channel::receive(line)?.context("the line closed before an order came")?;
        anyhow::Ok((packet, descriptor.context("a packet without its descriptor")?))
    };
    let (order, key) = next()?;
    let order = serde_json::from_slice(&order).context("an order that is none")?;
    let (device, adapter) = (next()?, next()?);
    anyhow::ensure!([&device.0[..], &adapter.0[..]] == FOLLOWING, "an order in another order");
    Ok((order, [key, device.1, adapter.1]))
}

fn start(order: &Order, placed: [OwnedFd; 3]) -> std::io::Result<Child> {
    let mut command = Command::new("/proc/self/fd/5");
    command
        .arg0("sam")
        .args(["mount", "--cipher-dir"])
        .arg(&order.cipher_dir)
        .args(["--mount-point", "/dev/fd/4", "--key-id", &order.key_id])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    // Our own copies are gone when this returns: the mount must die with the adapter.
    launch::spawn(&mut command, placed)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap_or(i32::MAX))
}

/// What is known of the adapter.
struct Keeping {
    /// While it has not been reaped: its number is nobody else's.
    adapter: Mutex<Option<Pid>>,
    killed: Mutex<bool>,
}

impl Keeping {
    /// Wait for the line to close, then end the adapter: asked first, killed after a while.
    fn stop_with(&self, line: BorrowedFd<'_>) {
        // Nothing is ever said to a keeper.
        let _ = channel::receive(line);
        self.signal(Signal::SIGTERM);
        std::thread::sleep(STOP_GRACE);
        *self.killed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        let adapter = self.adapter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pid) = *adapter {
            let _ = kill(pid, signal);
        }
    }

    /// Wait until the adapter has ended, and end what it left: how.
    fn wait(&self, child: &mut Child) -> anyhow::Result<End> {
        let pid = pid(child);
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        *self.adapter.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let status: ExitStatus = child.wait().context("waiting for the adapter")?;
        let left = end_descendants();
        let killed = *self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(End { status: status.code(), signal: status.signal(), killed, left })
    }
}

/// Read the adapter's standard output to its end, and tell when it says `READY` in its first line.
fn listen(stdout: ChildStdout, line: BorrowedFd<'_>) {
    let mut stdout = BufReader::new(stdout);
    let (mut first, mut byte) = (Vec::new(), [0]);
    while first.len() <= READY_LIMIT && stdout.read_exact(&mut byte).is_ok() {
        if byte == *b"\n" {
            break;
        }
        first.extend(byte);
    }
    if first.trim_ascii() == b"READY" {
        say(line, &Said::Ready);
    }
    // Nobody wants the rest, and nobody must wait for a full pipe.
    let _ = std::io::copy(&mut stdout, &mut std::io::sink());
}

fn say(line: BorrowedFd<'_>, said: &Said) {
    if let Ok(packet) = serde_json::to_vec(said) {
        // Behind a daemon that is gone nobody listens.
        let _ = channel::send(line, &packet, None);
    }
}

/// Kill everything that the adapter has left, until there is nothing: how many there were.
fn end_descendants() -> u32 {
    let deadline = Instant::now() + KILL_LIMIT;
    let mut killed = std::collections::HashSet::new();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {
                for pid in children() {
                    if kill(pid, Signal::SIGKILL).is_ok() {
                        killed.insert(pid);
                    }
                }
                if Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => break,
        }
    }
    u32::try_from(killed.len()).unwrap_or(u32::MAX)
}

/// Processes whose parent this one is (proc(5), stat: the fourth field, behind a name in parentheses).
fn children() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1).map(|parent| parent == own))
            == Some(true)
    };
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(is_child).map(Pid::from_raw).collect()
}
