//! What a peer may send around a blob.
//!
//! Holds: no input panics; what is read is written as it came; the bitmap of an object is never longer than its chunks.
#![no_main]

use cai::peer::wire::{ANSWER, ASK, Answer, Ask, HAVE, HELLO, Have, Hello};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(hello) = bytes.first_chunk::<HELLO>().and_then(Hello::decode) {
        assert_eq!(hello.encode(), bytes[..HELLO]);
    }
    if let Some(ask) = bytes.first_chunk::<ASK>().and_then(Ask::decode) {
        assert_eq!(ask.encode(), bytes[..ASK]);
    }
    if let Some(Answer::Blob(hash)) = bytes.first_chunk::<ANSWER>().and_then(Answer::decode) {
        assert_eq!(Answer::Blob(hash).encode(), bytes[..ANSWER]);
    }
    let chunks = |object: usize| (object < 3).then_some(20);
    if let Some((object, len)) = bytes.first_chunk::<HAVE>().and_then(|head| Have::decode_head(head, chunks))
    {
        assert!(object < 3 && len == 3);
    }
});
