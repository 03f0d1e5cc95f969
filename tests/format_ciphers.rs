//! Properties of content under every cipher: what is sealed is read back in any range, and nothing that is flipped, cut,
//! swapped, spliced or replayed is taken for what it was, while the rest of the file stays readable.

use std::ffi::OsStr;

use cai::gocryptfs::content::seal_target;
use cai::gocryptfs::layout::HEADER;
use cai::gocryptfs::{
    Cipher, ContentError, Damage, Features, FileReader, Keys, Kind, SkipReason, Tree, XattrError, xattr,
    xattr_names,
};
use proptest::prelude::*;
use proptest::sample::Index;

#[path = "common/format.rs"]
mod common;
use common::{Memory, features_of, keys_with, root_iv, seal_with};

const CIPHERS: [Cipher; 3] = [Cipher::AesGcm, Cipher::AesSiv, Cipher::XChaCha20Poly1305];

fn any_cipher() -> impl Strategy<Value = Cipher> {
    proptest::sample::select(&CIPHERS[..])
}

/// A directory with the one file `file`.
struct OneFile {
    keys: Keys,
    source: Memory,
    reader: FileReader,
}

impl OneFile {
    fn new(cipher: Cipher, sealed: Vec<u8>) -> Self {
        let keys = keys_with(features_of(cipher));
        let name = keys.names().encrypt(&root_iv(), OsStr::new("file")).unwrap().object;
        let source = Memory::new().file(&name, sealed);
        let tree = Tree::build(&source, &keys).unwrap();
        let node = tree.lookup(tree.root(), OsStr::new("file")).unwrap().id;
        let reader = FileReader::new(&tree, node).unwrap();
        OneFile { keys, source, reader }
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, ContentError> {
        let mut out = vec![0xee; len];
        let count = self.reader.read(&self.source, &self.keys, offset, &mut out, &mut Vec::new())?;
        out.truncate(count);
        Ok(out)
    }

    /// Read everything block by block: what reads is `plain`; which blocks do not, and why.
    fn damage(&self, plain: &[u8]) -> Vec<(u64, Damage)> {
        let mut found = Vec::new();
        for (block, expected) in (0..).zip(plain.chunks(4096)) {
            match self.read(block * 4096, expected.len()) {
                Ok(bytes) => assert!(bytes == expected, "block {block} reads as something else"),
                Err(ContentError::Corrupt { block: at, what }) => found.push((at, what)),
                Err(error) => panic!("{error}"),
            }
        }
        found
    }
}

fn sealed(cipher: Cipher, plain: &[u8], id: u8) -> Vec<u8> {
    seal_with(&keys_with(features_of(cipher)), plain, id)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 4096) as u8 ^ seed).collect()
}

/// Where block `number` lies in a file of `len` ciphertext bytes.
fn place(cipher: Cipher, number: usize, len: usize) -> std::ops::Range<usize> {
    let size = cipher.layout().sealed_block();
    HEADER + number * size..(HEADER + (number + 1) * size).min(len)
}

proptest! {
    #[test]
    fn read_of_any_range_equals_the_plaintext(
        cipher in any_cipher(),
        len in 0_usize..40_000,
        offset in 0_u64..45_000,
        count in 0_usize..45_000,
        seed: u8,
    ) {
        let plain = pattern(len, seed);
        let file = OneFile::new(cipher, sealed(cipher, &plain, 1));
        let start = usize::try_from(offset).unwrap().min(len);
        let end = (start + count).min(len);
        prop_assert_eq!(file.read(offset, count).unwrap(), &plain[start..end]);
        // Again, with the header known.
        prop_assert_eq!(file.read(offset, count).unwrap(), &plain[start..end]);
    }

    #[test]
    fn bit_flip_anywhere_damages_its_block_only(
        cipher in any_cipher(),
        len in 1_usize..20_000,
        bit in any::<Index>(),
    ) {
        let plain = pattern(len, 0);
        let mut stored = sealed(cipher, &plain, 1);
        let bit = bit.index(stored.len() * 8);
        stored[bit / 8] ^= 1 << (bit % 8);
        let found = OneFile::new(cipher, stored).damage(&plain);
        let blocks = u64::try_from(plain.len().div_ceil(4096)).unwrap();
        if bit / 8 < 2 {
            prop_assert_eq!(found.len() as u64, blocks);
            let version = |(at, what): &(u64, Damage)| *at == 0 && matches!(what, Damage::HeaderVersion { .. });
            prop_assert!(found.iter().all(version));
        } else if bit / 8 < HEADER {
            prop_assert_eq!(found, (0..blocks).map(|block| (block, Damage::Tag)).collect::<Vec<_>>());
        } else {
            let block = (bit / 8 - HEADER) / cipher.layout().sealed_block();
            prop_assert_eq!(found, [(block as u64, Damage::Tag)]);
        }
    }

    #[test]
    fn cut_is_corrupt_or_at_a_block_border(cipher in any_cipher(), len in 1_usize..20_000, cut in any::<Index>()) {
        let plain = pattern(len, 0);
        let mut stored = sealed(cipher, &plain, 1);
        let cut = cut.index(stored.len());
        stored.truncate(cut);
        let layout = cipher.layout();
        let shown = usize::try_from(layout.plain_len(cut as u64)).unwrap();
        let file = OneFile::new(cipher, stored);
        let result = file.read(0, len);
        let body = cut.saturating_sub(HEADER);
        let (whole, rest) = (body / layout.sealed_block(), body % layout.sealed_block());
        if rest == 0 {
            // The format cannot tell: this is what a signed manifest is for.
            prop_assert_eq!(result.unwrap(), &plain[..shown]);
            prop_assert_eq!(shown, whole * 4096);
        } else {
            let what = if rest <= layout.overhead() { Damage::TooShort } else { Damage::Tag };
            match result {
                Err(ContentError::Corrupt { block, what: how }) => prop_assert_eq!((block, how), (whole as u64, what)),
                other => prop_assert!(false, "{:?}", other.map(|bytes| bytes.len())),
            }
            prop_assert_eq!(file.read(0, whole * 4096).unwrap(), &plain[..whole * 4096]);
        }
    }

    /// Every pair of position classes: the first block, a middle one, the last full one, and the short tail.
    #[test]
    fn swapped_blocks_are_corrupt_and_the_others_are_not(cipher in any_cipher(), a in 0_usize..4, b in 0_usize..4) {
        prop_assume!(a != b);
        let plain = pattern(3 * 4096 + 777, 0);
        let stored = sealed(cipher, &plain, 1);
        let part = |number| &stored[place(cipher, number, stored.len())];
        let mut order = [0, 1, 2, 3];
        order.swap(a, b);
        let mut swapped = stored[..HEADER].to_vec();
        order.iter().for_each(|&number| swapped.extend_from_slice(part(number)));
        let found = OneFile::new(cipher, swapped).damage(&plain);
        // A short tail in another place moves everything behind it.
        let from = a.min(b) as u64;
        let expected: Vec<u64> = if a == 3 || b == 3 { (from..4).collect() } else { vec![from, a.max(b) as u64] };
        prop_assert_eq!(found, expected.into_iter().map(|block| (block, Damage::Tag)).collect::<Vec<_>>());
    }

    /// A block out of another file, or out of another life of the same file, which has another id.
    #[test]
    fn spliced_or_replayed_block_is_corrupt(
        cipher in any_cipher(),
        to in 0_usize..4,
        from in 0_usize..4,
        same_content: bool,
    ) {
        let plain = pattern(3 * 4096 + 777, 0);
        let other = sealed(cipher, &pattern(plain.len(), u8::from(!same_content)), 2);
        let mut stored = sealed(cipher, &plain, 1);
        let (to_range, from_range) = (place(cipher, to, stored.len()), place(cipher, from, other.len()));
        let len = to_range.len().min(from_range.len());
        stored[to_range.start..][..len].copy_from_slice(&other[from_range.start..][..len]);
        prop_assert_eq!(OneFile::new(cipher, stored).damage(&plain), [(to as u64, Damage::Tag)]);
    }
}

/// What the format lets pass, so that nobody takes it for protected: the file keeps its id when it is written to.
#[test]
fn older_state_of_the_same_block_of_the_same_file_passes() {
    for cipher in CIPHERS {
        let (old, new) = (pattern(9000, 1), pattern(9000, 2));
        let mut stored = sealed(cipher, &new, 1);
        let range = place(cipher, 1, stored.len());
        stored[range.clone()].copy_from_slice(&sealed(cipher, &old, 1)[range]);
        let mixed = [&new[..4096], &old[4096..8192], &new[8192..]].concat();
        assert_eq!(OneFile::new(cipher, stored).damage(&mixed), [], "{cipher:?}");
    }
}

#[test]
fn block_is_refused_under_any_other_cipher() {
    let plain = pattern(8192, 0);
    for (from, to) in CIPHERS.into_iter().flat_map(|from| CIPHERS.map(|to| (from, to))) {
        let file = OneFile::new(to, sealed(from, &plain, 1));
        assert_eq!(file.damage(&plain).is_empty(), from == to, "{from:?} read as {to:?}");
    }
}

#[test]
fn hole_reads_as_zeros_and_a_short_zero_tail_is_corrupt() {
    for cipher in CIPHERS {
        let mut plain = pattern(3 * 4096 + 100, 0);
        let mut stored = sealed(cipher, &plain, 1);
        let len = stored.len();
        stored[place(cipher, 1, len)].fill(0);
        plain[4096..8192].fill(0);
        let file = OneFile::new(cipher, stored.clone());
        assert_eq!(file.read(0, plain.len()).unwrap(), plain);
        assert_eq!(file.read(4000, 200).unwrap(), &plain[4000..4200]);

        stored[place(cipher, 3, len)].fill(0);
        assert_eq!(OneFile::new(cipher, stored.clone()).damage(&plain), [(3, Damage::ZeroNonce)]);

        // One byte of a hole that is not zero: no hole, and no nonce either.
        stored[place(cipher, 1, len).start + 99] = 1;
        let found = OneFile::new(cipher, stored).damage(&plain);
        assert_eq!(found, [(1, Damage::ZeroNonce), (3, Damage::ZeroNonce)], "{cipher:?}");
    }
}

#[test]
fn header_without_an_id_is_corrupt_for_every_block() {
    for cipher in CIPHERS {
        let plain = pattern(8192, 0);
        let mut stored = sealed(cipher, &plain, 1);
        stored[2..HEADER].fill(0);
        let found = OneFile::new(cipher, stored).damage(&plain);
        assert_eq!(found, [(0, Damage::ZeroFileId), (0, Damage::ZeroFileId)], "{cipher:?}");
    }
}

#[test]
fn symlink_target_with_any_byte_changed_is_skipped() {
    for cipher in CIPHERS {
        let keys = keys_with(features_of(cipher));
        let nonce = vec![3; keys.layout().nonce()];
        let target = seal_target(&keys, &nonce, OsStr::new("somewhere")).unwrap();
        let name = keys.names().encrypt(&root_iv(), OsStr::new("link")).unwrap().object;
        let tree = Tree::build(&Memory::new().symlink(&name, target.as_bytes()), &keys).unwrap();
        let link = tree.lookup(tree.root(), OsStr::new("link")).unwrap();
        assert_eq!(link.kind, Kind::Symlink { target: "somewhere".into() });
        for at in 0..target.len() {
            let mut changed = target.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let tree = Tree::build(&Memory::new().symlink(&name, &changed), &keys).unwrap();
            let reasons: Vec<_> = tree.skipped().iter().map(|skipped| skipped.reason).collect();
            assert!(
                matches!(reasons[..], [SkipReason::Target(Damage::Tag | Damage::NotBase64)]),
                "byte {at}"
            );
        }
    }
}

#[test]
fn extended_attribute_is_its_value_or_corrupt() {
    for raw64 in [true, false] {
        let keys = keys_with(Features { raw64, ..Features::default() });
        let stored =
            |name: &str| format!("user.gocryptfs.{}", keys.names().encrypt_xattr(OsStr::new(name)).unwrap());
        // A target is sealed as a value is, in base64: the form that early versions gave values, too.
        let text = seal_target(&keys, &[3; 16], OsStr::new("value")).unwrap();
        let mut damaged = text.clone().into_bytes();
        damaged[30] ^= 1;
        let source = Memory::new()
            .xattr("", &stored("user.empty"), b"")
            .xattr("", &stored("user.old"), text.as_bytes())
            .xattr("", &stored("user.bad"), &damaged)
            .xattr("", &stored("system.posix_acl_access"), b"encrypted once")
            .xattr("", "user.gocryptfs.AAAA", b"no name")
            .xattr("", "system.posix_acl_default", b"as it is")
            .xattr("", "user.foreign", b"not of this file system");
        let get = |name: &str| xattr(&source, &keys, None, OsStr::new(name));
        let mut found = xattr_names(&source, &keys, None).unwrap();
        found.names.sort();
        assert_eq!(found.names, ["system.posix_acl_default", "user.bad", "user.empty", "user.old"]);
        assert_eq!(found.skipped.len(), 2, "{:?}", found.skipped);
        assert_eq!(get("user.empty").unwrap(), Some(Vec::new()));
        assert_eq!(get("user.old").unwrap().unwrap(), b"value");
        assert_eq!(get("system.posix_acl_default").unwrap().unwrap(), b"as it is");
        for absent in ["user.foreign", "user.gocryptfs.AAAA", "system.posix_acl_access", "", "user.\0"] {
            assert_eq!(get(absent).unwrap(), None, "{absent:?}");
        }
        let error = get("user.bad").unwrap_err();
        assert!(matches!(&error, XattrError::Corrupt { name, .. } if name == "user.bad"), "{error}");
        let failing = source.failing();
        let error = xattr(&failing, &keys, None, OsStr::new("user.old")).unwrap_err();
        assert!(matches!(error, XattrError::Read(_)), "{error}");
    }
}
