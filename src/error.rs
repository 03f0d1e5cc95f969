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
}
