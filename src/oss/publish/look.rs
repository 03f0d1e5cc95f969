//! What the bucket holds below the prefix before anything is sent.

use std::collections::{BTreeMap, BTreeSet};

use super::error::UploadError;
use super::plan::Plan;
use super::{Publisher, persist};
use crate::oss::error::OssError;
use crate::oss::unfinished::Unfinished;

/// What is there.
pub(super) struct There {
    /// Length in bytes by key.
    objects: BTreeMap<String, u64>,
    /// Uploads in parts by key, the latest first.
    unfinished: BTreeMap<String, Vec<Unfinished>>,
    /// Whether a file that makes a model is among the objects.
    pub whole: bool,
}

impl There {
    /// Length of the object `key`.
    pub(super) fn len_of(&self, key: &str) -> Option<u64> {
        self.objects.get(key).copied()
    }

    /// Unfinished uploads to `key`, the latest first.
    pub(super) fn unfinished(&self, key: &str) -> &[Unfinished] {
        self.unfinished.get(key).map_or(&[], Vec::as_slice)
    }

    /// Keys of the objects that are none of the plan's.
    pub(super) fn others(&self, plan: &Plan) -> Vec<String> {
        let ours: BTreeSet<&str> = plan.all().map(|file| file.key.as_str()).collect();
        self.objects.keys().filter(|key| !ours.contains(key.as_str())).cloned().collect()
    }
}

impl Publisher<'_> {
    /// Two lists, so that no object has to be asked for that is not there.
    pub(super) async fn look(&self, plan: &Plan) -> Result<There, UploadError> {
        let prefix = plan.prefix.as_str();
        let fail =
            |source: OssError| UploadError::List { prefix: prefix.to_owned(), source: Box::new(source) };
        let lists = async {
            let objects = persist(&self.options.retry, &self.stop, || self.client.list(prefix)).await?;
            // Nothing is sent in parts: then there is no need of the grant either.
            if !plan.all().any(|file| file.len > file.part_len()) || self.options.dry_run {
                return Ok((objects, Vec::new()));
            }
            let uploads = persist(&self.options.retry, &self.stop, || self.client.unfinished_uploads(prefix));
            Ok((objects, uploads.await?))
        };
        let (objects, uploads) = self.unless_stopped(async { lists.await.map_err(fail) }).await?;
        // Paths come from `list`, which only makes them of valid UTF-8.
        let key = |path: &std::path::Path| format!("{prefix}{}", path.to_string_lossy());
        let objects: BTreeMap<String, u64> =
            objects.iter().map(|object| (key(&object.path), object.len)).collect();
        let mut unfinished: BTreeMap<String, Vec<Unfinished>> = BTreeMap::new();
        for upload in uploads {
            unfinished.entry(upload.key.clone()).or_default().push(upload);
        }
        unfinished.values_mut().for_each(|uploads| uploads.sort_by(|a, b| b.initiated.cmp(&a.initiated)));
        let whole = plan.last.iter().any(|file| objects.contains_key(&file.key));
        Ok(There { objects, unfinished, whole })
    }
}
