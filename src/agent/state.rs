//! What the agent is doing, and which event takes it where.
//!
//! Pure: no clock, no I/O, no side effect. [`State::on`] is total over every pair of state and event, and the agent is its
//! only caller; every status text, D-Bus property, metric and log line derives from the result. The table is held against
//! the code by a test:
//!
//! ```text
//! state         event            next
//! Starting      AttestationBegun Attesting
//! Attesting     Attested         ReleasingKey
//! ReleasingKey  SessionLost      Attesting
//! ReleasingKey  KeyReleased      Fetching
//! Fetching      MetadataReady    Mounting
//! Mounting      Mounted          Serving
//! Serving       Impaired         Degraded
//! Degraded      Restored         Serving
//! any but Failed, Stopping: Failed -> Failed
//! any but Stopping: StopRequested -> Stopping
//! ```

use std::fmt;

/// State of the agent, as shown on D-Bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Configuration read, nothing asked of anybody yet.
    Starting,
    /// Collecting evidence and waiting for the verifier's answer.
    Attesting,
    /// Attested; waiting for the key.
    ReleasingKey,
    /// Listing the model and fetching what is needed before it can be shown.
    Fetching,
    /// Putting the mount in place.
    Mounting,
    /// The model can be read.
    Serving,
    /// The model can be read as far as it is here, but a source or the attestation is gone.
    Degraded,
    /// Something final went wrong: unmounted, keys wiped.
    Failed,
    /// Asked to stop.
    Stopping,
}

impl State {
    /// Every state.
    pub const ALL: [State; 9] = [
        State::Starting,
        State::Attesting,
        State::ReleasingKey,
        State::Fetching,
        State::Mounting,
        State::Serving,
        State::Degraded,
        State::Failed,
        State::Stopping,
    ];

    /// Name on D-Bus, in the journal and in `cai status`.
    pub const fn name(self) -> &'static str {
        match self {
            State::Starting => "Starting",
            State::Attesting => "Attesting",
            State::ReleasingKey => "ReleasingKey",
            State::Fetching => "Fetching",
            State::Mounting => "Mounting",
            State::Serving => "Serving",
            State::Degraded => "Degraded",
            State::Failed => "Failed",
            State::Stopping => "Stopping",
        }
    }

    /// Whether the mount can be read.
    pub const fn is_serving(self) -> bool {
        matches!(self, State::Serving | State::Degraded)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Illegal`] when the event has no meaning in this state; the agent treats that as its own defect.
    pub fn on(self, event: Event) -> Result<State, Illegal> {
        match (self, event) {
            (State::Starting, Event::AttestationBegun) => Ok(State::Attesting),
            (State::Attesting, Event::Attested) => Ok(State::ReleasingKey),
            (State::ReleasingKey, Event::SessionLost) => Ok(State::Attesting),
            (State::ReleasingKey, Event::KeyReleased) => Ok(State::Fetching),
            (State::Fetching, Event::MetadataReady) => Ok(State::Mounting),
            (State::Mounting, Event::Mounted) => Ok(State::Serving),
            (State::Serving, Event::Impaired) => Ok(State::Degraded),
            (State::Degraded, Event::Restored) => Ok(State::Serving),
            (from, Event::Failed) if !matches!(from, State::Failed | State::Stopping) => Ok(State::Failed),
            (from, Event::StopRequested) if from != State::Stopping => Ok(State::Stopping),
            (from, event) => Err(Illegal { from, event }),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A handshake with the key broker begins.
    AttestationBegun,
    /// The verifier accepted the evidence.
    Attested,
    /// The broker forgot the session before it gave the key.
    SessionLost,
    /// The key is here.
    KeyReleased,
    /// The tree is decrypted and, with `MODEL_WAIT=full`, every byte is here.
    MetadataReady,
    /// The mount answers.
    Mounted,
    /// Some ciphertext cannot be had at present, or the attestation could not be renewed.
    Impaired,
    /// Nothing is missing any more.
    Restored,
    /// A failure that ends the agent.
    Failed,
    /// SIGTERM, SIGINT.
    StopRequested,
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 10] = [
        Event::AttestationBegun,
        Event::Attested,
        Event::SessionLost,
        Event::KeyReleased,
        Event::MetadataReady,
        Event::Mounted,
        Event::Impaired,
        Event::Restored,
        Event::Failed,
        Event::StopRequested,
    ];
}

/// An event that has no meaning in a state: a defect of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event {event:?} in state {from}")]
pub struct Illegal {
    /// State at the time.
    pub from: State,
    /// What was applied.
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the table in the module's documentation.
    fn documented() -> Vec<(String, String, String)> {
        let source = include_str!("state.rs");
        let table = source.split("//! ```").nth(1).unwrap();
        table
            .lines()
            .filter_map(|line| line.strip_prefix("//! "))
            .filter(|line| !line.starts_with("state ") && !line.contains(':'))
            .filter_map(|line| {
                let mut words = line.split_whitespace().map(str::to_owned);
                Some((words.next()?, words.next()?, words.next()?))
            })
            .collect()
    }

    #[test]
    fn table_in_the_documentation_is_what_the_code_does() {
        let mut coded = Vec::new();
        for state in State::ALL {
            for event in Event::ALL {
                if matches!(event, Event::Failed | Event::StopRequested) {
                    continue;
                }
                if let Ok(next) = state.on(event) {
                    coded.push((state.name().to_owned(), format!("{event:?}"), next.name().to_owned()));
                }
            }
        }
        assert_eq!(documented(), coded);
    }

    #[test]
    fn failure_ends_in_failed_from_everywhere_but_the_end_states() {
        for state in State::ALL {
            let next = state.on(Event::Failed);
            match state {
                State::Failed | State::Stopping => assert!(next.is_err(), "{state}"),
                _ => assert_eq!(next, Ok(State::Failed), "{state}"),
            }
        }
    }

    #[test]
    fn stop_ends_in_stopping_from_everywhere_else() {
        for state in State::ALL {
            let next = state.on(Event::StopRequested);
            if state == State::Stopping {
                assert!(next.is_err());
            } else {
                assert_eq!(next, Ok(State::Stopping), "{state}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn random_walk_serves_only_after_attestation_and_key(walk in proptest::collection::vec(0..10usize, 0..200)) {
            let (mut state, mut attested, mut released) = (State::Starting, false, false);
            for event in walk.into_iter().map(|index| Event::ALL[index]) {
                let Ok(next) = state.on(event) else { continue };
                state = next;
                match event {
                    Event::Attested => attested = true,
                    Event::KeyReleased => released = attested,
                    Event::SessionLost => attested = false,
                    _ => {}
                }
                proptest::prop_assert!(!state.is_serving() || (attested && released));
            }
        }
    }
}
