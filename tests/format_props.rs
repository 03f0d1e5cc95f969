//! Properties of the format: lengths, names and trees. Those of content are in `format_ciphers.rs`.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::Arc;

use cai::ciphertext::{Ciphertext, EntryId, EntryKind, Judge, Judgement, ReadError};
use cai::error::{ErrorClass, Fault};
use cai::gocryptfs::content::seal_target;
use cai::gocryptfs::layout::{Layout, cipher_len};
use cai::gocryptfs::names::{DirIv, NameError};
use cai::gocryptfs::{
    BlockJudge, Cipher, ContentError, Damage, FileReader, Kind, SkipReason, Tree, TreeError, metadata_entries,
};
use proptest::prelude::*;

#[path = "common/format.rs"]
mod common;
use common::{Memory, features_of, keys, keys_with, names, root_iv, seal, seal_with, text};

/// A directory with the one file `file`, holding `sealed`.
fn one_file(sealed: Vec<u8>) -> (Memory, Tree, FileReader) {
    let keys = keys();
    let source = Memory::new().file(&text("file"), sealed);
    let tree = Tree::build(&source, &keys).unwrap();
    let reader = FileReader::new(&tree, tree.lookup(tree.root(), OsStr::new("file")).unwrap().id).unwrap();
    (source, tree, reader)
}

fn read(source: &Memory, reader: &FileReader, offset: u64, len: usize) -> Result<Vec<u8>, ContentError> {
    let mut out = vec![0xee; len];
    let count = reader.read(source, &keys(), offset, &mut out, &mut Vec::new())?;
    out.truncate(count);
    Ok(out)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 4096) as u8 ^ seed).collect()
}

proptest! {
    #[test]
    fn lengths_invert_and_grow(plain in 0_u64..(1 << 60)) {
        for layout in [Layout::AES, Layout::XCHACHA] {
            let cipher = layout.cipher_len(plain).unwrap();
            prop_assert_eq!(layout.plain_len(cipher), plain);
            prop_assert!(layout.cipher_len(plain + 1).unwrap() > cipher);
        }
    }

    #[test]
    fn name_of_any_bytes_round_trips_under_any_iv(
        iv: [u8; 16],
        name in proptest::collection::vec(any::<u8>().prop_filter("separator", |b| *b != 0 && *b != b'/'), 1..=255),
    ) {
        prop_assume!(iv != [0; 16] && name != b"." && name != b"..");
        let (iv, name, names) = (DirIv::new(iv).unwrap(), OsString::from_vec(name), names());
        let stored = names.encrypt(&iv, &name).unwrap();
        let encrypted = stored.text_file.map_or(stored.object, |(_, text)| text);
        prop_assert_eq!(names.decrypt(&iv, encrypted.as_bytes()), Ok(name));
    }

    #[test]
    fn changed_name_text_is_refused_or_a_name_of_its_own(
        name in "[a-z0-9._-]{3,175}",
        position in any::<proptest::sample::Index>(),
        byte: u8,
    ) {
        let (iv, names) = (root_iv(), names());
        let mut text = names.encrypt(&iv, OsStr::new(&name)).unwrap().object.into_bytes();
        let position = position.index(text.len());
        prop_assume!(text[position] != byte);
        text[position] = byte;
        if let Ok(other) = names.decrypt(&iv, &text) {
            let stored = names.encrypt(&iv, &other).unwrap().object;
            prop_assert_eq!(stored.as_bytes(), &text);
            prop_assert_ne!(other, OsString::from(name));
        }
    }
}

#[test]
fn range_is_read_in_pieces_of_32_blocks_and_the_header_once() {
    let plain = pattern(300_000, 3);
    let (source, _, reader) = one_file(seal(&plain, 1));
    let before = source.reads().len();
    assert_eq!(read(&source, &reader, 5000, 60_000).unwrap(), &plain[5000..65_000]);
    assert_eq!(source.reads()[before..], [(0, 18), (4146, 15 * 4128)]);
    let before = source.reads().len();
    assert_eq!(read(&source, &reader, 0, 300_000).unwrap(), plain);
    let piece = 32 * 4128;
    let rest = cipher_len(300_000).unwrap() - 18 - 2 * piece;
    assert_eq!(source.reads()[before..], [(18, piece), (18 + piece, piece), (18 + 2 * piece, rest)]);
    // One that begins inside a block is cut at the next border, so that no block is read twice.
    let before = source.reads().len();
    assert_eq!(read(&source, &reader, 4095, 131_073).unwrap(), &plain[4095..135_168]);
    assert_eq!(source.reads()[before..], [(18, piece), (18 + piece, 4128)]);
}

#[test]
fn read_behind_the_end_or_of_nothing_asks_for_no_ciphertext() {
    let (source, _, reader) = one_file(seal(b"short", 1));
    let before = source.reads().len();
    for (offset, len) in [(5, 10), (u64::MAX, 4096), (0, 0)] {
        assert_eq!(read(&source, &reader, offset, len).unwrap(), b"");
    }
    assert_eq!(source.reads().len(), before);
}

#[test]
fn ciphertext_that_cannot_be_read_is_a_read_error_of_its_own_class() {
    let (source, _, reader) = one_file(seal(b"content", 1));
    let source = source.failing();
    let error = read(&source, &reader, 0, 7).unwrap_err();
    assert!(matches!(error, ContentError::Read(ReadError::Unavailable { .. })), "{error}");
    assert_eq!((error.class(), error.code()), (ErrorClass::Transient, "content.read"));
    let error = Tree::build(&source, &keys()).unwrap_err();
    assert!(
        matches!(&error, TreeError::Read { path, .. } if path == Path::new("gocryptfs.diriv")),
        "{error}"
    );
    assert_eq!(error.class(), ErrorClass::Transient);
}

#[test]
fn concurrent_readers_of_one_file_see_the_same_bytes() {
    let plain = pattern(300_000, 9);
    let (source, _, reader) = one_file(seal(&plain, 1));
    let keys = keys();
    std::thread::scope(|scope| {
        for start in 0..8_usize {
            let (source, reader, keys, plain) = (&source, &reader, &keys, &plain);
            scope.spawn(move || {
                let (mut out, mut scratch) = (vec![0; 10_000], Vec::new());
                for offset in (start * 777..plain.len()).step_by(9_999) {
                    let count = reader.read(source, keys, offset as u64, &mut out, &mut scratch).unwrap();
                    assert_eq!(out[..count], plain[offset..(offset + 10_000).min(plain.len())]);
                }
            });
        }
    });
}

#[test]
fn tree_holds_what_decrypts_sorted_by_plaintext_name() {
    let iv = DirIv::new([5; 16]).unwrap();
    let directory = text("dir");
    let long = names().encrypt(&iv, OsStr::new(&"l".repeat(200))).unwrap();
    let (text_name, long_text) = long.text_file.clone().unwrap();
    let inner = names().encrypt(&iv, OsStr::new("inner")).unwrap().object;
    let link = seal_target(&keys(), &[3; 16], OsStr::new("dir/inner")).unwrap();
    let source = Memory::new()
        .file("gocryptfs.conf", b"{}".to_vec())
        .file(&text("z"), seal(&[1; 5000], 1))
        .file(&text("a"), Vec::new())
        .symlink(&text("m"), link.as_bytes())
        .symlink(&text("empty"), b"")
        .directory(&directory)
        .file(&format!("{directory}/gocryptfs.diriv"), iv.as_bytes().to_vec())
        .file(&format!("{directory}/{inner}"), seal(b"inner", 2))
        .file(&format!("{directory}/{}", long.object), seal(b"long", 3))
        .file(&format!("{directory}/{text_name}"), long_text.into_bytes());
    let tree = Tree::build(&source, &keys()).unwrap();
    assert_eq!(tree.skipped(), []);
    let children = |id| match &tree.node(id).unwrap().kind {
        Kind::Directory { children } => children
            .iter()
            .map(|id| tree.node(*id).unwrap().name.to_str().unwrap().to_owned())
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(children(tree.root()), ["a", "dir", "empty", "m", "z"]);
    let node = |name: &str| tree.lookup(tree.root(), OsStr::new(name)).unwrap();
    assert_eq!(node("z").kind, Kind::File { plain_len: 5000, cipher_len: 5082 });
    assert_eq!(node("a").kind, Kind::File { plain_len: 0, cipher_len: 0 });
    assert_eq!(node("m").kind, Kind::Symlink { target: "dir/inner".into() });
    assert_eq!(node("empty").kind, Kind::Symlink { target: OsString::new() });
    assert_eq!(children(node("dir").id), ["inner".to_owned(), "l".repeat(200)]);
    assert_eq!((node("dir").nlink, tree.node(tree.root()).unwrap().nlink), (2, 3));
    let inner = tree.lookup(node("dir").id, OsStr::new("inner")).unwrap();
    assert_eq!(tree.path(inner.id), Path::new("dir/inner"));
    assert_eq!(tree.len(), 8);
    assert!(tree.lookup(tree.root(), OsStr::new("inner")).is_none());
    assert!(tree.lookup(node("z").id, OsStr::new("inner")).is_none());
    assert!(FileReader::new(&tree, node("dir").id).is_none());

    let metadata: HashSet<String> = metadata_entries(source.entries())
        .into_iter()
        .map(|id| source.entries()[id.0 as usize].path.display().to_string())
        .collect();
    let expected = ["gocryptfs.conf", "gocryptfs.diriv"].map(str::to_owned).into_iter();
    let nested = [format!("{directory}/gocryptfs.diriv"), format!("{directory}/{text_name}")];
    assert_eq!(metadata, expected.chain(nested).collect());
}

#[test]
fn tree_build_reads_metadata_and_nothing_else() {
    let directory = text("dir");
    let source = Memory::new()
        .file(&text("big"), seal(&[0; 4096], 1))
        .directory(&directory)
        .file(&format!("{directory}/gocryptfs.diriv"), vec![1; 16]);
    Tree::build(&source, &keys()).unwrap();
    assert_eq!(source.reads(), [(0, 16), (0, 16)]);
}

/// The reasons a build gives, by path.
fn skipped(source: &Memory) -> Vec<(String, SkipReason)> {
    let tree = Tree::build(source, &keys()).unwrap();
    tree.skipped().iter().map(|skip| (skip.path.display().to_string(), skip.reason)).collect()
}

#[test]
fn entry_that_is_not_of_this_directory_is_skipped_with_its_reason() {
    let good = text("good");
    let foreign = names().encrypt(&DirIv::new([9; 16]).unwrap(), OsStr::new("x")).unwrap().object;
    for (name, reason) in [
        ("README.md".to_owned(), SkipReason::Name(NameError::NotBase64)),
        (format!("{good}=="), SkipReason::Name(NameError::NotBase64)),
        ("AAAA".to_owned(), SkipReason::Name(NameError::BadLength)),
        (foreign, SkipReason::Name(NameError::BadPadding)),
        ("A".repeat(256), SkipReason::NotLong),
        ("gocryptfs.longname.abc".to_owned(), SkipReason::NoLongText),
        (format!("{}/x", text("nowhere")), SkipReason::NoParent),
    ] {
        let source = Memory::new().file(&good, Vec::new()).file(&name, Vec::new());
        assert_eq!(skipped(&source), [(name.clone(), reason)]);
        assert_eq!(Tree::build(&source, &keys()).unwrap().len(), 2, "{name}");
    }
}

#[test]
fn long_name_with_a_wrong_text_file_is_skipped() {
    let long = names().encrypt(&root_iv(), OsStr::new(&"n".repeat(200))).unwrap();
    let (text_name, long_text) = long.text_file.unwrap();
    let other = names().encrypt(&root_iv(), OsStr::new(&"o".repeat(200))).unwrap().text_file.unwrap().1;
    for (content, reason) in [
        (Vec::new(), SkipReason::BadLongText),
        (text("short").into_bytes(), SkipReason::BadLongText),
        (vec![b'A'; 345], SkipReason::BadLongText),
        (other.into_bytes(), SkipReason::ForeignLongText),
        (format!("{long_text}\n").into_bytes(), SkipReason::ForeignLongText),
    ] {
        let source = Memory::new().file(&long.object, Vec::new()).file(&text_name, content);
        assert_eq!(skipped(&source), [(long.object.clone(), reason)]);
    }
}

#[test]
fn directory_with_a_bad_iv_is_skipped_whole() {
    let directory = text("dir");
    for (iv, reason) in [
        (None, SkipReason::NoDirIv),
        (Some(vec![1; 15]), SkipReason::BadDirIv),
        (Some(vec![1; 17]), SkipReason::BadDirIv),
        (Some(vec![0; 16]), SkipReason::BadDirIv),
    ] {
        let mut source = Memory::new().directory(&directory).directory(&format!("{directory}/x"));
        source = source.file(&format!("{directory}/x/y"), Vec::new());
        if let Some(iv) = iv {
            source = source.file(&format!("{directory}/gocryptfs.diriv"), iv);
        }
        assert_eq!(skipped(&source), [(directory.clone(), reason)]);
    }
}

#[test]
fn root_without_a_good_iv_is_no_tree() {
    for (iv, reason) in [
        (None, SkipReason::NoDirIv),
        (Some(vec![0; 16]), SkipReason::BadDirIv),
        (Some(vec![1; 3]), SkipReason::BadDirIv),
    ] {
        let source = match iv {
            Some(iv) => Memory::bare().file("gocryptfs.diriv", iv),
            None => Memory::bare(),
        };
        let error = Tree::build(&source, &keys()).unwrap_err();
        assert!(matches!(error, TreeError::Root { reason: found } if found == reason), "{error}");
        assert_eq!(error.class(), ErrorClass::Corrupt);
    }
}

#[test]
fn damaged_symlink_target_is_skipped() {
    let mut link = seal_target(&keys(), &[3; 16], OsStr::new("somewhere")).unwrap().into_bytes();
    link[30] = if link[30] == b'A' { b'B' } else { b'A' };
    let source = Memory::new().symlink(&text("link"), &link).symlink(&text("plain"), b"/etc/passwd");
    let mut found = skipped(&source);
    found.sort_by_key(|(path, _)| path != &text("link"));
    assert_eq!(
        found,
        [
            (text("link"), SkipReason::Target(Damage::Tag)),
            (text("plain"), SkipReason::Target(Damage::NotBase64)),
        ]
    );
}

#[test]
fn entry_listed_twice_is_in_the_tree_once() {
    let (name, directory) = (text("file"), text("dir"));
    let source = Memory::new()
        .directory(&directory)
        .file(&format!("{directory}/gocryptfs.diriv"), vec![1; 16])
        .file(&name, vec![1])
        .unsorted_file(&name, vec![2])
        .unsorted_directory(&directory);
    assert_eq!(skipped(&source), [(name, SkipReason::Duplicate), (directory, SkipReason::Duplicate)]);
}

#[test]
fn hundred_thousand_entries_build_and_are_all_found() {
    let names = names();
    let mut source = Memory::new();
    for number in 0..100_000 {
        let name = names.encrypt(&root_iv(), OsStr::new(&format!("file-{number}"))).unwrap().object;
        source.push(&name, EntryKind::File { len: 0 }, Vec::new());
    }
    let source = source.sorted();
    let tree = Tree::build(&source, &keys()).unwrap();
    assert_eq!((tree.len(), tree.skipped().len()), (100_001, 0));
    for number in 0..100_000 {
        assert!(tree.lookup(tree.root(), OsStr::new(&format!("file-{number}"))).is_some());
    }
    let first = tree.node(cai::gocryptfs::NodeId(1)).unwrap().entry;
    assert!(first.is_some_and(|EntryId(id)| id < 100_001));
}

/// What a judge says of `range` of `sealed`, given exactly the bytes it asks for.
fn judged(judge: &BlockJudge, sealed: &[u8], genuine: &[u8], range: std::ops::Range<usize>) -> Judgement {
    let span = judge.span(sealed.len() as u64, range.start as u64..range.end as u64);
    assert!(span.start <= range.start as u64 && span.end >= range.end as u64, "{span:?} holds {range:?}");
    let (start, end) = (span.start as usize, span.end as usize);
    judge.judge(&genuine[..judge.head() as usize], span.start, &sealed[start..end])
}

proptest! {
    #[test]
    fn any_range_of_a_file_is_judged_and_one_wrong_bit_in_it_tells(
        len in 1_usize..30_000, from: prop::sample::Index, to: prop::sample::Index,
        at: prop::sample::Index, bit in 0_u8..8, cipher in prop_oneof![Just(Cipher::AesGcm), Just(Cipher::XChaCha20Poly1305)],
    ) {
        let keys = keys_with(features_of(cipher));
        let sealed = seal_with(&keys, &pattern(len, 3), 9);
        let judge = BlockJudge::new(Arc::new(keys));
        let (a, b) = (from.index(sealed.len()), to.index(sealed.len()));
        let range = a.min(b)..a.max(b) + 1;
        prop_assert_eq!(judged(&judge, &sealed, &sealed, range.clone()), Judgement::Genuine);
        let mut forged = sealed.clone();
        forged[range.start + at.index(range.len())] ^= 1 << bit;
        prop_assert_eq!(judged(&judge, &forged, &sealed, range), Judgement::Forged);
    }
}

#[test]
fn judge_takes_holes_for_no_proof_and_blocks_of_elsewhere_for_forged() {
    let judge = BlockJudge::new(Arc::new(keys()));
    let block = Layout::AES.sealed_block();
    let sealed = seal(&pattern(3 * 4096, 1), 1);
    let mut hole = sealed.clone();
    hole[18 + block..18 + 2 * block].fill(0);
    assert_eq!(judged(&judge, &hole, &sealed, 0..sealed.len()), Judgement::Unprovable);
    assert_eq!(judged(&judge, &hole, &sealed, 0..18 + block), Judgement::Genuine, "beside the hole");
    let mut moved = sealed.clone();
    moved.copy_within(18..18 + block, 18 + block);
    assert_eq!(judged(&judge, &moved, &sealed, 0..sealed.len()), Judgement::Forged);
    let other = seal(&pattern(3 * 4096, 1), 2);
    assert_eq!(judged(&judge, &other, &sealed, 18..sealed.len()), Judgement::Forged, "another file's");
    assert_eq!(judged(&judge, &other, &sealed, 0..10), Judgement::Forged, "another file's header");
    assert_eq!(judge.judge(&sealed[..17], 18, &sealed[18..]), Judgement::Forged, "a head that is none");
}
