//! `gocryptfs.conf`: parsed, validated, written.
//!
//! The conf comes from the same place as the ciphertext, so nothing in it is trusted before it is checked: sizes, scrypt
//! parameters, and the feature flags (`features.rs`).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::FormatError;
use super::features::{Features, Flag};
use super::keys::{self, Keys};
use super::passphrase::Passphrase;
use crate::ciphertext::{Ciphertext, EntryId, EntryKind, ReadError};
use crate::keyring::Secret;

/// Name of the conf in the root of a ciphertext directory.
pub const CONF_NAME: &str = "gocryptfs.conf";
/// gocryptfs' default `-scryptn`: N = 65536, 64 MiB.
pub const DEFAULT_SCRYPT_LOG_N: u8 = 16;
/// gocryptfs writes under 1 KiB; a FIDO2 block adds little. More is not a conf.
pub(super) const LARGEST_CONF: usize = 64 * 1024;
/// The only on-disk version.
pub(super) const VERSION: u16 = 2;
/// `-scryptn` as gocryptfs allows it from below (1024), and from above what the memory bound gives with R = 8.
const SCRYPT_LOG_N: std::ops::RangeInclusive<u32> = 10..=20;
/// Memory of one scrypt run, `128 * N * R` bytes: 16 times gocryptfs' default.
const LARGEST_SCRYPT_MEMORY: u64 = 1 << 30;
/// Work of one scrypt run, `128 * N * R * P` bytes: about ten seconds.
const LARGEST_SCRYPT_WORK: u64 = 4 << 30;
/// Salt bytes: gocryptfs' minimum, and a bound.
const SALT: std::ops::RangeInclusive<usize> = 32..=1024;
/// Bytes scrypt must give; gocryptfs takes no other key length.
const SCRYPT_KEY_LEN: u64 = 32;

/// scrypt's cost and salt, within bounds.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ScryptParams {
    pub(super) salt: Vec<u8>,
    pub(super) log_n: u8,
    pub(super) r: u32,
    pub(super) p: u32,
}

/// The master key under the password's key: nonce, ciphertext, tag.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SealedKey {
    /// 16 bytes; 12 without HKDF.
    pub(super) nonce: Vec<u8>,
    pub(super) sealed: [u8; 32],
    pub(super) tag: [u8; 16],
}

/// A validated `gocryptfs.conf`. Holds nothing secret beyond the sealed master key.
#[derive(Clone)]
pub struct Conf {
    /// `Creator`, for information only.
    pub creator: String,
    /// As they were read.
    flags: Vec<Flag>,
    /// 0 where it is not set.
    long_name_max: u8,
    features: Features,
    pub(super) key: SealedKey,
    pub(super) scrypt: ScryptParams,
}

impl Conf {
    /// Parse as gocryptfs does: field names in any case, the last of two wins, unknown fields ignored.
    ///
    /// # Errors
    /// [`FormatError`], naming the field, flag or parameter.
    pub fn parse(json: &[u8]) -> Result<Conf, FormatError> {
        if json.len() > LARGEST_CONF {
            return Err(FormatError::TooLarge { len: u64::try_from(json.len()).unwrap_or(u64::MAX) });
        }
        let fields: Fields = serde_json::from_slice(json).map_err(FormatError::Json)?;
        let found: u64 = fields.required("Version")?;
        if found != u64::from(VERSION) {
            return Err(FormatError::Version { found });
        }
        let flags = Flag::parse(&fields.optional::<Vec<String>>("FeatureFlags")?.unwrap_or_default())?;
        let long_name_max = fields.optional("LongNameMax")?.unwrap_or(0);
        let features = Features::new(&flags, long_name_max)?;
        let key = fields.bytes("EncryptedKey")?;
        let key = SealedKey::from_bytes(&key, keys::wrap_nonce(&features));
        Ok(Conf {
            creator: fields.optional("Creator")?.unwrap_or_default(),
            flags,
            long_name_max,
            features,
            key: key.ok_or(FormatError::Bytes { field: "EncryptedKey" })?,
            scrypt: ScryptParams::from_fields(&fields.required("ScryptObject")?)?,
        })
    }

    /// Most bytes that a conf can have.
    pub fn largest() -> u64 {
        u64::try_from(LARGEST_CONF).unwrap_or(u64::MAX)
    }

    /// How the directory is stored.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Find, read and parse the conf of a ciphertext tree.
    ///
    /// # Errors
    /// [`FormatError::NoConf`], [`FormatError::ReadConf`], or as [`Conf::parse`].
    pub fn read_from(source: &dyn Ciphertext) -> Result<Conf, FormatError> {
        let entries = source.entries();
        let index = entries.iter().position(|entry| entry.path.as_os_str() == CONF_NAME);
        let (id, entry) = index
            .and_then(|index| Some((EntryId(u32::try_from(index).ok()?), entries.get(index)?)))
            .ok_or(FormatError::NoConf)?;
        let EntryKind::File { len } = entry.kind else { return Err(FormatError::NoConf) };
        let size = usize::try_from(len).ok().filter(|&size| size <= LARGEST_CONF);
        let mut json = vec![0; size.ok_or(FormatError::TooLarge { len })?];
        source.read_at(id, 0, &mut json).map_err(FormatError::ReadConf)?;
        Conf::parse(&json)
    }

    /// Read and parse the conf in the directory `dir`.
    ///
    /// # Errors
    /// As [`Conf::read_from`].
    pub fn read_file(dir: &Path) -> Result<Conf, FormatError> {
        let path = dir.join(CONF_NAME);
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => FormatError::NoConf,
            _ => FormatError::ReadConf(ReadError::Io { path: path.display().to_string(), source }),
        };
        let mut json = Vec::new();
        let limit = Conf::largest().saturating_add(1);
        File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut json)).map_err(failed)?;
        Conf::parse(&json)
    }

    /// A new conf and its keys: random master key and salt, `N = 2^scrypt_log_n` (10 to 20), R = 8, P = 1.
    ///
    /// # Errors
    /// [`FormatError::Scrypt`] for another cost; [`FormatError::Lock`], [`FormatError::Random`].
    pub fn create(passphrase: &Passphrase, scrypt_log_n: u8) -> Result<(Conf, Keys), FormatError> {
        if !SCRYPT_LOG_N.contains(&u32::from(scrypt_log_n)) {
            return Err(FormatError::Scrypt { parameter: "log2(N)", value: u64::from(scrypt_log_n) });
        }
        let mut scrypt = ScryptParams { salt: vec![0; *SALT.start()], log_n: scrypt_log_n, r: 8, p: 1 };
        getrandom::fill(&mut scrypt.salt)?;
        let master = Secret::fill(32, |key| {
            getrandom::fill(key)?;
            Ok::<_, FormatError>(key.len())
        })?;
        let features = Features::default();
        let key = keys::wrap(&master, passphrase, &scrypt, &features)?;
        let creator = format!("cai {}", env!("CARGO_PKG_VERSION"));
        let flags = Flag::DEFAULT.to_vec();
        let conf = Conf { creator, flags, long_name_max: 0, features, key, scrypt };
        Ok((conf, Keys::from_master(&master, features)?))
    }

    /// The file's content: gocryptfs' field order, tab indented, with a final newline.
    ///
    /// # Errors
    /// [`FormatError::Json`], which no conf has been seen to give.
    pub fn to_json(&self) -> Result<Vec<u8>, FormatError> {
        let conf = ConfJson {
            creator: &self.creator,
            encrypted_key: STANDARD.encode(self.key.to_bytes()),
            scrypt_object: ScryptJson::from(&self.scrypt),
            version: VERSION,
            feature_flags: self.flags.iter().map(|flag| flag.name()).collect(),
            long_name_max: Some(self.long_name_max).filter(|&max| max != 0),
        };
        to_json(&conf)
    }
}

/// As gocryptfs writes JSON: tab indented, with a final newline.
fn to_json(value: &impl Serialize) -> Result<Vec<u8>, FormatError> {
    let mut json = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut json, indent))
        .map_err(FormatError::Json)?;
    json.push(b'\n');
    Ok(json)
}

/// Fields that hold the master key and how its password is stretched.
const KEY_FIELDS: [&str; 2] = ["EncryptedKey", "ScryptObject"];

impl Conf {
    /// The conf `json`, which this was parsed from, with `master` sealed under another password: a new salt, the same cost,
    /// every other field as it is.
    ///
    /// # Errors
    /// [`FormatError::Lock`], [`FormatError::Random`]; [`FormatError::Json`], which no conf has been seen to give.
    pub(super) fn resealed(
        &self,
        json: &[u8],
        master: &Secret,
        passphrase: &Passphrase,
    ) -> Result<Vec<u8>, FormatError> {
        let mut scrypt = self.scrypt.clone();
        getrandom::fill(&mut scrypt.salt)?;
        let key = keys::wrap(master, passphrase, &scrypt, &self.features)?;
        let Fields(mut fields) = serde_json::from_slice(json).map_err(FormatError::Json)?;
        // Two spellings of one field would be two again, and only the last counts: both go.
        fields.retain(|(name, _)| !KEY_FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field)));
        let key =
            serde_json::value::to_raw_value(&STANDARD.encode(key.to_bytes())).map_err(FormatError::Json)?;
        let scrypt =
            serde_json::value::to_raw_value(&ScryptJson::from(&scrypt)).map_err(FormatError::Json)?;
        fields.extend(KEY_FIELDS.map(str::to_owned).into_iter().zip([key, scrypt]));
        to_json(&Fields(fields))
    }
}

impl ScryptParams {
    fn from_fields(fields: &Fields) -> Result<Self, FormatError> {
        let (n, r, p): (u64, u64, u64) =
            (fields.required("N")?, fields.required("R")?, fields.required("P")?);
        let refuse = |parameter, value| FormatError::Scrypt { parameter, value };
        if !n.is_power_of_two() || n.ilog2() < *SCRYPT_LOG_N.start() {
            return Err(refuse("N", n));
        }
        if r < 8 {
            return Err(refuse("R", r));
        }
        if p < 1 {
            return Err(refuse("P", p));
        }
        let key_len = fields.required("KeyLen")?;
        if key_len != SCRYPT_KEY_LEN {
            return Err(refuse("KeyLen", key_len));
        }
        let memory = n.saturating_mul(r).saturating_mul(128);
        if memory > LARGEST_SCRYPT_MEMORY {
            return Err(refuse("128*N*R", memory));
        }
        let work = memory.saturating_mul(p);
        if work > LARGEST_SCRYPT_WORK {
            return Err(refuse("128*N*R*P", work));
        }
        let salt = fields.bytes("Salt")?;
        if !SALT.contains(&salt.len()) {
            return Err(FormatError::Bytes { field: "Salt" });
        }
        Ok(ScryptParams {
            salt,
            log_n: u8::try_from(n.ilog2()).map_err(|_| refuse("N", n))?,
            r: u32::try_from(r).map_err(|_| refuse("R", r))?,
            p: u32::try_from(p).map_err(|_| refuse("P", p))?,
        })
    }
}

impl SealedKey {
    fn from_bytes(bytes: &[u8], nonce: usize) -> Option<Self> {
        let (nonce, rest) = bytes.split_at_checked(nonce)?;
        let (sealed, tag) = rest.split_last_chunk()?;
        Some(SealedKey { nonce: nonce.to_owned(), sealed: sealed.try_into().ok()?, tag: *tag })
    }

    fn to_bytes(&self) -> Vec<u8> {
        [&self.nonce[..], &self.sealed, &self.tag].concat()
    }
}

/// A JSON object as Go sees it: order kept, so that of two spellings of a field the last one wins.
struct Fields(Vec<(String, Box<RawValue>)>);

impl Fields {
    fn optional<T: DeserializeOwned>(&self, field: &'static str) -> Result<Option<T>, FormatError> {
        match self.0.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(field)) {
            None => Ok(None),
            Some((_, raw)) => {
                // Go leaves a field alone that is null; so does Option.
                serde_json::from_str(raw.get()).map_err(|source| FormatError::Field { field, source })
            }
        }
    }

    fn required<T: DeserializeOwned>(&self, field: &'static str) -> Result<T, FormatError> {
        self.optional(field)?.ok_or(FormatError::MissingField { field })
    }

    fn bytes(&self, field: &'static str) -> Result<Vec<u8>, FormatError> {
        STANDARD.decode(self.required::<String>(field)?).map_err(|_| FormatError::Bytes { field })
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfJson<'a> {
    creator: &'a str,
    encrypted_key: String,
    scrypt_object: ScryptJson,
    version: u16,
    feature_flags: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    long_name_max: Option<u8>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ScryptJson {
    salt: String,
    n: u64,
    r: u32,
    p: u32,
    key_len: u64,
}

impl From<&ScryptParams> for ScryptJson {
    fn from(scrypt: &ScryptParams) -> Self {
        ScryptJson {
            salt: STANDARD.encode(&scrypt.salt),
            n: 1 << scrypt.log_n,
            r: scrypt.r,
            p: scrypt.p,
            key_len: SCRYPT_KEY_LEN,
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, raw)| (name, raw)))
    }
}
