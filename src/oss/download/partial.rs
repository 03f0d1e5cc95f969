//! A file on its way: a sparse file without the file's name, and a list of the parts that are in it. Everything here blocks.
//!
//! The list is believed only where the part that is read back has the CRC-64 that it says: so nothing has to be flushed in
//! any order, and after a power loss what did not reach the disk is fetched again. Names are hashes of the file's name,
//! which may itself be as long as a name can be, and end in `.partial`, which `cai upload` leaves out.
//!
//! ```text
//! cai-download 1 LENGTH PART-LENGTH ETAG\n
//! PART CRC64-IN-HEX\n ...
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use nix::fcntl::OFlag;

use super::error::DownloadError;
use crate::store::{Object, crc64};

/// Length in bytes of a part but the last (oss.md 4).
pub(super) const PART: u64 = 8 << 20;
const START: &str = "cai-download-";
const END: &str = ".partial";

/// Whether `name` is one that a file on its way has.
pub(super) fn is_partial(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(START.as_bytes()) && name.ends_with(END.as_bytes())
}

/// A file on its way.
pub(super) struct Partial {
    path: PathBuf,
    data_path: PathBuf,
    list_path: PathBuf,
    data: File,
    list: File,
    /// CRC-64 of the parts that an earlier run had, by index; not compared yet.
    said: BTreeMap<u64, u64>,
}

impl Partial {
    /// The file that becomes `path`, with what an earlier run left of the same object.
    ///
    /// # Errors
    /// `Local`.
    pub(super) fn open(path: &Path, object: &Object) -> Result<Self, DownloadError> {
        let fail = |doing, at: &Path, source| DownloadError::Local { doing, path: at.to_owned(), source };
        let parent = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|source| fail("making", parent, source))?;
        let hash = blake3::hash(path.file_name().unwrap_or_default().as_bytes()).to_hex();
        let name = |kind: &str| parent.join(format!("{START}{:.32}.{kind}{END}", hash.as_str()));
        let (data_path, list_path) = (name("data"), name("list"));
        let head = format!("cai-download 1 {} {PART} {}\n", object.len, object.etag);
        let said = match (fs::read_to_string(&list_path), data_path.try_exists()) {
            (Ok(text), Ok(true)) => text.strip_prefix(&head).map(parse),
            _ => None,
        };
        let open = |at: &Path, append: bool| {
            let mut options = File::options();
            options.read(true).append(append).write(true).create(true).mode(0o644);
            // What took the place of our file is not to be followed.
            options.custom_flags(OFlag::O_NOFOLLOW.bits());
            let file = options.open(at)?;
            if said.is_none() {
                file.set_len(0)?;
            }
            Ok::<File, io::Error>(file)
        };
        // The list first: no time at which it is believed of other data.
        let mut list = open(&list_path, true).map_err(|source| fail("opening", &list_path, source))?;
        if said.is_none() {
            list.write_all(head.as_bytes()).map_err(|source| fail("writing", &list_path, source))?;
        }
        let data = open(&data_path, false).map_err(|source| fail("opening", &data_path, source))?;
        data.set_len(object.len).map_err(|source| fail("writing", &data_path, source))?;
        let path = path.to_owned();
        Ok(Partial { path, data_path, list_path, data, list, said: said.unwrap_or_default() })
    }

    /// CRC-64 of part `index`, which is `range`, if an earlier run left it whole.
    pub(super) fn have(&self, index: u64, range: Range<u64>) -> Option<u64> {
        let said = *self.said.get(&index)?;
        let mut bytes = vec![0; usize::try_from(range.end.checked_sub(range.start)?).ok()?];
        self.data.read_exact_at(&mut bytes, range.start).ok()?;
        (crc64::of(&bytes) == said).then_some(said)
    }

    /// Put part `index` at `offset`; gives its CRC-64.
    ///
    /// # Errors
    /// `Local`.
    pub(super) fn put(&self, index: u64, mut offset: u64, frames: &[Bytes]) -> Result<u64, DownloadError> {
        for frame in frames {
            let fail = |source| self.fail("writing", &self.data_path, source);
            self.data.write_all_at(frame, offset).map_err(fail)?;
            offset = offset.saturating_add(frame.len() as u64);
        }
        let crc = crc64::of_frames(frames);
        // One write of a file that is open for appending: lines of parts that end together do not mix.
        let line = format!("{index} {crc:016x}\n");
        let written = (&self.list).write_all(line.as_bytes());
        written.map_err(|source| self.fail("writing", &self.list_path, source))?;
        Ok(crc)
    }

    /// Give the file its name.
    ///
    /// # Errors
    /// `Local`.
    pub(super) fn finish(self: &Partial) -> Result<(), DownloadError> {
        let parent = self.path.parent().unwrap_or(Path::new("."));
        self.data.sync_all().map_err(|source| self.fail("writing", &self.data_path, source))?;
        fs::rename(&self.data_path, &self.path).map_err(|source| self.fail("making", &self.path, source))?;
        fs::remove_file(&self.list_path).map_err(|source| self.fail("removing", &self.list_path, source))?;
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(|source| self.fail("writing", parent, source))
    }

    /// Give up: nothing of it is worth going on with.
    pub(super) fn discard(&self) {
        // What stays is not believed by the next run, which compares everything.
        let _ = fs::remove_file(&self.list_path);
        let _ = fs::remove_file(&self.data_path);
    }

    fn fail(&self, doing: &'static str, path: &Path, source: io::Error) -> DownloadError {
        DownloadError::Local { doing, path: path.to_owned(), source }
    }
}

/// The lines of a list; what is not whole or makes no sense is passed over.
fn parse(text: &str) -> BTreeMap<u64, u64> {
    let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.split_once(' '));
    lines
        .filter(|(_, crc)| crc.len() == 16)
        .filter_map(|(index, crc)| Some((index.parse().ok()?, u64::from_str_radix(crc, 16).ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_that_was_cut_or_damaged_gives_what_is_whole() {
        let text = "0 00000000000000ff\nx 0000000000000001\n3 12\n2 995dc9bbdf1939fa\n4 00000000000000";
        let parsed: Vec<(u64, u64)> = parse(text).into_iter().collect();
        assert_eq!(parsed, [(0, 255), (2, 0x995d_c9bb_df19_39fa)]);
    }

    #[test]
    fn names_on_the_way_are_told_from_others() {
        for (name, partial) in [
            ("cai-download-00.data.partial", true),
            ("cai-download-00.data", false),
            ("gocryptfs.conf", false),
            ("x.partial", false),
        ] {
            assert_eq!(is_partial(OsStr::new(name)), partial, "{name}");
        }
    }
}
