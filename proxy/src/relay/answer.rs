//! How long an endpoint takes to answer, without the time that its client takes to ask.
//!
//! One that speaks first is waited for since it took the connection; one that is asked, since the first bytes of the
//! question.

use std::time::{Duration, Instant};

/// The first answer of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Answer {
    /// There is no endpoint.
    #[default]
    Nobody,
    /// It has the connection since then, and nobody has said anything.
    Silent(Instant),
    /// It was asked then.
    Asked(Instant),
    /// It has answered.
    Given,
}

impl Answer {
    /// An endpoint took the connection.
    pub(super) const fn handle_connected(&mut self, now: Instant) {
        *self = Self::Silent(now);
    }

    /// Bytes of the client have reached it.
    pub(super) const fn handle_question(&mut self, now: Instant) {
        if let Self::Silent(_) = self {
            *self = Self::Asked(now);
        }
    }

    /// Bytes of the endpoint have reached the client; how long the first of them took.
    pub(super) fn handle_answer(&mut self, now: Instant) -> Option<Duration> {
        match std::mem::replace(self, Self::Given) {
            Self::Silent(since) | Self::Asked(since) => Some(now.saturating_duration_since(since)),
            Self::Nobody | Self::Given => None,
        }
    }

    /// The connection is over; how long an answer was waited for in vain.
    pub(super) fn handle_end(self, now: Instant) -> Option<Duration> {
        match self {
            Self::Asked(since) => Some(now.saturating_duration_since(since)),
            Self::Nobody | Self::Silent(_) | Self::Given => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_time_in_which_the_client_thinks_is_not_the_endpoints() {
        let (mut answer, start) = (Answer::default(), Instant::now());
        answer.handle_connected(start);
        answer.handle_question(start + 500 * MS);
        answer.handle_question(start + 502 * MS);
        assert_eq!(answer.handle_answer(start + 503 * MS), Some(3 * MS));
        answer.handle_question(start + 600 * MS);
        assert_eq!(answer.handle_answer(start + 700 * MS), None, "once");
    }

    #[test]
    fn one_that_speaks_first_is_waited_for_since_it_has_the_connection() {
        let (mut answer, start) = (Answer::default(), Instant::now());
        answer.handle_question(start);
        answer.handle_connected(start + MS);
        assert_eq!(answer.handle_answer(start + 3 * MS), Some(2 * MS));
    }

    #[test]
    fn a_question_without_an_answer_was_waited_for_until_the_end() {
        let (mut answer, start) = (Answer::default(), Instant::now());
        answer.handle_connected(start);
        assert_eq!(answer.handle_end(start + MS), None, "nobody asked");
        answer.handle_question(start + MS);
        assert_eq!(answer.handle_end(start + 3 * MS), Some(2 * MS));
        answer.handle_answer(start + 4 * MS);
        assert_eq!(answer.handle_end(start + 5 * MS), None);
    }
}
