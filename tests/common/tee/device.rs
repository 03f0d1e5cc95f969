//! `/dev` with `tdx_guest` in it, which answers the kernel's own command and no other.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use fuser::*;

use super::Shared;
use super::bytes::td_report;
use super::tsm::attributes;

/// `TDX_CMD_GET_REPORT0`.
const GET_REPORT: u32 = 0xc440_5401;

const GUEST: INodeNo = INodeNo(2);

/// The file system.
pub struct Dev {
    machine: Shared,
}

impl Dev {
    pub fn new(machine: Shared) -> Self {
        Dev { machine }
    }
}

fn attr(ino: INodeNo) -> FileAttr {
    let (kind, perm) =
        if ino == GUEST { (FileType::RegularFile, 0o600) } else { (FileType::Directory, 0o755) };
    attributes(ino, kind, perm, SystemTime::UNIX_EPOCH)
}

impl Filesystem for Dev {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "tdx_guest" {
            reply.entry(&Duration::ZERO, &attr(GUEST), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.machine.lock().unwrap().device_closed {
            return reply.error(Errno::EACCES);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn ioctl(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        command: u32,
        asked: &[u8],
        room: u32,
        reply: ReplyIoctl,
    ) {
        let machine = self.machine.lock().unwrap();
        if let Some(error) = machine.device_error {
            return reply.error(error);
        }
        if (ino, command, asked.len(), room) != (GUEST, GET_REPORT, 1088, 1088) {
            return reply.error(Errno::ENOTTY);
        }
        let mut report_data: [u8; 64] = asked[..64].try_into().unwrap();
        if machine.device_lies {
            report_data[63] ^= 1;
        }
        let report = td_report(&report_data, &machine.measured);
        reply.ioctl(0, &[&asked[..64], &report].concat());
    }
}
