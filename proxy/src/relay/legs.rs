//! What connections were made for whom, until somebody asks: who shows flows sees two connections where one was meant.

use std::sync::{Mutex, PoisonError};

use weave_model::Relayed;

/// The most that wait to be told; what comes then is counted only.
const MOST: usize = 16_384;

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Legs(Mutex<Made>);

/// Connections that the relay made, and how many more there was no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// As they were made.
    pub legs: Vec<Relayed>,
    /// How many are not told.
    pub lost: u64,
}

impl Legs {
    /// One was made.
    pub(super) fn add(&self, leg: Relayed) {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if made.legs.len() < MOST {
            made.legs.push(leg);
        } else {
            made.lost += 1;
        }
    }

    /// Those that were made since the last call.
    pub(super) fn take(&self) -> Made {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use weave_model::Protocol;

    use super::*;

    #[test]
    fn what_nobody_asks_for_is_bounded_and_counted() {
        let legs = Legs::default();
        let leg = Relayed {
            protocol: Protocol::Tcp,
            client: ([10, 32, 0, 2], 4000).into(),
            is_host: false,
            front: ([10, 96, 0, 1], 80).into(),
            from: ([10, 32, 0, 2], 10_240).into(),
            endpoint: ([10, 32, 0, 3], 8080).into(),
        };
        (0..MOST + 3).for_each(|_| legs.add(leg));
        let made = legs.take();
        assert_eq!((made.legs.len(), made.lost), (MOST, 3));
        assert_eq!(legs.take(), Made::default());
    }
}
