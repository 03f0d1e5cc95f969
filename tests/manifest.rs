//! The signed manifest: frozen bytes made without cai, hostile bytes, directories that are not what was signed, and every
//! decision of the policy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cai::error::{ErrorClass, Fault};
use cai::manifest::{
    CHUNK_LEN, ChunkHasher, Contents, Difference, Identity, Licence, Manifest, ManifestError, NAME, Object,
    Origin, Pin, Policy, PolicyError, PublicKey, Seen, SigningKey, compare, generate, list, read,
    read_licence, write,
};
use proptest::prelude::*;
use serde_json::Value;

static VECTORS: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("vectors/manifest.json")).unwrap());

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field}"))
}

fn bytes(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(text(value, field)).unwrap()
}

/// A key in a file of its own, as the library reads it.
fn key_from(pem: &str) -> SigningKey {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), pem).unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
    SigningKey::read(file.path()).unwrap()
}

fn key() -> SigningKey {
    key_from(text(&VECTORS, "private_key"))
}

fn other_key() -> SigningKey {
    let dir = tempfile::tempdir().unwrap();
    generate(&dir.path().join("key")).unwrap();
    SigningKey::read(&dir.path().join("key")).unwrap()
}

fn object(path: &str, len: u64) -> Object {
    let hashes = usize::try_from(len.div_ceil(CHUNK_LEN).max(1)).unwrap();
    Object { path: PathBuf::from(path), len, hashes: vec![[7; 32]; hashes] }
}

fn contents(revision: u64, objects: Vec<Object>) -> Contents {
    Contents { revision, licence: None, objects }
}

fn manifest(revision: u64) -> Manifest {
    let file =
        contents(revision, vec![object("gocryptfs.conf", 1), object("weights", 3 * CHUNK_LEN)]).sign(&key());
    Manifest::parse(&file.unwrap()).unwrap()
}

fn vector_contents() -> Contents {
    let licence = &VECTORS["licence"];
    let objects = VECTORS["objects"].as_array().unwrap();
    Contents {
        revision: VECTORS["revision"].as_u64().unwrap(),
        licence: Some(Licence {
            id: text(licence, "id").into(),
            licensee: text(licence, "licensee").into(),
            policy: text(licence, "policy").into(),
            text: text(licence, "text").into(),
            not_before: licence["not_before"].as_u64(),
            not_after: licence["not_after"].as_u64(),
        }),
        objects: objects
            .iter()
            .map(|object| Object {
                path: text(object, "path").into(),
                len: object["len"].as_u64().unwrap(),
                hashes: object["hashes"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|hash| hex::decode(hash.as_str().unwrap()).unwrap().try_into().unwrap())
                    .collect(),
            })
            .collect(),
    }
}

// ---- Frozen bytes --------------------------------------------------------------------------------------------------

#[test]
fn manifest_made_without_cai_is_read_and_written_byte_for_byte() {
    let file = bytes(&VECTORS, "manifest");
    let manifest = Manifest::parse(&file).unwrap();
    assert_eq!(manifest.contents(), &vector_contents());
    assert_eq!(manifest.publisher().to_string(), text(&VECTORS, "public_key"));
    assert_eq!(manifest.identity().to_string(), text(&VECTORS, "identity"));
    assert_eq!(hex::encode(vector_contents().sign(&key()).unwrap()), hex::encode(file));
}

#[test]
fn fields_of_later_versions_are_passed_over_unless_they_are_critical() {
    let passed = Manifest::parse(&bytes(&VECTORS, "with_a_field_to_pass_over")).unwrap();
    assert_eq!(passed.contents(), &vector_contents());
    assert_ne!(passed.identity().to_string(), text(&VECTORS, "identity"), "it is signed with the rest");
    let refused = Manifest::parse(&bytes(&VECTORS, "with_a_field_that_must_be_known"));
    assert!(matches!(refused, Err(ManifestError::UnknownField { tag: 0x8002 })), "{refused:?}");
}

#[test]
fn chunk_hashes_and_roots_are_those_of_the_vectors() {
    for vector in VECTORS["objects"].as_array().unwrap() {
        let len = vector["len"].as_u64().unwrap();
        let content: Vec<u8> = (0..=250).cycle().take(usize::try_from(len).unwrap()).collect();
        let object =
            vector_contents().objects.into_iter().find(|o| o.path == Path::new(text(vector, "path")));
        let object = object.unwrap();
        assert_eq!(hex::encode(object.root()), text(vector, "root"), "{}", object.path.display());
        for (chunk, hash) in (0..).zip(&object.hashes) {
            let start = usize::try_from(chunk * CHUNK_LEN).unwrap();
            let end = content.len().min(start + usize::try_from(CHUNK_LEN).unwrap());
            let mut hasher = ChunkHasher::new(len, chunk);
            hasher.update(&content[start..end]);
            assert_eq!(hasher.finish(), *hash);
            assert!(object.is_chunk(chunk, content[start..end].chunks(70_001)));
        }
    }
}

#[test]
fn chunk_is_itself_only_whole_and_in_its_place() {
    let content: Vec<u8> = (0..=250).cycle().take(usize::try_from(2 * CHUNK_LEN + 10).unwrap()).collect();
    let step = usize::try_from(CHUNK_LEN).unwrap();
    let pieces: Vec<&[u8]> = content.chunks(step).collect();
    let len = content.len() as u64;
    let hashes = (0..).zip(&pieces).map(|(chunk, piece)| {
        let mut hasher = ChunkHasher::new(len, chunk);
        hasher.update(piece);
        hasher.finish()
    });
    let object = Object { path: "x".into(), len, hashes: hashes.collect() };
    let is = |chunk, bytes: &[u8]| object.is_chunk(chunk, std::iter::once(bytes));
    assert!(is(0, pieces[0]) && is(1, pieces[1]) && is(2, pieces[2]));
    assert!(!is(1, pieces[0]) && !is(0, pieces[1]) && !is(3, pieces[2]) && !is(u64::MAX, b""));
    assert!(!is(2, &pieces[2][..9]) && !is(2, &content[2 * step - 1..]) && !is(0, &content[..step + 1]));
    let mut flipped = pieces[1].to_vec();
    flipped[77] ^= 1;
    assert!(!is(1, &flipped));
}

// ---- Hostile bytes -------------------------------------------------------------------------------------------------

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let file = bytes(&VECTORS, "manifest");
    for len in 0..file.len() {
        assert!(Manifest::parse(&file[..len]).is_err(), "{len} bytes");
    }
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::parse(&flipped).is_err(), "bit {bit}");
    }
    let longer = [&file[..], &[0]].concat();
    assert!(matches!(Manifest::parse(&longer), Err(ManifestError::Signature)));
}

#[test]
fn signature_of_another_use_of_the_key_is_refused() {
    let file = bytes(&VECTORS, "manifest");
    let (body, signature) = file.split_last_chunk::<64>().unwrap();
    let pem = text(&VECTORS, "private_key");
    let der = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).unwrap();
    let parse = |message: &[u8]| Manifest::parse(&[body, pair.sign(message).as_ref()].concat());
    let identity = bytes(&VECTORS, "identity");
    let signed = |domain: &str| [domain.as_bytes(), &identity].concat();
    // The right message gives the very signature; any other message of the same key is about something else.
    assert_eq!(pair.sign(&signed("cai-manifest 1 signature\0")).as_ref(), signature);
    assert!(parse(&signed("cai-manifest 1 signature\0")).is_ok());
    for message in [identity.clone(), body.to_vec(), signed("cai-manifest 2 signature\0"), signed("")] {
        assert!(matches!(parse(&message), Err(ManifestError::Signature)));
    }
}

#[test]
fn contents_that_no_manifest_may_have_cannot_be_signed_and_so_not_read() {
    let sign = |objects| contents(1, objects).sign(&key());
    assert!(matches!(sign(vec![]), Err(ManifestError::Objects { count: 0 })));
    assert!(matches!(contents(0, vec![object("a", 1)]).sign(&key()), Err(ManifestError::Revision)));
    let long = "x".repeat(256);
    let deep = vec!["d".repeat(250); 17].join("/");
    for path in ["", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a/.", "a\0b", NAME, &long, &deep] {
        let refused = sign(vec![object(path, 1)]);
        assert!(matches!(refused, Err(ManifestError::Path { .. })), "{path:?}: {refused:?}");
    }
    for pair in [["b", "a"], ["a", "a"], ["a/b", "a-b"]] {
        let refused = sign(pair.map(|path| object(path, 1)).to_vec());
        assert!(matches!(refused, Err(ManifestError::Order { .. })), "{pair:?}: {refused:?}");
    }
    // As many hashes as the length asks for, no more and no fewer.
    for (len, hashes) in [(1, 2), (CHUNK_LEN + 1, 1), (u64::MAX, 1)] {
        let wrong = Object { path: "a".into(), len, hashes: vec![[0; 32]; hashes] };
        assert!(sign(vec![wrong]).is_err(), "{len} bytes, {hashes} hashes");
    }
    let licence = Licence {
        id: "a\nb".into(),
        licensee: "c".into(),
        policy: String::new(),
        text: String::new(),
        not_before: None,
        not_after: None,
    };
    let licensed = Contents { licence: Some(licence), ..contents(1, vec![object("a", 1)]) };
    assert!(matches!(licensed.sign(&key()), Err(ManifestError::Licence { .. })));
}

#[test]
fn file_over_the_bound_is_refused_before_it_is_looked_at() {
    let huge = vec![0; usize::try_from(Manifest::largest()).unwrap() + 1];
    assert!(matches!(Manifest::parse(&huge), Err(ManifestError::TooLarge)));
    assert!(matches!(Manifest::parse(&huge[1..]), Err(ManifestError::Magic)));
}

fn any_object() -> impl Strategy<Value = (Vec<String>, u64)> {
    (prop::collection::vec("[a-zA-Z0-9_-]{1,12}", 1..4), 0..5 * CHUNK_LEN)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn signed_contents_come_back_as_they_were(
        revision in 1..=u64::MAX,
        objects in prop::collection::vec(any_object(), 1..8),
        seed in any::<u8>(),
    ) {
        let mut objects: Vec<Object> = objects
            .into_iter()
            .map(|(path, len)| object(&path.join("/"), len))
            .collect();
        objects.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
        objects.dedup_by(|a, b| a.path == b.path);
        objects.iter_mut().for_each(|object| object.hashes.iter_mut().for_each(|hash| hash[0] = seed));
        let contents = contents(revision, objects);
        let parsed = Manifest::parse(&contents.sign(&key()).unwrap()).unwrap();
        prop_assert_eq!(parsed.contents(), &contents);
        for object in &contents.objects {
            prop_assert_eq!(parsed.object(&object.path), Some(object));
        }
        prop_assert_eq!(parsed.object(Path::new("no such path")), None);
    }

    #[test]
    fn bytes_of_anybody_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Manifest::parse(&bytes).is_err());
        prop_assert!(Manifest::parse(&[b"cai-manifest 1\r\n", &bytes[..]].concat()).is_err());
    }
}

// ---- Directories ---------------------------------------------------------------------------------------------------

fn signed_directory() -> (tempfile::TempDir, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str, bytes: &[u8]| fs::write(dir.path().join(path), bytes).unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    put("gocryptfs.conf", b"{}");
    put("empty", b"");
    put("sub/one", b"one");
    put("sub-two", b"two");
    put("large", &vec![3; usize::try_from(2 * CHUNK_LEN + 5).unwrap()]);
    let objects = list(dir.path()).unwrap().objects(dir.path(), &|_| {}).unwrap();
    write(dir.path(), &contents(1, objects).sign(&key()).unwrap()).unwrap();
    let manifest = read(dir.path()).unwrap().unwrap();
    (dir, manifest)
}

#[test]
fn directory_is_signed_with_every_file_but_the_manifest_and_is_what_was_signed() {
    let (dir, manifest) = signed_directory();
    let paths: Vec<_> =
        manifest.contents().objects.iter().map(|object| object.path.to_str().unwrap()).collect();
    assert_eq!(paths, ["empty", "gocryptfs.conf", "large", "sub-two", "sub/one"]);
    let content = fs::read(dir.path().join("large")).unwrap();
    assert_eq!(manifest.object(Path::new("large")).unwrap().root(), *blake3::hash(&content).as_bytes());
    let hashed = std::sync::atomic::AtomicU64::new(0);
    let advanced = |bytes| {
        hashed.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    };
    assert_eq!(compare(dir.path(), &manifest, &advanced).unwrap(), []);
    assert_eq!(hashed.into_inner(), 2 + 3 + 3 + 2 * CHUNK_LEN + 5);
    // Signing again changes nothing but the manifest, which is not in itself.
    write(dir.path(), &manifest.contents().sign(&key()).unwrap()).unwrap();
    assert_eq!(compare(dir.path(), &manifest, &|_| {}).unwrap(), []);
}

#[test]
fn cut_changed_swapped_missing_and_added_files_are_each_named() {
    let (dir, manifest) = signed_directory();
    let path = |name: &str| dir.path().join(name);
    let mut large = fs::read(path("large")).unwrap();
    large[usize::try_from(CHUNK_LEN).unwrap()] ^= 1;
    *large.last_mut().unwrap() ^= 1;
    fs::write(path("large"), large).unwrap();
    fs::write(path("empty"), b"not").unwrap();
    fs::remove_file(path("gocryptfs.conf")).unwrap();
    fs::rename(path("sub-two"), path("aside")).unwrap();
    fs::rename(path("sub/one"), path("sub-two")).unwrap();
    fs::rename(path("aside"), path("sub/one")).unwrap();
    fs::write(path("sub/more"), b"").unwrap();
    let differences = compare(dir.path(), &manifest, &|_| {}).unwrap();
    let swapped = |path: &str| Difference::Content { path: path.into(), chunk: 0, chunks: 1 };
    assert_eq!(
        differences,
        [
            Difference::Length { path: "empty".into(), wanted: 0, found: 3 },
            Difference::Missing { path: "gocryptfs.conf".into() },
            Difference::Content { path: "large".into(), chunk: 1, chunks: 2 },
            Difference::Extra { path: "sub/more".into() },
            swapped("sub/one"),
            swapped("sub-two"),
        ]
    );
}

#[test]
fn symlinks_and_special_files_are_listed_apart() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let listing = list(dir.path()).unwrap();
    assert_eq!(listing.files.into_iter().collect::<Vec<_>>(), [(PathBuf::from("file"), 1)]);
    assert_eq!(listing.others, [PathBuf::from("fifo"), PathBuf::from("link")]);
    assert!(matches!(read(dir.path()), Ok(None)));
    fs::write(dir.path().join(NAME), b"no manifest").unwrap();
    assert!(matches!(read(dir.path()), Err(ManifestError::Cut)));
}

#[test]
fn list_of_objects_must_hold_all_that_is_named_and_may_hold_more() {
    let manifest = manifest(1);
    let check = |objects: &[(&str, u64)]| {
        manifest.check_list(objects.iter().map(|(path, len)| (Path::new(*path), *len)))
    };
    let large = 3 * CHUNK_LEN;
    assert_eq!(check(&[("weights", large), ("README", 5), ("gocryptfs.conf", 1)]), Ok(()));
    assert_eq!(
        check(&[("weights", large - 1), ("gocryptfs.conf", 1)]),
        Err(PolicyError::Objects {
            count: 1,
            first: format!("weights with {} bytes instead of {large}", large - 1)
        })
    );
    assert_eq!(
        check(&[("weights", 4)]),
        Err(PolicyError::Objects { count: 2, first: "gocryptfs.conf, which is missing".into() })
    );
}

// ---- The policy ----------------------------------------------------------------------------------------------------

const NOTHING: Pin = Pin { publisher: None, identity: None };

fn policy(pin: Pin, seen: Option<Seen>) -> Policy<'static> {
    Policy { pin, seen, now: None, attestation_policy: "default" }
}

fn seen(manifest: &Manifest) -> Seen {
    Seen {
        publisher: manifest.publisher(),
        revision: manifest.contents().revision,
        identity: manifest.identity(),
    }
}

fn pin_key(key: PublicKey) -> Pin {
    Pin { publisher: Some(key), identity: None }
}

fn pin_identity(identity: Identity) -> Pin {
    Pin { publisher: None, identity: Some(identity) }
}

#[test]
fn model_without_a_manifest_is_accepted_with_a_notice_until_one_was_seen_or_asked_for() {
    let origin = policy(NOTHING, None).judge(None).unwrap();
    let notice = Some("model origin not authenticated: it has no signed manifest".to_owned());
    assert_eq!(origin, Origin { seen: None, notice });
    let before = manifest(4);
    assert_eq!(policy(NOTHING, Some(seen(&before))).judge(None), Err(PolicyError::Gone { revision: 4 }));
    for pin in [pin_key(before.publisher()), pin_identity(before.identity())] {
        assert_eq!(policy(pin, None).judge(None), Err(PolicyError::Required));
        assert_eq!(policy(pin, Some(seen(&before))).judge(None), Err(PolicyError::Required));
    }
}

#[test]
fn pinned_model_is_accepted_without_a_notice_and_any_other_refused() {
    let model = manifest(4);
    let accepted = Origin { seen: Some(seen(&model)), notice: None };
    let both = Pin { publisher: Some(model.publisher()), identity: Some(model.identity()) };
    for pin in [pin_key(model.publisher()), pin_identity(model.identity()), both] {
        assert_eq!(policy(pin, None).judge(Some(&model)), Ok(accepted.clone()));
    }
    let other = other_key().public();
    assert_eq!(
        policy(pin_key(other), None).judge(Some(&model)),
        Err(PolicyError::OtherPublisher { wanted: other, found: model.publisher() })
    );
    let wanted = manifest(5).identity();
    assert_eq!(
        policy(pin_identity(wanted), None).judge(Some(&model)),
        Err(PolicyError::OtherIdentity { wanted, found: model.identity() })
    );
}

#[test]
fn unpinned_publisher_is_remembered_and_said_not_to_be_authenticated() {
    let model = manifest(4);
    let origin = policy(NOTHING, None).judge(Some(&model)).unwrap();
    assert_eq!(origin.seen, Some(seen(&model)));
    let notice = origin.notice.unwrap();
    assert!(notice.starts_with("model origin not authenticated: it is signed by A6EHv/"), "{notice}");
    let forged = contents(9, vec![object("a", 1)]).sign(&other_key()).unwrap();
    let forged = Manifest::parse(&forged).unwrap();
    assert_eq!(
        policy(NOTHING, Some(seen(&model))).judge(Some(&forged)),
        Err(PolicyError::OtherPublisher { wanted: model.publisher(), found: forged.publisher() })
    );
    // The operator pins the new key: its revisions count from here on, also where they are lower.
    let low = contents(1, vec![object("a", 1)]).sign(&other_key()).unwrap();
    let low = Manifest::parse(&low).unwrap();
    let judged = policy(pin_key(low.publisher()), Some(seen(&model))).judge(Some(&low));
    assert_eq!(judged, Ok(Origin { seen: Some(seen(&low)), notice: None }));
}

#[test]
fn revision_never_decreases_and_one_revision_is_one_model() {
    let (three, four, five) = (manifest(3), manifest(4), manifest(5));
    let judge = |model| policy(pin_key(four.publisher()), Some(seen(&four))).judge(Some(model));
    assert_eq!(judge(&three), Err(PolicyError::RolledBack { seen: 4, found: 3 }));
    assert_eq!(judge(&four).unwrap().seen, Some(seen(&four)));
    assert_eq!(judge(&five).unwrap().seen, Some(seen(&five)));
    let twin = contents(4, vec![object("other", 1)]).sign(&key()).unwrap();
    let twin = Manifest::parse(&twin).unwrap();
    let replaced = PolicyError::Replaced { revision: 4, seen: four.identity(), found: twin.identity() };
    assert_eq!(judge(&twin), Err(replaced));
}

#[test]
fn licence_is_held_against_the_time_and_policy_of_the_attestation() {
    let model = Manifest::parse(&bytes(&VECTORS, "manifest")).unwrap();
    let judge = |secs: Option<u64>, attestation_policy| {
        let now: Option<SystemTime> = secs.map(|secs| UNIX_EPOCH + Duration::from_secs(secs));
        let policy = Policy { pin: NOTHING, seen: None, now, attestation_policy };
        policy.judge(Some(&model)).map(drop)
    };
    assert_eq!(judge(Some(1_767_225_600), "default"), Ok(()));
    assert_eq!(judge(Some(1_798_761_599), "default"), Ok(()));
    let id = || "LD-0001".to_owned();
    let early = judge(Some(1_767_225_599), "default").unwrap_err();
    assert_eq!(early, PolicyError::NotYetValid { id: id(), from: 1_767_225_600 });
    assert_eq!(early.to_string(), "licence LD-0001 is not valid before 2026-01-01T00:00:00Z");
    let late = judge(Some(1_798_761_600), "default").unwrap_err();
    assert_eq!(late, PolicyError::Expired { id: id(), until: 1_798_761_599 });
    assert_eq!((late.class(), late.code()), (ErrorClass::Denied, "licence.expired"));
    assert_eq!(judge(None, "default"), Err(PolicyError::NoTime { id: id() }));
    let other = PolicyError::OtherPolicy { id: id(), asks: "default".into(), has: "lax".into() };
    assert_eq!(judge(Some(1_780_000_000), "lax"), Err(other));
}

#[test]
fn licence_file_is_read_from_toml() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "id = \"a\"\nlicensee = \"b\"\nnot_after = 2026-12-31\n").unwrap();
    assert_eq!(read_licence(file.path()).unwrap().not_after, Some(1_798_761_599));
    fs::write(file.path(), "id = \"a\"").unwrap();
    let error = read_licence(file.path()).unwrap_err();
    assert_eq!((error.class(), error.code()), (ErrorClass::Config, "licence.text"));
}
