//! OSS: the list of the model's objects, one range of the largest, and the life of the credential.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use indicatif::HumanBytes;

use super::context::{Context, Listed};
use super::finding::{Finding, count, rate};
use crate::config::{Credentials, Encryption};
use crate::error::ErrorClass;
use crate::gocryptfs::CONF_NAME;
use crate::manifest;
use crate::oss::{Access, OssError};
use crate::store::{AT_ONCE, Object};

/// Most bytes that are fetched to measure.
const SAMPLE: u64 = 8 << 20;
/// Longest time for it: a slow line is measured as well by less.
const SAMPLING: Duration = Duration::from_secs(5);
/// A credential that ends sooner than this may end before a model is fetched.
const SHORT: Duration = Duration::from_secs(60 * 60);

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings() else { return Vec::new() };
    let listed = match context.listed().await {
        Some(Ok(listed)) => listed.clone(),
        Some(Err(error)) => {
            return vec![Finding::fault("oss.list", error.as_ref(), "the model cannot be found")];
        }
        None => return Vec::new(),
    };
    let millis = listed.took.as_millis();
    let objects = count(listed.objects.len(), "object");
    let found =
        format!("{}: {objects}, {} in {millis} ms", settings.oss.location(), HumanBytes(listed.bytes()));
    let mut findings = vec![Finding::ok("oss.list", found)];
    // What a model in a vendor's format looks like, only the vendor knows.
    if settings.model.encryption == Encryption::Gocryptfs {
        findings.push(model(&listed.objects));
    }
    findings.push(read(&listed, &settings.oss.prefix).await);
    let access = listed.client.access().borrow().clone();
    findings.push(credential(&access, &settings.oss.credentials, SystemTime::now()));
    findings
}

/// Whether the objects are an encrypted model.
fn model(objects: &[Object]) -> Finding {
    let has = |name: &str| objects.iter().any(|object| object.path == Path::new(name));
    if !has(CONF_NAME) {
        let inside = objects.iter().find(|object| object.path.ends_with(CONF_NAME));
        let fix = match inside.and_then(|object| object.path.parent()) {
            Some(directory) => format!("add {}/ to MODEL_OSS_BUCKET_PATH: it is there", directory.display()),
            None => "cai upload DIR, or correct MODEL_OSS_BUCKET_PATH".to_owned(),
        };
        let found = format!("there is no {CONF_NAME}");
        return Finding::error("oss.model", ErrorClass::Config, found, "no encrypted model lies there")
            .fixed_by(fix);
    }
    if has(manifest::NAME) {
        return Finding::ok("oss.model", "an encrypted model with a manifest");
    }
    Finding::note("oss.model", "an encrypted model without a manifest")
        .meaning("files that were cut, swapped or rolled back are not noticed")
        .fixed_by("cai manifest DIR --sign KEY, and model.publisher_key in cai.toml")
}

/// How long the first bytes take, and how fast more follow.
async fn read(listed: &Listed, prefix: &str) -> Finding {
    let Some(largest) = listed.objects.iter().max_by_key(|object| object.len).filter(|object| object.len > 0)
    else {
        return Finding::unseen("oss.read", "there is no object to read", "cai upload DIR");
    };
    match sample(listed, prefix, largest).await {
        Ok((first, bytes, took)) => {
            let (first, rate, bytes) = (first.as_millis(), HumanBytes(rate(bytes, took)), HumanBytes(bytes));
            Finding::ok(
                "oss.read",
                format!("first bytes after {first} ms, {bytes} at {rate}/s on one connection"),
            )
        }
        Err(error) => Finding::fault("oss.read", &error, "the list can be read, and the objects cannot"),
    }
}

/// Time to the first bytes, bytes, and time for all of them.
async fn sample(
    listed: &Listed,
    prefix: &str,
    object: &Object,
) -> Result<(Duration, u64, Duration), OssError> {
    // From the list, whose paths are text.
    let key = format!("{prefix}{}", object.path.to_string_lossy());
    let begun = Instant::now();
    let range = 0..object.len.min(SAMPLE);
    let mut ranged = listed.client.open_range(&key, &object.etag, range, object.len, &AT_ONCE).await?;
    let (mut first, mut bytes) = (None, 0_u64);
    while let Some(frame) = ranged.next().await? {
        first.get_or_insert_with(|| begun.elapsed());
        bytes = bytes.saturating_add(u64::try_from(frame.len()).unwrap_or(u64::MAX));
        if begun.elapsed() > SAMPLING {
            break;
        }
    }
    Ok((first.unwrap_or_default(), bytes, begun.elapsed()))
}

/// What the requests were signed with, and for how long it lasts.
fn credential(access: &Access, credentials: &Credentials, now: SystemTime) -> Finding {
    let found = access.credentials.clone();
    let renewed = matches!(credentials, Credentials::EcsRamRole(_) | Credentials::Oidc(_));
    let Some(end) = access.expires else {
        return match credentials {
            Credentials::Static(key) if key.session_token.is_some() => {
                Finding::note("oss.credentials", "an STS token, whose end nothing tells")
                    .meaning("once it has ended, what is not local cannot be read")
                    .fixed_by(
                        "write a new one into cai.env in time: cai reads it by itself; or use a RAM role",
                    )
            }
            _ => Finding::ok("oss.credentials", found),
        };
    };
    let left = end.duration_since(now).unwrap_or_default();
    let found = format!("{found}, {} min left", left.as_secs() / 60);
    if renewed || left >= SHORT {
        return Finding::ok("oss.credentials", found);
    }
    Finding::warning("oss.credentials", found, "once it has ended, what is not local cannot be read")
        .fixed_by("write a new one into cai.env: cai reads it by itself")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OssCredentials;
    use crate::doctor::Level;

    fn object(path: &str) -> Object {
        Object { path: path.into(), len: 1, etag: "\"e\"".into(), modified: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn prefix_without_a_model_is_told_where_one_is() {
        let finding = model(&[object("deep/er/gocryptfs.conf")]);
        assert_eq!(finding.level, Level::Error);
        assert_eq!(finding.fix, "add deep/er/ to MODEL_OSS_BUCKET_PATH: it is there");
        assert_eq!(model(&[]).fix, "cai upload DIR, or correct MODEL_OSS_BUCKET_PATH");
        let conf = object(CONF_NAME);
        assert_eq!(model(std::slice::from_ref(&conf)).level, Level::Note);
        assert_eq!(model(&[conf, object(manifest::NAME)]).level, Level::Ok);
    }

    #[test]
    fn credential_is_judged_by_its_end_and_by_who_renews_it() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let secret = |text: &[u8]| crate::keyring::Secret::copy_of(text).unwrap();
        let key = |token: Option<&[u8]>| {
            let session_token = token.map(secret);
            let (access_key_id, secret_access_key) = ("LTAI".to_owned(), secret(b"x"));
            Credentials::Static(OssCredentials { access_key_id, secret_access_key, session_token })
        };
        let until =
            |secs: u64| Access { expires: Some(now + Duration::from_secs(secs)), ..Access::default() };
        let level = |access: &Access, key: &Credentials| credential(access, key, now).level;
        assert_eq!(level(&Access::default(), &Credentials::Anonymous), Level::Ok);
        assert_eq!(level(&Access::default(), &key(None)), Level::Ok);
        assert_eq!(level(&Access::default(), &key(Some(b"t"))), Level::Note);
        assert_eq!(level(&until(3599), &key(Some(b"t"))), Level::Warning);
        assert_eq!(level(&until(3600), &key(Some(b"t"))), Level::Ok);
    }
}
