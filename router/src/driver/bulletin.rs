//! What members tell each other when asked: one text for each member, opaque here, sent in parts over the sessions.
//!
//! A node posts what it has to tell; a member that wants to know asks, and is answered at once with the newest text. Nothing
//! is sent unasked, kept for a member that is gone, or sent again: what was lost comes with the next question. The text is
//! bounded ([`MAX_TEXT`]), and so is how often a member is answered ([`PAUSE`]).
//!
//! ```text
//! ask   kind u8, id u32, why u8                                  "tell me"; why: [`Why`]
//! part  kind u8, id u32, index u8, count u8, then the bytes      the answer to the question with that id
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weave_model::NodeId;

use crate::mesh::message::MAX_BODY;

/// The kind byte of a question.
pub(super) const ASK: u8 = 48;
/// The kind byte of a part of an answer.
pub(super) const PART: u8 = 49;

/// The longest text, in bytes. Its parts stay below what a member may send at once.
pub const MAX_TEXT: usize = 128 * 1024;

/// How long a member waits between two answers.
const PAUSE: Duration = Duration::from_millis(400);

const HEAD: usize = 7;
const ROOM: usize = MAX_BODY - HEAD;

/// Why a member asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Somebody looks there now. Byte 0.
    Watched,
    /// To remember how it was; what is known anyway will do. Byte 1.
    ForThePast,
}

impl Why {
    const fn byte(self) -> u8 {
        match self {
            Self::Watched => 0,
            Self::ForThePast => 1,
        }
    }

    /// Why a question was asked; what a later version may add is taken for the one that costs less.
    pub(super) const fn of(question: &[u8]) -> Self {
        match question {
            [.., 0] => Self::Watched,
            _ => Self::ForThePast,
        }
    }
}

/// What a member told, and when it came.
#[derive(Clone, Debug)]
pub struct Bulletin {
    /// When it was whole.
    pub at: Instant,
    /// The text.
    pub text: Arc<[u8]>,
}

/// All that members told.
pub type Bulletins = BTreeMap<NodeId, Bulletin>;

/// An answer that is not whole yet.
#[derive(Debug)]
struct Coming {
    id: u32,
    parts: Vec<Option<Vec<u8>>>,
}

/// What this node tells, and what it was told.
#[derive(Debug, Default)]
pub(super) struct Board {
    mine: Vec<u8>,
    last_id: u32,
    coming: BTreeMap<NodeId, Coming>,
    answered: BTreeMap<NodeId, Instant>,
}

impl Board {
    /// Takes what this node has to tell; what is too long is not told.
    pub(super) fn post(&mut self, text: Vec<u8>) {
        if text.len() <= MAX_TEXT {
            self.mine = text;
        }
    }

    /// The question to send to each of these members.
    pub(super) fn ask(&mut self, members: &[NodeId], why: Why) -> Vec<u8> {
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let coming = |member: &NodeId| {
            (
                *member,
                Coming {
                    id,
                    parts: Vec::new(),
                },
            )
        };
        self.coming = members.iter().map(coming).collect();
        self.answered.retain(|member, _| members.contains(member));
        [&[ASK], &id.to_be_bytes()[..], &[why.byte()]].concat()
    }

    /// The parts that answer a member's question; none if it asks too often or not properly.
    pub(super) fn answer(&mut self, peer: NodeId, body: &[u8], now: Instant) -> Vec<Vec<u8>> {
        let [ASK, a, b, c, d, _] = *body else {
            return Vec::new();
        };
        let soon = |at: &Instant| now.saturating_duration_since(*at) < PAUSE;
        if self.mine.is_empty() || self.answered.get(&peer).is_some_and(soon) {
            return Vec::new();
        }
        self.answered.insert(peer, now);
        let chunks = self.mine.chunks(ROOM);
        let count = chunks.len() as u8;
        let part = |(index, bytes): (usize, &[u8])| {
            [&[PART, a, b, c, d, index as u8, count][..], bytes].concat()
        };
        chunks.enumerate().map(part).collect()
    }

    /// Takes a part of the answer to the last question; the text, if that makes it whole.
    pub(super) fn take(&mut self, peer: NodeId, body: &[u8]) -> Option<Vec<u8>> {
        let ([PART, a, b, c, d, index, count], bytes) = body.split_first_chunk::<HEAD>()? else {
            return None;
        };
        let coming = self.coming.get_mut(&peer)?;
        let fits = coming.id == u32::from_be_bytes([*a, *b, *c, *d])
            && index < count
            && usize::from(*count) <= MAX_TEXT.div_ceil(ROOM);
        if !fits {
            return None;
        }
        if coming.parts.is_empty() {
            coming.parts = vec![None; usize::from(*count)];
        }
        *coming.parts.get_mut(usize::from(*index))? = Some(bytes.to_vec());
        if coming.parts.iter().any(Option::is_none) {
            return None;
        }
        let whole = self.coming.remove(&peer)?.parts;
        Some(whole.into_iter().flatten().flatten().collect())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: NodeId = NodeId::from_bytes([1; 32]);
    const TWO: NodeId = NodeId::from_bytes([2; 32]);

    #[test]
    fn a_long_text_is_told_whole() {
        let (mut one, mut two, now) = (Board::default(), Board::default(), Instant::now());
        let text: Vec<u8> = (0..MAX_TEXT as u32).map(|n| (n / 7) as u8).collect();
        two.post(text.clone());
        let question = one.ask(&[TWO], Why::Watched);
        let mut parts = two.answer(ONE, &question, now);
        assert!(parts.len() < 128 && parts.iter().all(|part| part.len() <= MAX_BODY));
        parts.reverse();
        let last = parts.pop().unwrap();
        assert!(parts.iter().all(|part| one.take(TWO, part).is_none()));
        assert_eq!(one.take(ONE, &last), None, "of somebody who was not asked");
        assert_eq!(one.take(TWO, &last), Some(text));
        assert_eq!(one.take(TWO, &last), None, "once");
    }

    #[test]
    fn who_asks_too_often_waits() {
        let (mut board, now) = (Board::default(), Instant::now());
        let question = board.ask(&[], Why::ForThePast);
        assert_eq!(Why::of(&question), Why::ForThePast);
        assert!(
            board.answer(ONE, &question, now).is_empty(),
            "nothing to tell"
        );
        board.post(b"text".to_vec());
        assert_eq!(board.answer(ONE, &question, now).len(), 1);
        assert!(board.answer(ONE, &question, now + PAUSE / 2).is_empty());
        assert_eq!(board.answer(ONE, &question, now + PAUSE).len(), 1);
        assert!(board.answer(TWO, &question[..3], now).is_empty());
        board.post(vec![0; MAX_TEXT + 1]);
        assert_eq!(board.mine, b"text");
    }

    #[test]
    fn an_answer_to_an_older_question_is_not_taken() {
        let (mut one, mut two, now) = (Board::default(), Board::default(), Instant::now());
        two.post(b"text".to_vec());
        let parts = two.answer(ONE, &one.ask(&[TWO], Why::Watched), now);
        one.ask(&[TWO], Why::Watched);
        assert_eq!(one.take(TWO, &parts[0]), None);
    }

    proptest! {
        #[test]
        fn junk_does_no_harm(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let mut board = Board::default();
            board.post(vec![1; 5000]);
            board.ask(&[ONE], Why::Watched);
            for mut body in bodies {
                board.answer(ONE, &body, Instant::now());
                if let [kind, _, _, _, id, ..] = &mut body[..] {
                    (*kind, *id) = (PART, 1);
                }
                board.take(ONE, &body);
                prop_assert!(board.coming.values().all(|coming| coming.parts.len() <= 255));
            }
        }
    }
}
