//! Memory that is never swapped, never dumped, and wiped before it is returned.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize;

/// Memory for a secret could not be had in the form a secret needs. Fatal: there is no unlocked fallback.
#[derive(Debug, thiserror::Error)]
#[error("locking {bytes} bytes of memory for a secret (is RLIMIT_MEMLOCK too small?)")]
pub struct LockError {
    /// Bytes asked for, rounded up to pages.
    pub bytes: usize,
    /// What the system said.
    #[source]
    pub source: nix::Error,
}

/// Whole pages of locked, undumped memory, wiped on drop.
struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// JUSTIFICATION: the pages must be usable from FUSE threads. SAFETY: `Pages` owns its mapping exclusively and hands out
// access only through `&self`/`&mut self` of the owning types, so the usual borrow rules hold.
unsafe impl Send for Pages {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(bytes: usize) -> Result<Self, LockError> {
        let page = page_size();
        let len = bytes.max(1).div_ceil(page).saturating_mul(page);
        let fail = |source| LockError { bytes: len, source };
        let size = NonZeroUsize::new(len).ok_or_else(|| fail(nix::Error::EINVAL))?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_ANONYMOUS;
        // JUSTIFICATION: heap memory can be neither locked nor kept out of dumps by itself. SAFETY: a fresh private
        // anonymous mapping aliases nothing.
        let start = unsafe { mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }
            .map_err(fail)?;
        let pages = Pages { start: start.cast(), len };
        // JUSTIFICATION: swap and core dumps must not see the pages. SAFETY: the range is the mapping made above.
        unsafe {
            mlock(start, len).map_err(fail)?;
            madvise(start, len, MmapAdvise::MADV_DONTDUMP).map_err(fail)?;
        }
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // JUSTIFICATION: wipe and return the mapping. SAFETY: start/len describe a live mapping owned by self, fully
        // initialised (the kernel zeroes anonymous pages), and nothing can use it after drop.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len).zeroize();
            // munmap also unlocks; failing here could only mean a corrupted len, and the bytes are wiped already.
            let _ = munmap(self.start.cast(), self.len);
        }
    }
}

fn page_size() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| usize::try_from(size).ok())
        .unwrap_or(4096)
}

/// Secret bytes of a fixed capacity. No `Clone`, `Debug`, `Serialize` or `PartialEq`: compare through `subtle`.
pub struct Secret {
    pages: Pages,
    len: usize,
}

impl Secret {
    /// `len` zero bytes to be filled by `fill`, which returns how many of them are the secret (at most `len`).
    ///
    /// # Errors
    /// [`LockError`] when the memory cannot be locked; `E` is `fill`'s own failure, after which the bytes are wiped.
    pub fn fill<E: From<LockError>>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Self, E> {
        let pages = Pages::new(len)?;
        // JUSTIFICATION: the only mutable view, for the time of `fill`. SAFETY: the mapping is at least `len` bytes,
        // initialised to zero, and not shared yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pages.start.as_ptr(), len) };
        let used = fill(bytes)?.min(len);
        Ok(Secret { pages, len: used })
    }

    /// Copy `bytes` into locked memory. The caller wipes its own copy.
    ///
    /// # Errors
    /// [`LockError`] when the memory cannot be locked.
    pub fn copy_of(bytes: &[u8]) -> Result<Self, LockError> {
        Secret::fill(bytes.len(), |target| {
            target.copy_from_slice(bytes);
            Ok(bytes.len())
        })
    }

    /// Let `read` see the bytes.
    pub fn with<R>(&self, read: impl FnOnce(&[u8]) -> R) -> R {
        // JUSTIFICATION: the only read access. SAFETY: `len` initialised bytes of a mapping that lives as long as self.
        read(unsafe { std::slice::from_raw_parts(self.pages.start.as_ptr(), self.len) })
    }

    /// Number of secret bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// One value of a plain type (a key schedule of a C library) in locked memory. The pages are wiped when it is dropped.
pub struct Locked<T> {
    pages: Pages,
    _marker: std::marker::PhantomData<T>,
}

impl<T> Locked<T> {
    /// Build a `T` in place. `init` gets zeroed memory of the right size and alignment (a page's) and must initialise it
    /// when it returns `Ok`; on `Err` nothing is considered initialised.
    ///
    /// # Errors
    /// [`LockError`] when the memory cannot be locked, or `init`'s own.
    pub fn init<E: From<LockError>>(init: impl FnOnce(&mut MaybeUninit<T>) -> Result<(), E>) -> Result<Self, E> {
        let pages = Pages::new(std::mem::size_of::<T>())?;
        // JUSTIFICATION: in-place construction, so that no copy of the schedule is left on the stack. SAFETY: the
        // mapping is page aligned, large enough, exclusively ours, and `MaybeUninit` asks nothing of its content.
        init(unsafe { pages.start.cast::<MaybeUninit<T>>().as_mut() })?;
        Ok(Locked { pages, _marker: std::marker::PhantomData })
    }

    /// The value's address, for a C library that only reads it.
    pub fn as_ptr(&self) -> *const T {
        self.pages.start.as_ptr().cast()
    }

    /// The value's address, for the C library's own clean-up.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.pages.start.as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_gives_back_what_was_put_in() {
        let secret = Secret::copy_of(b"correct horse").unwrap();
        assert_eq!(secret.len(), 13);
        assert!(secret.with(|bytes| bytes == b"correct horse"));
    }

    #[test]
    fn secret_fill_keeps_only_the_bytes_reported() {
        let secret = Secret::fill::<LockError>(8, |bytes| {
            bytes[..3].copy_from_slice(b"abc");
            Ok(3)
        })
        .unwrap();
        assert!(secret.with(|bytes| bytes == b"abc"));
    }

    #[test]
    fn pages_of_a_secret_are_locked_and_kept_out_of_dumps() {
        let secret = Secret::copy_of(&[7; 100]).unwrap();
        let address = secret.with(|bytes| bytes.as_ptr() as usize);
        let flags = vm_flags(address);
        assert!(flags.contains(&"lo".to_owned()), "not locked: {flags:?}");
        assert!(flags.contains(&"dd".to_owned()), "would be dumped: {flags:?}");
    }

    /// `VmFlags` of the mapping that holds `address`, from `/proc/self/smaps`.
    fn vm_flags(address: usize) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((start, end)) = range.split_once('-')
                && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&address);
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("no mapping holds {address:#x}");
    }
}
