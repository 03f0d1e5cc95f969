//! Words in lines of 80 columns, for what people read.

/// Columns of a terminal.
pub(super) const COLUMNS: usize = 80;

/// `text` in lines that begin at column `indent`, words kept whole; the first line has `first` in the space before it. A word that is
/// longer than a line stands alone, so that a path or a command's argument can be copied.
pub(super) fn wrapped(first: &str, indent: usize, text: &str) -> String {
    let mut lines = String::new();
    let mut line = format!("{first:<indent$}");
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push_str(line.trim_end());
            lines.push('\n');
            line = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push_str(line.trim_end());
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_kept_whole_and_lines_in_80_columns() {
        let text = wrapped("label", 8, &"word ".repeat(40));
        assert!(
            text.starts_with("label   word word")
                && text.lines().skip(1).all(|line| line.starts_with("        word"))
        );
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let long = "x".repeat(90);
        assert_eq!(wrapped("a", 2, &format!("b {long} c")), format!("a b\n  {long}\n  c\n"));
        assert_eq!(wrapped("a", 4, ""), "a\n");
    }
}
