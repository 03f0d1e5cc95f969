//! Feature flags: what a conf says about how its directory is stored, and which of it goes together.
//!
//! The rules are gocryptfs' own (`internal/configfile/validate.go`, v2.4.0): an unknown flag is refused by name, and so is
//! every combination that gocryptfs refuses. `tests/gocryptfs_options.rs` asks the real one about each.

use super::error::FormatError;
use super::layout::Layout;
use super::names::LONGEST_SHORT;

/// A feature flag of gocryptfs v2.4.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    PlaintextNames,
    DirIv,
    EmeNames,
    GcmIv128,
    LongNames,
    LongNameMax,
    AesSiv,
    Raw64,
    Hkdf,
    Fido2,
    XChaCha,
}

use Flag::{
    AesSiv, DirIv, EmeNames, Fido2, GcmIv128, Hkdf, LongNameMax, LongNames, PlaintextNames, Raw64, XChaCha,
};

impl Flag {
    const ALL: [Flag; 11] = [
        PlaintextNames,
        DirIv,
        EmeNames,
        GcmIv128,
        LongNames,
        LongNameMax,
        AesSiv,
        Raw64,
        Hkdf,
        Fido2,
        XChaCha,
    ];
    /// What gocryptfs' default options write, in its order.
    pub(super) const DEFAULT: [Flag; 6] = [Hkdf, GcmIv128, DirIv, EmeNames, LongNames, Raw64];

    /// Its name in `FeatureFlags`.
    pub(super) fn name(self) -> &'static str {
        match self {
            PlaintextNames => "PlaintextNames",
            DirIv => "DirIV",
            EmeNames => "EMENames",
            GcmIv128 => "GCMIV128",
            LongNames => "LongNames",
            LongNameMax => "LongNameMax",
            AesSiv => "AESSIV",
            Raw64 => "Raw64",
            Hkdf => "HKDF",
            Fido2 => "FIDO2",
            XChaCha => "XChaCha20Poly1305",
        }
    }

    /// The flags with these names, in their order.
    ///
    /// # Errors
    /// [`FormatError::UnknownFlag`].
    pub(super) fn parse(names: &[String]) -> Result<Vec<Flag>, FormatError> {
        let known = |name: &String| Flag::ALL.into_iter().find(|flag| flag.name() == name);
        let unknown = |name: &String| FormatError::UnknownFlag { flag: name.chars().take(64).collect() };
        names.iter().map(|name| known(name).ok_or_else(|| unknown(name))).collect()
    }
}

/// The cipher of file content, symlink targets and extended attribute values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-256-GCM with 16-byte nonces, the default.
    AesGcm,
    /// AES-SIV-512 (RFC 5297) with 16-byte nonces: `-aessiv`, and what `-reverse` shows.
    AesSiv,
    /// XChaCha20-Poly1305: `-xchacha`.
    XChaCha20Poly1305,
}

impl Cipher {
    /// Where it puts things in a file.
    pub fn layout(self) -> Layout {
        match self {
            Cipher::AesGcm | Cipher::AesSiv => Layout::AES,
            Cipher::XChaCha20Poly1305 => Layout::XCHACHA,
        }
    }
}

/// How file names are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// Encrypted under an IV that each directory keeps in `gocryptfs.diriv`, the default.
    DirIv,
    /// Encrypted alike in every directory: `-deterministic-names`.
    Deterministic,
    /// As they are, and symlink targets too: `-plaintextnames`.
    Plain,
}

/// How one directory is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// What seals content.
    pub cipher: Cipher,
    /// How names are stored.
    pub naming: Naming,
    /// Longest encrypted name that is stored as a file name, 1 to 255.
    pub longest_name: u8,
    /// Names are in base64 without padding; directories made before gocryptfs 1.3 have it.
    pub raw64: bool,
    /// Every use of the master key has a key of its own; before gocryptfs 1.3 ciphers took it directly.
    pub hkdf: bool,
}

impl Default for Features {
    fn default() -> Self {
        Features {
            cipher: Cipher::AesGcm,
            naming: Naming::DirIv,
            longest_name: LONGEST_SHORT,
            raw64: true,
            hkdf: true,
        }
    }
}

impl Features {
    /// What `flags` and the field `LongNameMax` (0 = unset) say together.
    ///
    /// # Errors
    /// [`FormatError::Fido2`], [`FormatError::FlagConflict`], [`FormatError::MissingFlag`], [`FormatError::LongNameMax`].
    pub(super) fn new(flags: &[Flag], long_name_max: u8) -> Result<Features, FormatError> {
        let set = |flag| flags.contains(&flag);
        check_cipher(&set)?;
        check_names(&set, long_name_max)?;
        if set(Fido2) {
            return Err(FormatError::Fido2);
        }
        Ok(Features {
            cipher: match (set(XChaCha), set(AesSiv)) {
                (true, _) => Cipher::XChaCha20Poly1305,
                (false, true) => Cipher::AesSiv,
                (false, false) => Cipher::AesGcm,
            },
            naming: match (set(PlaintextNames), set(DirIv)) {
                (true, _) => Naming::Plain,
                (false, true) => Naming::DirIv,
                (false, false) => Naming::Deterministic,
            },
            longest_name: if long_name_max == 0 { LONGEST_SHORT } else { long_name_max },
            raw64: set(Raw64),
            hkdf: set(Hkdf),
        })
    }
}

fn check_cipher(set: &impl Fn(Flag) -> bool) -> Result<(), FormatError> {
    if set(XChaCha) {
        exclude(set, XChaCha, &[AesSiv, GcmIv128])?;
        return require(set, Hkdf, XChaCha.name());
    }
    require(set, GcmIv128, if set(AesSiv) { AesSiv.name() } else { "AES-GCM" })
}

/// `EMENames` is not asked for: gocryptfs takes its absence for encrypted names, too.
fn check_names(set: &impl Fn(Flag) -> bool, long_name_max: u8) -> Result<(), FormatError> {
    if set(PlaintextNames) {
        exclude(set, PlaintextNames, &[EmeNames, DirIv, LongNames, Raw64, LongNameMax])?;
    }
    if set(LongNameMax) == (long_name_max == 0) {
        return Err(FormatError::LongNameMax { value: long_name_max });
    }
    Ok(())
}

fn exclude(set: &impl Fn(Flag) -> bool, flag: Flag, others: &[Flag]) -> Result<(), FormatError> {
    match others.iter().find(|&&other| set(other)) {
        Some(other) => Err(FormatError::FlagConflict { flag: flag.name(), other: other.name() }),
        None => Ok(()),
    }
}

fn require(set: &impl Fn(Flag) -> bool, flag: Flag, by: &'static str) -> Result<(), FormatError> {
    if set(flag) { Ok(()) } else { Err(FormatError::MissingFlag { flag: flag.name(), by }) }
}
