//! Frozen bytes: what gocryptfs v2 writes stays readable, and what we write stays what it was.
//!
//! Vectors were made by an independent decoder of gocryptfs 2.4.0's format or, where random bytes are in them, by the real
//! gocryptfs 2.3, from the inputs named here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use cai::gocryptfs::content::{FileId, open_block, open_target, open_value, seal_block, seal_target};
use cai::gocryptfs::names::{DirIv, NameError, StoredName};
use cai::gocryptfs::{Cipher, Conf, Damage, Features, FormatError, Keys, Naming, Passphrase, unlock};
use cai::keyring::Secret;

/// Master key 00 01 .. 1f.
fn keys() -> Keys {
    keys_with(Features::default())
}

fn keys_with(features: Features) -> Keys {
    Keys::from_master(&Secret::copy_of(&range::<32>(0)).unwrap(), features).unwrap()
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
    seal_block(&keys, id, 0, &range::<16>(0x20), b"It works!\n", &mut sealed).unwrap();
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
    assert_eq!(seal_target(&keys(), &range::<16>(0x20), OsStr::new("status.txt")), Ok(stored.to_owned()));
    assert_eq!(open_target(&keys(), stored.as_bytes()), Ok("status.txt".into()));
    assert_eq!(open_target(&keys(), b"?"), Err(Damage::NotBase64));
    assert_eq!(open_target(&keys(), b"ICEiIyQl"), Err(Damage::TooShort));
    assert_eq!(open_target(&keys(), stored.replace('w', "x").as_bytes()), Err(Damage::Tag));
}

#[test]
fn symlink_target_of_3039_bytes_is_the_longest() {
    let nonce = range::<16>(0x20);
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

/// The conf with these flags; an `EncryptedKey` of the length that goes with them.
fn conf_with(flags: &[&str], long_name_max: &str) -> Result<Conf, FormatError> {
    let mut conf: serde_json::Value = serde_json::from_str(CONF).unwrap();
    conf["FeatureFlags"] = serde_json::json!(flags);
    conf["LongNameMax"] = serde_json::from_str(long_name_max).unwrap();
    if !flags.contains(&"HKDF") {
        conf["EncryptedKey"] = serde_json::json!("A".repeat(80));
    }
    Conf::parse(conf.to_string().as_bytes())
}

const DEFAULT: [&str; 6] = ["HKDF", "GCMIV128", "DirIV", "EMENames", "LongNames", "Raw64"];

#[test]
fn conf_with_flags_says_how_the_directory_is_stored() {
    let default = Features::default();
    let old = Features { hkdf: false, raw64: false, ..default };
    let plain = Features { naming: Naming::Plain, raw64: false, ..default };
    for (flags, features) in [
        (&DEFAULT[..], default),
        (&["HKDF", "XChaCha20Poly1305", "DirIV", "EMENames", "LongNames", "Raw64"], {
            Features { cipher: Cipher::XChaCha20Poly1305, ..default }
        }),
        (&["HKDF", "GCMIV128", "DirIV", "EMENames", "LongNames", "Raw64", "AESSIV"], {
            Features { cipher: Cipher::AesSiv, ..default }
        }),
        (&["HKDF", "GCMIV128", "PlaintextNames"], plain),
        (&["HKDF", "GCMIV128", "PlaintextNames", "AESSIV"], Features { cipher: Cipher::AesSiv, ..plain }),
        (&["HKDF", "GCMIV128", "EMENames", "LongNames", "Raw64"], {
            Features { naming: Naming::Deterministic, ..default }
        }),
        // What gocryptfs 0.7, 0.9 and 1.1 wrote.
        (&["GCMIV128", "DirIV", "EMENames"], old),
        (&["GCMIV128", "DirIV", "EMENames", "LongNames"], old),
        (
            &["GCMIV128", "DirIV", "EMENames", "LongNames", "AESSIV"],
            Features { cipher: Cipher::AesSiv, ..old },
        ),
        (&["GCMIV128", "PlaintextNames"], Features { hkdf: false, ..plain }),
    ] {
        assert_eq!(conf_with(flags, "null").unwrap().features(), features, "{flags:?}");
    }
    let longer = [&DEFAULT[..], &["LongNameMax"]].concat();
    assert_eq!(conf_with(&longer, "100").unwrap().features(), Features { longest_name: 100, ..default });
    let written = String::from_utf8(conf_with(&longer, "100").unwrap().to_json().unwrap()).unwrap();
    assert!(written.contains("\"LongNameMax\"\n\t],\n\t\"LongNameMax\": 100\n}"), "{written}");
    assert_eq!(Conf::parse(written.as_bytes()).unwrap().features().longest_name, 100);
}

#[test]
fn conf_with_an_unknown_flag_or_a_token_is_refused_by_name() {
    let with = |flag| match conf_with(&[&DEFAULT[..], &[flag]].concat(), "null") {
        Ok(_) => panic!("{flag} was accepted"),
        Err(error) => error,
    };
    let error = with("StrangeFeature");
    assert!(matches!(&error, FormatError::UnknownFlag { flag } if flag == "StrangeFeature"), "{error}");
    assert_eq!(error.to_string(), "feature flag \"StrangeFeature\" is unknown");
    // Of the version after 2.4.0's.
    assert!(matches!(with("AEGIS256X2"), FormatError::UnknownFlag { .. }));
    assert!(with("FIDO2").to_string().contains("opened with a FIDO2 token"));
}

#[test]
fn conf_with_flags_that_do_not_go_together_is_refused_as_gocryptfs_does() {
    let without = |flag: &str| DEFAULT.into_iter().filter(|other| *other != flag).collect::<Vec<_>>();
    let refused = |flags: &[&str], field| match conf_with(flags, field) {
        Ok(_) => panic!("{flags:?} with {field} was accepted"),
        Err(error) => error,
    };
    let missing = |flags: &[&str], flag: &str, by: &str| {
        let error = refused(flags, "null");
        assert!(
            matches!(error, FormatError::MissingFlag { flag: f, by: b } if (f, b) == (flag, by)),
            "{error}"
        );
    };
    missing(&without("GCMIV128"), "GCMIV128", "AES-GCM");
    missing(&[&without("GCMIV128")[..], &["AESSIV"]].concat(), "GCMIV128", "AESSIV");
    missing(&["XChaCha20Poly1305", "EMENames"], "HKDF", "XChaCha20Poly1305");
    let conflict = |flags: &[&str], flag: &str, other: &str| {
        let error = refused(flags, "null");
        assert!(
            matches!(error, FormatError::FlagConflict { flag: f, other: o } if (f, o) == (flag, other)),
            "{error}"
        );
    };
    conflict(&[&DEFAULT[..], &["XChaCha20Poly1305"]].concat(), "XChaCha20Poly1305", "GCMIV128");
    conflict(&["HKDF", "XChaCha20Poly1305", "AESSIV"], "XChaCha20Poly1305", "AESSIV");
    for other in ["EMENames", "DirIV", "LongNames", "Raw64", "LongNameMax"] {
        conflict(&["HKDF", "GCMIV128", "PlaintextNames", other], "PlaintextNames", other);
    }
    let with_max = [&DEFAULT[..], &["LongNameMax"]].concat();
    for (flags, field) in [(&with_max[..], "null"), (&with_max, "0"), (&DEFAULT, "100"), (&DEFAULT, "255")] {
        let error = refused(flags, field);
        assert!(matches!(error, FormatError::LongNameMax { .. }), "{error}");
    }
    assert!(matches!(refused(&with_max, "256"), FormatError::Field { field: "LongNameMax", .. }));
}

#[test]
fn conf_with_a_key_of_the_other_generations_length_is_refused() {
    let old = CONF.replace("\t\t\"HKDF\",\n", "");
    assert!(matches!(Conf::parse(old.as_bytes()), Err(FormatError::Bytes { field: "EncryptedKey" })));
}

/// What gocryptfs 2.3 wrote with `-masterkey` 00 01 .. 1f and these features: the file `status.txt` with `It works!\n` and
/// the attribute `user.foo=bar`, and the link `rel` to it, in a directory with the IV 10 11 .. 1f.
struct Peer {
    features: Features,
    name: &'static str,
    file: &'static str,
    link: &'static str,
    xattr: (&'static str, &'static str),
}

const FOO: &str = "49MtW6o4r3wu_Jt77wclOA";
const OLD_FOO: &str = "JuBLpKKDpN-e4M9FnWb_qQ==";
const LATEST: Features =
    Features { cipher: Cipher::AesGcm, naming: Naming::DirIv, longest_name: 255, raw64: true, hkdf: true };
const OLD: Features = Features { raw64: false, hkdf: false, ..LATEST };

const PEERS: [Peer; 8] = [
    Peer {
        features: LATEST,
        name: "zswanqcI60tvbHMQhXO69g",
        file: "00022d30a1f85d2aafa719e43cd9f3f2130e74dc182de2d111599f40668dcf9763ae6dc3da399c7d833aa31d7cc3fac3\
               eb73c8783203f132945fc7d2",
        link: "_gADOOJQSvpj-fJaoLS-cLr4B-eiHU3DPXIf91dCiMBVQm0-RmEDPH7B",
        xattr: (FOO, "d78dc31c6e76f3177d53cbb633cc2b8b57248fdc07386947b9e8749e55e7da75efe799"),
    },
    Peer {
        features: Features { cipher: Cipher::XChaCha20Poly1305, ..LATEST },
        name: "zswanqcI60tvbHMQhXO69g",
        file: "0002461bd60f2e49ae524b563e2a5980da85ca0af6e214cbe740f4208eacecb9162269d0a1785ceb3062713d6e6d8f07\
               53519bfabae66f60904960c8d5283a702f1852df",
        link: "ULRlGz0-uZJC8Up_HEzNVo2dmpOhH3KInuXcR6K6CenS1TIyD9eyd_sA4kA5KmmJpOA",
        xattr: (
            FOO,
            "47a133c5ab48733c926a4472d1613220b2ffa365720b17e8b6a686c086279f9c591a6a20389cb0587d04f4",
        ),
    },
    Peer {
        features: Features { cipher: Cipher::AesSiv, ..LATEST },
        name: "zswanqcI60tvbHMQhXO69g",
        file: "0002131400badea7aaf126011bf820f9c6533641dfce2fa4f536fab36d560d2938877658b922b2469853c291b8a79611\
               81e7178e5512f59b3175c126",
        link: "x5bUT3t99smxtFt4oadBMEP-GMB8xqYsgDu3jjLn2MBv9HdhcssIyV-Q",
        xattr: (FOO, "25b264005d9bbe29cdaa6fc7c5d9f3c9a66f73056b5dcd70d8aca6973bc674d4e8fc04"),
    },
    Peer {
        features: OLD,
        name: "T9Nuk_uqNAcnL6UF-94mBw==",
        file: "000250e9bf94fec622395eb2667623010dbee4a5db072846eb735d6877c7554d614ee8cc54bd96e38ab1b0f8060aad33\
               be033058d02b97afc4e61dff",
        link: "_4iSMITRtstm54Hjh2-tHBG0O1kZBbqCoH2SarfPMqL6jAuKVJjmpMIl",
        xattr: (OLD_FOO, "e4aed7e8fc1e4ef9cb66b06f2c1fd7b058b0e2f66fda035cf6910395b38d31c7279dab"),
    },
    Peer {
        features: Features { cipher: Cipher::AesSiv, ..OLD },
        name: "T9Nuk_uqNAcnL6UF-94mBw==",
        file: "0002d3c054d194753e04de5d604fc50976c8ec6b65af1ff32797b491f200224bce432348c76dde1334c199be8dcabcfe\
               0b1fc97963d8e1977e8ffdda",
        link: "8-et8shULiWOXjuDvy900VgxsoPey7K1wOR2un7J8GkvWg_85P0lNq5O",
        xattr: (OLD_FOO, "af730856296c380b9561f00618f9d9eef5a3b0df83ef2d3b4380bb91d10935724b06da"),
    },
    Peer {
        features: Features { naming: Naming::Deterministic, ..LATEST },
        name: "KDTdVr8JEi7FIBjnVkqXQQ",
        file: "0002149b7b9281f3b1c807bfaf1761fa6de67ad1b6e7fb9a992170c35828ed7720fbd700427aefc5a70bbece525de5dc\
               59c4fdc001db094e631cf5ad",
        link: "KxpDwgRyl8nd4uX0w5E9pme5sclfAlTySajrq0As_rtSq6t7vZLWdt4G",
        xattr: (FOO, "e2af949eb4f4f4b739f322430e4e62e4fbf22a296d2306a0e6f6efbb8a1d4608ae1201"),
    },
    Peer {
        features: Features { naming: Naming::Plain, ..LATEST },
        name: "status.txt",
        file: "0002aab2ae95547a1a1762ad92b4d8a542eaeff35faf0d71b0467ad9222a8aca26db47d9c53ee85514b55fe75eaf3e3e\
               459145b5074e6f2a7e6c771a",
        link: "status.txt",
        xattr: (FOO, "8b81ac72b92705d37321847a0548c3cee14f20f9f403502aedd59dd24dadccf95e9868"),
    },
    Peer {
        features: Features { naming: Naming::Plain, raw64: false, ..LATEST },
        name: "status.txt",
        file: "000256564d1775a040e99b5a3b777ed7ca38d6255beaa3241b27a7a18334e4a33634d000d1b2de53f738dc4117c7ffc9\
               c701fcfb485441a9c56a57af",
        link: "status.txt",
        xattr: (
            "49MtW6o4r3wu_Jt77wclOA==",
            "1709ce4f158e10a62c6fc29ac852aa525505327ca11ea50eb20f98f68165a6dd0e3972",
        ),
    },
];

#[test]
fn what_gocryptfs_wrote_with_each_feature_is_read() {
    for Peer { features, name, file, link, xattr: (xattr, value) } in PEERS {
        let keys = keys_with(features);
        let names = keys.names();
        let iv = match features.naming {
            Naming::DirIv => DirIv::new(range(0x10)).unwrap(),
            Naming::Deterministic | Naming::Plain => DirIv::DETERMINISTIC,
        };
        if features.naming != Naming::Plain {
            assert_eq!(names.decrypt(&iv, name.as_bytes()), Ok("status.txt".into()), "{features:?}");
            assert_eq!(names.encrypt(&iv, OsStr::new("status.txt")).unwrap().object, name, "{features:?}");
            assert_eq!(open_target(&keys, link.as_bytes()), Ok("status.txt".into()), "{features:?}");
        }
        let file = hex(file);
        let (header, block) = file.split_first_chunk().unwrap();
        let mut plain = [0; 10];
        open_block(&keys, FileId::from_header(header).unwrap(), 0, block, &mut plain).unwrap();
        assert_eq!(&plain, b"It works!\n", "{features:?}");
        assert_eq!(names.decrypt_xattr(xattr.as_bytes()), Ok("user.foo".into()), "{features:?}");
        assert_eq!(open_value(&keys, &hex(value)).unwrap(), b"bar", "{features:?}");

        // The same again under the nonce they chose.
        let mut sealed = vec![0; block.len()];
        let nonce = &block[..features.cipher.layout().nonce()];
        let id = FileId::from_header(header).unwrap();
        seal_block(&keys, id, 0, nonce, b"It works!\n", &mut sealed).unwrap();
        assert_eq!(sealed, block, "{features:?}");
    }
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
