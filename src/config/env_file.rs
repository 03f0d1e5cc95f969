//! The syntax of `cai.env`: what docker compose reads from an `--env-file`, so that a user's existing file works as it
//! is. Pure; knows no key.
//!
//! Lines end in LF or CR LF, a byte order mark is skipped. `NAME=value` or `NAME: value`, with an optional `export` and
//! spaces around. Unquoted values end at white space followed by `#`, and lose the white space at their end. Double
//! quotes know the usual escapes, single quotes only `\'`; either may span lines and be followed by a comment. An empty
//! value is the same as none.
//!
//! One difference: compose replaces `$NAME` and fills in a name without `=` from the process environment. Trust settings
//! never come from there, so the first is reported ([`Assignment::expands`]) and the second refused.

use zeroize::Zeroizing;

use super::values::Flaw;

/// One assignment of the file.
pub(super) struct Assignment<'a> {
    /// Name as written.
    pub(super) name: &'a str,
    /// Value with quotes and escapes resolved. May be a secret, so it is wiped when dropped.
    pub(super) value: Zeroizing<String>,
    /// Line it begins on, from 1.
    pub(super) line: usize,
    /// The value has a `$NAME` or `${NAME}` that compose would replace.
    pub(super) expands: bool,
}

/// A line that is neither empty, nor a comment, nor an assignment. Never repeats the line: it may be half of a secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// Line number from 1.
    pub(super) line: usize,
    /// What is wrong with it.
    pub(super) flaw: Flaw,
}

/// Every assignment and every unreadable line of a file, in order.
pub(super) fn read(text: &str) -> Vec<Result<Assignment<'_>, Unreadable>> {
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    let mut found = Vec::new();
    while !rest.is_empty() {
        // After an unreadable statement reading goes on with the next line, so that every problem is found at once.
        let next = match statement(rest) {
            Ok((assignment, next)) => {
                found.extend(
                    assignment.map(|(name, value, expands)| Ok(Assignment { name, value, line, expands })),
                );
                next
            }
            Err(flaw) => {
                found.push(Err(Unreadable { line, flaw }));
                split_line(rest).1
            }
        };
        line += rest.get(..rest.len() - next.len()).unwrap_or_default().matches('\n').count();
        rest = next;
    }
    found
}

/// First line of `text` without its end, and what follows.
fn split_line(text: &str) -> (&str, &str) {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    (line.strip_suffix('\r').unwrap_or(line), rest)
}

type Statement<'a> = Option<(&'a str, Zeroizing<String>, bool)>;

/// The statement at the start of `text`, which is the start of a line, and the text from the next line on.
fn statement(text: &str) -> Result<(Statement<'_>, &str), Flaw> {
    let (line, next) = split_line(text);
    let trimmed = line.trim_start();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return Ok((None, next));
    }
    let trimmed = match trimmed.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => trimmed,
    };
    let (name, value) = trimmed.split_once(['=', ':']).ok_or("this line has no `=`")?;
    let name = name.trim_end();
    let named = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !named {
        return Err("this line does not begin with a variable name".into());
    }
    let start = value.trim_start();
    match start.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            // Quoted values may go on after this line: continue in `text`, where `start` is a part of the first line.
            let begin = offset_in(text, start) + quote.len_utf8();
            let (value, expands, after) = quoted(text.get(begin..).unwrap_or_default(), quote)?;
            let (trailing, next) = split_line(after);
            let trailing = trailing.trim_start();
            if !trailing.is_empty() && !trailing.starts_with('#') {
                return Err("text follows the closing quote (is a quote missing, or one too many?)".into());
            }
            Ok((Some((name, value, expands)), next))
        }
        _ => {
            let value = unquoted(value);
            Ok((Some((name, Zeroizing::new(value.to_owned()), expands(value))), next))
        }
    }
}

/// Where `part`, a slice of `whole`, begins in it.
fn offset_in(whole: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// An unquoted value: up to a comment that begins the value's line or follows white space.
fn unquoted(text: &str) -> &str {
    let mut before = ' ';
    let comment = text.char_indices().find(|(index, c)| {
        let starts = *c == '#' && before.is_whitespace() && *index > 0;
        before = *c;
        starts
    });
    text.get(..comment.map_or(text.len(), |(index, _)| index)).unwrap_or_default().trim()
}

/// Whether compose would replace something in an unquoted value.
fn expands(value: &str) -> bool {
    let next = |index: usize| value.get(index + 1..).and_then(|rest| rest.chars().next());
    value.match_indices('$').any(|(index, _)| next(index).is_some_and(begins_name))
}

/// What follows the `$` of a variable.
fn begins_name(c: char) -> bool {
    c == '{' || c == '_' || c.is_ascii_alphabetic()
}

/// The value up to the closing `quote`, whether compose would replace something in it, and the text after the quote.
fn quoted(text: &str, quote: char) -> Result<(Zeroizing<String>, bool, &str), Flaw> {
    // Resolving never lengthens, so the buffer never moves and leaves no copy behind.
    let mut value = Zeroizing::new(String::with_capacity(text.len()));
    let mut expands = false;
    let mut chars = text.char_indices().peekable();
    while let Some((index, c)) = chars.next() {
        let following = chars.peek().map(|(_, c)| *c);
        if c == quote {
            return Ok((value, expands, text.get(index + c.len_utf8()..).unwrap_or_default()));
        }
        match (c, following) {
            ('\\', Some(escaped)) => {
                if let Some(resolved) = escape(escaped, quote) {
                    value.push(resolved);
                } else {
                    value.push('\\');
                    value.push(escaped);
                }
                chars.next();
            }
            ('\r', Some('\n')) => {}
            _ => {
                expands |= quote == '"' && c == '$' && following.is_some_and(begins_name);
                value.push(c);
            }
        }
    }
    Err("a quote is opened and never closed".into())
}

/// What `\` and `escaped` stand for inside `quote`; `None` when the backslash is an ordinary character.
fn escape(escaped: char, quote: char) -> Option<char> {
    match (escaped, quote) {
        (c, _) if c == quote => Some(c),
        ('\\' | '$', '"') => Some(escaped),
        ('n', '"') => Some('\n'),
        ('r', '"') => Some('\r'),
        ('t', '"') => Some('\t'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name=value` per assignment, `line: flaw` per unreadable line.
    fn lines(text: &str) -> Vec<String> {
        let show = |found: Result<Assignment<'_>, Unreadable>| match found {
            Ok(a) => format!("{}: {}={}", a.line, a.name, a.value.as_str()),
            Err(u) => format!("{}! {}", u.line, u.flaw),
        };
        read(text).into_iter().map(show).collect()
    }

    #[test]
    fn value_is_read_as_compose_reads_it() {
        let cases = [
            ("A=b", "b"),
            ("  A =  b  ", "b"),
            ("export A=b", "b"),
            ("export\tA=b", "b"),
            ("A: b", "b"),
            ("A=b # comment", "b"),
            ("A=b\t# comment", "b"),
            ("A=b#c", "b#c"),
            ("A=#c", "#c"),
            ("A= # comment", ""),
            ("A=", ""),
            ("A=\"\"", ""),
            ("A=b c", "b c"),
            ("A=\"b\" # comment", "b"),
            ("A=\"b\"# comment", "b"),
            ("A=\"b # c\"", "b # c"),
            ("A = \" b \"", " b "),
            ("A='b'", "b"),
            (r#"A="b\"c""#, "b\"c"),
            (r#"A="b\\c\n\t\$d\q""#, "b\\c\n\t$d\\q"),
            (r"A='b\n\\c\'d'", r"b\n\\c'd"),
            ("A=\"b\r\nc\"", "b\nc"),
            ("A=b=c:d", "b=c:d"),
            ("A=it's", "it's"),
            ("exportA=b", "b"),
        ];
        for (text, expected) in cases {
            let found = read(text);
            assert_eq!(found.len(), 1, "{text}");
            let assignment = found.into_iter().next().unwrap().map_err(|u| u.flaw).unwrap();
            assert_eq!(assignment.value.as_str(), expected, "{text}");
        }
    }

    #[test]
    fn lines_end_in_lf_or_crlf_and_are_counted_across_quotes() {
        let text = "\u{feff}# c\r\nA=1\r\n\r\nB=\"x\ny\" # two lines\nC=3";
        assert_eq!(lines(text), ["2: A=1", "4: B=x\ny", "6: C=3"]);
    }

    #[test]
    fn unreadable_lines_are_each_reported_and_reading_goes_on() {
        let text = "A=1\nhalf of a secret\n=x\n1A=x\nA B=x\nC=\"open\nD=4\nE='a'b\nF=6";
        assert_eq!(
            lines(text),
            [
                "1: A=1",
                "2! this line has no `=`",
                "3! this line does not begin with a variable name",
                "4! this line does not begin with a variable name",
                "5! this line does not begin with a variable name",
                "6! a quote is opened and never closed",
                "7: D=4",
                "8! text follows the closing quote (is a quote missing, or one too many?)",
                "9: F=6",
            ]
        );
    }

    #[test]
    fn variables_that_compose_would_replace_are_noticed() {
        for (text, expected) in [
            ("A=$B", true),
            ("A=${B}", true),
            ("A=\"x$B\"", true),
            ("A='$B'", false),
            ("A=\"\\$B\"", false),
            ("A=$", false),
            ("A=5$ x", false),
            ("A=a$1", false),
        ] {
            let found = read(text).into_iter().next().unwrap().map_err(|u| u.flaw).unwrap();
            assert_eq!(found.expands, expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_panic_and_lines_ascend(text in "[A-Z=:'\"\\\\#$ \r\n\té]{0,80}") {
            let total = text.matches('\n').count() + 1;
            let mut last = 0;
            for found in read(&text) {
                let line = match found { Ok(a) => a.line, Err(u) => u.line };
                proptest::prop_assert!(line > last && line <= total);
                last = line;
            }
        }

        #[test]
        fn any_value_survives_quoting(value in "\\PC{0,40}") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
            let text = format!("A=\"{escaped}\" # comment\n");
            let found = read(&text).into_iter().next().unwrap().map_err(|u| u.flaw).unwrap();
            proptest::prop_assert_eq!(found.value.as_str(), value.as_str());
            proptest::prop_assert!(!found.expands);
        }
    }
}
