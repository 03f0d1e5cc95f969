//! `cai run` and the model's signed manifest: what is accepted, what is refused, and what is remembered.
#![cfg(feature = "sandbox")]

mod common;
#[path = "common/sandbox.rs"]
mod sandbox;
#[path = "common/world.rs"]
mod world;

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cai::manifest::{Contents, Licence, Manifest, NAME, PublicKey, SigningKey, generate, list};
use cai::oss;
use sandbox::Builder;
use serde_json::json;
use world::{World, files_below};

/// A world with an uploaded model, and its publisher.
struct Publisher {
    world: World,
    key: SigningKey,
    cipher: PathBuf,
}

impl Publisher {
    async fn new() -> Option<Self> {
        Self::with(Builder::default()).await
    }

    async fn with(builder: Builder) -> Option<Self> {
        let mut world = World::new(builder)?;
        let cipher = world.upload(world::small_model()).await;
        generate(&world.path("key")).unwrap();
        let key = SigningKey::read(&world.path("key")).unwrap();
        Some(Publisher { world, key, cipher })
    }

    fn contents(&self, revision: u64) -> Contents {
        let objects = list(&self.cipher).unwrap().objects(&self.cipher, &|_| {}).unwrap();
        Contents { revision, licence: None, objects }
    }

    async fn put(&self, name: &str, bytes: Vec<u8>) {
        let client = oss::Client::new(&self.world.sandbox.oss_config()).unwrap();
        client.put(&format!("model/{name}"), Bytes::from(bytes)).await.unwrap();
    }

    /// Put a manifest beside the model.
    async fn publish(&self, contents: &Contents) -> Manifest {
        let file = contents.sign(&self.key).unwrap();
        self.put(NAME, file.clone()).await;
        Manifest::parse(&file).unwrap()
    }

    fn pin(&mut self, key: PublicKey) {
        self.world.toml = format!("[model]\npublisher_key = \"{key}\"\n");
    }

    /// The agent refuses to start, for this reason.
    fn refused(&self, status: i32, code: &str) -> String {
        let mut agent = self.world.agent();
        assert_eq!(agent.wait().code(), Some(status), "{}", agent.log());
        let log = agent.log();
        assert!(log.contains(&format!("[{code}]")), "{log}");
        self.world.assert_nothing_mounted();
        log
    }

    /// The agent serves the model; its model revision and notices.
    fn served(&self) -> (String, String) {
        let mut agent = self.world.agent();
        let status = self.world.wait_state(&mut agent, "Serving");
        self.world.assert_model_is_readable();
        assert_eq!(agent.stop().code(), Some(0));
        (status["ModelRevision"].as_str().unwrap().to_owned(), status["Notices"].to_string())
    }

    /// Where the file of `plain_len` bytes lies: names are encrypted.
    fn stored(&self, plain_len: u64) -> PathBuf {
        let len = 18 + plain_len.div_ceil(4096) * 32 + plain_len;
        files_below(&self.cipher).into_iter().find(|path| fs::metadata(path).unwrap().len() == len).unwrap()
    }

    fn key_of(&self, path: &Path) -> String {
        path.strip_prefix(&self.cipher).unwrap().display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn model_nobody_signed_is_served_with_a_notice() {
    let Some(publisher) = Publisher::new().await else { return };
    let (_, notices) = publisher.served();
    assert!(notices.contains("model origin not authenticated: it has no signed manifest"), "{notices}");
    assert!(!publisher.world.root().join("var/lib/cai/models").exists(), "there is nothing to remember");
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_publisher_makes_the_manifest_mandatory_and_shows_its_identity() {
    let Some(mut publisher) = Publisher::new().await else { return };
    publisher.pin(publisher.key.public());
    publisher.refused(65, "model.no-manifest");
    let manifest = publisher.publish(&publisher.contents(3)).await;
    // What is not in the manifest is no part of the model: a file of the same directory under another name, and a stray one.
    let shard = publisher.stored(3 << 20);
    publisher.put("README.md", b"stray".to_vec()).await;
    publisher.put(&format!("{}x", publisher.key_of(&shard)), fs::read(&shard).unwrap()).await;
    let (revision, notices) = publisher.served();
    assert_eq!(revision, manifest.identity().to_string());
    assert!(!notices.contains("not authenticated: it"), "{notices}");
    let other = world::pattern(1, 32);
    publisher.pin(PublicKey::new(other.try_into().unwrap()));
    publisher.refused(65, "model.other-publisher");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_once_seen_stays_mandatory_and_its_revision_never_decreases() {
    let Some(publisher) = Publisher::new().await else { return };
    publisher.publish(&publisher.contents(7)).await;
    let (_, notices) = publisher.served();
    assert!(notices.contains("model origin not authenticated: it is signed by"), "{notices}");
    publisher.publish(&publisher.contents(6)).await;
    publisher.refused(65, "model.rolled-back");
    let client = oss::Client::new(&publisher.world.sandbox.oss_config()).unwrap();
    let listed = client.list("model/").await.unwrap();
    assert!(listed.iter().any(|object| object.path == Path::new(NAME)));
    let remove = json!([{"do": "oss_remove", "on": ["get"], "match": NAME, "times": 1}]);
    publisher.world.sandbox.faults(remove).await;
    // It goes while it is fetched: what was listed and is not there is not "no manifest".
    publisher.refused(65, "model.manifest-fetch");
    publisher.refused(65, "model.manifest-gone");
    publisher.publish(&publisher.contents(8)).await;
    publisher.served();

    let state = files_below(&publisher.world.root().join("var/lib/cai"));
    assert_eq!(state.len(), 1);
    fs::write(&state[0], b"{").unwrap();
    publisher.refused(78, "model.state-damaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn object_that_is_missing_or_of_another_length_is_refused_before_anything_is_mounted() {
    let Some(publisher) = Publisher::new().await else { return };
    publisher.publish(&publisher.contents(1)).await;
    let shard = publisher.stored(3 << 20);
    let mut bytes = fs::read(&shard).unwrap();
    // Cut at a block border: every block that is left opens, and the format sees nothing.
    bytes.truncate(18 + 100 * 4128);
    publisher.put(&publisher.key_of(&shard), bytes).await;
    let log = publisher.refused(65, "model.objects");
    assert!(log.contains(&publisher.key_of(&shard)), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn file_of_the_right_length_that_is_another_one_is_eio_and_the_rest_is_served() {
    let Some(publisher) = Publisher::new().await else { return };
    publisher.publish(&publisher.contents(1)).await;
    // A block that was overwritten with zeros reads as a hole: no tag fails, and without a manifest the reader gets zeros.
    let shard = publisher.stored(3 << 20);
    let mut bytes = fs::read(&shard).unwrap();
    bytes[18..18 + 4128].fill(0);
    publisher.put(&publisher.key_of(&shard), bytes).await;
    let mut agent = publisher.world.agent();
    let status = publisher.world.wait_state(&mut agent, "Degraded");
    assert_eq!(status["LastError"]["Code"], "store.object-corrupt", "{status}");
    let read = |name: &str| fs::read(publisher.world.mount_point().join(name));
    let error = read("model-00002-of-00002.safetensors").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    let first = "model-00001-of-00002.safetensors";
    assert!(read(first).unwrap() == publisher.world.model[first]);
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_manifest_is_refused_also_without_a_pin() {
    let Some(publisher) = Publisher::new().await else { return };
    let mut file = publisher.contents(1).sign(&publisher.key).unwrap();
    file[100] ^= 1;
    publisher.put(NAME, file).await;
    publisher.refused(65, "manifest.signature");
}

#[tokio::test(flavor = "multi_thread")]
async fn licence_that_has_ended_or_asks_for_another_policy_is_denied() {
    let directory = tempfile::tempdir().unwrap();
    let signers = directory.path().join("signers.pem");
    let builder = Builder::default().with(&["--token-cert-out", signers.to_str().unwrap()]);
    let Some(mut publisher) = Publisher::with(builder).await else { return };
    let licence = Licence {
        id: "L-1".into(),
        licensee: "Example".into(),
        policy: String::new(),
        text: String::new(),
        not_before: None,
        not_after: Some(1_600_000_000),
    };
    let contents = publisher.contents(1);
    let licensed = |licence| Contents { licence: Some(licence), ..contents.clone() };
    publisher.publish(&licensed(licence.clone())).await;
    // Over plain http whoever answers could write any time into a token that nobody signs.
    publisher.refused(77, "licence.no-time");
    let etc = publisher.world.root().join("etc/cai");
    fs::copy(&signers, etc.join("signers.pem")).unwrap();
    publisher.world.toml = "[trustee]\ntoken_cert = \"/etc/cai/signers.pem\"\n".into();
    let log = publisher.refused(77, "licence.expired");
    assert!(log.contains("licence L-1 ended at 2020-09-13T12:26:40Z"), "{log}");
    publisher
        .publish(&licensed(Licence { policy: "strict".into(), not_after: None, ..licence.clone() }))
        .await;
    publisher.refused(77, "licence.other-policy");
    publisher.publish(&licensed(Licence { not_after: Some(4_000_000_000), ..licence })).await;
    publisher.served();
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_takes_a_later_revision_of_a_signed_model_and_no_earlier_one() {
    let Some(mut publisher) = Publisher::new().await else { return };
    publisher.pin(publisher.key.public());
    publisher.publish(&publisher.contents(3)).await;
    let world = &publisher.world;
    let mut agent = world.agent();
    world.wait_state(&mut agent, "Serving");
    let rotate = || world.cai(&["rotate", "--wait"]);
    // The same files under another signature: nothing of them is fetched again.
    let later = publisher.publish(&publisher.contents(4)).await;
    assert!(String::from_utf8_lossy(&rotate().stdout).contains("rewrapped"));
    assert_eq!(world.status().unwrap()["ModelRevision"], later.identity().to_string());
    publisher.publish(&publisher.contents(3)).await;
    let output = rotate();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(65) && said.contains("[model.rolled-back]"), "{said}");
    // A conf that is not the signed one, though it opens.
    publisher.publish(&publisher.contents(5)).await;
    let conf = fs::read(publisher.cipher.join("gocryptfs.conf")).unwrap();
    let mut spaced = conf.clone();
    let brace = spaced.iter().position(|byte| *byte == b'\n').unwrap();
    spaced[brace] = b' ';
    publisher.put("gocryptfs.conf", spaced).await;
    let output = rotate();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(65) && said.contains("[rotation.conf-forged]"), "{said}");
    assert_eq!(world.status().unwrap()["ModelRevision"], later.identity().to_string());
    world.assert_model_is_readable();
    publisher.put("gocryptfs.conf", conf).await;
    assert!(String::from_utf8_lossy(&rotate().stdout).contains("rewrapped"));
    assert_eq!(agent.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn licence_that_ends_while_the_model_is_served_ends_serving() {
    let directory = tempfile::tempdir().unwrap();
    let signers = directory.path().join("signers.pem");
    let builder = Builder::default().with(&["--token-cert-out", signers.to_str().unwrap()]);
    let Some(mut publisher) = Publisher::with(builder).await else { return };
    let etc = publisher.world.root().join("etc/cai");
    fs::create_dir_all(&etc).unwrap();
    fs::copy(&signers, etc.join("signers.pem")).unwrap();
    publisher.world.toml =
        "[trustee]\ntoken_cert = \"/etc/cai/signers.pem\"\nreattest_interval_secs = 1\n".into();
    // Its time is the end of a token, which the stand-in makes good for 300 seconds.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let licence = Licence {
        id: "L-2".into(),
        licensee: "Example".into(),
        policy: String::new(),
        text: String::new(),
        not_before: None,
        not_after: Some(now + 315),
    };
    publisher.publish(&Contents { licence: Some(licence), ..publisher.contents(1) }).await;
    let mut agent = publisher.world.agent();
    publisher.world.wait_state(&mut agent, "Serving");
    assert_eq!(agent.wait().code(), Some(77));
    let log = agent.log();
    assert!(log.contains("Serving -> Failed") && log.contains("licence L-2 ended at"), "{log}");
    publisher.world.assert_nothing_mounted();
}
