//! Ciphertext that was damaged at every kind of place, read through the kernel on demand and in load mode: the blocks that were
//! hit give `EIO` and one line each in the log, every other block its bytes, and no byte is ever wrong.
//!
//! An older state of a file that was written to in place is not told from the newest: the format cannot
//! (`tests/format_ciphers.rs`). A file that was encrypted again is.

mod common;
#[path = "common/mounts.rs"]
mod mounts;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use mounts::{HEADER, Model, Mount, SEALED, SHORTEST, pages, pattern};

/// Blocks of the file, of which the last is short.
const BLOCKS: usize = SHORTEST / 4096 + 2;
const LAST: usize = BLOCKS - 1;
/// Plaintext in the last block.
const TAIL: usize = 1000;
/// A block that is neither near the beginning nor the end.
const MIDDLE: usize = 2048;
/// One of every kind of place.
const PLACES: [usize; 4] = [0, MIDDLE, LAST - 1, LAST];

/// Where block `number` is stored.
fn at(number: usize) -> usize {
    HEADER + number * SEALED
}

/// What an attacker has at hand.
struct Stock {
    /// Another file of the same model.
    other: Vec<u8>,
    /// The same file but for one byte, encrypted another time with the same key.
    older: Vec<u8>,
}

/// What is done to a file.
struct Damage {
    name: &'static str,
    act: fn(&mut Vec<u8>, &Stock),
    /// Blocks that are lost.
    hit: Hit,
    /// Bytes that the file seems to have then.
    len: usize,
}

enum Hit {
    /// These, each with a line that says so.
    Blocks(&'static [usize]),
    /// All, and one line for each that was asked for.
    Each,
    /// All, and one line about the header.
    Header,
}

const LEN: usize = LAST * 4096 + TAIL;

#[rustfmt::skip]
fn damages() -> [Damage; 13] {
    let damage = |name, hit, act| Damage { name, act, hit, len: LEN };
    [
        damage("nonce", Hit::Blocks(&PLACES), |file, _| PLACES.iter().for_each(|&place| file[at(place) + 7] ^= 1)),
        damage("body", Hit::Blocks(&PLACES), |file, _| PLACES.iter().for_each(|&place| file[at(place) + 500] ^= 0x80)),
        damage("tag", Hit::Blocks(&PLACES), |file, _| {
            for place in PLACES {
                let end = at(place + 1).min(file.len());
                file[end - 1] ^= 4;
            }
        }),
        damage("swap", Hit::Blocks(&[0, 1, MIDDLE, LAST - 1]), |file, _| {
            swap(file, 0, 1);
            swap(file, MIDDLE, LAST - 1);
        }),
        damage("splice", Hit::Blocks(&PLACES), |file, stock| splice(file, &stock.other)),
        damage("replay", Hit::Blocks(&PLACES), |file, stock| splice(file, &stock.older)),
        damage("version", Hit::Header, |file, _| file[1] ^= 1),
        damage("no-id", Hit::Header, |file, _| file[2..HEADER].fill(0)),
        damage("id", Hit::Each, |file, _| file[HEADER - 1] ^= 1),
        damage("replay-header", Hit::Each, |file, stock| file[..HEADER].copy_from_slice(&stock.older[..HEADER])),
        Damage { len: LAST * 4096 + 500, ..damage("cut-tail", Hit::Blocks(&[LAST]), |file, _| file.truncate(at(LAST) + 532)) },
        Damage { len: LAST * 4096 - 1, ..damage("cut-block", Hit::Blocks(&[LAST - 1]), |file, _| file.truncate(at(LAST) - 1)) },
        // Nothing tells it from a shorter file, and what there is is right.
        Damage { len: LAST * 4096, ..damage("cut-at-border", Hit::Blocks(&[]), |file, _| file.truncate(at(LAST))) },
    ]
}

fn swap(file: &mut [u8], one: usize, other: usize) {
    let (front, back) = file.split_at_mut(at(other));
    front[at(one)..][..SEALED].swap_with_slice(&mut back[..SEALED]);
}

/// The same blocks of another ciphertext.
fn splice(file: &mut [u8], from: &[u8]) {
    for place in PLACES {
        let end = at(place + 1).min(file.len());
        file[at(place)..end].copy_from_slice(&from[at(place)..end]);
    }
}

/// A model with the file damaged in every way, under the name of the damage, and once as it was.
fn damaged_model(content: &[u8]) -> Option<Model> {
    let mut older = content.to_vec();
    older[LEN / 2] ^= 1;
    let other = pattern(99, LEN);
    // In directories of their own: the next of a directory would be loaded ahead.
    let names: Vec<String> = damages().iter().map(|damage| format!("{}/w", damage.name)).collect();
    let placeholders = names.iter().map(|name| (name.as_str(), &b"placeholder"[..]));
    let big = [("good/w", content), ("other/w", &other), ("older/w", &older)];
    let model = Model::of(&placeholders.chain(big).collect::<Vec<_>>())?;
    let stored = model.stored();
    let read = |name: &str| fs::read(&stored[Path::new(name)]).unwrap();
    let (good, stock) = (read("good/w"), Stock { other: read("other/w"), older: read("older/w") });
    assert_eq!(good.len(), at(LAST) + 32 + TAIL);
    for (damage, name) in damages().iter().zip(&names) {
        let mut file = good.clone();
        (damage.act)(&mut file, &stock);
        assert!(file != good, "{name}");
        fs::write(&stored[Path::new(name)], file).unwrap();
    }
    Some(model)
}

/// Read what is left of the damaged file, and give the blocks that were lost of those that were asked for.
fn lost(mount: &Mount, damage: &Damage, content: &[u8]) -> Vec<usize> {
    let file = File::open(mount.at(damage.name).join("w")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), damage.len as u64, "{}", damage.name);
    let all: Vec<usize> = (0..damage.len.div_ceil(4096)).collect();
    let asked = if let Hit::Blocks(_) = damage.hit { &all[..] } else { &PLACES[..] };
    let is_lost = |number: &usize| {
        let expected = &content[number * 4096..damage.len.min((number + 1) * 4096)];
        let mut block = vec![0; expected.len()];
        match file.read_exact_at(&mut block, *number as u64 * 4096) {
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{}, block {number}", damage.name);
                true
            }
            Ok(()) => {
                assert!(block == expected, "{}, block {number}: wrong bytes", damage.name);
                false
            }
        }
    };
    asked.iter().copied().filter(is_lost).collect()
}

/// Blocks of the damaged file that the log has an error about, in order, as often as it has.
fn logged(log: &[String], name: &str) -> Vec<usize> {
    let block = |line: &String| {
        let (_, rest) = line.split_once(" ERROR ")?;
        let (number, reason) = rest.strip_prefix(&format!("{name}/w, block "))?.split_once(": ")?;
        assert!(reason.starts_with(&format!("block {number} is corrupt: ")), "{line}");
        number.parse().ok()
    };
    let mut blocks: Vec<usize> = log.iter().filter_map(block).collect();
    blocks.sort_unstable();
    blocks
}

fn assert_survives(model: &Model, mount: Mount, content: &[u8]) {
    for damage in &damages() {
        let expected = match damage.hit {
            Hit::Blocks(blocks) => blocks,
            Hit::Each | Hit::Header => &PLACES,
        };
        // Twice: an error is no reason to be believed the next time.
        for _ in 0..2 {
            assert_eq!(lost(&mount, damage, content), expected, "{}", damage.name);
        }
    }
    model.assert_reads("good/w", content);
    let (status, log) = mount.stop();
    assert_eq!(status, Some(0));
    for damage in &damages() {
        let (found, name) = (logged(&log, damage.name), damage.name);
        match damage.hit {
            Hit::Blocks(blocks) => assert_eq!(found, blocks, "{name}"),
            Hit::Header => assert_eq!(found, [0], "{name}"),
            Hit::Each => {
                assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{name}: a block twice: {found:?}");
                assert!(PLACES.iter().all(|place| found.contains(place)), "{name}: {found:?}");
            }
        }
    }
    assert_eq!(logged(&log, "good"), [0_usize; 0]);
}

#[test]
fn damage_at_every_kind_of_place_costs_its_blocks_and_no_more_on_demand() {
    let content = pattern(1, LEN);
    let Some(model) = damaged_model(&content) else { return };
    let mount = model.mount("on-demand", &[]);
    assert_survives(&model, mount, &content);
}

#[test]
fn damage_at_every_kind_of_place_costs_its_blocks_and_no_more_in_load_mode() {
    let content = pattern(1, LEN);
    let Some(model) = damaged_model(&content) else { return };
    let Some(mount) = model.load(128 << 20, 3600) else { return };
    let memory = mount.memory();
    for damage in &damages() {
        let file = File::open(mount.at(damage.name).join("w")).unwrap();
        let whole = matches!(damage.hit, Hit::Blocks([]));
        assert_eq!(memory.used(), if whole { pages(damage.len) } else { 0 }, "{}", damage.name);
        drop(file);
    }
    assert_survives(&model, mount, &content);
}

#[test]
fn damage_of_any_kind_keeps_a_model_out_of_memory() {
    let content = pattern(1, LEN);
    let Some(model) = damaged_model(&content) else { return };
    let stored = model.stored();
    // One at a time: the others are made whole.
    let good = fs::read(&stored[Path::new("good/w")]).unwrap();
    let damaged: Vec<_> = damages()
        .iter()
        .map(|damage| fs::read(&stored[&Path::new(damage.name).join("w")]).unwrap())
        .collect();
    let put = |name: &str, bytes: &[u8]| fs::write(&stored[&Path::new(name).join("w")], bytes).unwrap();
    damages().iter().for_each(|damage| put(damage.name, &good[..at(1)]));
    for (damage, bytes) in damages().iter().zip(&damaged) {
        if matches!(damage.hit, Hit::Blocks([])) {
            continue;
        }
        put(damage.name, bytes);
        let output = model.command("ram", &[]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(65), "{}: {said}", damage.name);
        assert!(said.contains(&format!("decrypting {}/w: damaged [ram.unreadable]", damage.name)), "{said}");
        assert_eq!(common::mounts_below(model.root()), 0, "{}", damage.name);
        put(damage.name, &good[..at(1)]);
    }
    let mount = model.mount("ram", &[]);
    model.assert_reads("good/w", &content);
    assert_eq!(mount.stop().0, Some(0));
}
