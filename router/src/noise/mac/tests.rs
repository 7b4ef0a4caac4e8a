use rand::SeedableRng;
use rand::rngs::StdRng;

use std::net::SocketAddr;

use super::*;
use crate::wire::Type;

const KEY: [u8; 32] = [1; 32];
const INDEX: u32 = 0x0102_0304;

fn sent(cookie: Option<&Cookie>) -> Vec<u8> {
    let mut datagram = vec![7; 40];
    append(&KEY, cookie, &mut datagram);
    datagram
}

fn from(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn reply_to(
    jar: &mut CookieJar,
    datagram: &[u8],
    from: SocketAddr,
    rng: &mut StdRng,
    now: Instant,
) -> Vec<u8> {
    let header = Header {
        kind: Type::Cookie,
        lane: 0,
        receiver: INDEX,
        counter: 0,
    };
    jar.reply(
        &KEY,
        &check(&KEY, datagram).unwrap(),
        header,
        from,
        rng,
        now,
    )
}

#[test]
fn a_mac_covers_everything_before_it() {
    let datagram = sent(None);
    assert_eq!(datagram.len(), 40 + MACS);
    assert!(check(&KEY, &datagram).unwrap().without_cookie());
    assert_eq!(check(&[2; 32], &datagram).unwrap_err(), Drop::BadHandshake);
    for bit in 0..(40 + MAC) * 8 {
        let mut changed = datagram.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(check(&KEY, &changed).unwrap_err(), Drop::BadHandshake);
    }
    for length in 0..datagram.len() {
        assert!(check(&KEY, &datagram[..length]).is_err());
    }
}

#[test]
fn a_cookie_proves_one_address() {
    let rng = &mut StdRng::from_seed([3; 32]);
    let now = Instant::now();
    let mut jar = CookieJar::new(rng, now);
    let mut datagram = sent(None);
    let here = from("192.0.2.1:6783");
    let reply = reply_to(&mut jar, &datagram, here, rng, now);
    assert_eq!(reply.len(), REPLY);
    let cookie = open_reply(&KEY, check(&KEY, &datagram).unwrap().mac1, &reply).unwrap();

    assert!(!jar.proves(&check(&KEY, &datagram).unwrap(), here, rng, now));
    set_cookie(&cookie, &mut datagram);
    assert_eq!(datagram, sent(Some(&cookie)));
    let checked = check(&KEY, &datagram).unwrap();
    assert!(jar.proves(&checked, here, rng, now));
    assert!(jar.proves(&checked, from("[::ffff:192.0.2.1]:6783"), rng, now));
    assert!(!jar.proves(&checked, from("192.0.2.1:6784"), rng, now));
    assert!(!jar.proves(&checked, from("192.0.2.2:6783"), rng, now));
}

#[test]
fn a_cookie_goes_stale() {
    let rng = &mut StdRng::from_seed([3; 32]);
    let now = Instant::now();
    let mut jar = CookieJar::new(rng, now);
    let here = from("192.0.2.1:6783");
    let bare = sent(None);
    let reply = reply_to(&mut jar, &bare, here, rng, now);
    let cookie = open_reply(&KEY, check(&KEY, &bare).unwrap().mac1, &reply).unwrap();
    let datagram = sent(Some(&cookie));
    let checked = check(&KEY, &datagram).unwrap();
    assert!(jar.proves(&checked, here, rng, now + COOKIE_LIFE));
    assert!(!jar.proves(&checked, here, rng, now + 2 * COOKIE_LIFE));
}

#[test]
fn a_reply_answers_one_datagram() {
    let rng = &mut StdRng::from_seed([3; 32]);
    let now = Instant::now();
    let mut jar = CookieJar::new(rng, now);
    let datagram = sent(None);
    let reply = reply_to(&mut jar, &datagram, from("192.0.2.1:1"), rng, now);
    let mac1 = *check(&KEY, &datagram).unwrap().mac1;
    assert!(open_reply(&KEY, &mac1, &reply).is_ok());
    assert_eq!(open_reply(&KEY, &[0; MAC], &reply), Err(Drop::BadHandshake));
    assert_eq!(open_reply(&[9; 32], &mac1, &reply), Err(Drop::BadHandshake));
    for bit in 0..REPLY * 8 {
        let mut changed = reply.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(open_reply(&KEY, &mac1, &changed), Err(Drop::BadHandshake));
    }
}
