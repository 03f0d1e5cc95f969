//! The model owner's tools as commands: encrypt, verify, passwd, keygen, manifest; judged by the real gocryptfs where it can.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cai::gocryptfs::{Conf, LocalDir, Passphrase, Tree, read_passfile, unlock};
use common::wait_until;
use tempfile::TempDir;

const MANIFEST: &str = "gocryptfs.longname.cai-manifest.name";

fn gocryptfs_available() -> bool {
    let binary = Command::new("gocryptfs").arg("-version").output();
    let present = binary.is_ok_and(|output| output.status.success()) && Path::new("/dev/fuse").exists();
    common::available("gocryptfs", present, "no gocryptfs binary or no /dev/fuse")
}

/// A directory with a source `model`, the password files `old` and `new`, and a key pair `key`, `key.pub`.
struct Owner {
    dir: TempDir,
}

impl Owner {
    fn new() -> Self {
        let owner = Owner { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(owner.path("model/sub")).unwrap();
        fs::write(owner.path("model/config.json"), b"{}").unwrap();
        fs::write(owner.path("model/weights"), pattern(600_000)).unwrap();
        fs::write(owner.path("model/sub").join("n".repeat(200)), b"long").unwrap();
        fs::write(owner.path("old"), b"old password\n").unwrap();
        fs::write(owner.path("new"), b"new password\n").unwrap();
        owner
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cai(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cai"));
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Standard output of a command that must succeed.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.cai(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn encrypted() -> Self {
        let owner = Owner::new();
        owner.done(&["encrypt", "model", "cipher", "--passfile", "old"]);
        owner
    }

    /// Exit status and standard output of `cai verify`.
    fn verify(&self, more: &[&str]) -> (Option<i32>, String) {
        let output = self.cai(&[&["verify", "cipher", "--passfile", "old"], more].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Where `name` of the model lies in `cipher`, relative to it.
    fn stored(&self, name: &str) -> PathBuf {
        let source = LocalDir::open(&self.path("cipher")).unwrap();
        let passphrase = Passphrase::from_secret(&read_passfile(&self.path("old")).unwrap()).unwrap();
        let keys = unlock(&Conf::read_from(&source).unwrap(), &passphrase).unwrap();
        let tree = Tree::build(&source, &keys).unwrap();
        let at = Path::new(name).iter().fold(tree.root(), |at, name| tree.lookup(at, name).unwrap().id);
        let entry = tree.node(at).unwrap().entry.unwrap();
        cai::ciphertext::Ciphertext::entries(&source)[entry.0 as usize].path.clone()
    }

    /// Mount `cipher` with the real gocryptfs while `look` looks at it.
    fn with_gocryptfs(&self, passfile: &str, look: impl FnOnce(&Path)) {
        let point = self.path("point");
        fs::create_dir_all(&point).unwrap();
        let device = fs::metadata(&point).unwrap().dev();
        let mut daemon = Command::new("gocryptfs")
            .args(["-q", "-ro", "-fg", "-passfile"])
            .args([self.path(passfile), self.path("cipher"), point.clone()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("gocryptfs to mount", || {
            assert!(daemon.try_wait().unwrap().is_none(), "gocryptfs ended");
            fs::metadata(&point).unwrap().dev() != device
        });
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&point)));
        assert!(Command::new("umount").arg(&point).status().unwrap().success());
        daemon.wait().unwrap();
        looked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn fsck(&self, passfile: &str) -> Option<i32> {
        let mut command = Command::new("gocryptfs");
        command.args(["-q", "-fsck", "-passfile"]).args([self.path(passfile), self.path("cipher")]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().code()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 4096) as u8).collect()
}

fn same_tree(left: &Path, right: &Path) {
    let diff = Command::new("diff").arg("-r").args([left, right]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

// ---- encrypt -------------------------------------------------------------------------------------------------------

#[test]
fn encrypt_killed_in_the_middle_goes_on_and_gocryptfs_reads_the_result() {
    if !gocryptfs_available() {
        return;
    }
    let owner = Owner::new();
    let large = File::create(owner.path("model/large")).unwrap();
    for piece in 0..192_u64 {
        large.write_all_at(&vec![u8::try_from(piece).unwrap(); 1 << 20], piece << 20).unwrap();
    }
    let partial = owner.path("cipher.partial");
    let written = || -> u64 {
        let Ok(entries) = fs::read_dir(&partial) else { return 0 };
        entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    };
    let command = ["encrypt", "model", "cipher", "--passfile", "old"];
    let mut run = owner.command(&command).stdout(Stdio::null()).spawn().unwrap();
    wait_until("some of it to be written", || written() > 8 << 20);
    run.kill().unwrap();
    run.wait().unwrap();
    assert!(
        !owner.path("cipher").exists(),
        "half of it has the final name, or the machine is too fast for this test"
    );
    assert!(!partial.join("gocryptfs.conf").exists(), "half of it could be mounted");

    let said = owner.done(&command);
    let line = said.lines().find(|line| line.contains("from an interrupted run")).expect("what was kept");
    let kept: u64 = line.split(' ').next().unwrap().parse().unwrap();
    assert!(kept >= 4 << 20, "{kept} bytes kept");
    assert!(!partial.exists());
    owner.with_gocryptfs("old", |point| same_tree(&owner.path("model"), point));
    assert_eq!(owner.fsck("old"), Some(0));
}

#[test]
fn encrypt_of_a_lone_directory_says_what_the_mount_will_look_like() {
    let owner = Owner::new();
    fs::create_dir(owner.path("above")).unwrap();
    fs::rename(owner.path("model"), owner.path("above/Qwen2.5-3B")).unwrap();
    let output = owner.cai(&["encrypt", "above", "cipher", "--passfile", "old"]);
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("/tmp/model/Qwen2.5-3B/config.json"), "{said}");
    assert!(said.contains("encrypt above/Qwen2.5-3B instead"), "{said}");
    let output = owner.cai(&["encrypt", "above/Qwen2.5-3B", "good", "--passfile", "old"]);
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn encrypt_leaves_out_what_is_excluded_and_refuses_a_bad_pattern_before_anything() {
    if !gocryptfs_available() {
        return;
    }
    let owner = Owner::new();
    let bad = owner.cai(&["encrypt", "model", "cipher", "--passfile", "old", "--exclude", "[x"]);
    assert_eq!(bad.status.code(), Some(78));
    assert!(!owner.path("cipher.partial").exists());
    owner.done(&[
        "encrypt",
        "model",
        "cipher",
        "--passfile",
        "old",
        "--exclude",
        "sub",
        "--exclude",
        "*.json",
    ]);
    owner.with_gocryptfs("old", |point| {
        let names: Vec<_> = fs::read_dir(point).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["weights"]);
    });
}

// ---- verify --------------------------------------------------------------------------------------------------------

#[test]
fn verify_of_a_sound_directory_counts_it_and_says_what_it_cannot_see() {
    let owner = Owner::encrypted();
    let (status, said) = owner.verify(&[]);
    assert_eq!(status, Some(0));
    assert_eq!(
        said,
        "cipher: 3 files, 600006 bytes, every block and every name is sound\n\
         there is no manifest: cut, swapped, missing and rolled-back files cannot be seen\n"
    );
    let wrong = owner.cai(&["verify", "cipher", "--passfile", "new"]);
    assert_eq!(wrong.status.code(), Some(78));
}

#[test]
fn verify_lists_every_damage_with_both_paths_and_the_block() {
    let owner = Owner::encrypted();
    let cipher = owner.path("cipher");
    let (weights, config, sub) = (owner.stored("weights"), owner.stored("config.json"), owner.stored("sub"));
    edit(&cipher.join(&weights), |bytes| {
        bytes[18 + 5 * 4128 + 50] ^= 1;
        // Two neighbours, far behind; the second piece of the file.
        bytes[18 + 140 * 4128 + 50] ^= 1;
        bytes[18 + 141 * 4128 + 50] ^= 1;
    });
    edit(&cipher.join(&config), |bytes| bytes.truncate(17));
    fs::write(cipher.join("stranger"), b"x").unwrap();
    let (status, said) = owner.verify(&[]);
    assert_eq!(status, Some(65));
    let mut expected = [
        format!("weights ({}): block 5: block does not authenticate", weights.display()),
        format!("weights ({}): blocks 140 to 141: block does not authenticate", weights.display()),
        format!(
            "config.json ({}): cut to 17 bytes, which is no whole block: it would read as empty",
            config.display()
        ),
        "stranger: undecryptable name: encrypted name is not 16 to 256 bytes in whole blocks".to_owned(),
    ];
    let mut lines: Vec<_> = said.lines().collect();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected);

    let owner_iv = cipher.join(&sub).join("gocryptfs.diriv");
    fs::remove_file(owner_iv).unwrap();
    let (status, said) = owner.verify(&[]);
    assert_eq!(status, Some(65));
    assert!(said.contains(&format!("{}: directory without gocryptfs.diriv\n", sub.display())), "{said}");
}

#[test]
fn verify_lists_long_names_without_their_text_and_texts_without_their_object() {
    let owner = Owner::encrypted();
    let object = owner.stored(&format!("sub/{}", "n".repeat(200)));
    let text = PathBuf::from(format!("{}.name", object.display()));
    let moved = owner.path("moved");
    fs::rename(owner.path("cipher").join(&text), &moved).unwrap();
    let (status, said) = owner.verify(&[]);
    assert_eq!(
        (status, said),
        (Some(65), format!("{}: long name without its .name file\n", object.display()))
    );
    fs::rename(&moved, owner.path("cipher").join(&text)).unwrap();
    fs::remove_file(owner.path("cipher").join(&object)).unwrap();
    let (status, said) = owner.verify(&[]);
    assert_eq!((status, said), (Some(65), format!("{}: .name file without its object\n", text.display())));
}

#[test]
fn verify_warns_of_holes_and_names_a_bad_header_as_every_block_of_its_file() {
    let owner = Owner::encrypted();
    let weights = owner.stored("weights");
    edit(&owner.path("cipher").join(&weights), |bytes| bytes[18 + 4128..18 + 2 * 4128].fill(0));
    let output = owner.cai(&["verify", "cipher", "--passfile", "old"]);
    assert_eq!(output.status.code(), Some(0));
    let warned = String::from_utf8(output.stderr).unwrap();
    assert!(warned.contains("weights has 1 blocks that are holes"), "{warned}");
    edit(&owner.path("cipher").join(&weights), |bytes| bytes[1] = 3);
    let (status, said) = owner.verify(&[]);
    let expected = format!("weights ({}): blocks 0 to 146: file header has version 3\n", weights.display());
    assert_eq!((status, said), (Some(65), expected));
}

// ---- passwd --------------------------------------------------------------------------------------------------------

#[test]
fn passwd_gives_a_directory_that_gocryptfs_opens_with_the_new_password_only() {
    if !gocryptfs_available() {
        return;
    }
    let owner = Owner::encrypted();
    let before = fs::read(owner.path("cipher/gocryptfs.conf")).unwrap();
    owner.done(&["passwd", "cipher", "--passfile", "old", "--new-passfile", "new"]);
    owner.with_gocryptfs("new", |point| same_tree(&owner.path("model"), point));
    assert_eq!(owner.fsck("old"), Some(12), "wrong password");
    assert_eq!(owner.fsck("new"), Some(0), "no file is left over");
    let after = fs::read(owner.path("cipher/gocryptfs.conf")).unwrap();
    assert_ne!(before, after);
    assert_eq!(fs::metadata(owner.path("cipher/gocryptfs.conf")).unwrap().mode() & 0o777, 0o400);
}

#[test]
fn passwd_keeps_the_flags_and_cost_of_a_conf_that_gocryptfs_made() {
    if !gocryptfs_available() {
        return;
    }
    let owner = Owner::new();
    fs::create_dir(owner.path("cipher")).unwrap();
    let status = Command::new("gocryptfs")
        .args(["-q", "-init", "-scryptn", "11", "-passfile", "old", "cipher"])
        .current_dir(owner.dir.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let read = || -> serde_json::Value {
        serde_json::from_slice(&fs::read(owner.path("cipher/gocryptfs.conf")).unwrap()).unwrap()
    };
    let before = read();
    owner.done(&["passwd", "cipher", "--passfile", "old", "--new-passfile", "new"]);
    let after = read();
    for field in ["Creator", "Version", "FeatureFlags"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    assert_eq!(after["ScryptObject"]["N"], 2048);
    assert_ne!(before["ScryptObject"]["Salt"], after["ScryptObject"]["Salt"]);
    assert_eq!(owner.fsck("new"), Some(0));
}

#[test]
fn passwd_with_a_wrong_old_password_changes_nothing_and_leftovers_are_cleared_by_a_right_one() {
    let owner = Owner::encrypted();
    let conf = owner.path("cipher/gocryptfs.conf");
    let before = fs::read(&conf).unwrap();
    fs::write(owner.path("cipher/gocryptfs.conf.bak"), b"left by an interrupted run").unwrap();
    fs::write(owner.path("cipher/gocryptfs.conf.new"), b"{").unwrap();
    let wrong = owner.cai(&["passwd", "cipher", "--passfile", "new", "--new-passfile", "old"]);
    assert_eq!(wrong.status.code(), Some(78));
    assert_eq!(fs::read(&conf).unwrap(), before);
    assert!(owner.path("cipher/gocryptfs.conf.bak").exists(), "it may be the only conf that opens");
    owner.done(&["passwd", "cipher", "--passfile", "old", "--new-passfile", "new"]);
    let mut names: Vec<_> =
        fs::read_dir(owner.path("cipher")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name.to_str().unwrap().starts_with("gocryptfs.conf"));
    assert_eq!(names, ["gocryptfs.conf"]);
    owner.done(&["check-key", "cipher", "--passfile", "new"]);
}

// ---- keygen and manifest -------------------------------------------------------------------------------------------

#[test]
fn encrypt_with_a_key_signs_and_gocryptfs_does_not_mind() {
    if !gocryptfs_available() {
        return;
    }
    let owner = Owner::new();
    let public = owner.done(&["keygen", "key"]);
    assert_eq!(fs::read_to_string(owner.path("key.pub")).unwrap(), public);
    let said =
        owner.done(&["encrypt", "model", "cipher", "--passfile", "old", "--sign", "key", "--revision", "5"]);
    assert!(said.contains(&format!("publisher_key = \"{}\"\n", public.trim())), "{said}");
    assert!(owner.path("cipher").join(MANIFEST).exists());
    owner.with_gocryptfs("old", |point| same_tree(&owner.path("model"), point));
    assert_eq!(owner.fsck("old"), Some(0), "gocryptfs passes over the manifest without a word");
    let (status, said) = owner.verify(&["--publisher", public.trim()]);
    assert_eq!(status, Some(0));
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("revision 5, model identity ")
            && last.ends_with(&format!("signed by {}", public.trim())),
        "{said}"
    );
}

#[test]
fn verify_with_a_manifest_finds_what_the_format_cannot_show() {
    let owner = Owner::encrypted();
    owner.done(&["keygen", "key"]);
    owner.done(&["manifest", "cipher", "--sign", "key"]);
    assert_eq!(owner.verify(&[]).0, Some(0));
    let cipher = owner.path("cipher");
    let weights = owner.stored("weights");
    let sound = fs::read(cipher.join(&weights)).unwrap();

    // Cut at a block border: shorter, and every block that is left opens.
    edit(&cipher.join(&weights), |bytes| bytes.truncate(18 + 100 * 4128));
    let (status, said) = owner.verify(&[]);
    let expected =
        format!("{}: has {} bytes, the manifest says {}\n", weights.display(), 18 + 100 * 4128, sound.len());
    assert_eq!((status, said), (Some(65), expected));

    // An older version of the same file, sealed by the same key: gocryptfs and the format see nothing.
    fs::rename(owner.path("model/weights"), owner.path("kept")).unwrap();
    fs::write(owner.path("model/weights"), vec![9; 600_000]).unwrap();
    fs::rename(&cipher, owner.path("cipher.partial")).unwrap();
    fs::rename(
        owner.path("cipher.partial/gocryptfs.conf"),
        owner.path("cipher.partial/gocryptfs.conf.unfinished"),
    )
    .unwrap();
    let manifest = fs::read(owner.path("cipher.partial").join(MANIFEST)).unwrap();
    owner.done(&["encrypt", "model", "cipher", "--passfile", "old"]);
    fs::write(cipher.join(MANIFEST), manifest).unwrap();
    let (status, said) = owner.verify(&[]);
    let expected = format!(
        "{}: is not the file of the manifest: 1 chunks of 8 MiB differ, the first is chunk 0\n",
        weights.display()
    );
    assert_eq!((status, said), (Some(65), expected));

    fs::remove_file(cipher.join(&weights)).unwrap();
    let (status, said) = owner.verify(&[]);
    assert_eq!(
        (status, said),
        (Some(65), format!("{}: is in the manifest and not there\n", weights.display()))
    );
    fs::write(cipher.join(&weights), sound).unwrap();
    assert_eq!(owner.verify(&[]).0, Some(0));
}

#[test]
fn verify_refuses_a_manifest_that_is_missing_damaged_or_of_somebody_else() {
    let owner = Owner::encrypted();
    owner.done(&["keygen", "key"]);
    let other = owner.done(&["keygen", "other"]);
    assert_eq!(owner.verify(&["--publisher", other.trim()]).1, format!("{MANIFEST}: there is no manifest\n"));
    owner.done(&["manifest", "cipher", "--sign", "key"]);
    let (status, said) = owner.verify(&["--publisher", other.trim()]);
    assert_eq!(status, Some(65));
    assert!(said.contains(&format!("not by {}", other.trim())), "{said}");
    let path = owner.path("cipher").join(MANIFEST);
    edit(&path, |bytes| bytes[60] ^= 1);
    let expected = format!("{MANIFEST}: the manifest's signature does not verify\n");
    assert_eq!(owner.verify(&[]), (Some(65), expected));
}

#[test]
fn manifest_counts_revisions_up_and_passwd_says_that_it_must_be_made_again() {
    let owner = Owner::encrypted();
    owner.done(&["keygen", "key"]);
    fs::write(owner.path("licence.toml"), "id = \"L-1\"\nlicensee = \"Example\"\nnot_after = 2030-01-01\n")
        .unwrap();
    let sign = ["manifest", "cipher", "--sign", "key", "--license", "licence.toml"];
    assert!(owner.done(&sign).contains("cipher: 7 files signed\nrevision 1, model identity "));
    assert!(owner.done(&sign).contains("\nrevision 2, model identity "));
    let lower = owner.cai(&[&sign[..], &["--revision", "2"]].concat());
    assert_eq!(lower.status.code(), Some(78));
    let output = owner.cai(&["passwd", "cipher", "--passfile", "old", "--new-passfile", "new"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("sign the directory again"));
    fs::copy(owner.path("new"), owner.path("old")).unwrap();
    assert_eq!(owner.verify(&[]).0, Some(65));
    owner.done(&sign);
    assert_eq!(owner.verify(&[]).0, Some(0));
    let plain = owner.cai(&["manifest", "model", "--sign", "key"]);
    assert_eq!(plain.status.code(), Some(78), "a directory without gocryptfs.conf is not an encrypted one");
    let unsigned = owner.cai(&["encrypt", "model", "again", "--passfile", "old", "--revision", "3"]);
    assert_eq!(unsigned.status.code(), Some(2), "a revision of nothing");
}

#[test]
fn directory_with_plain_names_gets_no_manifest() {
    if !gocryptfs_available() {
        return;
    }
    let owner = Owner::new();
    owner.done(&["keygen", "key"]);
    fs::create_dir(owner.path("plain-names")).unwrap();
    let init = Command::new("gocryptfs")
        .args(["-q", "-init", "-plaintextnames", "-scryptn", "10", "-passfile"])
        .args([owner.path("old"), owner.path("plain-names")])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(init.unwrap().success());
    let output = owner.cai(&["manifest", "plain-names", "--sign", "key"]);
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("-plaintextnames"), "{said}");
    assert!(!owner.path("plain-names").join(MANIFEST).exists());
}
