//! The mount as the kernel and its users see it: `cai mount` on a directory that `cai encrypt` made.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use common::{available, mounts_below, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Ciphertext block with its nonce and tag, and the file header before the first (gocryptfs format).
const SEALED: u64 = 4128;
const HEADER: u64 = 18;

fn cai() -> Command {
    Command::new(env!("CARGO_BIN_EXE_cai"))
}

/// A plaintext directory, its encryption, and a mount point.
struct Fixture {
    directory: tempfile::TempDir,
    daemon: Option<Child>,
    /// What it said until it served, and what it says since.
    said: Vec<String>,
    log: mpsc::Receiver<String>,
}

impl Fixture {
    /// `prepare` fills the plaintext, `damage` may touch the ciphertext before it is mounted.
    fn mount(prepare: impl FnOnce(&Path), damage: impl FnOnce(&Path)) -> Option<Self> {
        let ready = Path::new("/dev/fuse").exists() && nix::unistd::Uid::effective().is_root();
        if !available("fuse", ready, "needs /dev/fuse and root") {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("plain")).unwrap();
        fs::create_dir(path("mnt")).unwrap();
        fs::write(path("password"), "secret\n").unwrap();
        prepare(&path("plain"));
        let status = cai()
            .args(["encrypt", "--passfile"])
            .args([path("password"), path("plain"), path("cipher")])
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        damage(&path("cipher"));
        let mut daemon = cai()
            .args(["mount", "--passfile"])
            .args([path("password"), path("cipher"), path("mnt")])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(daemon.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut fixture = Fixture { directory, daemon: Some(daemon), said: Vec::new(), log };
        // Not until the mount is seen: before it says that it serves, a signal ends it in the middle of its start.
        wait_until("the daemon to serve", || {
            fixture.said.extend(fixture.log.try_recv());
            fixture.said.iter().any(|line| line.contains(" files at "))
        });
        assert_eq!(mounts_below(&fixture.path("mnt")), 1);
        Some(fixture)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mounted(&self, name: &str) -> PathBuf {
        self.path("mnt").join(name)
    }

    /// SIGTERM, and everything the daemon said.
    fn stop(&mut self) -> (Option<i32>, Vec<String>) {
        let mut daemon = self.daemon.take().unwrap();
        kill(Pid::from_raw(daemon.id() as i32), Signal::SIGTERM).unwrap();
        let status = daemon.wait().unwrap();
        (status.code(), self.said.drain(..).chain(self.log.iter()).collect())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = nix::mount::umount2(&self.path("mnt"), nix::mount::MntFlags::MNT_DETACH);
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Bytes that differ at every offset a block could be confused with.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8 ^ (at / 4096) as u8).collect()
}

/// The only regular file of the ciphertext that is not metadata.
fn only_data_file(cipher: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> = fs::read_dir(cipher).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !path.file_name().unwrap().to_str().unwrap().starts_with("gocryptfs."));
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn mount_shows_what_was_encrypted_and_sigterm_leaves_nothing() {
    let content = pattern(3 << 20);
    let prepare = |plain: &Path| {
        fs::write(plain.join("model.safetensors"), &content).unwrap();
        fs::create_dir(plain.join("empty dir")).unwrap();
        fs::write(plain.join("empty"), "").unwrap();
        std::os::unix::fs::symlink("model.safetensors", plain.join("link")).unwrap();
    };
    let Some(mut fixture) = Fixture::mount(prepare, |_| {}) else { return };
    assert_eq!(fs::read(fixture.mounted("model.safetensors")).unwrap(), content);
    assert_eq!(fs::read(fixture.mounted("link")).unwrap(), content);
    assert_eq!(fs::read(fixture.mounted("empty")).unwrap(), b"");
    assert_eq!(fs::read_dir(fixture.mounted("empty dir")).unwrap().count(), 0);
    let (plain, shown) = ("plain/model.safetensors", "mnt/model.safetensors");
    let (plain, shown) =
        (fs::metadata(fixture.path(plain)).unwrap(), fs::metadata(fixture.path(shown)).unwrap());
    assert_eq!((plain.len(), plain.mode(), plain.uid()), (shown.len(), shown.mode(), shown.uid()));
    assert_eq!((plain.mtime(), plain.mtime_nsec()), (shown.mtime(), shown.mtime_nsec()));

    let (status, log) = fixture.stop();
    assert_eq!(status, Some(0));
    assert_eq!(mounts_below(fixture.directory.path()), 0);
    let said = format!("2 files at {}, ", fixture.path("mnt").display());
    assert_eq!(log.len(), 1, "{log:?}");
    assert!(log[0].starts_with(&said) && log[0].ends_with("; unmount with Ctrl-C or SIGTERM"), "{log:?}");
}

#[test]
fn writing_of_every_kind_is_refused_with_erofs() {
    let Some(fixture) = Fixture::mount(|plain| fs::write(plain.join("file"), "x").unwrap(), |_| {}) else {
        return;
    };
    let erofs = Some(nix::libc::EROFS);
    let errors = [
        File::options().write(true).open(fixture.mounted("file")).map(drop),
        File::create(fixture.mounted("new")).map(drop),
        fs::create_dir(fixture.mounted("dir")),
        fs::remove_file(fixture.mounted("file")),
        fs::rename(fixture.mounted("file"), fixture.mounted("other")),
        std::os::unix::fs::symlink("x", fixture.mounted("link")),
        fs::set_permissions(fixture.mounted("file"), std::os::unix::fs::PermissionsExt::from_mode(0o777)),
    ];
    for (number, result) in errors.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().raw_os_error(), erofs, "operation {number}");
    }
}

#[test]
fn statfs_counts_the_plaintext_and_nothing_free() {
    let Some(fixture) =
        Fixture::mount(|plain| fs::write(plain.join("file"), pattern(10_000)).unwrap(), |_| {})
    else {
        return;
    };
    let stat = nix::sys::statvfs::statvfs(&fixture.path("mnt")).unwrap();
    assert_eq!((stat.blocks(), stat.blocks_free(), stat.blocks_available()), (3, 0, 0));
    assert_eq!((stat.block_size(), stat.name_max(), stat.files()), (4096, 255, 2));
}

#[test]
fn flipped_bit_is_eio_for_its_block_with_one_log_line_and_other_blocks_stay_readable() {
    let content = pattern(40 * 4096);
    let flip = |cipher: &Path| {
        let file = File::options().read(true).write(true).open(only_data_file(cipher)).unwrap();
        let at = HEADER + 20 * SEALED + 100;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    let prepare = |plain: &Path| fs::write(plain.join("weights"), &content).unwrap();
    let Some(mut fixture) = Fixture::mount(prepare, flip) else { return };
    let file = File::open(fixture.mounted("weights")).unwrap();
    let mut block = vec![0; 4096];
    for _ in 0..3 {
        let error = file.read_exact_at(&mut block, 20 * 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EIO));
    }
    for number in [0usize, 19, 21, 39] {
        file.read_exact_at(&mut block, number as u64 * 4096).unwrap();
        assert_eq!(block, content[number * 4096..][..4096], "block {number}");
    }
    drop(file);
    let (_, log) = fixture.stop();
    let damage: Vec<&String> = log.iter().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(damage.len(), 1, "{log:?}");
    assert!(
        damage[0].contains("weights, block 20: block 20 is corrupt: block does not authenticate"),
        "{damage:?}"
    );
}

#[test]
fn concurrent_readers_at_random_offsets_see_the_right_bytes() {
    let content = pattern(8 << 20);
    let prepare = |plain: &Path| fs::write(plain.join("weights"), &content).unwrap();
    let Some(fixture) = Fixture::mount(prepare, |_| {}) else { return };
    let path = fixture.mounted("weights");
    std::thread::scope(|scope| {
        for seed in 0..8u64 {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut random = seed * 0x9E37_79B9 + 1;
                for _ in 0..200 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let offset = (random >> 33) as usize % content.len();
                    let len = (random as usize % 70_000).min(content.len() - offset);
                    let mut buffer = vec![0; len];
                    file.read_exact_at(&mut buffer, offset as u64).unwrap();
                    assert!(buffer == content[offset..offset + len], "{len} bytes at {offset}");
                }
            });
        }
    });
}

#[test]
fn mapped_file_shows_the_right_bytes() {
    let content = pattern(1_000_001);
    let prepare = |plain: &Path| fs::write(plain.join("weights"), &content).unwrap();
    let Some(fixture) = Fixture::mount(prepare, |_| {}) else { return };
    // python3's mmap, as safetensors uses it: no unsafe mapping of our own, and a reader we did not write.
    let script = "import mmap,sys,hashlib; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); \
                  print(hashlib.sha256(m).hexdigest())";
    let sum = |path: &Path| {
        let output = Command::new("python3").args(["-c", script]).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(sum(&fixture.mounted("weights")), sum(&fixture.path("plain/weights")));
}

#[test]
fn second_open_is_answered_from_the_page_cache() {
    let content = pattern(4 << 20);
    let prepare = |plain: &Path| fs::write(plain.join("weights"), &content).unwrap();
    let Some(fixture) = Fixture::mount(prepare, |_| {}) else { return };
    assert_eq!(fs::read(fixture.mounted("weights")).unwrap(), content);
    // The ciphertext goes away: only cached pages can answer now.
    let data = only_data_file(&fixture.path("cipher"));
    File::options().write(true).open(&data).unwrap().set_len(0).unwrap();
    let mut again = Vec::new();
    File::open(fixture.mounted("weights")).unwrap().read_to_end(&mut again).unwrap();
    assert!(again == content);
}

#[test]
fn wrong_password_is_refused_with_status_78_and_no_mount() {
    let Some(mut fixture) = Fixture::mount(|plain| fs::write(plain.join("file"), "x").unwrap(), |_| {})
    else {
        return;
    };
    fixture.stop();
    fs::write(fixture.path("wrong"), "guess\n").unwrap();
    let output = cai()
        .args(["mount", "--passfile"])
        .args([fixture.path("wrong"), fixture.path("cipher"), fixture.path("mnt")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(mounts_below(fixture.directory.path()), 0);
}

#[test]
fn sigterm_with_an_open_file_still_leaves_no_mount() {
    let prepare = |plain: &Path| fs::write(plain.join("weights"), pattern(1 << 20)).unwrap();
    let Some(mut fixture) = Fixture::mount(prepare, |_| {}) else { return };
    let held = File::open(fixture.mounted("weights")).unwrap();
    let (status, log) = fixture.stop();
    assert_eq!(status, Some(0), "{log:?}");
    assert_eq!(mounts_below(fixture.directory.path()), 0);
    let mut byte = [0];
    assert_eq!(held.read_exact_at(&mut byte, 500_000).unwrap_err().raw_os_error(), Some(nix::libc::ENOTCONN));
}
