use super::*;
use data_encoding::HEXLOWER;
use rand::SeedableRng;
use rand::rngs::StdRng;

fn unhex<const N: usize>(text: &str) -> [u8; N] {
    HEXLOWER
        .decode(text.as_bytes())
        .unwrap()
        .try_into()
        .unwrap()
}

/// RFC 5869, test case 3: SHA-256, no salt, no info (the first 32 of its 42 bytes).
#[test]
fn hkdf_is_rfc_5869s() {
    let out = derive(&[0x0b; 22], &[]);
    assert_eq!(
        *out,
        unhex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d")
    );
}

/// RFC 7748 section 6.1, Alice's keys; RFC 8032 section 7.1, test 2.
#[test]
fn public_keys_and_signatures_are_the_rfcs() {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&unhex::<32>(
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
    ));
    bytes[32..].copy_from_slice(&unhex::<32>(
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    ));
    let keys = NodeKeys::from_bytes(&bytes);
    let dh = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
    let sign = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
    assert_eq!(
        keys.public(),
        NodePublic {
            dh: unhex(dh),
            sign: unhex(sign)
        }
    );
    let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                     085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
    assert_eq!(keys.sign(&[0x72]), unhex(signature));
    assert!(keys.public().verify(&[0x72], &unhex(signature)));
    assert!(!keys.public().verify(&[0x73], &unhex(signature)));
}

#[test]
fn keys_come_back_from_disk() {
    let keys = NodeKeys::generate(&mut StdRng::from_seed([7; 32]));
    assert_eq!(
        *NodeKeys::from_bytes(&keys.to_bytes()).to_bytes(),
        *keys.to_bytes()
    );
    assert_eq!(NodeKeys::from_bytes(&keys.to_bytes()).id(), keys.id());
}

/// An Ed25519 key of small order verifies a signature over anything, if one lets it.
#[test]
fn a_weak_signing_key_is_refused() {
    let mut weak = NodePublic {
        dh: [0; 32],
        sign: [0; 32],
    };
    weak.sign[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    assert!(!weak.verify(b"anything", &signature));
}

#[test]
fn every_purpose_and_every_pair_has_its_own_key() {
    let secret = ClusterSecret {
        epoch: 1,
        bytes: [9; 32],
    };
    let [a, b] = [[1; 32], [2; 32]].map(NodeId::from_bytes);
    let keys = [
        secret.psk(&a, &b),
        secret.psk(&b, &a),
        secret.mac_key(&a),
        secret.mac_key(&b),
        secret.cookie_key(&a),
    ];
    let distinct: std::collections::BTreeSet<_> = keys.iter().map(|key| **key).collect();
    assert_eq!(distinct.len(), keys.len());
}

/// Compiles only while every type that holds a private key wipes itself.
#[test]
fn private_keys_are_wiped() {
    const fn wiped<T: ZeroizeOnDrop>() {}
    wiped::<NodeKeys>();
    wiped::<ClusterSecret>();
    wiped::<StaticSecret>();
    wiped::<SigningKey>();
    wiped::<Zeroizing<[u8; 32]>>();
}
