//! Which counters were seen: a sliding window of 8,192, as wide as reordering gets at 10 Gbit/s.
//!
//! RFC 6479's idea: a ring of words, in which moving forward clears whole words instead of shifting bits. The ring has
//! one word more than the window, so that the word being entered never overlaps the oldest one still in use.

#![deny(clippy::disallowed_methods)]

use weave_model::Drop;

const WORDS: usize = 129;

/// The counters accepted so far on one lane of a session.
///
/// Two steps, since a forged packet must not move the window: [`ReplayWindow::check`] before the packet is opened,
/// [`ReplayWindow::commit`] after it proved authentic.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The lowest counter that is too high for every packet accepted so far: the newest plus one, or 0.
    next: u64,
    /// Counters from here on are beyond what the keys may seal.
    limit: u64,
    words: [u64; WORDS],
}

impl ReplayWindow {
    /// How far behind the newest counter a packet may still arrive.
    pub const SIZE: u64 = 8192;

    /// An empty window that refuses counters from `limit` on.
    pub const fn new(limit: u64) -> Self {
        Self {
            next: 0,
            limit,
            words: [0; WORDS],
        }
    }

    /// One past the newest counter; 0 before the first packet.
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Whether a packet with this counter would be accepted if it is authentic.
    ///
    /// # Errors
    /// [`Drop::Replay`] if it was seen or lies behind the window, [`Drop::Expired`] from the limit on.
    #[inline]
    pub const fn check(&self, counter: u64) -> Result<(), Drop> {
        if counter >= self.limit {
            return Err(Drop::Expired);
        }
        if counter >= self.next {
            return Ok(());
        }
        if self.next - counter > Self::SIZE {
            return Err(Drop::Replay);
        }
        let (word, bit) = place(counter);
        if self.words[word] & bit == 0 {
            Ok(())
        } else {
            Err(Drop::Replay)
        }
    }

    /// Marks a counter that [`ReplayWindow::check`] passed as seen. Returns whether it is the newest so far.
    #[inline]
    pub fn commit(&mut self, counter: u64) -> bool {
        let newest = counter >= self.next;
        if newest {
            self.advance(counter);
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
        newest
    }

    fn advance(&mut self, counter: u64) {
        let entered = counter / 64;
        // The words after the one that holds the newest counter so far; all of them after a jump.
        let fresh = self
            .next
            .div_ceil(64)
            .max(entered.saturating_sub(WORDS as u64 - 1));
        for word in fresh..=entered {
            self.words[(word % WORDS as u64) as usize] = 0;
        }
        self.next = counter + 1;
    }
}

#[inline]
const fn place(counter: u64) -> (usize, u64) {
    ((counter / 64 % WORDS as u64) as usize, 1 << (counter % 64))
}
