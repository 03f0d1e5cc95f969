//! How a failure is handled, as data.
//!
//! Every module has its own error enum; what all of them share is a [`Fault`]: the class that decides what the
//! agent does next, a stable code for people and tools to match on, and a hint that says what to do about it.

/// What kind of failure this is, which decides retry, exit status and what systemd does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// May succeed later without anybody changing anything: retry with backoff.
    Transient,
    /// A policy said no after a fresh handshake. Final until the operator changes the policy.
    Denied,
    /// Bytes are not what their authentication says they should be.
    Corrupt,
    /// The operator's input (configuration, arguments, the state of the host) must change first.
    Config,
    /// A defect in cai itself.
    Internal,
}

impl ErrorClass {
    /// Process exit status, from `sysexits.h`; listed in `RestartPreventExitStatus=` where a restart cannot help.
    pub const fn exit_code(self) -> u8 {
        match self {
            ErrorClass::Transient => 69,
            ErrorClass::Denied => 77,
            ErrorClass::Corrupt => 65,
            ErrorClass::Config => 78,
            ErrorClass::Internal => 70,
        }
    }
}

/// A failure the agent can act on and an operator can understand.
pub trait Fault: std::error::Error + Send + Sync + 'static {
    /// What kind of failure this is. Implementations match every variant by name, without `_`.
    fn class(&self) -> ErrorClass;

    /// Stable dotted code, `area.what`, such as `kbs.denied`. Never reused for something else.
    fn code(&self) -> &'static str;

    /// One sentence that tells the operator what to do.
    fn hint(&self) -> String;
}

impl<E: Fault> From<E> for Box<dyn Fault> {
    fn from(fault: E) -> Self {
        Box::new(fault)
    }
}

/// The whole cause chain on one line: `reading the config: no such file`.
///
/// Displays never contain their own source, so no cause is printed twice.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// A second since 1970 as people write it: `2026-11-22T09:51:24Z`.
pub fn utc(seconds: u64) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let (days, time) = (seconds / DAY, seconds % DAY);
    // Years counted from 1 March of year 0, so that the leap day is the last of its year; 719468 days before 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading the config")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn chain_names_every_cause_once() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "reading the config: disk on fire");
    }

    #[test]
    fn exit_codes_are_the_documented_sysexits() {
        use ErrorClass::*;
        let codes = [Transient, Denied, Corrupt, Config, Internal].map(ErrorClass::exit_code);
        assert_eq!(codes, [69, 77, 65, 78, 70]);
    }

    #[test]
    fn utc_of_known_instants_is_their_date() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_827_415, "2000-02-29T12:30:15Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_795_341_084, "2026-11-22T09:51:24Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(secs), text);
        }
    }
}
