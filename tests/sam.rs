//! Models that an adapter decrypts, end to end: `cai run` on the stand-ins with the real gocryptfs behind the contract of
//! `cai-decryptor(7)`, by the example that the package has; and adapters that are missing, unsafe, slow, dead or hostile.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{adapters_run, install_program, mounts_below, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::Pid;
use sandbox::{Builder, RESOURCE};
use serde_json::json;
use world::{Agent, SECRET, World, small_model};

const EXAMPLE: &str = include_str!("../packaging/examples/decryptor-gocryptfs");

/// A world whose model needs an adapter; `None`, with the reason printed, where the machine lacks something.
async fn sam_world() -> Option<World> {
    let mut world = empty_world()?;
    world.upload(small_model()).await;
    Some(world)
}

/// The same without any object.
fn empty_world() -> Option<World> {
    if !adapters_run() {
        return None;
    }
    let mut world = World::new(Builder::default())?;
    world.env.push_str("MODEL_ENCRYPTION_METHOD=sam\n");
    world.toml.push_str("[sam]\nkey_id = \"LD_Demo_0001\"\n");
    Some(world)
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn adapter(world: &World) -> PathBuf {
    world.root().join("usr/libexec/cai/decryptor.d/sam")
}

fn install(world: &World, text: &str) -> PathBuf {
    let path = adapter(world);
    install_program(&path, text);
    path
}

/// Processes with `mark` among their arguments.
fn processes(mark: &str) -> Vec<i32> {
    let numbers =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).split('\0').any(|argument| argument.contains(mark))
    };
    numbers.filter(has).collect()
}

impl World {
    /// Processes of this world's adapter: they know where the ciphertext is.
    fn adapters(&self) -> Vec<i32> {
        processes(&self.root().join("run/cai/decryptor").display().to_string())
    }

    /// The agent fails with this exit status and code, and leaves nothing: its log.
    fn fails(&self, exit: i32, code: &str) -> String {
        self.fails_as(self.agent(), exit, code)
    }

    /// The same of this agent.
    fn fails_as(&self, mut agent: Agent, exit: i32, code: &str) -> String {
        let status = agent.wait();
        let log = agent.log();
        assert_eq!(status.code(), Some(exit), "{log}");
        assert!(log.contains(&format!("[{code}]")), "expected {code} in {log}");
        wait_until("the adapter to be gone", || self.adapters().is_empty());
        self.assert_nothing_mounted();
        log
    }
}

fn field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

fn assert_confined(world: &World) {
    let user = nix::unistd::User::from_name("cai-decryptor").unwrap().unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let password = SECRET.strip_suffix(b"\n").unwrap();
    let pids = world.adapters();
    assert_eq!(pids.len(), 2, "the example's shell, and gocryptfs");
    for pid in pids {
        // What Go's runtime blocks is its own affair.
        if field(pid, "Name") != "gocryptfs" {
            assert_eq!(field(pid, "SigBlk"), "0000000000000000", "it could not be asked to end");
        }
        assert!(field(pid, "Uid").split_whitespace().all(|uid| uid == user.uid.to_string()));
        assert_eq!(
            (field(pid, "CapEff"), field(pid, "CapPrm")),
            ("0000000000000000".into(), "0000000000000000".into())
        );
        assert_eq!((field(pid, "NoNewPrivs"), field(pid, "Groups")), ("1".into(), String::new()));
        assert_ne!(fs::read_link(format!("/proc/{pid}/ns/net")).unwrap(), own, "it has a network");
        for file in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!bytes.windows(password.len()).any(|window| window == password), "the key is in {file}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_behind_an_adapter_is_served_byte_for_byte_and_leaves_nothing() {
    let Some(mut world) = sam_world().await else { return };
    let path = install(&world, EXAMPLE);
    let sum = sha256(&fs::read(&path).unwrap());
    world.toml.push_str(&format!("adapter_sha256 = \"{sum}\"\n"));
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    let stage = status["Stage"].as_str().unwrap();
    assert!(
        stage.ends_with(&format!("decrypted at {} by the adapter sam", world.mount_point().display())),
        "{stage}"
    );
    let notices = status["Notices"].to_string();
    assert!(notices.contains("cai does not know the vendor's format"), "{notices}");
    assert_confined(&world);

    // Owner and permissions as configured, for the kernel to check.
    let group = nix::unistd::Group::from_name("cai-model").unwrap().map_or(0, |group| group.gid.as_raw());
    let shown = fs::metadata(world.mount_point().join("config.json")).unwrap();
    assert_eq!((shown.uid(), shown.gid(), shown.mode() & 0o7777), (0, group, 0o440));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&world.mount_point().display().to_string())).unwrap();
    assert!(line.contains(" ro,nosuid,nodev,") && line.contains(" - fuse.cai cai ro,"), "{line}");
    // Nobody else passes to the ciphertext.
    let private = fs::metadata(world.root().join("run/cai/decryptor")).unwrap();
    assert_eq!((private.uid(), private.mode() & 0o7777), (0, 0o710));

    // Nothing is fetched twice.
    world.wait_local();
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
    assert_eq!(world.adapters(), Vec::<i32>::new());
    let before = world.sandbox.count("oss.get").await;
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    assert_eq!(world.sandbox.count("oss.get").await, before);

    // Killed, it takes everything with it.
    agent.signal(Signal::SIGKILL);
    agent.wait();
    wait_until("the mounts to be gone", || mounts_below(world.directory.path()) == 0);
    wait_until("the adapter to be gone", || world.adapters().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_sees_what_changed_and_asks_for_a_restart() {
    let Some(world) = sam_world().await else { return };
    install(&world, EXAMPLE);
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let rotate = || world.cai(&["rotate", "--wait"]);
    let unchanged = rotate();
    assert!(
        unchanged.status.success() && String::from_utf8_lossy(&unchanged.stdout).contains("unchanged"),
        "{unchanged:?}"
    );
    world.sandbox.put_resource(RESOURCE, b"another key\n").await;
    let refused = rotate();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(78) && said.contains("[rotation.adapter]"), "{said}");
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_adapter_nobody_is_asked_for_anything() {
    let Some(world) = sam_world().await else { return };
    let log = world.fails(78, "sam.runtime-missing");
    let hint = format!(
        "install the adapter to the vendor's runtime as {}: man 7 cai-decryptor",
        adapter(&world).display()
    );
    assert!(log.contains(&hint), "{log}");
    let log = world.sandbox.log().await.to_string();
    assert!(!log.contains("kbs.") && !log.contains("oss.list"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn adapter_that_others_could_have_put_there_is_not_run() {
    let Some(mut world) = sam_world().await else { return };
    let marker = world.path("ran");
    let path = install(&world, &format!("#!/bin/sh\ntouch {}\n", marker.display()));
    let directory = path.parent().unwrap().to_owned();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let unsafe_now = |world: &World| world.fails(78, "sam.adapter-unsafe");
    mode(&path, 0o775);
    unsafe_now(&world);
    mode(&path, 0o700);
    unsafe_now(&world);
    mode(&path, 0o755);
    chown(&path, Some(65534), None).unwrap();
    unsafe_now(&world);
    chown(&path, Some(0), None).unwrap();
    mode(&directory, 0o777);
    unsafe_now(&world);
    mode(&directory, 0o755);
    let other = directory.join("other");
    fs::rename(&path, &other).unwrap();
    symlink(&other, &path).unwrap();
    unsafe_now(&world);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    unsafe_now(&world);
    fs::remove_dir(&path).unwrap();
    mknod(&path, SFlag::S_IFSOCK, Mode::from_bits_truncate(0o755), 0).unwrap();
    world.fails(78, "sam.adapter-io");
    fs::remove_file(&path).unwrap();
    fs::rename(&other, &path).unwrap();
    world.toml.push_str(&format!("adapter_sha256 = \"{}\"\n", "00".repeat(32)));
    let log = world.fails(78, "sam.adapter-hash");
    assert!(log.contains(&sha256(&fs::read(&path).unwrap())), "{log}");
    assert!(!marker.exists(), "it was run");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_user_there_is_no_adapter() {
    let Some(world) = sam_world().await else { return };
    install(&world, EXAMPLE);
    world.write_config();
    let others = world.path("passwd");
    let of_others = |line: &&str| !line.starts_with("cai-decryptor:");
    let users = fs::read_to_string("/etc/passwd").unwrap();
    fs::write(&others, users.lines().filter(of_others).map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
    // Only for the agent and its helper.
    let mut command = world.on_bus("unshare");
    command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/passwd && exec \"$@\""]).arg(&others);
    command.arg(env!("CARGO_BIN_EXE_cai")).arg("--root").arg(world.root()).arg("run");
    let agent = Agent::launch(command, world.path("notify"));
    let log = world.fails_as(agent, 78, "sam.user");
    assert!(log.contains("user cai-decryptor does not exist"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_cannot_be_one_is_not_given_away() {
    let Some(world) = sam_world().await else { return };
    install(&world, EXAMPLE);
    for len in [3, 129] {
        world.sandbox.put_resource(RESOURCE, &vec![b'k'; len]).await;
        let log = world.fails(78, "sam.key-length");
        assert!(log.contains(&format!("the released key has {len} bytes, expected 4 to 128")), "{log}");
        assert_eq!(world.sandbox.count("oss.list").await, 0);
    }
    // One that could be, and is another model's.
    world.sandbox.put_resource(RESOURCE, b"another key\n").await;
    world.fails(65, "sam.adapter-exited");
}

#[tokio::test(flavor = "multi_thread")]
async fn adapter_that_does_not_do_its_part_is_said_to() {
    let Some(mut world) = sam_world().await else { return };
    world.toml.push_str("ready_timeout_secs = 1\n");
    for (text, exit, code) in [
        ("exit 7", 69, "sam.adapter-exited"),
        ("exit 77", 77, "sam.adapter-exited"),
        ("exit 78", 78, "sam.adapter-exited"),
        ("kill -9 $$", 69, "sam.adapter-exited"),
        // The key is what the broker released, with the newline that was stored.
        ("test \"$(wc -c <&3)\" -eq 25 && exit 77; exit 78", 77, "sam.adapter-exited"),
        // Says much, and never that it is ready.
        ("head -c 4000000 /dev/zero | tr '\\0' 'x' >&2; exec sleep 600", 69, "sam.not-ready"),
        ("yes NOT-READY", 69, "sam.not-ready"),
        // Ready, it says.
        ("exec 4<&-; echo READY; exec sleep 600", 78, "sam.no-mount"),
        (
            "mount -t tmpfs none \"$3\"; mount -t tmpfs none /mnt; exec 4<&-; echo READY; exec sleep 600",
            78,
            "sam.no-mount",
        ),
        // Goes into the background.
        ("setsid sleep 600 & exit 0", 78, "sam.leaked"),
    ] {
        install(&world, &format!("#!/bin/sh\n{text}\n"));
        let begun = Instant::now();
        let log = world.fails(exit, code);
        println!("{text}: {:?}", begun.elapsed());
        assert!(!log.contains("READY=1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn adapter_that_dies_under_its_readers_ends_the_agent() {
    let Some(world) = sam_world().await else { return };
    install(&world, EXAMPLE);
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    for pid in world.adapters() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    assert_eq!(agent.wait().code(), Some(69));
    let log = agent.log();
    assert!(log.contains("[sam.adapter-crashed]"), "{log}");
    world.assert_nothing_mounted();
    wait_until("the adapter to be gone", || world.adapters().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_ends_takes_the_adapter_and_its_mount() {
    let Some(mut world) = sam_world().await else { return };
    install(&world, EXAMPLE);
    world.toml.push_str("[trustee]\nreattest_interval_secs = 1\ngrace_secs = 600\n");
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    assert_eq!(world.adapters().len(), 2);
    world.sandbox.faults(json!([{"do": "kbs_deny"}])).await;
    assert_eq!(agent.wait().code(), Some(77));
    assert!(agent.log().contains("Serving -> Failed"), "{}", agent.log());
    assert_eq!(world.adapters(), [0; 0], "they outlive the lease");
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn path_without_any_file_is_no_model() {
    let Some(world) = empty_world() else { return };
    install(&world, EXAMPLE);
    world.fails(78, "model.empty");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_way_of_the_ciphertexts_mount_is_said() {
    let Some(world) = sam_world().await else { return };
    install(&world, EXAMPLE);
    let directory = world.root().join("run/cai/decryptor");
    fs::create_dir_all(directory.parent().unwrap()).unwrap();
    fs::write(&directory, "somebody's").unwrap();
    let log = world.fails(78, "sam.directory");
    assert!(log.contains(&directory.display().to_string()), "{log}");
    assert_eq!(fs::read_to_string(directory).unwrap(), "somebody's");
}

/// An adapter that works until it is stopped, and then does this in the end.
async fn stopped_with(last: &str) -> Option<(World, Agent, Duration)> {
    let world = sam_world().await?;
    install(&world, &EXAMPLE.replace("# 12:", &format!("{last}\n# 12:")));
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let begun = Instant::now();
    assert_eq!(agent.stop().code(), Some(0));
    let took = begun.elapsed();
    world.assert_nothing_mounted();
    assert_eq!(world.adapters(), Vec::<i32>::new());
    Some((world, agent, took))
}

#[tokio::test(flavor = "multi_thread")]
async fn adapter_that_does_not_stop_is_killed() {
    let Some((_world, agent, took)) = stopped_with("trap '' TERM; while :; do sleep 1; done").await else {
        return;
    };
    assert!((5..9).contains(&took.as_secs()), "{took:?}");
    let log = agent.log();
    assert!(log.contains("the adapter did not end when it was asked to, and was killed"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_adapter_leaves_behind_is_killed_and_said() {
    let leaving = "setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' \"$3\" &";
    let Some((_world, agent, took)) = stopped_with(leaving).await else { return };
    assert!(took.as_secs() < 5, "{took:?}");
    assert!(agent.log().contains("sam.leaked"), "{}", agent.log());
}

#[test]
fn key_id_that_cannot_be_one_is_a_problem_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    for (toml, sound) in [
        ("", false),
        ("[sam]\nkey_id = \"seven77\"\n", false),
        ("[sam]\nkey_id = \"-D_Demo_0001\"\n", false),
        ("[sam]\nkey_id = \"LD Demo 0001\"\n", false),
        ("[sam]\nkey_id = \"LD_Demo_0001\"\n", true),
        ("[sam]\nkey_id = \"LD_Demo_0001\"\n[mount]\nmode = \"ram\"\n", false),
    ] {
        let env = "MODEL_ENCRYPTION_METHOD=sam\n";
        common::write_config(directory.path(), "http://127.0.0.1:9/", "http://127.0.0.1:9", env, toml);
        assert_eq!(cai::config::load(directory.path()).is_ok(), sound, "{toml}");
    }
}
