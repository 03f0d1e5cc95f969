//! The kernel's side of the mount: requests in, replies out. A thin adapter over [`Revisions`] of the model.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyXattr, Request,
};

use super::counts;
use super::far::Far;
use super::fs::{self, FsError, ModelFs, ReadBuffers};
use super::info::{Kind, NodeInfo};
use super::load::Loader;
use super::revisions::Revisions;

/// How long the kernel may believe names and attributes: what an inode stands for never changes.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long it may believe what the root holds, which may be another revision of the model the next time.
const ROOT_TTL: Duration = Duration::ZERO;
/// Largest request we ask for, bytes. Throughput is flat from 128 KiB to 1 MiB and falls beyond, out of L2; several requests
/// to one window of read-ahead keep several cores busy for one reader.
const MAX_REQUEST: u32 = 512 << 10;
/// Requests the kernel may keep in flight; its default of 12 starves parallel readers. Those that wait for the network count:
/// eight for each reader of a missing file.
const MAX_BACKGROUND: u16 = 512;
/// Block size shown by `stat` and counted by `statfs`, bytes: the plaintext block of the format.
const BLOCK: u32 = 4096;

/// The file system as the kernel talks to it.
pub(super) struct KernelFs {
    revisions: Arc<Revisions>,
    loader: Arc<Loader>,
    /// Whether the kernel can read registered files by itself; said once, in its first request.
    can_pass_through: Arc<OnceLock<bool>>,
    /// Reads of files that are not local yet.
    far: Far<Read>,
    /// Buffers that nobody reads into, one for each core at most, the one used last on top. The kernel wakes the threads in turn:
    /// buffers of their own would have left the cores' caches when it is their turn again, and all of them would be kept.
    spare: Mutex<Vec<ReadBuffers>>,
    /// How many are kept.
    cores: usize,
}

/// A read, to be answered.
struct Read {
    fs: Arc<ModelFs>,
    inode: u64,
    offset: u64,
    size: u32,
    reply: ReplyData,
    is_local: bool,
    since: Instant,
}

impl KernelFs {
    /// To be served by so many threads.
    pub(super) fn new(
        revisions: Arc<Revisions>,
        loader: Arc<Loader>,
        can_pass_through: Arc<OnceLock<bool>>,
        threads: usize,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spare = Mutex::default();
        KernelFs { revisions, loader, can_pass_through, far: Far::new(threads), spare, cores }
    }

    fn answer(&self, read: Read) {
        let Read { fs, inode, offset, size, reply, is_local, since } = read;
        let mut buffers = self.spare().pop().unwrap_or_default();
        match fs.read(inode, offset, size, &mut buffers) {
            Ok(plaintext) => {
                counts::read(is_local, since, Some(plaintext.len()));
                reply.data(plaintext);
            }
            Err(error) => {
                counts::read(is_local, since, None);
                reply.error(errno(&error));
            }
        }
        let mut spare = self.spare();
        if spare.len() < self.cores {
            spare.push(buffers);
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<ReadBuffers>> {
        // Each change of the stack is complete in itself.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attr(&self, info: &NodeInfo) -> FileAttr {
        FileAttr {
            ino: INodeNo(info.inode),
            size: info.size,
            blocks: info.blocks,
            atime: info.mtime,
            mtime: info.mtime,
            ctime: info.mtime,
            crtime: info.mtime,
            kind: file_type(info.kind),
            perm: info.permissions,
            nlink: info.nlink,
            uid: info.uid,
            gid: info.gid,
            // Device numbers beyond 32 bits do not exist on Linux.
            rdev: u32::try_from(info.rdev).unwrap_or(0),
            blksize: BLOCK,
            flags: 0,
        }
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::NamedPipe => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        // Makes the kernel walk the path once more, and find what is shown now.
        FsError::Stale => Errno::ESTALE,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::NotAFile => Errno::EISDIR,
        FsError::NotALink => Errno::EINVAL,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::NotSupported => Errno::EOPNOTSUPP,
        // Authentication failed or the bytes cannot be had: never zeros, never short data.
        FsError::Damaged | FsError::Unreadable => Errno::EIO,
    }
}

/// Answer a question about extended attributes: the size where none was offered, the bytes where they fit.
fn answer_xattr(reply: ReplyXattr, size: u32, answer: Result<Vec<u8>, FsError>) {
    match answer {
        Err(error) => reply.error(errno(&error)),
        Ok(bytes) => match u32::try_from(bytes.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&bytes),
            Ok(_) | Err(_) => reply.error(Errno::ERANGE),
        },
    }
}

impl Filesystem for KernelFs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is taken as far as the kernel goes: an error carries what it would accept.
        if let Err(most) = config.set_max_write(MAX_REQUEST) {
            let _ = config.set_max_write(most);
        }
        if let Err(most) = config.set_max_readahead(MAX_REQUEST) {
            let _ = config.set_max_readahead(most);
        }
        if let Err(most) = config.set_max_background(MAX_BACKGROUND) {
            let _ = config.set_max_background(most);
        }
        let wanted = InitFlags::FUSE_ASYNC_READ
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_CACHE_SYMLINKS;
        let _ = config.add_capabilities(wanted & config.capabilities());
        // Registered files lie on a memory file system, which is stacked on nothing.
        let passes = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        let _ = self.can_pass_through.set(passes);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let entry_ttl = if parent.0 == fs::ROOT { ROOT_TTL } else { TTL };
        match self.revisions.of(parent.0).and_then(|fs| fs.lookup(parent.0, name)) {
            Ok(info) => reply.entry_with_ttls(&TTL, &entry_ttl, &self.attr(&info), Generation(0)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let ttl = if inode.0 == fs::ROOT { ROOT_TTL } else { TTL };
        match self.revisions.of(inode.0).and_then(|fs| fs.info(inode.0)) {
            Ok(info) => reply.attr(&ttl, &self.attr(&info)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        match self.revisions.of(inode.0) {
            Ok(fs) => match fs.read_link(inode.0) {
                Ok(target) => reply.data(target),
                Err(error) => reply.error(errno(&error)),
            },
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != fuser::OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let opened = self.revisions.open(inode.0).and_then(|fs| match fs.open(inode.0) {
            Ok(()) => Ok(fs),
            Err(error) => {
                self.revisions.closed(fs.revision());
                Err(error)
            }
        });
        match opened {
            Ok(fs) => self.loader.open(&fs, inode.0, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.loader.release(inode.0, handle);
        self.revisions.closed(fs::revision_of(inode.0));
        reply.ok();
    }

    fn destroy(&mut self) {
        self.loader.close();
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = match self.revisions.of(inode.0) {
            Ok(fs) => fs,
            Err(error) => return reply.error(errno(&error)),
        };
        let is_local = fs.is_complete(inode.0);
        let read = Read { fs, inode: inode.0, offset, size, reply, is_local, since: Instant::now() };
        if is_local { self.answer(read) } else { self.far.run(read, |read| self.answer(read)) }
    }

    fn getxattr(&self, _request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer_xattr(reply, size, self.revisions.of(inode.0).and_then(|fs| fs.xattr(inode.0, name)));
    }

    fn listxattr(&self, _request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.revisions.of(inode.0).and_then(|fs| fs.xattr_names(inode.0));
        let list =
            names.map(|names| names.iter().flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect());
        answer_xattr(reply, size, list);
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // What the root holds is another thing after a switch; the handle says what it is for who reads it now.
        let flags = match inode.0 {
            fs::ROOT => FopenFlags::empty(),
            _ => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
        };
        match self.revisions.open(inode.0) {
            Ok(fs) => match fs.children(inode.0) {
                Ok(_) => reply.opened(FileHandle(u64::from(fs.revision())), flags),
                Err(error) => {
                    self.revisions.closed(fs.revision());
                    reply.error(errno(&error));
                }
            },
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.revisions.closed(u32::try_from(handle.0).unwrap_or(u32::MAX));
        reply.ok();
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let fs = match self.revisions.opened(handle) {
            Ok(fs) => fs,
            Err(error) => return reply.error(errno(&error)),
        };
        match fs.list(inode.0, offset) {
            Ok(entries) => {
                for (next, name, info) in entries {
                    if reply.add(INodeNo(info.inode), next, file_type(info.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let fs = match self.revisions.opened(handle) {
            Ok(fs) => fs,
            Err(error) => return reply.error(errno(&error)),
        };
        let ttl = if inode.0 == fs::ROOT { ROOT_TTL } else { TTL };
        match fs.list(inode.0, offset) {
            Ok(entries) => {
                for (next, name, info) in entries {
                    if reply.add(INodeNo(info.inode), next, name, &ttl, &self.attr(&info), Generation(0)) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let (blocks, files) = self.revisions.newest().totals(u64::from(BLOCK));
        // A sealed image: full, like any read-only file system. Longest name as on Linux.
        reply.statfs(blocks, 0, 0, files, 0, BLOCK, 255, BLOCK);
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    // What follows has no meaning here. Without an answer of our own fuser logs a warning for each, and `ioctl` comes with
    // every file that python opens. `ENOSYS` makes the kernel do the rest itself and ask no more.

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn lseek(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: i64,
        _whence: i32,
        reply: ReplyLseek,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
