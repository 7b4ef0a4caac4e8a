//! The packet ciphers: one key, one lane, one direction, through AWS-LC.
//!
//! A nonce is 4 zero bytes and the packet's counter, so a key is safe exactly as long as no counter is sealed twice with
//! it. Whoever seals takes counters from [`Outbound::reserve`](super::Outbound::reserve); debug builds remember every
//! counter a key has sealed and stop at the first that comes again. AWS-LC wipes its key schedules when a key is dropped.

#![deny(clippy::disallowed_methods)]

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use weave_model::{Drop, Suite};

use crate::wire::TAG;

/// A key that seals packets.
pub struct SealKey {
    key: LessSafeKey,
    #[cfg(debug_assertions)]
    spent: std::sync::Mutex<super::spent::Spent>,
}

impl SealKey {
    /// A key for one lane of one direction. No two may be made from the same bytes.
    pub fn new(suite: Suite, bytes: &[u8; 32]) -> Self {
        Self {
            key: expand(suite, bytes),
            #[cfg(debug_assertions)]
            spent: std::sync::Mutex::default(),
        }
    }

    /// Seals `in_out | extra_in` where it stands: `in_out` becomes ciphertext, the ciphertext of `extra_in` and the tag
    /// go to `extra_out_and_tag`.
    ///
    /// # Panics
    /// If `extra_out_and_tag` is not exactly `extra_in` and [`TAG`] long. In debug builds, if `counter` was sealed
    /// before.
    #[inline]
    pub fn seal(
        &self,
        counter: u64,
        aad: &[u8],
        in_out: &mut [u8],
        extra_in: &[u8],
        extra_out_and_tag: &mut [u8],
    ) {
        self.spend(counter);
        self.key
            .seal_in_place_scatter(
                nonce(counter),
                Aad::from(aad),
                in_out,
                extra_in,
                extra_out_and_tag,
            )
            .expect("the room for the tag is as long as documented");
    }

    /// Like [`SealKey::seal`], but reads `plain` and writes its ciphertext elsewhere.
    ///
    /// # Panics
    /// As [`SealKey::seal`], and if `out_ciphertext` is not as long as `plain`.
    #[inline]
    pub fn seal_from(
        &self,
        counter: u64,
        aad: &[u8],
        plain: &[u8],
        extra_in: &[u8],
        out_ciphertext: &mut [u8],
        extra_out_and_tag: &mut [u8],
    ) {
        self.spend(counter);
        let aad = Aad::from(aad);
        self.key
            .seal_out_of_place_scatter(
                nonce(counter),
                aad,
                plain,
                out_ciphertext,
                extra_in,
                extra_out_and_tag,
            )
            .expect("the buffers are as long as documented");
    }

    #[cfg(debug_assertions)]
    fn spend(&self, counter: u64) {
        let mut spent = self
            .spent
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        assert!(
            spent.insert(counter),
            "counter {counter} was sealed twice with one key"
        );
    }

    #[cfg(not(debug_assertions))]
    #[inline]
    const fn spend(&self, _counter: u64) {}
}

/// A key that opens packets.
pub struct OpenKey {
    key: LessSafeKey,
}

impl OpenKey {
    /// The counterpart of the [`SealKey`] made from the same bytes.
    pub fn new(suite: Suite, bytes: &[u8; 32]) -> Self {
        Self {
            key: expand(suite, bytes),
        }
    }

    /// Opens `in_out` (ciphertext and tag) where it stands and returns the plaintext in it.
    ///
    /// # Errors
    /// [`Drop::TooShort`] without room for a tag; [`Drop::Forged`] if the tag does not match, and then the content of
    /// `in_out` is unspecified.
    #[inline]
    pub fn open<'a>(
        &self,
        counter: u64,
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<&'a mut [u8], Drop> {
        if in_out.len() < TAG {
            return Err(Drop::TooShort);
        }
        self.key
            .open_in_place(nonce(counter), Aad::from(aad), in_out)
            .map_err(|_| Drop::Forged)
    }

    /// Like [`OpenKey::open`], but writes the plaintext to `out`.
    ///
    /// # Errors
    /// [`Drop::Forged`] if the tag does not match, and then the content of `out` is unspecified.
    ///
    /// # Panics
    /// If `out` is not as long as `ciphertext` or `tag` is not [`TAG`] long.
    #[inline]
    pub fn open_into(
        &self,
        counter: u64,
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> Result<(), Drop> {
        assert!(
            out.len() == ciphertext.len() && tag.len() == TAG,
            "the buffers are as long as documented"
        );
        self.key
            .open_separate_gather(nonce(counter), Aad::from(aad), ciphertext, tag, out)
            .map_err(|_| Drop::Forged)
    }
}

/// How many packets one key may seal: NIST's and RFC 9001's bounds, kept with room to spare.
///
/// AES-256-GCM: 2^26 packets of up to 9,000 bytes leave an attacker an advantage below 2^-57, the bound of RFC 9001
/// appendix B. ChaCha20-Poly1305 has no such bound below its 2^64 counters; 2^60 stays clear of their end.
pub const fn packet_limit(suite: Suite) -> u64 {
    match suite {
        Suite::ChaCha20Poly1305 => 1 << 60,
        Suite::Aes256Gcm => 1 << 26,
    }
}

fn expand(suite: Suite, bytes: &[u8; 32]) -> LessSafeKey {
    let algorithm = match suite {
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        Suite::Aes256Gcm => &AES_256_GCM,
    };
    LessSafeKey::new(UnboundKey::new(algorithm, bytes).expect("both suites have keys of 32 bytes"))
}

#[inline]
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
