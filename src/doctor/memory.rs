//! Memory: nothing of the model may be swapped, decrypted files need room, and a TD's devices need bounce buffers.

use std::path::Path;
use std::sync::Arc;

use indicatif::HumanBytes;

use super::context::{Agent, Context, Listed};
use super::finding::Finding;
use crate::config::{MountMode, Settings};
use crate::error::ErrorClass;
use crate::meminfo::MemInfo;

/// What is swapped to.
const SWAPS: &str = "/proc/swaps";
/// First kernel whose memory file systems can promise not to be swapped (tmpfs `noswap`).
const NOSWAP: (u32, u32) = (6, 4);
/// The kernel's bounce buffers, for root alone: slabs of 2 KiB, and how many of them are in use.
const SLABS: &str = "sys/kernel/debug/swiotlb/io_tlb_nslabs";
const USED: &str = "sys/kernel/debug/swiotlb/io_tlb_used";
const SLAB: u64 = 2 << 10;
/// Least bounce buffers of a TD, bytes: the kernel's own minimum where memory is encrypted (`SZ_64M`, Linux
/// arch/x86/mm/mem_encrypt.c).
const LEAST: u64 = 64 << 20;

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings().cloned() else { return Vec::new() };
    let listed = context.listed().await.and_then(|listed| listed.as_ref().ok().cloned());
    let agent = context.agent().await;
    super::blocking("memory.room", move || {
        let mut findings = vec![swap(settings.mount.mode)];
        findings.push(if agent == Agent::Serving {
            Finding::ok("memory.room", "the agent serves: it has what it needs")
        } else {
            room(&settings, listed.as_deref())
        });
        findings.extend(bounce_buffers(&context.root, context.is_root()));
        findings
    })
    .await
}

fn swap(mode: MountMode) -> Finding {
    let release = super::read(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default();
    let promises = super::versions::version(&release).is_some_and(|version| version >= NOSWAP);
    swap_in(&super::read(Path::new(SWAPS)).unwrap_or_default(), mode, promises)
}

/// The same, by the table of what is swapped to.
fn swap_in(table: &str, mode: MountMode, promises: bool) -> Finding {
    let swaps: Vec<&str> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if swaps.is_empty() {
        return Finding::ok("memory.swap", "no swap is active");
    }
    let found = format!("swap is active: {}", swaps.join(", "));
    let fix = "swapoff -a, and remove swap from /etc/fstab";
    match mode {
        MountMode::Load | MountMode::Ram if !promises => {
            let meaning = "mount.mode needs memory that is never swapped, which this kernel cannot promise";
            Finding::error("memory.swap", ErrorClass::Config, found, meaning)
                .fixed_by(format!("{fix}; or mount.mode = \"on-demand\""))
        }
        _ => {
            let meaning = "plaintext in the memory of whoever reads the model can reach a disk";
            Finding::warning("memory.swap", found, meaning).fixed_by(fix)
        }
    }
}

/// Whether what `mount.mode` decrypts at a time fits.
fn room(settings: &Settings, listed: Option<&Listed>) -> Finding {
    let memory = match MemInfo::read() {
        Ok(memory) => memory,
        Err(error) => return Finding::unseen("memory.room", format!("/proc/meminfo: {error}"), "free -h"),
    };
    let Some(listed) = listed else {
        return Finding::unseen("memory.room", "the model's size is not known", "see oss.list");
    };
    let largest = listed.objects.iter().map(|object| object.len).max().unwrap_or_default();
    fits(settings.mount.mode, settings.mount.memory_bytes, &memory, listed.bytes(), largest)
}

/// `model`, `largest`: bytes of ciphertext, in all and of one file, which is a little more than the plaintext.
fn fits(mode: MountMode, limit: u64, memory: &MemInfo, model: u64, largest: u64) -> Finding {
    let available = HumanBytes(memory.available);
    let (what, needed, allowed) = match mode {
        MountMode::OnDemand => {
            return Finding::ok("memory.room", format!("{available} available; on-demand needs little"));
        }
        MountMode::Ram if limit == 0 => ("the model", model, memory.available),
        MountMode::Ram => ("the model", model, limit.min(memory.available)),
        MountMode::Auto | MountMode::Load if limit == 0 => {
            ("the largest file", largest, memory.available / 2)
        }
        MountMode::Auto | MountMode::Load => ("the largest file", largest, limit.min(memory.available)),
    };
    let found = format!("{what} takes {}, {} may be used", HumanBytes(needed), HumanBytes(allowed));
    if needed <= allowed {
        return Finding::ok("memory.room", found);
    }
    match mode {
        MountMode::Ram => Finding::error("memory.room", ErrorClass::Config, found, "ram mode does not start")
            .fixed_by("raise mount.memory_bytes, stop what uses memory, or set mount.mode = \"auto\""),
        _ => Finding::warning("memory.room", found, "it is decrypted as it is read, which is slower")
            .fixed_by("raise mount.memory_bytes, or stop what uses memory"),
    }
}

/// What devices of a TD are spoken to through: everybody's memory but theirs is encrypted.
fn bounce_buffers(root: &Path, is_root: bool) -> Option<Finding> {
    let flags = super::read(&root.join("proc/cpuinfo"))?;
    if !flags.split_whitespace().any(|flag| flag == "tdx_guest") {
        return None;
    }
    let number = |path: &str| super::read(&root.join(path))?.trim().parse::<u64>().ok();
    Some(match (number(SLABS), number(USED)) {
        (Some(slabs), Some(used)) => buffers(slabs.saturating_mul(SLAB), used.saturating_mul(SLAB)),
        _ => {
            let fix = match is_root {
                true => "mount -t debugfs none /sys/kernel/debug; or: dmesg | grep 'IO TLB'",
                false => super::AS_ROOT,
            };
            Finding::unseen("memory.swiotlb", "the size of the bounce buffers cannot be read", fix)
        }
    })
}

fn buffers(size: u64, used: u64) -> Finding {
    let found = format!("{} of bounce buffers, {} in use", HumanBytes(size), HumanBytes(used));
    let fix =
        "raise swiotlb= on the kernel command line (slabs of 2 KiB: swiotlb=524288 is 1 GiB), and reboot";
    if size < LEAST {
        let meaning = "GPU and network of a TD go through them, and are slow or fail without";
        return Finding::warning("memory.swiotlb", found, meaning).fixed_by(fix);
    }
    if used > size / 10 * 9 {
        let meaning = "almost full: transfers wait or fail (`swiotlb buffer is full` in dmesg)";
        return Finding::warning("memory.swiotlb", found, meaning).fixed_by(fix);
    }
    Finding::ok("memory.swiotlb", found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    const GIB: u64 = 1 << 30;

    #[test]
    fn swap_is_an_obstacle_only_where_memory_must_not_be_swapped_and_may_be() {
        let table = "Filename\tType\tSize\tUsed\tPriority\n/dev/vda2 partition 1 0 -2\n";
        assert_eq!(swap_in("", MountMode::Ram, false).level, Level::Ok);
        assert_eq!(swap_in(table, MountMode::Ram, false).level, Level::Error);
        assert_eq!(swap_in(table, MountMode::Load, true).level, Level::Warning);
        let warned = swap_in(table, MountMode::Auto, false);
        assert_eq!((warned.level, warned.found.as_str()), (Level::Warning, "swap is active: /dev/vda2"));
    }

    #[test]
    fn room_is_asked_for_the_model_or_for_a_file_as_the_mode_has_it() {
        let memory = MemInfo { total: 64 * GIB, available: 40 * GIB };
        let level = |mode, limit, model, largest| fits(mode, limit, &memory, model, largest).level;
        assert_eq!(level(MountMode::OnDemand, 0, 900 * GIB, 900 * GIB), Level::Ok);
        assert_eq!(level(MountMode::Ram, 0, 40 * GIB, GIB), Level::Ok);
        assert_eq!(level(MountMode::Ram, 0, 41 * GIB, GIB), Level::Error);
        assert_eq!(level(MountMode::Ram, 30 * GIB, 31 * GIB, GIB), Level::Error);
        assert_eq!(level(MountMode::Auto, 0, 900 * GIB, 20 * GIB), Level::Ok);
        assert_eq!(level(MountMode::Load, 0, 900 * GIB, 21 * GIB), Level::Warning);
        assert_eq!(level(MountMode::Load, 30 * GIB, 900 * GIB, 21 * GIB), Level::Ok);
    }

    #[test]
    fn bounce_buffers_of_a_td_are_looked_at_and_those_of_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/cpuinfo", "flags : fpu\n");
        assert_eq!(bounce_buffers(root.path(), true), None);
        write("proc/cpuinfo", "flags : fpu tdx_guest\n");
        assert_eq!(bounce_buffers(root.path(), false).unwrap().fix, "sudo cai doctor");
        write(SLABS, "524288\n");
        write(USED, "7\n");
        assert_eq!(bounce_buffers(root.path(), true).unwrap().level, Level::Ok);
        assert_eq!(buffers(32 << 20, 0).level, Level::Warning);
        assert_eq!(buffers(GIB, GIB - 1).level, Level::Warning);
    }
}
