//! The certificate as openssl and webpki read it, and hostile ones.

use std::process::Command;
use std::time::UNIX_EPOCH;

use super::*;

/// 2026-11-22T09:51:24Z.
const NOW: Duration = Duration::from_secs(1_795_341_084);

fn issued(blob: &[u8]) -> (Key, Vec<u8>) {
    let key = Key::generate().unwrap();
    let der = issue(&key, blob, UNIX_EPOCH + NOW).unwrap();
    (key, der)
}

fn flaw(der: &[u8]) -> String {
    crate::error::chain(&parse(der).unwrap_err())
}

#[test]
fn certificate_carries_any_length_of_evidence_and_is_read_back() {
    for len in [0, 1, 127, 65_536, 400_000, 2 << 20] {
        let blob = vec![0xa5; len];
        let (key, der) = issued(&blob);
        let read = parse(&der).unwrap();
        assert_eq!(read.key.spki(), key.spki().unwrap());
        assert!(read.blob == blob, "{len}");
    }
}

#[test]
fn webpki_takes_the_certificate_as_a_leaf() {
    let (_, der) = issued(b"evidence");
    webpki::EndEntityCert::try_from(&der.into()).unwrap();
}

#[test]
fn openssl_reads_the_certificate_as_tng_writes_it() {
    let (_, der) = issued(b"evidence");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certificate.der");
    std::fs::write(&path, der).unwrap();
    let shown = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-noout", "-text", "-nameopt", "RFC2253", "-in"])
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    for line in [
        "Version: 3 (0x2)",
        "Serial Number: 42 (0x2a)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "Issuer: CN=TNG,O=Inclavare Containers",
        "Subject: CN=TNG,O=Inclavare Containers",
        "Not Before: Nov 22 09:51:24 2026 GMT",
        "Not After : Nov 22 15:51:24 2026 GMT",
        "ASN1 OID: prime256v1",
        "CA:FALSE",
        "Digital Signature, Non Repudiation, Key Encipherment, Key Agreement",
        "2.23.133.5.4.9: \n                evidence",
        "2.23.133.5.4.2: \n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let at = text.find("Subject Key Identifier").unwrap();
    let id = text[at..].lines().nth(1).unwrap().trim();
    assert_eq!(text.matches(id).count(), 2, "authority and subject key identifiers differ:\n{text}");
    // A certificate of its own is its own root; -partial_chain keeps openssl from asking for CA rights.
    let pem = directory.path().join("certificate.pem");
    let converted = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-in"])
        .arg(&path)
        .arg("-out")
        .arg(&pem)
        .status();
    assert!(converted.unwrap().success());
    let verified = Command::new("openssl")
        .args(["verify", "-check_ss_sig", "-partial_chain", "-attime", "1795341100", "-trusted"])
        .arg(&pem)
        .arg(&pem)
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn certificate_after_2049_has_four_digits_of_the_year() {
    let key = Key::generate().unwrap();
    let der = issue(&key, b"", UNIX_EPOCH + Duration::from_secs(2_540_000_000)).unwrap();
    let read = x509_cert::Certificate::from_der(&der).unwrap();
    assert!(matches!(read.tbs_certificate().validity().not_before, Time::GeneralTime(_)));
    assert!(parse(&der).is_ok());
}

#[test]
fn flipped_bit_anywhere_is_refused() {
    let (_, der) = issued(b"evidence");
    for at in 0..der.len() {
        for bit in [0x01, 0x80] {
            let mut changed = der.clone();
            changed[at] ^= bit;
            assert!(parse(&changed).is_err(), "byte {at}, bit {bit:#x}");
        }
        assert!(parse(&der[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(
        flaw(&vec![0; CERTIFICATE_LIMIT + 1]),
        "the certificate is 4259841 bytes, at most 4259840 are read"
    );
}

/// A certificate of another shape: what `change` makes of the parts of the body, signed.
fn reshaped(change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Vec<u8> {
    let key = Key::generate().unwrap();
    let spki = key.spki().unwrap();
    let name = NAME.parse::<Name>().unwrap().to_der().unwrap();
    let now = UNIX_EPOCH + NOW;
    let validity: Validity = Validity::new(time(now).unwrap(), time(now + VALIDITY).unwrap());
    let mut parts = vec![
        tagged(0, &2u8.to_der().unwrap()).unwrap(),
        SERIAL.to_der().unwrap(),
        signature_algorithm().unwrap(),
        name.clone(),
        validity.to_der().unwrap(),
        name,
        spki.clone(),
        tagged(3, &extensions(&spki, b"evidence").unwrap().to_der().unwrap()).unwrap(),
    ];
    change(&mut parts);
    let body = sequence(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    let signature = BitString::from_bytes(&key.sign(&body).unwrap()).unwrap().to_der().unwrap();
    sequence(&[&body, &signature_algorithm().unwrap(), &signature]).unwrap()
}

fn with_extensions(change: impl FnOnce(&mut Vec<Extension>)) -> Vec<u8> {
    let mut list = extensions(b"spki", b"evidence").unwrap();
    change(&mut list);
    reshaped(|parts| parts[7] = tagged(3, &list.to_der().unwrap()).unwrap())
}

#[test]
fn certificates_of_another_shape_are_refused_by_their_flaw() {
    assert!(parse(&reshaped(|_| {})).is_ok());
    let other = "CN=other".parse::<Name>().unwrap().to_der().unwrap();
    for (der, expected) in [
        (reshaped(|parts| parts[3] = other), "is not its own issuer"),
        (reshaped(|parts| drop(parts.pop())), "carries no evidence (extension 2.23.133.5.4.9)"),
        (
            reshaped(|parts| {
                parts.pop();
                parts[0].clear();
            }),
            "is not X.509 version 3",
        ),
        (
            reshaped(|parts| parts[6] = Key::generate().unwrap().spki().unwrap()),
            "is not signed with its own key",
        ),
        (
            reshaped(|parts| {
                let sha384 = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3").to_der().unwrap();
                parts[2] = sequence(&[&sha384]).unwrap();
            }),
            "is not signed with ECDSA and SHA-256",
        ),
        (with_extensions(|list| list.push(list[4].clone())), "has an extension twice"),
        (with_extensions(|list| list.push(list[0].clone())), "has an extension twice"),
        (with_extensions(|list| list[5].critical = true), "has a critical extension that is not known"),
        (with_extensions(|list| drop(list.remove(4))), "carries no evidence (extension 2.23.133.5.4.9)"),
    ] {
        assert_eq!(flaw(&der), format!("the certificate {expected}"));
    }
    let only = with_extensions(|list| drop(list.drain(..4)));
    assert_eq!(parse(&only).unwrap().blob, b"evidence", "tng.md 4.1: the two DICE extensions suffice");
}

#[test]
fn certificate_full_of_extensions_is_refused_before_they_are_compared() {
    let most = with_extensions(|list| {
        let more = |n| ObjectIdentifier::new_unwrap(&format!("1.2.{n}"));
        list.extend((0..26).map(|n| Extension { extn_id: more(n), ..list[5].clone() }).collect::<Vec<_>>());
    });
    assert!(parse(&most).is_ok());
    // Each with a name of its own: SEQUENCE { OBJECT IDENTIFIER of four bytes, OCTET STRING of none }.
    let each = |n: u32| {
        let [a, b, c] = [n >> 14, n >> 7, n].map(|digit| u8::try_from(digit & 0x7f).unwrap());
        [0x30, 8, 6, 4, 0x2a, 0x80 | a | 1, 0x80 | b, c, 4, 0]
    };
    let list: Vec<u8> = (0..420_000).map(|n| ((n & !0x3fff) << 1) | (n & 0x3fff)).flat_map(each).collect();
    let full = reshaped(|parts| parts[7] = tagged(3, &sequence(&[&list]).unwrap()).unwrap());
    assert!((4_200_000..=CERTIFICATE_LIMIT).contains(&full.len()), "{}", full.len());
    assert_eq!(flaw(&full), "the certificate has more than 32 extensions");
}

#[test]
fn certificate_of_somebody_elses_making_is_read() {
    use rcgen::{
        CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    };
    let made = |algorithm, id: &[u64]| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::new(vec!["tng.internal".into()]).unwrap();
        params.custom_extensions = vec![CustomExtension::from_oid_content(id, b"blob".to_vec())];
        params.self_signed(&key).unwrap().der().to_vec()
    };
    let id = [2, 23, 133, 5, 4, 9];
    assert_eq!(parse(&made(&PKCS_ECDSA_P256_SHA256, &id)).unwrap().blob, b"blob");
    assert_eq!(
        flaw(&made(&PKCS_ECDSA_P384_SHA384, &id)),
        "the certificate is not signed with ECDSA and SHA-256"
    );
    assert_eq!(
        flaw(&made(&PKCS_ECDSA_P256_SHA256, &[2, 23, 133, 5, 4, 2])),
        "the certificate carries no evidence (extension 2.23.133.5.4.9)"
    );
}
