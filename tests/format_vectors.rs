//! Frozen bytes: what gocryptfs v2 writes stays readable, and what we write stays what it was.
//!
//! Vectors were made with gocryptfs 2.4.0's format by an independent decoder, from the inputs named here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use cai::gocryptfs::content::{FileId, open_block, open_target, seal_block, seal_target};
use cai::gocryptfs::names::{DirIv, NameError, StoredName};
use cai::gocryptfs::{Conf, Damage, FormatError, Keys, Passphrase, unlock};
use cai::keyring::Secret;

/// Master key 00 01 .. 1f.
fn keys() -> Keys {
    Keys::from_master(&Secret::copy_of(&range::<32>(0)).unwrap()).unwrap()
}

/// `N` bytes counting up from `first`.
fn range<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|i| first + u8::try_from(i).unwrap())
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn passphrase(text: &[u8]) -> Passphrase {
    Passphrase::from_secret(&Secret::copy_of(text).unwrap()).unwrap()
}

const SHORT_NAMES: [(&str, &str); 4] = [
    ("a", "bzRnAUsfp9ZwhiyIKhK--g"),
    ("status.txt", "zswanqcI60tvbHMQhXO69g"),
    ("model-00001-of-00002.safetensors", "HaubF1SvUHmr2dfPzSO_jMqjEi4tLdFtPI7lLsDUOJUvkQfTBpgvFoXBAh5zxIyt"),
    ("\u{4f60}\u{597d}", "dP2L1Tq5QmGbcoIT0qu6ow"),
];

#[test]
fn names_both_ways_are_gocryptfs_own() {
    let (names, iv) = (keys().names(), DirIv::new(range(0x10)).unwrap());
    for (plain, stored) in SHORT_NAMES {
        let object = stored.to_owned();
        assert_eq!(
            names.encrypt(&iv, OsStr::new(plain)),
            Ok(StoredName { object, text_file: None }),
            "{plain}"
        );
        assert_eq!(names.decrypt(&iv, stored.as_bytes()), Ok(plain.into()), "{plain}");
    }
}

#[test]
fn long_name_is_stored_under_its_hash_with_the_text_beside_it() {
    let (names, iv) = (keys().names(), DirIv::new(range(0x10)).unwrap());
    let plain = "n".repeat(176);
    let stored = names.encrypt(&iv, OsStr::new(&plain)).unwrap();
    assert_eq!(stored.object, "gocryptfs.longname.iDYYSri-tiyzh7wm02uZgGl1vM3EZBt_kQ5-GTsRsvI");
    let (file, text) = stored.text_file.unwrap();
    assert_eq!(file, "gocryptfs.longname.iDYYSri-tiyzh7wm02uZgGl1vM3EZBt_kQ5-GTsRsvI.name");
    assert_eq!(text.len(), 256);
    assert!(text.starts_with("s8EpgIrsTHFfk8xtv8cezfd4Vmu35YUoApOmXVkM"), "{text}");
    assert_eq!(names.decrypt(&iv, text.as_bytes()), Ok(plain.into()));
}

#[test]
fn name_under_another_directory_iv_does_not_decrypt() {
    let (names, iv) = (keys().names(), DirIv::new(range(0x11)).unwrap());
    for (plain, stored) in SHORT_NAMES {
        assert_eq!(names.decrypt(&iv, stored.as_bytes()), Err(NameError::BadPadding), "{plain}");
    }
}

#[test]
fn block_both_ways_is_gocryptfs_own() {
    let (keys, id) = (keys(), FileId::new(range(0x30)).unwrap());
    let stored = hex("202122232425262728292a2b2c2d2e2f354430acac389379ac32aa1669c7064e62f94137b26ceb743126");
    let mut sealed = vec![0; 10 + 32];
    seal_block(&keys, id, 0, &range(0x20), b"It works!\n", &mut sealed).unwrap();
    assert_eq!(sealed, stored);
    let mut plain = [0; 10];
    open_block(&keys, id, 0, &stored, &mut plain).unwrap();
    assert_eq!(&plain, b"It works!\n");
    assert_eq!(open_block(&keys, id, 1, &stored, &mut plain), Err(Damage::Tag));
    assert_eq!(plain, [0; 10]);
    assert_eq!(
        open_block(&keys, FileId::new(range(0x31)).unwrap(), 0, &stored, &mut plain),
        Err(Damage::Tag)
    );
}

#[test]
fn header_both_ways_is_version_and_id() {
    let id = FileId::new(range(0x30)).unwrap();
    let header = id.to_header();
    assert_eq!(header[..], hex("0002303132333435363738393a3b3c3d3e3f"));
    assert_eq!(FileId::from_header(&header), Ok(id));
    let mut other = header;
    other[1] = 3;
    assert_eq!(FileId::from_header(&other), Err(Damage::HeaderVersion { found: 3 }));
    assert_eq!(FileId::from_header(&[0; 18]), Err(Damage::HeaderVersion { found: 0 }));
    let mut no_id = [0; 18];
    no_id[1] = 2;
    assert_eq!(FileId::from_header(&no_id), Err(Damage::ZeroFileId));
}

#[test]
fn symlink_target_both_ways_is_gocryptfs_own() {
    let stored = "ICEiIyQlJicoKSorLC0uLw9Eca-2OdZ-9UweKWrr3xD5s2HG5fTAoLK_";
    assert_eq!(seal_target(&keys(), &range(0x20), OsStr::new("status.txt")), Ok(stored.to_owned()));
    assert_eq!(open_target(&keys(), stored.as_bytes()), Ok("status.txt".into()));
    assert_eq!(open_target(&keys(), b"?"), Err(Damage::NotBase64));
    assert_eq!(open_target(&keys(), b"ICEiIyQl"), Err(Damage::TooShort));
    assert_eq!(open_target(&keys(), stored.replace('w', "x").as_bytes()), Err(Damage::Tag));
}

#[test]
fn symlink_target_of_3039_bytes_is_the_longest() {
    let nonce = range(0x20);
    let longest = "t".repeat(3039);
    let stored = seal_target(&keys(), &nonce, OsStr::new(&longest)).unwrap();
    assert_eq!(stored.len(), 4095);
    assert_eq!(open_target(&keys(), stored.as_bytes()), Ok(longest.into()));
    for refused in [&b""[..], &[b't'; 3040], b"a\0b"] {
        assert_eq!(seal_target(&keys(), &nonce, OsStr::from_bytes(refused)), Err(Damage::IllegalTarget));
    }
}

/// Written by `gocryptfs -init -scryptn 10` 2.3 with the password `test`.
const CONF: &str = include_str!("vectors/gocryptfs.conf");

#[test]
fn conf_of_gocryptfs_opens_with_its_password_only() {
    let conf = Conf::parse(CONF.as_bytes()).unwrap();
    assert_eq!(conf.creator, "gocryptfs 2.3");
    assert!(unlock(&conf, &passphrase(b"test")).is_ok());
    assert!(unlock(&conf, &passphrase(b"test\n")).is_ok());
    assert!(matches!(unlock(&conf, &passphrase(b"test\r\n")), Err(FormatError::WrongPassword)));
    assert!(matches!(unlock(&conf, &passphrase(b"Test")), Err(FormatError::WrongPassword)));
}

#[test]
fn conf_written_back_is_the_file_gocryptfs_wrote() {
    let conf = Conf::parse(CONF.as_bytes()).unwrap();
    assert_eq!(String::from_utf8(conf.to_json().unwrap()).unwrap(), CONF);
}

#[test]
fn conf_field_names_match_in_any_case_and_the_last_one_wins() {
    let shouted = CONF
        .replace("\"Creator\"", "\"CREATOR\"")
        .replace("\"ScryptObject\"", "\"scryptobject\"")
        .replace("\"KeyLen\"", "\"keylen\"")
        .replace("\"Version\": 2", "\"Version\": 7, \"version\": 2, \"Unknown\": [{}], \"FIDO2\": null");
    assert!(unlock(&Conf::parse(shouted.as_bytes()).unwrap(), &passphrase(b"test")).is_ok());
    let last = CONF.replace("\"Version\": 2", "\"version\": 2, \"Version\": 7");
    assert!(matches!(Conf::parse(last.as_bytes()), Err(FormatError::Version { found: 7 })));
}

fn parse_with(from: &str, to: &str) -> FormatError {
    let changed = CONF.replace(from, to);
    assert_ne!(changed, CONF, "{from} is not in the conf");
    match Conf::parse(changed.as_bytes()) {
        Ok(_) => panic!("{to} was accepted"),
        Err(error) => error,
    }
}

#[test]
fn conf_with_another_feature_is_refused_by_its_name() {
    for flag in ["PlaintextNames", "LongNameMax", "AESSIV", "FIDO2", "XChaCha20Poly1305"] {
        let error = parse_with("\"Raw64\"", &format!("\"Raw64\", \"{flag}\""));
        assert!(matches!(&error, FormatError::UnsupportedFlag { flag: found } if found == flag), "{error}");
    }
    let error = parse_with("\"Raw64\"", "\"Raw64\", \"StrangeFeature\"");
    assert!(matches!(&error, FormatError::UnknownFlag { flag } if flag == "StrangeFeature"), "{error}");
    for flag in ["HKDF", "GCMIV128", "DirIV", "EMENames", "LongNames"] {
        let error = parse_with(&format!("\"{flag}\",\n"), "\n");
        assert!(matches!(error, FormatError::MissingFlag { flag: found } if found == flag), "{error}");
    }
    let error = parse_with("\"Version\": 2", "\"Version\": 2, \"LongNameMax\": 100");
    assert!(matches!(&error, FormatError::UnsupportedFlag { flag } if flag == "LongNameMax"), "{error}");
}

#[test]
fn conf_with_unsafe_scrypt_parameters_is_refused_before_they_are_used() {
    for (from, to, parameter, value) in [
        ("\"N\": 1024", "\"N\": 65535", "N", 65_535),
        ("\"N\": 1024", "\"N\": 512", "N", 512),
        ("\"N\": 1024", "\"N\": 0", "N", 0),
        ("\"N\": 1024", "\"N\": 2097152", "128*N*R", 1 << 31),
        ("\"N\": 1024", "\"N\": 9223372036854775808", "128*N*R", u64::MAX),
        ("\"R\": 8", "\"R\": 7", "R", 7),
        ("\"R\": 8", "\"R\": 16384", "128*N*R", 1 << 31),
        ("\"P\": 1", "\"P\": 0", "P", 0),
        ("\"P\": 1", "\"P\": 5000", "128*N*R*P", 5000 << 20),
        ("\"KeyLen\": 32", "\"KeyLen\": 64", "KeyLen", 64),
    ] {
        match parse_with(from, to) {
            FormatError::Scrypt { parameter: p, value: v } => assert_eq!((p, v), (parameter, value), "{to}"),
            other => panic!("{to}: {other}"),
        }
    }
}

#[test]
fn conf_that_is_damaged_says_where() {
    assert!(matches!(Conf::parse(b""), Err(FormatError::Json(_))));
    assert!(matches!(Conf::parse(b"[]"), Err(FormatError::Json(_))));
    assert!(matches!(Conf::parse(&CONF.as_bytes()[..100]), Err(FormatError::Json(_))));
    assert!(matches!(Conf::parse(&[b' '; 65_537]), Err(FormatError::TooLarge { len: 65_537 })));
    assert!(matches!(parse_with("\"Version\"", "\"V\""), FormatError::MissingField { field: "Version" }));
    assert!(matches!(parse_with("\"N\": 1024", "\"N\": \"x\""), FormatError::Field { field: "N", .. }));
    assert!(matches!(parse_with("\"N\": 1024", "\"N\": -1"), FormatError::Field { field: "N", .. }));
    assert!(matches!(
        parse_with("\"EncryptedKey\": \"", "\"EncryptedKey\": \"AAAA"),
        FormatError::Bytes { field: "EncryptedKey" }
    ));
    assert!(matches!(parse_with("\"Salt\": \"", "\"Salt\": \"*"), FormatError::Bytes { field: "Salt" }));
    assert!(matches!(
        parse_with("\"Salt\": \"", "\"Salt\": \"\", \"x\": \""),
        FormatError::Bytes { field: "Salt" }
    ));
}

#[test]
fn conf_create_refuses_a_cost_it_would_not_open() {
    for log_n in [0, 9, 21, 64] {
        let created = Conf::create(&passphrase(b"test"), log_n);
        assert!(
            matches!(created, Err(FormatError::Scrypt { value, .. }) if value == u64::from(log_n)),
            "{log_n}"
        );
    }
    let (conf, _keys) = Conf::create(&passphrase(b"test"), 10).unwrap();
    let again = Conf::parse(&conf.to_json().unwrap()).unwrap();
    assert!(unlock(&again, &passphrase(b"test")).is_ok());
    assert!(matches!(unlock(&again, &passphrase(b"tesu")), Err(FormatError::WrongPassword)));
}
