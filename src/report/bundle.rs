//! The archive: texts by name, each cleaned when it is put in, and a list of what is inside and what is not.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::redact::Redactor;
use crate::error::{ErrorClass, Fault};

/// The archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Its file could not be made.
    #[error("creating {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It could not be written to its end.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Fault for ReportError {
    fn class(&self) -> ErrorClass {
        match self {
            ReportError::Create { .. } | ReportError::Write { .. } => ErrorClass::Config,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            ReportError::Create { .. } => "report.create",
            ReportError::Write { .. } => "report.write",
        }
    }

    fn hint(&self) -> String {
        match self {
            ReportError::Create { .. } => {
                "give --output a file that does not exist yet, in a directory that can be written"
            }
            ReportError::Write { .. } => {
                "see whether the disk is full: df -h; or give --output another place"
            }
        }
        .to_owned()
    }
}

/// What is collected.
pub struct Bundle {
    redactor: Redactor,
    /// Name, what it is, text without secrets.
    files: Vec<(String, &'static str, String)>,
    /// Name, why it is not there.
    missing: Vec<(String, String)>,
    removed: Vec<String>,
}

impl Bundle {
    /// Nothing yet.
    pub fn new(redactor: Redactor) -> Self {
        Bundle { redactor, files: Vec::new(), missing: Vec::new(), removed: Vec::new() }
    }

    /// Put `text` in under `name`; `about` says what it is.
    pub fn add(&mut self, name: &str, about: &'static str, text: &str) {
        self.files.push((self.redactor.clean(name), about, self.redactor.clean(text)));
    }

    /// `name` could not be had.
    pub fn missing(&mut self, name: &str, why: &str) {
        self.missing.push((self.redactor.clean(name), self.redactor.clean(why)));
    }

    /// Put in what was had, and note what was not.
    pub fn add_or_missing(&mut self, name: &str, about: &'static str, text: Result<String, String>) {
        match text {
            Ok(text) => self.add(name, about, &text),
            Err(why) => self.missing(name, &why),
        }
    }

    /// A value of the configuration was left out.
    pub fn removed(&mut self, what: &str) {
        self.removed.push(self.redactor.clean(what));
    }

    /// The list: `title`, then every file with its length, what could not be had, what was left out.
    fn manifest(&self, title: &str) -> String {
        let mut text = format!(
            "{title}\n\nEvery text has passed a redaction: what was a secret, or looked like one, is [REMOVED].\n"
        );
        let _ = writeln!(text, "\nInside (bytes, name, what it is)");
        for (name, about, content) in &self.files {
            let _ = writeln!(text, "{:>9}  {name:<26} {about}", content.len());
        }
        if !self.missing.is_empty() {
            let _ = writeln!(text, "\nCould not be had");
            for (name, why) in &self.missing {
                let _ = writeln!(text, "  {name}: {}", why.trim());
            }
        }
        if !self.removed.is_empty() {
            let _ = writeln!(text, "\nLeft out of the configuration");
            for what in &self.removed {
                let _ = writeln!(text, "  {what}");
            }
        }
        text
    }

    /// Write `path`, a gzipped tar with everything below `directory`, for its owner alone. Nothing is overwritten; a file that cannot be
    /// written to its end is removed. Gives the manifest. `at`: seconds since 1970.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn write(&self, path: &Path, directory: &str, title: &str, at: u64) -> Result<String, ReportError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|source| ReportError::Create { path: path.to_owned(), source })?;
        let manifest = self.manifest(title);
        match self.archive(file, directory, &manifest, at) {
            Ok(()) => Ok(manifest),
            Err(source) => {
                let _ = std::fs::remove_file(path);
                Err(ReportError::Write { path: path.to_owned(), source })
            }
        }
    }

    fn archive(&self, file: File, directory: &str, manifest: &str, at: u64) -> io::Result<()> {
        let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let files = self.files.iter().map(|(name, _, text)| (name.as_str(), text.as_str()));
        for (name, text) in std::iter::once(("MANIFEST", manifest)).chain(files) {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(at);
            tar.append_data(&mut header, format!("{directory}/{name}"), text.as_bytes())?;
        }
        let mut file = tar.into_inner()?.finish()?;
        file.flush()?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn archive_is_its_owners_alone_holds_what_was_put_in_and_overwrites_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r.tar.gz");
        let mut bundle = Bundle::new(Redactor::new(["hunter22"]));
        bundle.add("a.txt", "a text", "it is hunter22\n");
        bundle.add_or_missing("b.txt", "another", Err("hunter22 said no\n".to_owned()));
        bundle.removed("cai.env:6: hunter22");
        let manifest = bundle.write(&path, "dir", "title", 1_700_000_000).unwrap();
        assert_eq!(
            manifest,
            "title\n\nEvery text has passed a redaction: what was a secret, or looked like one, is [REMOVED].\n\n\
             Inside (bytes, name, what it is)\n       16  a.txt                      a text\n\n\
             Could not be had\n  b.txt: [REMOVED] said no\n\nLeft out of the configuration\n  cai.env:6: [REMOVED]\n"
        );
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut inside = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            inside.push((name, text));
        }
        let expected = [("dir/MANIFEST", manifest.as_str()), ("dir/a.txt", "it is [REMOVED]\n")]
            .map(|(a, b)| (a.into(), b.into()));
        assert_eq!(inside, expected);
        let error = bundle.write(&path, "dir", "title", 0).unwrap_err();
        assert_eq!((error.code(), error.class()), ("report.create", ErrorClass::Config));
    }

    #[test]
    fn archive_that_cannot_be_written_to_its_end_is_removed() {
        let bundle = Bundle::new(Redactor::new([]));
        let error = bundle.write(Path::new("/dev/full"), "dir", "title", 0).unwrap_err();
        // It exists.
        assert_eq!(error.code(), "report.create");
        assert!(Path::new("/dev/full").exists());
    }
}
