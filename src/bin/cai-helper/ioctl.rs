//! The one call to a device: a TDREPORT from `/dev/tdx_guest`.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;

/// `struct tdx_report_req` of Linux `include/uapi/linux/tdx-guest.h`.
#[repr(C)]
pub(crate) struct ReportRequest {
    report_data: [u8; 64],
    report: [u8; 1024],
}

mod call {
    // `TDX_CMD_GET_REPORT0`, 0xC4405401.
    nix::ioctl_readwrite!(get_report0, b'T', 1, super::ReportRequest);
}

/// A TDREPORT over `report_data`.
pub(crate) fn td_report(device: &File, report_data: &[u8; 64]) -> nix::Result<[u8; 1024]> {
    let mut request = ReportRequest { report_data: *report_data, report: [0; 1024] };
    // JUSTIFICATION: an ioctl is the device's only interface. SAFETY: the kernel reads and writes exactly the 1088 bytes
    // that the command's number says, which `request` has, and keeps no pointer.
    unsafe { call::get_report0(device.as_raw_fd(), &raw mut request) }?;
    Ok(request.report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_the_kernels() {
        assert_eq!(nix::request_code_readwrite!(b'T', 1, size_of::<ReportRequest>()), 0xC440_5401);
    }
}
