//! Messages that are longer than a datagram: cut into parts, put together again.
//!
//! A transfer is named by the hash of its message, so that a message which is sent again needs only the parts that were
//! lost before: nothing has to be remembered by the sender, and nothing acknowledged part by part. The receiver keeps at
//! most [`MAX_OPEN`] incomplete messages of each peer; the oldest makes room.

use std::collections::{BTreeMap, VecDeque};

use blake2::{Blake2s256, Digest};
use weave_model::NodeId;

use super::message::{MAX_BODY, Message};

/// The most messages of one peer that may be incomplete.
pub const MAX_OPEN: usize = 8;
const MAX_PARTS: u8 = 192;
/// Kind, transfer, index, count.
const HEAD: usize = 7;

/// The control bodies that carry `message`: itself, or its parts. `None` if it is too long for either.
pub fn split(message: &[u8]) -> Option<Vec<Vec<u8>>> {
    if message.len() <= MAX_BODY {
        return Some(vec![message.to_vec()]);
    }
    let hash = Blake2s256::digest(message);
    let transfer = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    let pieces = message.chunks(MAX_BODY - HEAD);
    let count = u8::try_from(pieces.len())
        .ok()
        .filter(|count| *count <= MAX_PARTS)?;
    let part = |(index, bytes): (usize, &[u8])| {
        Message::Part {
            transfer,
            index: index as u8,
            count,
            bytes: bytes.to_vec(),
        }
        .encode()
    };
    Some(pieces.enumerate().map(part).collect())
}

#[derive(Debug)]
struct Open {
    transfer: u32,
    parts: Vec<Option<Vec<u8>>>,
}

/// The incomplete messages of all peers.
#[derive(Debug, Default)]
pub struct Parts(BTreeMap<NodeId, VecDeque<Open>>);

impl Parts {
    /// Takes a part; returns the message that it completes.
    pub fn take(
        &mut self,
        peer: NodeId,
        transfer: u32,
        index: u8,
        count: u8,
        bytes: Vec<u8>,
    ) -> Option<Vec<u8>> {
        if index >= count || count > MAX_PARTS || bytes.len() > MAX_BODY {
            return None;
        }
        let open = self.0.entry(peer).or_default();
        let at = open.iter().position(|open| open.transfer == transfer);
        let at = at.unwrap_or_else(|| {
            if open.len() == MAX_OPEN {
                open.pop_front();
            }
            open.push_back(Open {
                transfer,
                parts: vec![None; usize::from(count)],
            });
            open.len() - 1
        });
        *open[at].parts.get_mut(usize::from(index))? = Some(bytes);
        if open[at].parts.iter().any(Option::is_none) {
            return None;
        }
        let done = open.remove(at)?;
        Some(done.parts.into_iter().flatten().flatten().collect())
    }

    /// Forgets a peer's parts.
    pub fn forget(&mut self, peer: NodeId) {
        self.0.remove(&peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::from_bytes([1; 32]);

    fn take(parts: &mut Parts, body: &[u8]) -> Option<Vec<u8>> {
        match Message::decode(body).unwrap().unwrap() {
            Message::Part {
                transfer,
                index,
                count,
                bytes,
            } => parts.take(PEER, transfer, index, count, bytes),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_short_message_travels_whole() {
        assert_eq!(split(&[7; MAX_BODY]), Some(vec![vec![7; MAX_BODY]]));
        assert_eq!(split(&vec![7; MAX_BODY * 256]), None);
    }

    #[test]
    fn lost_parts_come_with_the_next_try() {
        let message: Vec<u8> = (0..3000_u32).map(|n| n as u8).collect();
        let bodies = split(&message).unwrap();
        assert!(bodies.len() == 3 && bodies.iter().all(|body| body.len() <= MAX_BODY));
        let mut parts = Parts::default();
        assert_eq!(take(&mut parts, &bodies[2]), None);
        assert_eq!(take(&mut parts, &bodies[2]), None);
        assert_eq!(take(&mut parts, &bodies[0]), None);
        assert_eq!(
            take(&mut parts, &split(&message).unwrap()[1]),
            Some(message)
        );
        assert!(parts.0[&PEER].is_empty());
    }

    #[test]
    fn a_peer_cannot_fill_the_memory() {
        let mut parts = Parts::default();
        for transfer in 0..1000 {
            assert_eq!(
                parts.take(PEER, transfer, 0, MAX_PARTS, vec![0; MAX_BODY]),
                None
            );
        }
        assert_eq!(parts.0[&PEER].len(), MAX_OPEN);
        assert_eq!(parts.take(PEER, 1, 5, 5, vec![]), None);
        assert_eq!(parts.take(PEER, 999, 200, 255, vec![]), None);
    }
}
