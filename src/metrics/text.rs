//! The text format of Prometheus, version 0.0.4: one line for what a name means, one for its type, one for each sample. Written
//! here: the libraries for it are registries that keep the values, and these are kept already.

use std::fmt::{Display, Write as _};
use std::time::{Duration, SystemTime};

use super::families::{FAMILIES, Facts, Family};
use crate::agent::status::unix_seconds;
use crate::mount::{READ_BOUNDS, Reads};

/// `Content-Type` of the text.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything.
pub(super) fn page(facts: &Facts<'_>) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        let mut samples = Samples { family, lines: String::new() };
        (family.read)(facts, &mut samples);
        if !samples.lines.is_empty() {
            let Family { name, kind, help, .. } = family;
            let kind = kind.name();
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            text.push_str(&samples.lines);
        }
    }
    text
}

/// Lines of one family.
pub(super) struct Samples<'a> {
    family: &'a Family,
    lines: String,
}

impl Samples<'_> {
    /// A sample with these values of the family's labels.
    pub(super) fn add(&mut self, labels: &[&str], value: impl Display) {
        let named: Vec<_> = self.family.labels.iter().copied().zip(labels.iter().copied()).collect();
        self.line("", &named, value);
    }

    /// A span of time.
    pub(super) fn seconds(&mut self, labels: &[&str], span: Duration) {
        self.add(labels, span.as_secs_f64());
    }

    /// A moment; nothing where there is none.
    pub(super) fn time(&mut self, labels: &[&str], at: Option<SystemTime>) {
        if let Some(at) = at {
            self.add(labels, unix_seconds(at));
        }
    }

    /// A histogram of reads.
    pub(super) fn reads(&mut self, data: &str, reads: &Reads) {
        let mut count = 0u64;
        for (bound, within) in READ_BOUNDS.iter().zip(reads.within) {
            count = count.saturating_add(within);
            let bound = Duration::from_micros(*bound).as_secs_f64().to_string();
            self.line("_bucket", &[("data", data), ("le", &bound)], count);
        }
        count = count.saturating_add(reads.longer);
        self.line("_bucket", &[("data", data), ("le", "+Inf")], count);
        self.line("_sum", &[("data", data)], reads.spent.as_secs_f64());
        self.line("_count", &[("data", data)], count);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escaped(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.lines, "{}{suffix}{labels} {value}", self.family.name);
    }
}

/// As the value of a label is written.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::agent::state::State;
    use crate::agent::status::Status;
    use crate::metrics::Kind;
    use crate::mount::Counts;

    fn told(status: &Status, mount: Counts) -> String {
        page(&Facts { status, mount })
    }

    #[test]
    fn names_and_units_keep_the_conventions() {
        let names: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), FAMILIES.len());
        for Family { name, kind, help, .. } in FAMILIES {
            assert!(name.starts_with("cai_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains(['\n', '\\', '|']), "{name}");
        }
    }

    #[test]
    fn state_is_one_of_all() {
        let text = told(&Status::new("m".into(), "/m".into(), Vec::new()), Counts::default());
        assert!(text.contains("# TYPE cai_state gauge\ncai_state{state=\"Starting\"} 1\n"), "{text}");
        assert_eq!(text.matches("\ncai_state{").count(), State::ALL.len(), "{text}");
        let ones = text.lines().filter(|line| line.starts_with("cai_state{") && line.ends_with(" 1"));
        assert_eq!(ones.count(), 1, "{text}");
    }

    #[test]
    fn label_cannot_leave_its_quotes() {
        let status = Status::new("a\"b\\c\nd".into(), "/m".into(), Vec::new());
        let text = told(&status, Counts::default());
        assert!(text.contains("cai_model_info{model=\"a\\\"b\\\\c\\nd\",revision=\"\"} 1\n"), "{text}");
    }

    #[test]
    fn buckets_add_up() {
        let mut mount = Counts::default();
        mount.local.within[0] = 2;
        mount.local.within[3] = 1;
        mount.local.longer = 4;
        mount.local.spent = Duration::from_millis(1500);
        let text = told(&Status::new("m".into(), "/m".into(), Vec::new()), mount);
        let line =
            |end: &str| assert!(text.contains(&format!("cai_mount_read_seconds{end}\n")), "{end}\n{text}");
        line("_bucket{data=\"local\",le=\"0.00005\"} 2");
        line("_bucket{data=\"local\",le=\"0.0005\"} 3");
        line("_bucket{data=\"local\",le=\"30\"} 3");
        line("_bucket{data=\"local\",le=\"+Inf\"} 7");
        line("_sum{data=\"local\"} 1.5");
        line("_count{data=\"local\"} 7");
    }
}
