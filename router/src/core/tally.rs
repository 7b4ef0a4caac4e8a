//! What the core counts for who watches: messages between members, and how long handshakes and the spreading of news took.

use std::time::Instant;

use weave_model::Durations;

use crate::mesh::message::Message;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum About {
    /// Whether and where the other one is there, and the answer.
    Ping,
    /// A member's signed record, or its removal.
    Record,
    /// What a member tells of its containers and Services.
    Sheet,
    /// What the other one has of either, so that it gets what it lacks.
    Comparison,
    /// That something came.
    Ack,
    /// Whom a member reaches, and how well.
    Links,
    /// Addresses that are asked for, given, and inquired after.
    Addresses,
    /// Secrets and offices of the cluster.
    Authority,
}

impl About {
    /// All there are, in order.
    pub const ALL: [Self; 8] = [
        Self::Ping,
        Self::Record,
        Self::Sheet,
        Self::Comparison,
        Self::Ack,
        Self::Links,
        Self::Addresses,
        Self::Authority,
    ];

    /// The word that is the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Record => "record",
            Self::Sheet => "sheet",
            Self::Comparison => "comparison",
            Self::Ack => "ack",
            Self::Links => "links",
            Self::Addresses => "addresses",
            Self::Authority => "authority",
        }
    }

    /// What a message is about; nothing for a part, of which the whole is.
    pub(super) const fn of(message: &Message) -> Option<Self> {
        Some(match message {
            Message::Part { .. } => return None,
            Message::Ping { .. } | Message::Pong { .. } => Self::Ping,
            Message::Record(_) => Self::Record,
            Message::Sheet(_) => Self::Sheet,
            Message::Digest { .. }
            | Message::Summary { .. }
            | Message::SheetDigest { .. }
            | Message::SheetSummary { .. } => Self::Comparison,
            Message::RecordAcks(_) | Message::SheetAcks(_) | Message::LinksAck { .. } => Self::Ack,
            Message::Links { .. } => Self::Links,
            Message::DeedRequest { .. }
            | Message::DeedGrant(_)
            | Message::DeedAck { .. }
            | Message::DeedRefusal { .. }
            | Message::DeedInquiry { .. }
            | Message::DeedTestimony(_) => Self::Addresses,
            Message::Secret(_) | Message::Office(_) => Self::Authority,
        })
    }
}

/// How many messages were left because there were too many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Who sent it asks for more than members need.
    pub by_sender: u64,
    /// Whose record or sheet it is says more of itself than members need.
    pub by_owner: u64,
}

/// All that is counted, since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    sent: [u64; About::ALL.len()],
    received: [u64; About::ALL.len()],
    /// What was left.
    pub left: Left,
    /// How long handshakes took that this node began, from the message that was answered to the keys.
    pub handshakes: Durations,
    /// How long it took until every member with a session had this node's new record.
    pub spread: Durations,
    /// How many deeds members told of that they did not prove, when they were asked about another one's.
    pub unproven: u64,
    spreading: Option<Instant>,
}

impl Tally {
    /// How many messages were sent and received, by what they are about.
    pub fn messages(&self) -> impl Iterator<Item = (About, u64, u64)> + '_ {
        let counts = self.sent.iter().zip(&self.received);
        let all = About::ALL.into_iter().zip(counts);
        all.map(|(about, (sent, received))| (about, *sent, *received))
    }

    pub(super) fn sent(&mut self, message: &Message) {
        if let Some(about) = About::of(message) {
            self.sent[about as usize] += 1;
        }
    }

    pub(super) fn received(&mut self, message: &Message) {
        if let Some(about) = About::of(message) {
            self.received[about as usize] += 1;
        }
    }

    /// There is news of this node that some member lacks.
    pub(super) fn news(&mut self, now: Instant) {
        self.spreading.get_or_insert(now);
    }

    /// Whether it waits to be told that everybody has the news.
    pub(super) const fn waits(&self) -> bool {
        self.spreading.is_some()
    }

    /// Everybody has them.
    pub(super) fn all_have(&mut self, now: Instant) {
        if let Some(since) = self.spreading.take() {
            self.spread.add(now.saturating_duration_since(since));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_are_counted_by_what_they_are_about_and_parts_are_not() {
        let mut tally = Tally::default();
        let part = Message::Part {
            transfer: 1,
            index: 0,
            count: 2,
            bytes: Vec::new(),
        };
        for message in [Message::Record(Vec::new()), part] {
            tally.sent(&message);
            tally.received(&message);
        }
        tally.sent(&Message::Ping {
            id: 1,
            alarm: false,
        });
        for (place, (about, sent, received)) in tally.messages().enumerate() {
            assert_eq!(about as usize, place);
            let expected = match about {
                About::Ping => (1, 0),
                About::Record => (1, 1),
                _ => (0, 0),
            };
            assert_eq!((sent, received), expected, "{}", about.name());
        }
    }

    #[test]
    fn news_that_came_meanwhile_count_from_the_first_on() {
        let (mut tally, start) = (Tally::default(), Instant::now());
        tally.all_have(start);
        assert_eq!(tally.spread.count(), 0, "there were no news");
        tally.news(start);
        tally.news(start + Duration::from_secs(1));
        assert!(tally.waits());
        tally.all_have(start + Duration::from_secs(3));
        assert!(!tally.waits());
        assert_eq!(tally.spread.sum(), Duration::from_secs(3));
    }
}
