//! Inner packets and super-frames: what a member says of them, and what the kernel is then given.

use std::time::{Duration, Instant};

use weave_linux::tun::{VirtioHeader, gso};
use weave_router::path::csum;
use weave_router::path::frames::{Frame, FrameId, Frames, Piece};
use weave_router::path::header::{self, Built, Template};
use weave_router::path::inner::{Inner, protocol};
use weave_router::wire::{Shape, Slice};

use super::{Input, push_chunk};

/// The headers lie inside of the packet, and the kernel is asked for a checksum only where there is one to do.
pub(super) fn packet(data: &[u8]) {
    let mut input = Input(data);
    let virtio = VirtioHeader::from_bytes(std::array::from_fn(|_| input.u8()));
    let packet = input.0;
    if let Ok(inner) = Inner::parse_prefix(packet) {
        assert!(inner.transport <= packet.len());
        assert!(inner.headers(packet).is_none_or(|end| end <= packet.len()));
        assert_eq!(inner.source.is_ipv4(), inner.destination.is_ipv4());
    }
    let mut marked = packet.to_vec();
    if header::mark_congestion(&mut marked).is_ok() {
        let (before, after) = (Inner::parse_prefix(packet), Inner::parse_prefix(&marked));
        let ce = before.map(|inner| Inner { ecn: 3, ..inner });
        assert_eq!(after, ce, "nothing else is changed");
    }
    let Ok(inner) = Inner::parse(packet) else {
        return;
    };
    if let Ok(asked) = header::plain(packet, &inner, true) {
        let end = usize::from(asked.csum_start) + usize::from(asked.csum_offset) + 2;
        assert!(end <= packet.len() && usize::from(asked.csum_start) == inner.transport);
        assert_eq!(asked.gso_type, gso::NONE);
    }
    let mut settled = packet.to_vec();
    if csum::settle(&mut settled, &virtio, &inner).is_ok() {
        assert_eq!(settled[..inner.transport], packet[..inner.transport]);
    }
}

pub(super) fn packet_seeds() -> Vec<Vec<u8>> {
    let virtio = VirtioHeader {
        flags: VirtioHeader::NEEDS_CSUM,
        csum_start: 20,
        csum_offset: 16,
        ..VirtioHeader::default()
    }
    .to_bytes();
    let mut extended = udp6(8);
    extended[6] = protocol::HOP_BY_HOP;
    extended[5] += 8;
    extended.splice(40..40, [protocol::UDP, 0, 1, 4, 0, 0, 0, 0]);
    [tcp4(100), udp6(9), extended]
        .iter()
        .map(|packet| [&virtio[..], packet].concat())
        .collect()
}

/// TCP over IPv4 with options, ECN-capable.
fn tcp4(payload: usize) -> Vec<u8> {
    let length = (52 + payload) as u16;
    let mut packet = vec![0x45, 2, 0, 0, 0, 9, 0x40, 0, 64, protocol::TCP, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend([10, 32, 0, 2, 10, 40, 0, 2]);
    packet.extend([
        3, 232, 7, 208, 0, 0, 0, 77, 0, 0, 0, 5, 0x80, 0x18, 250, 0, 0, 0, 0, 0,
    ]);
    packet.extend([1; 12]);
    packet.resize(length.into(), 7);
    packet
}

/// UDP over IPv6.
fn udp6(payload: usize) -> Vec<u8> {
    let length = (8 + payload) as u16;
    let mut packet = vec![0x60, 0x10, 0, 0, 0, 0, protocol::UDP, 64];
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    for last in [2, 9] {
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend([3, 232, 7, 208]);
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(48 + payload, 7);
    packet
}

fn slice_of(shape: Shape, total: usize, headers: usize) -> Slice {
    Slice {
        offset: 0,
        total: total as u16,
        segment: 1000,
        network: 0,
        headers: headers as u8,
        index: 0,
        shape,
        csum_pending: true,
        cwr: false,
        group: false,
    }
}

/// Slices come in any order and say what they like: what is delivered is made of bytes that came for it, once each.
pub(super) fn frames(data: &[u8]) {
    let (mut input, mut now) = (Input(data), Instant::now());
    let mut frames = Frames::default();
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let (first, wait) = (input.u8(), input.u8());
        let content = input.chunk();
        now += Duration::from_micros(u64::from(wait) * 10);
        let id = FrameId {
            session: u32::from(first >> 6),
            lane: first >> 4 & 3,
            first: u64::from(first & 15),
        };
        if let Ok((slice, payload)) = Slice::parse(content) {
            let _ = frames.add(&Piece {
                id,
                slice,
                headers: &content[payload..][..slice.headers.into()],
                offset: slice.offset.into(),
                payload: &content[..payload],
                congested: first & 1 == 1,
                since: now,
                heard: now,
            });
        }
        frames.expire(now);
        for frame in frames.take_ready() {
            delivered(&frame);
            frames.recycle(frame);
        }
    }
    frames.expire(now + Duration::from_secs(1));
    assert!(frames.is_empty(), "nothing waits for ever");
    frames.take_ready().iter().for_each(delivered);
}

fn delivered(frame: &Frame) {
    let (total, mut end) = (usize::from(frame.slice().total), None);
    assert_eq!(frame.payload().len(), total);
    for run in frame.have() {
        assert!(run.start < run.end && run.end <= total);
        assert!(
            end.is_none_or(|end| end < run.start),
            "sorted, not touching"
        );
        end = Some(run.end);
    }
    if let Ok(template) = Template::new(frame.slice(), frame.headers()) {
        for run in frame.have() {
            let run = template.usable(run.clone());
            if !run.is_empty() {
                built(&template.build(run.clone()), run.len());
            }
        }
    }
}

/// What the kernel is asked for is one packet that it may be asked for.
fn built(built: &Built, payload: usize) {
    let packet = [built.headers(), &vec![0; payload]].concat();
    let inner = Inner::parse(&packet).expect("the lengths are right");
    let virtio = built.virtio;
    assert!(!inner.fragment && virtio.needs_csum());
    assert_eq!(usize::from(virtio.csum_start), inner.transport);
    assert_eq!(usize::from(virtio.hdr_len), built.headers().len());
    assert_eq!(inner.headers(&packet), Some(built.headers().len()));
    assert_eq!(inner.csum_offset(), Some(virtio.csum_offset));
    let kind = match (inner.protocol, inner.source.is_ipv4()) {
        (protocol::TCP, true) => gso::TCP4,
        (protocol::TCP, false) => gso::TCP6,
        _ => gso::UDP,
    };
    if virtio.gso_type == gso::NONE {
        assert_eq!(virtio.gso_size, 0);
    } else {
        assert_eq!(virtio.gso_type & !gso::ECN, kind);
        assert!(virtio.gso_size > 0 && payload > usize::from(virtio.gso_size));
        assert!(payload.div_ceil(virtio.gso_size.into()) <= 2048);
    }
}

pub(super) fn frames_seeds() -> Vec<Vec<u8>> {
    let piece = |shape, packet: &[u8], headers: usize, offset: usize, len: usize| {
        let slice = Slice {
            offset: offset as u16,
            ..slice_of(shape, packet.len() - headers, headers)
        };
        let payload = &packet[headers + offset..][..len];
        [payload, &packet[..headers], &slice.to_bytes()].concat()
    };
    let (tcp, udp) = (tcp4(3000), udp6(2500));
    let orders: [&[usize]; 4] = [&[0, 1, 2], &[2, 0], &[0, 0, 1], &[1]];
    let seed = |order: &&[usize]| {
        let mut seed = Vec::new();
        for (number, at) in order.iter().enumerate() {
            let piece = match number % 2 {
                0 => piece(Shape::Tcp4, &tcp, 52, at * 1000, 1000),
                _ => piece(Shape::Udp6, &udp, 48, at * 800, 800),
            };
            seed.extend([(number % 2) as u8, 10]);
            push_chunk(&mut seed, &piece);
        }
        seed
    };
    orders.iter().map(seed).collect()
}

/// Input: trailer of a slice, a run of its payload, then the copy of the headers.
pub(super) fn template(data: &[u8]) {
    let mut input = Input(data);
    let mut trailer: [u8; Slice::SIZE] = std::array::from_fn(|_| input.u8());
    let (start, end) = (usize::from(input.u16()), usize::from(input.u16()));
    let headers = &input.0[..input.0.len().min(255)];
    // The least content around the trailer that is well-formed, so that whatever it says of the packet is looked at.
    trailer[..2].fill(0);
    trailer[8] = headers.len() as u8;
    let content = [&[0][..], headers, &trailer].concat();
    let Ok((slice, _)) = Slice::parse(&content) else {
        return;
    };
    let Ok(template) = Template::new(&slice, headers) else {
        return;
    };
    let total = usize::from(slice.total);
    let start = start % total;
    for run in [0..total, start..end.clamp(start, total)] {
        let usable = template.usable(run.clone());
        assert!(usable.is_empty() || run.start <= usable.start && usable.end <= run.end);
        if !usable.is_empty() {
            built(&template.build(usable.clone()), usable.len());
        }
    }
}

pub(super) fn template_seeds() -> Vec<Vec<u8>> {
    let seed = |shape, headers: &[u8]| {
        let slice = slice_of(shape, 5000, headers.len());
        let run = [3, 232, 11, 184]; // 1000 to 3000
        [&slice.to_bytes()[..], &run, headers].concat()
    };
    vec![
        seed(Shape::Tcp4, &tcp4(0)),
        seed(Shape::Udp6, &udp6(0)),
        seed(Shape::Tcp6, &tcp4(0)),
    ]
}
