//! `/sys/kernel/config/tsm/report`: a directory's attributes appear when it is made, and go when it goes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use fuser::*;

use super::bytes::quote_v4;
use super::{Shared, TsmFault};

const ATTRIBUTES: [(&str, u16); 5] =
    [("inblob", 0o200), ("outblob", 0o400), ("generation", 0o400), ("provider", 0o400), ("auxblob", 0o400)];

/// Directory `k` has inode `16 k`, its attribute `i` inode `16 k + 1 + i`.
const PER_DIRECTORY: u64 = 16;

struct Report {
    name: String,
    made: SystemTime,
    inblob: Option<[u8; 64]>,
    generation: u32,
    fault: Option<TsmFault>,
}

/// The file system.
pub struct Tsm {
    machine: Shared,
    reports: Mutex<BTreeMap<u64, Report>>,
}

impl Tsm {
    pub fn new(machine: Shared) -> Self {
        Tsm { machine, reports: Mutex::default() }
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, time) = match (ino.0 / PER_DIRECTORY, ino.0 % PER_DIRECTORY) {
            (0, 1) => (FileType::Directory, 0o755, SystemTime::UNIX_EPOCH),
            (directory, 0) => {
                (FileType::Directory, 0o755, self.reports.lock().unwrap().get(&directory)?.made)
            }
            (directory, index) => {
                let made = self.reports.lock().unwrap().get(&directory)?.made;
                (FileType::RegularFile, ATTRIBUTES.get(usize::try_from(index).unwrap() - 1)?.1, made)
            }
        };
        Some(attributes(ino, kind, perm, time))
    }

    /// What reading an attribute gives.
    fn content(&self, ino: INodeNo) -> Result<Vec<u8>, Errno> {
        let reports = self.reports.lock().unwrap();
        let report = reports.get(&(ino.0 / PER_DIRECTORY)).ok_or(Errno::ENOENT)?;
        match ATTRIBUTES[usize::try_from(ino.0 % PER_DIRECTORY).unwrap() - 1].0 {
            "outblob" => self.quote(report),
            "generation" => Ok(format!("{}\n", report.generation).into_bytes()),
            "provider" => {
                let other = match report.fault {
                    Some(TsmFault::Provider(provider)) => provider,
                    _ => "tdx_guest",
                };
                Ok(format!("{other}\n").into_bytes())
            }
            "auxblob" => Ok(Vec::new()),
            _ => Err(Errno::EACCES),
        }
    }

    fn quote(&self, report: &Report) -> Result<Vec<u8>, Errno> {
        let mut report_data = report.inblob.ok_or(Errno::EINVAL)?;
        match report.fault {
            Some(TsmFault::Errno(errno)) => return Err(Errno::from_i32(errno)),
            Some(TsmFault::Empty) => return Ok(Vec::new()),
            Some(TsmFault::Endless) => return Ok(vec![4; 1 << 20]),
            Some(TsmFault::OtherReportData) => report_data[0] ^= 1,
            _ => {}
        }
        Ok(quote_v4(&report_data, &self.machine.lock().unwrap().measured))
    }
}

pub fn attributes(ino: INodeNo, kind: FileType, perm: u16, time: SystemTime) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}

impl Filesystem for Tsm {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_string_lossy();
        let ino = if parent.0 == 1 {
            let reports = self.reports.lock().unwrap();
            let found = reports.iter().find(|(_, report)| report.name == name);
            found.map(|(directory, _)| directory * PER_DIRECTORY)
        } else {
            let index = ATTRIBUTES.iter().position(|(attribute, _)| *attribute == name);
            index.map(|index| parent.0 + 1 + index as u64)
        };
        match ino.and_then(|ino| self.attr(INodeNo(ino))) {
            Some(attr) => reply.entry(&Duration::ZERO, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&Duration::ZERO, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        if parent.0 != 1 {
            return reply.error(Errno::EPERM);
        }
        let name = name.to_string_lossy().into_owned();
        let mut machine = self.machine.lock().unwrap();
        machine.made.push(name.clone());
        let directory = machine.made.len() as u64;
        // A directory whose name tells its age: as a helper that was killed long ago has left it.
        let age = if name.contains("-old-") { Duration::from_secs(3600) } else { Duration::ZERO };
        let made = SystemTime::now() - age;
        let fault = machine.tsm_faults.pop_front();
        drop(machine);
        let report = Report { name, made, inblob: None, generation: 0, fault };
        self.reports.lock().unwrap().insert(directory, report);
        let ino = INodeNo(directory * PER_DIRECTORY);
        reply.entry(&Duration::ZERO, &attributes(ino, FileType::Directory, 0o755, made), Generation(0));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut reports = self.reports.lock().unwrap();
        let before = reports.len();
        reports.retain(|_, report| report.name != name.to_string_lossy());
        if reports.len() < before { reply.ok() } else { reply.error(Errno::ENOENT) }
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut reports = self.reports.lock().unwrap();
        let Some(report) = reports.get_mut(&(ino.0 / PER_DIRECTORY)) else {
            return reply.error(Errno::ENOENT);
        };
        let Ok(inblob) = <[u8; 64]>::try_from(data) else { return reply.error(Errno::EINVAL) };
        if ino.0 % PER_DIRECTORY != 1 || offset != 0 {
            return reply.error(Errno::EINVAL);
        }
        self.machine.lock().unwrap().asked.push(data.to_vec());
        report.inblob = Some(inblob);
        report.generation += 1;
        if matches!(report.fault, Some(TsmFault::ForeignWriter)) {
            report.generation += 1;
        }
        reply.written(64);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.content(ino) {
            Ok(content) => {
                let start = content.len().min(usize::try_from(offset).unwrap());
                let end = content.len().min(start + size as usize);
                reply.data(&content[start..end]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino.0 == 1 {
            let reports = self.reports.lock().unwrap();
            let skip = usize::try_from(offset).unwrap();
            for (index, (directory, report)) in reports.iter().enumerate().skip(skip) {
                let ino = INodeNo(directory * PER_DIRECTORY);
                if reply.add(ino, index as u64 + 1, FileType::Directory, &report.name) {
                    break;
                }
            }
        }
        reply.ok();
    }
}
