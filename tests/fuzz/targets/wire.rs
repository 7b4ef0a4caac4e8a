//! What stands outside, and what stands inside, of every datagram.

use std::time::Instant;

use weave_model::{NodeId, Suite};
use weave_router::noise::ik::{INITIATION, Opening, RESPONSE};
use weave_router::noise::join::{HELLO, Hello};
use weave_router::noise::locks::{Knock, Locks};
use weave_router::noise::mac::{self, MACS};
use weave_router::path::assembly::Assembly;
use weave_router::path::frames::FrameId;
use weave_router::path::relay::next_hop;
use weave_router::path::routes::Routes;
use weave_router::wire::{
    Envelope, HEADER, Header, Kind, MAX_RELAYS, RECORD, Shape, Slice, Type, next_packet,
    push_packet,
};

const KEY: [u8; 32] = [1; 32];
const TOKEN: [u8; 16] = [5; 16];
const INDEX: u32 = 77;

fn locks() -> Locks {
    Locks {
        epochs: [(3, KEY.into())].into(),
        tokens: [(TOKEN, KEY.into())].into(),
        joins: [(INDEX, KEY.into())].into(),
        indices: [INDEX].into(),
    }
}

/// A header is read as it would be written; only what bears the right MAC or names an index of ours may knock.
pub(super) fn header(data: &[u8]) {
    let header = Header::parse(data);
    if let Ok(header) = header {
        assert_eq!(header.to_bytes(), data[..HEADER]);
    }
    if Opening::parse(data).is_ok() {
        assert_eq!(data.len(), INITIATION);
    }
    if Hello::parse(data).is_ok() {
        assert_eq!(data.len(), HELLO);
    }
    match locks().knock(data) {
        Ok(Knock::Keyed) => {
            let (content, macs) = data.split_at(data.len() - MACS);
            let mut made = content.to_vec();
            mac::append(&KEY, None, &mut made);
            assert_eq!(made[content.len()..][..mac::MAC], macs[..mac::MAC]);
        }
        Ok(Knock::Named) => assert_eq!(header.map(|header| header.receiver), Ok(INDEX)),
        Err(_) => {}
    }
    assert!(Locks::default().knock(data).is_err());
    let mut keyed = data[..data.len().saturating_sub(MACS)].to_vec();
    mac::append(&KEY, None, &mut keyed);
    let _ = locks().knock(&keyed);
}

pub(super) fn header_seeds() -> Vec<Vec<u8>> {
    let header = |kind, receiver, counter| Header {
        kind,
        lane: 0,
        receiver,
        counter,
    };
    let datagram = |header: Header, len: usize| {
        let mut datagram = header.to_bytes().to_vec();
        datagram.resize(len - MACS, 0);
        match header.kind {
            Type::Initiation => datagram[HEADER + 4] = Suite::Aes256Gcm.to_wire(),
            Type::JoinHello => datagram[HEADER + 4..][..TOKEN.len()].copy_from_slice(&TOKEN),
            _ => {}
        }
        mac::append(&KEY, None, &mut datagram);
        datagram
    };
    vec![
        datagram(header(Type::Initiation, 0, 3), INITIATION),
        datagram(header(Type::Response, INDEX, 3), RESPONSE),
        datagram(header(Type::Cookie, INDEX, 3), mac::REPLY),
        datagram(header(Type::JoinHello, 0, 0), HELLO),
        datagram(header(Type::JoinProof, INDEX, 0), 244),
        datagram(header(Type::JoinRequest, INDEX, 0), 336),
        datagram(header(Type::JoinGrant, INDEX, 0), 292),
        datagram(header(Type::Data, INDEX, 1 << 40), 100),
    ]
}

/// What is read lies inside of the content, in order, and is written as it was read.
pub(super) fn content(data: &[u8]) {
    match Kind::of(data) {
        Some(Kind::Slice) => slice(data),
        Some(Kind::Packets) => packets(&data[..data.len() - 1]),
        Some(Kind::Envelope) => envelope(data),
        Some(Kind::Control) | None => {}
    }
}

fn slice(content: &[u8]) {
    let Ok((slice, payload)) = Slice::parse(content) else {
        return;
    };
    let trailer = &content[content.len() - Slice::SIZE..];
    assert_eq!(slice.to_bytes(), trailer);
    let headers = usize::from(slice.headers);
    assert_eq!(payload + headers + Slice::SIZE, content.len());
    assert!(payload > 0 && usize::from(slice.offset) + payload <= usize::from(slice.total));
    let id = FrameId {
        session: 1,
        lane: 0,
        first: 0,
    };
    let mut assembly = Assembly::default();
    assembly.room(content.len()).copy_from_slice(content);
    assembly.start(id, slice, payload, false, Instant::now());
    let piece = assembly.piece().expect("it was started");
    assert_eq!(piece.payload, &content[..payload]);
    assert_eq!(piece.headers, &content[payload..payload + headers]);
    let whole = assembly.whole().is_some();
    assert_eq!(whole, payload == usize::from(slice.total));
    assert!(!assembly.continues(id, &slice), "the same bytes again");
}

/// Nothing is handed on to whom nobody reaches, and nobody is spoken for but by itself.
fn envelope(content: &[u8]) {
    let Ok((envelope, datagram)) = Envelope::parse(content) else {
        return;
    };
    assert!(datagram.len() >= HEADER && envelope.hops <= MAX_RELAYS);
    assert_eq!([datagram, &envelope.to_bytes()].concat(), content);
    let from = NodeId::from_bytes([1; 32]);
    assert!(next_hop(&Routes::default(), from, &envelope).is_err());
}

fn packets(body: &[u8]) {
    let (mut at, mut written) = (0, Vec::new());
    while let Some(Ok(record)) = next_packet(body, at) {
        assert!(record.start == at + RECORD && record.end > record.start);
        let packet = &body[record.start..record.end];
        push_packet(&mut written, packet, record.csum_pending, record.network);
        at = record.end;
    }
    assert_eq!(written, body[..at]);
}

pub(super) fn content_seeds() -> Vec<Vec<u8>> {
    let slice = Slice {
        offset: 1000,
        total: 3000,
        segment: 1448,
        network: 0,
        headers: 52,
        index: 1,
        shape: Shape::Tcp4,
        csum_pending: true,
        cwr: false,
        group: false,
    };
    let ends = [[1; 32], [2; 32]].map(NodeId::from_bytes);
    let mut packets = Vec::new();
    push_packet(&mut packets, &[0x45; 60], true, 0);
    push_packet(&mut packets, &[0x60; 48], false, 1);
    packets.push(Kind::Packets as u8);
    vec![
        [&[7; 1000 + 52][..], &slice.to_bytes()].concat(),
        packets,
        vec![9, 9, Kind::Control as u8],
        [&[7; 80][..], &Envelope::new(&ends[0], &ends[1]).to_bytes()].concat(),
    ]
}
