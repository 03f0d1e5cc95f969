//! `Prefetch` over D-Bus: what it brings forward, and that only root and those whom polkit allows it may ask.
//!
//! polkit stands in here as the authority at its bus name: what it is asked, and what becomes of each of its answers.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::wait_until;
use sandbox::Builder;
use world::{World, pattern};
use zbus::OwnedVariant;
use zbus::zvariant::Type;

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "weights/model-00002-of-00002.safetensors";
/// `nobody`: no process of ours runs as it.
const STRANGER: u32 = 65534;

/// `busctl call ... Prefetch s PATH`, as `uid`: what it printed.
fn prefetch(world: &World, uid: u32, path: &str) -> Result<String, String> {
    let mut command: Command = world.on_bus("busctl");
    let address = format!("--address=unix:path={}", world.path("bus").display());
    command.args([&address, "call", "com.alibaba.cai1", "/com/alibaba/cai1", "com.alibaba.cai1.Agent"]);
    let output = command.args(["Prefetch", "s", path]).uid(uid).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Files and missing bytes of an answer `tt FILES MISSING`.
fn numbers(answer: &str) -> (u64, u64) {
    let mut words = answer.strip_prefix("tt ").unwrap().split(' ').map(|word| word.parse().unwrap());
    (words.next().unwrap(), words.next().unwrap())
}

async fn world() -> Option<World> {
    let mut world = World::new(Builder::default())?;
    let shard = |seed| pattern(seed, (12 << 20) + 5);
    world.upload([(FIRST.to_owned(), shard(1)), (SECOND.to_owned(), shard(2))].into()).await;
    // One chunk after the other, slowly enough to see their order.
    world.toml += "[oss]\nconcurrency = 2\nbandwidth_limit = 8388608\n";
    Some(world)
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_is_asked_for_comes_before_the_others() {
    let Some(world) = world().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let (files, _) = numbers(&prefetch(&world, 0, SECOND).unwrap());
    assert_eq!(files, 1);
    wait_until("the second shard", || numbers(&prefetch(&world, 0, SECOND).unwrap()) == (1, 0));
    let (_, first_missing) = numbers(&prefetch(&world, 0, FIRST).unwrap());
    assert!(first_missing > 0, "the fill's own order begins with the first");

    // Paths as people have them: absolute, a directory, the whole model.
    let absolute = world.mount_point().join("weights");
    for (path, expected) in [(absolute.to_str().unwrap(), 1), ("weights", 1), (".", 2), ("", 2)] {
        assert_eq!(numbers(&prefetch(&world, 0, path).unwrap()).0, expected, "{path:?}");
    }
    for path in ["no such file", "../etc/passwd", "weights/../weights", "/etc/passwd"] {
        let error = prefetch(&world, 0, path).unwrap_err();
        assert!(error.contains("is no file or directory of the model"), "{path:?}: {error}");
    }
    assert_eq!(agent.stop().code(), Some(0));
    let log = agent.log();
    assert!(log.contains("agent.prefetch"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cache_would_throw_away_is_not_fetched_ahead() {
    let Some(mut world) = world().await else { return };
    world.toml += "[cache]\nmode = \"none\"\n";
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let error = prefetch(&world, 0, FIRST).unwrap_err();
    assert!(error.contains("the cache keeps nothing"), "{error}");
    assert_eq!(agent.stop().code(), Some(0));
}

/// What polkit is asked: kind of subject, its bus name, action, flags.
type Question = (String, String, String, u32);

/// The authority: notes each question, and answers what it was told to.
struct Authority {
    questions: Arc<Mutex<Vec<Question>>>,
    answer: Arc<Mutex<bool>>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize, Type)]
struct Subject {
    kind: String,
    details: HashMap<String, OwnedVariant>,
}

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Authority {
    /// Authorised, challenge, details: as polkit answers.
    async fn check_authorization(
        &self,
        subject: Subject,
        action_id: String,
        details: HashMap<String, String>,
        flags: u32,
        cancellation_id: String,
    ) -> (bool, bool, HashMap<String, String>) {
        assert_eq!((details, cancellation_id.as_str()), (HashMap::new(), ""));
        let name = String::try_from(subject.details["name"].clone()).unwrap();
        self.questions.lock().unwrap().push((subject.kind, name, action_id, flags));
        // Not authorised, and a password would help: that is still a no.
        let yes = *self.answer.lock().unwrap();
        (yes, !yes, HashMap::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn polkit_decides_for_the_process_that_calls_and_silence_is_a_no() {
    let Some(world) = world().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let error = prefetch(&world, STRANGER, FIRST).unwrap_err();
    assert!(error.contains("polkit cannot be asked about com.alibaba.cai1.prefetch"), "{error}");

    let (questions, answer) = (Arc::<Mutex<Vec<Question>>>::default(), Arc::new(Mutex::new(false)));
    let authority = Authority { questions: questions.clone(), answer: answer.clone() };
    let address = format!("unix:path={}", world.path("bus").display());
    let _polkit = zbus::connection::Builder::address(address.as_str())
        .name("org.freedesktop.PolicyKit1")
        .serve_at("/org/freedesktop/PolicyKit1/Authority", authority)
        .build()
        .await
        .unwrap();
    let error = prefetch(&world, STRANGER, FIRST).unwrap_err();
    assert!(error.contains("polkit does not allow com.alibaba.cai1.prefetch to this process"), "{error}");
    *answer.lock().unwrap() = true;
    assert_eq!(numbers(&prefetch(&world, STRANGER, FIRST).unwrap()).0, 1);
    let asked = questions.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    for (kind, name, action, _) in &asked {
        assert_eq!((kind.as_str(), action.as_str()), ("system-bus-name", "com.alibaba.cai1.prefetch"));
        assert!(name.starts_with(":1."), "a connection of the bus, not a name that can be taken: {name}");
    }
    assert_ne!(asked[0].1, asked[1].1, "each caller is its own");
    // Root needs nobody's leave.
    *answer.lock().unwrap() = false;
    assert!(prefetch(&world, 0, FIRST).is_ok());
    assert_eq!(questions.lock().unwrap().len(), 2);
    assert_eq!(agent.stop().code(), Some(0));
}

#[test]
fn every_action_is_declared_to_polkit() {
    let policy = std::fs::read_to_string("systemd/com.alibaba.cai1.policy").unwrap();
    let code = std::fs::read_to_string("src/bus/permission.rs").unwrap();
    let declared: Vec<_> =
        policy.split("<action id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let ours: Vec<_> = code.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(declared, ours);
    assert!(!ours.is_empty());
    // Nobody but an administrator, unless a local rule says so.
    assert!(!policy.contains(">yes<") && !policy.contains(">auth_self"), "{policy}");
}
