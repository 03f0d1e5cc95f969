//! Bytes and text that others wrote: base64 in both alphabets, dates, and what of a text may be shown to people.
//!
//! Owns: how lenient cai reads, in one place. Must not know: whose text it is. Pure, no threads, no locks. Tested below.

use std::time::SystemTime;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

fn engine_for(text: &str) -> &'static GeneralPurpose {
    if text.contains(['+', '/']) { &STANDARD } else { &URL_SAFE }
}

/// Decode either alphabet, padded or not: what is received is never re-encoded, so leniency changes no digest.
pub(crate) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    engine_for(text).decode(text).ok()
}

/// As [`decode_base64`], into `target` (at least `base64::decoded_len_estimate` bytes); the number of bytes decoded.
pub(crate) fn decode_base64_into(text: &str, target: &mut [u8]) -> Option<usize> {
    engine_for(text).decode_slice(text, target).ok()
}

/// base64url without padding, the form everything sent is in.
pub(crate) fn encode_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Seconds that a clock which says `now` is behind one that wrote `date` (RFC 9110, `Date`); `None` where that is no date.
pub(crate) fn seconds_behind(date: &str, now: SystemTime) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?;
    let ours = jiff::Timestamp::try_from(now).ok()?;
    Some(theirs.as_second().saturating_sub(ours.as_second()))
}

/// `text` for people: at most `max` characters, control and invisible formatting characters replaced by spaces.
pub fn printable(text: &str, max: usize) -> String {
    let mut clean: String = text.chars().take(max).map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    if text.chars().nth(max).is_some() {
        clean.push('…');
    }
    clean.trim().to_owned()
}

/// The same of a text of several lines, whatever its length.
pub fn printable_lines(text: &str) -> String {
    text.chars().map(|c| if is_hidden(c) && c != '\n' { ' ' } else { c }).collect()
}

/// JSON `text` with such characters of its strings as escapes: the same value.
pub fn printable_json(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        // A line break in the text is none of a string's.
        if is_hidden(c) && c != '\n' {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| clean.push_str(&format!("\\u{unit:04x}")));
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Whether `c` is a control or an invisible formatting character.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_bounds_the_text_and_disarms_the_terminal() {
        assert_eq!(printable("a\x1b[31m\nb\u{202e}c\0", 100), "a [31m b c");
        assert_eq!(printable(&"x".repeat(9), 4), "xxxx…");
        assert_eq!(printable("ключ", 4), "ключ");
        assert_eq!(printable_lines("a\x1b[31m\n  b\u{202e}c\u{9b}"), "a [31m\n  b c ");
    }

    #[test]
    fn printable_json_is_the_same_value() {
        let value = serde_json::json!({"a\u{9b}": ["\n\x1b\u{7f}\u{202e}\u{e0041} é"]});
        let text = printable_json(&format!("{value:#}"));
        assert_eq!(text, "{\n  \"a\\u009b\": [\n    \"\\n\\u001b\\u007f\\u202e\\udb40\\udc41 é\"\n  ]\n}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
