//! Local files read ahead as a whole, for readers that do not go from front to back: tensors are read by name.
//!
//! The bytes go into the kernel's page cache and nowhere else. One thread, which exists from the first wish on and ends
//! with its owner.

use std::fs::File;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::meminfo::MemInfo;

/// Shortest file that is read ahead, bytes: what is shorter, the kernel's own read-ahead gets in time.
pub const SHORTEST: u64 = 16 << 20;
/// Bytes asked for at a time, so that a thread that is to end need not finish a file.
const STEP: i64 = 8 << 20;
/// A file is not read ahead when it is longer than the available memory divided by this: it would push out what is needed.
const SHARE: u64 = 4;

/// Reads files ahead, one after the other.
#[derive(Debug, Default)]
pub struct ReadAhead {
    line: Mutex<Option<Line>>,
}

#[derive(Debug)]
struct Line {
    wishes: Sender<Wish>,
    /// What is queued or being read, so that the ranks of one job do not ask for it again and again.
    wanted: Arc<Mutex<Vec<u64>>>,
}

#[derive(Debug)]
struct Wish {
    key: u64,
    file: Arc<File>,
    len: u64,
}

impl ReadAhead {
    /// The file `key` of `len` bytes will be read whole soon. Returns at once.
    pub fn want(&self, key: u64, file: Arc<File>, len: u64) {
        if len < SHORTEST || MemInfo::read().is_ok_and(|memory| len > memory.available / SHARE) {
            return;
        }
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        if line.is_none() {
            *line = start();
        }
        let Some(Line { wishes, wanted }) = line.as_ref() else { return };
        let mut wanted = wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if !wanted.contains(&key) {
            wanted.push(key);
            // A thread that is gone reads nothing ahead, which is only slower.
            let _ = wishes.send(Wish { key, file, len });
        }
    }
}

/// Without a thread nothing is read ahead, which is only slower.
fn start() -> Option<Line> {
    let (wishes, queue) = channel::<Wish>();
    let wanted = Arc::new(Mutex::new(Vec::new()));
    let theirs = Arc::downgrade(&wanted);
    let work = move || {
        for wish in queue {
            let mut offset = 0;
            // The owner's end of the line ends the work within one step.
            while let (true, Some(_)) =
                (u64::try_from(offset).is_ok_and(|at| at < wish.len), theirs.upgrade())
            {
                // Advice that is refused (a file system without a page cache) is no loss.
                let _ = posix_fadvise(&wish.file, offset, STEP, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
                offset += STEP;
            }
            let Some(wanted) = theirs.upgrade() else { return };
            wanted.lock().unwrap_or_else(PoisonError::into_inner).retain(|key| *key != wish.key);
        }
    };
    std::thread::Builder::new().name("cai-ahead".into()).spawn(work).ok()?;
    Some(Line { wishes, wanted })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;

    /// Pages of `file` in the page cache, by mincore(2) through `fincore`, which comes with util-linux.
    fn cached(path: &std::path::Path) -> u64 {
        let output =
            std::process::Command::new("fincore").args(["-nb", "-o", "RES"]).arg(path).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
    }

    #[test]
    fn wanted_file_is_soon_cached_whole_and_a_short_one_is_left_alone() {
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let make = |name: &str, len: u64| {
            let path = directory.path().join(name);
            let mut file = File::create(&path).unwrap();
            std::io::copy(&mut std::io::Read::take(std::io::repeat(7), len), &mut file).unwrap();
            file.flush().unwrap();
            file.sync_all().unwrap();
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            (path.clone(), Arc::new(File::open(path).unwrap()))
        };
        let ((long, long_file), (short, short_file)) = (make("long", SHORTEST), make("short", SHORTEST - 1));
        let ahead = ReadAhead::default();
        ahead.want(1, short_file, SHORTEST - 1);
        for _ in 0..3 {
            ahead.want(2, long_file.clone(), SHORTEST);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        while cached(&long) < SHORTEST {
            assert!(Instant::now() < deadline, "{} of {SHORTEST} bytes", cached(&long));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(cached(&short), 0);
    }
}
