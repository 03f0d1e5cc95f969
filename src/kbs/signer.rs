//! The certificates of `trustee.token_cert`, under which the broker's tokens must be signed; how is in [`crate::jwt`].

use std::path::Path;
use std::time::SystemTime;

use super::error::KbsError;
use super::token::TokenError;
use crate::jwt::{self, Jwt};

/// The certificates of `trustee.token_cert`.
pub struct Signers(jwt::Signers);

impl Signers {
    /// Read them from a PEM file.
    ///
    /// # Errors
    /// [`KbsError::SignerFile`], [`KbsError::SignerContent`].
    pub fn load(path: &Path) -> Result<Self, KbsError> {
        let pem =
            std::fs::read(path).map_err(|source| KbsError::SignerFile { path: path.to_owned(), source })?;
        let unusable = |_| KbsError::SignerContent { path: path.to_owned() };
        jwt::Signers::from_pem(&pem).map(Signers).map_err(unusable)
    }

    /// Check the signature of a token that arrived `at`.
    pub(super) fn check(&self, token: &Jwt<'_>, at: SystemTime) -> Result<(), TokenError> {
        Ok(self.0.check(token, at)?)
    }
}
