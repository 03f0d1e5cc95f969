//! The bytes of a manifest: encoded in one way only, parsed with every length bounded, verified before it is parsed.

use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::ManifestError;
use super::hash::{self, ChunkCheck, Hash};
use super::key::{PublicKey, SIGNATURE, SigningKey};
use super::licence::Licence;

/// Name of the manifest in the root of the ciphertext directory.
pub const NAME: &str = "gocryptfs.longname.cai-manifest.name";
/// Format and version.
const MAGIC: &[u8; 16] = b"cai-manifest 1\r\n";
/// What a signature is about: no other use of the key can give one.
const DOMAIN: &[u8] = b"cai-manifest 1 signature\0";
/// Largest file, in bytes: 16 TiB of model.
const LARGEST: usize = 64 << 20;
/// Most fields.
const MOST_FIELDS: u16 = 16;
/// Most objects.
const MOST_OBJECTS: u32 = 1 << 20;
/// Longest path, Linux' `PATH_MAX` without its NUL.
const LONGEST_PATH: usize = 4095;
/// Longest name, Linux' `NAME_MAX`.
const LONGEST_NAME: usize = 255;
/// A field that must be understood.
const CRITICAL: u16 = 0x8000;
/// The licence.
const LICENCE: u16 = 0x8001;

/// The model identity: SHA-256 of a manifest's body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity([u8; 32]);

impl Identity {
    /// The identity in 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        hex::decode(text.trim()).ok()?.try_into().ok().map(Identity)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}

/// One ciphertext object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Path below the model's root.
    pub path: PathBuf,
    /// Length in bytes.
    pub len: u64,
    /// One for each started [`super::CHUNK_LEN`], one if it is empty.
    pub hashes: Vec<Hash>,
}

impl Object {
    /// The ordinary BLAKE3 hash of the whole object.
    pub fn root(&self) -> Hash {
        hash::root(self.len, &self.hashes)
    }

    /// What tells whether bytes are chunk `chunk` of this object.
    pub fn chunk_check(&self, chunk: u64) -> ChunkCheck {
        let wanted = usize::try_from(chunk).ok().and_then(|chunk| self.hashes.get(chunk).copied());
        ChunkCheck::new(self.len, chunk, wanted)
    }

    /// Whether `bytes`, in pieces, are chunk `chunk` of this object, whole.
    pub fn is_chunk<'a>(&self, chunk: u64, bytes: impl Iterator<Item = &'a [u8]>) -> bool {
        let mut check = self.chunk_check(chunk);
        bytes.for_each(|piece| check.update(piece));
        check.passed()
    }
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// 1 and up; a later one replaces an earlier one.
    pub revision: u64,
    /// What the owner allows.
    pub licence: Option<Licence>,
    /// Sorted bytewise by path.
    pub objects: Vec<Object>,
}

/// A manifest whose signature is that of the key in it. Whether that key is the right one is for
/// [`Policy`](super::Policy) to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    contents: Contents,
    publisher: PublicKey,
    identity: Identity,
}

impl Contents {
    /// The file: encoded, signed, and read back.
    ///
    /// # Errors
    /// [`ManifestError`], when the contents are none that [`Manifest::parse`] takes.
    pub fn sign(&self, key: &SigningKey) -> Result<Vec<u8>, ManifestError> {
        let mut file = self.encode(&key.public())?;
        let signature = key.sign(&message(&identity(&file)))?;
        file.extend(signature);
        Manifest::parse(&file)?;
        Ok(file)
    }

    fn encode(&self, publisher: &PublicKey) -> Result<Vec<u8>, ManifestError> {
        let mut body = MAGIC.to_vec();
        body.extend(publisher.as_bytes());
        body.extend(self.revision.to_be_bytes());
        body.extend(u16::from(self.licence.is_some()).to_be_bytes());
        if let Some(licence) = &self.licence {
            let content = licence.encode()?;
            body.extend(LICENCE.to_be_bytes());
            body.extend(u32::try_from(content.len()).map_err(|_| ManifestError::TooLarge)?.to_be_bytes());
            body.extend(content);
        }
        body.extend(u32::try_from(self.objects.len()).map_err(|_| ManifestError::TooLarge)?.to_be_bytes());
        for object in &self.objects {
            let path = object.path.as_os_str().as_bytes();
            let refuse = || ManifestError::Path { path: object.path.clone() };
            body.extend(u16::try_from(path.len()).map_err(|_| refuse())?.to_be_bytes());
            body.extend(path);
            body.extend(object.len.to_be_bytes());
            object.hashes.iter().for_each(|hash| body.extend(hash));
        }
        Ok(body)
    }
}

impl Manifest {
    /// Verify and read a manifest. The bytes may come from anybody.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(file: &[u8]) -> Result<Self, ManifestError> {
        if file.len() > LARGEST {
            return Err(ManifestError::TooLarge);
        }
        let (body, signature) = file.split_last_chunk::<SIGNATURE>().ok_or(ManifestError::Cut)?;
        let mut cursor = Cursor::new(body);
        if cursor.array::<16>()? != *MAGIC {
            return Err(ManifestError::Magic);
        }
        let publisher = PublicKey::new(cursor.array()?);
        let identity = identity(body);
        if !publisher.verifies(&message(&identity), signature) {
            return Err(ManifestError::Signature);
        }
        let revision = cursor.u64()?;
        if revision == 0 {
            return Err(ManifestError::Revision);
        }
        let licence = fields(&mut cursor)?;
        let objects = objects(&mut cursor)?;
        cursor.end()?;
        Ok(Manifest { contents: Contents { revision, licence, objects }, publisher, identity })
    }

    /// What it says.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Who signed it.
    pub fn publisher(&self) -> PublicKey {
        self.publisher
    }

    /// The model identity.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The object at `path`.
    pub fn object(&self, path: &Path) -> Option<&Object> {
        let objects = &self.contents.objects;
        let key = path.as_os_str().as_bytes();
        let at = objects.binary_search_by(|object| object.path.as_os_str().as_bytes().cmp(key)).ok()?;
        objects.get(at)
    }

    /// What tells whether bytes are chunk `chunk` of the object at `path` with `len` bytes: none are, where the manifest has no
    /// such object.
    pub fn chunk_check(&self, path: &Path, len: u64, chunk: u64) -> ChunkCheck {
        let object = self.object(path).filter(|object| object.len == len);
        object.map_or_else(|| ChunkCheck::new(len, chunk, None), |object| object.chunk_check(chunk))
    }

    /// Largest file that [`Manifest::parse`] takes, in bytes: what must be fetched at most.
    pub fn largest() -> u64 {
        u64::try_from(LARGEST).unwrap_or(u64::MAX)
    }
}

fn identity(body: &[u8]) -> Identity {
    Identity(Sha256::digest(body).into())
}

/// What is signed.
fn message(identity: &Identity) -> Vec<u8> {
    [DOMAIN, &identity.0].concat()
}

fn fields(cursor: &mut Cursor<'_>) -> Result<Option<Licence>, ManifestError> {
    let count = cursor.u16()?;
    if count > MOST_FIELDS {
        return Err(ManifestError::Fields);
    }
    let (mut last, mut licence) = (None, None);
    for _ in 0..count {
        let tag = cursor.u16()?;
        if last >= Some(tag) {
            return Err(ManifestError::Fields);
        }
        last = Some(tag);
        let len = usize::try_from(cursor.u32()?).map_err(|_| ManifestError::Cut)?;
        let content = cursor.take(len)?;
        match tag {
            LICENCE => licence = Some(Licence::decode(content)?),
            _ if tag & CRITICAL != 0 => return Err(ManifestError::UnknownField { tag }),
            _ => {}
        }
    }
    Ok(licence)
}

fn objects(cursor: &mut Cursor<'_>) -> Result<Vec<Object>, ManifestError> {
    let count = cursor.u32()?;
    if !(1..=MOST_OBJECTS).contains(&count) {
        return Err(ManifestError::Objects { count });
    }
    let mut objects: Vec<Object> = Vec::new();
    for _ in 0..count {
        let len = usize::from(cursor.u16()?);
        let path = cursor.take(len)?;
        let shown = || PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        if !is_sound(path) {
            return Err(ManifestError::Path { path: shown() });
        }
        if objects.last().is_some_and(|last| last.path.as_os_str().as_bytes() >= path) {
            return Err(ManifestError::Order { path: shown() });
        }
        let len = cursor.u64()?;
        // What is not there cannot be taken: a length that lies costs nothing.
        let size = usize::try_from(hash::count(len)).ok().and_then(|count| count.checked_mul(32));
        let bytes = cursor.take(size.ok_or(ManifestError::Cut)?)?;
        let (hashes, _) = bytes.as_chunks::<32>();
        objects.push(Object { path: shown(), len, hashes: hashes.to_vec() });
    }
    Ok(objects)
}

/// Whether `path` stays below where it is put, is written in one way only, and is not the manifest's own.
fn is_sound(path: &[u8]) -> bool {
    let name = |name: &[u8]| {
        (1..=LONGEST_NAME).contains(&name.len()) && name != b"." && name != b".." && !name.contains(&0)
    };
    path.len() <= LONGEST_PATH && path != NAME.as_bytes() && path.split(|&byte| byte == b'/').all(name)
}

/// Reads from the front of a slice, never behind its end.
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], ManifestError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ManifestError::Cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(ManifestError::Cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ManifestError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, ManifestError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ManifestError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn end(&self) -> Result<(), ManifestError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ManifestError::Trailing { bytes: self.rest.len() }) }
    }
}
