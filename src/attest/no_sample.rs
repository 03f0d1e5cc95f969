//! The place of the sample attester in a build without it: asking for it is an error.

use std::sync::Arc;

use super::{AttestError, Attester, Tee};

/// Refused: this build has no sample attester.
pub fn attester() -> Result<Arc<dyn Attester>, AttestError> {
    Err(AttestError::NotBuilt { tee: Tee::Sample.name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_attester_outside_the_sandbox_is_refused() {
        assert!(matches!(attester().err().unwrap(), AttestError::NotBuilt { tee: "sample" }));
    }
}
