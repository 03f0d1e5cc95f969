//! Load mode through the kernel: what is decrypted when, who reads past the daemon, what leaves memory and what must not.
//!
//! Proof that a file lies in memory is the memory file system itself, which the test holds a descriptor of: it is the mount's
//! own, and its size is exact. Files in different directories: the next of a directory is loaded ahead.

mod common;
#[path = "common/mounts.rs"]
mod mounts;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;

use common::{mounts_below, wait_until};
use mounts::{HEADER, MIB, Mapper, MemoryWatch, Model, Mount, SEALED, SHORTEST, pages, pattern, sha256};
use nix::libc;
use nix::sys::signal::Signal;

/// Long enough that no test comes to see it.
const NEVER: u64 = 3600;

macro_rules! some {
    ($option:expr) => {
        match $option {
            Some(value) => value,
            None => return,
        }
    };
}

/// Whether `file` is `content`, read in pieces that are no blocks.
fn assert_is(file: &File, content: &[u8], what: &str) {
    let mut piece = vec![0; 300_001];
    for (number, expected) in content.chunks(piece.len()).enumerate() {
        let piece = &mut piece[..expected.len()];
        file.read_exact_at(piece, (number * 300_001) as u64).unwrap();
        assert!(piece == expected, "{what} differs in piece {number}");
    }
}

/// Whether one block of `file` is that of `content`.
fn assert_block(file: &File, content: &[u8], number: usize, what: &str) {
    let mut block = vec![0; 4096];
    file.read_exact_at(&mut block, number as u64 * 4096).unwrap();
    assert!(block == content[number * 4096..][..4096], "{what} differs in block {number}");
}

/// Open `name` until that brings the memory in use to `used`: that somebody closed a file is told to the daemon later than to
/// who did.
fn open_until(mount: &Mount, memory: &MemoryWatch, name: &str, used: u64) -> File {
    let mut file = None;
    wait_until(&format!("{used} bytes with {name} in memory"), || {
        file = None;
        file = Some(File::open(mount.at(name)).unwrap());
        memory.used() == used
    });
    file.unwrap()
}

#[test]
fn large_file_is_decrypted_at_open_and_read_past_the_daemon() {
    let (big, small) = (pattern(1, 17 * MIB + 4097), pattern(2, SHORTEST - 1));
    let model = some!(Model::of(&[("big/w", &big), ("small/w", &small)]));
    let mount = some!(model.load(64 << 20, NEVER));
    let memory = mount.memory();
    assert_eq!(memory.used(), 0);
    let small_file = File::open(mount.at("small/w")).unwrap();
    assert_eq!(memory.used(), 0, "below the border files are read on demand");
    let big_file = File::open(mount.at("big/w")).unwrap();
    assert_eq!(memory.used(), pages(big.len()));

    // Nothing is left to decrypt.
    model.change("small/w", Vec::clear);
    model.change("big/w", Vec::clear);
    let before = mount.bytes_read();
    assert_is(&big_file, &big, "big");
    let mut mapper = Mapper::start();
    let mapped = mapper.map(&mount.at("big/w"));
    assert_eq!(mapper.sha256(mapped), sha256(&big));
    let asked = mount.bytes_read() - before;
    assert!(asked < 64 << 10, "the daemon read {asked} bytes meanwhile");
    let error = small_file.read_exact_at(&mut [0], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "what is read on demand needs its ciphertext");
}

#[test]
fn many_who_open_a_file_at_once_get_one_load() {
    let content = pattern(1, 24 * MIB + 1);
    let model = some!(Model::of(&[("w", &content)]));
    let mount = some!(model.load(64 << 20, NEVER));
    let (memory, before) = (mount.memory(), mount.bytes_read());
    let together = Barrier::new(32);
    std::thread::scope(|scope| {
        for number in 0..32 {
            let (together, mount, memory, content) = (&together, &mount, &memory, &content);
            scope.spawn(move || {
                together.wait();
                let file = File::open(mount.at("w")).unwrap();
                assert_eq!(memory.used(), pages(content.len()));
                let at = number * content.len() / 32;
                let mut piece = vec![0; content.len() / 32];
                file.read_exact_at(&mut piece, at as u64).unwrap();
                assert!(piece == content[at..][..piece.len()], "reader {number}");
            });
        }
    });
    let (read, len) = (mount.bytes_read() - before, content.len() as u64);
    assert!((len..len + len / 10).contains(&read), "{read} bytes were read for one load of {len}");
}

#[test]
fn next_file_of_the_directory_is_loaded_ahead_and_takes_nothing_from_anybody() {
    let shards: Vec<_> = (0..4).map(|seed| pattern(seed, SHORTEST + seed as usize)).collect();
    let names = ["a-1", "a-2", "a-3", "a-4"];
    let files: Vec<_> = names.into_iter().zip(shards.iter().map(Vec::as_slice)).collect();
    let model = some!(Model::of(&files));
    let sizes: Vec<u64> = shards.iter().map(|shard| pages(shard.len())).collect();
    let room: u64 = sizes[..3].iter().sum();
    let mount = some!(model.load(room, NEVER));
    let memory = mount.memory();
    let first = File::open(mount.at("a-1")).unwrap();
    wait_until("the second", || memory.used() == sizes[0] + sizes[1]);
    let before = mount.bytes_read();
    let second = File::open(mount.at("a-2")).unwrap();
    assert_is(&second, &shards[1], "a-2");
    wait_until("the third", || memory.used() == room);
    let third = File::open(mount.at("a-3")).unwrap();
    assert_is(&third, &shards[2], "a-3");
    let read = mount.bytes_read() - before;
    // The third, and at most the end of the second, whose memory is taken before it is filled.
    assert!(read < 24 << 20, "{read} bytes were read: the second was decrypted twice");
    // There is no room for the fourth while the others are open.
    model.assert_reads("a-4", &shards[3]);
    assert_eq!(memory.used(), room);
    assert_is(&first, &shards[0], "a-1");
}

#[test]
fn file_larger_than_the_memory_is_read_on_demand() {
    let content = pattern(1, 18 * MIB);
    let model = some!(Model::of(&[("w", &content)]));
    let mount = some!(model.load(pages(content.len()) - 4096, NEVER));
    let memory = mount.memory();
    for _ in 0..2 {
        model.assert_reads("w", &content);
        assert_eq!(memory.used(), 0);
    }
    assert!(mount.said("WARN", "").is_empty(), "{:#?}", mount.log());
}

#[test]
fn file_that_somebody_reads_on_demand_is_so_for_all_until_it_is_closed() {
    let (a, b) = (pattern(1, SHORTEST + 5), pattern(2, 17 * MIB));
    let model = some!(Model::of(&[("a/w", &a), ("b/w", &b)]));
    let mount = some!(model.load(pages(b.len()), NEVER));
    let memory = mount.memory();
    let b_file = File::open(mount.at("b/w")).unwrap();
    assert_eq!(memory.used(), pages(b.len()));
    // No room while b is open.
    let on_demand = File::open(mount.at("a/w")).unwrap();
    assert_is(&on_demand, &a[..MIB], "a");
    assert_is(&b_file, &b, "b");
    drop(b_file);
    // There would be room now; half a hundred times, so that the close of b has long come through.
    for _ in 0..50 {
        let also = File::open(mount.at("a/w")).unwrap();
        assert_block(&also, &a, 1280, "a");
    }
    assert_eq!(memory.used(), pages(b.len()), "b is idle in memory and a is not there");
    assert_is(&on_demand, &a, "a");
    drop(on_demand);
    let loaded = open_until(&mount, &memory, "a/w", pages(a.len()));
    assert_is(&loaded, &a, "a, loaded");
}

#[test]
fn files_take_turns_in_memory_for_one_of_them() {
    let (a, b) = (pattern(1, 17 * MIB + 4097), pattern(2, SHORTEST + 1));
    let model = some!(Model::of(&[("a/w", &a), ("b/w", &b)]));
    let mount = some!(model.load(pages(a.len()), NEVER));
    let memory = mount.memory();
    for turn in 0..3 {
        for (name, content) in [("a/w", &a), ("b/w", &b)] {
            let file = open_until(&mount, &memory, name, pages(content.len()));
            assert_is(&file, content, &format!("{name} in turn {turn}"));
        }
    }
    assert!(mount.said("WARN", "").is_empty(), "{:#?}", mount.log());
}

#[test]
fn mapping_that_outlives_its_descriptor_keeps_its_bytes_whoever_wants_the_memory() {
    let contents: Vec<_> = (0..3).map(|seed| pattern(seed, SHORTEST + 4096 * seed as usize)).collect();
    let names = ["a/w", "b/w", "c/w"];
    let files: Vec<_> = names.into_iter().zip(contents.iter().map(Vec::as_slice)).collect();
    let model = some!(Model::of(&files));
    let most = pages(contents[2].len());
    let mount = some!(model.load(most, NEVER));
    let memory = mount.memory();
    // Twice over: mapped as shared, and as private.
    let mut mapper = Mapper::start();
    for _ in 0..2 {
        let mut first = None;
        wait_until("a in memory and mapped", || {
            // Its descriptor is closed when this returns.
            first = Some(mapper.map(&mount.at("a/w")));
            let loaded = memory.used() == pages(contents[0].len());
            if !loaded {
                mapper.unmap_all();
            }
            loaded
        });
        let expected = sha256(&contents[0]);
        // Others want its place, again and again, so that the close has long come through.
        for _ in 0..8 {
            for (name, content) in names.iter().zip(&contents).skip(1) {
                let file = File::open(mount.at(name)).unwrap();
                assert_block(&file, content, 1792, name);
                assert_eq!(memory.used(), pages(contents[0].len()), "{name} has taken what is mapped");
            }
            assert_eq!(mapper.sha256(first.unwrap()), expected);
        }
        for (name, content) in names.iter().zip(&contents).skip(1) {
            model.assert_reads(name, content);
        }
        assert_eq!(mapper.sha256(first.unwrap()), expected);
        mapper.unmap_all();
        let file = open_until(&mount, &memory, "b/w", pages(contents[1].len()));
        assert_is(&file, &contents[1], "b, loaded");
    }
}

#[test]
fn idle_files_leave_memory_and_mapped_ones_stay() {
    let (a, b) = (pattern(1, SHORTEST), pattern(2, 17 * MIB));
    let model = some!(Model::of(&[("a/w", &a), ("b/w", &b)]));
    let mount = some!(model.load(64 << 20, 1));
    let memory = mount.memory();
    let mut mapper = Mapper::start();
    let mapped = mapper.map(&mount.at("a/w"));
    let file = File::open(mount.at("b/w")).unwrap();
    assert_eq!(memory.used(), pages(a.len()) + pages(b.len()));
    drop(file);
    // By then a has been idle for longer.
    wait_until("b to leave", || memory.used() == pages(a.len()));
    assert_eq!(mapper.sha256(mapped), sha256(&a));
    // What is opened anew is loaded anew, beside it.
    let file = File::open(mount.at("a/w")).unwrap();
    assert_eq!(memory.used(), 2 * pages(a.len()));
    assert_is(&file, &a, "a, loaded again");
    assert_eq!(mapper.sha256(mapped), sha256(&a));
    mapper.unmap_all();
    wait_until("the mapped one to leave", || memory.used() == pages(a.len()));
    drop(file);
    wait_until("everything to leave", || memory.used() == 0);
    assert_eq!(mounts_below(model.root()), 1);
    model.assert_reads("b/w", &b);
}

#[test]
fn file_with_a_damaged_block_is_read_on_demand_and_only_that_block_is_lost() {
    let content = pattern(1, SHORTEST + 777);
    let model = some!(Model::of(&[("w", &content)]));
    model.change("w", |stored| stored[HEADER + 2000 * SEALED + 20] ^= 0x80);
    let mount = some!(model.load(64 << 20, NEVER));
    let memory = mount.memory();
    for _ in 0..2 {
        let file = File::open(mount.at("w")).unwrap();
        assert_eq!(memory.used(), 0);
        let mut block = vec![0; 4096];
        for (number, expected) in content.chunks(4096).enumerate() {
            let block = &mut block[..expected.len()];
            match file.read_exact_at(block, number as u64 * 4096) {
                Ok(()) => assert!(number != 2000 && block == expected, "block {number}"),
                Err(error) => assert_eq!((number, error.raw_os_error()), (2000, Some(libc::EIO))),
            }
        }
    }
    let (status, log) = mount.stop();
    assert_eq!(status, Some(0));
    let about = |level: &str| log.iter().filter(|line| line.contains(level)).collect::<Vec<_>>();
    let (errors, warnings) = (about(" ERROR "), about(" WARN "));
    assert_eq!((errors.len(), warnings.len()), (1, 1), "{log:#?}");
    assert!(errors[0].contains("w, block 2000: block 2000 is corrupt"), "{log:#?}");
    assert!(warnings[0].contains("w is read on demand: damaged"), "{log:#?}");
}

/// Wait until the mount of `model` is gone and whatever it held with it, and say what became of a descriptor that outlived it.
fn assert_gone(model: &Model, memory: &MemoryWatch, held: File, content: &[u8]) {
    wait_until("the helper to detach the mount", || mounts_below(model.root()) == 0);
    assert_eq!(fs::read_dir(model.path("mnt")).unwrap().count(), 0, "what is below is an empty directory");
    // Read past the daemon, it needs none.
    assert_is(&held, content, "what was open");
    assert_eq!(memory.used(), pages(content.len()));
    drop(held);
    wait_until("the memory to be given back", || memory.used() == 0);
}

#[test]
fn killed_daemon_leaves_no_mount_nobody_waiting_and_no_memory_taken() {
    let (a, b) = (pattern(1, SHORTEST), pattern(2, 17 * MIB));
    let model = some!(Model::of(&[("a/w", &a), ("b/w", &b)]));
    let mut mount = some!(model.load(64 << 20, NEVER));
    let memory = mount.memory();
    let held = File::open(mount.at("a/w")).unwrap();
    drop(File::open(mount.at("b/w")).unwrap());
    assert_eq!(memory.used(), pages(a.len()) + pages(b.len()));
    assert_eq!(mount.signal(Signal::SIGKILL).code(), None);
    // Whether the helper has been here yet or not.
    let error = fs::read(mount.at("b/w")).unwrap_err().raw_os_error();
    assert!(matches!(error, Some(libc::ENOTCONN | libc::ENOENT)), "{error:?}");
    assert_gone(&model, &memory, held, &a);
    // The next one has a free place.
    let again = some!(model.load(64 << 20, NEVER));
    model.assert_reads("b/w", &b);
    assert_eq!(again.stop().0, Some(0));
}

#[test]
fn terminated_daemon_leaves_no_mount_and_no_memory_taken_while_a_file_is_open() {
    let content = pattern(1, SHORTEST);
    let model = some!(Model::of(&[("w", &content)]));
    let mount = some!(model.load(64 << 20, NEVER));
    let memory = mount.memory();
    let held = File::open(mount.at("w")).unwrap();
    let (status, log) = mount.stop();
    assert_eq!((status, log.len()), (Some(0), 1), "{log:#?}");
    assert_eq!(mounts_below(Path::new(model.root())), 0);
    assert_gone(&model, &memory, held, &content);
}
