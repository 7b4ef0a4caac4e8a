use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn keys(seed: u8) -> NodeKeys {
    NodeKeys::generate(&mut StdRng::from_seed([seed; 32]))
}

fn ticket(secret: u8) -> Ticket {
    Ticket {
        id: [5; 16],
        secret: Zeroizing::new([secret; 32]),
    }
}

/// The member, the stranger, and the proof between them.
fn met() -> (Joiner, Inviter, Vec<u8>) {
    let rng = &mut StdRng::from_seed([9; 32]);
    let joiner = Joiner::new(&keys(1), ticket(7), 77, rng);
    let ticket = ticket(7);
    let checked = mac::check(&ticket.mac_key(), joiner.hello()).unwrap();
    let proof = ClusterProof {
        cluster: [3; 32],
        signature: [4; 64],
        rest: vec![5; MAX_REST],
    };
    let (inviter, answer) = Inviter::accept(&keys(2), ticket, &checked, 88, &proof, rng).unwrap();
    (joiner, inviter, answer)
}

#[test]
fn a_stranger_with_a_token_comes_in() {
    let (mut joiner, mut inviter, answer) = met();
    assert_eq!(
        Hello::parse(joiner.hello()),
        Ok(Hello {
            token: [5; 16],
            index: 77
        })
    );
    assert!(answer.len() <= joiner.hello().len());
    let (proof, member) = joiner.handle_proof(&answer).unwrap();
    assert_eq!(
        proof,
        ClusterProof {
            cluster: [3; 32],
            signature: [4; 64],
            rest: vec![5; MAX_REST],
        }
    );
    assert_eq!(member, keys(2).public().dh);

    let request = joiner.request(b"my name is");
    for _ in 0..2 {
        let read = inviter.handle_request(&request).unwrap();
        assert_eq!(
            read,
            &Request {
                public: keys(1).public(),
                body: b"my name is".to_vec()
            }
        );
    }
    let grants = [b"come in".as_slice(), &[1; MAX_GRANT]].map(|body| inviter.grant(body).unwrap());
    assert_eq!(joiner.handle_grant(&grants[0]), Ok(b"come in".to_vec()));
    assert_eq!(joiner.handle_grant(&grants[1]), Ok(vec![1; MAX_GRANT]));
    assert_eq!(joiner.handle_grant(&grants[0]), Err(Drop::Replay));
    assert!(grants.iter().all(|grant| grant.len() <= MAX_DATAGRAM));
}

#[test]
fn the_longest_request_fits() {
    let (mut joiner, mut inviter, answer) = met();
    joiner.handle_proof(&answer).unwrap();
    let request = joiner.request(&[8; MAX_REQUEST]);
    assert_eq!(request.len(), MAX_DATAGRAM);
    assert_eq!(
        inviter.handle_request(&request).unwrap().body,
        [8; MAX_REQUEST]
    );
}

#[test]
fn without_the_secret_there_is_no_answer() {
    let joiner = Joiner::new(&keys(1), ticket(8), 77, &mut StdRng::from_seed([9; 32]));
    assert_eq!(
        mac::check(&ticket(7).mac_key(), joiner.hello()).unwrap_err(),
        Drop::BadHandshake
    );
}

/// Every bit of every message; the true message still works afterwards.
#[test]
fn no_bit_may_be_changed() {
    let (mut joiner, mut inviter, answer) = met();
    let flipped = |datagram: &[u8], bit: usize| {
        let mut datagram = datagram.to_vec();
        datagram[bit / 8] ^= 1 << (bit % 8);
        datagram
    };
    let hello = joiner.hello().to_vec();
    for bit in 0..(hello.len() - mac::MAC) * 8 {
        assert!(
            mac::check(&ticket(7).mac_key(), &flipped(&hello, bit)).is_err(),
            "bit {bit} of the hello"
        );
    }
    for bit in 0..(answer.len() - mac::MAC) * 8 {
        assert!(
            joiner.handle_proof(&flipped(&answer, bit)).is_err(),
            "bit {bit} of the proof"
        );
    }
    joiner.handle_proof(&answer).unwrap();
    let request = joiner.request(b"body");
    for bit in 0..(request.len() - mac::MAC) * 8 {
        assert!(
            inviter.handle_request(&flipped(&request, bit)).is_err(),
            "bit {bit} of the request"
        );
    }
    inviter.handle_request(&request).unwrap();
    let grant = inviter.grant(b"granted").unwrap();
    for bit in 0..grant.len() * 8 {
        assert!(
            joiner.handle_grant(&flipped(&grant, bit)).is_err(),
            "bit {bit} of the grant"
        );
    }
    assert_eq!(joiner.handle_grant(&grant), Ok(b"granted".to_vec()));
}

/// The MAC key is shared by everyone with the token, so the handshake itself must notice a change as well.
#[test]
fn a_holder_of_the_token_cannot_alter_anothers_handshake() {
    let (mut joiner, _, answer) = met();
    for at in [16, 40, 50, 100, answer.len() - MACS - 1] {
        let mut changed = answer[..answer.len() - MACS].to_vec();
        changed[at] ^= 1;
        mac::append(&ticket(7).mac_key(), None, &mut changed);
        assert_eq!(
            joiner.handle_proof(&changed),
            Err(Drop::BadHandshake),
            "byte {at}"
        );
    }
    joiner.handle_proof(&answer).unwrap();
}
