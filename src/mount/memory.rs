//! Memory that whole files are decrypted into: nameless files of the private memory file system, mapped while they are
//! filled. Its `unsafe` is the mapping and the lease, which nothing safe offers.
//!
//! The file system is the helper's making: huge pages, no swap, a size that the kernel enforces, nobody's but ours. A page is
//! asked for before it is written to ([`populate`]): a write to a page that cannot be had would end the process.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate, open, openat};
use nix::libc;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::Mode;

use super::counts;

/// What one core decrypts at a time, bytes: a huge page of x86-64 and AArch64 with 4 KiB base pages.
pub(super) const UNIT: usize = 2 << 20;

/// Bytes that a file of `len` takes: huge pages only where they are full (`huge=within_size`), and whole small ones.
pub(super) fn taken(len: u64) -> u64 {
    len.div_ceil(4096).saturating_mul(4096)
}

/// The private memory file system.
#[derive(Debug)]
pub struct Memory {
    root: OwnedFd,
    size: u64,
}

impl Memory {
    /// The file system whose root directory is `root`.
    ///
    /// # Errors
    /// What the system says about its size.
    pub fn new(root: OwnedFd) -> io::Result<Self> {
        let stat = nix::sys::statvfs::fstatvfs(&root)?;
        Ok(Memory { size: stat.blocks().saturating_mul(stat.fragment_size()), root })
    }

    /// Most bytes it can hold.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Its root directory.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A nameless file.
    pub(super) fn buffer(&self) -> io::Result<Buffer> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let file = openat(&self.root, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Buffer { file: file.into(), bytes: 0, stays: false })
    }
}

/// One file of it, open for writing by us alone.
#[derive(Debug)]
pub(super) struct Buffer {
    file: File,
    /// What it was counted with.
    bytes: u64,
    /// Its name keeps it in memory.
    stays: bool,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.stays {
            counts::freed(self.bytes);
        }
    }
}

impl Buffer {
    /// A file of the memory file system that has been made under a name.
    pub(super) fn named(file: File) -> Self {
        Buffer { file, bytes: 0, stays: true }
    }

    /// The file itself, for its attributes.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Let `fill` write its content of `len` bytes, each unit of [`UNIT`] bytes after it was [`populate`]d.
    ///
    /// # Errors
    /// `fill`'s, and what the system says.
    pub(super) fn write<E: From<io::Error>>(
        &mut self,
        len: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.file.set_len(len)?;
        counts::taken(len);
        self.bytes = self.bytes.saturating_add(len);
        let Some(size) = usize::try_from(len).ok().and_then(NonZeroUsize::new) else { return Ok(()) };
        let mut mapping = Mapping::new(&self.file, size)?;
        mapping.prefer_huge_pages();
        if !can_populate() {
            let len = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            fallocate(&self.file, FallocateFlags::empty(), 0, len).map_err(io::Error::from)?;
        }
        fill(mapping.bytes())
    }

    /// The file, open for reading only: what the kernel is given.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn read_only(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Ok(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Whether nobody has it open any more: not the kernel, not a mapping that outlived its descriptor. Only then does
    /// dropping it give the memory back. The kernel answers: it grants a write lease only where no other open file is left
    /// (fcntl(2), `F_SETLEASE`).
    pub(super) fn unused(&self) -> bool {
        let lease = |kind: libc::c_int| {
            // JUSTIFICATION: nix has no F_SETLEASE. SAFETY: the descriptor is open, and the command takes an integer.
            unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
        };
        lease(libc::F_WRLCK) && lease(libc::F_UNLCK)
    }
}

/// Get the pages of `unit`, which begins at a page, so that writing to it cannot fail. Their content stays.
///
/// # Errors
/// `ENOSPC` when the file system is full, and what the system says.
pub(super) fn populate(unit: &mut [u8]) -> io::Result<()> {
    if !can_populate() {
        return Ok(());
    }
    match advise_populate(unit) {
        Ok(()) => Ok(()),
        // What would have been SIGBUS: no page to be had within the file system's size.
        Err(Errno::EFAULT) => Err(io::ErrorKind::StorageFull.into()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel populates mappings (Linux 5.14). Where it does not, files are allocated as a whole.
fn can_populate() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| advise_populate(&mut []) != Err(Errno::EINVAL))
}

fn advise_populate(unit: &mut [u8]) -> nix::Result<()> {
    // An empty slice points to no page; the kernel checks the advice first, and then has nothing to do at address 0.
    let start = if unit.is_empty() { std::ptr::null_mut() } else { unit.as_mut_ptr().cast() };
    // JUSTIFICATION: nix does not know this advice. SAFETY: the range is memory that we may write to; the kernel makes its
    // pages present and changes no byte.
    let done = unsafe { libc::madvise(start, unit.len(), libc::MADV_POPULATE_WRITE) };
    Errno::result(done).map(drop)
}

/// A buffer's pages in our address space, for the time of one fill.
struct Mapping {
    start: NonNull<c_void>,
    size: NonZeroUsize,
}

impl Mapping {
    fn new(file: &File, size: NonZeroUsize) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // JUSTIFICATION: decrypting straight into the pages saves a copy of every byte. SAFETY: a new mapping at an address
        // of the kernel's choice touches no other memory.
        let start = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Mapping { start, size })
    }

    /// Let the kernel make room for huge pages where it would otherwise take small ones. Refused, it takes those.
    fn prefer_huge_pages(&mut self) {
        // JUSTIFICATION: as above. SAFETY: exactly what is mapped; the advice changes no content.
        let _ = unsafe { madvise(self.start, self.size.get(), MmapAdvise::MADV_HUGEPAGE) };
    }

    fn bytes(&mut self) -> &mut [u8] {
        // JUSTIFICATION: as above. SAFETY: the mapping is `size` bytes, readable and writable, and lives as long as `self`.
        // Nobody else reads or writes these pages meanwhile: the file is ours alone, it is handed to the kernel only after
        // the fill, which happens once. Nobody else can shorten the file; its pages are populated before they are written to.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast::<u8>().as_ptr(), self.size.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // JUSTIFICATION: as above. SAFETY: exactly what was mapped, and no slice of it outlives `self`.
        if let Err(error) = unsafe { munmap(self.start, self.size.get()) } {
            tracing::error!(event = "memory.unmap", %error, "unmapping a buffer: {error}");
        }
    }
}
