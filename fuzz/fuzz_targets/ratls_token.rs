//! The attestation service's token about a peer, which may come over a connection that is anybody's.
//!
//! Holds: no input panics; a token that is accepted has three parts, is in its time, affirms everything, and names the key
//! and the model that were asked for; with a signer named whose key nobody has, none is; a refusal is short.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cai::error::chain;
use cai::jwt::{Jwt, Signers};
use cai::ratls::verdict::{Bound, judge};
use cai::ratls::{Demands, Format};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// A certificate made now, whose key is gone.
static SIGNERS: LazyLock<Signers> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["signer".into()]).unwrap();
    Signers::from_pem(params.self_signed(&key).unwrap().pem().as_bytes()).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    // When the tokens of the seeds were issued.
    let now: SystemTime = UNIX_EPOCH + Duration::from_secs(1_795_341_100);
    let demands = Demands {
        policies: vec!["default".into()],
        members: BTreeMap::from([("model-identity".to_owned(), "aa".to_owned())]),
    };
    for (format, data) in [
        (Format::Current, json!({"pubkey-hash": "ggFY"})),
        (Format::Legacy, json!({"rats-rs.raw_runtime_data": "G31E"})),
    ] {
        let Value::Object(runtime_data) = data else { return };
        let bound = Bound { format, runtime_data, devices: 0 };
        assert!(judge(token, &bound, &demands, Some(&*SIGNERS), now).is_err());
        match judge(token, &bound, &demands, None, now) {
            Ok(verdict) => {
                assert!(verdict.expires > now);
                assert_eq!(format, Format::Current);
                let token = Jwt::parse(token).unwrap();
                let claims = token.claims().to_string();
                assert!(["ggFY", "\"aa\"", "default"].iter().all(|word| claims.contains(word)));
                assert!(token.claims().get("submods").is_none() || claims.contains("affirming"));
            }
            Err(refused) => assert!(chain(&refused).chars().count() < 1200),
        }
    }
});
