//! Generators that take in fresh bytes.
//!
//! Pure code is given its generator, seeded once, so that it can be replayed. But the generator is memory: whoever has a
//! copy of it draws the same numbers. So the shell stirs in bytes of the kernel's source before it lets handshakes happen.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Goes on from what `rng` would have drawn next, exclusive or `fresh`: nobody can tell what comes who does not know both.
pub fn stir(rng: &mut StdRng, fresh: &[u8; 32]) {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed.iter_mut()
        .zip(fresh)
        .for_each(|(byte, fresh)| *byte ^= fresh);
    *rng = StdRng::from_seed(seed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_part_when_they_are_stirred() {
        let mut rngs: [StdRng; 3] = [1, 1, 2].map(|seed| StdRng::from_seed([seed; 32]));
        let [one, other, stranger] = &mut rngs;
        assert_eq!(one.next_u64(), other.next_u64());
        stir(one, &[5; 32]);
        stir(other, &[6; 32]);
        assert_ne!(one.next_u64(), other.next_u64());
        stir(stranger, &[5; 32]);
        assert_ne!(
            one.next_u64(),
            stranger.next_u64(),
            "what was before counts"
        );
    }
}
