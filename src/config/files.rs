//! Reading the configuration files: the only part of this module that touches the system.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::report::{Findings, Place, Problem};
use super::{ENV_FILE, FileKind, SourceFile, TOML_DIR, TOML_FILE, under};

/// Largest configuration file in bytes. The shipped ones are a tenth of it with all their comments; a session token is
/// about 1 KiB.
const FILE_BYTES: usize = 64 * 1024;

/// Most files in `cai.toml.d`.
const DROP_INS: usize = 64;

/// `cai.toml` and its drop-ins by name, those that exist.
pub(super) fn tomls(root: &Path, findings: &mut Findings) -> Vec<SourceFile> {
    let mut paths = vec![under(root, Path::new(TOML_FILE))];
    paths.extend(drop_ins(&under(root, Path::new(TOML_DIR)), findings));
    paths.iter().filter_map(|path| read(path, FileKind::Toml, findings)).collect()
}

/// `cai.env`, if it exists.
pub(super) fn env(root: &Path, findings: &mut Findings) -> Option<SourceFile> {
    read(&under(root, Path::new(ENV_FILE)), FileKind::Env, findings)
}

/// The `.toml` files of a directory in the order of their names; no directory is no file.
fn drop_ins(directory: &Path, findings: &mut Findings) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            findings.problem(unreadable(directory, &error));
            return Vec::new();
        }
    };
    let mut paths = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => paths.push(entry.path()),
            Err(error) => {
                findings.problem(unreadable(directory, &error));
            }
        }
    }
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml") && !hidden(path));
    paths.sort();
    if paths.len() > DROP_INS {
        findings.problem(Problem {
            at: Place::file(&directory.display().to_string()),
            message: format!("holds {} files", paths.len()),
            expected: format!("at most {DROP_INS} .toml files"),
            got: None,
            example: None,
        });
        paths.truncate(DROP_INS);
    }
    paths
}

/// Read one file. `None` when it does not exist, or when it cannot be used and the problem is among the findings.
pub(super) fn read(path: &Path, kind: FileKind, findings: &mut Findings) -> Option<SourceFile> {
    match content(path) {
        Ok(Content::Text(text, mode)) => {
            Some(SourceFile { name: path.display().to_string(), kind, text, mode: Some(mode) })
        }
        Ok(Content::Unfit(message, line)) => {
            findings.problem(Problem {
                at: Place { file: path.display().to_string(), line },
                message: message.to_owned(),
                expected: format!("a regular file of UTF-8 text, at most {} KiB", FILE_BYTES / 1024),
                got: None,
                example: None,
            });
            None
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            findings.problem(unreadable(path, &error));
            None
        }
    }
}

enum Content {
    /// Text and permission bits.
    Text(Zeroizing<String>, u32),
    /// What is wrong, and on which line.
    Unfit(&'static str, Option<usize>),
}

fn content(path: &Path) -> std::io::Result<Content> {
    // Asked before opening: opening a FIFO would wait for a writer.
    if !std::fs::metadata(path)?.is_file() {
        return Ok(Content::Unfit("is not a regular file", None));
    }
    let file = File::open(path)?;
    let mode = file.metadata()?.mode();
    // One byte more than allowed tells a full file from a larger one. Room for all of it at once, and not a byte
    // copied elsewhere: the file may hold secrets.
    let limit = FILE_BYTES + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 1));
    file.take(u64::try_from(limit).unwrap_or(u64::MAX)).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES {
        return Ok(Content::Unfit("is too large", None));
    }
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Content::Text(Zeroizing::new(text), mode & 0o7777)),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let bytes = Zeroizing::new(error.into_bytes());
            let line = bytes.iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
            Ok(Content::Unfit("is not UTF-8 text", Some(line)))
        }
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    Problem {
        at: Place::file(&path.display().to_string()),
        message: format!("cannot be read: {error}"),
        expected: "a file that the user who runs cai can read".to_owned(),
        got: None,
        example: Some(format!("chown root:cai {0} && chmod g+rX {0}", path.display())),
    }
}
