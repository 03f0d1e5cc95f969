//! Trustee's stand-in TEE for machines without one. Proves nothing; compiled in only with feature `sandbox`.
//!
//! Source: kbs.md section 8.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::to_raw_value;

use super::{AttestError, Attester, Claims, Digest, Evidence, Tee, Verifier};

/// State of a SHA-256 measurement register that nothing has extended. Trustee v1.7.5 and later requires the member,
/// older ones ignore it.
const NOTHING_MEASURED: &str = "0000000000000000000000000000000000000000000000000000000000000000";

struct Sample;

#[derive(Serialize)]
struct Object<'a> {
    svn: &'a str,
    report_data: String,
    measure_register: &'a str,
}

/// The sample attester, with a warning at every use: nothing here is protected by hardware.
pub fn attester() -> Result<Arc<dyn Attester>, AttestError> {
    tracing::warn!(event = "attest.sample", "the sample attester proves nothing: for the sandbox only");
    Ok(Arc::new(Sample))
}

impl Attester for Sample {
    fn tee(&self) -> Tee {
        Tee::Sample
    }

    fn device_evidence(&self, _digest: &Digest) -> Result<String, AttestError> {
        Ok(String::new())
    }

    fn evidence(&self, digest: &Digest, _verifier: Verifier) -> Result<Evidence, AttestError> {
        let Digest(report_data) = digest;
        let object = Object {
            svn: "1",
            report_data: STANDARD.encode(report_data),
            measure_register: NOTHING_MEASURED,
        };
        let claims =
            Claims { provider: "sample", report_data: hex::encode(report_data), ..Claims::default() };
        Ok(Evidence::new(to_raw_value(&object)?, claims))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_evidence_carries_the_unpadded_digest_and_an_empty_register() {
        let sample = attester().unwrap();
        assert_eq!(sample.tee(), Tee::Sample);
        assert_eq!(sample.device_evidence(&Digest([0xa5; 48])).unwrap(), "");
        let Evidence { object, claims } = sample.evidence(&Digest([0xa5; 48]), Verifier::Current).unwrap();
        let expected = format!(
            r#"{{"svn":"1","report_data":"{}","measure_register":"{}"}}"#,
            "paWl".repeat(16),
            "0".repeat(64)
        );
        assert_eq!(object.get(), expected);
        assert_eq!((claims.provider, claims.report_data), ("sample", "a5".repeat(48)));
        // sha256sum of the text above.
        let sum = "493602a0a794fc615d838654f0eaa421fa27c67fe27a1575218a45731553697e";
        assert_eq!(claims.evidence_sha256, sum);
    }
}
