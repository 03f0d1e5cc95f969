//! The object store's part of [`check`](super::check): endpoint, credentials and how they are used. Pure.

use std::path::Path;
use std::time::Duration;

use url::Url;

use super::check::{bytes, tuning_problem};
use super::keys::{self, Key};
use super::report::{Findings, Reported};
use super::settings::{
    Addressing, CredentialChoice, Credentials, EcsRamRole, Oidc, Oss, OssCredentials, Signature,
};
use super::tuning::Tuning;
use super::under;
use super::values::{self, Flaw};
use super::variables::Variables;
use crate::error::chain;
use crate::keyring::Secret;

/// The object store; all that `cai upload` needs.
pub(super) fn oss(
    variables: &Variables,
    tuning: Result<&Tuning, Reported>,
    root: &Path,
    findings: &mut Findings,
) -> Result<Oss, Reported> {
    let bucket_path = variables.get(&keys::MODEL_OSS_BUCKET_PATH, findings, values::bucket_path);
    let endpoint = variables.get(&keys::MODEL_OSS_ENDPOINT, findings, |text| {
        let is_own = tuning.is_ok_and(|tuning| tuning.oss.addressing == Addressing::Cname);
        match (values::endpoint(text)?, &bucket_path) {
            (endpoint, Ok((bucket, _))) if !is_own && holds_bucket(&endpoint, bucket) => {
                Err("begins with the bucket, which belongs into MODEL_OSS_BUCKET_PATH only".into())
            }
            (endpoint, _) => Ok(endpoint),
        }
    });
    let region = variables.optional(&keys::MODEL_OSS_REGION, findings, values::region);
    let credentials = credentials(variables, tuning, root, findings);
    let region = match (region?, &endpoint) {
        (Some(region), _) => Some(region),
        (None, Ok(endpoint)) => values::region_of(endpoint),
        (None, Err(Reported)) => None,
    };
    if let Ok(endpoint) = &endpoint {
        if endpoint.scheme() == "http" {
            findings.notice(
                variables.at(&keys::MODEL_OSS_ENDPOINT),
                "config.oss-http",
                "MODEL_OSS_ENDPOINT is plain http: the object store is not authenticated".to_owned(),
                "the model's bytes are authenticated by their encryption, but names, sizes and an STS token travel \
                 in the open; use https outside a trusted VPC"
                    .to_owned(),
            );
        }
        let signed = credentials.as_ref().is_ok_and(|choice| !matches!(choice, Credentials::Anonymous));
        let needed = tuning.is_ok_and(|tuning| tuning.oss.signature == Signature::V4);
        if region.is_none() && signed && needed {
            let flaw =
                "is not set, and MODEL_OSS_ENDPOINT does not hold the region that signed requests need";
            let at = variables.at(&keys::MODEL_OSS_REGION);
            findings.problem(keys::MODEL_OSS_REGION.problem(&at, flaw, None));
        }
    }
    let all = tuning?;
    let bandwidth_limit = bytes(&all.oss.bandwidth_limit, "oss.bandwidth_limit", all, findings)?;
    let tuning = &all.oss;
    let proxy = tuning.proxy.as_deref().map(values::proxy).transpose();
    let proxy = proxy.map_err(|flaw| findings.problem(tuning_problem("oss.proxy", all, &flaw)));
    let (bucket, prefix) = bucket_path?;
    Ok(Oss {
        endpoint: endpoint?,
        bucket,
        prefix,
        region,
        credentials: credentials?,
        env_file: None,
        signature: tuning.signature,
        addressing: tuning.addressing,
        proxy: proxy?,
        ca_file: tuning.ca_file.as_deref().map(|path| under(root, path)),
        concurrency: tuning.concurrency,
        bandwidth_limit,
        timeout: Duration::from_secs(tuning.timeout_secs),
    })
}

/// Whether the endpoint is the bucket's own host name; requests would go to `bucket.bucket.oss-...`.
fn holds_bucket(endpoint: &Url, bucket: &str) -> bool {
    endpoint.domain().and_then(|host| host.strip_prefix(bucket)).is_some_and(|rest| rest.starts_with(".oss-"))
}

/// Tuning keys that mean something with one choice only.
const OF_CHOICES: [(&str, CredentialChoice); 5] = [
    ("oss.ram_role", CredentialChoice::EcsRamRole),
    ("oss.metadata", CredentialChoice::EcsRamRole),
    ("oss.role_arn", CredentialChoice::Oidc),
    ("oss.oidc_provider_arn", CredentialChoice::Oidc),
    ("oss.oidc_token_file", CredentialChoice::Oidc),
];

/// What `oss.credentials` says, with what belongs to it; an access key beside another choice is a problem.
fn credentials(
    variables: &Variables,
    tuning: Result<&Tuning, Reported>,
    root: &Path,
    findings: &mut Findings,
) -> Result<Credentials, Reported> {
    let key = access_key(variables, findings);
    let all = tuning?;
    let choice = all.oss.credentials;
    for (name, owner) in OF_CHOICES {
        if all.sets(name) && choice != owner {
            let message = format!("{name} is set, and oss.credentials makes no use of it");
            let hint = "remove the line, or choose the credentials that it belongs to".to_owned();
            findings.notice(all.at(name), "config.unused", message, hint);
        }
    }
    let key = key?;
    let id = &keys::MODEL_OSS_ACCESS_KEY_ID;
    match (choice, key) {
        (CredentialChoice::Auto | CredentialChoice::Static, Some(key)) => Ok(Credentials::Static(key)),
        (CredentialChoice::Auto, None) => {
            findings.notice(
                variables.at(id),
                "config.oss-anonymous",
                "no OSS access key is set: the bucket is read anonymously".to_owned(),
                "fine for a bucket that everybody can read, since the model is encrypted; otherwise set \
                 MODEL_OSS_ACCESS_KEY_ID and MODEL_OSS_SECRET_ACCESS_KEY"
                    .to_owned(),
            );
            Ok(Credentials::Anonymous)
        }
        (CredentialChoice::Static, None) => {
            let flaw = "is static, and MODEL_OSS_ACCESS_KEY_ID is not set";
            Err(findings.problem(tuning_problem("oss.credentials", all, flaw)))
        }
        (CredentialChoice::Anonymous, None) => Ok(Credentials::Anonymous),
        (CredentialChoice::EcsRamRole, None) => {
            ecs_ram_role(all, root, findings).map(Credentials::EcsRamRole)
        }
        (CredentialChoice::Oidc, None) => oidc(all, root, findings).map(Credentials::Oidc),
        (CredentialChoice::EcsRamRole | CredentialChoice::Oidc | CredentialChoice::Anonymous, Some(_)) => {
            let flaw =
                format!("is set, and oss.credentials in {} chooses another way", all.at("oss.credentials"));
            Err(findings.problem(id.problem(&variables.at(id), &flaw, None)))
        }
    }
}

fn ecs_ram_role(all: &Tuning, root: &Path, findings: &mut Findings) -> Result<EcsRamRole, Reported> {
    let name = all.oss.ram_role.as_deref().map(values::ram_role).transpose();
    let name = name.map_err(|flaw| findings.problem(tuning_problem("oss.ram_role", all, &flaw)))?;
    Ok(EcsRamRole { name, metadata: all.oss.metadata, root: root.to_owned() })
}

fn oidc(all: &Tuning, root: &Path, findings: &mut Findings) -> Result<Oidc, Reported> {
    let mut arn = |name, value: &Option<String>, kind| {
        let text = value.as_deref().ok_or(Flaw::from("is not set, and oss.credentials is oidc"));
        let arn = text.and_then(|text| values::arn(text, kind));
        arn.map_err(|flaw| findings.problem(tuning_problem(name, all, &flaw)))
    };
    let role_arn = arn("oss.role_arn", &all.oss.role_arn, "role");
    let provider_arn = arn("oss.oidc_provider_arn", &all.oss.oidc_provider_arn, "oidc-provider");
    let token_file = all.oss.oidc_token_file.as_deref().ok_or_else(|| {
        let flaw = "is not set, and oss.credentials is oidc";
        findings.problem(tuning_problem("oss.oidc_token_file", all, flaw))
    });
    let sts_endpoint = values::sts_endpoint(&all.oss.sts_endpoint)
        .map_err(|flaw| findings.problem(tuning_problem("oss.sts_endpoint", all, &flaw)));
    Ok(Oidc {
        role_arn: role_arn?,
        provider_arn: provider_arn?,
        token_file: under(root, token_file?),
        sts_endpoint: sts_endpoint?,
    })
}

/// The access key of `cai.env`, if it is there.
pub(super) fn access_key(
    variables: &Variables,
    findings: &mut Findings,
) -> Result<Option<OssCredentials>, Reported> {
    let id_key = &keys::MODEL_OSS_ACCESS_KEY_ID;
    let secret_key = &keys::MODEL_OSS_SECRET_ACCESS_KEY;
    let id = variables.optional(id_key, findings, |text| values::credential(text).map(str::to_owned));
    let access_key = variables.optional(secret_key, findings, secret);
    let token = variables.optional(&keys::MODEL_OSS_SESSION_TOKEN, findings, secret);
    let mut missing = |key: &Key, given: &Key| {
        let flaw = format!("is not set, and {} is", given.name);
        Err(findings.problem(key.problem(&variables.at(given), &flaw, None)))
    };
    match (id?, access_key?, token?) {
        (Some(access_key_id), Some(secret_access_key), session_token) => {
            Ok(Some(OssCredentials { access_key_id, secret_access_key, session_token }))
        }
        (Some(_), None, _) => missing(secret_key, id_key),
        (None, Some(_), _) => missing(id_key, secret_key),
        (None, None, Some(_)) => missing(id_key, &keys::MODEL_OSS_SESSION_TOKEN),
        (None, None, None) => Ok(None),
    }
}

/// Straight into locked memory; the caller's text is wiped with its file.
fn secret(text: &str) -> Result<Secret, Flaw> {
    let text = values::credential(text)?;
    Secret::copy_of(text.as_bytes())
        .map_err(|error| format!("cannot be kept in memory ({})", chain(&error)).into())
}
