//! A helper as root starts it, and lines to it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cai::helper::channel;
use cai::helper::protocol::{Reply, Request};

use crate::common::{available, mounts_below, write_config};

/// Size of the memory file system that [`Machine::new`] configures, in bytes.
pub const SIZE: u64 = 64 << 20;

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cai-helper"))
}

/// A directory in the place of `/`, with a configuration.
pub struct Machine {
    pub root: tempfile::TempDir,
}

impl Machine {
    /// `None` (with the reason printed) where the machine lacks what the tests need.
    pub fn new() -> Option<Self> {
        Self::with_mount(&format!("memory_bytes = \"{SIZE}\"\nuid = 1234\ngid = 2345\n"))
    }

    /// The same with these keys below `[mount]`.
    pub fn with_mount(mount: &str) -> Option<Self> {
        let root = nix::unistd::Uid::effective().is_root();
        if !available("root", root, "needs root")
            || !available("fuse", Path::new("/dev/fuse").exists(), "no /dev/fuse")
        {
            return None;
        }
        let root = tempfile::tempdir().unwrap();
        let toml = format!("[mount]\n{mount}");
        write_config(root.path(), "http://127.0.0.1:9/", "http://127.0.0.1:9", "", &toml);
        Some(Machine { root })
    }

    pub fn point(&self) -> PathBuf {
        self.root.path().join("tmp/model")
    }

    pub fn mounts(&self) -> usize {
        mounts_below(self.root.path())
    }

    /// The line of the mount table for the point.
    pub fn mount_line(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.point();
        let line = table.lines().find(|line| line.split(' ').nth(4) == point.to_str());
        line.expect("nothing is mounted at the point").to_owned()
    }

    /// A helper that reads this configuration.
    pub fn line(&self) -> Line {
        Line::start(&["--root", self.root.path().to_str().unwrap()])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A failed test may leave a mount that would keep the directory from being removed.
        while self.mounts() > 0
            && nix::mount::umount2(&self.point(), nix::mount::MntFlags::MNT_DETACH).is_ok()
        {}
    }
}

/// A line to a helper of its own.
pub struct Line {
    ours: Option<OwnedFd>,
    pub child: Child,
}

impl Line {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_command(Command::new(program()).args(arguments))
    }

    /// A line to a command that becomes the helper.
    pub fn start_command(command: &mut Command) -> Self {
        let (ours, theirs) = channel::pair().unwrap();
        let child = command.stdin(Stdio::from(theirs)).spawn().unwrap();
        Line { ours: Some(ours), child }
    }

    pub fn ours(&self) -> BorrowedFd<'_> {
        self.ours.as_ref().expect("hung up").as_fd()
    }

    /// Ask, and do not wait.
    pub fn send(&self, request: Request, file: Option<BorrowedFd<'_>>) {
        channel::send(self.ours(), &request.to_packet().unwrap(), file).unwrap();
    }

    /// Ask with a descriptor beside the request.
    pub fn ask_with(&self, request: Request, file: Option<BorrowedFd<'_>>) -> (Reply, Option<OwnedFd>) {
        self.send(request, file);
        let (answer, descriptor) =
            channel::receive(self.ours()).unwrap().expect("the helper ended without an answer");
        (serde_json::from_slice(&answer).unwrap(), descriptor)
    }

    /// What was done, and the descriptor that came.
    pub fn done(&self, request: Request) -> (String, Option<OwnedFd>) {
        match self.ask_with(request, None) {
            (Reply::Done { text }, descriptor) => (text, descriptor),
            (other, _) => panic!("{request:?}: {other:?}"),
        }
    }

    /// Code and text of a refusal.
    pub fn refused(&self, request: Request) -> (String, String) {
        self.refused_with(request, None)
    }

    pub fn refused_with(&self, request: Request, file: Option<BorrowedFd<'_>>) -> (String, String) {
        match self.ask_with(request, file) {
            (Reply::Refused { code, text, .. }, None) => (code, text),
            (other, _) => panic!("{request:?}: expected a refusal, got {other:?}"),
        }
    }

    /// The root of the memory file system, as the daemon gets it.
    pub fn memory(&self) -> Memory {
        Memory(self.done(Request::Memory).1.expect("no directory came").into())
    }

    pub fn register(&self, file: &File) -> u32 {
        match self.ask_with(Request::Register, Some(file.as_fd())) {
            (Reply::Registered { id }, None) => id,
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Close the line, as the daemon's death does.
    pub fn hang_up(&mut self) {
        self.ours = None;
    }

    /// End the helper at once; what it would undo stays.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.hang_up();
        let _ = self.child.wait();
    }
}

/// The memory file system through the daemon's descriptor.
pub struct Memory(pub File);

impl Memory {
    /// A path into it, for this process.
    pub fn at(&self, name: &str) -> PathBuf {
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&self.0);
        PathBuf::from(format!("/proc/self/fd/{descriptor}")).join(name)
    }

    /// Write a file that is closed again.
    pub fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.at(name), content).unwrap();
    }
}
