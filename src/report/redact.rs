//! Take secrets out of a text: those that are known, in every form in which they could have got there, and what looks like one.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

/// What stands in the place of a secret.
pub const REMOVED: &str = "[REMOVED]";

/// A known secret that is shorter is not looked for: it would be found everywhere, and protects nothing.
const SHORTEST: usize = 4;
/// A piece of base64 that is shorter is found by chance.
const SHORTEST_BASE64: usize = 7;
/// A value behind `token`, `secret` or `signature` that is shorter is a word about one.
const SHORTEST_VALUE: usize = 12;

/// Unreserved in URLs (RFC 3986), and what form encoding leaves as it is.
const URL: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'*');

/// Words before a value that is a secret, in lower case. Behind the first kind any value is one.
const PASSWORDS: [&str; 5] = ["password", "passwd", "passphrase", "secret_access_key", "accesskeysecret"];
const TOKENS: [&str; 6] = ["token", "secret", "signature", "authorization", "cookie", "bearer"];

/// Known secrets in all their forms.
pub struct Redactor {
    /// Longest first, so that no form hides in the rest of another.
    exact: Vec<Zeroizing<String>>,
    /// In lower case, found in either.
    folded: Vec<Zeroizing<String>>,
}

impl Redactor {
    /// A redactor that knows `secrets`.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut redactor = Redactor { exact: Vec::new(), folded: Vec::new() };
        for secret in secrets.into_iter().map(str::trim).filter(|secret| secret.len() >= SHORTEST) {
            redactor.learn(secret);
        }
        redactor.exact.sort_by_key(|form| std::cmp::Reverse(form.len()));
        redactor.exact.dedup();
        redactor
    }

    fn learn(&mut self, secret: &str) {
        let held = |text: String| Zeroizing::new(text);
        self.exact.push(held(secret.to_owned()));
        // As JSON, Rust and a shell quote it.
        for quoted in [held(serde_json::to_string(secret).unwrap_or_default()), held(format!("{secret:?}"))] {
            let inside = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
            self.exact.push(held(inside.to_owned()));
        }
        self.exact.push(held(secret.replace('\'', "'\\''")));
        for set in [NON_ALPHANUMERIC, URL, FORM] {
            let mut encoded = held(utf8_percent_encode(secret, set).to_string());
            encoded.make_ascii_lowercase();
            self.folded.push(held(encoded.replace("%20", "+")));
            self.folded.push(encoded);
        }
        self.folded.push(held(hex::encode(secret)));
        for alignment in 0..3 {
            self.exact.extend(in_base64(secret.as_bytes(), alignment));
        }
    }

    /// `text` without them, and without what looks like a secret.
    pub fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for form in self.exact.iter().filter(|form| form.len() >= SHORTEST) {
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), REMOVED);
            }
        }
        for form in &self.folded {
            text = replace_folded(&text, form);
        }
        let text = private_keys(&text);
        let text: Vec<String> = text.split('\n').map(|line| words(&values(&users(line)))).collect();
        text.join("\n")
    }
}

/// The characters of base64, in both alphabets, that are the same whatever is before and after `secret`, where so many bytes are
/// before it (modulo three).
fn in_base64(secret: &[u8], alignment: usize) -> impl Iterator<Item = Zeroizing<String>> {
    let mut padded = Zeroizing::new(Vec::with_capacity(alignment + secret.len()));
    padded.resize(alignment, 0);
    padded.extend_from_slice(secret);
    let (first, last) = ((alignment * 8).div_ceil(6), padded.len() * 8 / 6);
    let both = [STANDARD_NO_PAD.encode(&*padded), URL_SAFE_NO_PAD.encode(&*padded)].map(Zeroizing::new);
    let whole =
        move |text: Zeroizing<String>| Zeroizing::new(text.get(first..last).unwrap_or_default().to_owned());
    both.into_iter().map(whole).filter(|piece| piece.len() >= SHORTEST_BASE64)
}

/// `text` without `form`, which is in lower case, in whatever case it is there.
fn replace_folded(text: &str, form: &str) -> String {
    // Same length, since only ASCII changes.
    let folded = text.to_ascii_lowercase();
    let (mut clean, mut rest) = (String::new(), 0);
    for (at, found) in folded.match_indices(form) {
        clean.push_str(text.get(rest..at).unwrap_or_default());
        clean.push_str(REMOVED);
        rest = at + found.len();
    }
    clean.push_str(text.get(rest..).unwrap_or_default());
    clean
}

/// Without private keys in PEM.
fn private_keys(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once("PRIVATE KEY-----") {
        let end = inside.split_once("-----END");
        clean.push_str(before);
        clean.push_str("PRIVATE KEY-----");
        clean.push_str(REMOVED);
        // One that never ends takes everything with it.
        rest = end.map_or("", |(_, rest)| rest);
        if let Some((tail, after)) = rest.split_once("-----") {
            clean.push_str(&format!("-----END{tail}-----"));
            rest = after;
        }
    }
    clean + rest
}

/// Without users and passwords in URLs.
fn users(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        let end = |c: char| c.is_whitespace() || "/?#\"'<>`".contains(c);
        let authority = after.split(end).next().unwrap_or_default();
        rest = match authority.rsplit_once('@') {
            Some((user, _)) => {
                clean.push_str(REMOVED);
                after.strip_prefix(user).unwrap_or_default()
            }
            None => after,
        };
    }
    clean + rest
}

/// Without the values behind words that announce a secret: `x-oss-security-token: CAIS...`, `password="..."`, `Bearer ey...`.
fn values(line: &str) -> String {
    let folded = line.to_ascii_lowercase();
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    let kinds =
        PASSWORDS.iter().map(|word| (word, 1)).chain(TOKENS.iter().map(|word| (word, SHORTEST_VALUE)));
    for (word, shortest) in kinds {
        for (at, _) in folded.match_indices(word) {
            let after = at + word.len();
            let Some(cut) = value_at(line, after, *word == "bearer") else { continue };
            if cut.1 - cut.0 >= shortest {
                cuts.push(cut);
            }
        }
    }
    cuts.sort_unstable();
    let (mut clean, mut rest) = (String::new(), 0);
    for (start, end) in cuts {
        if start >= rest {
            clean.push_str(line.get(rest..start).unwrap_or_default());
            clean.push_str(REMOVED);
            rest = end;
        }
    }
    clean.push_str(line.get(rest..).unwrap_or_default());
    clean
}

/// Where the value begins and ends that is announced up to `after`: behind `=` or `:`, quotes and spaces; `Bearer` needs a space alone.
fn value_at(line: &str, after: usize, bare: bool) -> Option<(usize, usize)> {
    let rest = line.get(after..)?;
    let announced = rest.trim_start_matches(['"', '\'', ' ', '\\']);
    let value = match announced.strip_prefix(['=', ':']) {
        Some(value) => value,
        None if bare && rest.starts_with(' ') => announced,
        None => return None,
    };
    let value = value.trim_start_matches(['"', '\'', ' ', '\\']);
    // What announces another one is no value: `Authorization: Bearer ...`.
    let value = value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("OSS ")).unwrap_or(value);
    let start = line.len() - value.len();
    let end = value.find(|c: char| c.is_whitespace() || "\"'&;,<>`\\".contains(c)).unwrap_or(value.len());
    (end > 0 && !value.starts_with(REMOVED)).then_some((start, start + end))
}

/// Without JSON Web Tokens, wherever they stand.
fn words(line: &str) -> String {
    let of_token = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let (mut clean, mut rest) = (String::new(), line);
    while let Some((before, after)) = rest.split_once("eyJ") {
        let end = after.find(|c: char| !of_token(c)).unwrap_or(after.len());
        let (token, tail) = after.split_at_checked(end).unwrap_or((after, ""));
        clean.push_str(before);
        match token.contains('.') && token.len() >= SHORTEST_VALUE {
            true => clean.push_str(REMOVED),
            false => {
                clean.push_str("eyJ");
                clean.push_str(token);
            }
        }
        rest = tail;
    }
    clean + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "S3cr+t/Key=\"with' all%";

    #[test]
    fn known_secret_is_found_in_every_form() {
        let redactor = Redactor::new([SECRET, "ab"]);
        let json = serde_json::to_string(SECRET).unwrap();
        let forms = [
            SECRET.to_owned(),
            json,
            utf8_percent_encode(SECRET, NON_ALPHANUMERIC).to_string(),
            utf8_percent_encode(SECRET, URL).to_string().to_lowercase(),
            hex::encode(SECRET),
            hex::encode_upper(SECRET),
        ];
        for form in forms {
            let clean = redactor.clean(&format!("before {form} after"));
            assert!(clean.starts_with("before ") && clean.ends_with(" after"), "{form}: {clean}");
            assert!(clean.contains(REMOVED) && !clean.contains("cr+t"), "{form}: {clean}");
        }
        assert_eq!(redactor.clean("ab"), "ab");
    }

    #[test]
    fn what_looks_like_a_secret_is_removed_and_words_about_one_are_not() {
        let redactor = Redactor::new([]);
        for (text, expected) in [
            ("GET http://u:p@h/x?y", "GET http://[REMOVED]@h/x?y"),
            ("http://h/a@b", "http://h/a@b"),
            ("Authorization: Bearer abcdefghijklmnop", "Authorization: Bearer [REMOVED]"),
            ("x-oss-security-token: CAIS0123456789ab", "x-oss-security-token: [REMOVED]"),
            ("{\"password\":\"x y\"}", "{\"password\":\"[REMOVED] y\"}"),
            ("?Signature=abc%2Bdef%3D012&x=1", "?Signature=[REMOVED]&x=1"),
            ("token eyJhbGciOi.eyJpc3MiOiJ.sig rest", "token [REMOVED] rest"),
            ("\"token\": \"signature verified\"", "\"token\": \"signature verified\""),
            ("MODEL_OSS_SECRET_ACCESS_KEY=x1", "MODEL_OSS_SECRET_ACCESS_KEY=[REMOVED]"),
            ("the token is too old", "the token is too old"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nx",
                "-----BEGIN EC PRIVATE KEY-----[REMOVED]-----END EC PRIVATE KEY-----\nx",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMHc", "-----BEGIN PRIVATE KEY-----[REMOVED]"),
        ] {
            assert_eq!(redactor.clean(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn secret_in_base64_is_found_at_any_alignment(
            before in prop::collection::vec(any::<u8>(), 0..9),
            after in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let redactor = Redactor::new([SECRET]);
            let bytes = [before.as_slice(), SECRET.as_bytes(), after.as_slice()].concat();
            for text in [STANDARD_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)] {
                let clean = redactor.clean(&text);
                prop_assert!(clean.contains(REMOVED), "{text} -> {clean}");
            }
        }

        #[test]
        fn any_text_is_cleaned_without_panic(text in "(?s).{0,200}", secret in ".{0,12}") {
            let clean = Redactor::new([secret.as_str()]).clean(&text);
            let secret = secret.trim();
            if secret.len() >= SHORTEST && !REMOVED.contains(secret) {
                prop_assert!(!clean.contains(secret), "{clean}");
            }
        }
    }
}
