//! A machine that loses its power: whatever the file system had not been made to keep is gone. On a real ext4, shut down under the
//! running store by the call that its own test suite uses (`EXT4_IOC_SHUTDOWN` without a flush of the journal).

#[path = "common/chunks.rs"]
#[allow(dead_code)]
mod chunks;
mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use cai::store::{Filled, Object, Store};
use chunks::*;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// An ext4 of its own, mounted.
struct Disk {
    dir: TempDir,
}

impl Disk {
    /// `None`, with the reason printed, where no such disk can be made.
    fn new() -> Option<Disk> {
        let disk = Disk { dir: TempDir::new().unwrap() };
        fs::File::create(disk.image()).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(disk.point()).unwrap();
        let made = run(Command::new("mkfs.ext4").arg("-q").arg(disk.image())).and_then(|()| disk.mount());
        let why = made.as_ref().err().map_or("", String::as_str);
        common::available("root", made.is_ok(), why).then_some(disk)
    }

    fn image(&self) -> std::path::PathBuf {
        self.dir.path().join("image")
    }

    fn point(&self) -> std::path::PathBuf {
        self.dir.path().join("disk")
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(self.image()).arg(self.point()))
    }

    /// Nothing is written any more, by anybody.
    fn lose_power(&self) {
        // Source: fs/ext4/ext4.h, EXT4_IOC_SHUTDOWN and EXT4_GOING_FLAGS_NOLOGFLUSH.
        let script = "import fcntl, os, struct, sys\n\
                      fd = os.open(sys.argv[1], os.O_RDONLY)\n\
                      fcntl.ioctl(fd, 0x8004587D, struct.pack('I', 2))";
        run(Command::new("python3").args(["-c", script]).arg(self.point())).unwrap();
    }

    /// The power is back: the journal is replayed.
    fn restart(&self) {
        run(Command::new("umount").arg(self.point())).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(self.point()));
    }
}

/// Chunks that the saved maps in `dir` say are here.
fn marked(dir: &Path) -> u64 {
    let maps = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let maps = maps.filter(|path| path.extension().is_some_and(|extension| extension == "map"));
    // Source: the format in src/store/chunkmap.rs.
    let number = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let count = |map: Vec<u8>| {
        let (chunks, names) = (number(&map, 12), number(&map, 36) + number(&map, 48));
        let bits = &map[52 + names..52 + names + chunks.div_ceil(8)];
        bits.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
    };
    maps.map(|path| count(fs::read(path).unwrap())).sum()
}

fn source(objects: &[Object]) -> Arc<Faulty<Memory>> {
    Faulty::new(Memory::new(objects), |_, _, _| Fault::Hold)
}

#[test]
fn power_loss_costs_what_was_not_synced_and_never_a_wrong_byte() {
    let rt = runtime();
    let objects =
        [object("gocryptfs.conf", 300), object("w/1", 900 * CHUNK + 17), object("w/2", 400 * CHUNK)];
    let all = 1 + 901 + 400;
    // Before anything was saved; after a save, with more on the way; with nearly all of it.
    for (before, more) in [(0, 40), (300, 200), (900, 390)] {
        let Some(disk) = Disk::new() else { return };
        let dir = disk.point().join("cache");
        let first = source(&objects);
        let store = open(options(&dir, 4), &objects, first.clone(), &rt);
        let filling = rt.spawn({
            let store: Arc<Store> = store.clone();
            async move { store.fill(CancellationToken::new()).await }
        });
        first.release(before);
        eventually("a saved map", || marked(&dir) == before as u64);
        first.release(more);
        // Its chunk was fetched, so the ones before are with the file system, or at least four fetches later they are.
        first.wait_for(before + more);
        disk.lose_power();
        filling.abort();
        let _ = rt.block_on(filling);
        let _ = rt.block_on(store.close());
        drop(store);
        disk.restart();

        // What the maps say now was made durable before they said it.
        let kept = marked(&dir);
        assert!(kept >= before as u64, "{kept} of {before} that were saved");
        let second = source(&objects);
        second.release(all);
        let store = open(options(&dir, 4), &objects, second.clone(), &rt);
        assert_eq!(rt.block_on(store.fill(CancellationToken::new())).unwrap(), Filled::Complete);
        assert_content(&store, &objects);
        let fetched = second.fetched().len() as u64;
        assert!(fetched <= all as u64 - kept, "{fetched} chunks came again, with {kept} of {all} saved");
        rt.block_on(store.close()).unwrap();
        drop(store);
    }
}
