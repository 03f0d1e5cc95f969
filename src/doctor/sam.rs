//! The adapter of a model in a vendor's format: whether there is one that would be run, and a user to run it.

use std::sync::Arc;

use super::context::Context;
use super::finding::Finding;
use crate::config::Encryption;
use crate::error::ErrorClass;
use crate::host::User;
use crate::sam::{USER, adapter};

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings().cloned() else { return Vec::new() };
    if settings.model.encryption != Encryption::Sam {
        return Vec::new();
    }
    super::blocking("sam.adapter", move || {
        let adapter = match adapter::open_below(&settings.root, settings.sam.adapter_sha256) {
            Ok(adapter) => {
                let found = format!("{} has SHA-256 {}", adapter.path.display(), adapter.sha256);
                match settings.sam.adapter_sha256 {
                    Some(_) => Finding::ok("sam.adapter", found),
                    None => Finding::note("sam.adapter", found)
                        .meaning("whoever is root can exchange it unnoticed")
                        .fixed_by("put it into sam.adapter_sha256 in cai.toml"),
                }
            }
            Err(error) => Finding::fault(
                "sam.adapter",
                &error,
                "nothing can decrypt the model, and the agent does not start",
            ),
        };
        let user = match User::find(USER) {
            Ok(Some(_)) => Finding::ok("sam.user", format!("user {USER} exists")),
            Ok(None) | Err(_) => {
                let found = format!("user {USER} does not exist");
                Finding::error("sam.user", ErrorClass::Config, found, "the adapter has nobody to run as")
                    .fixed_by("systemd-sysusers, or useradd --system --no-create-home cai-decryptor")
            }
        };
        vec![adapter, user]
    })
    .await
}
