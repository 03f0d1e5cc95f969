//! This machine's clock against those of the key broker and of OSS, which both say in every answer what time it is there.

use std::path::Path;
use std::sync::Arc;

use super::context::{Context, Listed};
use super::finding::Finding;
use crate::config::Settings;
use crate::error::{ErrorClass, chain};
use crate::gocryptfs::CONF_NAME;
use crate::oss::OssError;

/// Differences up to this are the answer's way and rounding, in seconds.
const CLOSE: u64 = 5;
/// From here on OSS refuses requests, in seconds (oss.md 1.5).
const OSS_LIMIT: u64 = 15 * 60;
/// From here on a token that lives five minutes is not valid yet, or no more, in seconds (kbs.md 6.4).
const TOKEN_LIMIT: u64 = 5 * 60;

const FIX: &str = "timedatectl set-ntp true; chronyc makestep";

pub(super) async fn check(context: Arc<Context>) -> Vec<Finding> {
    let Some(settings) = context.settings() else { return Vec::new() };
    let trustee = async {
        match context.probe().await {
            Some(Ok(probe)) => Some(apart("clock.trustee", "the Trustee", probe.clock_behind, TOKEN_LIMIT)),
            Some(Err(_)) | None => {
                Some(Finding::unseen("clock.trustee", "the Trustee does not answer", "see trustee.protocol"))
            }
        }
    };
    let oss = async {
        match context.listed().await {
            Some(Ok(listed)) => Some(asked(settings, listed).await),
            Some(Err(error)) => Some(refused(error)),
            None => None,
        }
    };
    let (trustee, oss) = tokio::join!(trustee, oss);
    trustee.into_iter().chain(oss).collect()
}

/// One more question, about an object that every model has.
async fn asked(settings: &Settings, listed: &Listed) -> Finding {
    let conf = listed.objects.iter().find(|object| object.path == Path::new(CONF_NAME));
    let Some(object) = conf.or_else(|| listed.objects.first()) else {
        return Finding::unseen("clock.oss", "there is no object to ask for", "see oss.model");
    };
    let key = format!("{}{}", settings.oss.prefix, object.path.to_string_lossy());
    match listed.client.head(&key).await {
        Ok(head) => apart("clock.oss", "OSS", head.clock_behind, OSS_LIMIT),
        Err(error) => Finding::unseen("clock.oss", chain(&error), "see oss.read"),
    }
}

/// A refusal has a date as well.
fn refused(error: &OssError) -> Finding {
    match error {
        OssError::Refused(refusal) => apart("clock.oss", "OSS", refusal.clock_behind(), OSS_LIMIT),
        _ => Finding::unseen("clock.oss", "OSS does not answer", "see oss.list"),
    }
}

/// `behind`: seconds that this machine is behind `whom`, who tolerates `limit`.
fn apart(id: &'static str, whom: &str, behind: Option<i64>, limit: u64) -> Finding {
    let Some(behind) = behind else {
        return Finding::unseen(id, format!("{whom} does not say what time it is"), "timedatectl");
    };
    let by = behind.unsigned_abs();
    let way = if behind < 0 { "ahead of" } else { "behind" };
    match by {
        _ if by <= CLOSE => Finding::ok(id, format!("agrees with {whom}")),
        _ if by < limit => {
            let meaning = "tokens and temporary credentials end at other times than cai believes";
            Finding::warning(id, format!("{by} s {way} {whom}"), meaning).fixed_by(FIX)
        }
        _ => {
            let meaning = "what is signed or issued here or there counts as expired, or as not valid yet";
            Finding::error(id, ErrorClass::Transient, format!("{by} s {way} {whom}"), meaning).fixed_by(FIX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn difference_is_judged_by_what_the_other_side_tolerates() {
        let of = |behind| apart("clock.oss", "OSS", behind, OSS_LIMIT);
        assert_eq!(of(None).level, Level::Unseen);
        assert_eq!((of(Some(-5)).level, of(Some(0)).level), (Level::Ok, Level::Ok));
        assert_eq!(of(Some(6)).found, "6 s behind OSS");
        assert_eq!(
            (of(Some(-899)).level, of(Some(-899)).found.as_str()),
            (Level::Warning, "899 s ahead of OSS")
        );
        assert_eq!(of(Some(900)).level, Level::Error);
        assert_eq!(of(Some(i64::MIN)).level, Level::Error);
    }
}
