//! The packet ciphers: one key, one lane, one direction, through AWS-LC.
//!
//! A nonce is 4 zero bytes and the packet's counter, so a key is safe exactly as long as no counter is sealed twice with
//! it. Whoever seals takes counters from `Outbound::reserve` of the session; debug builds remember every
//! counter a key has sealed and stop at the first that comes again. AWS-LC wipes its key schedules when a key is dropped.

#![deny(clippy::disallowed_methods)]

use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use weave_model::{Drop, Suite};

use crate::wire::TAG;

/// A key that seals packets.
pub struct SealKey {
    key: LessSafeKey,
    #[cfg(any(test, debug_assertions))]
    spent: std::sync::Mutex<super::spent::Spent>,
}

impl SealKey {
    /// A key for one lane of one direction. No two may be made from the same bytes.
    pub fn new(suite: Suite, bytes: &[u8; 32]) -> Self {
        Self {
            key: expand(suite, bytes),
            #[cfg(any(test, debug_assertions))]
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

    #[cfg(any(test, debug_assertions))]
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

    #[cfg(not(any(test, debug_assertions)))]
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

#[cfg(test)]
mod tests {
    use chacha20poly1305::aead::{Aead, KeyInit, Payload};
    use proptest::prelude::*;

    use super::*;

    fn by_rustcrypto(
        suite: Suite,
        key: &[u8; 32],
        counter: u64,
        aad: &[u8],
        msg: &[u8],
    ) -> Vec<u8> {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        let payload = Payload { msg, aad };
        match suite {
            Suite::ChaCha20Poly1305 => chacha20poly1305::ChaCha20Poly1305::new(key.into())
                .encrypt(&nonce.into(), payload)
                .unwrap(),
            Suite::Aes256Gcm => aes_gcm::Aes256Gcm::new(key.into())
                .encrypt(&nonce.into(), payload)
                .unwrap(),
        }
    }

    fn suites() -> impl Strategy<Value = Suite> {
        prop_oneof![Just(Suite::ChaCha20Poly1305), Just(Suite::Aes256Gcm)]
    }

    proptest! {
        /// Both ways of sealing and of opening, against an implementation that shares no code.
        #[test]
        fn sealed_packets_are_what_rustcrypto_says(
            suite in suites(),
            key: [u8; 32],
            counter in 0..u64::MAX,
            aad: [u8; 16],
            body in prop::collection::vec(any::<u8>(), 0..2000),
            extra in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let plain = [&body[..], &extra].concat();
            let expected = by_rustcrypto(suite, &key, counter, &aad, &plain);

            let mut in_out = body.clone();
            let mut rest = vec![0; extra.len() + TAG];
            SealKey::new(suite, &key).seal(counter, &aad, &mut in_out, &extra, &mut rest);
            prop_assert_eq!(&[&in_out[..], &rest].concat(), &expected);

            let mut out = vec![0; body.len()];
            SealKey::new(suite, &key).seal_from(counter, &aad, &body, &extra, &mut out, &mut rest);
            prop_assert_eq!(&[&out[..], &rest].concat(), &expected);

            let open = OpenKey::new(suite, &key);
            let mut sealed = expected.clone();
            prop_assert_eq!(&*open.open(counter, &aad, &mut sealed).unwrap(), &plain[..]);
            let (ciphertext, tag) = expected.split_at(plain.len());
            let mut opened = vec![0; plain.len()];
            open.open_into(counter, &aad, ciphertext, tag, &mut opened).unwrap();
            prop_assert_eq!(&opened, &plain);

            let mut forged = expected.clone();
            forged[counter as usize % expected.len()] ^= 1;
            prop_assert_eq!(open.open(counter, &aad, &mut forged), Err(Drop::Forged));
            let mut sealed = expected;
            prop_assert_eq!(open.open(counter + 1, &aad, &mut sealed), Err(Drop::Forged));
        }
    }

    /// McGrew and Viega, "The Galois/Counter Mode of Operation", test cases 13 and 14: their nonce is our counter 0.
    #[test]
    fn aes_gcm_is_nists() {
        let seal = |body: &mut [u8]| {
            let mut tag = [0; TAG];
            SealKey::new(Suite::Aes256Gcm, &[0; 32]).seal(0, &[], body, &[], &mut tag);
            data_encoding::HEXLOWER.encode(&[&*body, &tag].concat())
        };
        assert_eq!(seal(&mut []), "530f8afbc74536b9a963b4f1c4cb738b");
        assert_eq!(
            seal(&mut [0; 16]),
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
        );
    }

    #[test]
    #[should_panic(expected = "counter 7 was sealed twice")]
    fn no_counter_is_sealed_twice() {
        let key = SealKey::new(Suite::ChaCha20Poly1305, &[1; 32]);
        for counter in [6, 7, 8, 7] {
            key.seal(counter, &[], &mut [], &[], &mut [0; TAG]);
        }
    }

    #[test]
    fn what_has_no_room_for_a_tag_is_too_short() {
        let key = OpenKey::new(Suite::ChaCha20Poly1305, &[1; 32]);
        assert_eq!(key.open(0, &[], &mut [0; TAG - 1]), Err(Drop::TooShort));
        assert_eq!(key.open(0, &[], &mut [0; TAG]), Err(Drop::Forged));
    }
}
