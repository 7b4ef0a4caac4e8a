//! Makes a story that breaks a promise shorter: fewer events, as long as the same kind of promise breaks.
//!
//! First all that comes after the break goes, then halves, quarters and so on of what is left, and in the end single
//! events (Zeller's delta debugging, without its complements: stories are short).

use crate::play::{Failure, play};
use crate::story::Story;

/// The shortest story that was found within so many runs, and what breaks in it.
pub fn shrink(story: &Story, failure: &Failure, runs: usize) -> (Story, Failure) {
    let (mut best, mut broken) = (story.clone(), failure.clone());
    let mut left = runs;
    let mut try_it = |story: Story, best: &mut Story, broken: &mut Failure| {
        if left == 0 || story == *best {
            return false;
        }
        left -= 1;
        match play(&story) {
            Err(failure) if failure.kind() == broken.kind() => {
                (*best, *broken) = (story, failure);
                true
            }
            _ => false,
        }
    };
    let mut early = best.clone();
    early.acts.retain(|(_, at, _)| *at <= failure.at);
    early.time = early.time.min(failure.at);
    try_it(early, &mut best, &mut broken);
    let mut size = best.acts.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < best.acts.len() {
            let mut shorter = best.clone();
            let end = (at + size).min(shorter.acts.len());
            shorter.acts.drain(at..end);
            if !try_it(shorter, &mut best, &mut broken) {
                at += size;
            }
        }
        if size == 1 {
            return (best, broken);
        }
        size = size.div_ceil(2);
    }
}
