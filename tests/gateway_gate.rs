//! The gate in front of the service port: no byte of plaintext passes between the service and anybody outside, not while the rules
//! change, not beside Docker's, not while the agent starts, is killed, or is not there. In a network namespace, with the real nft.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/connecting.rs"]
mod connecting;
#[path = "common/link.rs"]
mod link;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::{available, wait_until};
use connecting::Connect;
use link::Link;
use nix::sys::signal::Signal;
use sandbox::Builder;
use tempfile::TempDir;
use world::World;

const SERVICE: u16 = 8080;
const CAPTURE: u16 = 40_000;
/// What the inference service says to everybody who connects, and echoes what it hears.
const GREETING: &[u8] = b"PLAINTEXT OF THE SERVICE\n";
const BACKEND: &str = "\
import socket, sys, threading
listener = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print('listening', flush=True)
def serve(connection):
    try:
        connection.sendall(b'PLAINTEXT OF THE SERVICE\\n')
        while heard := connection.recv(100):
            print('heard', heard, flush=True)
            connection.sendall(heard)
    except OSError:
        pass
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// A container's port 8080, published as Docker publishes it: the service of 9000 answers.
const DOCKER: &str = "table ip nat {
    chain PREROUTING { type nat hook prerouting priority -100; policy accept;
        fib daddr type local jump DOCKER; }
    chain OUTPUT { type nat hook output priority -100; policy accept;
        ip daddr != 127.0.0.0/8 fib daddr type local jump DOCKER; }
    chain DOCKER { tcp dport 8080 redirect to :9000; }
}
";

/// The inference service, on every address of the namespace.
struct Backend(Child);

impl Backend {
    fn start(link: &Link, port: u16) -> Backend {
        let mut command = link.inside("python3");
        let mut child =
            command.args(["-c", BACKEND, &port.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n");
        Backend(child)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace, a service in it, and a configuration whose port is that of the service.
struct Place {
    link: Link,
    root: TempDir,
    _backend: Backend,
}

fn place() -> Option<Place> {
    let nft = Command::new("nft").arg("--version").output().is_ok();
    if !available("netns", nft, "no nft") {
        return None;
    }
    let link = Link::new()?;
    let root = tempfile::tempdir().unwrap();
    let env =
        format!("MODEL_SERVICE_PORT={SERVICE}\nMODEL_OSS_ACCESS_KEY_ID=a\nMODEL_OSS_SECRET_ACCESS_KEY=b\n");
    common::write_config(root.path(), "http://127.0.0.1:1", "http://127.0.0.1:2", &env, "");
    let backend = Backend::start(&link, SERVICE);
    Some(Place { link, root, _backend: backend })
}

/// `cai gate ACT` in the namespace.
fn gate(link: &Link, root: &Path, act: &str) -> String {
    let mut command = link.inside(env!("CARGO_BIN_EXE_cai"));
    let output = command.arg("--root").arg(root).args(["gate", act]).output().unwrap();
    assert!(output.status.success(), "gate {act}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn nft(link: &Link, rules: &str) {
    let mut child = link.inside("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{rules}");
}

/// What somebody outside hears at `at` in plaintext.
fn outside(at: SocketAddr) -> Vec<u8> {
    let Ok(mut stream) = TcpStream::connect_timeout(&at, Duration::from_secs(5)) else { return Vec::new() };
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut heard = vec![0; GREETING.len()];
    let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    let len = stream.read(&mut heard).unwrap_or(0);
    heard.truncate(len);
    heard
}

impl Place {
    fn both(&self, port: u16) -> [SocketAddr; 2] {
        [SocketAddr::new(self.link.far.into(), port), SocketAddr::new(self.link.far_v6.into(), port)]
    }

    fn gate(&self, act: &str) -> String {
        gate(&self.link, self.root.path(), act)
    }

    fn assert_shut(&self) {
        for at in self.both(SERVICE).into_iter().chain(self.both(CAPTURE)) {
            assert_eq!(outside(at), b"", "{at}");
        }
    }

    /// What a process of the machine itself hears.
    fn inside(&self, host: &str) -> String {
        let script = "import socket, sys\n\
                      print(socket.create_connection((sys.argv[1], 8080), 5).recv(100).decode(), end='')";
        let output = self.link.inside("python3").args(["-c", script, host]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn shut_gate_lets_nobody_outside_past_it_and_everybody_inside() {
    let Some(place) = place() else { return };
    assert_eq!(place.both(SERVICE).map(outside), [GREETING, GREETING], "before there is a gate");
    // Somebody is connected already.
    let mut early = TcpStream::connect(place.both(SERVICE)[0]).unwrap();
    let mut greeting = vec![0; GREETING.len()];
    early.read_exact(&mut greeting).unwrap();

    assert!(place.gate("shut").contains("the gate is shut"));
    place.assert_shut();
    early.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = early.write_all(b"still here?");
    assert!(!matches!(early.read(&mut greeting), Ok(1..)), "an old connection is cut off");
    let far = place.link.far.to_string();
    for host in ["127.0.0.1", "::1", &far] {
        assert_eq!(place.inside(host).as_bytes(), GREETING, "health checks from {host}");
    }
    assert!(place.gate("show").contains("redirect to :40000"));
    assert!(place.gate("open").contains("plaintext from everywhere"));
    assert_eq!(place.both(SERVICE).map(outside), [GREETING, GREETING]);
    assert_eq!(place.gate("open"), "the gate was open\n");
    let left = place.link.inside("nft").args(["list", "ruleset"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "");
}

#[test]
fn rules_that_docker_makes_come_too_late() {
    let Some(place) = place() else { return };
    // A container's port, published as Docker publishes it, and its service.
    let _container = Backend::start(&place.link, 9000);
    nft(&place.link, DOCKER);
    let at = place.both(SERVICE)[0];
    assert_eq!(outside(at), GREETING, "the container answers");
    place.gate("shut");
    place.assert_shut();
}

#[test]
fn rules_are_changed_without_a_moment_between_them() {
    let Some(place) = place() else { return };
    place.gate("shut");
    place.while_everybody_tries(|tries| {
        for _ in 0..30 {
            place.gate("shut");
        }
        tries(50);
    });
    let shown = place.link.inside("nft").args(["list", "table", "inet", "cai_gate"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert_eq!(shown.matches("redirect to").count(), 1, "rules do not add up: {shown}");
}

/// An agent in the namespace, in front of the service there.
async fn agents_world(link: &Link) -> Option<World> {
    let builder = Builder::default().in_namespace(&link.name, &link.far.to_string());
    let mut world = World::new(builder)?;
    world.upload(world::small_model()).await;
    world.env += &format!("MODEL_SERVICE_PORT={SERVICE}\n");
    world.namespace = Some(link.name.clone());
    world.write_config();
    Some(world)
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_killed_in_any_state_opens_nothing() {
    let Some(place) = place() else { return };
    let Some(world) = agents_world(&place.link).await else { return };
    // As cai-gate.service does, before the agent.
    gate(&place.link, &world.root(), "shut");
    place.while_everybody_tries(|tries| {
        for state in ["Attesting", "ReleasingKey", "Fetching", "Mounting", "Serving"] {
            let mut agent = world.agent();
            wait_until(state, || {
                agent.notifications().iter().any(|said| said.contains(&format!("STATUS={state}")))
            });
            agent.signal(Signal::SIGKILL);
            agent.wait();
            tries(20);
        }
    });
    // Failed for good: the secret opens nothing.
    world.sandbox.put_resource(sandbox::RESOURCE, b"another secret").await;
    place.while_everybody_tries(|tries| {
        let mut agent = world.agent();
        assert_ne!(agent.wait().code(), Some(0));
        tries(20);
    });
}

impl Place {
    /// Do `work` while clients outside try all ports in plaintext, over and over; its argument waits for so many tries.
    fn while_everybody_tries(&self, work: impl FnOnce(&dyn Fn(u32))) {
        let (stop, tried) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for at in self.both(SERVICE).into_iter().chain(self.both(CAPTURE)) {
                let (stop, tried) = (&stop, &tried);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        assert_no_plaintext(at);
                        tried.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            work(&|more| {
                let before = tried.load(Ordering::Relaxed);
                wait_until("tries", || tried.load(Ordering::Relaxed) >= before + more);
            });
            stop.store(true, Ordering::Relaxed);
        });
    }

    fn assert_no_plaintext(&self) {
        self.both(SERVICE).into_iter().chain(self.both(CAPTURE)).for_each(assert_no_plaintext);
    }
}

/// What a client outside with `cai connect` hears at `at`.
fn through_a_tunnel(world: &World, at: SocketAddr) -> Vec<u8> {
    let url = format!("{}/as", world.sandbox.kbs);
    let connect = Connect::start(&["--to", &at.to_string(), "--as-url", &url, "--as-unauthenticated"]);
    outside(connect.doors[0])
}

/// Where the gateway runs it says something, an alert of TLS, and never a word of the service.
fn assert_no_plaintext(at: SocketAddr) {
    let heard = outside(at);
    assert!(heard.is_empty() || !GREETING.starts_with(&heard), "{at} heard {heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_shuts_a_gate_that_it_finds_open_and_says_so_when_somebody_flushed_it() {
    let Some(place) = place() else { return };
    let Some(world) = agents_world(&place.link).await else { return };
    let _container = Backend::start(&place.link, 9000);
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    place.assert_no_plaintext();
    assert!(agent.log().contains("gate.shut"), "{}", agent.log());
    assert!(place.link.inside("nft").args(["flush", "ruleset"]).status().unwrap().success());
    wait_until("the notice", || {
        world.status().unwrap()["Notices"].to_string().contains("somebody flushed the firewall")
    });
    place.assert_no_plaintext();
    // Docker's rules beside it, and the way in: through the tunnel to what was dialled.
    nft(&place.link, DOCKER);
    for at in place.both(SERVICE) {
        assert_eq!(through_a_tunnel(&world, at), GREETING, "{at}");
    }
    place.assert_no_plaintext();
    assert_eq!(agent.stop().code(), Some(0));
    // It stays shut: the service may still run.
    place.assert_shut();
}
