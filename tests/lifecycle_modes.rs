//! `cai run` in the modes that decrypt whole files: what it says, what it shows, and what is left when it ends in any way.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/mounts.rs"]
mod mounts;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{available, mounts_below, wait_until};
use mounts::{MemoryWatch, SHORTEST, pages};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, FsType, TMPFS_MAGIC, statfs};
use sandbox::Builder;
use serde_json::{Value, json};
use world::{Agent, World, files_below, pattern, small_model};

const WEIGHTS: &str = "weights/model.safetensors";

macro_rules! world {
    ($mode:expr, $model:expr, $builder:expr) => {{
        let Some(mut world) = World::new($builder) else { return };
        world.upload($model).await;
        world.toml = format!("[mount]\nmode = \"{}\"\nuid = 4321\ngid = 4322\n", $mode);
        world
    }};
    ($mode:expr, $model:expr) => {
        world!($mode, $model, Builder::default())
    };
}

/// The small model with a file that load mode loads.
fn with_weights() -> BTreeMap<String, Vec<u8>> {
    let mut model = small_model();
    model.insert(WEIGHTS.to_owned(), pattern(7, SHORTEST + 4097));
    model
}

fn kind(world: &World) -> FsType {
    statfs(&world.mount_point()).unwrap().filesystem_type()
}

/// What the status says about how files are decrypted.
fn how(world: &World, status: &Value) -> String {
    let begin = format!("{} files at {}, ", world.model.len(), world.mount_point().display());
    let stage = status["Stage"].as_str().unwrap();
    stage.strip_prefix(&begin).unwrap_or_else(|| panic!("{stage:?} does not begin with {begin:?}")).to_owned()
}

/// Owner and permissions as configured, of everything.
fn assert_owned_as_configured(world: &World) {
    let files = files_below(&world.mount_point());
    let directories = files.iter().map(|file| file.parent().unwrap().to_owned());
    for path in files.iter().cloned().chain(directories) {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mode = if meta.is_dir() { 0o040_550 } else { 0o100_440 };
        assert_eq!((meta.uid(), meta.gid(), meta.mode()), (4321, 4322, mode), "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_in_memory_is_served_said_and_taken_away() {
    let world = world!("ram", small_model());
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    assert_eq!(how(&world, &status), "all of them in memory");
    assert_eq!(kind(&world), TMPFS_MAGIC);
    world.assert_model_is_readable();
    assert_owned_as_configured(&world);
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
    assert_eq!(fs::read_dir(world.mount_point()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_agent_takes_the_model_in_memory_with_it() {
    let world = world!("ram", small_model());
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let name = "model-00001-of-00002.safetensors";
    let held = File::open(world.mount_point().join(name)).unwrap();
    agent.signal(Signal::SIGKILL);
    agent.wait();
    wait_until("the helper to detach the mount", || mounts_below(&world.mount_point()) == 0);
    assert_eq!(fs::read_dir(world.mount_point()).unwrap().count(), 0);
    // Who has a file open keeps it: it is memory, and nobody's any more.
    let mut last = [0; 100];
    let content = &world.model[name];
    held.read_exact_at(&mut last, content.len() as u64 - 100).unwrap();
    assert_eq!(last, content[content.len() - 100..]);
    drop(held);

    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn unmounting_the_model_in_memory_ends_the_agent_for_a_restart() {
    let world = world!("ram", small_model());
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    // The helper's own descriptor keeps it busy for a plain umount.
    umount2(&world.mount_point(), MntFlags::MNT_DETACH).unwrap();
    assert_eq!(agent.wait().code(), Some(69));
    assert!(agent.log().contains("[mount.lost]"), "{}", agent.log());
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn model_larger_than_its_memory_ends_with_78_and_both_numbers() {
    let mut world = world!("ram", small_model());
    world.toml.push_str("memory_bytes = 1048576\n");
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    let needed: u64 = world.model.values().map(|content| pages(content.len())).sum();
    let why = format!("the model takes {needed} bytes of memory and mount.memory_bytes allows 1048576");
    let log = agent.log();
    assert!(log.contains(&format!("{why} [ram.too-large]")), "{log}");
    assert!(
        log.contains("hint: raise mount.memory_bytes (--memory of cai mount), or set mount.mode = \"auto\""),
        "{log}"
    );
    let shown = agent.notifications();
    assert!(shown.iter().any(|line| line.starts_with("STATUS=Failed: ") && line.contains(&why)), "{shown:?}");
    assert!(!shown.contains(&"READY=1".to_owned()), "{shown:?}");
    world.assert_nothing_mounted();
}

/// The memory of load mode; `None`, with the reason printed, where the kernel cannot.
fn memory(world: &World, agent: &Agent, status: &Value) -> Option<MemoryWatch> {
    let loads = how(world, status).starts_with("weight files loaded whole into up to ");
    available("passthrough", loads, "no FUSE passthrough (Linux 6.9)")
        .then(|| MemoryWatch::of(agent.child.id()))
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_are_local_are_loaded_whole_and_said_to_be() {
    let mut world = world!("load", with_weights());
    world.toml.push_str("memory_bytes = \"64MiB\"\n");
    let content = world.model[WEIGHTS].clone();
    for (start, mode) in ["load", "auto"].into_iter().enumerate() {
        world.toml = world.toml.replace("\"load\"", &format!("\"{mode}\""));
        let mut agent = world.agent();
        let status = world.wait_state(&mut agent, "Serving");
        assert_eq!(kind(&world), FUSE_SUPER_MAGIC);
        let Some(memory) = memory(&world, &agent, &status) else { return };
        assert_eq!(how(&world, &status), "weight files loaded whole into up to 0.0 GiB of memory");
        world.wait_local();
        let before = world.sandbox.count("oss.get").await;
        let file = File::open(world.mount_point().join(WEIGHTS)).unwrap();
        assert_eq!(memory.used(), pages(content.len()), "{mode}");
        world.assert_model_is_readable();
        assert_owned_as_configured(&world);
        assert_eq!(world.sandbox.count("oss.get").await, before, "start {start}");
        drop(file);
        assert_eq!(agent.stop().code(), Some(0));
        world.assert_nothing_mounted();
        wait_until("the memory to be given back", || memory.used() == 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_still_come_in_are_read_on_demand_and_loaded_when_they_are_there() {
    let world = world!("load", with_weights());
    let content = world.model[WEIGHTS].clone();
    let cipher = world.path("cipher");
    let largest =
        files_below(&cipher).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let key = largest.strip_prefix(&cipher).unwrap().display().to_string();
    let refuse = json!({"oss_error": {"status": 503, "code": "ServiceUnavailable"}});
    // One range of it comes, the others not yet.
    world.sandbox.faults(json!([{"do": refuse, "on": ["get"], "match": key, "skip": 1}])).await;
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    let Some(memory) = memory(&world, &agent, &status) else { return };
    let path = world.mount_point().join(WEIGHTS);
    let file = File::open(&path).unwrap();
    let reader = std::thread::spawn(move || fs::read(path).unwrap());
    wait_until("the refusals", || {
        let progress = &world.status().unwrap()["Progress"];
        assert!(progress["BytesDone"].as_u64() < progress["BytesTotal"].as_u64(), "{progress}");
        progress["Retries"].as_u64() > Some(0)
    });
    assert_eq!(memory.used(), 0);
    assert!(!reader.is_finished(), "a read was answered with missing bytes");
    world.sandbox.faults(json!([])).await;
    assert!(reader.join().unwrap() == content);
    world.wait_local();
    assert_eq!(memory.used(), 0, "it is open, read on demand");
    drop(file);
    wait_until("the weights to be loaded", || {
        let file = File::open(world.mount_point().join(WEIGHTS)).unwrap();
        let mut last = vec![0; 4097];
        file.read_exact_at(&mut last, SHORTEST as u64).unwrap();
        assert!(last == content[SHORTEST..]);
        memory.used() == pages(content.len())
    });
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_agent_gives_the_memory_of_loaded_weights_back() {
    let world = world!("load", with_weights());
    let content = world.model[WEIGHTS].clone();
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    let Some(memory) = memory(&world, &agent, &status) else { return };
    world.wait_local();
    let held = File::open(world.mount_point().join(WEIGHTS)).unwrap();
    assert_eq!(memory.used(), pages(content.len()));
    agent.signal(Signal::SIGKILL);
    agent.wait();
    wait_until("the helper to detach the mount", || mounts_below(&world.mount_point()) == 0);
    drop(held);
    wait_until("the memory to be given back", || memory.used() == 0);
}
