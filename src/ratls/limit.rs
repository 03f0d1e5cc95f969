//! The one setting of OpenSSL that its crate has no function for.
//!
//! Source: SSL_CTX_set_max_cert_list(3): a macro over SSL_CTX_ctrl. Tested in `tests/connect_hostile.rs`.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long};

use openssl::ssl::SslContextBuilder;

/// SSL_CTRL_SET_MAX_CERT_LIST of openssl/ssl.h, in 1.1.1 and 3.
const SET_MAX_CERT_LIST: c_int = 51;

/// Let a peer's certificates be up to `bytes` long together; without it, 100 KiB.
pub(super) fn set_max_cert_list(context: &mut SslContextBuilder, bytes: c_long) {
    // JUSTIFICATION: evidence with its event log is longer than the default, and the crate exposes no such setting.
    // SAFETY: the pointer is that of a context which `context` keeps alive; for this command the function reads nothing
    // through its last argument and stores the number.
    unsafe {
        openssl_sys::SSL_CTX_ctrl(context.as_ptr(), SET_MAX_CERT_LIST, bytes, std::ptr::null_mut());
    }
}
