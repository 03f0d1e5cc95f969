//! Which names of the source are left out of the encryption.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::encrypt_error::EncryptError;

/// Patterns of names that are not encrypted. `*` and `?` stop at a slash, `**` does not.
///
/// A pattern without a slash is held against the name of every file and directory, one with a slash against the path
/// below the source. A directory that matches is left out with everything in it.
#[derive(Debug, Default)]
pub struct Exclude {
    names: GlobSet,
    paths: GlobSet,
}

impl Exclude {
    /// The patterns, compiled. A slash at the start or the end of one means nothing.
    ///
    /// # Errors
    /// [`EncryptError::Pattern`].
    pub fn new(patterns: &[String]) -> Result<Self, EncryptError> {
        let (mut names, mut paths) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let failed = |source| EncryptError::Pattern { pattern: pattern.clone(), source };
            let glob = GlobBuilder::new(pattern.trim_matches('/')).literal_separator(true).build();
            let set = if pattern.contains('/') { &mut paths } else { &mut names };
            set.add(glob.map_err(failed)?);
        }
        let failed = |source| EncryptError::Pattern { pattern: patterns.join(" "), source };
        Ok(Exclude { names: names.build().map_err(failed)?, paths: paths.build().map_err(failed)? })
    }

    /// Whether the file or directory at `path`, relative to the source, is left out.
    pub(super) fn matches(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|name| self.names.is_match(name)) || self.paths.is_match(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_anywhere_and_paths_from_the_top() {
        let patterns = ["*.bin", ".git", "docs/*.md", "/top", "a/**/z"].map(str::to_owned);
        let exclude = Exclude::new(&patterns).unwrap();
        for (path, out) in [
            ("x.bin", true),
            ("deep/er/x.bin", true),
            ("x.bin.txt", false),
            (".git", true),
            ("sub/.git", true),
            ("docs/a.md", true),
            ("docs/sub/a.md", false),
            ("sub/docs/a.md", false),
            ("top", true),
            ("sub/top", false),
            ("a/b/c/z", true),
            ("a/z", true),
            ("config.json", false),
        ] {
            assert_eq!(exclude.matches(Path::new(path)), out, "{path}");
        }
        assert!(!Exclude::default().matches(Path::new("x")));
    }

    #[test]
    fn pattern_that_is_none_is_named() {
        let error = Exclude::new(&["fine".to_owned(), "[a".to_owned()]).unwrap_err();
        assert!(matches!(&error, EncryptError::Pattern { pattern, .. } if pattern == "[a"), "{error}");
    }
}
