//! Everything `cai run` needs around it, on loopback and below one directory: stand-in Trustee and OSS with an encrypted
//! model, a private system bus, a notify socket. All of it ends with the test, also when the test panics.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cai::gocryptfs::{EncryptOptions, Passphrase, encrypt_tree};
use cai::keyring::Secret;
use cai::manifest::{self, Manifest};
use cai::oss;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{agents_run, mounts_below, wait_until, write_config};
use crate::sandbox::{ACCESS_KEY_ID, ACCESS_KEY_SECRET, Builder, RESOURCE, Sandbox};

/// The model's password, as the Trustee delivers it: with the newline that `echo` leaves.
pub const SECRET: &[u8] = b"Tr0ub4dor-planted-secret\n";

/// Stand-ins, bus and configuration for one agent at a time.
pub struct World {
    pub directory: tempfile::TempDir,
    pub sandbox: Sandbox,
    bus: Child,
    /// Plaintext of the model by path.
    pub model: BTreeMap<String, Vec<u8>>,
    pub env: String,
    pub toml: String,
    /// Network namespace that agents run in; ours by default.
    pub namespace: Option<String>,
}

/// Bytes that differ from file to file and from block to block.
pub fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ ((at >> 12) as u8).wrapping_mul(31) ^ seed).collect()
}

/// A small model: two shards of more than one chunk together, and what goes with them.
pub fn small_model() -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([
        ("config.json".to_owned(), br#"{"model_type":"llama"}"#.to_vec()),
        ("model-00001-of-00002.safetensors".to_owned(), pattern(1, (9 << 20) + 5)),
        ("model-00002-of-00002.safetensors".to_owned(), pattern(2, 3 << 20)),
        ("sub/tokenizer.json".to_owned(), pattern(3, 5000)),
    ])
}

impl World {
    /// `None`, with the reason printed, where the machine lacks something.
    pub fn new(builder: Builder) -> Option<World> {
        if !agents_run() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let sandbox = Sandbox::start(builder.resource(RESOURCE, SECRET));
        let bus = start_bus(directory.path());
        let env = format!(
            "MODEL_OSS_ACCESS_KEY_ID={ACCESS_KEY_ID}\nMODEL_OSS_SECRET_ACCESS_KEY={ACCESS_KEY_SECRET}\n"
        );
        let world = World {
            directory,
            sandbox,
            bus,
            model: BTreeMap::new(),
            env,
            toml: String::new(),
            namespace: None,
        };
        fs::create_dir_all(world.root().join("tmp")).unwrap();
        Some(world)
    }

    /// The usual world: protocol 0.4.0, the small model uploaded.
    pub async fn with_small_model() -> Option<World> {
        let mut world = World::new(Builder::default())?;
        world.upload(small_model()).await;
        Some(world)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The agent's `--root`.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.root().join("tmp/model")
    }

    /// Encrypt `model` with [`SECRET`] and put it into the bucket; gives the ciphertext directory.
    pub async fn upload(&mut self, model: BTreeMap<String, Vec<u8>>) -> PathBuf {
        let cipher = upload(self.directory.path(), &self.sandbox, &model).await;
        self.model = model;
        cipher
    }

    pub fn write_config(&self) {
        write_config(&self.root(), &self.sandbox.kbs, &self.sandbox.oss, &self.env, &self.toml);
    }

    /// Start `cai run`.
    pub fn agent(&self) -> Agent {
        self.write_config();
        Agent::start(self, &[])
    }

    /// A command that talks to the private bus.
    pub fn on_bus(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", self.path("bus").display()));
        command
    }

    /// `cai`, on the private bus, with these arguments, to its end.
    pub fn cai(&self, arguments: &[&str]) -> Output {
        self.on_bus(env!("CARGO_BIN_EXE_cai")).args(arguments).output().unwrap()
    }

    /// `cai status --json`; `None` while nobody answers.
    pub fn status(&self) -> Option<Value> {
        let output = self.cai(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Wait until the agent shows `state`.
    pub fn wait_state(&self, agent: &mut Agent, state: &str) -> Value {
        let mut last = None;
        wait_until(&format!("state {state}"), || {
            if let Some(status) = agent.child.try_wait().unwrap() {
                panic!("the agent ended with {status}:\n{}", agent.log());
            }
            last = self.status();
            last.as_ref().is_some_and(|status| status["State"] == state)
        });
        last.unwrap()
    }

    /// Wait until every byte of the model is in the cache.
    pub fn wait_local(&self) {
        wait_until("every byte to be local", || {
            let progress = &self.status().unwrap()["Progress"];
            progress["BytesDone"] == progress["BytesTotal"]
        });
    }

    /// Every file of the model through the mount, byte for byte.
    pub fn assert_model_is_readable(&self) {
        for (path, content) in &self.model {
            assert!(fs::read(self.mount_point().join(path)).unwrap() == *content, "{path} differs");
        }
        assert_eq!(files_below(&self.mount_point()).len(), self.model.len());
    }

    /// No mount below this world.
    pub fn assert_nothing_mounted(&self) {
        assert_eq!(mounts_below(self.directory.path()), 0);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        while mounts_below(&self.mount_point()) > 0
            && nix::mount::umount2(&self.mount_point(), nix::mount::MntFlags::MNT_DETACH).is_ok()
        {}
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

/// Encrypt `model` with [`SECRET`] below `directory` and put it into the bucket; gives the ciphertext directory.
pub async fn upload(directory: &Path, sandbox: &Sandbox, model: &BTreeMap<String, Vec<u8>>) -> PathBuf {
    let (plain, cipher) = (directory.join("plain"), directory.join("cipher"));
    for (path, content) in model {
        let path = plain.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let passphrase = Passphrase::from_secret(&Secret::copy_of(SECRET).unwrap()).unwrap();
    let options = EncryptOptions { scrypt_log_n: 10, ..EncryptOptions::default() };
    encrypt_tree(&plain, &cipher, &passphrase, &options).unwrap();
    fs::remove_dir_all(&plain).unwrap();
    let client = oss::Client::new(&sandbox.oss_config()).unwrap();
    for path in files_below(&cipher) {
        let key = format!("model/{}", path.strip_prefix(&cipher).unwrap().display());
        client.put(&key, Bytes::from(fs::read(&path).unwrap())).await.unwrap();
    }
    cipher
}

/// Put a signed manifest of revision 1 beside the model that was uploaded from `cipher`.
pub async fn sign(cipher: &Path, sandbox: &Sandbox) -> Manifest {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    manifest::generate(&key).unwrap();
    let objects = manifest::list(cipher).unwrap().objects(cipher, &|_| {}).unwrap();
    let contents = manifest::Contents { revision: 1, licence: None, objects };
    let file = contents.sign(&manifest::SigningKey::read(&key).unwrap()).unwrap();
    let client = oss::Client::new(&sandbox.oss_config()).unwrap();
    client.put(&format!("model/{}", manifest::NAME), Bytes::from(file.clone())).await.unwrap();
    Manifest::parse(&file).unwrap()
}

pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

/// A system bus of its own, at `bus` in `directory`.
pub fn start_bus(directory: &Path) -> Child {
    let config = directory.join("bus.conf");
    let text = format!(
        "<busconfig><type>system</type><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth>\
         <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_destination=\"*\"/>\
         <allow receive_sender=\"*\"/></policy></busconfig>",
        directory.display()
    );
    fs::write(&config, text).unwrap();
    let mut bus = Command::new("dbus-daemon")
        .arg(format!("--config-file={}", config.display()))
        .args(["--nofork", "--nosyslog", "--print-address=1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(bus.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("unix:path="), "{line}");
    bus
}

/// A running `cai run`, its notifications and its log.
pub struct Agent {
    pub child: Child,
    said: Arc<Mutex<Vec<String>>>,
    notify_path: PathBuf,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    pub fn start(world: &World, environment: &[(&str, &str)]) -> Agent {
        Agent::spawn(world, environment, false)
    }

    /// As a terminal's foreground job or a service runs it.
    pub fn start_in_its_own_group(world: &World) -> Agent {
        Agent::spawn(world, &[], true)
    }

    fn spawn(world: &World, environment: &[(&str, &str)], own_group: bool) -> Agent {
        let program = env!("CARGO_BIN_EXE_cai");
        let mut command = match &world.namespace {
            None => world.on_bus(program),
            Some(name) => {
                let mut command = world.on_bus("nsenter");
                command.arg(format!("--net=/run/netns/{name}")).arg(program);
                command
            }
        };
        if own_group {
            command.process_group(0);
        }
        command.arg("--root").arg(world.root()).arg("run").envs(environment.iter().copied());
        Agent::launch(command, world.path("notify"))
    }

    /// `command` is a whole `cai run`; its notifications come to `notify_path`.
    pub fn launch(mut command: Command, notify_path: PathBuf) -> Agent {
        let _ = fs::remove_file(&notify_path);
        let notify = UnixDatagram::bind(&notify_path).unwrap();
        // Read at once, as systemd does: the kernel queues ten datagrams, then the sender waits.
        let said = Arc::<Mutex<Vec<String>>>::default();
        let sink = said.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len) = notify.recv(&mut buffer)
                && len > 0
            {
                sink.lock().unwrap().push(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned());
            }
        });
        fs::set_permissions(&notify_path, fs::Permissions::from_mode(0o666)).unwrap();
        let mut child = command.env("NOTIFY_SOCKET", &notify_path).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (mut stderr, sink) = (child.stderr.take().unwrap(), log.clone());
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len) = stderr.read(&mut buffer)
                && len > 0
            {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..len]));
            }
        });
        Agent { child, said, notify_path, log, reader: Some(reader) }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Notifications received so far, in order, one entry a datagram.
    pub fn notifications(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// SIGTERM, and the exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Wait until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the agent to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        // The helper has the same standard error and ends right after: then the log is complete.
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        status.unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
        // Already ended in most tests; killing it makes its helper detach the mount.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // An empty datagram ends the reading thread.
        if let Ok(end) = UnixDatagram::unbound() {
            let _ = end.send_to(&[], &self.notify_path);
        }
        let _ = fs::remove_file(&self.notify_path);
    }
}
