//! `cai run` from start to stop against the stand-ins: readiness, status, failures, crash and restart.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::wait_until;
use nix::sys::signal::Signal;
use sandbox::{Builder, RESOURCE};
use serde_json::json;
use world::{Agent, SECRET, World, files_below, pattern};

#[tokio::test(flavor = "multi_thread")]
async fn agent_serves_the_model_tells_systemd_and_leaves_nothing_behind() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();

    assert_eq!(status["Model"], "conf-ai:/model/");
    assert_eq!(status["MountPoint"], world.mount_point().display().to_string());
    assert_eq!(status["KeyGeneration"], 1);
    assert_eq!(status["Attestation"]["tee"], "sample");
    assert_eq!(status["Attestation"]["protocol"], "0.4.0");
    assert_eq!(status["Attestation"]["server"], "NOT AUTHENTICATED (plain http)");
    let notices = status["Notices"].to_string();
    assert!(notices.contains("TRUSTEE_URL is plain http: the server is not authenticated"), "{notices}");
    assert_eq!(status["ModelRevision"].as_str().unwrap().len(), 64);
    assert_eq!(status["LastError"], json!({}));

    // The daemon is an ordinary user, and only the helper is root.
    let maps = fs::metadata(format!("/proc/{}/maps", agent.child.id())).unwrap();
    assert_eq!(maps.uid(), 0, "memory of an undumpable process is root's to look at, proc(5)");
    let owner = fs::read_to_string(format!("/proc/{}/status", agent.child.id())).unwrap();
    let cai = nix::unistd::User::from_name("cai").unwrap().unwrap();
    let uids = owner.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(uids.split_whitespace().all(|uid| uid == cai.uid.to_string()), "{uids}");

    world.wait_local();
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
    let said = agent.notifications();
    let ready = said.iter().position(|line| line == "READY=1").expect("READY=1");
    let stopping = said.iter().position(|line| line == "STOPPING=1").expect("STOPPING=1");
    assert!(ready < stopping);
    assert_eq!(said.iter().filter(|line| *line == "READY=1").count(), 1);
    let before: Vec<_> = said[..ready].iter().filter(|line| line.starts_with("STATUS=")).collect();
    for stage in ["STATUS=Attesting: ", "STATUS=ReleasingKey: ", "STATUS=Fetching: ", "STATUS=Mounting: "] {
        assert!(before.iter().any(|line| line.starts_with(stage)), "no {stage} in {before:?}");
    }
    assert!(agent.log().contains("every byte of the model is local"));
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_and_secrets_are_on_no_disk_and_in_no_output() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    let marker = b"PLAINTEXT-MARKER-OF-THE-WEIGHTS.".repeat(4096);
    world.upload([("model.safetensors".to_owned(), marker)].into()).await;
    fs::remove_dir_all(world.path("cipher")).unwrap();
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    let status = world.status().unwrap().to_string();
    assert_eq!(agent.stop().code(), Some(0));
    let notifications = agent.notifications().join("\n");

    let password = SECRET.strip_suffix(b"\n").unwrap();
    let needles: [&[u8]; 3] = [b"PLAINTEXT-MARKER", password, sandbox::ACCESS_KEY_SECRET.as_bytes()];
    let holds = |bytes: &[u8], needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    for needle in needles {
        for text in [&agent.log(), &status, &notifications] {
            assert!(!holds(text.as_bytes(), needle), "{} in {text}", String::from_utf8_lossy(needle));
        }
        for file in files_below(&world.root()) {
            let config = file.ends_with("etc/cai/cai.env") && needle == sandbox::ACCESS_KEY_SECRET.as_bytes();
            assert!(config || !holds(&fs::read(&file).unwrap(), needle), "in {}", file.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_with_a_ram_role_says_what_is_left_of_its_credential() {
    let Some(mut world) = World::with_small_model().await else { return };
    (world.env, world.toml) = (String::new(), "[oss]\ncredentials = \"ecs-ram-role\"\n".to_owned());
    world.write_config();
    fs::write(world.root().join("etc/cai/sandbox-metadata"), &world.sandbox.cloud).unwrap();
    // Half a minute for the test to look.
    world.sandbox.cloud_rules(json!({"life_secs": 3630})).await;
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    let store = &status["ObjectStore"];
    assert_eq!(store["Credentials"], "RAM role of this machine");
    assert_eq!((store["Throttled"].as_u64(), store["Concurrency"].as_u64()), (Some(0), Some(32)));
    let shown = world.cai(&["status"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let line = shown.lines().find(|line| line.starts_with("object store ")).unwrap();
    assert!(line.starts_with("object store RAM role of this machine, 60 min left"), "{line}");
    assert_eq!(world.sandbox.count("cloud.credential").await, 1);
    assert_eq!(agent.stop().code(), Some(0));
    let log = agent.log();
    assert!(!log.contains("CAIS+") && log.contains("credentials for OSS: RAM role of this machine"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn busctl_shows_the_interface_and_its_properties() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let busctl = |arguments: &[&str]| {
        let address = format!("--address=unix:path={}", world.path("bus").display());
        let output = world.on_bus("busctl").arg(address).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let target = ["com.alibaba.cai1", "/com/alibaba/cai1"];
    assert!(busctl(&["tree", "com.alibaba.cai1"]).contains("/com/alibaba/cai1"));
    let described = busctl(&["introspect", target[0], target[1], "com.alibaba.cai1.Agent"]);
    for (property, kind) in [
        ("State", "s"),
        ("Stage", "s"),
        ("StatusText", "s"),
        ("Progress", "a{sv}"),
        ("Model", "s"),
        ("MountPoint", "s"),
        ("KeyGeneration", "u"),
        ("ModelRevision", "s"),
        ("AttestedAt", "t"),
        ("AttestationExpires", "t"),
        ("Attestation", "a{sv}"),
        ("Gateway", "a{sv}"),
        ("ObjectStore", "a{sv}"),
        ("Peers", "aa{sv}"),
        ("LastError", "a{sv}"),
        ("Version", "s"),
    ] {
        let row = format!(".{property} ");
        let line =
            described.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("{described}"));
        let mut words = line.split_whitespace();
        assert_eq!((words.nth(1), words.next()), (Some("property"), Some(kind)), "{line}");
    }
    assert!(described.lines().any(|line| line.starts_with(".StateChanged ") && line.contains("signal")));
    let state = busctl(&["get-property", target[0], target[1], "com.alibaba.cai1.Agent", "State"]);
    assert_eq!(state, "s \"Serving\"\n");
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_secret_ends_with_a_clear_error_and_no_mount() {
    let Some(world) = World::with_small_model().await else { return };
    world.sandbox.put_resource(RESOURCE, b"not the password\n").await;
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    let log = agent.log();
    assert!(log.contains("[format.wrong-password]"), "{log}");
    assert!(!log.contains("not the password"), "{log}");
    assert!(!agent.notifications().contains(&"READY=1".to_owned()));
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_denied_by_policy_ends_with_77_after_one_request() {
    let Some(world) = World::with_small_model().await else { return };
    world.sandbox.faults(json!([{"do": "kbs_deny"}])).await;
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(77));
    let log = agent.log();
    assert!(log.contains("[kbs.denied]"), "{log}");
    assert!(log.contains("hint: "), "{log}");
    assert_eq!(world.sandbox.count("kbs.resource").await, 1, "a denial must not be retried");
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn key_broker_that_is_down_is_retried_and_shown_until_it_is_back() {
    let Some(world) = World::with_small_model().await else { return };
    world.sandbox.faults(json!([{"do": "kbs_drop"}])).await;
    let mut agent = world.agent();
    let mut shown = serde_json::Value::Null;
    wait_until("the failure in the status", || {
        shown = world.status().unwrap_or_default();
        shown["LastError"]["Code"] == "kbs.unreachable"
    });
    assert_eq!(shown["State"], "Attesting");
    assert!(
        shown["Stage"].as_str().unwrap().starts_with("the key broker is not available, attempt "),
        "{shown}"
    );
    world.sandbox.faults(json!([])).await;
    world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn session_lost_before_the_key_leads_to_a_new_handshake() {
    let Some(world) = World::with_small_model().await else { return };
    let expire = json!([{"do": "kbs_expire_session", "on": ["resource"], "times": 2}]);
    world.sandbox.faults(expire).await;
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    assert_eq!(world.sandbox.count("kbs.attest").await, 2);
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn older_broker_is_spoken_to_in_its_dialect() {
    let Some(mut world) = World::new(Builder::default().protocol("0.1.0")) else { return };
    world.upload(world::small_model()).await;
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    assert_eq!(status["Attestation"]["protocol"], "0.1.0");
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_refused_when_https_is_required() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    world.toml = "[trustee]\nrequire_https = true\n".to_owned();
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    assert_eq!(world.sandbox.count("kbs.auth").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bucket_that_may_not_be_listed_is_explained() {
    let Some(world) = World::with_small_model().await else { return };
    let refuse = json!({"oss_error": {"status": 403, "code": "AccessDenied"}});
    world.sandbox.faults(json!([{"do": refuse, "on": ["list"]}])).await;
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(77));
    let log = agent.log();
    assert!(log.contains("oss:ListObjects"), "the grant that is missing is not named: {log}");
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_without_a_model_is_explained() {
    let Some(world) = World::new(Builder::default()) else { return };
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    let log = agent.log();
    assert!(log.contains("conf-ai:/model/ holds no gocryptfs.conf [model.no-conf]"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prefix_one_directory_too_high_is_named() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.env.push_str("MODEL_OSS_BUCKET_PATH=conf-ai:/\n");
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    let log = agent.log();
    assert!(
        log.contains("model/gocryptfs.conf exists: is MODEL_OSS_BUCKET_PATH one directory too high?"),
        "{log}"
    );
}

/// The shard's ciphertext key, by its length: names are encrypted.
fn shard_key(cipher: &Path, plain_len: u64) -> String {
    let len = 18 + plain_len.div_ceil(4096) * 32 + plain_len;
    let is_it = |path: &std::path::PathBuf| fs::metadata(path).unwrap().len() == len;
    let path = files_below(cipher).into_iter().find(is_it).unwrap();
    path.strip_prefix(cipher).unwrap().display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn object_replaced_during_the_fill_is_eio_for_that_file_and_shown_as_degraded() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    let cipher = world.upload(world::small_model()).await;
    let key = shard_key(&cipher, (9 << 20) + 5);
    // The first range of the shard still arrives; then another object has its name.
    let replace = json!([{"do": "oss_replace", "on": ["get"], "match": key, "skip": 1, "times": 1}]);
    world.sandbox.faults(replace).await;
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Degraded");
    assert_eq!(status["LastError"]["Code"], "store.object-changed", "{status}");
    let read = |name: &str| fs::read(world.mount_point().join(name));
    let error = read("model-00001-of-00002.safetensors").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    assert!(
        read("model-00002-of-00002.safetensors").unwrap() == world.model["model-00002-of-00002.safetensors"]
    );
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn object_deleted_or_truncated_during_the_fill_is_eio_and_never_short_data() {
    for (act, code) in [
        (json!("oss_remove"), "store.object-gone"),
        (json!({"oss_truncate": {"len": 5000}}), "store.object-changed"),
    ] {
        let Some(mut world) = World::new(Builder::default()) else { return };
        let cipher = world.upload(world::small_model()).await;
        let key = shard_key(&cipher, 3 << 20);
        world.sandbox.faults(json!([{"do": act, "on": ["get"], "match": key, "times": 1}])).await;
        let mut agent = world.agent();
        let status = world.wait_state(&mut agent, "Degraded");
        assert_eq!(status["LastError"]["Code"], code, "{status}");
        let error = fs::read(world.mount_point().join("model-00002-of-00002.safetensors")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
        assert_eq!(agent.stop().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn read_ahead_of_the_fill_is_answered_from_the_network() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    let big = pattern(9, 40 << 20);
    let cipher =
        world.upload([("big".to_owned(), big.clone()), ("small".to_owned(), pattern(4, 100))].into()).await;
    let key = shard_key(&cipher, 40 << 20);
    // Slow enough that the fill is far from the end when the last block is read.
    world
        .sandbox
        .faults(json!([{"do": {"oss_slow_body": {"bytes_per_sec": 8 << 20}}, "on": ["get"], "match": key}]))
        .await;
    world.toml = "[oss]\nconcurrency = 2\n".to_owned();
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let file = File::open(world.mount_point().join("big")).unwrap();
    let mut last = vec![0; 4096];
    file.read_exact_at(&mut last, (40 << 20) - 4096).unwrap();
    assert!(last == big[big.len() - 4096..]);
    let progress = world.status().unwrap()["Progress"].clone();
    assert!(
        progress["BytesDone"].as_u64() < progress["BytesTotal"].as_u64(),
        "the fill was not slow: {progress}"
    );
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_fetches_no_chunk_twice() {
    let Some(world) = World::with_small_model().await else { return };
    for _ in 0..2 {
        let mut agent = world.agent();
        world.wait_state(&mut agent, "Serving");
        wait_until("every byte to be local", || agent.log().contains("every byte of the model is local"));
        world.assert_model_is_readable();
        assert_eq!(agent.stop().code(), Some(0));
    }
    let objects = files_below(&world.path("cipher"));
    let chunks: u64 = objects.iter().map(|path| fs::metadata(path).unwrap().len().div_ceil(8 << 20)).sum();
    assert_eq!(world.sandbox.count("oss.get").await, chunks);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_agent_leaves_no_dead_mount_and_the_next_one_serves_what_is_local() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    wait_until("every byte to be local", || agent.log().contains("every byte of the model is local"));
    let held = File::open(world.mount_point().join("model-00001-of-00002.safetensors")).unwrap();
    agent.signal(Signal::SIGKILL);
    agent.wait();
    wait_until("the helper to detach the mount", || common::mounts_below(&world.mount_point()) == 0);
    let mut byte = [0];
    let error = held.read_exact_at(&mut byte, 5 << 20).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTCONN), "the old handle must give a clean error");
    let before = world.sandbox.count("oss.get").await;

    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    assert_eq!(world.sandbox.count("oss.get").await, before, "local chunks were fetched again");
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn second_instance_is_refused_and_the_first_goes_on() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let mut second = Agent::start(&world, &[]);
    assert_eq!(second.wait().code(), Some(78));
    assert!(second.log().contains("[bus.second-instance]"), "{}", second.log());
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_point_that_is_not_empty_is_refused_untouched() {
    let Some(world) = World::with_small_model().await else { return };
    fs::create_dir_all(world.mount_point()).unwrap();
    fs::write(world.mount_point().join("precious"), "data").unwrap();
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    assert!(agent.log().contains("[mount-point.not-empty]"), "{}", agent.log());
    assert_eq!(fs::read_to_string(world.mount_point().join("precious")).unwrap(), "data");
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_refused_where_the_whole_model_is_to_be_kept() {
    let Some(mut world) = World::with_small_model().await else { return };
    // No file system of a test machine has an exbibyte to spare.
    let greedy = format!("[cache]\nreserve_bytes = {}\n", 1u64 << 60);
    let env = world.env.clone();
    for (toml, wait) in [("mode = \"full\"\n", ""), ("", "MODEL_WAIT=full\n")] {
        world.toml = format!("{greedy}{toml}");
        world.env = format!("{env}{wait}");
        let mut agent = world.agent();
        let status = agent.wait();
        assert!(agent.log().contains("[store.no-space]"), "{}", agent.log());
        assert_eq!(status.code(), Some(78));
        assert_eq!(world.sandbox.count("oss.get").await, 0);
        world.assert_nothing_mounted();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_is_served_without_it_and_said() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.toml = format!("[cache]\nreserve_bytes = {}\n", 1u64 << 60);
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    let notices = status["Notices"].to_string();
    assert!(notices.contains("the disk keeps nothing of the encrypted model"), "{notices}");
    world.assert_model_is_readable();
    assert_eq!(world.wait_state(&mut agent, "Serving")["Progress"]["Caching"], false);
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_the_whole_model_mounts_only_when_it_is_local() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.env.push_str("MODEL_WAIT=full\n");
    let mut agent = world.agent();
    let status = world.wait_state(&mut agent, "Serving");
    assert_eq!(status["Progress"]["BytesDone"], status["Progress"]["BytesTotal"]);
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn watchdog_is_fed_while_the_mount_answers() {
    let Some(world) = World::with_small_model().await else { return };
    world.write_config();
    // 200 ms, as a unit with WatchdogSec= would pass it.
    let mut agent = Agent::start(&world, &[("WATCHDOG_USEC", "200000")]);
    world.wait_state(&mut agent, "Serving");
    wait_until("three watchdog messages", || {
        agent.notifications().iter().filter(|line| *line == "WATCHDOG=1").count() >= 3
    });
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn unmounting_behind_the_agents_back_ends_it_for_a_restart() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    nix::mount::umount(&world.mount_point()).unwrap();
    assert_eq!(agent.wait().code(), Some(69));
    assert!(agent.log().contains("[mount.lost]"), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_problems_end_it_with_78_listing_all() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    world.env.push_str("MODEL_MOUNT_POINT=relative\nMODEL_SERVICE_PORT=99999\n");
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    let log = agent.log();
    assert!(log.contains("MODEL_MOUNT_POINT") && log.contains("MODEL_SERVICE_PORT"), "{log}");
}

/// Ctrl-C in a terminal, or a service manager that signals the whole group.
#[tokio::test(flavor = "multi_thread")]
async fn signal_to_the_whole_process_group_leaves_nothing_behind() {
    for group_signal in [Signal::SIGINT, Signal::SIGTERM] {
        let Some(world) = World::with_small_model().await else { return };
        world.write_config();
        let mut agent = Agent::start_in_its_own_group(&world);
        world.wait_state(&mut agent, "Serving");
        let group = nix::unistd::Pid::from_raw(agent.child.id() as i32);
        nix::sys::signal::killpg(group, group_signal).unwrap();
        assert_eq!(agent.wait().code(), Some(0));
        world.assert_nothing_mounted();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_directory_of_somebody_else_is_refused_and_stays_theirs() {
    let Some(mut world) = World::with_small_model().await else { return };
    let shared = world.root().join("data");
    fs::create_dir_all(&shared).unwrap();
    world.toml = "[cache]\ndir = \"/data\"\n".to_owned();
    let mut agent = world.agent();
    assert_eq!(agent.wait().code(), Some(78));
    assert!(agent.log().contains("[host.directory]"), "{}", agent.log());
    assert_eq!(fs::metadata(&shared).unwrap().uid(), 0, "root gave away a directory that was there before");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failed_request_neither_degrades_nor_ends_a_full_wait() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.env.push_str("MODEL_WAIT=full\n");
    let busy = json!({"oss_error": {"status": 503, "code": "ServiceUnavailable"}});
    world.sandbox.faults(json!([{"do": busy, "on": ["get"], "skip": 3, "times": 2}])).await;
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    assert!(!agent.log().contains("Degraded"), "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn local_copy_that_has_rotted_is_fetched_again_and_read_right() {
    let Some(world) = World::with_small_model().await else { return };
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    wait_until("every byte to be local", || agent.log().contains("every byte of the model is local"));
    assert_eq!(agent.stop().code(), Some(0));
    // One bit in the middle of the largest object's local copy, which was closed cleanly.
    let largest = files_below(&world.root().join("var/cache/cai"));
    let largest = largest.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let file = File::options().read(true).write(true).open(largest).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 4 << 20).unwrap();
    drop(file);

    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    world.assert_model_is_readable();
    assert!(!agent.log().contains("is corrupt"), "{}", agent.log());
    assert_eq!(agent.stop().code(), Some(0));
}
