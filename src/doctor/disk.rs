//! The cache's directory: whether the ciphertext fits, and how fast it is written.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use nix::libc::{EOPNOTSUPP, O_TMPFILE};
use nix::sys::statvfs::statvfs;

use super::context::{AS_ROOT, Context};
use super::finding::{Finding, rate};
use crate::config::{Cache, CacheMode, Settings};
use crate::error::ErrorClass;

/// Most bytes that are written to measure, in pieces of so many.
const SAMPLE: u64 = 64 << 20;
const PIECE: usize = 1 << 20;
/// Longest time for writing them.
const SAMPLING: Duration = Duration::from_secs(3);
/// Below this a disk is slower than a model usually comes, bytes a second.
const SLOW: u64 = 100 << 20;

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings().cloned() else { return Vec::new() };
    let listed = context.listed().await.and_then(|listed| listed.as_ref().ok().cloned());
    let model = listed.map(|listed| listed.bytes());
    super::blocking("disk.space", move || {
        if settings.cache.mode == CacheMode::None {
            return vec![Finding::note("disk.space", "cache.mode = \"none\": nothing is kept")];
        }
        let directory = existing(&settings.cache.dir);
        let mut findings = vec![space(&settings, &directory, model)];
        findings.push(speed(&directory));
        findings
    })
    .await
}

/// `path`, or what is above it and there.
fn existing(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.is_dir());
    there.unwrap_or(Path::new("/")).to_owned()
}

fn space(settings: &Settings, directory: &Path, model: Option<u64>) -> Finding {
    let free = match statvfs(directory) {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()),
        Err(error) => {
            let found = format!("{}: {error}", directory.display());
            return Finding::unseen("disk.space", found, format!("df -h {}", directory.display()));
        }
    };
    let Some(model) = model else {
        let found = format!("{} free; the model's size is not known", HumanBytes(free));
        return Finding::unseen("disk.space", found, "see oss.list");
    };
    let cache = &settings.cache;
    let kept = match taken(&cache.dir) {
        Ok(kept) => kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(_) => return Finding::unseen("disk.space", "the cache is not for this user to see", AS_ROOT),
    };
    enough(cache, settings.waits_for_all(), free, model.saturating_sub(kept))
}

/// Bytes on the disk below `directory`.
fn taken(directory: &Path) -> io::Result<u64> {
    let mut bytes: u64 = 0;
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                directories.push(entry.path());
            } else {
                bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            }
        }
    }
    Ok(bytes)
}

/// `missing`: bytes of the model that are not on the disk yet.
fn enough(cache: &Cache, all: bool, free: u64, missing: u64) -> Finding {
    let usable = free.saturating_sub(cache.reserve_bytes);
    let found = format!("{} of the model missing, {} free for it", HumanBytes(missing), HumanBytes(usable));
    if missing <= usable && (cache.size_bytes == 0 || missing <= cache.size_bytes) {
        return Finding::ok("disk.space", found);
    }
    let fix = format!("a larger disk below {}, or cache.mode = \"bounded\"", cache.dir.display());
    if all || cache.mode == CacheMode::Full {
        let meaning =
            "all of the model must be local (MODEL_WAIT, mount.mode or cache.mode), and does not fit";
        return Finding::error("disk.space", ErrorClass::Config, found, meaning).fixed_by(fix);
    }
    Finding::warning("disk.space", found, "what was read longest ago is fetched again from OSS")
        .fixed_by("a larger disk, or peers")
}

fn speed(directory: &Path) -> Finding {
    match measure(directory, SAMPLE) {
        Ok(rate) if rate < SLOW => Finding::warning(
            "disk.speed",
            format!("{}/s written below {}", HumanBytes(rate), directory.display()),
            "the disk is slower than the model comes",
        )
        .fixed_by("put cache.dir on a faster disk (ESSD PL1 or better, or local NVMe)"),
        Ok(rate) => Finding::ok("disk.speed", format!("{}/s written", HumanBytes(rate))),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Finding::unseen(
            "disk.speed",
            format!("{} is not for this user to write", directory.display()),
            AS_ROOT,
        ),
        Err(error) if error.raw_os_error() == Some(EOPNOTSUPP) => {
            let found = "this file system has no nameless files to measure with";
            Finding::unseen("disk.speed", found, "dd if=/dev/zero of=x bs=1M count=64 oflag=dsync")
        }
        Err(error) => Finding::error(
            "disk.speed",
            ErrorClass::Config,
            format!("writing below {}: {error}", directory.display()),
            "the cache cannot be written",
        )
        .fixed_by(format!("df -h {0}; touch {0}/x", directory.display())),
    }
}

/// Bytes a second to the disk, of random bytes in a file without a name: it is gone with its descriptor, whatever happens.
fn measure(directory: &Path, sample: u64) -> io::Result<u64> {
    let mut piece = vec![0; PIECE];
    // What compresses would flatter some file systems.
    getrandom::fill(&mut piece).map_err(io::Error::other)?;
    let mut file = nameless(directory)?;
    let begun = Instant::now();
    let mut written = 0;
    while written < sample && begun.elapsed() < SAMPLING {
        file.write_all(&piece)?;
        written += PIECE as u64;
    }
    file.sync_data()?;
    Ok(rate(written, begun.elapsed()))
}

fn nameless(directory: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).mode(0o600).custom_flags(O_TMPFILE).open(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    const GIB: u64 = 1 << 30;

    #[test]
    fn space_is_an_obstacle_only_where_all_must_be_local() {
        let cache = |mode, size_bytes| Cache { dir: "/c".into(), mode, size_bytes, reserve_bytes: GIB };
        let level = |mode, size, all, free, missing| enough(&cache(mode, size), all, free, missing).level;
        assert_eq!(level(CacheMode::Auto, 0, false, 11 * GIB, 10 * GIB), Level::Ok);
        assert_eq!(level(CacheMode::Auto, 0, false, 11 * GIB - 1, 10 * GIB), Level::Warning);
        assert_eq!(level(CacheMode::Auto, 0, true, 10 * GIB, 10 * GIB), Level::Error);
        assert_eq!(level(CacheMode::Full, 0, false, 10 * GIB, 10 * GIB), Level::Error);
        assert_eq!(level(CacheMode::Bounded, 5 * GIB, false, 99 * GIB, 10 * GIB), Level::Warning);
    }

    #[test]
    fn measuring_leaves_nothing_behind_and_what_is_there_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        match measure(directory.path(), 2 << 20) {
            Ok(rate) => assert!(rate > 0),
            // Some file systems have no nameless files.
            Err(error) => assert_eq!(error.raw_os_error(), Some(EOPNOTSUPP)),
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(directory.path().join("a/b"), vec![1; 100_000]).unwrap();
        File::open(directory.path().join("a/b")).unwrap().sync_all().unwrap();
        let bytes = taken(directory.path()).unwrap();
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        assert_eq!(existing(&directory.path().join("x/y")), directory.path());
    }
}
