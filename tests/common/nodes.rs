//! Several machines on one: a network namespace for each, a switch between them, links of a known rate; on each a real agent, and
//! on one of them the stand-in Trustee and OSS. All of it ends with the test, also when the test panics.
//!
//! The test itself is at a port of the switch that is not limited, to look and to upload the model.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{agents_run, available, mounts_below, wait_until, write_config};
use crate::link::run;
use crate::sandbox::{ACCESS_KEY_ID, ACCESS_KEY_SECRET, Builder, RESOURCE, Sandbox};
use crate::world::{Agent, SECRET, files_below, pattern, sign, start_bus, upload};

/// The host of the stand-ins.
const ORIGIN: u8 = 1;
/// Where the test is.
const OURS: u8 = 254;

/// Hosts by the last byte of their address, and the switch between them.
pub struct Net {
    tag: String,
    near: String,
    subnet: [u8; 3],
    hosts: Vec<u8>,
}

impl Net {
    /// `None`, with the reason printed, where the machine has no namespaces or we may not make any.
    fn new(hosts: impl Iterator<Item = u8>) -> Option<Net> {
        // Tests of several processes run side by side, and of one.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = (std::process::id() * 4 + COUNT.fetch_add(1, Ordering::Relaxed)) & 0x3fff;
        let subnet = [10, 80 + u8::try_from(number >> 8).unwrap(), u8::try_from(number & 0xff).unwrap()];
        let net = Net {
            tag: format!("cai-nodes-{number}"),
            near: format!("cain{number}"),
            subnet,
            hosts: hosts.collect(),
        };
        let switch = net.name("switch");
        let made = run(&format!("ip netns add {switch}"));
        if !available("netns", made.is_ok(), made.as_ref().err().map_or("", String::as_str)) {
            return None;
        }
        for command in [
            format!("ip -n {switch} link add switch type bridge"),
            format!("ip -n {switch} link set switch up"),
            format!("ip link add {} type veth peer name ours netns {switch}", net.near),
            format!("ip -n {switch} link set ours master switch up"),
            format!("ip addr add {}/24 dev {}", net.address(OURS), net.near),
            format!("ip link set {} up", net.near),
        ] {
            run(&command).unwrap();
        }
        net.hosts.iter().for_each(|host| net.connect(*host));
        Some(net)
    }

    pub fn name(&self, host: impl std::fmt::Display) -> String {
        format!("{}-{host}", self.tag)
    }

    pub fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    fn connect(&self, host: u8) {
        let (name, switch) = (self.name(host), self.name("switch"));
        for command in [
            format!("ip netns add {name}"),
            format!("ip link add cable netns {name} type veth peer name port{host} netns {switch}"),
            format!("ip -n {switch} link set port{host} master switch up"),
            format!("ip -n {name} link set lo up"),
            format!("ip -n {name} addr add {}/24 dev cable", self.address(host)),
            format!("ip -n {name} link set cable up"),
        ] {
            run(&command).unwrap();
        }
    }

    /// From now on so much goes over each cable, either way.
    fn limit(&self, rate: &str) {
        for host in &self.hosts {
            for (name, device) in
                [(self.name(host), "cable".to_owned()), (self.name("switch"), format!("port{host}"))]
            {
                run(&format!(
                    "tc -n {name} qdisc replace dev {device} root tbf rate {rate} burst 256kb latency 50ms"
                ))
                .unwrap();
            }
        }
    }

    fn connected(&self, host: u8, yes: bool) {
        let state = if yes { "up" } else { "down" };
        run(&format!("ip -n {} link set port{host} {state}", self.name("switch"))).unwrap();
    }

    /// Bytes that a host has received and sent, heads of packets included.
    fn counted(&self, host: u8) -> [u64; 2] {
        let arguments = ["-n", &self.name(host), "-j", "-s", "link", "show", "cable"];
        let output = Command::new("ip").args(arguments).output().unwrap();
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        ["rx", "tx"].map(|way| shown[0]["stats64"][way]["bytes"].as_u64().unwrap())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = run(&format!("ip link del {}", self.near));
        for host in &self.hosts {
            let _ = run(&format!("ip netns del {}", self.name(host)));
        }
        let _ = run(&format!("ip netns del {}", self.name("switch")));
    }
}

/// A group of nodes, and where their model comes from.
pub struct Nodes {
    // First of all the agents end, then what they need.
    pub nodes: Vec<Node>,
    pub sandbox: Sandbox,
    pub net: Net,
    directory: TempDir,
    /// The model as it was uploaded.
    cipher: PathBuf,
    /// Plaintext of the model by path.
    pub model: BTreeMap<String, Vec<u8>>,
    /// Length of its ciphertext, in bytes.
    pub total: u64,
}

/// One machine.
pub struct Node {
    host: u8,
    namespace: String,
    directory: PathBuf,
    bus: Child,
    pub agent: Option<Agent>,
    /// `cai.toml` and `cai.env` have this too.
    pub toml: String,
    pub env: String,
    /// The program runs behind these words.
    pub wrapper: Vec<String>,
}

impl Nodes {
    /// `count` machines, all of which name all others, with links of `rate` each way; a model of `mib` in three files.
    pub async fn new(count: u8, mib: usize, rate: &str) -> Option<Nodes> {
        if !agents_run() {
            return None;
        }
        let hosts: Vec<u8> = (11..11 + count).collect();
        let net = Net::new(hosts.iter().copied().chain([ORIGIN]))?;
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let builder = Builder::default().resource(RESOURCE, SECRET);
        let sandbox =
            Sandbox::start(builder.in_namespace(&net.name(ORIGIN), &net.address(ORIGIN).to_string()));
        let shard = |number: usize| {
            let len = mib * [1, 3, 4][number] / 8;
            (format!("model-{number}.safetensors"), pattern(u8::try_from(number).unwrap(), (len << 20) + 5))
        };
        let mut model: BTreeMap<_, _> = (0..3).map(shard).collect();
        model.insert("config.json".to_owned(), br#"{"model_type":"llama"}"#.to_vec());
        let cipher = upload(directory.path(), &sandbox, &model).await;
        let total = files_below(&cipher).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        net.limit(rate);
        let peers: Vec<String> = hosts.iter().map(|host| net.address(*host).to_string()).collect();
        let env = format!(
            "MODEL_OSS_ACCESS_KEY_ID={ACCESS_KEY_ID}\nMODEL_OSS_SECRET_ACCESS_KEY={ACCESS_KEY_SECRET}\n\
             MODEL_SHARING_PEER=\"{}\"\n",
            peers.join(" ")
        );
        let node = |host: u8| Node::new(host, &net, directory.path(), env.clone());
        let nodes = hosts.into_iter().map(node).collect();
        Some(Nodes { nodes, sandbox, net, directory, cipher, model, total })
    }

    /// Replace the model in the bucket by another one, under another master key.
    pub async fn replace(&mut self, model: BTreeMap<String, Vec<u8>>) {
        let client = cai::oss::Client::new(&self.sandbox.oss_config()).unwrap();
        for object in client.list("model/").await.unwrap() {
            client.delete(&format!("model/{}", object.path.display())).await.unwrap();
        }
        fs::remove_dir_all(&self.cipher).unwrap();
        self.cipher = upload(self.directory.path(), &self.sandbox, &model).await;
        self.total = files_below(&self.cipher).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        self.model = model;
    }

    /// Sign for the model.
    pub async fn sign(&self) {
        sign(&self.cipher, &self.sandbox).await;
    }

    pub fn start(&mut self, number: usize) {
        let Nodes { nodes, sandbox, .. } = self;
        nodes[number].start(sandbox);
    }

    /// Wait until all bytes of the model are on the disk of node `number`.
    pub fn wait_complete(&self, number: usize) {
        let agent = self.nodes[number].agent.as_ref().unwrap();
        wait_until(&format!("all of the model at node {number}"), || {
            agent.log().contains("every byte of the model is local")
        });
    }

    /// Every file of the model through the mount of node `number`, byte for byte.
    pub fn assert_model_is_readable(&self, number: usize) {
        let mount = self.nodes[number].mount_point();
        for (path, content) in &self.model {
            assert!(fs::read(mount.join(path)).unwrap() == *content, "{path} differs at node {number}");
        }
        assert_eq!(files_below(&mount).len(), self.model.len());
    }

    /// Bytes of objects that the origin has answered with, or would have if it had not been cut off.
    pub async fn origin_bytes(&self) -> u64 {
        let log = self.sandbox.log().await;
        let gets = log["requests"].as_array().unwrap().iter().filter(|request| request["op"] == "get");
        gets.map(|request| request["bytes"].as_u64().unwrap()).sum()
    }

    /// Bytes that came over the cable to node `number`, heads of packets included.
    pub fn received(&self, number: usize) -> u64 {
        self.net.counted(self.nodes[number].host)[0]
    }

    /// Bytes that the origin has sent, tokens and heads of packets included.
    pub fn sent_by_origin(&self) -> u64 {
        self.net.counted(ORIGIN)[1]
    }

    /// Pull the cable of node `number`, or put it back.
    pub fn connected(&self, number: usize, yes: bool) {
        self.net.connected(self.nodes[number].host, yes);
    }

    /// Where node `number` listens for its peers.
    pub fn address(&self, number: usize) -> String {
        format!("{}:5390", self.net.address(self.nodes[number].host))
    }

    /// What node `number` shows of node `of`.
    pub fn peer(&self, number: usize, of: usize) -> Value {
        let status = self.nodes[number].status().unwrap_or_default();
        let address = self.address(of);
        let peers = status["Peers"].as_array();
        peers
            .and_then(|peers| peers.iter().find(|peer| peer["Address"] == address).cloned())
            .unwrap_or_default()
    }
}

impl Node {
    fn new(host: u8, net: &Net, directory: &Path, env: String) -> Node {
        let directory = directory.join(host.to_string());
        fs::create_dir_all(directory.join("root/tmp")).unwrap();
        let bus = start_bus(&directory);
        Node {
            host,
            namespace: net.name(host),
            directory,
            bus,
            agent: None,
            toml: String::new(),
            env,
            wrapper: Vec::new(),
        }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Where its ciphertext is.
    pub fn cache(&self) -> PathBuf {
        self.root().join("var/cache/cai")
    }

    pub fn mount_point(&self) -> PathBuf {
        self.root().join("tmp/model")
    }

    fn on_bus(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let address = format!("unix:path={}", self.directory.join("bus").display());
        command.env("DBUS_SYSTEM_BUS_ADDRESS", address);
        command
    }

    fn start(&mut self, sandbox: &Sandbox) {
        write_config(&self.root(), &sandbox.kbs, &sandbox.oss, &self.env, &self.toml);
        let mut command = self.on_bus("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).args(&self.wrapper);
        command.arg(env!("CARGO_BIN_EXE_cai")).arg("--root").arg(self.root()).arg("run");
        self.agent = Some(Agent::launch(command, self.directory.join("notify")));
    }

    /// Its cache is on a disk of its own, of `size` as mount(8) takes it. Unmount it by dropping what this gives.
    pub fn disk(&self, size: &str) -> Disk {
        let point = self.cache();
        fs::create_dir_all(&point).unwrap();
        run(&format!("mount -t tmpfs -o size={size} tmpfs {}", point.display())).unwrap();
        let user = nix::unistd::User::from_name("cai").unwrap().unwrap();
        nix::unistd::chown(&point, Some(user.uid), Some(user.gid)).unwrap();
        Disk(point)
    }

    /// Whether it has marked chunks as its own since `time`: what had arrived by then, but for objects that come later.
    pub fn saved_since(&self, time: SystemTime) -> bool {
        let files = files_below(&self.cache());
        let mut files = files.iter().filter_map(|path| fs::metadata(path).ok());
        // Data files are as long as their objects; chunk maps are small.
        files.any(|file| file.len() < 1 << 20 && file.modified().unwrap() > time)
    }

    /// SIGKILL, and wait until its mount is gone.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.child.kill().unwrap();
        agent.wait();
        wait_until("the dead mount to go", || mounts_below(&self.mount_point()) == 0);
    }

    /// `cai`, asking this node's agent.
    pub fn cai(&self, arguments: &[&str]) -> std::process::Output {
        self.on_bus(env!("CARGO_BIN_EXE_cai")).args(arguments).output().unwrap()
    }

    /// `cai status --json`; `None` while nobody answers.
    pub fn status(&self) -> Option<Value> {
        let output = self.cai(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    /// Bytes of the model that it has, verified.
    pub fn done(&self) -> u64 {
        self.status().and_then(|status| status["Progress"]["BytesDone"].as_u64()).unwrap_or(0)
    }

    pub fn log(&self) -> String {
        self.agent.as_ref().unwrap().log()
    }
}

/// A small disk.
pub struct Disk(PathBuf);

impl Disk {
    /// Somebody else takes all that is left of it.
    pub fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[1; 64 << 10]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.agent.take());
        while mounts_below(&self.mount_point()) > 0
            && umount2(&self.mount_point(), MntFlags::MNT_DETACH).is_ok()
        {}
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}
