//! The calls to devices: a TDREPORT from `/dev/tdx_guest`, and a backing file taken back from `/dev/fuse` (fuser registers
//! one, but takes back only through a session of its own).
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// `struct tdx_report_req` of Linux `include/uapi/linux/tdx-guest.h`.
#[repr(C)]
pub(crate) struct ReportRequest {
    report_data: [u8; 64],
    report: [u8; 1024],
}

mod call {
    // `TDX_CMD_GET_REPORT0`, 0xC4405401.
    nix::ioctl_readwrite!(get_report0, b'T', 1, super::ReportRequest);
    // `FUSE_DEV_IOC_BACKING_CLOSE` of Linux `include/uapi/linux/fuse.h`, 0x4004E502.
    nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
}

/// A TDREPORT over `report_data`.
pub(crate) fn td_report(device: &File, report_data: &[u8; 64]) -> nix::Result<[u8; 1024]> {
    let mut request = ReportRequest { report_data: *report_data, report: [0; 1024] };
    // JUSTIFICATION: an ioctl is the device's only interface. SAFETY: the kernel reads and writes exactly the 1088 bytes
    // that the command's number says, which `request` has, and keeps no pointer.
    unsafe { call::get_report0(device.as_raw_fd(), &raw mut request) }?;
    Ok(request.report)
}

/// Take file `id` back from the FUSE device it was registered with. Handles that are open keep it.
pub(crate) fn close_backing(device: &OwnedFd, id: u32) -> nix::Result<()> {
    // JUSTIFICATION: as above. SAFETY: the kernel reads the four bytes of `id`, which outlives the call.
    unsafe { call::backing_close(device.as_raw_fd(), &raw const id) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_the_kernels() {
        assert_eq!(nix::request_code_readwrite!(b'T', 1, size_of::<ReportRequest>()), 0xC440_5401);
        assert_eq!(nix::request_code_write!(229, 2, size_of::<u32>()), 0x4004_E502);
    }
}
