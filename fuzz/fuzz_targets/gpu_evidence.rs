//! GPU evidence as the helper hands it over: reports and certificate chains, from the driver.
//!
//! Holds: no input panics; evidence is never sound for a root that nobody has, nor for another number of GPUs than the
//! machine has; what is sound for NVIDIA's root stays sound when it is verified again.
#![no_main]

use std::time::{Duration, UNIX_EPOCH};

use cai::attest::gpu::{Expected, NVIDIA_ROOT, Root, verify};
use cai::helper::protocol::GpuReports;
use cai::pki;
use libfuzzer_sys::fuzz_target;

const NOBODY: Root = Root { certificate: [0; 32], key: [0; 32] };

fuzz_target!(|json: &[u8]| {
    // The chains alone, which is what PEM and DER parsers see of it.
    if let Ok(certificates) = pki::certificates(json) {
        assert!(!certificates.is_empty());
        for certificate in &certificates {
            let _ = pki::public_key(certificate);
        }
    }
    let Ok(reports) = serde_json::from_slice::<GpuReports>(json) else { return };
    let at = UNIX_EPOCH + Duration::from_secs(1_795_341_100);
    let expected = Expected { nonce: [7; 32], gpus: reports.gpus.len(), root: NVIDIA_ROOT, at };
    assert!(
        verify(reports.clone(), &Expected { root: NOBODY, ..expected }).is_err() || reports.gpus.is_empty()
    );
    assert!(verify(reports.clone(), &Expected { gpus: reports.gpus.len() + 1, ..expected }).is_err());
    if let Ok(verified) = verify(reports, &expected) {
        assert!(verify(verified.reports().clone(), &expected).is_ok());
        assert_eq!(verified.claims().len(), expected.gpus);
    }
});
