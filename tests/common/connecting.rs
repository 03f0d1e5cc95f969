//! Runs `cai connect` for a test and ends it with the test.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A running `cai connect`.
pub struct Connect {
    /// The doors' addresses, in the order of its lines: `--listen`, then `--socks`.
    pub doors: Vec<SocketAddr>,
    child: Child,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
    command.arg("connect").args(arguments).stdin(Stdio::null());
    command
}

/// Exit status and standard error of a `cai connect` that ends by itself.
pub fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

impl Connect {
    /// On free ports, with these arguments beside.
    pub fn start(arguments: &[&str]) -> Connect {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = command(arguments);
        command.args(["--listen", "127.0.0.1:0"]);
        command.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let count = 1 + arguments.iter().filter(|argument| **argument == "--socks").count();
        let doors = (0..count).map(|_| {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let address = line.trim().rsplit(' ').next().unwrap().parse();
            address.unwrap_or_else(|_| panic!("{line:?}; {}", std::fs::read_to_string(&log).unwrap()))
        });
        let doors = doors.collect();
        Connect { doors, child, log, _dir: dir }
    }

    /// `http://127.0.0.1:PORT` of the HTTP proxy.
    pub fn proxy(&self) -> String {
        format!("http://{}", self.doors[0])
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log so far, without the colour and the time of each line.
    pub fn log(&self) -> String {
        let mut text = String::new();
        std::fs::File::open(&self.log).unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- cai connect ----\n{}", self.log());
        }
        // Already ended in tests that end it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
