//! A page of an object list, which says how many files the model has and what they are called.
//!
//! Holds: no input panics; every path that is taken stays below the model's directory and has no part that a file system
//! would read otherwise; a page is no larger than what was sent.
#![no_main]

use std::path::Component;

use cai::oss::list::read_page;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let Ok(page) = read_page("https://conf-ai.oss.example.com/", "m/", body) else { return };
    // `<Contents>` alone has ten bytes.
    assert!(page.objects.len() <= body.len() / 10);
    for object in &page.objects {
        let text = object.path.to_str().unwrap();
        assert!(!text.is_empty() && !text.contains('\0') && !text.ends_with('/'), "{text:?}");
        for component in text.split('/') {
            assert!(
                (1..=255).contains(&component.len()) && component != "." && component != "..",
                "{text:?}"
            );
        }
        assert!(
            object.path.components().all(|component| matches!(component, Component::Normal(_))),
            "{text:?}"
        );
        assert!(!object.etag.is_empty());
    }
    assert!(page.next.is_none_or(|token| !token.is_empty() && token.len() <= body.len()));
});
