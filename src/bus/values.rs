//! Status records as D-Bus dictionaries (`a{sv}`).

use std::collections::{BTreeMap, HashMap};

use zbus::{OwnedVariant, Str, Variant};

use crate::agent::status::{
    Access, LastError, Phase, Progress, Rotation, ServicePort, Shown, Standing, unix_seconds,
};

/// `a{sv}`.
pub type Dict = HashMap<String, OwnedVariant>;

fn text(value: &str) -> OwnedVariant {
    OwnedVariant::from(Str::from(value.to_owned()))
}

fn sizes<'a>(map: impl Iterator<Item = (&'a &'static str, &'a u64)>) -> Option<OwnedVariant> {
    let map: HashMap<String, u64> = map.map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
    // Only a value that holds a file descriptor can fail to become owned.
    OwnedVariant::try_from(Variant::from(map)).ok()
}

/// `BytesDone`, `BytesTotal` (t), `BytesPerSecond` (t), `EtaSeconds` (t, absent when unknown), `BySource` (a{st}),
/// `Retries` (t), `Caching` (b), `ObjectsDone`, `ObjectsTotal` (t), `Fetching` (aa{sv}: `Path` (s), `BytesDone`, `BytesTotal` (t)).
pub fn progress(progress: &Progress) -> Dict {
    let mut dict = Dict::new();
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).into();
    dict.insert("ObjectsDone".into(), count(progress.objects.0));
    dict.insert("ObjectsTotal".into(), count(progress.objects.1));
    let fetching: Vec<Dict> = progress
        .fetching
        .iter()
        .map(|file| {
            Dict::from([
                ("Path".to_owned(), text(&file.path)),
                ("BytesDone".to_owned(), file.bytes_done.into()),
                ("BytesTotal".to_owned(), file.bytes_total.into()),
            ])
        })
        .collect();
    // Fails as little as above.
    dict.extend(OwnedVariant::try_from(Variant::from(fetching)).map(|value| ("Fetching".to_owned(), value)));
    dict.insert("BytesDone".into(), progress.bytes_done.into());
    dict.insert("BytesTotal".into(), progress.bytes_total.into());
    dict.insert("BytesPerSecond".into(), progress.rate.into());
    dict.insert("Retries".into(), progress.retries.into());
    dict.insert("Caching".into(), progress.caching.into());
    dict.extend(progress.eta_secs().map(|secs| ("EtaSeconds".to_owned(), secs.into())));
    dict.extend(sizes(progress.by_source.iter()).map(|value| ("BySource".to_owned(), value)));
    dict
}

/// `Credentials` (s), `Proxy` (s, absent without one), `CredentialsExpire` (t, absent when unknown), `Throttled` (t), `Concurrency` (t).
pub fn object_store(access: &Access) -> Dict {
    let mut dict = Dict::new();
    dict.insert("Credentials".into(), text(&access.credentials));
    dict.insert("Throttled".into(), access.throttled.into());
    dict.insert("Concurrency".into(), access.concurrency.into());
    dict.extend(access.proxy.as_ref().map(|proxy| ("Proxy".to_owned(), text(proxy))));
    dict.extend(access.expires.map(|end| ("CredentialsExpire".to_owned(), unix_seconds(end).into())));
    dict
}

/// `Mode`, `Backend`, `Certificate`, `RefreshError` (s), `Listen` (as), `RefreshSeconds` (t), `EvidenceAt` (a{st}, seconds since
/// 1970), `Connections`, `Streams`, `StreamsTotal`, `Handshakes`, `Refused`, `PlaintextChecks`, `BytesReceived`,
/// `BytesSent` (t); empty without a port.
pub fn service_port(port: Option<&ServicePort>) -> Dict {
    let Some(port) = port else { return Dict::new() };
    let evidence: BTreeMap<_, _> =
        port.evidence_at.iter().map(|(name, at)| (*name, unix_seconds(*at))).collect();
    let counts = &port.counts;
    let mut dict = Dict::from([
        ("Mode".to_owned(), text(port.mode)),
        ("Backend".to_owned(), text(&port.backend)),
        ("Certificate".to_owned(), text(port.certificate)),
        ("RefreshError".to_owned(), text(&port.refresh_error)),
        ("RefreshSeconds".to_owned(), port.refresh_secs.into()),
        ("Connections".to_owned(), counts.connections.into()),
        ("Streams".to_owned(), counts.streams.into()),
        ("StreamsTotal".to_owned(), counts.streams_total.into()),
        ("Handshakes".to_owned(), counts.handshakes_done.into()),
        ("Refused".to_owned(), counts.refused.into()),
        ("PlaintextChecks".to_owned(), counts.plaintext_checks.into()),
        ("BytesReceived".to_owned(), counts.received.into()),
        ("BytesSent".to_owned(), counts.sent.into()),
    ]);
    // Only a value that holds a file descriptor can fail to become owned.
    dict.extend(
        OwnedVariant::try_from(Variant::from(port.listen.clone()))
            .ok()
            .map(|value| ("Listen".to_owned(), value)),
    );
    dict.extend(sizes(evidence.iter()).map(|value| ("EvidenceAt".to_owned(), value)));
    dict
}

/// `Address`, `State`, `Code`, `Detail` (s), `Distrusted` (b), `Chunks`, `BytesReceived`, `BytesSent`, `WrongChunks`,
/// `FailedChunks` (t).
pub fn peer(peer: &Shown) -> Dict {
    let (state, code, detail) = match &peer.standing {
        Standing::Dialling => ("dialling", "", ""),
        Standing::Connected => ("connected", "", ""),
        Standing::Itself => ("itself", "", ""),
        Standing::Failed(code, detail) => ("failed", *code, detail.as_str()),
    };
    Dict::from([
        ("Address".to_owned(), text(&peer.address.to_string())),
        ("State".to_owned(), text(state)),
        ("Code".to_owned(), text(code)),
        ("Detail".to_owned(), text(detail)),
        ("Distrusted".to_owned(), peer.distrusted.into()),
        ("Chunks".to_owned(), peer.chunks.into()),
        ("BytesReceived".to_owned(), peer.counts.received.into()),
        ("BytesSent".to_owned(), peer.counts.sent.into()),
        ("WrongChunks".to_owned(), peer.counts.wrong.into()),
        ("FailedChunks".to_owned(), peer.counts.failed.into()),
    ])
}

/// `Number` (u), `Phase`, `Revision` (s), `Over` (b), `Progress`, `Error` (a{sv}), `LeftOpen` (t); empty before the first rotation.
pub fn rotation(rotation: Option<&Rotation>, left_open: u64) -> Dict {
    let Some(rotation) = rotation else { return Dict::new() };
    let dict = |dict: Dict| OwnedVariant::try_from(Variant::from(dict)).ok();
    let mut shown = Dict::from([
        ("Number".to_owned(), rotation.number.into()),
        ("Phase".to_owned(), text(rotation.phase.name())),
        ("Revision".to_owned(), text(&rotation.revision)),
        ("Over".to_owned(), matches!(rotation.phase, Phase::Over(_)).into()),
        ("LeftOpen".to_owned(), left_open.into()),
    ]);
    shown.extend(dict(progress(&rotation.progress)).map(|value| ("Progress".to_owned(), value)));
    shown.extend(dict(last_error(rotation.error.as_ref())).map(|value| ("Error".to_owned(), value)));
    shown
}

/// `Code`, `Stage`, `Detail`, `Hint` (s), `ExitStatus` (u), `At` (t, seconds since 1970); empty when nothing has failed.
pub fn last_error(error: Option<&LastError>) -> Dict {
    let mut dict = Dict::new();
    if let Some(error) = error {
        dict.insert("Code".into(), text(error.code));
        dict.insert("Stage".into(), text(error.stage.name()));
        dict.insert("Detail".into(), text(&error.detail));
        dict.insert("Hint".into(), text(&error.hint));
        dict.insert("ExitStatus".into(), u32::from(error.exit_status).into());
        dict.insert("At".into(), unix_seconds(error.at).into());
    }
    dict
}

/// Facts as strings.
pub fn facts<'a>(facts: impl Iterator<Item = (&'a &'static str, &'a String)>) -> Dict {
    facts.map(|(name, value)| ((*name).to_owned(), text(value))).collect()
}
