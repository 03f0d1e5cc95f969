//! `cai rotate` on the stand-ins: the key and the model change under readers who notice nothing, or nothing changes.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use cai::gocryptfs::{Passphrase, change_password};
use cai::keyring::Secret;
use cai::oss;
use common::wait_until;
use sandbox::{Builder, RESOURCE};
use serde_json::{Value, json};
use world::{Agent, SECRET, World, files_below, pattern, small_model};

const SHARD: &str = "model-00001-of-00002.safetensors";

/// What the owner replaces the small model by: one file changed, one gone, one new.
fn next_model() -> BTreeMap<String, Vec<u8>> {
    let mut model = small_model();
    model.insert(SHARD.to_owned(), pattern(77, (17 << 20) + 9));
    model.remove("sub/tokenizer.json");
    model.insert("sub/merges.txt".to_owned(), pattern(78, 700));
    model
}

impl World {
    async fn serving(&self) -> (Agent, Value) {
        let mut agent = self.agent();
        self.wait_state(&mut agent, "Serving");
        self.wait_local();
        let status = self.status().unwrap();
        (agent, status)
    }

    /// `cai rotate --wait`; the line it ends with.
    fn rotate(&self) -> String {
        let output = self.cai(&["rotate", "--wait"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned()
    }

    /// A rotation that fails with this exit status and code, and leaves everything as it was.
    fn rotate_in_vain(&self, before: &Value, exit: i32, code: &str) {
        let output = self.cai(&["rotate", "--wait"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit), "{said}");
        assert!(said.contains(&format!("[{code}]")), "{said}");
        let status = self.status().unwrap();
        assert_eq!(status["Rotation"]["Phase"], "failed");
        assert_eq!(status["Rotation"]["Error"]["Code"], code);
        for same in [
            "/State",
            "/Stage",
            "/ModelRevision",
            "/KeyGeneration",
            "/Progress/BytesDone",
            "/Progress/BytesTotal",
            "/Notices",
        ] {
            assert_eq!(status.pointer(same), before.pointer(same), "{same}");
        }
        self.assert_model_is_readable();
    }

    /// Directories of revisions in the cache.
    fn revisions(&self) -> usize {
        fs::read_dir(self.root().join("var/cache/cai")).unwrap().count()
    }

    /// What `/proc/mounts` knows of the mount, its number included.
    fn mount_line(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.mount_point().display().to_string();
        mounts.lines().find(|line| line.contains(&point)).unwrap().to_owned()
    }

    fn client(&self) -> oss::Client {
        oss::Client::new(&self.sandbox.oss_config()).unwrap()
    }

    /// Replace everything in the bucket by this model, encrypted anew with a new master key.
    async fn replace(&mut self, model: BTreeMap<String, Vec<u8>>) {
        for old in files_below(&self.path("cipher")) {
            let key = format!("model/{}", old.strip_prefix(self.path("cipher")).unwrap().display());
            self.client().delete(&key).await.unwrap();
        }
        fs::remove_dir_all(self.path("cipher")).unwrap();
        self.upload(model).await;
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) {
        self.client().put(&format!("model/{name}"), Bytes::from(bytes)).await.unwrap();
    }
}

impl Agent {
    /// Files that it has open and that have no name any more.
    fn deleted_files(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let named = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        named
            .filter(|path| {
                path.to_string_lossy().contains("/revision-") && path.to_string_lossy().contains("(deleted)")
            })
            .count()
    }
}

fn passphrase(secret: &[u8]) -> Passphrase {
    Passphrase::from_secret(&Secret::copy_of(secret).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_revision_is_what_new_opens_get_and_open_files_stay_with_the_old_one() {
    let Some(mut world) = World::with_small_model().await else { return };
    let mut first = small_model();
    first.insert(SHARD.to_owned(), pattern(1, (17 << 20) + 3));
    world.replace(first.clone()).await;
    let (mut agent, before) = world.serving().await;
    let mount = world.mount_line();
    let mut shard = File::open(world.mount_point().join(SHARD)).unwrap();
    let mut half = vec![0; 9 << 20];
    shard.read_exact(&mut half).unwrap();
    // A reader with the directory open, as a loader that walks it has.
    let mut walk = fs::read_dir(world.mount_point()).unwrap();
    assert!(walk.next().is_some());
    let tokenizer = File::open(world.mount_point().join("sub/tokenizer.json")).unwrap();

    world.replace(next_model()).await;
    assert!(world.rotate().starts_with("replaced "));
    world.assert_model_is_readable();
    assert_eq!(world.mount_line(), mount, "containers see only the mount that was there at their start");
    let status = world.status().unwrap();
    assert_eq!(status["State"], "Serving");
    assert_eq!(status["KeyGeneration"], 2);
    assert_ne!(status["ModelRevision"], before["ModelRevision"]);
    assert_eq!(status["Rotation"]["Revision"], status["ModelRevision"]);
    assert_eq!(status["Progress"]["BytesDone"], status["Progress"]["BytesTotal"]);

    // What was open is what it was, to the last byte; the name leads elsewhere.
    shard.read_to_end(&mut half).unwrap();
    assert!(half == first[SHARD]);
    let mut bytes = vec![0; 5000];
    tokenizer.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == first["sub/tokenizer.json"]);
    assert!(!world.mount_point().join("sub/tokenizer.json").exists());
    wait_until("what is left open to be shown", || world.status().unwrap()["Rotation"]["LeftOpen"] == 3);
    assert_eq!(world.revisions(), 2);
    drop((shard, walk, tokenizer));
    wait_until("the old revision to be freed", || world.revisions() == 1);
    wait_until("nothing to be left open", || world.status().unwrap()["Rotation"]["LeftOpen"] == 0);
    assert!(agent.log().contains("nobody reads"), "{}", agent.log());
    // Nor does the agent: a name that is gone frees nothing while the file is open.
    wait_until("the agent to let go of it", || agent.deleted_files() == 0);

    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
    // The next start has it all.
    let gets = world.sandbox.count("oss.get").await;
    let (mut agent, again) = world.serving().await;
    assert_eq!(again["ModelRevision"], status["ModelRevision"]);
    assert_eq!(world.sandbox.count("oss.get").await, gets);
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_never_stop_see_one_revision_or_the_other_and_no_error() {
    let Some(mut world) = World::with_small_model().await else { return };
    let (mut agent, _) = world.serving().await;
    let (old, new) = (small_model(), next_model());
    let over = AtomicBool::new(false);
    let switched = AtomicU64::new(0);
    let path = world.mount_point().join(SHARD);
    let mut rotated = String::new();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let bytes = fs::read(&path).unwrap();
                    let is_new = bytes == new[SHARD];
                    assert!(is_new || bytes == old[SHARD], "neither the one nor the other");
                    switched.fetch_add(u64::from(is_new), Ordering::Relaxed);
                }
            });
        }
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(world.replace(next_model()));
        });
        rotated = world.rotate();
        let seen = switched.load(Ordering::Relaxed);
        wait_until("readers to get the new one", || switched.load(Ordering::Relaxed) > seen + 3);
        over.store(true, Ordering::Relaxed);
    });
    assert!(rotated.starts_with("replaced "), "{rotated}");
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn key_wrapped_anew_is_taken_without_a_byte_of_data() {
    let Some(world) = World::with_small_model().await else { return };
    let (mut agent, before) = world.serving().await;
    assert!(world.rotate().starts_with("unchanged "));
    assert_eq!(world.status().unwrap()["KeyGeneration"], 2);

    change_password(&world.path("cipher"), &passphrase(SECRET), &passphrase(b"another secret")).unwrap();
    let conf = fs::read(world.path("cipher/gocryptfs.conf")).unwrap();
    world.put("gocryptfs.conf", conf).await;
    // The secret is still the old one.
    let now = world.status().unwrap();
    world.rotate_in_vain(&now, 78, "format.wrong-password");
    world.sandbox.put_resource(RESOURCE, b"another secret\n").await;
    let gets = world.sandbox.count("oss.get").await;
    let open = File::open(world.mount_point().join(SHARD)).unwrap();
    assert!(world.rotate().starts_with("rewrapped "));
    assert_eq!(world.sandbox.count("oss.get").await, gets + 1, "the conf alone");
    let status = world.status().unwrap();
    assert_ne!(status["ModelRevision"], before["ModelRevision"]);
    assert_eq!((&status["KeyGeneration"], &status["Rotation"]["LeftOpen"]), (&json!(3), &json!(0)));
    assert_eq!(world.revisions(), 1);
    drop(open);
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
    // And it is what the next start opens.
    let (mut agent, _) = world.serving().await;
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_revisions_have_in_common_is_not_fetched_again() {
    let Some(mut world) = World::with_small_model().await else { return };
    let (mut agent, before) = world.serving().await;
    // One object fewer, and nothing else.
    let smallest = files_below(&world.path("cipher"));
    let gone =
        smallest.iter().find(|file| fs::metadata(file).unwrap().len() == 3 * 1024 * 1024 + 768 * 32 + 18);
    let gone = gone.expect("the second shard").strip_prefix(world.path("cipher")).unwrap();
    world.client().delete(&format!("model/{}", gone.display())).await.unwrap();
    world.model.remove("model-00002-of-00002.safetensors");
    let gets = world.sandbox.count("oss.get").await;
    assert!(world.rotate().starts_with("replaced "));
    assert_eq!(world.sandbox.count("oss.get").await, gets + 1, "the conf, to compare");
    world.assert_model_is_readable();
    let status = world.status().unwrap();
    assert_ne!(status["ModelRevision"], before["ModelRevision"]);
    assert!(status["Progress"]["BytesTotal"].as_u64() < before["Progress"]["BytesTotal"].as_u64());
    wait_until("the old revision to be freed", || world.revisions() == 1);
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_that_fails_leaves_everything_as_it_was_and_says_why() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.toml = "[trustee]\nretry_limit_secs = 0\n".to_owned();
    let (mut agent, before) = world.serving().await;
    world.sandbox.faults(json!([{"do": "kbs_deny"}])).await;
    world.rotate_in_vain(&before, 77, "kbs.denied");
    world.sandbox.faults(json!([{"do": "kbs_drop"}])).await;
    world.rotate_in_vain(&before, 69, "kbs.unreachable");
    let refuse = json!({"oss_error": {"status": 403, "code": "AccessDenied"}});
    world.sandbox.faults(json!([{"do": refuse, "on": ["list"]}])).await;
    world.rotate_in_vain(&before, 77, "oss.access-denied");
    world.sandbox.faults(json!([])).await;

    // A conf of another directory: its key cannot open what lies beside it.
    let old = fs::read(world.path("cipher/gocryptfs.conf")).unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("plain")).unwrap();
    let options = cai::gocryptfs::EncryptOptions { scrypt_log_n: 10, ..Default::default() };
    let (plain, cipher) = (other.path().join("plain"), other.path().join("cipher"));
    cai::gocryptfs::encrypt_tree(&plain, &cipher, &passphrase(SECRET), &options).unwrap();
    world.put("gocryptfs.conf", fs::read(cipher.join("gocryptfs.conf")).unwrap()).await;
    world.rotate_in_vain(&before, 65, "rotation.other-key");
    world.put("gocryptfs.conf", b"{}".to_vec()).await;
    world.rotate_in_vain(&before, 65, "format.conf-missing-field");
    world.put("gocryptfs.conf", vec![b' '; 70_000]).await;
    world.rotate_in_vain(&before, 65, "format.conf-too-large");
    world.put("gocryptfs.conf", old).await;
    assert!(world.rotate().starts_with("unchanged "));
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_is_one_at_a_time_and_survives_a_kill_in_its_middle() {
    let Some(mut world) = World::with_small_model().await else { return };
    let (mut agent, before) = world.serving().await;
    world.replace(next_model()).await;
    let slow = json!({"oss_slow_body": {"bytes_per_sec": 200_000}});
    world.sandbox.faults(json!([{"do": slow, "on": ["get"], "skip": 4}])).await;
    let begun = world.cai(&["rotate"]);
    assert_eq!(
        String::from_utf8_lossy(&begun.stdout),
        "rotation 1 has begun; cai status shows how far it is\n"
    );
    wait_until("some of the new revision to be here", || {
        let rotation = &world.status().unwrap()["Rotation"];
        rotation["Phase"] == "fetching" && rotation["Progress"]["BytesDone"].as_u64() > Some(0)
    });
    let second = world.cai(&["rotate"]);
    assert_eq!(second.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&second.stderr).contains("is under way already"), "{second:?}");
    let status = world.status().unwrap();
    assert_eq!((&status["State"], &status["ModelRevision"]), (&json!("Serving"), &before["ModelRevision"]));
    assert!(fs::read(world.mount_point().join(SHARD)).unwrap() == small_model()[SHARD]);
    let text = String::from_utf8(world.cai(&["status"]).stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("rotation")).unwrap();
    assert!(line.starts_with("rotation     fetching ") && line.contains(" of 20."), "{line}");
    agent.child.kill().unwrap();
    agent.wait();
    world.sandbox.faults(json!([])).await;
    let (mut agent, after) = world.serving().await;
    assert_ne!(after["ModelRevision"], before["ModelRevision"]);
    world.assert_model_is_readable();
    assert_eq!(world.revisions(), 1);
    // Stopped in the middle of another one.
    world.replace(small_model()).await;
    world.sandbox.faults(json!([{"do": slow, "on": ["get"], "skip": 4}])).await;
    assert_eq!(world.cai(&["rotate"]).status.code(), Some(0));
    wait_until("it to fetch", || world.status().unwrap()["Rotation"]["Phase"] == "fetching");
    assert_eq!(agent.stop().code(), Some(0));
    world.assert_nothing_mounted();
}

#[tokio::test(flavor = "multi_thread")]
async fn way_back_is_open_once_nobody_reads_and_no_revision_comes_that_the_disk_cannot_keep() {
    let Some(mut world) = World::with_small_model().await else { return };
    world.toml = "[cache]\nsize_bytes = \"20MiB\"\n".to_owned();
    let (mut agent, _) = world.serving().await;
    let first = files_below(&world.path("cipher"));
    let first: Vec<_> = first
        .into_iter()
        .map(|file| {
            (file.strip_prefix(world.path("cipher")).unwrap().display().to_string(), fs::read(&file).unwrap())
        })
        .collect();
    let reader = File::open(world.mount_point().join(SHARD)).unwrap();
    let mut second = small_model();
    second.insert("config.json".to_owned(), b"{}".to_vec());
    world.replace(second.clone()).await;
    assert!(world.rotate().starts_with("replaced "));
    // Back to what somebody still reads.
    let client = world.client();
    for object in client.list("model/").await.unwrap() {
        client.delete(&format!("model/{}", object.path.display())).await.unwrap();
    }
    for (name, bytes) in &first {
        world.put(name, bytes.clone()).await;
    }
    let now = world.status().unwrap();
    world.rotate_in_vain(&now, 69, "rotation.still-read");
    drop(reader);
    wait_until("the first revision to be freed", || world.revisions() == 1);
    assert!(world.rotate().starts_with("replaced "));
    world.model = small_model();
    world.assert_model_is_readable();
    // More than the operator allows to be kept.
    let served = world.model.clone();
    let now = world.status().unwrap();
    fs::remove_dir_all(world.path("cipher")).unwrap();
    let mut large = next_model();
    large.insert("more.bin".to_owned(), pattern(9, 9 << 20));
    world.upload(large).await;
    for (name, _) in first.iter().filter(|(name, _)| name != "gocryptfs.conf" && name != "gocryptfs.diriv") {
        client.delete(&format!("model/{name}")).await.unwrap();
    }
    world.model = served;
    world.rotate_in_vain(&now, 78, "rotation.no-room");
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_copy_in_memory_is_rotated_by_a_restart_only() {
    let Some(mut world) = World::new(Builder::default()) else { return };
    world.toml = "[mount]\nmode = \"ram\"\n".to_owned();
    world.upload(small_model()).await;
    let (mut agent, before) = world.serving().await;
    assert!(world.rotate().starts_with("unchanged "));
    let before = Value::clone(&{
        let mut now = before;
        now["KeyGeneration"] = json!(2);
        now
    });
    let served = world.model.clone();
    world.replace(next_model()).await;
    let next = std::mem::replace(&mut world.model, served);
    world.rotate_in_vain(&before, 78, "rotation.sealed");
    assert_eq!(agent.stop().code(), Some(0));
    world.model = next;
    let (mut agent, _) = world.serving().await;
    world.assert_model_is_readable();
    assert_eq!(agent.stop().code(), Some(0));
}
