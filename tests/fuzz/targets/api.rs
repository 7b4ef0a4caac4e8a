//! What callers of the node API send, and the words that people paste.

use std::fmt::Debug;
use std::net::SocketAddr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use weave_model::api::{AttachRequest, ExposeRequest, InitRequest, JoinRequest, TokenRequest};
use weave_model::{
    ContainerName, IfName, MAX_TOKEN_ADDRESSES, NetworkName, NodeName, Token, TokenId,
};

use super::Input;

/// A token that is read is written as it was; nothing in it is unbounded.
pub(super) fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match text.parse::<Token>() {
        Ok(token) => {
            assert!((1..=MAX_TOKEN_ADDRESSES).contains(&token.addresses.len()));
            assert_eq!(token.to_string(), text.trim());
        }
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}

pub(super) fn token_seeds() -> Vec<Vec<u8>> {
    let text = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|text| text.parse::<SocketAddr>());
        let token = Token {
            cluster: [1; 32],
            id: TokenId([2; 16]),
            secret: [3; 32],
            addresses: addresses
                .map(|address| address.expect("an address"))
                .collect(),
        };
        token.to_string().into_bytes()
    };
    vec![
        text(&["192.0.2.1:6783"]),
        text(&["[2001:db8::1]:6783", "192.0.2.1:1"]),
        b"weave2.AAAA".to_vec(),
    ]
}

/// The first byte chooses a call, the rest is its body: what is accepted is the same when written and read again, and
/// names in it are only names.
pub(super) fn bodies(data: &[u8]) {
    let mut input = Input(data);
    let (choice, body) = (input.u8() % 6, input.0);
    match choice {
        0 => again::<InitRequest>(body),
        1 => again::<TokenRequest>(body),
        2 => again::<JoinRequest>(body),
        3 => again::<ExposeRequest>(body),
        4 => again::<AttachRequest>(body),
        _ => names(body),
    }
}

fn again<R: DeserializeOwned + Serialize + PartialEq + Debug>(body: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<R>(body) {
        let written = serde_json::to_vec(&request).expect("it can be written");
        let read = serde_json::from_slice::<R>(&written).expect("and read again");
        assert_eq!(read, request);
    }
}

/// Names go into paths, device names and rules: no name may lead out of any.
fn names(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let safe = |name: &str, longest: usize| {
        assert_eq!(name, text, "nothing is trimmed or changed");
        assert!((1..=longest).contains(&name.len()));
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/')
        );
        assert!(name != "." && name != "..");
    };
    if let Ok(name) = text.parse::<NodeName>() {
        safe(name.as_str(), 63);
    }
    if let Ok(name) = text.parse::<NetworkName>() {
        safe(name.as_str(), 63);
    }
    if let Ok(name) = text.parse::<IfName>() {
        safe(name.as_str(), 15);
    }
    if let Ok(name) = text.parse::<ContainerName>() {
        safe(name.as_str(), 128);
    }
}

pub(super) fn bodies_seeds() -> Vec<Vec<u8>> {
    let bodies: [(u8, &str); 9] = [
        (0, r#"{"range":"10.32.0.0/12","range6":"fd00::/48"}"#),
        (0, "{}"),
        (1, r#"{"ttl_s":3600,"uses":1}"#),
        (2, r#"{"token":"weave1.AAAA"}"#),
        (3, r#"{"ip":"10.32.0.9"}"#),
        (
            4,
            r#"{"netns":"/run/netns/a","name":"a","ifname":"eth0","network":"default","ip":"10.32.0.9","mtu":1500}"#,
        ),
        (4, r#"{"netns":"1234","name":"a"}"#),
        (5, "web-1"),
        (5, "../../etc"),
    ];
    bodies
        .iter()
        .map(|(choice, body)| [&[*choice][..], body.as_bytes()].concat())
        .collect()
}
