//! AES-256-GCM with nonces of any length, and XChaCha20-Poly1305, through aws-lc.
//!
//! gocryptfs chose a 16-byte nonce that the safe crates do not take (ring and aws-lc-rs know 12 bytes only), and
//! RustCrypto's `aes-gcm` does at a third of the speed. aws-lc's EVP_AEAD functions pass any nonce length to the general
//! IV derivation of NIST SP 800-38D section 7.1, and have XChaCha20-Poly1305 beside it. This is the format's only
//! `unsafe` file; RustCrypto's ciphers are the oracles its tests compare every length with.
//!
//! Threads: an [`Aead`] is immutable after `new`; aws-lc documents seal and open of both ciphers as safe to call
//! concurrently on one context (`openssl/aead.h`, note at `EVP_AEAD_CTX_seal`).

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use aws_lc_sys::{
    ERR_clear_error, EVP_AEAD_CTX, EVP_AEAD_CTX_cleanup, EVP_AEAD_CTX_init, EVP_AEAD_CTX_open_gather,
    EVP_AEAD_CTX_seal_scatter, EVP_AEAD_CTX_zero, EVP_aead_aes_256_gcm, EVP_aead_xchacha20_poly1305,
};

use super::layout::TAG;
use crate::keyring::{LockError, Locked};

/// Bytes of a key of either cipher.
pub(super) const KEY: usize = 32;

/// Which cipher an [`Aead`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// AES-256-GCM; nonces of any length but 0.
    AesGcm,
    /// XChaCha20-Poly1305; nonces of 24 bytes.
    XChaCha,
}

/// The tag does not match, the nonce has a wrong length, or the buffers do not fit each other; the output holds zeros or what it held before.
#[derive(Debug)]
pub(super) struct Refused;

/// An expanded key in locked memory.
pub(super) struct Aead {
    context: Locked<EVP_AEAD_CTX>,
}

// JUSTIFICATION: one key schedule per mount is shared by all FUSE threads. SAFETY: the context is exclusively owned,
// lives in its own mapping, and is only read after `new`; aws-lc allows concurrent use for both ciphers (see above).
unsafe impl Send for Aead {}
// SAFETY: as above.
unsafe impl Sync for Aead {}

impl Aead {
    /// Expand `key`.
    ///
    /// # Errors
    /// [`LockError`] when the schedule's memory cannot be locked.
    pub(super) fn new(algorithm: Algorithm, key: &[u8; KEY]) -> Result<Self, LockError> {
        let context = Locked::init(|context: &mut MaybeUninit<EVP_AEAD_CTX>| {
            // JUSTIFICATION: the schedule must be built in the locked pages. SAFETY: `context` is writable memory of the
            // right size and alignment; `key` has the length given; tag length and engine are valid.
            let done = unsafe {
                EVP_AEAD_CTX_zero(context.as_mut_ptr());
                let cipher = match algorithm {
                    Algorithm::AesGcm => EVP_aead_aes_256_gcm(),
                    Algorithm::XChaCha => EVP_aead_xchacha20_poly1305(),
                };
                let engine = std::ptr::null_mut();
                EVP_AEAD_CTX_init(context.as_mut_ptr(), cipher, key.as_ptr(), KEY, TAG, engine)
            };
            // With these constant lengths aws-lc has no other way to fail than memory.
            if done == 1 {
                Ok(())
            } else {
                Err(LockError { bytes: size_of::<EVP_AEAD_CTX>(), source: nix::Error::ENOMEM })
            }
        })?;
        Ok(Aead { context })
    }

    /// Open `sealed` with its detached `tag` straight into `out`, which has the same length.
    ///
    /// # Errors
    /// [`Refused`]; `out` then holds no plaintext.
    pub(super) fn open(
        &self,
        nonce: &[u8],
        associated: &[u8],
        sealed: &[u8],
        tag: &[u8; TAG],
        out: &mut [u8],
    ) -> Result<(), Refused> {
        if sealed.len() != out.len() {
            return Err(Refused);
        }
        // JUSTIFICATION: no safe crate takes a 16-byte nonce. SAFETY: the context was initialised by `new`; every pointer
        // comes from a live slice passed with its own length; `out` is as long as `sealed` and, being `&mut`, overlaps
        // nothing.
        let opened = unsafe {
            EVP_AEAD_CTX_open_gather(
                self.context.as_ptr(),
                out.as_mut_ptr(),
                nonce.as_ptr(),
                nonce.len(),
                sealed.as_ptr(),
                sealed.len(),
                tag.as_ptr(),
                TAG,
                associated.as_ptr(),
                associated.len(),
            )
        };
        settle(opened)
    }

    /// Seal `plain` into `out`, which has the same length, and its tag into `tag`.
    ///
    /// # Errors
    /// [`Refused`] when the lengths differ, or the nonce has not the cipher's.
    pub(super) fn seal(
        &self,
        nonce: &[u8],
        associated: &[u8],
        plain: &[u8],
        out: &mut [u8],
        tag: &mut [u8; TAG],
    ) -> Result<(), Refused> {
        if plain.len() != out.len() {
            return Err(Refused);
        }
        let mut tag_len = 0;
        // JUSTIFICATION: as in `open`. SAFETY: as in `open`; `tag` has room for the TAG bytes announced, and there is no
        // extra input.
        let sealed = unsafe {
            EVP_AEAD_CTX_seal_scatter(
                self.context.as_ptr(),
                out.as_mut_ptr(),
                tag.as_mut_ptr(),
                &mut tag_len,
                TAG,
                nonce.as_ptr(),
                nonce.len(),
                plain.as_ptr(),
                plain.len(),
                std::ptr::null(),
                0,
                associated.as_ptr(),
                associated.len(),
            )
        };
        settle(if tag_len == TAG { sealed } else { 0 })
    }
}

impl Drop for Aead {
    fn drop(&mut self) {
        // JUSTIFICATION: aws-lc's contract for every initialised context. SAFETY: initialised by `new`, not used after.
        unsafe { EVP_AEAD_CTX_cleanup(self.context.as_mut_ptr()) }
    }
}

/// Turn aws-lc's answer into a `Result`, leaving nothing in the thread's error queue for TLS to trip over.
fn settle(done: std::ffi::c_int) -> Result<(), Refused> {
    if done == 1 {
        return Ok(());
    }
    // JUSTIFICATION: aws-lc queues errors per thread. SAFETY: takes no arguments and touches only that queue.
    unsafe { ERR_clear_error() };
    Err(Refused)
}

#[cfg(test)]
mod tests {
    use aes_gcm::aead::{Aead as _, KeyInit, Payload};
    use aes_gcm::aes::{Aes256, cipher::consts};
    use aes_gcm::{AesGcm, Nonce};
    use chacha20poly1305::XChaCha20Poly1305;
    use proptest::prelude::*;

    use super::*;

    /// The cipher that takes a nonce of this length, as gocryptfs uses them: 12 for the master key in old confs.
    fn algorithm(nonce: &[u8]) -> Algorithm {
        if nonce.len() == 24 { Algorithm::XChaCha } else { Algorithm::AesGcm }
    }

    fn oracle(key: &[u8; KEY], nonce: &[u8], aad: &[u8], msg: &[u8]) -> Vec<u8> {
        let payload = Payload { msg, aad };
        match nonce.len() {
            12 => AesGcm::<Aes256, consts::U12>::new(key.into())
                .encrypt(&Nonce::<consts::U12>::try_from(nonce).unwrap(), payload),
            16 => AesGcm::<Aes256, consts::U16>::new(key.into())
                .encrypt(&Nonce::<consts::U16>::try_from(nonce).unwrap(), payload),
            24 => XChaCha20Poly1305::new(key.into()).encrypt(&nonce.try_into().unwrap(), payload),
            other => panic!("no cipher with nonces of {other} bytes"),
        }
        .unwrap()
    }

    fn seal(aead: &Aead, nonce: &[u8], associated: &[u8], plain: &[u8]) -> Vec<u8> {
        let (mut out, mut tag) = (vec![0; plain.len()], [0; TAG]);
        aead.seal(nonce, associated, plain, &mut out, &mut tag).unwrap();
        out.extend_from_slice(&tag);
        out
    }

    #[test]
    fn seal_and_open_of_every_block_length_equal_the_oracle() {
        let (key, associated) = ([7; KEY], [5; 24]);
        let plain: Vec<u8> = (0..=250).cycle().take(4096).collect();
        for nonce in [&[9; 12][..], &[9; 16], &[9; 24]] {
            let aead = Aead::new(algorithm(nonce), &key).unwrap();
            for len in (0..=4096).step_by(13).chain([1, 15, 16, 17, 4095, 4096]) {
                let sealed = oracle(&key, nonce, &associated, &plain[..len]);
                assert_eq!(seal(&aead, nonce, &associated, &plain[..len]), sealed, "length {len}");
                let (body, tag) = sealed.split_last_chunk::<TAG>().unwrap();
                let mut out = vec![0xaa; len];
                aead.open(nonce, &associated, body, tag, &mut out).unwrap();
                assert_eq!(out, plain[..len], "length {len}");
            }
        }
    }

    #[test]
    fn open_and_seal_with_unequal_buffers_are_refused() {
        let aead = Aead::new(Algorithm::AesGcm, &[1; KEY]).unwrap();
        assert!(aead.open(&[1; 16], b"", &[0; 8], &[0; TAG], &mut [0; 9]).is_err());
        assert!(aead.seal(&[1; 16], b"", &[0; 8], &mut [0; 7], &mut [0; TAG]).is_err());
    }

    #[test]
    fn nonce_of_another_length_is_refused() {
        for (algorithm, nonces) in [(Algorithm::AesGcm, &[0][..]), (Algorithm::XChaCha, &[0, 12, 16, 23, 25])]
        {
            let aead = Aead::new(algorithm, &[1; KEY]).unwrap();
            for &len in nonces {
                let nonce = vec![1; len];
                let sealed = aead.seal(&nonce, b"", b"x", &mut [0], &mut [0; TAG]);
                assert!(sealed.is_err(), "{algorithm:?} with {len} bytes");
                assert!(aead.open(&nonce, b"", b"x", &[0; TAG], &mut [0]).is_err());
            }
        }
    }

    #[test]
    fn open_from_many_threads_on_one_context_gives_the_same_plaintext() {
        for nonce in [&[8; 16][..], &[8; 24]] {
            let aead = Aead::new(algorithm(nonce), &[3; KEY]).unwrap();
            let plain = vec![0x5a; 4096];
            let sealed = seal(&aead, nonce, b"aad", &plain);
            let (body, tag) = sealed.split_last_chunk::<TAG>().unwrap();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut out = vec![0; 4096];
                        for _ in 0..200 {
                            aead.open(nonce, b"aad", body, tag, &mut out).unwrap();
                            assert_eq!(out, plain);
                        }
                    });
                }
            });
        }
    }

    fn any_nonce() -> impl Strategy<Value = Vec<u8>> {
        let of = |len| proptest::collection::vec(any::<u8>(), len);
        prop_oneof![of(12), of(16), of(24)]
    }

    proptest! {
        #[test]
        fn sealing_equals_the_oracle_for_any_input(
            key: [u8; KEY],
            nonce in any_nonce(),
            associated in proptest::collection::vec(any::<u8>(), 0..64),
            plain in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let aead = Aead::new(algorithm(&nonce), &key).unwrap();
            prop_assert_eq!(
                seal(&aead, &nonce, &associated, &plain),
                oracle(&key, &nonce, &associated, &plain)
            );
        }

        #[test]
        fn open_of_anything_changed_is_refused_and_gives_no_plaintext(
            nonce in any_nonce(),
            plain in proptest::collection::vec(1_u8.., 1..300),
            bit in any::<proptest::sample::Index>(),
        ) {
            let aead = Aead::new(algorithm(&nonce), &[2; KEY]).unwrap();
            let mut sealed = seal(&aead, &nonce, b"here", &plain);
            let bit = bit.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            let (body, tag) = sealed.split_last_chunk::<TAG>().unwrap();
            let mut out = vec![0xaa; plain.len()];
            prop_assert!(aead.open(&nonce, b"here", body, tag, &mut out).is_err());
            prop_assert_eq!(out, vec![0; plain.len()]);
        }
    }
}
