//! An encrypted directory, a configuration and a bucket, for the tests of `cai upload` and `cai download`.
//!
//! Usage: `#[path = "common/bucket.rs"] mod bucket;` beside `common` and `sandbox`. Needs feature `sandbox`.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cai::oss::Client;
use serde_json::Value;

use crate::sandbox::{ACCESS_KEY_ID, ACCESS_KEY_SECRET, BUCKET, Builder, REGION, Sandbox};

pub const MIB: usize = 1 << 20;
/// Name with everything that some encoding on the way could spoil.
pub const HOSTILE_NAME: &str = "sub/a b+c&d=é中%2F#?.bin";

/// A directory, a configuration and a bucket.
pub struct Scene {
    pub temp: tempfile::TempDir,
    pub sandbox: Sandbox,
    pub files: BTreeMap<String, Vec<u8>>,
}

pub fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ ((at >> 12) as u8).wrapping_mul(31) ^ seed).collect()
}

impl Scene {
    /// With two files in parts, some small ones, and an empty one.
    pub fn new() -> Scene {
        let temp = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::start(Builder::default().state_dir(&temp.path().join("state")));
        let mut scene = Scene { temp, sandbox, files: BTreeMap::new() };
        scene.write_env(ACCESS_KEY_SECRET);
        fs::create_dir(scene.dir()).unwrap();
        let files = [
            ("gocryptfs.conf", bytes(1, 385)),
            ("gocryptfs.diriv", bytes(2, 16)),
            ("aaaa", bytes(3, 17 * MIB + 5)),
            ("zzzz", bytes(4, 8 * MIB + 1)),
            ("exactly-one-part", bytes(5, 8 * MIB)),
            ("sub/deep/er/empty", Vec::new()),
            (HOSTILE_NAME, bytes(6, 5000)),
        ];
        files.into_iter().for_each(|(name, content)| scene.write(name, content));
        scene
    }

    pub fn dir(&self) -> PathBuf {
        self.temp.path().join("cipher")
    }

    pub fn write(&mut self, name: &str, content: Vec<u8>) {
        let path = self.dir().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &content).unwrap();
        self.files.insert(name.to_owned(), content);
    }

    pub fn write_env(&self, secret: &str) {
        let text = format!(
            "MODEL_OSS_BUCKET_PATH=\"{BUCKET}:/model/\"\nMODEL_OSS_ENDPOINT=\"{}\"\nMODEL_OSS_REGION={REGION}\n\
             MODEL_OSS_ACCESS_KEY_ID={ACCESS_KEY_ID}\nMODEL_OSS_SECRET_ACCESS_KEY={secret}\n",
            self.sandbox.oss
        );
        fs::write(self.temp.path().join("owner.env"), text).unwrap();
    }

    /// `cai upload` of [`Scene::dir`].
    pub fn command(&self, options: &[&str]) -> Command {
        self.publish("upload", &self.dir(), options)
    }

    /// `cai VERB DIR` with the owner's configuration.
    pub fn publish(&self, verb: &str, dir: &Path, options: &[&str]) -> Command {
        let root = self.temp.path().join("root");
        fs::create_dir_all(&root).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
        command.arg("--root").arg(root).arg(verb).arg(dir);
        command.arg("--config").arg(self.temp.path().join("owner.env")).args(options);
        command
    }

    /// One request at a time from now on, so that their order is known.
    pub fn one_at_a_time(&self) {
        let toml = self.temp.path().join("root/etc/cai/cai.toml");
        fs::create_dir_all(toml.parent().unwrap()).unwrap();
        fs::write(toml, "[oss]\nconcurrency = 1\n").unwrap();
    }

    pub fn upload(&self, options: &[&str]) -> Ran {
        Ran::of(self.command(options).output().unwrap())
    }

    pub fn start(&self) -> Child {
        self.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.sandbox.oss_config()).unwrap()
    }

    /// What the bucket holds below `prefix`: content by relative path, checksums compared on the way.
    pub async fn objects(&self, prefix: &str) -> BTreeMap<String, Vec<u8>> {
        let (client, mut found) = (self.client(), BTreeMap::new());
        for object in client.list(prefix).await.unwrap() {
            let path = object.path.to_str().unwrap().to_owned();
            let key = format!("{prefix}{path}");
            let mut content = Vec::new();
            if object.len > 0 {
                let got = client.get_range(&key, &object.etag, 0..object.len, object.len).await.unwrap();
                content = got.frames.concat();
            }
            let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Xz, &content);
            assert_eq!(client.head(&key).await.unwrap().crc64, Some(crc), "{key}");
            found.insert(path, content);
        }
        found
    }

    pub async fn assert_bucket_is_the_directory(&self) {
        let objects = self.objects("model/").await;
        assert_eq!(objects.keys().collect::<Vec<_>>(), self.files.keys().collect::<Vec<_>>());
        for (path, content) in &self.files {
            assert!(objects[path] == *content, "{path} differs");
        }
    }

    /// Successful requests that stored something, in order: operation and key.
    pub async fn stored(&self) -> Vec<(String, String)> {
        let log = self.sandbox.log().await;
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        log["requests"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|entry| {
                ["PUT", "POST"].contains(&text(entry, "method").as_str()) && entry["status"] == 200
            })
            .map(|entry| (text(entry, "op"), text(entry, "subject")))
            .collect()
    }

    /// Requests that would store something, successful or not.
    pub async fn sent(&self) -> usize {
        let log = self.sandbox.log().await;
        let requests = log["requests"].as_array().unwrap();
        requests
            .iter()
            .filter(|entry| ["PUT", "POST"].iter().any(|method| entry["method"] == *method))
            .count()
    }

    /// How often `method` succeeded on `key`.
    pub async fn succeeded(&self, method: &str, key: &str) -> usize {
        let log = self.sandbox.log().await;
        let requests = log["requests"].as_array().unwrap().iter();
        let succeeded = |entry: &&Value| (200..300).contains(&entry["status"].as_u64().unwrap());
        requests
            .filter(succeeded)
            .filter(|entry| entry["method"] == method && entry["subject"] == key)
            .count()
    }

    /// Wait until the one fault that is set has acted so often.
    pub async fn wait_fired(&self, times: u64) {
        let wait = async {
            while self.sandbox.fired().await[0] < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the fault did not act within 30 s");
    }

    /// Keys of the uploads in parts that somebody began and nobody ended.
    pub fn open_uploads(&self) -> Vec<String> {
        let uploads = fs::read_dir(self.temp.path().join("state/uploads")).unwrap();
        let about = uploads.map(|upload| fs::read(upload.unwrap().path().join("upload.json")).unwrap());
        let mut keys: Vec<String> = about
            .map(|about| serde_json::from_slice::<Value>(&about).unwrap()["key"].as_str().unwrap().to_owned())
            .collect();
        keys.sort();
        keys
    }
}

/// A run that has ended.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    pub fn succeeded(self) -> Ran {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        assert!(!self.out.contains(ACCESS_KEY_SECRET) && !self.err.contains(ACCESS_KEY_SECRET));
        self
    }

    #[track_caller]
    pub fn failed(self, exit: i32, code: &str) -> Ran {
        assert_eq!(self.code, exit, "{}{}", self.out, self.err);
        assert!(self.err.contains(&format!("[{code}]\n  hint: ")), "{}", self.err);
        assert!(!self.out.contains(ACCESS_KEY_SECRET) && !self.err.contains(ACCESS_KEY_SECRET));
        self
    }

    pub fn summary(&self) -> &str {
        self.out.lines().last().unwrap()
    }
}
