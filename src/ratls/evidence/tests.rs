//! The evidence on the frozen vectors of both formats, and on what hostile peers make of it.

use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/vectors/tng-vectors.json")).unwrap()
}

fn bytes(of: &Value, name: &str) -> Vec<u8> {
    hex::decode(of[name].as_str().unwrap()).unwrap()
}

fn spki() -> Vec<u8> {
    bytes(&vectors(), "spki_der_hex")
}

fn blob(part: &str) -> Vec<u8> {
    bytes(&vectors()[part], "extension_2_23_133_5_4_9_hex")
}

const FORMATS: [(Format, &str); 2] =
    [(Format::Legacy, "legacy_le_2_2_6"), (Format::Current, "current_ge_2_3_0")];

fn runtime_data_of(format: Format, spki: &[u8]) -> (String, Vec<u8>) {
    match format {
        Format::Legacy => (legacy_runtime_data(&claims_buffer(spki)), claims_buffer(spki)),
        Format::Current => (current_runtime_data(spki, &BTreeMap::new()), Vec::new()),
    }
}

#[test]
fn both_formats_are_written_as_in_the_vectors() {
    assert_eq!(pubkey_hash(&spki()), bytes(&vectors(), "pubkey_hash_cbor_hex"));
    for (format, part) in FORMATS {
        let vector = &vectors()[part];
        let (runtime_data, claims) = runtime_data_of(format, &spki());
        assert_eq!(runtime_data, vector["runtime_data_json"].as_str().unwrap(), "{part}");
        assert_eq!(claims, bytes(vector, "claims_buffer_hex"), "{part}");
        assert_eq!(digest(&runtime_data).0.to_vec(), bytes(vector, "aa_runtime_data_sha384_hex"), "{part}");
        let tagged = TaggedEvidence {
            tee: "sample".into(),
            evidence: bytes(vector, "aa_evidence_hex"),
            additional: None,
            runtime_data,
            hash: HashAlgorithm::Sha384,
            claims,
        };
        assert_eq!(tagged.format(), format);
        assert_eq!(hex::encode(tagged.encode()), hex::encode(blob(part)), "{part}");
    }
}

#[test]
fn both_formats_are_read_and_bind_their_key_and_no_other() {
    let mut other = spki();
    other[90] ^= 1;
    for (format, part) in FORMATS {
        let tagged = TaggedEvidence::decode(&blob(part)).unwrap();
        assert_eq!((tagged.format(), tagged.tee.as_str(), tagged.hash.name()), (format, "sample", "sha384"));
        let object = tagged.bound(&spki()).unwrap();
        assert_eq!(Value::Object(object).to_string(), tagged.runtime_data);
        let named = if format == Format::Legacy { "claims buffer" } else { "runtime data" };
        assert_eq!(tagged.bound(&other), Err(EvidenceError::Unbound { part: named }));
    }
}

#[test]
fn more_members_stand_in_canonical_order_and_cannot_overrule_the_hash() {
    let more = [("policy-hash", "00ff"), ("model-identity", "ab"), (PUBKEY_HASH, "none")];
    let more = more.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let hash = STANDARD.encode(bytes(&vectors(), "pubkey_hash_cbor_hex"));
    assert_eq!(
        current_runtime_data(&spki(), &more),
        format!(r#"{{"model-identity":"ab","policy-hash":"00ff","pubkey-hash":"{hash}"}}"#)
    );
}

#[test]
fn additional_evidence_goes_there_and_back_in_the_current_format() {
    let mut tagged = TaggedEvidence::decode(&blob("current_ge_2_3_0")).unwrap();
    tagged.additional = Some(br#"{"nvidia":{}}"#.to_vec());
    assert_eq!(TaggedEvidence::decode(&tagged.encode()), Ok(tagged));
}

#[test]
fn blob_cut_anywhere_or_with_more_behind_it_is_refused() {
    for (_, part) in FORMATS {
        let whole = blob(part);
        for len in 0..whole.len() {
            assert!(TaggedEvidence::decode(&whole[..len]).is_err(), "{part} cut at {len}");
        }
        let longer = [whole.as_slice(), &[0]].concat();
        let source = CborError { at: whole.len(), expected: "the end" };
        assert_eq!(
            TaggedEvidence::decode(&longer),
            Err(EvidenceError::Form { part: "evidence", source }),
            "{part}"
        );
    }
}

fn with_inner(write: impl FnOnce(&mut Writer)) -> Result<TaggedEvidence, EvidenceError> {
    let mut inner = Writer::default();
    write(&mut inner);
    let mut outer = Writer::default();
    outer.tag(EVIDENCE_TAG);
    outer.array(2);
    outer.bytes(&inner.0);
    outer.bytes(&[]);
    TaggedEvidence::decode(&outer.0)
}

fn good_members(inner: &mut Writer, hash: u64) {
    inner.text("tee_type");
    inner.text("sample");
    inner.text("aa_evidence");
    inner.bytes(b"{}");
    inner.text("aa_runtime_data");
    inner.text("{}");
    inner.text("aa_runtime_data_hash_algo");
    inner.uint(hash);
}

#[test]
fn unknown_members_are_passed_over_and_the_additional_one_may_be_absent() {
    let tagged = with_inner(|inner| {
        inner.map(5);
        inner.text("aa_future");
        inner.array(1);
        inner.tag(3);
        inner.null();
        good_members(inner, 1);
    });
    let tagged = tagged.unwrap();
    assert_eq!((tagged.additional, tagged.hash), (None, HashAlgorithm::Sha256));
}

#[test]
fn members_missing_twice_or_of_unknown_algorithm_are_named() {
    let missing = |name| Err(EvidenceError::Missing { part: "evidence", name });
    assert_eq!(with_inner(|inner| inner.map(0)), missing("aa_runtime_data_hash_algo"));
    let only_hash = with_inner(|inner| {
        inner.map(1);
        inner.text("aa_runtime_data_hash_algo");
        inner.uint(8);
    });
    assert_eq!(only_hash, missing("tee_type"));
    let twice = with_inner(|inner| {
        inner.map(5);
        good_members(inner, 7);
        inner.text("tee_type");
        inner.text("tdx");
    });
    assert_eq!(twice, Err(EvidenceError::Twice { part: "evidence", name: "tee_type" }));
    let algorithm = with_inner(|inner| {
        inner.map(4);
        good_members(inner, 2);
    });
    assert_eq!(algorithm, Err(EvidenceError::HashAlgorithm { part: "evidence", id: 2 }));
}

#[test]
fn tokens_other_tags_and_endless_blobs_are_refused() {
    let tagged = |tag| {
        let mut outer = Writer::default();
        outer.tag(tag);
        TaggedEvidence::decode(&outer.0)
    };
    assert_eq!(tagged(0xC0_C001), Err(EvidenceError::Token));
    assert_eq!(tagged(60_000), Err(EvidenceError::Tag { tag: 60_000 }));
    let (len, limit) = (BLOB_LIMIT + 1, BLOB_LIMIT);
    assert_eq!(TaggedEvidence::decode(&vec![0; len]), Err(EvidenceError::TooLong { len, limit }));
    let untagged = TaggedEvidence::decode(&blob("current_ge_2_3_0")[5..]);
    let source = CborError { at: 0, expected: "a tag" };
    assert_eq!(untagged, Err(EvidenceError::Form { part: "evidence", source }));
}

#[test]
fn runtime_data_that_binds_something_else_is_refused() {
    let mut legacy = TaggedEvidence::decode(&blob("legacy_le_2_2_6")).unwrap();
    let hash = pubkey_hash(&spki());
    let claims = |entries: &[(&str, &[u8])]| {
        let mut writer = Writer::default();
        writer.map(entries.len() as u64);
        for (name, value) in entries {
            writer.text(name);
            writer.bytes(value);
        }
        writer.0
    };
    // More claims are allowed, but the runtime data must be of all of them.
    legacy.claims = claims(&[("a", b"b"), (PUBKEY_HASH, &hash)]);
    assert_eq!(legacy.bound(&spki()), Err(EvidenceError::Unbound { part: "runtime data" }));
    legacy.runtime_data = legacy_runtime_data(&legacy.claims);
    assert!(legacy.bound(&spki()).is_ok());
    let part = "claims buffer";
    for (entries, expected) in [
        (vec![("a", &b"b"[..])], EvidenceError::Missing { part, name: PUBKEY_HASH }),
        (vec![(PUBKEY_HASH, &hash), (PUBKEY_HASH, &hash)], EvidenceError::Twice { part, name: PUBKEY_HASH }),
        (vec![(PUBKEY_HASH, &b"\x82\x07\x40"[..])], EvidenceError::HashAlgorithm { part: "key", id: 7 }),
        (vec![(PUBKEY_HASH, &b"\x82\x01\x40"[..])], EvidenceError::Unbound { part }),
    ] {
        legacy.claims = claims(&entries);
        legacy.runtime_data = legacy_runtime_data(&legacy.claims);
        assert_eq!(legacy.bound(&spki()), Err(expected));
    }

    let mut current = TaggedEvidence::decode(&blob("current_ge_2_3_0")).unwrap();
    for (runtime_data, expected) in [
        ("[]", EvidenceError::RuntimeData),
        ("{", EvidenceError::RuntimeData),
        ("{}", EvidenceError::Missing { part: "runtime data", name: PUBKEY_HASH }),
        (r#"{"pubkey-hash":1}"#, EvidenceError::Unbound { part: "runtime data" }),
    ] {
        current.runtime_data = runtime_data.into();
        assert_eq!(current.bound(&spki()), Err(expected), "{runtime_data}");
    }
    current.runtime_data = " ".repeat(RUNTIME_DATA_LIMIT + 1);
    let (len, limit) = (RUNTIME_DATA_LIMIT + 1, RUNTIME_DATA_LIMIT);
    assert_eq!(current.bound(&spki()), Err(EvidenceError::TooLong { len, limit }));
}
