//! Intel's `libtdx_attest.so.1`, opened in the short-lived child only.
//!
//! Source of the interface: `tdx_attest.h` of Intel's DCAP, as told in kbs.md section 7.1.5 path 4.
#![allow(unsafe_code)]

use std::path::Path;
use std::ptr;

use libloading::{Library, Symbol};

use crate::session::Refusal;
use crate::vendor::library;

/// Name of the library: the dynamic linker's to find.
const NAME: &str = "libtdx_attest.so.1";

/// Longest quote, in bytes. Real ones have 5 KiB.
const QUOTE_LIMIT: u32 = 64 << 10;

/// `tdx_att_get_quote`: report data (64 bytes), list of key ids and its length, chosen id, quote, its length, flags.
type GetQuote = unsafe extern "C" fn(
    *const [u8; 64],
    *const [u8; 16],
    u32,
    *mut [u8; 16],
    *mut *mut u8,
    *mut u32,
    u32,
) -> u32;

/// `tdx_att_free_quote`.
type FreeQuote = unsafe extern "C" fn(*mut u8) -> u32;

/// A quote over `report_data`.
pub(crate) fn quote(root: &Path, report_data: &[u8; 64]) -> Result<Vec<u8>, Refusal> {
    let failed = |error: libloading::Error| {
        Refusal::new(
            "tdx.no-library",
            format!("{NAME}: {error}"),
            "install the vendor's libtdx-attest, or leave attest.quote at auto",
        )
    };
    let path = library(root, NAME);
    // JUSTIFICATION: the vendor's library is reached by dlopen alone, so that cai needs none. SAFETY: its constructors run
    // in this child, which does nothing else and has one thread.
    let library = unsafe { Library::new(&path) }.map_err(failed)?;
    // JUSTIFICATION: as above. SAFETY: both types are those of Intel's tdx_attest.h for this soname.
    let (get, free): (Symbol<'_, GetQuote>, Symbol<'_, FreeQuote>) = unsafe {
        (
            library.get(b"tdx_att_get_quote\0").map_err(failed)?,
            library.get(b"tdx_att_free_quote\0").map_err(failed)?,
        )
    };
    let (mut quote, mut len) = (ptr::null_mut(), 0);
    // JUSTIFICATION: a foreign function. SAFETY: the pointers are to live values of the types it expects; null, zero and
    // null are its way to leave the choice of a key to the library.
    let code = unsafe { get(report_data, ptr::null(), 0, ptr::null_mut(), &raw mut quote, &raw mut len, 0) };
    if code != 0 {
        return Err(refusal(code));
    }
    if quote.is_null() || len == 0 || len > QUOTE_LIMIT {
        let text = format!("{NAME} gave a quote of {len} bytes");
        return Err(Refusal::new("tdx.empty-quote", text, HOST));
    }
    // JUSTIFICATION: the quote is the library's memory. SAFETY: on success it points to `len` bytes, which nobody writes to
    // until they are freed, after the copy.
    let bytes = unsafe { std::slice::from_raw_parts(quote, len as usize) }.to_vec();
    // JUSTIFICATION: as above. SAFETY: `quote` came from the library, and is freed once.
    unsafe { free(quote) };
    Ok(bytes)
}

/// What the library's codes mean (`tdx_attest_error_t`).
fn refusal(code: u32) -> Refusal {
    let (known, meaning, hint) = match code {
        4 => (
            "tdx.library-vsock",
            "vsock failure",
            "vsock: load vmw_vsock_virtio_transport in the guest, and see that the port in /etc/tdx-attest.conf is the one \
             the host's quote generation service listens on (CID 2)",
        ),
        5 => ("tdx.library-device", "report failure", DEVICE),
        7 => (
            "tdx.library",
            "not supported",
            "this library and kernel do not fit each other: update one of them",
        ),
        8 => ("tdx.library-quote", "quote failure", HOST),
        9 => ("tdx.tsm-busy", "busy", "another program is asking for quotes all the time: find it"),
        10 => ("tdx.library-device", "device failure", DEVICE),
        _ => ("tdx.library", "unexpected failure", "see the kernel log: dmesg | tail"),
    };
    Refusal::new(known, format!("{NAME} failed with {code:#x} ({meaning})"), hint)
}

const DEVICE: &str = "this is no TDX guest, or /dev/tdx_guest is not passed into this container: see dmesg, and the flag \
    tdx_guest in lscpu";

const HOST: &str = "the host's quote generation service (QGS) did not answer: this cannot be cured in the guest, except for \
    the port in /etc/tdx-attest.conf; see its log on the host, and whether the platform is registered (PCK certificates)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_library_say_who_is_at_fault() {
        let found = [1, 4, 5, 7, 8, 9, 0xA].map(|code| refusal(code).code.into_owned());
        assert_eq!(
            found,
            [
                "tdx.library",
                "tdx.library-vsock",
                "tdx.library-device",
                "tdx.library",
                "tdx.library-quote",
                "tdx.tsm-busy",
                "tdx.library-device"
            ]
        );
        assert_eq!(refusal(8).text, "libtdx_attest.so.1 failed with 0x8 (quote failure)");
    }
}
