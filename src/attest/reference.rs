//! Reference values: what an operator registers with the verifier so that this machine is known to it.
//!
//! The shape is the one the reference value provider (RVPS) takes as payload of a message of type `sample`: an object of
//! names, each with the list of its accepted values. A name is what a policy asks for, and policies differ, so a value
//! appears under the name of each: `tdx.quote.body.*` for the first generation (path of the claim; a claim with reference
//! values must match one), `tdx.*` for Alibaba's default policy from v1.1.3 on, bare names for upstream's.
//!
//! Source: kbs.md section 11; the default policies of both Trustees.

use std::collections::BTreeMap;

use super::{Claims, TdxClaims};

/// Names, and the values accepted for each.
pub type ReferenceValues = BTreeMap<String, Vec<String>>;

/// Reference values that let a verifier recognise another boot of this machine's image. Empty for a TEE without
/// measurements.
///
/// Left out is what the next boot of the same image may change: RTMR0 (the shape of the virtual machine), RTMR3 (what ran),
/// and, for the first generation, whose policy insists on every name registered, the version of the host's TDX module.
pub fn reference_values(claims: &Claims) -> ReferenceValues {
    let Some(tdx) = &claims.tdx else { return ReferenceValues::new() };
    let mut values = tdx.boot.clone();
    for (name, value) in quote_values(tdx) {
        if !value.is_empty() {
            values.insert(name.to_owned(), vec![value.to_owned()]);
        }
    }
    values
}

/// What the quote itself says.
fn quote_values(tdx: &TdxClaims) -> [(&'static str, &str); 14] {
    let [_, rtmr_1, rtmr_2, _] = &tdx.rtmrs;
    [
        ("tdx.quote.body.mr_td", &tdx.mrtd),
        ("tdx.quote.body.rtmr_1", rtmr_1),
        ("tdx.quote.body.rtmr_2", rtmr_2),
        ("tdx.quote.body.xfam", &tdx.xfam),
        ("tdx.mr_td", &tdx.mrtd),
        ("tdx.mr_seam", &tdx.mr_seam),
        ("tdx.tcb_svn", &tdx.tee_tcb_svn),
        ("tdx.xfam", &tdx.xfam),
        ("mr_td", &tdx.mrtd),
        ("mr_seam", &tdx.mr_seam),
        ("tcb_svn", &tdx.tee_tcb_svn),
        ("rtmr_1", rtmr_1),
        ("rtmr_2", rtmr_2),
        ("xfam", &tdx.xfam),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_values_of_a_td_are_under_the_name_each_policy_asks_for() {
        let boot =
            BTreeMap::from([("measurement.kernel.SHA-384".to_owned(), vec!["aa".into(), "bb".into()])]);
        let tdx = TdxClaims {
            mrtd: "01".into(),
            rtmrs: ["10", "11", "12", "13"].map(str::to_owned),
            xfam: "02".into(),
            tee_tcb_svn: "03".into(),
            mr_seam: "04".into(),
            boot,
            ..TdxClaims::default()
        };
        let claims = Claims { provider: "configfs-tsm", tdx: Some(tdx), ..Claims::default() };
        let text = serde_json::to_string(&reference_values(&claims)).unwrap();
        let expected = concat!(
            r#"{"measurement.kernel.SHA-384":["aa","bb"],"mr_seam":["04"],"mr_td":["01"],"rtmr_1":["11"],"rtmr_2":["12"],"#,
            r#""tcb_svn":["03"],"tdx.mr_seam":["04"],"tdx.mr_td":["01"],"tdx.quote.body.mr_td":["01"],"#,
            r#""tdx.quote.body.rtmr_1":["11"],"tdx.quote.body.rtmr_2":["12"],"tdx.quote.body.xfam":["02"],"#,
            r#""tdx.tcb_svn":["03"],"tdx.xfam":["02"],"xfam":["02"]}"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn reference_values_of_what_was_not_measured_are_absent() {
        assert!(reference_values(&Claims::default()).is_empty());
        let bare = Claims { tdx: Some(TdxClaims::default()), ..Claims::default() };
        assert!(reference_values(&bare).is_empty());
    }
}
