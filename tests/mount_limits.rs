//! What the mount's daemon takes does not grow with its readers: memory, threads, descriptors. Readers that dawdle or die are
//! nobody else's trouble.

mod common;
#[path = "common/mounts.rs"]
mod mounts;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{available, wait_until};
use mounts::{MIB, Model, SHORTEST, pages, pattern};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Buffers of one thread at most, as the settings say.
const BUDGET: u64 = 12 * MIB as u64 / 10;

/// The whole of `path` in pieces, from the daemon and not from the page cache.
fn assert_reads_anew(path: &Path, content: &[u8]) {
    let file = File::open(path).unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mut piece = vec![0; 700_001];
    for (number, expected) in content.chunks(piece.len()).enumerate() {
        let piece = &mut piece[..expected.len()];
        file.read_exact_at(piece, (number * 700_001) as u64).unwrap();
        assert!(piece == expected, "{} differs in piece {number}", path.display());
    }
}

#[test]
fn sixty_four_readers_take_no_more_memory_and_threads_than_the_daemon_was_given() {
    let names = ["w-0", "w-1", "w-2", "w-3"];
    let contents: Vec<_> = (0..4).map(|seed| pattern(seed, 8 * MIB + 5)).collect();
    let files: Vec<_> = names.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
    let Some(model) = Model::of(&files) else { return };
    let mount = model.mount("on-demand", &["--threads", "4"]);
    // Its code is in memory then, too.
    assert_reads_anew(&mount.at(names[0]), &contents[0]);
    let (threads, descriptors) = (mount.threads_with(4), mount.descriptors());
    let before = mount.forget_peak();
    let most_threads = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..64)
            .map(|number| {
                let (path, content) = (mount.at(names[number % 4]), &contents[number % 4]);
                scope.spawn(move || assert_reads_anew(&path, content))
            })
            .collect();
        let mut most = 0;
        while readers.iter().any(|reader| !reader.is_finished()) {
            most = most.max(mount.threads());
            std::thread::yield_now();
        }
        most
    });
    assert_eq!((most_threads, mount.threads()), (threads, threads));
    let grown = mount.peak() - before;
    assert!(grown <= 4 * BUDGET, "{grown} bytes for 4 threads of {BUDGET}");
    // The other files of the ciphertext, which stay open. What the kernel reads ahead may not be answered yet.
    wait_until("descriptors of four files", || mount.descriptors() <= descriptors + 3);
}

#[test]
fn ten_thousand_open_files_take_few_descriptors_and_are_all_read_right() {
    const FILES: usize = 500;
    const OPENS: usize = 20;
    let wanted = (FILES * OPENS + 500) as u64;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let raised = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok();
    if !available("descriptors", raised, "this process may not open ten thousand files") {
        return;
    }
    let content = |number: usize| pattern(number as u64, 4000 + number);
    let fill = |plain: &Path| {
        (0..FILES).for_each(|number| fs::write(plain.join(format!("{number}")), content(number)).unwrap())
    };
    let Some(model) = Model::filled(fill) else { return };
    let mount = model.mount("auto", &["--threads", "4"]);
    let (threads, descriptors) = (mount.threads_with(4), mount.descriptors());
    let mut open = Vec::new();
    for number in (0..OPENS).flat_map(|_| 0..FILES) {
        open.push((number, File::open(mount.at(&number.to_string())).unwrap()));
    }
    assert_eq!(open.len(), 10_000);
    for (number, file) in &mut open {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert!(bytes == content(*number), "file {number}");
    }
    // 64 files of the ciphertext are kept open, whoever has what open.
    assert!(mount.descriptors() <= descriptors + 64, "{} after {descriptors}", mount.descriptors());
    assert_eq!(mount.threads(), threads);
    drop(open);
    model.assert_reads("499", &content(499));
}

/// Reads a file again and again, from the daemon, and says so first.
const READER: &str = "\
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
size = os.fstat(fd).st_size
print('reading', flush=True)
while True:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    for at in range(0, size, 1 << 20): os.pread(fd, 1 << 20, at)
";

/// A process that reads for ever, ended with the test.
struct Reader(Child);

impl Reader {
    fn start(path: &Path) -> Reader {
        let mut command = Command::new("python3");
        Reader(command.args(["-c", READER]).arg(path).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Wait until it reads.
    fn seen(&mut self) {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "reading\n");
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn readers_that_are_killed_while_they_read_disturb_nobody_and_leave_nothing_open() {
    let content = pattern(1, 12 * MIB);
    let Some(model) = Model::of(&[("w", &content)]) else { return };
    let mount = model.mount("on-demand", &["--threads", "4"]);
    assert_reads_anew(&mount.at("w"), &content);
    let (threads, descriptors) = (mount.threads_with(4), mount.descriptors());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut reads = 0;
            while reads == 0 || !over.load(Ordering::Relaxed) {
                assert_reads_anew(&mount.at("w"), &content);
                reads += 1;
            }
        });
        for _ in 0..2 {
            let mut readers: Vec<_> = (0..6).map(|_| Reader::start(&mount.at("w"))).collect();
            readers.iter_mut().for_each(Reader::seen);
            // Killed and reaped, wherever each of them is.
            drop(readers);
        }
        over.store(true, Ordering::Relaxed);
        other.join().unwrap();
    });
    assert_eq!((mount.threads(), mount.descriptors()), (threads, descriptors));
    let (status, log) = mount.stop();
    assert_eq!((status, log.len()), (Some(0), 1), "{log:#?}");
}

#[test]
fn readers_that_are_killed_before_or_behind_the_load_of_their_file_keep_no_memory() {
    let content = pattern(1, SHORTEST + 1);
    let Some(model) = Model::of(&[("w", &content)]) else { return };
    let Some(mount) = model.load(64 << 20, 1) else { return };
    let memory = mount.memory();
    for round in 0..2 {
        let mut readers: Vec<_> = (0..6).map(|_| Reader::start(&mount.at("w"))).collect();
        // Half of them have it open, half of them are about to, or wait for it.
        readers.iter_mut().skip(round).step_by(2).for_each(Reader::seen);
        assert_eq!(memory.used(), pages(content.len()));
        readers.extend((0..6).map(|_| Reader::start(&mount.at("w"))));
        drop(readers);
        // Nobody has it open any more, so it leaves.
        wait_until("the file to leave memory", || memory.used() == 0);
    }
    model.assert_reads("w", &content);
    assert_eq!(mount.stop().0, Some(0));
}

#[test]
fn readers_that_dawdle_delay_nobody() {
    let (content, other) = (pattern(1, 12 * MIB), pattern(2, 12 * MIB));
    let Some(model) = Model::of(&[("dawdling", &content), ("other", &other)]) else { return };
    // Fewer threads than dawdlers.
    let mount = model.mount("on-demand", &["--threads", "2"]);
    let mut dawdlers: Vec<_> = (0..32).map(|_| File::open(mount.at("dawdling")).unwrap()).collect();
    for file in &mut dawdlers {
        let mut byte = [0];
        file.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], content[0]);
    }
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_reads_anew(&mount.at("other"), &other));
        }
    });
    for file in &mut dawdlers {
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert!(rest == content[1..]);
    }
}
