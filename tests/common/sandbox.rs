//! Starts `cai-sandbox` for a test and ends it with the test, also when the test panics.
//!
//! Usage: `#[path = "common/sandbox.rs"] mod sandbox;` then `Sandbox::start(Builder::default())`. Needs
//! feature `sandbox`.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use cai::config::{Credentials, Oss, OssCredentials};
use cai::keyring::Secret;
use serde_json::Value;

pub const ACCESS_KEY_ID: &str = "LTAI-sandbox";
pub const ACCESS_KEY_SECRET: &str = "sandbox-secret";
pub const SESSION_TOKEN: &str = "CAIS+sandbox/token==";
pub const BUCKET: &str = "conf-ai";
pub const REGION: &str = "cn-beijing";
pub const RESOURCE: &str = "default/aliyun/model-decryption-key";

/// What the sandbox is started with; the default is protocol 0.4.0, a lasting key, no anonymous reading, no
/// resource.
#[derive(Default)]
pub struct Builder {
    protocol: Option<String>,
    with_session_token: bool,
    anonymous_read: bool,
    resources: Vec<(String, Vec<u8>)>,
    more: Vec<String>,
    state_dir: Option<PathBuf>,
    namespace: Option<(String, String)>,
}

impl Builder {
    /// Runs in this network namespace, Trustee and OSS at this address of it.
    pub fn in_namespace(mut self, name: &str, address: &str) -> Self {
        self.namespace = Some((name.to_owned(), address.to_owned()));
        self
    }

    /// Further arguments of `cai-sandbox serve`.
    pub fn with(mut self, arguments: &[&str]) -> Self {
        self.more.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// `0.4.0`, `0.2.0`, `0.1.1` or `0.1.0`.
    pub fn protocol(mut self, protocol: &str) -> Self {
        self.protocol = Some(protocol.to_owned());
        self
    }

    /// The access key is a temporary one with [`SESSION_TOKEN`].
    pub fn with_session_token(mut self) -> Self {
        self.with_session_token = true;
        self
    }

    pub fn anonymous_read(mut self) -> Self {
        self.anonymous_read = true;
        self
    }

    pub fn resource(mut self, path: &str, bytes: &[u8]) -> Self {
        self.resources.push((path.to_owned(), bytes.to_vec()));
        self
    }

    /// Keeps the objects in `dir`, which outlives the sandbox; else they are in a directory of its own.
    pub fn state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = Some(dir.to_owned());
        self
    }
}

/// A running sandbox.
pub struct Sandbox {
    /// Base URLs without a trailing slash.
    pub kbs: String,
    pub oss: String,
    pub control: String,
    /// Metadata service and STS.
    pub cloud: String,
    child: Child,
    // Held open: the sandbox ends with it (`--exit-with-stdin`), so it never outlives a crashed test.
    stdin: Option<ChildStdin>,
    dir: tempfile::TempDir,
    client: reqwest::Client,
}

impl Sandbox {
    /// Starts it and returns once it listens.
    pub fn start(builder: Builder) -> Sandbox {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("write");
            path
        };
        let program = env!("CARGO_BIN_EXE_cai-sandbox");
        let mut command = Command::new(if builder.namespace.is_some() { "ip" } else { program });
        if let Some((name, _)) = &builder.namespace {
            command.args(["netns", "exec", name, program]);
        }
        let state_dir = builder.state_dir.unwrap_or_else(|| dir.path().join("state"));
        command.arg("serve").arg("--exit-with-stdin").arg("--state-dir").arg(state_dir);
        command.args(["--bucket", BUCKET, "--region", REGION, "--access-key-id", ACCESS_KEY_ID]);
        command.arg("--access-key-secret-file").arg(file("secret", ACCESS_KEY_SECRET.as_bytes()));
        if builder.with_session_token {
            command.arg("--session-token-file").arg(file("token", SESSION_TOKEN.as_bytes()));
        }
        if builder.anonymous_read {
            command.arg("--allow-anonymous-read");
        }
        if let Some(protocol) = &builder.protocol {
            command.args(["--kbs-protocol", protocol]);
        }
        if let Some((_, address)) = &builder.namespace {
            let address = format!("{address}:0");
            for service in ["--listen", "--oss-listen", "--cloud-listen", "--control-listen"] {
                command.args([service, &address]);
            }
        }
        command.args(&builder.more);
        for (number, (path, bytes)) in builder.resources.iter().enumerate() {
            let file = file(&format!("resource-{number}"), bytes);
            command.arg("--resource").arg(format!("{path}={}", file.display()));
        }
        // In a file, shown when the test fails: hundreds of request lines would bury its own output.
        let stderr = std::fs::File::create(dir.path().join("stderr")).expect("create");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("cai-sandbox");
        let stdin = child.stdin.take().expect("stdin");
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout"));
        stdout.read_line(&mut line).expect("the address line");
        let ready: Value =
            serde_json::from_str(&line).expect("cai-sandbox ended before it listened; see stderr");
        let address = |name: &str| ready[name].as_str().expect("address").to_owned();
        Sandbox {
            kbs: address("kbs"),
            oss: address("oss"),
            control: address("control"),
            cloud: address("cloud"),
            child,
            stdin: Some(stdin),
            dir,
            client: reqwest::Client::builder().no_proxy().build().expect("client"),
        }
    }

    /// Settings of its owner, for the model below `model/`.
    pub fn oss_config(&self) -> Oss {
        Oss {
            prefix: "model/".to_owned(),
            region: Some(REGION.to_owned()),
            credentials: Credentials::Static(OssCredentials {
                access_key_id: ACCESS_KEY_ID.to_owned(),
                secret_access_key: Secret::copy_of(ACCESS_KEY_SECRET.as_bytes()).unwrap(),
                session_token: None,
            }),
            concurrency: 8,
            timeout: Duration::from_secs(10),
            ..Oss::anonymous(self.oss.parse().unwrap(), BUCKET)
        }
    }

    /// Process id, for tests that signal it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Closes its stdin, as the end of this process would.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for it to end and gives its exit status.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().expect("wait")
    }

    /// Stores a resource of the Trustee.
    pub async fn put_resource(&self, path: &str, bytes: &[u8]) {
        let url = format!("{}/resource/{path}", self.control);
        let answer = self.client.put(url).body(bytes.to_vec()).send().await.expect("control port");
        assert_eq!(answer.status(), 204, "resource {path}");
    }

    /// Replaces the set of faults; `src/bin/cai-sandbox/faults.rs` lists them.
    pub async fn faults(&self, faults: Value) {
        let answer = self
            .client
            .put(format!("{}/faults", self.control))
            .body(faults.to_string())
            .send()
            .await
            .expect("control");
        let status = answer.status();
        assert_eq!(status, 204, "{}", answer.text().await.unwrap_or_default());
    }

    /// Replaces the rules of the metadata service and STS; `src/bin/cai-sandbox/cloud.rs` lists them.
    pub async fn cloud_rules(&self, rules: Value) {
        let url = format!("{}/cloud", self.control);
        let answer = self.client.put(url).body(rules.to_string()).send().await.expect("control port");
        assert_eq!(answer.status(), 204, "{}", answer.text().await.unwrap_or_default());
    }

    /// Ends every key issued so far.
    pub async fn expire_keys(&self) {
        let url = format!("{}/cloud/expire", self.control);
        assert_eq!(self.client.post(url).send().await.expect("control port").status(), 204);
    }

    /// A new temporary key, as its services write one.
    pub async fn issue_key(&self) -> Value {
        let answer = self.client.post(format!("{}/cloud/issue", self.control)).send().await.expect("control");
        serde_json::from_slice(&answer.bytes().await.expect("body")).expect("json")
    }

    /// How often each fault of the set has acted, in its order.
    pub async fn fired(&self) -> Vec<u64> {
        let faults = self.get("/faults").await;
        faults
            .as_array()
            .expect("array")
            .iter()
            .map(|fault| fault["fired"].as_u64().expect("count"))
            .collect()
    }

    /// Requests seen: `{"counts": {"oss.get": 3, ...}, "requests": [...]}`.
    pub async fn log(&self) -> Value {
        self.get("/log").await
    }

    /// Requests of one operation (`oss.get`, `kbs.attest`, ...) seen so far.
    pub async fn count(&self, operation: &str) -> u64 {
        self.log().await["counts"][operation].as_u64().unwrap_or(0)
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.control)).send().await.expect("control port");
        serde_json::from_slice(&answer.bytes().await.expect("body")).expect("json")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
            eprintln!("---- requests the sandbox saw ----\n{log}");
        }
        // Already ended in tests that end it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
