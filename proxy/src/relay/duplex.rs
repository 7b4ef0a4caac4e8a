//! The two directions of a connection, each of which ends by itself.
//!
//! When one side sends its end, what it sent before has to arrive, and then the end; the other direction goes on
//! (RFC 9293 section 3.6). The connection is over when both have ended.

/// One of the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// From the client to the endpoint.
    Up,
    /// From the endpoint to the client.
    Down,
}

impl Way {
    pub(super) const BOTH: [Self; 2] = [Self::Up, Self::Down];
}

/// What has to be done when a direction has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Tell the receiver that nothing more comes.
    Shut,
    /// Close both sides.
    Close,
}

/// Which directions have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Duplex {
    up: bool,
    down: bool,
    first: Option<Way>,
}

impl Duplex {
    /// Whether a direction has ended.
    pub(super) const fn has_ended(self, way: Way) -> bool {
        match way {
            Way::Up => self.up,
            Way::Down => self.down,
        }
    }

    /// All that was sent in a direction has been given on, and its end was seen.
    pub(super) const fn end(&mut self, way: Way) -> Then {
        match way {
            Way::Up => self.up = true,
            Way::Down => self.down = true,
        }
        if self.first.is_none() {
            self.first = Some(way);
        }
        if self.up && self.down {
            Then::Close
        } else {
            Then::Shut
        }
    }

    /// Which has ended first, if any has.
    pub(super) const fn first(self) -> Option<Way> {
        self.first
    }

    /// Somebody else is at the end of the direction, who was not told that it has ended. It has to be the only one.
    pub(super) const fn reopen(&mut self, way: Way) {
        match way {
            Way::Up => self.up = false,
            Way::Down => self.down = false,
        }
        self.first = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_both_have_ended_in_either_order() {
        for first in Way::BOTH {
            let mut duplex = Duplex::default();
            assert_eq!(duplex.end(first), Then::Shut);
            let other = if first == Way::Up { Way::Down } else { Way::Up };
            assert!(duplex.has_ended(first) && !duplex.has_ended(other));
            assert_eq!(duplex.end(other), Then::Close);
            assert_eq!(duplex.first(), Some(first));
        }
    }

    #[test]
    fn an_end_can_be_told_to_somebody_else() {
        let mut duplex = Duplex::default();
        duplex.end(Way::Up);
        duplex.reopen(Way::Up);
        assert_eq!(duplex, Duplex::default());
        assert_eq!(duplex.end(Way::Up), Then::Shut);
    }
}
