//! A file system of one file of zeros: what the kernel's side of FUSE costs by itself, with the settings of cai's mount. `reads.py`
//! measures it beside cai; nobody can be faster on the same kernel.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
    Session,
};

/// The name of the file.
const NAME: &str = "model.safetensors";
const ROOT: u64 = 1;
const FILE: u64 = 2;
/// As in cai's mount: bytes of a request, requests in flight, and threads.
const MAX_REQUEST: u32 = 512 << 10;
const MAX_BACKGROUND: u16 = 512;
const FEWEST_THREADS: usize = 16;
const MOST_THREADS: usize = 64;
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

struct Empty {
    len: u64,
    zeros: Vec<u8>,
}

impl Empty {
    fn attr(&self, inode: u64) -> FileAttr {
        let (kind, size) =
            if inode == ROOT { (FileType::Directory, 0) } else { (FileType::RegularFile, self.len) };
        FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o555,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Empty {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let wanted = InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_PARALLEL_DIROPS;
        let _ = config.add_capabilities(wanted & config.capabilities());
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(inode.0));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.len.saturating_sub(offset).min(u64::from(size));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        reply.data(self.zeros.get(..len).unwrap_or_default());
    }
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [point, len] = &arguments[..] else {
        return Err(io::Error::other("usage: empty-fs MOUNT-POINT BYTES"));
    };
    let len = len.parse().map_err(io::Error::other)?;
    let mut config = Config::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    config.n_threads = Some(cores.clamp(FEWEST_THREADS, MOST_THREADS));
    config.mount_options = vec![MountOption::RO, MountOption::DefaultPermissions];
    let zeros = vec![0; usize::try_from(MAX_REQUEST).map_err(io::Error::other)?];
    Session::new(Empty { len, zeros }, Path::new(point), &config)?.run()
}
