//! Two machines on one: network namespaces `server` and `client`, joined by a cable, gone with the test.
//!
//! A process cannot change its namespace without a capability call that the test would need `unsafe` for, so roles are played
//! by the test binary itself, started again inside a namespace.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::common;

pub const SERVER_V4: &str = "10.77.0.1";
pub const SERVER_V6: &str = "fd77::1";

/// The two namespaces.
pub struct Hosts {
    tag: String,
}

fn ran(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

impl Hosts {
    /// `None`, with the reason printed, where namespaces or nft cannot be had. `name` keeps tests apart.
    pub fn new(name: &str) -> Option<Self> {
        let hosts = Hosts { tag: format!("cai-{name}-{}", std::process::id()) };
        let made = ["server", "client"]
            .iter()
            .all(|host| ran(Command::new("ip").args(["netns", "add", &hosts.name(host)])));
        let nft = ran(Command::new("nft").arg("--version"));
        common::available("netns", made && nft, "no network namespaces or no nft").then(|| {
            hosts.cable();
            hosts
        })
    }

    pub fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.tag)
    }

    fn cable(&self) {
        let (server, client) = (self.name("server"), self.name("client"));
        let link = [
            "link", "add", "cable", "netns", &server, "type", "veth", "peer", "name", "cable", "netns",
            &client,
        ];
        assert!(ran(Command::new("ip").args(link)), "no veth");
        for (host, v4, v6) in
            [("server", "10.77.0.1/24", "fd77::1/64"), ("client", "10.77.0.2/24", "fd77::2/64")]
        {
            for arguments in [
                &["addr", "add", v4, "dev", "cable"][..],
                &["addr", "add", v6, "dev", "cable", "nodad"],
                &["link", "set", "cable", "up"],
                &["link", "set", "lo", "up"],
            ] {
                assert!(self.run(host, "ip", arguments), "{host}: ip {arguments:?}");
            }
        }
    }

    /// A command inside, prepared.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host), program]);
        command
    }

    /// Run it; whether it succeeded.
    pub fn run(&self, host: &str, program: &str, arguments: &[&str]) -> bool {
        self.command(host, program).args(arguments).status().unwrap().success()
    }

    /// Rules of nft, from standard input.
    pub fn nft(&self, host: &str, rules: &str) {
        let mut child = self.command(host, "nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{rules}");
    }

    /// Play `role` (a test of this binary, which does nothing unless `CAI_ROLE` is set) inside `host`.
    pub fn play(&self, host: &str, role: &str, argument: &str) -> Role {
        let me = std::env::current_exe().unwrap();
        let mut child = self
            .command(host, me.to_str().unwrap())
            .args(["--exact", role, "--nocapture", "--test-threads=1"])
            .env("CAI_ROLE", argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Role { child, stdin, stdout }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in ["server", "client"] {
            ran(Command::new("ip").args(["netns", "del", &self.name(host)]));
        }
    }
}

/// A role being played; it ends when its standard input does.
pub struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    /// The rest of its next line that begins with `key`.
    pub fn says(&mut self, key: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.stdout.read_line(&mut line).unwrap(), 0, "the role ended without saying {key}");
            // The test harness writes before it on the same line.
            if let Some((_, rest)) = line.split_once(key) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Let it end; whether it was well.
    pub fn end(mut self) -> bool {
        drop(self.stdin.take());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
